"""The circuit breaker over random histories: when it lets somebody ask, when it does not, and that it always finds back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NodeTimeout, NodeUnreachable
from gateway.federation.breaker import Breaker, BreakerState, Pass
from gateway.federation.nodes import BreakerLimits

DOWN = NodeUnreachable("n", "cannot be reached")


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker_of(**limits: Any) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(BreakerLimits(**limits), clock), clock


def admitted(breaker: Breaker) -> Pass:
    one = breaker.admit()
    assert one is not None
    return one


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed(admitted(breaker), DOWN)


def to_be_tried() -> tuple[Breaker, Clock]:
    """One that has opened, and whose five seconds are up."""
    breaker, clock = breaker_of(failures=1, open=5.0)
    fail(breaker, 1)
    clock.now += 5
    return breaker, clock


def answer(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.answered(admitted(breaker))


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.just(0.0)),
        st.tuples(st.sampled_from(["answered", "failed", "left"]), st.floats(0, 1, exclude_max=True)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 4.9, 5.0, 40.0])),
    ),
    max_size=120,
)


@given(EVENTS, st.integers(1, 4))
def test_no_history_lets_two_ask_a_node_that_is_down_or_keeps_everybody_out_for_good(
    events: list[tuple[str, float]], failures: int
) -> None:
    breaker, clock = breaker_of(failures=failures, open=5.0, window=30.0)
    out: list[Pass] = []
    probes: list[float] = []
    failed_since_closed = 0
    for kind, number in events:
        before = breaker.state
        if kind == "wait":
            clock.now += number
        elif kind == "admit":
            refuses = breaker.refuses()
            one = breaker.admit()
            assert (one is None) == refuses
            if one is None:
                assert before is not BreakerState.CLOSED
                assert breaker.seconds_left > 0
            else:
                out.append(one)
                if before is not BreakerState.CLOSED:
                    assert breaker.state is BreakerState.HALF_OPEN
                    probes.append(clock.now)
        elif out:
            one = out.pop(int(number * len(out)))
            counts = one.generation == breaker._generation
            if kind == "failed":
                breaker.failed(one, DOWN)
                failed_since_closed += counts
            else:
                getattr(breaker, kind)(one)
                if kind == "left" and counts and before is BreakerState.HALF_OPEN:
                    probes.clear()  # its place is free at once
        if breaker.state is BreakerState.OPEN and before is BreakerState.CLOSED:
            assert failed_since_closed >= failures
            assert breaker.cause is DOWN
        if breaker.state is BreakerState.CLOSED and before is not BreakerState.CLOSED:
            failed_since_closed = 0
        assert all(later - earlier >= 5.0 for earlier, later in pairwise(probes))
        assert breaker.recent_failures == sum(failed for _, failed in breaker._recent)
        assert breaker.is_closed == (breaker.cause is None)
    clock.now += 5.0
    breaker.answered(admitted(breaker))
    assert breaker.is_closed


@given(EVENTS)
def test_without_a_number_of_failures_it_never_opens(events: list[tuple[str, float]]) -> None:
    breaker, _ = breaker_of(failures=0)
    for _ in events:
        fail(breaker, 1)
    assert breaker.is_closed


def test_it_opens_after_as_many_failures_in_a_row() -> None:
    breaker, clock = breaker_of(failures=3, open=15.0)
    fail(breaker, 2)
    answer(breaker, 1)
    fail(breaker, 2)
    assert breaker.is_closed
    fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN
    assert breaker.seconds_left == 15.0
    clock.now += 14.9
    assert breaker.admit() is None


def test_it_opens_when_half_of_what_is_asked_fails_though_never_in_a_row() -> None:
    breaker, _ = breaker_of(failures=3, rate=0.5)
    for _ in range(2):
        answer(breaker, 1)
        fail(breaker, 1)
    answer(breaker, 1)
    assert breaker.is_closed
    fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN


def test_failures_older_than_the_window_do_not_count_towards_the_rate() -> None:
    breaker, clock = breaker_of(failures=3, rate=0.5, window=30.0)
    for _ in range(2):
        answer(breaker, 1)
        fail(breaker, 1)
    clock.now += 31
    answer(breaker, 1)
    fail(breaker, 1)
    assert breaker.is_closed
    assert breaker.recent_failures == 1


@pytest.mark.parametrize("settle", ["answered", "failed", "left"])
def test_who_asked_before_it_opened_changes_nothing_any_more(settle: str) -> None:
    breaker, clock = breaker_of(failures=1, open=5.0)
    old = [admitted(breaker) for _ in range(2)]
    breaker.failed(old[0], DOWN)
    arguments = (DOWN,) if settle == "failed" else ()
    getattr(breaker, settle)(old[1], *arguments)
    assert breaker.state is BreakerState.OPEN
    assert breaker.seconds_left == 5.0
    clock.now += 5
    probe = admitted(breaker)
    getattr(breaker, settle)(old[1], *arguments)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.answered(probe)
    assert breaker.is_closed


def test_one_probe_finds_out_and_the_others_wait_for_it() -> None:
    breaker, _ = to_be_tried()
    probe = admitted(breaker)
    assert breaker.admit() is None
    late = NodeTimeout("n", "did not answer")
    breaker.failed(probe, late)
    assert breaker.state is BreakerState.OPEN
    assert breaker.cause is late
    assert breaker.seconds_left == 5.0


def test_a_probe_whose_caller_left_makes_room_for_the_next() -> None:
    breaker, _ = to_be_tried()
    breaker.left(admitted(breaker))
    breaker.answered(admitted(breaker))
    assert breaker.is_closed


def test_a_probe_that_takes_its_time_makes_room_after_a_while() -> None:
    breaker, clock = to_be_tried()
    slow = admitted(breaker)
    clock.now += 5
    quick = admitted(breaker)
    breaker.answered(quick)
    breaker.failed(slow, DOWN)
    assert breaker.is_closed


def test_a_node_that_answers_slower_than_it_is_tried_again_is_asked_again() -> None:
    breaker, clock = to_be_tried()
    slow = admitted(breaker)
    clock.now += 5
    next_one = admitted(breaker)
    clock.now += 2
    breaker.answered(slow)
    assert breaker.is_closed
    breaker.failed(next_one, DOWN)
    assert breaker.is_closed


def test_an_earlier_probe_that_fails_leaves_the_verdict_to_the_one_under_way() -> None:
    breaker, clock = to_be_tried()
    slow = admitted(breaker)
    clock.now += 5
    next_one = admitted(breaker)
    breaker.failed(slow, DOWN)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.answered(next_one)
    assert breaker.is_closed


def test_what_is_remembered_has_a_ceiling() -> None:
    breaker, _ = breaker_of(failures=1000)
    answer(breaker, 5000)
    fail(breaker, 10)
    assert len(breaker._recent) <= 1000
    assert breaker.recent_failures == 10
