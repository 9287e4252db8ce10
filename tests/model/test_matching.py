"""PS3.4 C.2.2.2 over the DICOM JSON model."""

import re
import time
from fnmatch import translate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.dataset import Dataset, attribute
from gateway.model.folding import fold_name
from gateway.model.matching import decider, matches, wildcard
from gateway.model.query import Match, Operator, Query, parse_match
from gateway.model.study import row_of
from gateway.model.vocabulary import Level, path, tag


def dataset(**values: object) -> Dataset:
    return {tag(k): attribute(tag(k), v if isinstance(v, list) else [v]) for k, v in values.items()}


def answer(key: str, raw: str, data: Dataset) -> bool | None:
    match = parse_match(path(key), raw)
    assert match is not None
    return matches(match, data)


def study(**values: object):
    return row_of(Level.STUDY, "n", dataset(StudyInstanceUID="1.2", PatientID="7", **values), "A")


@pytest.mark.parametrize(
    ("key", "raw", "values", "expected"),
    [
        ("PatientID", "12345", {"PatientID": "12345 "}, True),
        ("PatientID", "abc", {"PatientID": "ABC"}, False),
        ("PatientID", "12*", {"PatientID": "12345"}, True),
        ("PatientID", "1?3", {"PatientID": "12345"}, False),
        ("PatientID", "12345", {"PatientID": []}, False),
        ("PatientID", "12345", {}, None),
        ("PatientID", "1.3", {"PatientID": "1x3"}, False),
        ("ModalitiesInStudy", "MG", {"ModalitiesInStudy": ["CT", "MG"]}, True),
        ("ModalitiesInStudy", "M*", {"ModalitiesInStudy": ["CT", "SR"]}, False),
        ("StudyInstanceUID", "1.2,1.3", {"StudyInstanceUID": "1.3"}, True),
        ("StudyInstanceUID", "1.2", {"StudyInstanceUID": "1.2.3"}, False),
        ("SOPInstanceUID", "1.2", {"SOPInstanceUID": "1.2\0"}, True),
        ("SeriesNumber", "1", {"SeriesNumber": 1}, True),
        ("SeriesNumber", "01", {"SeriesNumber": "1"}, True),
        ("PatientWeight", "70.50", {"PatientWeight": 70.5}, True),
        ("Rows", "512", {"Rows": 512}, True),
        ("Rows", "512", {"Rows": 51}, False),
        ("StudyDate", "20260301", {"StudyDate": "20260301"}, True),
        ("StudyDate", "20260301", {"StudyDate": "2026.03.01"}, True),
        ("StudyDate", "20260301-20260331", {"StudyDate": "20260331"}, True),
        ("StudyDate", "20260301-20260331", {"StudyDate": "20260401"}, False),
        ("StudyDate", "-20260331", {"StudyDate": "19991231"}, True),
        ("StudyDate", "20260301-", {"StudyDate": "20260228"}, False),
        ("StudyDate", "20260301-", {"StudyDate": "rubbish"}, False),
        ("StudyTime", "10", {"StudyTime": "105959.999999"}, True),
        ("StudyTime", "10", {"StudyTime": "110000"}, False),
        ("StudyTime", "1015-1020", {"StudyTime": "102059.5"}, True),
        ("StudyTime", "1015-", {"StudyTime": "10"}, False),
        ("StudyTime", "101530", {"StudyTime": "101530.250"}, True),
        ("StudyTime", "235960", {"StudyTime": "235960"}, True),
        ("AcquisitionDateTime", "2026", {"AcquisitionDateTime": "20261231235959"}, True),
        ("AcquisitionDateTime", "202602", {"AcquisitionDateTime": "20260228235959.5"}, True),
        ("AcquisitionDateTime", "202602", {"AcquisitionDateTime": "20260301"}, False),
        ("AcquisitionDateTime", "2023-2025", {"AcquisitionDateTime": "20240301101500"}, True),
        ("AcquisitionDateTime", "2023-2025", {"AcquisitionDateTime": "20251231235959"}, True),
        ("AcquisitionDateTime", "2023-2025", {"AcquisitionDateTime": "20260101"}, False),
        ("AcquisitionDateTime", "202306-2025", {"AcquisitionDateTime": "202305"}, False),
        ("AcquisitionDateTime", "2023-0500-2025-0500", {"AcquisitionDateTime": "20260101040000+0000"}, True),
        ("AcquisitionDateTime", "2023-2025-0500", {"AcquisitionDateTime": "20260101050000+0000"}, False),
        ("AcquisitionDateTime", "2023-0500", {"AcquisitionDateTime": "20230101040000+0000"}, False),
        ("AcquisitionDateTime", "-2025", {"AcquisitionDateTime": "20220101"}, True),
        ("AcquisitionDateTime", "2023-", {"AcquisitionDateTime": "20220101"}, False),
        (
            "AcquisitionDateTime",
            "20260301100000+0100-20260301110000+0100",
            {"AcquisitionDateTime": "20260301093000+0000"},
            True,
        ),
        (
            "AcquisitionDateTime",
            "20260301100000+0100-20260301110000+0100",
            {"AcquisitionDateTime": "20260301103000+0000"},
            False,
        ),
    ],
)
def test_a_key_matches_as_ps3_4_says(key: str, raw: str, values: dict[str, object], expected: bool | None):
    assert answer(key, raw, dataset(**values)) is expected


@pytest.mark.parametrize(
    ("raw", "name", "expected"),
    [
        ("müller^jörg", "Müller^Jörg", True),
        ("MULLER^JORG", "Müller^Jörg", True),
        ("Müller^Jörg", "Müller^Jörg^^", True),
        ("Müller^Jörg^^^", "Müller^Jörg", True),
        ("Müller", "Müller^Jörg", False),
        ("Muller*", "Müller^Jörg", True),
        ("Muller^*", "Müller", True),
        ("?yga^*", "Łyga^Zofia", True),
        ("lyga*", "Łyga^Zofia", True),
        ("zizka*", "Žižka^Jan", True),
        ("oresund*", "Øresund^Søren", True),
        ("strasse*", "Straße^Karl", True),
        ("Stra?e*", "Straße^Karl", True),
        ("ΠΑΠΑΔΟΠΟΥΛΟΣ^ΓΙΩΡΓΟΣ", "Παπαδόπουλος^Γιώργος", True),
        ("Παπαδοπουλοσ*", "Παπαδόπουλος^Γιώργος", True),
        ("иванов^сергей", "Иванов^Сергей", True),
        ("Ivanov*", "Иванов^Сергей", False),
        ("김?^길동", "김희^길동", True),
        ("かき", "がき", False),
        ("Yamada*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("=山田^太郎", "Yamada^Tarou=山田^太郎", True),
        ("Yamada*=鈴木*", "Yamada^Tarou=山田^太郎", False),
        ("Ja", "Jan", False),
    ],
)
def test_a_name_matches_without_case_diacritics_and_trailing_components(raw: str, name: str, expected: bool):
    assert answer("PatientName", raw, dataset(PatientName=name)) is expected


def test_a_decomposed_accent_is_the_same_letter_in_every_text():
    assert answer("StudyDescription", "Mammographie é", dataset(StudyDescription="Mammographie e\u0301")) is True


def test_a_list_of_values_matches_if_one_does():
    match = Match(path("AccessionNumber"), Operator.LIST, ("A1", "A2"))
    assert matches(match, dataset(AccessionNumber="A2")) is True
    assert matches(match, dataset(AccessionNumber="A3")) is False


def requests(*identifiers: str | None) -> Dataset:
    items = [dataset(ScheduledProcedureStepID=i) if i else {} for i in identifiers]
    return {tag("RequestAttributesSequence"): {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}}


@pytest.mark.parametrize(
    ("identifiers", "expected"),
    [(["S1", "S2"], True), (["S3"], False), (["S3", None], None), (["S2", None], True), ([], False)],
)
def test_a_sequence_matches_if_any_item_does(identifiers: list[str | None], expected: bool | None):
    assert answer("RequestAttributesSequence.ScheduledProcedureStepID", "S2", requests(*identifiers)) is expected


def test_a_sequence_that_is_absent_decides_nothing():
    assert answer("RequestAttributesSequence.ScheduledProcedureStepID", "S2", {}) is None


def test_a_value_left_as_bulk_data_decides_nothing():
    data = {tag("PatientComments"): {"vr": "LT", "BulkDataURI": "x"}}
    assert answer("PatientComments", "a", data) is None


def span_query(dates: str, times: str, combined: bool = True) -> Query:
    found = parse_match(path("StudyDate"), dates), parse_match(path("StudyTime"), times)
    return Query(Level.STUDY, matches=tuple(filter(None, found)), combined_datetime=combined)


@pytest.mark.parametrize(
    ("day", "clock", "expected"),
    [
        ("20060705", "0959", False),
        ("20060705", "1000", True),
        ("20060706", "0300", True),
        ("20060706", None, True),
        ("20060707", "1800", True),
        ("20060707", "1801", False),
        ("20060707", None, None),
        ("20060708", None, False),
    ],
)
def test_a_date_range_and_a_time_range_can_mean_one_span(day: str, clock: str | None, expected: bool | None):
    row = study(StudyDate=day, **({"StudyTime": clock} if clock else {}))
    verdict, undecided = decider(span_query("20060705-20060707", "1000-1800"))(row)
    assert verdict is expected
    assert bool(undecided) is (expected is None)


def test_without_the_combination_the_time_range_holds_on_every_day():
    row = study(StudyDate="20060706", StudyTime="0300")
    assert decider(span_query("20060705-20060707", "1000-1800", combined=False))(row) == (False, [])


def test_an_open_span_has_no_time_at_its_open_end():
    row = study(StudyDate="20060101", StudyTime="0300")
    assert decider(span_query("-20060707", "1000-1800"))(row)[0] is True


def test_a_row_is_undecided_only_by_the_keys_it_does_not_hold():
    keys = parse_match(path("PatientID"), "7"), parse_match(path("ModalitiesInStudy"), "MG")
    query = Query(Level.STUDY, matches=keys)
    assert decider(query)(study()) == (None, [keys[1]])
    assert decider(query)(study(ModalitiesInStudy=["MG"])) == (True, [])


def test_one_key_that_fails_decides_whatever_else_is_open():
    query = Query(
        Level.STUDY, matches=(parse_match(path("ModalitiesInStudy"), "MG"), parse_match(path("PatientID"), "8"))
    )
    assert decider(query)(study()) == (False, [])


def test_a_row_of_another_study_than_asked_is_no_answer():
    assert decider(Query(Level.STUDY, study="1.3"))(study()) == (False, [])


def test_the_wildcard_star_alone_is_universal_even_for_an_absent_attribute():
    assert matches(Match(path("PatientID"), Operator.WILDCARD, ("**",)), {}) is True


LETTERS = st.text("ab.[*?", max_size=9)


@given(pattern=LETTERS, text=st.text("ab.[", max_size=12))
def test_the_wildcard_agrees_with_the_shell_for_every_pattern(pattern: str, text: str):
    oracle = re.compile(translate(pattern.replace("[", "[[]")), re.DOTALL)
    assert bool(wildcard(pattern).fullmatch(text)) is bool(oracle.match(text))


def test_a_hostile_wildcard_costs_no_more_than_a_plain_one():
    began = time.thread_time()
    assert not wildcard("*a" * 30 + "*b").fullmatch("a" * 400)
    assert time.thread_time() - began < 0.5


@given(st.text(max_size=20))
def test_folding_a_name_twice_changes_nothing_more(name: str):
    once = fold_name(name)
    assert fold_name(once) == once


NAMES = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_every_name_is_found_by_itself_in_either_case(parts: list[str]):
    name = "^".join(parts)
    for key in (name, name.upper(), name.lower(), name.casefold()):
        if fold_name(key) == fold_name(name):
            assert matches(Match(path("PatientName"), Operator.EXACT, (key,)), dataset(PatientName=name)) is True
    assert matches(Match(path("PatientName"), Operator.WILDCARD, (f"{parts[0]}*",)), dataset(PatientName=name)) is True


@given(st.from_regex(r"[0-2]\d[0-5]\d[0-5]\d(\.\d{1,6})?", fullmatch=True), st.integers(1, 6))
def test_a_time_lies_within_every_shorter_time_that_begins_it(value: str, pairs: int):
    key = value[: min(pairs * 2, 6)]
    if value[:2] < "24":
        assert matches(Match(path("StudyTime"), Operator.EXACT, (key,)), dataset(StudyTime=value)) is True


@given(st.dates(), st.dates(), st.dates())
def test_a_date_range_holds_exactly_the_days_between(low, high, day):
    low, high = sorted((low, high))
    key = Match(path("StudyDate"), Operator.RANGE, (low.strftime("%4Y%m%d"), high.strftime("%4Y%m%d")))
    found = matches(key, dataset(StudyDate=day.strftime("%4Y%m%d")))
    assert found is (low <= day <= high)


@given(
    st.text(), st.sampled_from(["StudyDate", "StudyTime", "AcquisitionDateTime", "SeriesNumber", "PatientName", "Rows"])
)
def test_no_value_a_node_may_send_makes_matching_fail(text: str, keyword: str):
    for key in ("20260101-", "10", "2026"):
        match = Match(path(keyword), Operator.EXACT if "-" not in key else Operator.RANGE, tuple(key.split("-")))
        if match.operator is Operator.EXACT or match.vr in ("DA", "DT", "TM"):
            assert matches(match, {tag(keyword): {"vr": match.vr, "Value": [text, None, 5, {"Alphabetic": text}]}}) in (
                True,
                False,
            )


def test_a_row_of_stars_is_one_star() -> None:
    """No node is asked to try every way to share a value out among them."""
    found = parse_match(path("PatientName"), "*" * 300 + "x**?**")
    assert found == Match(path("PatientName"), Operator.WILDCARD, ("*x*?*",))
    assert parse_match(path("PatientID"), "***") is None
