"""`started` has an offset or is a date."""

import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.dataset import Dataset, attribute
from gateway.model.moments import parse_offset, series_started, started
from gateway.model.vocabulary import tag


def dataset(date: str = "", time: str = "", offset: str = "") -> Dataset:
    values = {"StudyDate": date, "StudyTime": time, "TimezoneOffsetFromUTC": offset}
    return {tag(k): attribute(tag(k), [v]) for k, v in values.items() if v}


@pytest.mark.parametrize(
    ("data", "zone", "expected"),
    [
        (dataset("20260301", "101500", "+0300"), "Europe/Berlin", "2026-03-01T10:15:00+03:00"),
        (dataset("20260301", "101500"), "Europe/Berlin", "2026-03-01T10:15:00+01:00"),
        (dataset("20260701", "101500"), "Europe/Berlin", "2026-07-01T10:15:00+02:00"),
        (dataset("20260701", "101500.5"), "Europe/Tallinn", "2026-07-01T10:15:00.500000+03:00"),
        (dataset("20260701", "101500"), None, "2026-07-01"),
        (dataset("20260701"), "Europe/Berlin", "2026-07-01"),
        (dataset("20260701", "10"), "Europe/Berlin", "2026-07-01T10:00:00+02:00"),
        (dataset("20261231", "235960"), "UTC", "2026-12-31T23:59:59+00:00"),
        (dataset("2026.07.01", "10:15:00"), "Europe/Berlin", "2026-07-01T10:15:00+02:00"),
        (dataset("20260701", "rubbish"), "Europe/Berlin", "2026-07-01"),
        (dataset("20260701", "101500", "rubbish"), "Europe/Berlin", "2026-07-01T10:15:00+02:00"),
        (dataset("20260701", "101500"), "Europe/Nowhere", "2026-07-01"),
        (dataset("20260732", "101500"), "Europe/Berlin", None),
        (dataset("", "101500"), "Europe/Berlin", None),
    ],
)
def test_the_offset_of_the_data_set_wins_then_the_nodes_time_zone_then_a_date(data, zone, expected):
    assert started(data, zone) == expected


def test_a_series_has_a_moment_of_its_own():
    data = {tag("SeriesDate"): attribute(tag("SeriesDate"), ["20260301"]), **dataset("20260101")}
    assert series_started(data, "Europe/Berlin") == "2026-03-01"


@pytest.mark.parametrize(("text", "minutes"), [("+0530", 330), ("-0330", -210), ("+1400", 840), ("-1200", -720)])
def test_an_offset_is_hours_and_minutes(text: str, minutes: int):
    assert parse_offset(text).utcoffset(None).total_seconds() == minutes * 60


@pytest.mark.parametrize("text", ["+1401", "-1201", "+0060", "0100", "+01:00", ""])
def test_what_is_no_offset_is_refused(text: str):
    assert parse_offset(text) is None


FHIR_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))?")
DIGITS = st.text("0123456789.:+- ", max_size=14)


@given(DIGITS, DIGITS, DIGITS, st.sampled_from([None, "Europe/Athens", "no zone", "../etc"]))
def test_whatever_a_node_sends_started_is_a_fhir_date_time_or_nothing(date, time, offset, zone):
    found = started(dataset(date, time, offset), zone)
    assert found is None or FHIR_DATE_TIME.fullmatch(found)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)))
def test_the_clock_is_the_one_in_the_data_set(moment: datetime):
    data = dataset(moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f"))
    assert datetime.fromisoformat(started(data, "Europe/Madrid")).replace(tzinfo=None) == moment
