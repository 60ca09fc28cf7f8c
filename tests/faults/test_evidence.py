"""Evidence over thousands of lives: all are in it, and nothing is unexplained."""

from __future__ import annotations

import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from accountsvc.db.models import Receipt
from accountsvc.purge import reconciling
from accountsvc.purge.evidence import Period, Request
from accountsvc.services import Services
from tests.conftest import LONG_FAULTS
from tests.support.lies import forget_event, forget_line, forget_receipt
from tests.support.lives import live
from tests.support.moments import now
from tests.support.state import rows_of

LIVES = 10_000 if LONG_FAULTS else 160
# Evidence of ten thousand takes little more memory than that of a few hundred: a page of requests,
# and the receipts of a day.
MOST_MEMORY = 32 << 20


@pytest.mark.timeout(1800)
def test_evidence_of_many_lives_is_whole_and_each_lie_is_named(
    services: Services, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # given
    began = time.monotonic()
    world = live(services, LIVES, tmp_path)
    lived = time.monotonic() - began
    period = Period(world.since, now(services))
    ends: dict[uuid.UUID, list[tuple[str, str | None]]] = {}

    def note(request: Request) -> None:
        ends.setdefault(request.number, []).append((str(request.outcome), request.ended_by))

    # when
    tracemalloc.start()
    found = services.evidence.gather(period, lambda _request: None)
    _, memory = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    began = time.monotonic()
    services.evidence.gather(period, note)
    took = time.monotonic() - began

    # then
    assert found.unexplained == []
    assert ends == world.expected
    assert found.requests == Counter(end for ended in ends.values() for end, _ in ended)
    assert found.receipts == found.ledger_lines == len(rows_of(services, Receipt))
    assert memory < MOST_MEMORY
    record_property(
        "table",
        f"{services.database.engine.dialect.name}: {LIVES} lives in {lived:.0f} s; evidence of "
        f"{found.requests.total()} requests in {took:.1f} s, {memory / (1 << 20):.1f} MiB at most; "
        f"{len(found.unexplained)} unexplained",
    )

    # and when: seeded lies
    receipt, event = world.numbers("purged")[-1], world.numbers("moved")[-1]
    forget_receipt(services, receipt)
    forget_event(services, event, "account.purged")
    fellows = forget_line(services, world.numbers("at once by the owner")[0])
    lied = services.evidence.gather(period, lambda _request: None)

    # then
    assert {(one.what, one.number) for one in lied.unexplained} == {
        (reconciling.EVENT_ALONE, receipt),
        *({(reconciling.LINE_ALONE, receipt)} - {(reconciling.LINE_ALONE, one) for one in fellows}),
        (reconciling.RECEIPT_ALONE, event),
        (reconciling.REQUEST_UNKNOWN, event),
        *((reconciling.NOT_IN_LEDGER, fellow) for fellow in fellows - {receipt}),
    }
