# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /srv
COPY requirements.lock .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /srv --shell /usr/sbin/nologin accountsvc \
    && install -d -o accountsvc -m 700 /var/lib/accountsvc
COPY --from=build /venv /venv
WORKDIR /srv
COPY wsgi.py gunicorn.conf.py ./
COPY accountsvc accountsvc
COPY worker worker
COPY migrations migrations
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    APP_ENV=production INSTANCE_PATH=/var/lib/accountsvc
USER accountsvc
EXPOSE 8000
# SIGTERM is graceful for gunicorn and for Celery; both end within ten seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:%s/healthz' % os.environ.get('PORT', '8000'), timeout=2)"]
CMD ["gunicorn", "--config", "gunicorn.conf.py", "wsgi:app"]
