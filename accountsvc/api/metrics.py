"""``GET /metrics`` in Prometheus' text format: requests of this service, and how everything stands.

Labels are closed lists (methods, routes, statuses, kinds of effects): no id, no address, no name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .. import web
from ..monitoring.probes import OK, Probes

bp = APIBlueprint("metrics", __name__, tag="Health")

_ANSWERS: dict[int | str, dict[str, str | dict[str, dict[str, Any]]]] = {
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

# Of the process, not of an application: counters outlive it, as Prometheus expects.
_own = CollectorRegistry()
_REQUESTS = Counter(
    "accountsvc_http_requests", "Requests answered.", ["method", "route", "status"], registry=_own
)
_SECONDS = Histogram(
    "accountsvc_http_request_duration_seconds",
    "How long requests took.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=_own,
)


def init_app(app: APIFlask, probes: Probes) -> None:
    """Count every request of *app*, and serve the counts together with what *probes* see."""
    app.register_blueprint(bp)
    standing = CollectorRegistry()
    standing.register(_Standing(probes))
    app.extensions["accountsvc.standing"] = standing

    @app.after_request
    def count(response: Response) -> Response:
        route = "none" if request.url_rule is None else request.url_rule.rule
        _REQUESTS.labels(web.method(), route, response.status_code).inc()
        _SECONDS.labels(web.method(), route).observe(web.seconds())
        return response


@bp.get("/metrics")
@bp.doc(responses=_ANSWERS)
def show() -> Response:
    """Serve what Prometheus scrapes: requests, and how everything stands"""
    requests = _own
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        # gunicorn.conf.py sets it: each process sees the counts of all.
        requests = CollectorRegistry()
        MultiProcessCollector(requests)  # type: ignore[no-untyped-call]
    standing = current_app.extensions["accountsvc.standing"]
    return Response(
        generate_latest(requests) + generate_latest(standing), content_type=CONTENT_TYPE_LATEST
    )


class _Standing(Collector):
    """What ``GET /statusz`` says, as gauges; asked for at each scrape."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def collect(self) -> Iterator[Metric]:
        parts, counts = self._probes.standing()
        up = GaugeMetricFamily("accountsvc_part_up", "1 if the part answers.", labels=["part"])
        for part, state in parts.items():
            up.add_metric([part], state == OK)
        yield up
        if counts is None:
            return
        waiting = GaugeMetricFamily(
            "accountsvc_accounts", "Deactivated accounts, by what they wait for.", labels=["state"]
        )
        others = counts.held + counts.failing + counts.stuck
        for state, count in (
            ("deactivated", counts.deactivated),
            ("due", counts.due - others),
            ("held", counts.held),
            ("failing", counts.failing),
            ("stuck", counts.stuck),
        ):
            waiting.add_metric([state], count)
        yield waiting
        owed = GaugeMetricFamily(
            "accountsvc_outbox_effects", "Effects that are due, by kind.", labels=["kind"]
        )
        for kind, count in counts.owed.items():
            owed.add_metric([kind], count)
        yield owed
        yield GaugeMetricFamily(
            "accountsvc_oldest_overdue_seconds",
            "How long the oldest account waits that nothing keeps from being purged.",
            value=counts.overdue.total_seconds(),
        )
        if counts.swept_at is not None:
            yield GaugeMetricFamily(
                "accountsvc_sweep_age_seconds",
                "How long ago the last sweep ended.",
                value=(counts.at - counts.swept_at).total_seconds(),
            )
        yield GaugeMetricFamily(
            "accountsvc_purging_paused",
            "1 while an operator has paused purging.",
            value=counts.paused_at is not None,
        )
