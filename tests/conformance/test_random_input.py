"""Random input at the edges: whatever a caller writes is answered or refused, never a fault; what is packed is unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from national_nodes import Demo
from starlette.requests import Request

from gateway.edge import negotiation
from gateway.edge.dicomweb import qidoquery, representations, wado
from gateway.edge.fhir import formats, identifiers, periods
from gateway.edge.fhir.imagingstudy import Renderer
from gateway.edge.fhir.searchgrammar import name_of
from gateway.edge.fhir.studyquery import PARAMETERS, parse
from gateway.errors import InvalidQuery, NotAcceptable
from gateway.federation.page import Cursor
from gateway.model.patient import PatientKey
from gateway.model.query import check_uid
from gateway.model.vocabulary import Level
from gateway.store.patients import PatientIds

quick = settings(max_examples=400, deadline=None)
KEYS = (
    "PatientName", "PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "ModalitiesInStudy", "AccessionNumber",
    "00100020", "0010002", "00081111.00080050", "OtherPatientIDsSequence.PatientID", "SeriesNumber", "Modality", "Rows",
    "limit", "offset", "includefield", "fuzzymatching", "node", "accept", "emptyvaluematching", "AcquisitionDateTime",
    "multiplevaluematching", "TimezoneOffsetFromUTC", "00091002", "charset",
)  # fmt: skip
FRAGMENTS = (
    "", "*", "?", "-", "20250101", "20250101-", "-20251231", "1030", "1.2.3", "1.2.3,1.2.4", "\\", "^", "=", "all", "true",
    "0", "-1", "1e9", "nan", "inf", "٣", "²", "\u0000", "é", "中", "\U0001f600", "9" * 40, "1." * 40, "\r\n", '"', "%",
    "+0200", "20250101103000+0200-20250102",
)  # fmt: skip
texts = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=30), st.lists(st.sampled_from(FRAGMENTS)).map("".join))
qido_pairs = st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), texts), texts), max_size=5)


@quick
@given(st.sampled_from(Level), qido_pairs, st.none() | texts, st.none() | texts)
@example(Level.STUDY, [("limit", "²")], None, None)
@example(Level.STUDY, [("SeriesNumber", "nan")], None, None)
def test_a_qido_query_is_understood_or_refused(level: Level, pairs: Any, study: str | None, series: str | None) -> None:
    try:
        search = qidoquery.parse(level, pairs, study, series)
    except InvalidQuery:
        return
    assert search.query.level is level
    assert len(set(search.query.matches)) == len(search.query.matches)
    assert search.offset >= 0
    assert search.limit is None or search.limit >= 0


FHIR_VALUES = (
    "2025", "ge2025-01-01", "ap2025", "0001-01-01", "9999-12-31", "lt0001", "gt9999-12-31T23:59:59Z", "1.2.3", "urn:oid:1.2.3",
    "urn:dicom:uid|urn:oid:1.2.3", "a|b", "|", "|x", "x|", "CT,MR", "\\,", "\\|", "$", "Patient/1", "started", "-started", "true",
    "2025-01-01T00:00:00+99:99", "0000", "2025-02-30",
)  # fmt: skip
fhir_texts = st.one_of(
    st.sampled_from(FHIR_VALUES), texts, st.lists(st.sampled_from(FHIR_VALUES), max_size=3).map(",".join)
)
modifiers = st.sampled_from(
    ["", ":missing", ":not", ":exact", ":contains", ":of-type", ":identifier", ":Patient", ":x"]
)
fhir_names = st.tuples(st.sampled_from(sorted(PARAMETERS)), modifiers).map("".join)
fhir_pairs = st.lists(st.tuples(st.one_of(fhir_names, texts), fhir_texts), max_size=5)
renderer = Renderer(False, "http://gateway", identifiers.Issuers({}), PatientIds(b"secret"), {})


@quick
@given(fhir_pairs, st.booleans())
@example([("started", "9999-12-31T23:59:59Z")], False)
@example([("started", "0001-01-01T00:00:00+14:00")], False)
@example([("started", "ap0001")], False)
def test_fhir_parameters_are_understood_or_refused(pairs: list[tuple[str, str]], lenient: bool) -> None:
    try:
        search = asyncio.run(parse(pairs, renderer, lenient=lenient))
        query = search.query
    except InvalidQuery:
        return
    assert lenient or not search.ignored
    assert {name_of(name).key for name, _ in search.used} <= {name_of(name).key for name in PARAMETERS}
    assert len({match.path for match in query.matches}) == len(query.matches)


accepts = st.one_of(
    texts,
    st.lists(
        st.tuples(
            st.sampled_from(["*/*", "application/dicom", "application/dicom+json", "multipart/related", "image/*", "application/fhir+json", "x", "/"]),
            st.sampled_from(["", ';type="application/dicom"', ";q=0", ";q=1.5", ";q=x", ";transfer-syntax=*", ";transfer-syntax=1.2.x", ";fhirVersion=5.0", ';type="', ";;", ";type=application/octet-stream"]),
        ).map("".join)
    ).map(",".join),
)  # fmt: skip


def request_with(accept: str) -> Request:
    headers = [(b"accept", accept.encode("utf-8", "replace"))]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers})


@quick
@given(accepts, st.booleans())
def test_an_accept_header_is_met_or_refused(accept: str, strict: bool) -> None:
    request = request_with(accept)
    for negotiate in (
        lambda: representations.chosen(request, strict=strict, alone=strict),
        lambda: negotiation.instances(request, strict=strict, one_instance=strict),
        lambda: negotiation.octets(request, strict=strict, single=strict),
        lambda: formats.negotiated(request, None),
        lambda: formats.negotiated(request, "5.0"),
    ):
        with contextlib.suppress(NotAcceptable, InvalidQuery):
            assert negotiate()


@quick
@given(st.text(alphabet="0123456789,.- ²٣a", max_size=12))
def test_a_frame_list_is_numbers_from_one_or_refused(listed: str) -> None:
    try:
        numbers = wado.frame_numbers(listed)
    except InvalidQuery:
        return
    assert ",".join(map(str, numbers)) == re.sub(r"(^|,)0+", r"\1", listed)
    assert min(numbers) >= 1


uids = st.lists(st.integers(0, 10**12), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, parts)))


@quick
@given(st.one_of(uids.filter(lambda uid: len(uid) <= 64), st.integers(0, 10**59).map(lambda n: f"2.25.{n}")))
@example("0")
@example("0.0.0")
@example("9" * 64)
@example("0." * 31 + "00")
def test_a_packed_uid_is_unpacked(uid: str) -> None:
    packed = identifiers.pack(uid)
    assert re.fullmatch(r"[A-Za-z0-9.-]{38}", packed)
    assert identifiers.unpack(packed) == uid


@quick
@given(st.text(max_size=70))
def test_an_id_that_was_not_given_out_is_no_uid_by_accident(identifier: str) -> None:
    try:
        uid = identifiers.uid_of_id(identifier)
    except InvalidQuery:
        return
    assert check_uid(uid, "x") == uid


@quick
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_an_issuer_comes_back_from_its_system(issuer: str) -> None:
    issuers = identifiers.Issuers({"PESEL": "urn:oid:1.2.3"})
    assert issuer in issuers.issuers(issuers.system(issuer))
    assert "PESEL" in issuers.issuers("urn:oid:1.2.3")


@quick
@given(st.text(max_size=80), st.binary(min_size=16, max_size=16))
def test_a_cursor_that_is_not_ours_is_refused(text: str, secret: bytes) -> None:
    with pytest.raises(InvalidQuery):
        Cursor(secret).open(text, "digest")


moments = st.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 31)).map(lambda moment: moment.replace(microsecond=0))
offsets = st.sampled_from(["Z", "+01:00", "-03:30", "+14:00", "-12:00", "+05:45"])


@st.composite
def dated(draw: st.DrawFn) -> tuple[str, int, int]:
    """A FHIR dateTime with an offset, and the seconds since the epoch at which its span begins and ends."""
    moment, offset = draw(moments), draw(offsets)
    form, length = draw(st.sampled_from([("%Y-%m-%dT%H:%M", 60), ("%Y-%m-%dT%H:%M:%S", 1)]))
    text = moment.strftime(form) + offset
    low = int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())
    return text, low, low + length


@quick
@given(dated(), dated(), st.sampled_from(["", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"]))
def test_dates_compare_as_an_oracle_over_seconds_does(one: Any, other: Any, prefix: str) -> None:
    """FHIR R4 search 3.1.1.4.7, said with sets of whole seconds: the resource's R and the searched value's S."""
    (value, low, high), (searched, wanted_low, wanted_high) = one, other
    inside = wanted_low <= low and high <= wanted_high
    some_after, some_before = high - 1 >= wanted_high, low < wanted_low
    oracle = {
        "": inside,
        "eq": inside,
        "ne": not inside,
        "gt": some_after,
        "ge": some_after or inside,
        "lt": some_before,
        "le": some_before or inside,
        "sa": low > wanted_high - 1,
        "eb": high - 1 < wanted_low,
    }
    assert periods.compare(value, periods.Period.parse(prefix + searched, "started")) is oracle[prefix]


@quick
@given(dated(), dated(), st.sampled_from(["eq", "gt", "lt", "ge", "le", "sa", "eb", "ap"]))
def test_the_days_asked_of_the_nodes_hold_every_match(one: Any, other: Any, prefix: str) -> None:
    """What compare accepts lies, by its own local date, within the range that the nodes are asked for."""
    period = periods.Period.parse(prefix + other[0], "started")
    if periods.compare(one[0], period):
        first, last = period.days()
        day = datetime.fromisoformat(one[0].replace("Z", "+00:00")).date()
        assert first is None or day >= first
        assert last is None or day <= last


@quick
@given(
    st.datetimes(datetime(2025, 2, 26), datetime(2025, 3, 3)),
    st.datetimes(datetime(2025, 2, 26), datetime(2025, 3, 3)),
    st.sampled_from(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S+14:00", "%Y-%m-%dT%H:%M:%S-12:00"]),
    st.sampled_from(["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT00:00:00", "%Y-%m-%dT%H:%M:%S.%f"]),
    st.sampled_from(["eq", "gt", "lt", "ge", "le", "sa", "eb", "ap"]),
)
def test_the_days_of_a_date_without_an_offset_hold_every_match(
    one: datetime, other: datetime, form: str, searched: str, prefix: str
) -> None:
    """Compared on the study's own calendar, so not a day more is asked for: a crowded one may lie there."""
    period = periods.Period.parse(prefix + other.strftime(searched), "started")
    first, last = period.days()
    if periods.compare(one.strftime(form), period):
        assert first is None or one.date() >= first
        assert last is None or one.date() <= last
    if prefix == "lt" and searched == "%Y-%m-%d":
        assert last == other.date() - timedelta(days=1)


@quick
@given(
    st.dates(datetime(2024, 1, 1).date(), datetime(2026, 12, 31).date()),
    st.sampled_from(["eq", "gt", "lt", "ge", "le", "ap"]),
    dated(),
)
def test_a_date_alone_is_not_lost_to_an_instant_it_may_lie_at(day: Any, prefix: str, other: Any) -> None:
    """The oracle tries every offset there is."""
    period = periods.Period.parse(prefix + other[0], "started")
    may = any(
        periods.compare(f"{day}T{hour:02}:{minute:02}:{second:02}{offset}", period)
        for offset in ("+14:00", "+00:00", "-12:00")
        for hour, minute, second in ((0, 0, 0), (11, 59, 59), (12, 0, 0), (23, 59, 59))
    )
    assert periods.compare(day.isoformat(), period) or not may


@quick
@given(st.text(max_size=30))
@example("2025-01-01T00:00:00.123456789Z")
@example("9999-12-31")
@example("0001-01-01T00:00:00+14:00")
def test_a_text_is_a_span_of_time_or_none(text: str) -> None:
    found = periods.span_of(text)
    assert found is None or (found.low < found.high and found.low.tzinfo is UTC)


@quick
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_patient_ids_tell_patients_apart(issuer: str, one: str, other: str) -> None:
    ids = PatientIds(b"secret")
    found = {
        key: ids.id_of(key) for key in (PatientKey(issuer, one), PatientKey(issuer, other), PatientKey(one, issuer))
    }
    assert len(set(found.values())) == len(found)
    assert all(asyncio.run(ids.key_of(identifier)) == key for key, identifier in found.items())


def random_requests() -> Iterator[tuple[str, Any]]:
    """Where random pairs are sent: one node that answers from memory, so that the search itself is quick."""
    yield "/nodes/ee-tartu/dicom-web/studies", qido_pairs
    yield "/nodes/ee-tartu/dicom-web/series", qido_pairs
    yield "/nodes/es-madrid/dicom-web/studies", qido_pairs
    yield "/fhir/ImagingStudy", fhir_pairs


@pytest.mark.parametrize(("path", "pairs"), list(random_requests()))
def test_random_queries_over_http_are_never_a_fault(demo: Demo, path: str, pairs: Any) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(pairs, accepts)
    def ask(given_pairs: list[tuple[str, str]], accept: str) -> None:
        node = [("node", "ee-tartu")] if path.startswith("/fhir") else []
        own = [(name, value) for name, value in given_pairs if name not in ("node", "accept")]
        encoded = [(k.encode("utf-8", "surrogatepass"), v.encode("utf-8", "surrogatepass")) for k, v in (*node, *own)]
        query = "&".join(f"{quoted(k)}={quoted(v)}" for k, v in encoded)
        header = re.sub(r"[^\x20-\x7e]", "?", accept).strip()
        answer = demo.get(f"{path}?{query}", headers={"accept": header})
        assert answer.status_code in (200, 400, 404, 406, 409, 413), answer.text[:300]
        check_error(answer)

    ask()


def quoted(raw: bytes) -> str:
    return "".join(chr(c) if chr(c).isalnum() and c < 128 else f"%{c:02X}" for c in raw)


def check_error(answer: httpx.Response) -> None:
    if answer.status_code >= 400:
        assert answer.headers["content-type"].split(";")[0] in ("application/problem+json", "application/fhir+json")
        assert "Traceback" not in answer.text


@quick
@given(st.text(alphabet="abcdef0123456789.-/%\\ é", max_size=40))
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """The pure part of it: UIDs and bulk data paths."""
    for check in (lambda: check_uid(path, "StudyInstanceUID"), lambda: wado.bulkdata_path(path)):
        with contextlib.suppress(InvalidQuery):
            assert re.fullmatch(r"[0-9A-F.]+", check())
