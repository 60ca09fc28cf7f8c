"""Measure works in turns, so that a busy machine slows the first of them, the reference, alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What is measured; ``prepare`` is done before each time and not measured."""

    name: str
    do: Callable[[], object]
    prepare: Callable[[], object] | None = None


class Result:
    """What a bench found, which is printed; any *faults* are bounds that were passed."""

    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured(Result):
    """A value for each named work, the reference first."""

    title: str
    values: dict[str, float]
    unit: str = "s"

    def __str__(self) -> str:
        reference = next(iter(self.values.values()))
        return "\n".join(
            [
                self.title,
                *(
                    f"  {name:52} {value:12.4f} {self.unit:3} {value / reference:8.2f} x"
                    for name, value in self.values.items()
                ),
            ]
        )


@dataclass(frozen=True)
class Table(Result):
    """Cells by the name of their row and the title of their column, as a table of Markdown."""

    title: str
    rows: Mapping[str, Mapping[str, str]]

    def __str__(self) -> str:
        columns = list(dict.fromkeys(title for cells in self.rows.values() for title in cells))
        lines = [["", *columns], ["---"] * (len(columns) + 1)]
        for name, cells in self.rows.items():
            lines.append([name, *(cells.get(title, "–") for title in columns)])
        return "\n".join([self.title, "", *(f"| {' | '.join(line)} |" for line in lines)])


def in_turns(title: str, works: Sequence[Work], *, times: int) -> Measured:
    """Do each of *works* *times* times in turns and return the medians in seconds."""
    spent: dict[str, list[float]] = {work.name: [] for work in works}
    for _ in range(times):
        for work in works:
            if work.prepare is not None:
                work.prepare()
            began = time.perf_counter()
            work.do()
            spent[work.name].append(time.perf_counter() - began)
    medians = {name: statistics.median(each) for name, each in spent.items()}
    return Measured(f"{title} (median of {times})", medians)
