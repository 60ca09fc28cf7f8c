"""Plan faults, inject them one after the other, and ask the oracle after each."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.injection import Fault, Kind, Report, points_for, run
from tests.faults.world import CHECKED, World
from tests.support.factories import dispose, make_app, services_of


@dataclass
class Result:
    """What was injected, what was in flight, what was not as promised."""

    points: tuple[str, ...] = ()
    injected: Counter[Kind] = field(default_factory=Counter)
    in_flight: dict[Kind, Counter[str]] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    checks: Counter[Kind] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def table(self, engine: str) -> str:
        lines = [
            f"{'FAULT ON ' + engine:28} {'TIMES':>6} {'CHECKS':>7} {'VIOLATIONS':>11}  IN FLIGHT"
        ]
        for kind, times in self.injected.items():
            bad = sum(1 for one in self.violations if one.startswith(kind.value))
            flight = ", ".join(f"{name} {n}" for name, n in self.in_flight[kind].items())
            lines.append(f"{kind.value:28} {times:>6} {self.checks[kind]:>7} {bad:>11}  {flight}")
        lines.append(f"{'all':28} {self.injected.total():>6} {'':>7} {len(self.violations):>11}")
        return "\n".join([*lines, CHECKED])


@contextmanager
def world(url: str, folder: Path) -> Iterator[World]:
    """A world on a migrated database; people fall due often here, so nothing is throttled."""
    outside, inside = make_app(url, folder), make_app(url, folder, PURGE_BATCH_SIZE="2")
    # Nobody looks at the inside's answers but the oracle.
    here = World(outside, inside, folder / "instance" / "media")
    # What is made and imported at first use is made here once, and not in each child.
    for _, work in here.new_round():
        work()
    assert here.recover() == []
    services_of(inside).database.engine.dispose()
    gc.collect()
    gc.freeze()
    try:
        yield here
    finally:
        gc.unfreeze()
        for app in (outside, inside):
            dispose(app)


def plan(points: Sequence[str], kinds: Sequence[Kind], *, share: float, seed: int) -> list[Fault]:
    """Return one kill at each point, and of the other kinds' points a *share*, at least one of each kind.

    The order and the choice are the *seed*'s.
    """
    chance = random.Random(seed)
    planned = []
    for kind in kinds:
        possible = points_for(kind, points)
        count = len(possible) if kind is Kind.KILL else max(1, round(share * len(possible)))
        planned += [Fault(kind, point) for point in chance.sample(possible, count)]
    chance.shuffle(planned)
    return planned


def again(faults: Sequence[Fault], points: Sequence[str], *, seed: int) -> list[Fault]:
    """Return *faults* at a later visit of their point, where there is one."""
    chance = random.Random(seed)
    visits = Counter(points)
    return [
        Fault(one.kind, one.point, chance.randint(2, visits[one.point]))
        for one in faults
        if visits[one.point] > 1
    ]


def record(here: World) -> tuple[str, ...]:
    """Run a round without a fault and return the points in the order of their visits."""
    engine = services_of(here.inside).database.engine
    operations = here.new_round()
    here.services.database.engine.dispose()
    report = run(engine, operations)
    assert report.status == 0, report
    answers = {name: report.answers[name] for name in ("upload", "delete", "reactivate")}
    assert answers == {"upload": 200, "delete": 204, "reactivate": 200}, report.answers
    assert report.answers["sweep"] == 3
    assert here.violations(report.answers) == []
    assert here.recover() == []
    return report.points


def inject(
    here: World,
    faults: Sequence[Fault],
    result: Result,
    *,
    mutate: Callable[[], None] | None = None,
    stop_at_first: bool = False,
) -> None:
    """Inject each of *faults* in a round of its own, and ask the oracle before and after the recovery."""
    engine = services_of(here.inside).database.engine
    for fault in faults:
        operations = here.new_round()
        # A forked child must not inherit connections.
        here.services.database.engine.dispose()
        report = run(engine, operations, fault, mutate)
        if fault.point in report.points:
            result.injected[fault.kind] += 1
            result.visited.add(fault.point)
            flight = result.in_flight.setdefault(fault.kind, Counter())
            flight[fault.point.partition(":")[0]] += 1
        found = [*_ends_badly(fault, report), *here.violations(report.answers)]
        # A mutant's harm need not heal, and is seen by now or not at all.
        if not (mutate and found):
            found += here.recover()
            found += here.violations(report.answers)
        result.checks[fault.kind] += 2
        result.violations += [
            f"{fault.kind.value} at {fault.point} (visit {fault.nth}): {one} [{report.trace}]"
            for one in found
        ]
        if result.violations and stop_at_first:
            return


def _ends_badly(fault: Fault, report: Report) -> list[str]:
    if fault.kind is Kind.KILL:
        return [] if report.killed or not report.points else [f"it lived on: {report.status}"]
    return [] if report.status == 0 else [f"the process ended with {report.status}"]
