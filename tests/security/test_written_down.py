"""Who is refused is written down, who cannot be written down is shown nothing, and each scope is enough for what it names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws

from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.edge.test_documents import table
from tests.running import Gateway, files_node
from tests.security.conftest import TestIssuer, issuer_beside
from tests.specimens import specimen, uid


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with issuer_beside() as running:
        yield running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def records_of(path: Path, least: int = 1, seconds: float = 2.0) -> list[dict[str, Any]]:
    """What the audit holds, once it has so many records."""
    ends = time.monotonic() + seconds
    while True:
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(found) >= least or time.monotonic() > ends:
            return found
        time.sleep(0.05)


def test_a_subject_that_cannot_be_written_down_is_shown_nothing(directory: Path, issuer: TestIssuer) -> None:
    specimen(directory, "12345", "one", PixelData=bytes(16))
    with Gateway([files_node("disk", directory)], oidc_issuer=issuer.issuer) as gateway:
        now = int(time.time())
        claims = {"iss": issuer.issuer, "aud": "imaging-gateway", "sub": "\ud800", "iat": now, "exp": now + 300}
        claims["scope"] = "system/ImagingStudy.rs"
        key = issuer.keys["one"]
        token = jws.serialize_compact({"alg": "RS256", "kid": "one"}, json.dumps(claims).encode(), key)
        headers = {"Authorization": f"Bearer {token}", "Accept": 'multipart/related; type="application/dicom"'}
        answer = gateway.get(f"/dicom-web/studies/{uid('one')}", headers=headers)
    assert answer.status_code == 401
    assert b"12345" not in answer.content


@pytest.mark.parametrize(
    "path",
    [
        "/dicom-web/studies?PatientID=12345",
        "/fhir/Patient?identifier=12345",
        "/fhir/ImagingStudy?patient.identifier=12345",
        "/fhir/DiagnosticReport?patient.identifier=12345",
        "/fhir/$export?_type=Patient",
    ],
)
def test_a_refusal_is_written_down_whatever_was_asked_for(
    directory: Path, issuer: TestIssuer, tmp_path: Path, path: str
) -> None:
    specimen(directory, "12345", "one")
    audit = tmp_path / "audit"
    with Gateway([files_node("disk", directory)], oidc_issuer=issuer.issuer, audit=audit) as gateway:
        headers = {"Authorization": issuer.bearer(scope="system/Endpoint.rs"), "Prefer": "respond-async"}
        assert gateway.get(path, headers=headers).status_code == 403
        found = records_of(audit)
    assert [one["outcome"] for one in found] == ["GW104"]


def test_who_tries_tokens_is_written_down_with_its_address_and_who_sends_none_is_not(
    directory: Path, issuer: TestIssuer, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    with Gateway([files_node("disk", directory)], oidc_issuer=issuer.issuer, audit=audit) as gateway:
        assert gateway.get("/dicom-web/studies?PatientID=12345").status_code == 401
        for number in range(5):
            headers = {"Authorization": f"Bearer {number}"}
            assert gateway.get("/dicom-web/studies?PatientID=12345", headers=headers).status_code == 401
    found = records_of(audit, 2)
    assert [(one["action"], one["outcome"], one["count"]) for one in found] == [
        ("authenticate", "GW103", 1),
        ("authenticate", "GW103", 4),
    ]
    assert {one["address"] for one in found} == {"127.0.0.1"}
    assert "12345" not in audit.read_text()


def test_who_asks_too_often_is_written_down_by_name(directory: Path, issuer: TestIssuer, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    limits = {"rate_limit": 0.01, "rate_burst": 1}
    with Gateway([files_node("disk", directory)], oidc_issuer=issuer.issuer, audit=audit, **limits) as gateway:
        headers = {"Authorization": issuer.bearer(scope="system/*.rs", sub="hasty")}
        for _ in range(4):
            gateway.get("/dicom-web/studies", headers=headers)
    turned_away = [one for one in records_of(audit, 3) if one["outcome"] == "GW111"]
    assert [(one["subject"], one["count"]) for one in turned_away] == [("hasty", 1), ("hasty", 2)]


def test_who_may_search_patients_searches_them(directory: Path, issuer: TestIssuer) -> None:
    specimen(directory, "12345", "one")
    with Gateway([files_node("disk", directory)], oidc_issuer=issuer.issuer) as gateway:
        headers = {"Authorization": issuer.bearer(scope="system/Patient.s")}
        answer = gateway.get("/fhir/Patient?identifier=12345", headers=headers)
    assert answer.status_code == 200, answer.text


def test_it_is_written_down_whose_report_was_read(tmp_path: Path) -> None:
    directory, audit = tmp_path / "north", tmp_path / "audit"
    specimen(directory, "12345", "ct", AccessionNumber="A1")
    options = FhirOptions(patient_system="urn:north", reports=True, service_requests=True)
    with FhirSimulator(directory, "R4", options) as simulator, Gateway([table(simulator)], audit=audit) as gateway:
        (entry,) = gateway.get("/fhir/DiagnosticReport?identifier=A1").json()["entry"]
        assert gateway.get(f"/fhir/DiagnosticReport/{entry['resource']['id']}").status_code == 200
        found = records_of(audit, 2)
    assert [(one["studies"], list(one["match"])) for one in found] == [([uid("ct")], ["PatientID"])] * 2
    assert "12345" not in audit.read_text()


@pytest.mark.parametrize(
    "path",
    [
        "/dicom-web/studies?node=open,treating",
        "/fhir/ImagingStudy?node=treating,open",
        "/fhir/Endpoint?node=open,treating",
        f"/dicom-web/studies/{uid('one')}/metadata?node=open,treating",
        "/fhir/$export?node=open,treating&_type=ImagingStudy",
    ],
)
def test_a_node_that_is_named_and_may_not_be_asked_is_not_left_out(
    directory: Path, issuer: TestIssuer, tmp_path: Path, path: str
) -> None:
    specimen(directory, "12345", "one")
    one = files_node("open", directory, patient_id_issuer="urn:one")
    nodes = [one, {**one, "id": "treating", "purposes": ["TREAT"]}]
    scope, audit = "system/*.rs", tmp_path / "audit"
    with Gateway(nodes, oidc_issuer=issuer.issuer, audit=audit) as gateway:

        def ask(path: str, **claims: str) -> int:
            headers = {"Authorization": issuer.bearer(scope=scope, **claims), "Prefer": "respond-async"}
            return gateway.get(path, headers=headers).status_code

        good = 202 if "export" in path else 200
        assert ask(path) == 403
        assert [one["outcome"] for one in records_of(audit)] == ["GW104"]
        assert ask(path, purpose_of_use="TREAT") == good
        assert ask(path.replace("open,treating", "open").replace("treating,open", "open")) == good
