"""How far a page is expected to reach: as far as all nodes' samples together show, never behind what was found already."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.federation.horizon import Horizon, runs_backwards
from gateway.federation.page import UNDATED, Sort, day_of, moment
from gateway.federation.segments import END

DAYS = [f"20{year:02}0615" for year in range(10, 60)]
sorts = st.sampled_from([Sort.NEWEST, Sort.OLDEST])
days = st.sampled_from(DAYS)


def moments(shown: Sequence[str], sort: Sort = Sort.NEWEST) -> list[str]:
    return [moment(day, "120000", sort) for day in shown]


def horizon(shown: Sequence[str], wanted: int = 51, sort: Sort = Sort.NEWEST) -> Horizon:
    made = Horizon(sort, wanted)
    made.saw(moments(shown, sort), 0)
    return made


def test_while_nothing_was_shown_nothing_is_expected() -> None:
    made = Horizon(Sort.NEWEST, 51)
    made.saw([UNDATED], 0)
    made.move(0, "", None)
    assert (made.day, made.is_crowded, made.waits) == ("", False, False)
    assert not made.is_behind(END)


@pytest.mark.parametrize(("sort", "day"), [(Sort.NEWEST, DAYS[-8]), (Sort.OLDEST, DAYS[7])])
def test_the_first_few_samples_are_expected_to_stand_for_a_page(sort: Sort, day: str) -> None:
    made = horizon(DAYS, sort=sort)
    made.move(0, "", None)
    assert made.day == day


@pytest.mark.parametrize(
    ("known", "further"),
    [(400, 8), (40, 100), (4, 498)],
    ids=["enough lies before it already", "as many as that, and as many again", "a sample stands for itself at least"],
)
def test_the_results_before_the_frontier_tell_how_many_lie_behind_it(known: int, further: int) -> None:
    shown = [f"2{999 - place:03}0101" for place in range(600)]
    made = horizon(shown, wanted=540 if known == 40 else 253)
    made.move(known, moment(shown[4], "235959", Sort.NEWEST), None)
    assert made.day == shown[4 + further - 1]


def test_a_page_ends_no_later_than_where_enough_was_found() -> None:
    made = horizon(DAYS)
    made.move(0, "", moment(DAYS[-2], "100000", Sort.NEWEST))
    assert made.day == DAYS[-2]
    made.move(0, "", moment(DAYS[0], "100000", Sort.NEWEST))
    assert made.day == DAYS[-8]
    made.move(0, "", UNDATED)
    assert made.day == DAYS[-8]


def test_of_samples_of_samples_the_last_count_alone() -> None:
    made = horizon(DAYS)
    made.saw(moments(["20590101"] * 20), 1)
    made.saw(moments(DAYS), 0)
    made.move(0, "", None)
    assert made.day == "20590101"


def test_a_day_of_very_many_is_crowded_and_waits_for_what_was_seen_before_it() -> None:
    made = horizon(["20590101", *["20580101"] * 30, *DAYS[:40]])
    made.move(0, "", None)
    assert (made.day, made.is_crowded, made.waits) == ("20580101", True, True)
    assert made.is_behind(moment("20580101", "235959", Sort.NEWEST))
    assert not made.is_behind(moment("20580102", "000000", Sort.NEWEST))


def test_a_crowded_day_waits_for_nothing_where_nothing_was_seen_before_it() -> None:
    made = horizon(["20580101"] * 30 + DAYS[:40])
    made.move(0, "", None)
    assert (made.day, made.is_crowded, made.waits) == ("20580101", True, False)
    assert not made.is_behind(moment("20580101", "235959", Sort.NEWEST))


def test_a_crowded_day_waits_where_most_of_what_was_seen_lies_on_it_for_that_may_be_how_the_nodes_sort() -> None:
    made = horizon(["20580101"] * 30 + DAYS[:10])
    made.move(0, "", None)
    assert made.waits


@pytest.mark.parametrize(
    ("may", "generation", "here", "in_turn"),
    [(True, 0, 200, True), (False, 0, 200, False), (True, 0, 100, False), (True, 1, 200, False), (True, 1, 1100, True)],
    ids=[
        "very many",
        "not where it may not",
        "not so many",
        "so many of a closer look are fewer",
        "unless they are many",
    ],
)
def test_a_day_of_very_many_is_opened_node_by_node_and_waits(
    may: bool, generation: int, here: int, in_turn: bool
) -> None:
    made = Horizon(Sort.NEWEST, 51, may)
    made.saw(moments(["20580101"] * here + DAYS[:40] * 30), generation)
    made.move(0, "", None)
    assert (made.day, made.is_crowded, made.in_turn) == ("20580101", True, in_turn)
    assert made.waits or not in_turn


def test_what_each_node_has_up_to_there_is_expected_of_what_was_seen_of_all() -> None:
    made = Horizon(Sort.NEWEST, 51, nodes=8)
    made.saw(moments([*["20590101"] * 7, *["20580101"] * 37, *DAYS[:40] * 30]), 0)
    made.move(0, "", moment("20590101", "000000", Sort.NEWEST))
    assert (made.day, made.waits, made.expected) == ("20590101", False, 7 * made.each / 8)
    made.move(0, "", None)
    assert (made.day, made.waits, made.expected) == ("20580101", True, 7 * made.each / 8)
    made.move(700, moment("20580101", "235959", Sort.NEWEST), None)
    assert (made.day, made.waits, made.expected) == ("20580101", False, 37 * made.each / 8)
    assert made.expected_before == 0


def test_of_what_lies_before_a_crowded_day_less_is_expected_than_up_to_its_end() -> None:
    made = Horizon(Sort.NEWEST, 51, nodes=8)
    made.saw(moments([*["20590101"] * 3, *["20580101"] * 37, *DAYS[:40] * 30]), 0)
    made.move(0, "", None)
    assert (made.day, made.is_crowded, made.waits) == ("20580101", True, True)
    assert made.expected_before == 3 * made.each / 8


def test_a_node_that_showed_next_to_nothing_of_a_crowded_day_need_not_part_it() -> None:
    made = horizon(["20580101"] * 30 + DAYS[:40])
    made.move(0, "", None)
    assert made.seen_by(None) == ("20580101", True, False)
    assert made.seen_by(moments(["20580101", *DAYS[:9]])) == ("20580101", False, False)
    assert made.seen_by(moments(["20580101"] * 4 + DAYS[:9])) == ("20580101", True, False)
    assert made.seen_by(moments(["20580101"] * 4 + DAYS[:2])) == ("20580101", True, True)


@given(st.lists(days, max_size=30), st.integers(0, 300), st.integers(1, 400), days, st.none() | days, sorts)
def test_it_is_a_day_that_was_seen_and_lies_behind_the_frontier_and_before_the_end(
    shown: list[str], known: int, wanted: int, reached: str, end: str | None, sort: Sort
) -> None:
    made = horizon(shown, wanted, sort)
    frontier = moment(reached, "000000", sort)
    last = None if end is None else moment(end, "000000", sort)
    made.move(known, frontier, last)
    assert made.day in {*shown, end, ""}
    assert (made.day == "") <= (end is None)
    if made.day:
        assert made.is_behind(END)
        assert last is None or made.begin[:8] <= last[:8]
        assert made.day == end or made.end >= frontier
        assert day_of(made.begin, sort) == day_of(made.end, sort) == made.day


@pytest.mark.parametrize(
    ("shown", "backwards"),
    [
        (DAYS, True),
        ([*DAYS[:20], DAYS[3], *DAYS[20:]], True),
        ([day for day in DAYS for _ in range(4)], True),
        (DAYS[::-1], False),
        (DAYS[::2] + DAYS[1::2] + DAYS[::3] + DAYS[::5] + DAYS[::7] + DAYS[::9], True),
        ([day for pair in zip(DAYS, DAYS[::-1], strict=True) for day in pair], False),
        (DAYS[:5], False),
        (DAYS[:1] * 60, False),
        ([], False),
    ],
    ids=["sorted", "almost", "by days", "as the page", "in runs", "in no order", "too few", "one day", "nothing"],
)
def test_an_archive_that_gives_what_it_was_given_first_is_known_by_its_order(shown: list[str], backwards: bool) -> None:
    assert runs_backwards([UNDATED, *moments(shown)]) is backwards
    assert runs_backwards(moments(shown, Sort.OLDEST)[::-1]) is backwards
