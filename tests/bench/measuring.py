"""Measures two sides of one case in turn, holds their ratio against a bar, and keeps what came of it."""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.bench import processes
from tests.bench.identity import Identity
from tests.bench.processes import Memory, Server

_BUDGET, _FEWEST = 40.0, 3
"""Seconds a case may take, unless it has had its fewest rounds."""
_BUDGET_WITHOUT_BAR, _FEWEST_WITHOUT_BAR = 15.0, 1

Measure = Callable[[], float]
Pair = Callable[[], tuple[float, float]]
"""(ours, theirs) of one round, for a case whose two sides are two views of one event."""


@dataclass(frozen=True)
class Bar:
    """What is good enough. `ratio` is ours / theirs; `plus`: ours exceeds theirs by no more; `equal`: they are the same."""

    kind: Literal["at least", "at most", "plus", "below", "equal"]
    limit: float = 1.0
    unit: str = ""

    def is_met(self, ours: float, theirs: float) -> bool:
        ratio = _ratio(ours, theirs)
        return {
            "at least": ratio >= self.limit,
            "at most": ratio <= self.limit,
            "plus": ours - theirs <= self.limit,
            "below": ours < self.limit,
            "equal": ours == theirs,
        }[self.kind]

    def headroom(self, ours: float, theirs: float) -> float:
        """How many times better than the bar: 1 is just met."""
        ratio = _ratio(ours, theirs)
        if self.kind == "at least":
            return ratio / self.limit
        allowed = {"at most": self.limit * theirs, "plus": theirs + self.limit, "below": self.limit, "equal": theirs}
        return float(ours == theirs) if self.kind == "equal" else _ratio(allowed[self.kind], max(ours, 1e-3))

    def __str__(self) -> str:
        return {
            "at least": f">= {self.limit:g}x",
            "at most": f"<= {self.limit:g}x",
            "plus": f"<= + {self.limit:g} {self.unit}",
            "below": f"< {self.limit:g} {self.unit}",
            "equal": "the same",
        }[self.kind]


def _ratio(ours: float, theirs: float) -> float:
    return ours / max(theirs, 1e-9)


@dataclass(frozen=True)
class Result:
    """Medians; `spread` is the lowest and highest ratio of a round; `growth` the gateway's memory in 10^6 bytes."""

    ours: float
    theirs: float
    ratio: float
    unit: str
    spread: tuple[float, float]
    bar: str | None
    met: bool | None
    rounds: int
    headroom: float | None = None
    growth: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Side:
    """One way to get the same thing. `bar` is what ours is held against, if this is theirs; `process` is the gateway whose
    memory is looked at, if this is ours."""

    name: str
    measure: Measure
    process: Server | None = None
    bar: Bar | None = None
    cost: Callable[[], float] | None = None
    """Milliseconds of processor that one answer took on its server, for a note."""


@dataclass
class Bench:
    """Runs cases, keeps their results by name, and starts gateways that check tokens and write audit records."""

    identity: Identity
    rounds: int = 5
    seconds: float = 2.0
    """How long one load measurement asks."""
    results: dict[str, Result] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Cases that could not be measured."""

    def gateway(self, nodes: Sequence[Mapping[str, Any]], **settings: object) -> Any:
        """The gateway as it is shipped: tokens checked, audit records to a file, metrics counted, requests logged."""
        return processes.gateway(nodes, **{"log_level": "INFO", **self.identity.settings, **settings})

    @contextmanager
    def attempting(self, case: str) -> Iterator[None]:
        """A case that cannot be measured is told and kept by name, and the next one goes on."""
        try:
            yield
        except (RuntimeError, OSError, AssertionError, http.client.HTTPException, subprocess.SubprocessError) as error:
            say(f"  {case}: could not be measured: {type(error).__name__}: {str(error)[-300:]}")
            self.failures.append(case)

    def run(
        self, case: str, unit: str, ours: Sequence[Side], theirs: Sequence[Side], note: Callable[[], str] = str
    ) -> None:
        """Each of ours against each of theirs, all of them in turn in every round. The first, unmeasured, warms up; the note is asked
        for last."""
        sides = [*ours, *theirs]
        for side in sides:
            side.measure()
        taken: dict[str, list[float]] = {side.name: [] for side in sides}
        growth: dict[str, float] = {}
        for _ in self._rounds(any(side.bar for side in theirs)):
            for side in sides:
                with _watched(side, growth):
                    taken[side.name].append(side.measure())
        for mine in ours:
            for other in theirs:
                name, told = f"{case}: {mine.name} / {other.name}", note()
                if mine.cost and other.cost:
                    told = f"{told} processor time of an answer: {mine.cost():.2f} / {other.cost():.2f} ms".strip()
                self.keep(name, unit, taken[mine.name], taken[other.name], other.bar, growth.get(mine.name), told)

    def pairs(self, case: str, unit: str, measure: Pair, bar: Bar | None = None, note: Callable[[], str] = str) -> None:
        """A case whose sides are measured together. The first round, unmeasured, warms up; the note is asked for last."""
        measure()
        taken = [measure() for _ in self._rounds(bar is not None)]
        self.keep(case, unit, [ours for ours, _ in taken], [theirs for _, theirs in taken], bar, note=note())

    def count(self, case: str, unit: str, ours: float, theirs: float, bar: Bar | None = None, note: str = "") -> None:
        """A case that is counted once, not timed."""
        self.keep(case, unit, [ours], [theirs], bar, note=note)

    def _rounds(self, is_judged: bool) -> Iterator[int]:
        began = time.monotonic()
        fewest, budget = (_FEWEST, _BUDGET) if is_judged else (_FEWEST_WITHOUT_BAR, _BUDGET_WITHOUT_BAR)
        for number in range(self.rounds):
            if number >= fewest and time.monotonic() - began > budget:
                return
            yield number

    def keep(
        self,
        name: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        bar: Bar | None = None,
        growth: float | None = None,
        note: str = "",
    ) -> None:
        ratios = [_ratio(mine, other) for mine, other in zip(ours, theirs, strict=True)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        result = Result(
            ours=round(mine, 1),
            theirs=round(other, 1),
            ratio=round(_ratio(mine, other), 2),
            unit=unit,
            spread=(round(min(ratios), 2), round(max(ratios), 2)),
            bar=str(bar) if bar else None,
            met=bar.is_met(mine, other) if bar else None,
            rounds=len(ours),
            headroom=round(bar.headroom(mine, other), 2) if bar else None,
            growth=None if growth is None else round(growth, 1),
            note=note,
        )
        self.results[name] = result
        verdict = "" if result.met is None else f" (bar {result.bar}: {'met' if result.met else 'NOT MET'})"
        say(f"  {name}: {result.ours:g} / {result.theirs:g} {unit} = {result.ratio:g}{verdict} {note}".rstrip())


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _watched(side: Side, growth: dict[str, float]) -> Iterator[None]:
    if side.process is None:
        yield
        return
    with Memory(side.process.process) as memory:
        yield
    growth[side.name] = max(growth.get(side.name, 0.0), memory.growth)
