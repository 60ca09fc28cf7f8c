"""The answers for an operator's machines: alive, ready, how it all stands."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app, request

from .. import web
from ..db.text import rfc3339
from ..monitoring.metrics import CONTENT_TYPE, Metrics, count_refusal, count_request
from ..monitoring.probes import OK, Probes
from ..services import Services
from ..web import RETRY_AFTER
from .http import schemas
from .http.describe import also_answers, sends
from .http.ops import for_operations
from .http.wire import json_response

bp = APIBlueprint("health", __name__, tag="Health")

_METRICS: dict[int | str, dict[str, str | dict[str, dict[str, Any]]]] = {
    200: {
        "description": "Prometheus' text format",
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "example": "accountsvc_purging_paused 0.0\n",
            }
        },
    }
}


def init_app(app: APIFlask, services: Services) -> None:
    """Serve how *services* stand, and count every request of *app*.

    The probes connect when they are first asked.
    """
    probes = Probes(services)
    app.extensions["accountsvc.probes"] = probes
    app.extensions["accountsvc.metrics"] = Metrics(probes)
    app.register_blueprint(bp)
    app.after_request(_count)


def _count(response: Response) -> Response:
    # Count by the route's rule: a path may hold a name, and each path would be a series of its own.
    count_request(
        method=web.method(),
        route="none" if request.url_rule is None else request.url_rule.rule,
        status=response.status_code,
        seconds=web.seconds(),
    )
    limit = web.met_limit()
    if limit is not None:
        count_refusal(limit)
    return response


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
    parts = _probes().ready()
    ready = all(state == OK for state in parts.values())
    response = json_response({"status": "ready" if ready else "not ready", **parts})
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


@bp.get("/statusz")
@for_operations
@bp.output(schemas.ServiceStatus)
def statusz() -> Response:
    """Say how everything stands; always 200, for people and dashboards"""
    status = _probes().describe()
    for part in (status["sweep"], status["backlog"]):
        moments = {} if part is None else part
        for name, value in moments.items():
            if isinstance(value, datetime):
                moments[name] = rfc3339(value)
    return json_response(status)


# The operation's id is given, and not made of the function's name: a client that is generated from
# the document names its own function by it.
@bp.get("/metrics")
@bp.doc(responses=_METRICS, operation_id="get_metrics_show")
@for_operations
def metrics() -> Response:
    """Serve what Prometheus scrapes: requests, and how everything stands"""
    rendered = cast(Metrics, current_app.extensions["accountsvc.metrics"]).render()
    return Response(rendered, content_type=CONTENT_TYPE)
