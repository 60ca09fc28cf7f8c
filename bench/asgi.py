"""The service for servers that speak ASGI: each request on one of eight threads of a process."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware

from accountsvc.start.wsgi import app as wsgi_app

app = WSGIMiddleware(wsgi_app, workers=8)  # type: ignore[arg-type]
