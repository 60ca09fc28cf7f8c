"""What an operator's machines ask: is this process alive, may it serve, how does everything stand."""

from __future__ import annotations

from typing import cast

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app

from ..probes import OK, Probes
from ..services import Services
from . import metrics, schemas
from .errors import RETRY_AFTER
from .openapi import also_answers, sends
from .wire import json_response, timestamp

health = APIBlueprint("health", __name__, tag="Health")


def init_app(app: APIFlask, services: Services) -> None:
    """Serve what the probes of this process see; they connect when they are first asked."""
    probes = Probes(services)
    app.extensions["accountsvc.probes"] = probes
    app.register_blueprint(health)
    metrics.init_app(app, probes)


def _probes() -> Probes:
    return cast(Probes, current_app.extensions["accountsvc.probes"])


@health.get("/healthz")
@health.output(schemas.Health)
def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is looked at"""
    return {"status": "ok"}


@health.get("/readyz")
@health.output(schemas.Readiness)
@also_answers(503, "not ready")
@sends(503, Retry_After=str(RETRY_AFTER))
def readyz() -> Response:
    """Say whether this process can serve; only what no request could do without counts"""
    found = _probes().ready()
    ready = all(state == OK for state in found.values())
    response = json_response({"status": "ready" if ready else "not ready", **found})
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


@health.get("/statusz")
@health.output(schemas.ServiceStatus)
def statusz() -> Response:
    """Say how everything stands; always 200, for people and dashboards"""
    found = _probes().describe()
    if found["sweep"] is not None:
        found["sweep"] |= {
            name: None if found["sweep"][name] is None else timestamp(found["sweep"][name])
            for name in ("last_at", "paused_at")
        }
    return json_response(found)
