"""The benchmark judges and draws what it measured as it says; nothing here is timed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict

import pytest

from tests.bench import catalogue, chart
from tests.bench.catalogue import Segment, segment_of
from tests.bench.identity import Identity
from tests.bench.measuring import Bar, Bench, Side


@pytest.fixture
def bench() -> Bench:
    return Bench(Identity("http://localhost:1", "token"))


@pytest.mark.parametrize(
    ("bar", "ours", "theirs", "is_met"),
    [
        (Bar("at least", 8), 80, 10, True),
        (Bar("at least", 8), 79, 10, False),
        (Bar("at most", 1.3), 130, 100, True),
        (Bar("at most", 1.3), 131, 100, False),
        (Bar("plus", 15, "ms"), 65, 50, True),
        (Bar("plus", 15, "ms"), 66, 50, False),
        (Bar("below", 64, "MB"), 63.9, 64, True),
        (Bar("below", 64, "MB"), 64, 64, False),
        (Bar("equal"), 1, 1, True),
        (Bar("equal"), 2, 1, False),
    ],
)
def test_a_bar_is_met_where_its_headroom_says_so(bar: Bar, ours: float, theirs: float, is_met: bool):
    assert bar.is_met(ours, theirs) is is_met
    if bar.kind != "below":  # which is not met by being just as much
        assert (bar.headroom(ours, theirs) >= 1) is is_met


def test_a_case_is_its_median_with_the_spread_of_its_rounds_and_the_bar_beside_it(bench: Bench):
    values = iter([999.0, 10.0, 30.0, 20.0, 40.0, 50.0])
    bench.run("case", "MB/s", [Side("a", lambda: next(values))], [Side("b", lambda: 10.0, bar=Bar("at least", 4))])
    told = asdict(bench.results["case: a / b"])
    assert (told["ours"], told["theirs"], told["ratio"], told["unit"]) == (30, 10, 3, "MB/s")
    assert (told["spread"], told["bar"], told["met"], told["rounds"]) == ((1, 5), ">= 4x", False, 5)
    json.dumps(told, allow_nan=False)


def test_the_picture_has_a_row_for_every_case_and_a_bar_where_there_is_one(bench: Bench):
    bench.count("met <&>", "MB", 32, 64, Bar("below", 64, "MB"))
    bench.count("not met", "calls", 2, 1, Bar("equal"))
    bench.count("printed", "MB/s", 5, 0)
    drawn = chart.svg(bench.results)
    texts = [one.text for one in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"met <&>", "not met", "printed"} <= set(texts)
    assert drawn.count('fill-opacity="0.75"') == 2


def test_a_segment_that_an_answer_declares_is_read_as_it_is_written():
    said = "node n01: stopped at its maximum number of results; not all is shown of "
    assert segment_of(said + "StudyDate 20000101") == Segment("n01", ("20000101", "20000101"))
    assert segment_of(said + "studies without a StudyDate") == Segment("n01", is_undated=True)
    whole = said + "StudyDate 20000101-20000131, StudyTime 060000-115959, Modality CT, PatientID A*"
    assert segment_of(whole) == Segment("n01", ("20000101", "20000131"), ("060000", "115959"), "CT", "A")
    assert segment_of("node n01: stopped at its maximum number of results; narrow the search").is_whole


@pytest.mark.parametrize(
    ("segment", "is_covered"),
    [
        (Segment("n01", ("20000101", "20000131"), modality="CT", patient="A"), True),
        (Segment("n02", ("20000101", "20000131")), False),
        (Segment("n01", ("20000101", "20000114")), False),
        (Segment("n01", modality="MR"), False),
        (Segment("n01", patient="B"), False),
        (Segment("n01", is_undated=True), False),
        (Segment("n01"), True),
    ],
)
def test_a_study_is_covered_by_just_the_segments_that_it_lies_in(segment: Segment, is_covered: bool):
    row = {"StudyDate": "20000115", "ModalitiesInStudy": ["CT", "PT"], "PatientID": "A1"}
    assert segment.covers("n01", row) is is_covered


def test_a_study_without_a_date_lies_in_no_span_of_dates():
    row = {"StudyDate": "", "ModalitiesInStudy": ["CT"], "PatientID": "A1"}
    assert not Segment("n01", ("", "99999999")).covers("n01", row)
    assert Segment("n01", is_undated=True).covers("n01", row)


def test_a_walk_counts_every_study_and_keeps_what_is_declared_incomplete():
    text = "node n01: stopped at its maximum number of results; not all is shown of StudyDate 20000101"
    issue = {"details": {"coding": [{"code": "GW209"}], "text": text}, "diagnostics": text}
    other = {"details": {"coding": [{"code": "GW202"}]}, "diagnostics": "node n02: did not answer"}
    pages = {
        "/first": (["1", "2"], [issue, other], "/second"),
        "/second": (["2", "3"], [issue], None),
    }

    class Pages:
        def get(self, target, accept):
            uids, issues, following = pages[target]
            entries = [{"resource": {"resourceType": "ImagingStudy", "id": uid}} for uid in uids]
            entries.append({"resource": {"resourceType": "OperationOutcome", "issue": issues}})
            links = [{"relation": "self", "url": target}]
            links += [{"relation": "next", "url": following}] if following else []
            return catalogue.asking.Answer(json.dumps({"entry": entries, "link": links}).encode(), 1.0)

    done = catalogue.walk(Pages(), "/first")
    assert done.seen == Counter({"1": 1, "2": 2, "3": 1})
    assert (done.once, done.pages, done.is_whole, done.declared) == (2, 2, True, {text})
