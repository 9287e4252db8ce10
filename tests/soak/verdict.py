"""What a soak has shown: requests by how they ended, which of them should not have ended so, and whether memory is flat."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.soak.caller import Asked
from tests.soak.stage import Spell

MEGABYTE = 1_000_000
WARM_UP = 0.25
"""The share of the time after which memory is to be flat."""
LONG = 10.0
"""Minutes from which on a run can show a slope."""
MOST_SLOPE, MOST_GROWTH, NOISE = 1.0, 0.2, 25.0
"""MB a minute over the second half; the share by which the end may exceed the warm-up; MB that the second
half of a shorter run may grow by: one fault that had not been there before takes that much."""
BACK_WITHIN = 20.0
"""Seconds after the end of a fault in which the node may still be seen as down: its breaker's 15, and slack."""
LEFT_OVER = {"fds": 20, "threads": 30, "tasks": 5, "in_flight": 0}
"""How much more than before the load there may be after it: pools that have grown, no work."""


@dataclass(frozen=True)
class Sample:
    """One look at the gateway from outside; `rss` in bytes. `at` is seconds of the epoch."""

    at: float
    rss: int
    fds: int
    threads: int
    tasks: int
    in_flight: int
    lag: float | None = None


@dataclass(frozen=True)
class Memory:
    """MB; `slope` is MB a minute over the second half.

    What is in flight comes and goes with each fault; a leak raises the floor. All but `most` are of the floor: the least
    of each minute, since the gateway gives memory back once in a minute; in a short run, of each quarter of one.
    """

    warm: float
    end: float
    most: float
    slope: float
    minutes: float

    @property
    def is_flat(self) -> bool:
        half = self.minutes / 2
        grows = self.slope * half > (MOST_SLOPE * half if self.minutes >= LONG else NOISE)
        return not grows and self.end < self.warm * (1 + MOST_GROWTH)


def memory(samples: Sequence[Sample]) -> Memory:
    """Raises ValueError without samples enough to tell."""
    if len(samples) < 2 or samples[-1].at - samples[0].at < 60:
        raise ValueError("a minute at least")
    most, minutes = max(one.rss for one in samples) / MEGABYTE, (samples[-1].at - samples[0].at) / 60
    samples = _floor(samples, 60 if minutes >= LONG else 15)
    sizes = [one.rss / MEGABYTE for one in samples]
    count = len(samples)
    warm = sizes[int(count * WARM_UP) :][: max(1, count // 10)]
    second = samples[count // 2 :]
    fit = statistics.linear_regression([one.at / 60 for one in second], [one.rss / MEGABYTE for one in second])
    end = statistics.median(sizes[-max(1, count // 10) :])
    return Memory(statistics.median(warm), end, most, fit.slope, minutes)


def _floor(samples: Sequence[Sample], seconds: float) -> list[Sample]:
    """The least of each stretch of so many seconds; but of the last, where it is far from whole: it may have no such moment."""
    stretches: dict[int, Sample] = {}
    for one in samples:
        stretch = int((one.at - samples[0].at) // seconds)
        stretches[stretch] = min(stretches.get(stretch, one), one, key=lambda sample: sample.rss)
    is_whole = (samples[-1].at - samples[0].at) % seconds > 0.9 * seconds
    return list(stretches.values())[: None if is_whole else -1]


@dataclass
class Verdict:
    """`unexpected` are the requests that no fault of that time explains."""

    ends: Mapping[str, Mapping[str, int]]
    unexpected: list[dict[str, Any]]
    unexplained_warnings: int
    memory: Memory
    leftovers: dict[str, tuple[int, int]]
    lag: float | None = None
    complaints: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.complaints


def verdict(
    asked: Sequence[Asked], spells: Sequence[Spell], samples: Sequence[Sample], before: Sample, after: Sample
) -> Verdict:
    """`before` the load and `after` it, all faults over, nobody asks anything."""
    ends: dict[str, Counter[str]] = {}
    for one in asked:
        ends.setdefault(one.operation, Counter())[one.end] += 1
    unexpected = [vars(one) for one in asked if not is_expected(one, spells)]
    warned = sum(one.warned and not _overlaps(one, spells, "") for one in asked)
    leftovers = {name: (getattr(before, name), getattr(after, name)) for name in LEFT_OVER}
    lags = [one.lag for one in samples if one.lag is not None]
    plain = {operation: dict(counted) for operation, counted in ends.items()}
    made = Verdict(plain, unexpected, warned, memory(samples), leftovers, max(lags, default=None))
    if unexpected:
        made.complaints.append(f"{len(unexpected)} requests ended as no fault explains")
    if not made.memory.is_flat:
        made.complaints.append("memory is not flat after the warm-up")
    for name, (was, now) in leftovers.items():
        if now > was + LEFT_OVER[name]:
            made.complaints.append(f"{name}: {was} before, {now} after")
    return made


def is_expected(one: Asked, spells: Sequence[Spell]) -> bool:
    """A 2xx always is, and a caller who left; 502, 503, 504 at a node that was not well; a break while any was not well."""
    if one.end.startswith("2") or one.end == "left":
        return True
    if one.end in ("502", "503", "504"):
        return bool(one.node) and _overlaps(one, spells, one.node)
    return one.end == "broken" and one.operation in ("retrieve", "frames") and _overlaps(one, spells, one.node)


def _overlaps(one: Asked, spells: Sequence[Spell], node: str) -> bool:
    """Whether the node ('' for any) was ill, or just recovering, while the request was under way."""
    return any(
        spell.node == (node or spell.node) and spell.began <= one.ended and one.began <= spell.ended + BACK_WITHIN
        for spell in spells
    )


def lines(made: Verdict) -> list[str]:
    """The summary, for people."""
    shown = ["requests by how they ended:"]
    for operation, ends in sorted(made.ends.items()):
        shown.append(f"  {operation:<9}" + "  ".join(f"{end} {count}" for end, count in sorted(ends.items())))
    flat = made.memory
    shown += [
        f"unexpected: {len(made.unexpected)}   warnings that no fault explains: {made.unexplained_warnings}",
        f"resident memory: {flat.warm:.0f} MB warm, {flat.end:.0f} MB at the end, {flat.most:.0f} MB at most, "
        f"{flat.slope:+.2f} MB a minute over the second half of {flat.minutes:.0f} minutes",
        "event loop lag at most: " + ("not measured" if made.lag is None else f"{made.lag * 1000:.0f} ms"),
        "before the load -> after it: "
        + ", ".join(f"{name} {was} -> {now}" for name, (was, now) in made.leftovers.items()),
    ]
    return [*shown, *(f"NOT GOOD: {complaint}" for complaint in made.complaints or ())]
