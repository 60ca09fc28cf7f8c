"""One sweep by a clock of the test's own: the only place in the tests that makes one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from accountsvc.db.audit import SYSTEM_ACTOR, Actor
from accountsvc.db.engine import Clock
from accountsvc.purge.clocks import Clocks
from accountsvc.purge.sweep import Progress, Rules, Sweep, SweepResult
from accountsvc.services import Services


def sweep(
    services: Services,
    now: datetime | Clock,
    *,
    batch_size: int = 500,
    max_attempts: int = 3,
    write_ledger: Callable[[], bool] = lambda: True,
    only: Collection[int] | None = None,
    by: Actor = SYSTEM_ACTOR,
    progress: Progress | None = None,
    seconds: float | None = None,
    clocks: Clocks | None = None,
    brake: bool = False,
) -> SweepResult:
    """Purge what is due at *now*, a moment or a clock, by a ledger that takes everything.

    Without a *brake*, as when somebody has named the accounts.
    """
    clock = now if callable(now) else lambda _session: now
    rules = Rules(batch_size=batch_size, max_attempts=max_attempts, has_brake=brake)
    one_pass = Sweep(
        services.database, rules, write_ledger, clock=clock, only=only, by=by, clocks=clocks
    )
    return one_pass.run(seconds=seconds, progress=progress)
