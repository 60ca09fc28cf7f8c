"""The WSGI application in a clone: for ``gunicorn wsgi:app`` and ``flask --app wsgi``."""

from accountsvc.start.wsgi import app

__all__ = ["app"]
