# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
# What builds the wheel is locked too; pip would fetch the newest otherwise.
RUN awk '/^[a-z]/ {wanted = /^setuptools==/} wanted' requirements-dev.lock > build.lock \
    && pip install --no-cache-dir --require-hashes -r build.lock
COPY setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY accountsvc accountsvc
COPY worker worker
COPY migrations migrations
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /venv/bin/pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /srv --shell /usr/sbin/nologin accountsvc \
    && install -d -o accountsvc -m 700 /var/lib/accountsvc
COPY --from=build /venv /venv
WORKDIR /srv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    APP_ENV=production INSTANCE_PATH=/var/lib/accountsvc
USER accountsvc
EXPOSE 8000
# SIGTERM is graceful for gunicorn and for Celery; both end within ten seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:%s/healthz' % os.environ.get('PORT', '8000'), timeout=2)"]
CMD ["accountsvc", "web"]
