"""What an operator's machines ask: is this process alive, may it serve, how does everything stand."""

from __future__ import annotations

from typing import cast

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app

from ..monitoring.probes import OK, Probes
from ..services import Services
from . import metrics
from .http import schemas
from .http.errors import RETRY_AFTER
from .http.openapi import also_answers, sends
from .http.wire import json_response, timestamp

bp = APIBlueprint("health", __name__, tag="Health")


def init_app(app: APIFlask, services: Services) -> None:
    """Serve what the probes of this process see; they connect when they are first asked."""
    probes = Probes(services)
    app.extensions["accountsvc.probes"] = probes
    app.register_blueprint(bp)
    metrics.init_app(app, probes)


def _probes() -> Probes:
    return cast(Probes, current_app.extensions["accountsvc.probes"])


@bp.get("/healthz")
@bp.output(schemas.Health)
def healthz() -> dict[str, str]:
    """Say that this process lives; nothing else is looked at"""
    return {"status": "ok"}


@bp.get("/readyz")
@bp.output(schemas.Readiness)
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


@bp.get("/statusz")
@bp.output(schemas.ServiceStatus)
def statusz() -> Response:
    """Say how everything stands; always 200, for people and dashboards"""
    found = _probes().describe()
    if found["sweep"] is not None:
        found["sweep"] |= {
            name: None if found["sweep"][name] is None else timestamp(found["sweep"][name])
            for name in ("last_at", "paused_at")
        }
    return json_response(found)
