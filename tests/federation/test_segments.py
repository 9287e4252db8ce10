"""Parts of a search: together they are the whole, none overlaps another, and they come in the order of the results."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.federation.page import Sort, moment, timeless
from gateway.federation.segments import END, Cutter, Segment, can_be_cut, from_moment, is_broad
from gateway.model.dataset import attribute
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.study import Row
from gateway.model.vocabulary import MODALITIES_IN_STUDY, PATIENT_ID, STUDY_DATE, STUDY_TIME, STUDY_UID, Level

TODAY = date(2026, 11, 26)
days = st.dates(date(1850, 1, 1), date(2060, 12, 31)).map(lambda day: f"{day:%Y%m%d}")
sorts = st.sampled_from([Sort.NEWEST, Sort.OLDEST])


def studies(*matches: Match) -> Query:
    return Query(Level.STUDY, matches, combined_datetime=True)


def between(low: str, high: str) -> Match:
    return Match((STUDY_DATE,), Operator.RANGE, (low, high))


def row(day: str = "20000101", clock: str = "", patient: str = "P1", modalities: tuple[str, ...] = ()) -> Row:
    given = ((STUDY_DATE, [day]), (STUDY_TIME, [clock]), (MODALITIES_IN_STUDY, list(modalities)))
    attributes = {tag: attribute(tag, values) for tag, values in given if values != [""]}
    return Row(Level.STUDY, "n", PatientKey("X", patient), "1.2", attributes=attributes)


def holding(parts: list[Segment], day: str) -> list[Segment]:
    return [part for part in parts if part.dated and (part.low or "0") <= day <= (part.high or "9")]


@given(days, sorts)
def test_every_day_lies_in_exactly_one_part_of_the_whole(day: str, sort: Sort) -> None:
    parts = Cutter(studies(), sort, TODAY).cut(Segment(), [])
    assert len(holding(parts, day)) == 1
    assert parts[-1].undated


@given(days, days, days, sorts)
def test_every_day_asked_for_lies_in_exactly_one_part_and_no_other_day_in_any(
    low: str, high: str, day: str, sort: Sort
) -> None:
    low, high = min(low, high), max(low, high)
    parts = Cutter(studies(between(low, high)), sort, TODAY).cut(Segment(), [])
    assert len(holding(parts, day)) == (low <= day <= high)
    assert not any(part.undated for part in parts), "a search by date finds nothing without one"


@given(days, st.integers(1, 40_000), st.integers(0, 40_000), st.sampled_from(["", "low", "high"]), sorts)
def test_cutting_days_loses_none_and_doubles_none(
    first: str, span: int, inside: int, open_end: str, sort: Sort
) -> None:
    start = date(int(first[:4]), int(first[4:6]), int(first[6:]))
    day = f"{start + timedelta(days=inside % (span + 1)):%Y%m%d}"
    last = f"{start + timedelta(days=span):%Y%m%d}"
    whole = Segment("" if open_end == "low" else first, "" if open_end == "high" else last, dated=True)
    parts = Cutter(studies(), sort, TODAY).cut(whole, [])
    assert len(holding(parts, day)) == 1
    starts = [part.start(sort) for part in parts]
    assert starts == sorted(starts)


@given(
    st.lists(days, min_size=1, max_size=12), st.integers(1, 8), days, st.sampled_from(["all", "asked", "dated"]), sorts
)
def test_cutting_where_the_rows_show_a_page_loses_no_day_and_doubles_none(
    shown: list[str], share: int, day: str, whole: str, sort: Sort
) -> None:
    low, high = min(*shown, day), max(*shown, day)
    assume(whole != "dated" or low < high)  # one day is cut by other keys
    query = studies(between(low, high)) if whole == "asked" else studies()
    segment = Segment(low, high, dated=True) if whole == "dated" else Segment()
    parts = Cutter(query, sort, TODAY, share).cut(segment, [row(one) for one in shown])
    assert len(holding(parts, day)) == 1
    starts = [part.start(sort) for part in parts]
    assert starts == sorted(starts)
    assert parts[-1].undated == (whole == "all")
    assert segment not in parts


@given(
    days,
    days,
    days,
    days,
    st.sampled_from(["all", "asked", "dated"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    sorts,
)
def test_a_range_that_is_split_at_a_day_loses_no_day_and_doubles_none(
    low: str, high: str, at: str, day: str, whole: str, is_crowded: bool, waits: bool, in_steps: bool, sort: Sort
) -> None:
    low, high = min(low, high), max(low, high)
    query = studies(between(low, high)) if whole == "asked" else studies()
    segment = Segment(low, high, dated=True) if whole == "dated" else Segment()
    parts = Cutter(query, sort, TODAY).split(segment, at, is_crowded, waits, in_steps=in_steps)
    if not parts:
        assert whole != "all"
        return
    assert len(holding(parts, day)) == (whole == "all" or low <= day <= high)
    assert [part.crowded for part in parts if part.is_day and part.low == at] in ([waits], [False], [])
    starts = [part.start(sort) for part in parts]
    assert starts == sorted(starts)
    assert segment not in parts


@given(days, st.booleans(), sorts)
def test_a_day_that_is_opened_node_by_node_holds_what_has_no_time_behind_what_has(
    at: str, names_a_time: bool, sort: Sort
) -> None:
    asked = Match((STUDY_TIME,), Operator.RANGE, ("080000", "170000"))
    query = Query(Level.STUDY, (asked,) if names_a_time else ())
    parts = Cutter(query, sort, TODAY).split(Segment(), at, is_crowded=True, waits=True, in_turn=True)
    own = [part for part in parts if part.is_day and part.low == at]
    starts = [part.start(sort) for part in parts]
    assert starts == sorted(starts)
    if names_a_time:
        assert [(part.in_turn, part.timed, part.crowded) for part in own] == [(False, False, True)]
        return
    *timed, last = own
    assert (last.in_turn, last.crowded, last.start(sort)) == (True, True, timeless(at, sort))
    assert last.narrowed(query).match_on(STUDY_TIME) is None
    assert [part.narrowed(query).match_on(STUDY_TIME).values for part in timed] == [("000000", "235959")] * len(timed)
    assert len(timed) == (sort is Sort.NEWEST)


@given(days, days, sorts)
def test_behind_the_end_of_a_day_lies_every_other_that_follows_and_nothing_of_the_day(
    day: str, other: str, sort: Sort
) -> None:
    parts = from_moment(Segment(day, day, dated=True).end(sort), sort, studies())
    follows = other < day if sort is Sort.NEWEST else other > day
    assert len(holding(parts, other)) == follows
    assert parts[-1].undated


@given(days, days, days, days, sorts)
def test_behind_the_end_of_a_day_lies_nothing_that_the_search_does_not_ask_for(
    low: str, high: str, day: str, other: str, sort: Sort
) -> None:
    low, high = min(low, high), max(low, high)
    parts = from_moment(Segment(day, day, dated=True).end(sort), sort, studies(between(low, high)))
    follows = other < day if sort is Sort.NEWEST else other > day
    assert len(holding(parts, other)) == (follows and low <= other <= high)
    assert not any(part.undated for part in parts)


def test_a_day_that_holds_most_of_what_is_shown_is_a_part_of_its_own_asked_for_when_it_is_needed() -> None:
    shown = [row(day) for day in ("20010101", *["20000601"] * 8, "19990101")]
    first, crowded, *_ = Cutter(studies(), Sort.NEWEST, TODAY, 4).cut(Segment(), shown)
    assert (first.low, first.high) == ("20000602", "")
    assert (crowded.low, crowded.high, crowded.crowded) == ("20000601", "20000601", True)


@given(sorts, st.integers(0, 86_399))
def test_a_day_is_cut_by_its_clock_down_to_the_minute(sort: Sort, second: int) -> None:
    clock = f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"
    parts, depth = [Segment("20000101", "20000101", dated=True)], 0
    cutter = Cutter(studies(), sort, TODAY)
    while inner := [part for part in parts if not part.clock or part.clock[0] <= clock <= part.clock[1]]:
        assert len(inner) == 1
        if inner[0].clock and inner[0].clock[0][:4] == inner[0].clock[1][:4]:
            break
        parts, depth = cutter.cut(inner[0], [row(clock="101010")]), depth + 1
    assert depth == 4


def test_where_a_study_shows_no_time_a_day_is_cut_by_modality_and_then_by_patient_id() -> None:
    cutter, day = Cutter(studies(), Sort.NEWEST, TODAY), Segment("20000101", "20000101", dated=True)
    by_modality = cutter.cut(day, [row(modalities=("CT", "ODD"))])
    assert {"CT", "MG", "SEG", "ODD"} <= {part.modality for part in by_modality}
    ct = next(part for part in by_modality if part.modality == "CT")
    by_patient = cutter.cut(ct, [row(modalities=("CT",), patient="Ž9")])
    assert {"A", "9", "z", "-", "Ž"} <= {part.prefix for part in by_patient}
    deeper = cutter.cut(next(part for part in by_patient if part.prefix == "A"), [row(patient="AB")])
    assert "AB" in {part.prefix for part in deeper}
    assert ct.name == "StudyDate 20000101, Modality CT"


def test_where_nearly_all_are_of_one_modality_a_day_is_cut_by_patient_id_at_once() -> None:
    cutter, day = Cutter(studies(), Sort.NEWEST, TODAY), Segment("20000101", "20000101", dated=True)
    shown = [row(modalities=("SEG", "CT"), patient=f"{number % 3}{number}") for number in range(30)]
    by_patient = cutter.cut(day, shown)
    assert {"0", "1", "2", "A"} <= {part.prefix for part in by_patient}
    assert not any(part.modality for part in by_patient)
    alike = [row(modalities=("CT",), patient="LIDC-1") for _ in range(30)]
    assert all(part.modality for part in cutter.cut(day, alike))
    one = next(part for part in by_patient if part.prefix == "1")
    mixed = [row(modalities=("CT" if number % 2 else "MR",), patient=f"1{number}") for number in range(30)]
    assert {"CT", "MR"} <= {part.modality for part in cutter.cut(one, mixed) if part.prefix == "1"}


def test_letters_that_all_patient_ids_begin_with_are_no_cut_of_their_own() -> None:
    cutter, day = Cutter(studies(), Sort.NEWEST, TODAY), Segment("20000101", "20000101", dated=True)
    shown = [row(modalities=("CT",), patient=f"LIDC-IDRI-0{number:03}") for number in range(300)]
    begins = {part.prefix for part in cutter.cut(day, shown)}
    assert {"A", "1", "z", "LIDC-IDRI-00", "LIDC-IDRI-01", "LIDC-IDRI-0A"} <= begins
    assert not {"L", "LI", "LIDC-IDRI-"} & begins
    second = next(part for part in cutter.cut(day, shown) if part.prefix == "LIDC-IDRI-01")
    assert "LIDC-IDRI-017" in {part.prefix for part in cutter.cut(second, shown[100:200])}


def test_a_part_asks_for_what_the_search_asks_for_and_for_itself() -> None:
    wanted = Match((MODALITIES_IN_STUDY,), Operator.EXACT, ("MR",))
    part = Segment("20000101", "20000131", dated=True)
    asked = part.narrowed(studies(between("19000101", ""), wanted))
    assert set(asked.matches) == {wanted, between("20000101", "20000131")}


@pytest.mark.parametrize(
    ("matches", "broad", "cuttable"),
    [
        ((), True, True),
        ((between("20000101", ""),), True, True),
        ((Match((STUDY_DATE,), Operator.EXACT, ("20000101",)),), False, True),
        ((Match((PATIENT_ID,), Operator.EXACT, ("1",)),), False, True),
        ((Match((PATIENT_ID,), Operator.WILDCARD, ("1*",)),), False, True),
        ((Match((STUDY_UID,), Operator.EXACT, ("1.2",)),), False, False),
        ((between("20000101", ""), Match((STUDY_TIME,), Operator.RANGE, ("10", "11"))), False, False),
    ],
)
def test_only_a_search_that_may_find_very_much_is_opened_in_parts(
    matches: tuple[Match, ...], broad: bool, cuttable: bool
) -> None:
    assert is_broad(studies(*matches)) is broad
    assert can_be_cut(studies(*matches)) is cuttable


@given(days, days, sorts)
def test_a_part_behind_which_a_page_begins_is_not_opened(day: str, other: str, sort: Sort) -> None:
    part = Segment(min(day, other), max(day, other), dated=True)
    for inside in (part.low, part.high):
        assert not part.ends_before(moment(inside, "120000", sort), sort)
    assert part.ends_before(END, sort)
