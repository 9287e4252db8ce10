"""The judge of a soak, judged: it must not pass a leak, nor blame the gateway for a fault that was there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.caller import Asked
from tests.soak.stage import Spell
from tests.soak.verdict import BACK_WITHIN, Sample, lines, memory, verdict

ILL = Spell("web", "black hole", 100.0, 110.0)
IDLE = Sample(0.0, 150_000_000, 30, 20, 5, 0)


def samples(minutes: float, grown: Callable[[float], float]) -> list[Sample]:
    """One a second; `grown` is the MB above 150 that there are after so many minutes. Allocators give and take 3 MB."""
    chance = random.Random(4)
    moments = [second / 60 for second in range(int(minutes * 60))]
    sizes = [150 + grown(moment) + chance.uniform(-1.5, 1.5) for moment in moments]
    return [Sample(moment * 60, int(size * 1e6), 30, 20, 5, 0) for moment, size in zip(moments, sizes, strict=True)]


@pytest.mark.parametrize(
    ("minutes", "grown", "is_flat"),
    [
        (20, lambda minute: min(minute, 3) * 20, True),  # warms up, and stays
        (20, lambda minute: min(minute, 3) * 20 + minute * 1.5, False),  # leaks
        (20, lambda minute: minute * 0.5, True),
        (20, lambda minute: 0 if minute < 19 else 60, False),  # jumps at the end
        (20, lambda minute: 200 * (minute % 3 < 0.9), True),  # a fault that takes much, and gives it back
        (20.2, lambda minute: 60 * (minute > 20), True),  # and one in the midst of which it ends
        (3, lambda minute: minute * 1.5, True),  # nobody can tell in three minutes
        (3, lambda minute: minute * 30, False),
    ],
)
def test_memory_is_flat_when_it_stays_where_it_was_after_the_warm_up(
    minutes: float, grown: Callable[[float], float], is_flat: bool
) -> None:
    assert memory(samples(minutes, grown)).is_flat == is_flat


@pytest.mark.parametrize(
    ("one", "is_good"),
    [
        (Asked("search", "", 105, 106, "200", warned=True), True),
        (Asked("search", "", 105, 106, "503"), False),  # a node without faults could have answered
        (Asked("search", "web", 105, 106, "504"), True),
        (Asked("search", "web", 90, 99, "504"), False),
        (Asked("search", "web", 110 + BACK_WITHIN - 1, 130, "503"), True),
        (Asked("search", "web", 110 + BACK_WITHIN + 1, 130, "503"), False),
        (Asked("search", "pacs", 105, 106, "502"), False),
        (Asked("search", "web", 105, 106, "500"), False),
        (Asked("search", "", 1, 2, "404"), False),
        (Asked("retrieve", "", 105, 106, "broken"), True),
        (Asked("retrieve", "", 90, 95, "broken"), False),
        (Asked("search", "", 105, 106, "broken"), False),
        (Asked("search", "", 105, 106, "left"), True),
        (Asked("search", "", 105, 106, "unreachable: ConnectError"), False),
    ],
)
def test_only_what_a_fault_explains_is_expected(one: Asked, is_good: bool) -> None:
    made = verdict([one], [ILL], samples(20, lambda minute: 0), IDLE, IDLE)
    assert made.is_good == is_good
    assert len(made.unexpected) == (not is_good)
    assert any("NOT GOOD" in line for line in lines(made)) == (not is_good)


def test_work_that_is_left_is_a_complaint_and_a_pool_that_has_grown_is_none() -> None:
    flat = samples(20, lambda minute: 0)
    grown = Sample(0.0, 150_000_000, 40, 40, 6, 0)
    assert verdict([], [], flat, IDLE, grown).is_good
    leaking = Sample(0.0, 150_000_000, 90, 90, 90, 1)
    assert len(verdict([], [], flat, IDLE, leaking).complaints) == 4
