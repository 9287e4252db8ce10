"""Reports and orders: who may have them, what is written down of it, what is kept, and how their values are read."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.fhir.bearers import Bearers
from gateway.adapters.fhir.bundle import References
from gateway.edge.fhir.documents import document_id, original_id, rendered
from gateway.edge.fhir.foreignvalues import Values
from gateway.edge.fhir.identifiers import declared
from gateway.edge.fhir.imagingstudy import Renderer
from gateway.edge.fhir.periods import Period, compare_span
from gateway.errors import Unmappable
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.documents import KINDS, Document
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from gateway.privacy.view import PlainView, View
from gateway.security.caller import Caller
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from gateway.store.patients import PatientIds
from gateway.wire import fhirxml
from tests.running import Gateway
from tests.security.conftest import TestIssuer, issuer_beside
from tests.specimens import specimen

SEARCH = "/fhir/DiagnosticReport?patient.identifier=urn:north|12345"
CODE = {"text": "CT"}


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with issuer_beside() as running:
        yield running


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FhirSimulator]:
    directory = tmp_path_factory.mktemp("north")
    specimen(directory, "12345", "ct", AccessionNumber="A1", PatientName="Secret^Name")
    options = FhirOptions(patient_system="urn:north", reports=True, service_requests=True)
    with FhirSimulator(directory, "R4", options) as simulator:
        yield simulator


def table(simulator: FhirSimulator) -> dict[str, Any]:
    connection = {"url": simulator.url, "version": "R4"}
    more = {"adapter": "fhir", "mapping": "fhir-r4", "patient_id_issuer": "urn:north", "connection": connection}
    return {"id": "north", "name": "north", **more}


@pytest.mark.parametrize(
    ("scope", "search", "read"),
    [
        ("system/DiagnosticReport.rs", 200, 200),
        ("system/DiagnosticReport.s", 200, 403),
        ("system/DiagnosticReport.r", 403, 200),
        ("user/*.read", 200, 200),
        ("system/ImagingStudy.rs system/Patient.rs system/ServiceRequest.rs", 403, 403),
        ("patient/DiagnosticReport.rs", 403, 403),
    ],
)
def test_each_needs_its_scope(north: FhirSimulator, issuer: TestIssuer, scope: str, search: int, read: int) -> None:
    with Gateway([table(north)], oidc_issuer=issuer.issuer) as gateway:
        everything = {"Authorization": issuer.bearer(scope="system/*.rs")}
        (entry,) = gateway.get(SEARCH, headers=everything).json()["entry"]
        headers = {"Authorization": issuer.bearer(scope=scope)}
        found = gateway.get(SEARCH, headers=headers)
        assert found.status_code == search
        if search == 403:
            assert "system/DiagnosticReport.s" in found.text
        assert gateway.get(f"/fhir/DiagnosticReport/{entry['resource']['id']}", headers=headers).status_code == read
        assert gateway.get(SEARCH).status_code == 401
        told = gateway.get("/fhir/.well-known/smart-configuration").json()["scopes_supported"]
        assert {"system/DiagnosticReport.rs", "user/ServiceRequest.rs"} <= set(told)


def test_who_sees_studies_changed_is_refused(north: FhirSimulator) -> None:
    class Changed(PlainView):
        is_plain = False

    class Views:
        def of(self, caller: Caller) -> View:
            return Changed(is_plain=False)

    with Gateway([table(north)]) as plain:
        (entry,) = plain.get(SEARCH).json()["entry"]
    with Gateway([table(north)], views=Views()) as gateway:
        for path in (SEARCH, f"/fhir/DiagnosticReport/{entry['resource']['id']}", "/fhir/ServiceRequest?identifier=A1"):
            answer = gateway.get(path)
            assert answer.status_code == 403, path
            assert "is not given to who sees studies changed" in answer.text


def test_a_search_is_written_down_without_the_patient_and_kept(north: FhirSimulator, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with Gateway([table(north)], audit=audit) as gateway:
        first = gateway.get(SEARCH)
        assert first.status_code == 200
        asked = north.operations["search_DiagnosticReport"]
        again = gateway.get(SEARCH, headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304
        assert gateway.get(f"{SEARCH}&status=amended").json()["total"] == 0  # decided on the node's one answer
        assert north.operations["search_DiagnosticReport"] == asked
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    searches = [one for one in records if one["action"] == "search"]
    assert [one["outcome"] for one in searches] == ["success"] * 3
    assert searches[0]["count"] == 1
    assert "12345" not in audit.read_text()
    assert "Secret" not in audit.read_text()


def test_a_gateway_that_validates_finds_no_fault(north: FhirSimulator) -> None:
    with Gateway([table(north)], validate_fhir=True) as gateway:
        for root in ("/fhir/r4", "/fhir/r5"):
            for kind in ("DiagnosticReport", "ServiceRequest"):
                bundle = gateway.get(f"{root}/{kind}?identifier=A1")
                assert bundle.status_code == 200, bundle.text
                (entry,) = bundle.json()["entry"]
                assert gateway.get(entry["fullUrl"]).status_code == 200


def test_ids_lead_back_to_one_node_only() -> None:
    for original in ("1", "a" * 55, "8d6f7a90-53a2-4bb9-9e17-3b9d3ff4f3b1"):
        assert original_id("north", document_id("north", original)) == original
        assert original_id("south", document_id("north", original)) == ""
    long = document_id("north", "a" * 64)
    assert len(long) <= 64
    assert original_id("north", long) == ""
    assert long != document_id("north", "a" * 63)


def rendering(kind: str, resource: dict[str, Any], *, is_r5: bool, version: str = "R4") -> dict[str, Any]:
    row = Row(Level.STUDY, "north", PatientKey("urn:north", "12345"), "")
    renderer = Renderer(is_r5, "http://gateway", declared([]), PatientIds(b"secret"), {})
    return rendered(Document(kind, version, "1", {"resourceType": kind, "id": "1", **resource}, row), renderer)


def order(**more: Any) -> dict[str, Any]:
    return {"status": "active", "intent": "order", "code": CODE, **more}


def test_an_order_means_the_same_in_both_versions() -> None:
    in_r4 = order(
        doNotPerform=True, reasonCode=[{"text": "cough"}], reasonReference=[{"display": "Fall"}], priority="stat"
    )
    in_r5 = {
        **in_r4,
        "code": {"concept": CODE},
        "reason": [{"concept": {"text": "cough"}}, {"reference": {"display": "Fall"}}],
    }
    del in_r5["reasonCode"], in_r5["reasonReference"]
    for held in (in_r4, in_r5):
        for is_r5, wanted in ((False, in_r4), (True, in_r5)):
            made = rendering("ServiceRequest", held, is_r5=is_r5)
            assert {name: made[name] for name in wanted} == wanted
            assert "meta" not in made  # nothing is missing


def test_a_report_of_an_older_version_is_shown_in_the_newer_ones() -> None:
    old = {
        "status": "final", "code": CODE, "category": {"coding": [{"code": "RAD"}]}, "codedDiagnosis": [{"text": "well"}],
        "performer": [{"role": {"text": "reader"}, "actor": {"display": "Dr. X"}}],
    }  # fmt: skip
    for is_r5 in (False, True):
        made = rendering("DiagnosticReport", old, is_r5=is_r5, version="STU3")
        assert made["category"] == [old["category"]]
        assert made["conclusionCode"] == [{"text": "well"}]
        assert made["performer"] == [{"display": "Dr. X"}]
    assert rendering("DiagnosticReport", {"status": "modified", "code": CODE}, is_r5=True)["status"] == "modified"
    assert rendering("DiagnosticReport", {"status": "modified", "code": CODE}, is_r5=False)["status"] == "preliminary"


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("ServiceRequest", order(doNotPerform="yes")),
        ("ServiceRequest", order(intent="wish")),
        ("ServiceRequest", order(status="done")),
        ("ServiceRequest", order(note=[{"text": "x", "modifierExtension": [{"url": "urn:x", "valueBoolean": True}]}])),
        ("ServiceRequest", order(implicitRules="urn:rules")),
        ("DiagnosticReport", {"status": "final"}),
        ("DiagnosticReport", {"status": "final", "code": {"coding": [{}]}}),
        ("DiagnosticReport", {"status": ["final"], "code": CODE}),
        ("DiagnosticReport", {"code": CODE}),
    ],
)
def test_what_may_mean_something_else_is_not_passed_on(kind: str, given: dict[str, Any]) -> None:
    for is_r5 in (False, True):
        with pytest.raises(Unmappable):
            rendering(kind, given, is_r5=is_r5)


def test_values_are_read_by_their_types() -> None:
    values = Values()
    assert values.identifier({"system": "urn:x", "value": "1", "use": "official"}) == {
        "use": "official",
        "system": "urn:x",
        "value": "1",
    }
    assert values.date_time("2026-03-01T10:00:00Z") == "2026-03-01T10:00:00Z"
    assert values.attachment({"contentType": "Application/PDF; x=y", "data": "QUJD"}) == {
        "contentType": "application/pdf",
        "data": "QUJD",
    }
    assert not values.lost
    for read, held in (
        (values.text, " \x00"), (values.text, 1), (values.code, "a  b"), (values.code, "a\n"), (values.uri, "a b"),
        (values.date_time, "2026-13-01"), (values.date_time, "2026-03-01T10:00"), (values.instant, "2026-03-01"),
        (values.identifier, {"system": "urn:x"}), (values.annotation, {"time": "2026"}), (values.concept, []),
        (values.attachment, {"url": "http://x"}), (values.reference, {"reference": "Patient/1"}), (values.boolean, 1),
    ):  # fmt: skip
        values.lost = False
        assert read(held) is None, held
        assert values.lost, held
        values.lost = False
        assert read(None) is None
        assert not values.lost
    assert values.attachment({"contentType": "text/html", "data": "QUJD", "title": "x"}) == {
        "contentType": "text/html",
        "title": "x",
    }


def test_the_data_of_a_report_may_be_folded_into_lines() -> None:
    values = Values()
    folded = {"contentType": "application/pdf", "data": " QUJD\r\nREVG\n"}
    assert values.attachment(folded) == {"contentType": "application/pdf", "data": "QUJDREVG"}
    assert not values.lost


READER = Reader(load_all()["fhir-r4"], "north", "urn:north")
WHOLE: dict[str, Any] = {
    "resourceType": "DiagnosticReport", "id": "1", "status": "final", "code": {"coding": [{"system": "urn:x", "code": "1"}]},
    "intent": "order", "identifier": [{"system": "urn:x", "value": "1", "type": {"text": "x"}, "use": "usual"}],
    "subject": {"reference": "#p", "identifier": {"system": "urn:north", "value": "12345"}, "type": "Patient"},
    "contained": [{"resourceType": "Patient", "id": "p", "identifier": [{"system": "urn:north", "value": "12345"}]}],
    "imagingStudy": [{"reference": "ImagingStudy/1"}, {"identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2"}}],
    "performer": [{"actor": {"display": "x"}}, {"display": "y"}], "effectivePeriod": {"start": "2026-03-01"}, "issued": "2026",
    "presentedForm": [{"contentType": "application/pdf", "data": "QUJD"}], "category": [{"text": "x"}], "priority": "stat",
    "meta": {"security": [{"system": "urn:x", "code": "R"}]}, "reason": [{"concept": {"text": "x"}}], "conclusion": "x",
}  # fmt: skip
_JUNK = st.sampled_from(
    [None, "", " ", "x\x00", 1, -1.5, True, [], {}, [[]], [None], {"x": []}, "\ud800", "#p", "é" * 99]
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in pairs:
        yield (*path, step)
        yield from _places(inner, (*path, step))


@given(
    st.lists(st.tuples(st.sampled_from(list(_places(WHOLE))), _JUNK), min_size=1, max_size=3), st.sampled_from(KINDS)
)
def test_whatever_a_node_sends_is_read_or_left_out(changes: list[tuple[tuple[Any, ...], Any]], kind: str) -> None:
    """No shape of a resource is a fault of ours: that would hide all that the node, or every node, has."""
    resource = copy.deepcopy(WHOLE)
    for path, junk in changes:
        holder: Any = resource
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = junk
    known = References("http://north/fhir")
    known.add({"resourceType": "ImagingStudy", "id": "1", "uid": "1.2", "subject": resource.get("subject")})
    bearers = Bearers(known)
    assert all(reference for reference, _ in bearers.studies(resource))
    assert all(bearers.patients_of_studies(resource))
    with contextlib.suppress(Unmappable):
        row = READER.bearer(bearers.bearer(resource))
        assert isinstance(row.patient.id, str)
    for is_r5 in (False, True):
        with contextlib.suppress(Unmappable):
            made = rendering(kind, {**resource, "resourceType": kind}, is_r5=is_r5)
            assert fhirxml.encode(made, is_r5=is_r5)
            assert json.dumps(made).isascii()
            assert made["subject"]["identifier"]["value"] == "12345"


@pytest.mark.parametrize(
    ("asked", "start", "end", "answers"),
    [
        ("2026-03", "2026-03-01", "2026-03-05", True), ("2026-03-02", "2026-03-01", "2026-03-05", False),
        ("ge2026-03-04", "2026-03-01", "2026-03-05", True), ("gt2026-03-05", "2026-03-01", "2026-03-05", False),
        ("gt2026-03-05", "2026-03-01", None, True), ("lt2026-03-01", None, "2026-03-05", True),
        ("sa2026-02", "2026-03-01", None, True), ("2026", None, None, False),
        ("ge2026-03-01T00:00:00Z", "2026-03-01T01:00:00+01:00", None, True), ("eb2026-03-01T00:00:00Z", "2026-03-02", None, False),
    ],
)  # fmt: skip
def test_a_period_is_compared_by_both_its_ends(asked: str, start: str | None, end: str | None, answers: bool) -> None:
    assert compare_span(start, end, Period.parse(asked, "date")) is answers
