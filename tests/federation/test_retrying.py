"""What is asked once more: only what may have been bad luck, only while there is time, and never often enough to hammer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BudgetExceeded,
    NodeBusy,
    NodeError,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    Unsupported,
)
from gateway.federation.retrying import Retries, RetryBudget

LUCK = NodeUnreachable("n", "closed the connection without an answer")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 5), max_size=300), st.integers(0, 3))
def test_retries_stay_within_a_tenth_of_the_questions_and_a_floor(gaps: list[float], at_most: int) -> None:
    clock = Clock()
    retries, asked = Retries(at_most, RetryBudget(clock=clock)), 0
    for gap in gaps:
        clock.now += gap
        retries.budget.earn()
        tried = 0
        while retries.pause(LUCK, tried, 0.0, 100.0) is not None:
            tried, asked = tried + 1, asked + 1
        assert tried <= at_most
    assert asked <= 10 + 0.1 * len(gaps) + 0.1 * clock.now


@given(st.floats(0, 30), st.floats(0, 20), st.floats(0, 40), st.integers(0, 5), st.floats(0, 1))
def test_a_retry_waits_as_told_and_leaves_room_for_as_long_a_try(
    retry_after: float, took: float, left: float, tried: int, chance: float
) -> None:
    retries = Retries(10, chance=lambda: chance)
    pause = retries.pause(NodeBusy("n", "is busy", retry_after=retry_after), tried, took, left)
    if pause is None:
        assert retry_after + chance * 2.0 + took >= left or retry_after + took + 0.1 * 2**tried * chance >= left
    else:
        assert retry_after <= pause <= retry_after + 2.0
        assert pause + took < left


@pytest.mark.parametrize("kind", [NodeRefused, NodeProtocolError, Unsupported, BudgetExceeded])
def test_what_would_fail_again_is_not_asked_again(kind: type[NodeError]) -> None:
    assert Retries(2).pause(kind("n", "no"), 0, 0.0, 100.0) is None


def test_a_node_that_took_nearly_the_whole_deadline_is_not_asked_again() -> None:
    silent = NodeTimeout("n", "did not answer in time")
    assert Retries(2).pause(silent, 0, 9.9, 0.1) is None
    assert Retries(2).pause(silent, 0, 5.0, 5.0) is None
    assert Retries(2).pause(silent, 0, 2.0, 8.0) is not None


def test_a_node_that_is_seldom_asked_gets_a_retry_now_and_then() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    while budget.spend():
        pass
    clock.now += 9.9
    assert not budget.spend()
    clock.now += 0.2
    assert budget.spend()
