"""The rows of FHIR Bulk Data Access (B), each shown by an export."""

from __future__ import annotations

from typing import Any

from conformance_table import shows
from small_hospital import Small

from tests.export.asking import ASYNC, Export, begin

Json = dict[str, Any]
OF_FILES = {"node": "files"}


def exported(hospital: Small, path: str = "/fhir/$export", **more: Any) -> tuple[Export, Json]:
    """An export of the files' node that has come to its end."""
    parameters = {**OF_FILES, **more.pop("params", {})}
    export = begin(hospital.gateway.client, path, params=parameters, **more)
    return export, export.manifest()


def lines(export: Export, manifest: Json, kind: str) -> list[Json]:
    return list(export.lines(manifest, kind))


def refused(hospital: Small, path: str, **more: Any) -> Json:
    answer = hospital.gateway.client.get(path, headers=more.pop("headers", ASYNC), **more)
    assert answer.status_code == 400, answer.text
    (issue,) = answer.json()["issue"]
    told: Json = issue
    return told


@shows("B1")
def kick_off(hospital: Small) -> None:
    body = {"resourceType": "Parameters", "parameter": [{"name": "_type", "valueString": "ImagingStudy"}]}
    headers = {"Content-Type": "application/fhir+json"}
    for root in ("/fhir/r4", "/fhir/r5"):
        for method, more in (
            ("GET", {"params": {"_type": "ImagingStudy"}}),
            ("POST", {"json": body, "headers": headers}),
        ):
            export, manifest = exported(hospital, f"{root}/$export", method=method, **more)
            assert len(lines(export, manifest, "ImagingStudy")) == 3
            assert f"{root}/$export/" in export.url
    export, manifest = exported(hospital, "/fhir/r4/Patient/$export")
    assert {each["type"] for each in manifest["output"]} == {"ImagingStudy", "Patient"}


@shows("B2")
def asynchronous(hospital: Small) -> None:
    told = refused(hospital, "/fhir/r4/$export", headers={"Accept": "application/fhir+json"})
    assert "Prefer: respond-async" in told["diagnostics"]
    answer = hospital.gateway.client.get("/fhir/r4/$export", params=OF_FILES, headers=ASYNC)
    assert (answer.status_code, answer.headers["content-location"][:4]) == (202, "http")
    Export(hospital.gateway.client, answer.headers["content-location"]).manifest()


@shows("B3")
def polling(hospital: Small) -> None:
    export = begin(hospital.gateway.client, params=OF_FILES)
    first = export.poll()
    if first.status_code == 202:  # else it was over already
        assert first.headers["x-progress"]
        assert int(first.headers["retry-after"]) >= 1
    export.manifest()
    statuses = [export.poll() for _ in range(30)]
    (often, *_) = [each for each in statuses if each.status_code == 429]
    assert int(often.headers["retry-after"]) >= 1


@shows("B4")
def manifest_of(hospital: Small) -> None:
    _, manifest = exported(hospital)
    assert set(manifest) == {"transactionTime", "request", "requiresAccessToken", "output", "error"}
    assert manifest["request"].endswith("/fhir/$export?node=files")
    assert manifest["requiresAccessToken"] is False
    counts = {each["type"]: each["count"] for each in manifest["output"]}
    assert counts == {"ImagingStudy": 3, "Patient": 3, "Endpoint": 1, "Organization": 1}


@shows("B5")
def ndjson(hospital: Small) -> None:
    export, manifest = exported(hospital)
    for kind in ("ImagingStudy", "Patient", "Endpoint", "Organization"):
        told = lines(export, manifest, kind)  # checks the type and the count
        assert {each["resourceType"] for each in told} == {kind}
    for name in ("application/fhir+ndjson", "application/ndjson", "ndjson"):
        assert exported(hospital, params={"_outputFormat": name})[1]["output"]
    assert "_outputFormat" in str(refused(hospital, "/fhir/$export", params={"_outputFormat": "text/csv"}))


@shows("B6")
def ended(hospital: Small) -> None:
    export, manifest = exported(hospital)
    client = hospital.gateway.client
    assert client.delete(export.url).status_code == 202
    assert client.get(export.url).status_code == 404
    assert client.get(manifest["output"][0]["url"]).status_code == 404


@shows("B7")
def narrowed(hospital: Small) -> None:
    only_mr = {"_type": "ImagingStudy", "_typeFilter": "ImagingStudy?modality=MR"}
    export, manifest = exported(hospital, params=only_mr)
    (study,) = lines(export, manifest, "ImagingStudy")
    assert study["identifier"][1]["value"] == "ACC-2"
    patient = study["subject"]["reference"]
    export, manifest = exported(hospital, params={"patient": patient, "_elements": "ImagingStudy.started"})
    (study,) = lines(export, manifest, "ImagingStudy")
    assert "identifier" not in study
    assert study["started"].startswith("2026-03-02")
    assert [f"Patient/{each['id']}" for each in lines(export, manifest, "Patient")] == [patient]


@shows("B8a")
def lenient(hospital: Small) -> None:
    parameters = {"_type": "Endpoint", "_since": "2026-01-01T00:00:00Z"}
    assert "_since" in refused(hospital, "/fhir/$export", params=parameters)["diagnostics"]
    headers = {"Prefer": "respond-async, handling=lenient"}
    export, manifest = exported(hospital, params=parameters, headers=headers)
    (outcome,) = lines(export, manifest, "OperationOutcome")
    assert "_since" in outcome["issue"][0]["diagnostics"]
