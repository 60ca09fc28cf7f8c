"""The service in Prometheus' text format: its requests, and how everything stands.

Labels are closed lists (methods, routes, statuses, parts, kinds of effects): no id, no address and
no name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..errors import (
    BUSY_FILES,
    BUSY_IMAGES,
    BUSY_LISTS,
    BUSY_PASSWORDS,
    NO_IMAGE_WORKER,
)
from .probes import OK, Probes
from .status import Status

CONTENT_TYPE = CONTENT_TYPE_LATEST

# The counters belong to the process and not to an application. Those of each application would
# begin at zero, which Prometheus takes for a restart.
_requests = CollectorRegistry()
_COUNT = Counter(
    "accountsvc_http_requests",
    "Requests answered.",
    ["method", "route", "status"],
    registry=_requests,
)
_SECONDS = Histogram(
    "accountsvc_http_request_duration_seconds",
    "How long requests took.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=_requests,
)
_UNKNOWN_EMAILS = Counter(
    "accountsvc_unknown_email_attempts",
    "Passwords tried for an e-mail that has no account.",
    registry=_requests,
)
_REFUSALS = Counter(
    "accountsvc_refusals",
    "Requests refused because there are too many of their kind, by the limit that they met.",
    ["limit"],
    registry=_requests,
)
# Without a series there would be nothing to subtract from the 503, and the alarm on these that
# docs/operations.md has would never ring.
for _limit in (BUSY_PASSWORDS, BUSY_IMAGES, BUSY_LISTS, BUSY_FILES, NO_IMAGE_WORKER):
    _REFUSALS.labels(_limit)


def count_refusal(limit: str) -> None:
    """Count one request that met *limit*, as the errors Throttled and Busy name it."""
    _REFUSALS.labels(limit).inc()


def count_unknown_email() -> None:
    """Count one password that was tried for an e-mail without an account."""
    _UNKNOWN_EMAILS.inc()


def count_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request.

    *method* and *route* are words of ours: a path as the client sent it may hold somebody's name.
    """
    _COUNT.labels(method, route, status).inc()
    _SECONDS.labels(method, route).observe(seconds)


class Metrics:
    """The metrics of this process, and what *probes* say at each scrape."""

    def __init__(self, probes: Probes) -> None:
        self._standing = CollectorRegistry()
        self._standing.register(_Standing(probes))

    def render(self) -> bytes:
        """Return all metrics as ``CONTENT_TYPE`` says.

        Where several processes serve together (``gunicorn.conf.py`` names them a folder in
        ``PROMETHEUS_MULTIPROC_DIR``), requests are those of all of them.
        """
        requests = _requests
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            requests = CollectorRegistry()
            MultiProcessCollector(requests)  # type: ignore[no-untyped-call]
        return generate_latest(requests) + generate_latest(self._standing)


class _Standing(Collector):
    """The state of everything as gauges, which ``GET /statusz`` says in JSON."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def collect(self) -> Iterator[Metric]:
        parts, counts = self._probes.standing()
        up = GaugeMetricFamily("accountsvc_part_up", "1 if the part answers.", labels=["part"])
        for part, state in parts.items():
            up.add_metric([part], state == OK)
        yield up
        yield _tables(self._probes)
        if counts is not None:
            yield from _backlog(counts)
            yield from _outbox(counts)
            yield from _sweeps(counts)
            yield from _trail(counts)
            yield from _orphans(counts)
            yield from _canary(counts)


def _tables(probes: Probes) -> Metric:
    """Return how many tables are on no map, by what makes them somebody's."""
    tables = GaugeMetricFamily(
        "accountsvc_unmapped_tables",
        "Tables of the database that are on no data map, and refer to accounts or are named so.",
        labels=["because"],
    )
    refer = sum(one.refers for one in probes.unmapped)
    tables.add_metric(["foreign_key"], refer)
    tables.add_metric(["column"], len(probes.unmapped) - refer)
    return tables


def _backlog(counts: Status) -> Iterator[Metric]:
    accounts = GaugeMetricFamily(
        "accountsvc_accounts", "Deactivated accounts, by what they wait for.", labels=["state"]
    )
    blocked = counts.held + counts.failing + counts.stuck + counts.unexplained_due
    for state, count in (
        ("deactivated", counts.deactivated),
        ("due", counts.due - blocked),
        ("held", counts.held),
        ("failing", counts.failing),
        ("stuck", counts.stuck),
        ("unexplained", counts.unexplained_due),
    ):
        accounts.add_metric([state], count)
    yield accounts
    yield GaugeMetricFamily(
        "accountsvc_unexplained_accounts",
        "Deactivated accounts whose purge nobody has promised, due or not.",
        value=counts.unexplained,
    )
    yield GaugeMetricFamily(
        "accountsvc_purges_under_way",
        "Purges that are not completed: something of them is owed.",
        value=counts.under_way,
    )
    yield GaugeMetricFamily(
        "accountsvc_oldest_purge_under_way_seconds",
        "How long ago the oldest purge has begun that is not completed.",
        value=counts.oldest_under_way.total_seconds(),
    )
    yield GaugeMetricFamily(
        "accountsvc_returns_and_holds_owed",
        "Returns and holds that are not in the ledger after a minute.",
        value=counts.unkept,
    )


def _outbox(counts: Status) -> Iterator[Metric]:
    """Yield what is owed, and what waits, each by kind."""
    for name, meaning, by_kind in (
        ("outbox_effects", "Effects that are owed: they should have happened by now.", counts.owed),
        (
            "outbox_effects_failing",
            "Owed effects that have failed and are tried again.",
            counts.owed_failing,
        ),
        (
            "outbox_effects_paused",
            "Owed effects that wait until purging goes on.",
            counts.paused,
        ),
        (
            "mails_delayed",
            "Mails that wait because their recipient has been mailed.",
            counts.delayed,
        ),
        (
            "mails_refused",
            "Mails whose address was refused and that are tried again later.",
            counts.refused,
        ),
        (
            "outbox_oldest_owed_seconds",
            "How long the oldest owed effect is owed.",
            {kind: age.total_seconds() for kind, age in counts.owed_oldest.items()},
        ),
    ):
        family = GaugeMetricFamily(f"accountsvc_{name}", f"{meaning} By kind.", labels=["kind"])
        for kind, value in by_kind.items():
            family.add_metric([kind], value)
        yield family


def _sweeps(counts: Status) -> Iterator[Metric]:
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
    yield GaugeMetricFamily(
        "accountsvc_purging_stopped_by_clock",
        "1 while the database's clock has moved.",
        value=counts.clock_moved_at is not None,
    )
    yield GaugeMetricFamily(
        "accountsvc_brake_holds",
        "1 while more accounts are due than the brake lets go in an hour.",
        value=counts.brake.held_at is not None,
    )
    yield GaugeMetricFamily(
        "accountsvc_brake_waiting",
        "Accounts that wait for the brake.",
        value=counts.braked,
    )


def _trail(counts: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "accountsvc_oldest_unsealed_seconds",
        "How long the oldest entry of the audit trail waits for its seal; 0 below ten minutes.",
        value=counts.unsealed_late.total_seconds(),
    )


def _orphans(counts: Status) -> Iterator[Metric]:
    orphans = counts.orphans
    for name, meaning, value in (
        ("orphans", "Avatar files that are nobody's, in quarantine.", orphans.count),
        (
            "oldest_orphan_seconds",
            "How long the oldest file in quarantine is nobody's.",
            orphans.oldest.total_seconds(),
        ),
        (
            "orphans_refused",
            "1 while more files are nobody's than accounts show, so that none is deleted.",
            orphans.is_refused,
        ),
    ):
        yield GaugeMetricFamily(f"accountsvc_{name}", meaning, value=value)
    yield CounterMetricFamily(
        "accountsvc_orphans_deleted",
        "Files that were nobody's and whose deletion was owed by schedule.",
        value=orphans.deleted,
    )
    if orphans.searched_at is not None:
        yield GaugeMetricFamily(
            "accountsvc_orphan_search_age_seconds",
            "How long ago the last search of the whole store ended.",
            value=(counts.at - orphans.searched_at).total_seconds(),
        )


def _canary(counts: Status) -> Iterator[Metric]:
    """Yield how the last canary ended, if one was ever made."""
    canary = counts.canary
    if canary.passed_at is None and canary.failed_at is None:
        return
    yield GaugeMetricFamily(
        "accountsvc_canary_ok",
        "1 if nothing was left of the last canary, and every step of it was done.",
        value=canary.problem(counts.at, is_daily=False) is None,
    )
    if canary.passed_at is not None:
        yield GaugeMetricFamily(
            "accountsvc_canary_age_seconds",
            "How long ago a canary passed last.",
            value=(counts.at - canary.passed_at).total_seconds(),
        )
