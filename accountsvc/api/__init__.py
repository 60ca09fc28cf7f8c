"""HTTP to the core and back: a blueprint a resource, and the one table of errors."""

from __future__ import annotations

from apiflask import APIFlask

from ..services import Services
from . import (
    deletion,
    docs,
    export,
    grace,
    health,
    media,
    profile,
    receipts,
    reset,
    session,
    staff,
    vault,
)
from .http import auth, bodies, errors, headers, openapi, ops, wire


def init_app(app: APIFlask, services: Services) -> None:
    """Put the whole wire contract on *app*, whose services are *services*."""
    app.json = wire.Json(app)
    # Replace the converter under its own name: APIFlask knows that an "int" is an integer, and
    # would document a parameter of a converter with another name as a text.
    app.url_map.converters["int"] = wire.Id
    headers.init_app(app, services.settings)
    bodies.init_app(app)
    errors.init_app(app)
    auth.init_app(app, services)
    ops.init_app(app)
    openapi.init_app(app)
    for resource in (profile, session, deletion, grace, export, vault, reset, staff, docs):
        app.register_blueprint(resource.bp, url_prefix="/api")
    app.register_blueprint(media.bp)
    app.register_blueprint(receipts.bp)
    health.init_app(app, services)
