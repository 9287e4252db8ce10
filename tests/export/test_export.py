"""`$export` as its users meet it: what it takes, what it gives, what it refuses, and to whom."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.edge.export import pages
from gateway.edge.fhir import profiles
from tests.catalogue import CatalogueNodes, catalogue_nodes, free_ports, made_up
from tests.export.asking import ASYNC, Export, begin
from tests.federation.flaky import Flaky
from tests.lifecycle.conftest import eventually
from tests.running import Gateway

STUDIES, NODES = 300, 3
ROWS = made_up(STUDIES, nodes=NODES, shared=0.1)
HELD = {row["StudyInstanceUID"] for part in ROWS for row in part}
FAST: dict[str, Any] = {"export_page": 100, "export_jobs": 50, "export_jobs_per_caller": 50}


@pytest.fixture(scope="module")
def nodes() -> Iterator[CatalogueNodes]:
    with catalogue_nodes(ROWS) as running:
        yield running


@pytest.fixture(scope="module")
def served(nodes: CatalogueNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    audit, kept = (tmp_path_factory.mktemp("export") / name for name in ("audit", "kept"))
    with Gateway(nodes.tables(quirks=[]), audit=audit, export_directory=kept, validate_fhir=True, **FAST) as running:
        yield running


@pytest.fixture(scope="module")
def whole(served: Gateway) -> tuple[Export, dict[str, Any]]:
    export = begin(served.client)
    return export, export.manifest()


def audited(served: Gateway, action: str, count: int = 1) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        lines = map(json.loads, Path(str(served.app.state.settings.audit)).read_text().splitlines())  # type: ignore[union-attr]
        some = [line for line in lines if line["action"] == action]
        return some if len(some) >= count else []

    return list(eventually(found))


# --- what it gives


def test_every_study_comes_once(whole: tuple[Export, dict[str, Any]]) -> None:
    export, manifest = whole
    ids = export.ids(manifest)
    assert set(ids) == HELD
    assert set(ids.values()) == {1}
    assert manifest["error"] == []


def test_every_patient_comes_once_and_is_the_subject_of_a_study(whole: tuple[Export, dict[str, Any]]) -> None:
    export, manifest = whole
    patients = export.ids(manifest, "Patient")
    assert set(patients.values()) == {1}
    subjects = {study["subject"]["reference"] for study in export.lines(manifest, "ImagingStudy")}
    assert subjects == {f"Patient/{one}" for one in patients}


def test_the_nodes_come_as_endpoints_and_organizations(whole: tuple[Export, dict[str, Any]]) -> None:
    export, manifest = whole
    assert set(export.ids(manifest, "Endpoint")) == set(export.ids(manifest, "Organization")) == {"n00", "n01", "n02"}


def test_the_manifest_says_what_was_asked_when_and_how_long_it_is_kept(
    served: Gateway, whole: tuple[Export, dict[str, Any]]
) -> None:
    export, manifest = whole
    assert manifest["request"] == f"{served.url}/fhir/$export"
    assert manifest["requiresAccessToken"] is False
    assert manifest["transactionTime"].endswith("+00:00")
    answer = export.over()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["expires"].endswith("GMT")


def test_no_manifest_vouches_for_a_moment_later_than_what_the_nodes_said() -> None:
    """What is exported out of the cache lacks what a node has got since, up to which who goes on from there would never ask."""
    with catalogue_nodes(ROWS) as nodes, Gateway(nodes.tables(quirks=[]), **FAST) as running:
        begin(running.client).manifest()
        asked = datetime.now(UTC)
        time.sleep(0.5)
        again = begin(running.client).manifest()
    assert datetime.fromisoformat(again["transactionTime"]) <= asked


def test_progress_is_a_sentence_with_numbers(whole: tuple[Export, dict[str, Any]]) -> None:
    export, _ = whole
    assert export.progress
    assert all("of 3 nodes" in told and "studies" in told and len(told) < 100 for told in export.progress)


def test_r5_is_exported_at_its_own_root(served: Gateway) -> None:
    export = begin(served.client, "/fhir/r5/$export?_type=ImagingStudy,Endpoint")
    assert "/fhir/r5/$export/" in export.url
    manifest = export.manifest()
    study = next(export.lines(manifest, "ImagingStudy"))
    assert "coding" in study["modality"][0]


def test_kick_off_completion_and_downloads_are_audited(served: Gateway, whole: tuple[Export, dict[str, Any]]) -> None:
    export, manifest = whole
    job = export.url.rpartition("/")[2]
    list(export.lines(manifest, "Endpoint"))
    for action in ("export", "export-complete"):
        (record,) = [one for one in audited(served, action) if one["ref"] == job]
        assert (record["outcome"], record["nodes"]) == ("success", ["n00", "n01", "n02"])
    name = next(file["url"].rpartition("/")[2] for file in manifest["output"] if file["type"] == "Endpoint")
    assert any(one["ref"] == f"{job}/{name}" and one["count"] == 3 for one in audited(served, "export-file"))


def test_what_exports_cost_is_counted(served: Gateway, whole: tuple[Export, dict[str, Any]]) -> None:
    told = served.get("/metrics").text
    assert 'gateway_export_lines_total{type="ImagingStudy"}' in told
    assert 'gateway_exports_total{outcome="complete"}' in told
    assert "gateway_export_unfinished" in told


# --- what it takes


def searched(served: Gateway, query: str) -> set[str]:
    bundle = served.get(f"/fhir/ImagingStudy?_count=1000&{query}").json()
    return {entry["resource"]["id"] for entry in bundle.get("entry", ()) if entry["search"]["mode"] == "match"}


def test_a_type_filter_is_the_search_language_of_imaging_study(served: Gateway) -> None:
    query = "modality=MR,SM&started=ge2001-01-01&started=lt2015"
    export = begin(served.client, f"/fhir/$export?_type=ImagingStudy&_typeFilter={quote('ImagingStudy?' + query)}")
    found = export.ids(export.manifest())
    assert found
    assert set(found) == searched(served, query)


def test_several_type_filters_are_alternatives_and_give_no_study_twice(served: Gateway) -> None:
    several = "ImagingStudy?modality=CT,ImagingStudy?modality=RTSTRUCT"
    asked = f"/fhir/$export?_type=ImagingStudy&_typeFilter={quote(several)}&_typeFilter=ImagingStudy%3Fmodality%3DPT"
    export = begin(served.client, asked)
    found = export.ids(export.manifest())
    assert set(found) == searched(served, "modality=CT,RTSTRUCT,PT")
    assert set(found.values()) == {1}


def test_a_filter_of_studies_does_not_narrow_the_patients(
    served: Gateway, whole: tuple[Export, dict[str, Any]]
) -> None:
    export = begin(served.client, "/fhir/$export?_type=ImagingStudy,Patient&_typeFilter=ImagingStudy%3Fmodality%3DPT")
    manifest = export.manifest()
    assert set(export.ids(manifest)) == searched(served, "modality=PT")
    assert export.ids(manifest, "Patient") == whole[0].ids(whole[1], "Patient")


def test_a_body_says_the_same_as_a_query(served: Gateway, whole: tuple[Export, dict[str, Any]]) -> None:
    patients = list(whole[0].ids(whole[1], "Patient"))[:2]
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "_type", "valueString": "ImagingStudy"},
            {"name": "_outputFormat", "valueString": "ndjson"},
            *({"name": "patient", "valueReference": {"reference": f"Patient/{one}"}} for one in patients),
        ],
    }
    headers = {"Content-Type": "application/fhir+json"}
    export = begin(served.client, "/fhir/Patient/$export", method="POST", content=json.dumps(body), headers=headers)
    found = list(export.lines(export.manifest(), "ImagingStudy"))
    assert {study["subject"]["reference"] for study in found} == {f"Patient/{one}" for one in patients}


def test_elements_are_trimmed_to_what_was_asked_for_and_must_be_there(served: Gateway) -> None:
    export = begin(
        served.client, "/fhir/$export?_type=ImagingStudy,Patient&_elements=ImagingStudy.started,Patient.identifier"
    )
    manifest = export.manifest()
    for study in export.lines(manifest, "ImagingStudy"):
        assert set(study) <= {"resourceType", "id", "meta", "status", "subject", "started"}
        assert [tag["code"] for tag in study["meta"]["tag"]] == ["SUBSETTED"]
    assert all(set(one) == {"resourceType", "id", "meta", "identifier"} for one in export.lines(manifest, "Patient"))


def test_studies_have_the_form_that_the_gateway_is_set_to_give_them(nodes: CatalogueNodes) -> None:
    (url,) = [one.url for one in profiles.PROFILES if one.name == "mii"]
    with Gateway(nodes.tables(quirks=[]), fhir_profile="mii", validate_fhir=True, **FAST) as running:
        searched = running.get("/fhir/ImagingStudy?_count=1000").json()["entry"]
        export = begin(running.client, "/fhir/$export?_type=ImagingStudy")
        exported = list(export.lines(export.manifest(), "ImagingStudy"))
    claims = {one["id"]: one.get("meta", {}).get("profile") for one in exported}
    assert claims == {one["resource"]["id"]: one["resource"].get("meta", {}).get("profile") for one in searched}
    assert [url] in claims.values()


@pytest.mark.parametrize(
    "elements", ["started,birthDate", "ImagingStudy.id,Patient.meta", "resourceType,Endpoint.name"]
)
def test_elements_of_any_exported_type_are_taken(served: Gateway, elements: str) -> None:
    begin(served.client, f"/fhir/$export?_type=Endpoint&_elements={elements}")


def test_the_patient_level_leaves_the_nodes_out(served: Gateway) -> None:
    export = begin(served.client, "/fhir/Patient/$export")
    assert {file["type"] for file in export.manifest()["output"]} == {"ImagingStudy", "Patient"}


def test_named_nodes_are_the_only_ones_exported(served: Gateway) -> None:
    export = begin(served.client, "/fhir/$export?node=n01&_type=ImagingStudy,Endpoint")
    manifest = export.manifest()
    assert set(export.ids(manifest)) == {row["StudyInstanceUID"] for row in ROWS[1]}
    assert set(export.ids(manifest, "Endpoint")) == {"n01"}


def test_lenient_handling_says_in_the_manifest_what_it_left_out(served: Gateway) -> None:
    headers = {"Prefer": "respond-async, handling=lenient"}
    asked = "/fhir/$export?_type=ImagingStudy&_since=2026-01-01T00:00:00Z&organizeOutputBy=Patient"
    export = begin(served.client, asked, headers=headers)
    manifest = export.manifest()
    told = [one["issue"][0]["diagnostics"] for one in export.lines(manifest, "OperationOutcome")]
    assert any("_since" in text for text in told)
    assert any("organizeOutputBy" in text for text in told)
    assert set(export.ids(manifest)) == HELD


# --- what it refuses


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("_since=2026-01-01T00:00:00Z", "_since"),
        ("_until=2026-01-01T00:00:00Z", "_until"),
        ("_outputFormat=text/csv", "_outputFormat"),
        ("_type=Observation", "_type"),
        ("_typeFilter=Patient%3Fname%3Dx", "_typeFilter"),
        ("_typeFilter=ImagingStudy%3Fcolour%3Dred", "colour"),
        ("_typeFilter=ImagingStudy%3F_count%3D3", "_count"),
        ("_typeFilter=ImagingStudy%3F_profile%3Deu", "_profile"),
        ("_elements=ImagingStudy.identifer", "_elements"),
        ("_elements=started,colour", "_elements"),
        ("_elements=Patient.started", "_elements"),
        ("_typeFilter=ImagingStudy%3F_elements%3Did", "_elements"),
        ("_typeFilter=ImagingStudy%3F_include%3Aiterate%3DEndpoint%3Aorganization", "_include:iterate"),
        ("_typeFilter=ImagingStudy%3Fstarted%3Dsoon", "started"),
        ("_typeFilter=ImagingStudy%3Fpatient.name%3D%25FF", "patient.name"),
        (f"_typeFilter=ImagingStudy%3Fpatient.name%3D{'x' * 2000}", "patient.name"),
        ("_typeFilter=ImagingStudy%3FMoser%2520Anna%3D1", "the name of a parameter"),
        ("_type=Patient&_typeFilter=ImagingStudy%3Fmodality%3DCT", "_typeFilter"),
        ("_elements=Observation.code", "_elements"),
        ("includeAssociatedData=LatestProvenanceResources", "includeAssociatedData"),
        ("patient=Practitioner/1", "patient"),
        ("node=n99", "node"),
        ("patient=", "patient"),
        ("patient=,", "patient"),
        ("_type=", "_type"),
        ("_elements=", "_elements"),
        ("_typeFilter=", "_typeFilter"),
        ("_typeFilter=ImagingStudy%3Fpatient%3D", "patient"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(served: Gateway, query: str, named: str) -> None:
    answer = served.get(f"/fhir/$export?{query}", headers=ASYNC)
    assert answer.status_code in (400, 404)
    issue = answer.json()["issue"][0]
    assert named in issue["diagnostics"] + str(issue.get("expression"))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"resourceType": "Patient"}', b'{"resourceType": "Parameters", "parameter": [{}]}',
             b'{"resourceType": "Parameters", "parameter": [{"name": "_type", "valueInteger": 3}]}',
             b'{"resourceType": "Parameters", "parameter": 7}', b'{"resourceType": "Parameters", "parameter": {}}'],
)  # fmt: skip
def test_a_body_that_is_no_parameters_is_refused(served: Gateway, body: bytes) -> None:
    headers = {**ASYNC, "Content-Type": "application/fhir+json"}
    answer = served.client.post("/fhir/$export", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_the_plus_of_a_format_need_not_be_percent_encoded(served: Gateway) -> None:
    assert begin(served.client, "/fhir/$export?_type=Endpoint&_outputFormat=application/fhir+ndjson").manifest()[
        "output"
    ]


@pytest.mark.parametrize("name", ["node", "_format"])
def test_what_is_read_from_the_query_alone_is_refused_in_a_body(served: Gateway, name: str) -> None:
    body = {"resourceType": "Parameters", "parameter": [{"name": name, "valueString": "n00"}]}
    answer = served.client.post("/fhir/$export", headers=ASYNC, json=body)
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["expression"] == [f"http.{name}"]


def test_without_respond_async_the_caller_is_told_what_to_send(served: Gateway) -> None:
    answer = served.get("/fhir/$export", headers={"Accept": "application/fhir+json"})
    assert answer.status_code == 400
    assert "Prefer: respond-async" in answer.json()["issue"][0]["diagnostics"]


def test_what_is_told_of_a_beginning_and_an_end_is_no_error(served: Gateway) -> None:
    begun = served.client.get("/fhir/$export", params={"_type": "Endpoint"}, headers=ASYNC)
    ended = served.client.delete(begun.headers["content-location"])
    for answer in (begun, ended):
        (issue,) = answer.json()["issue"]
        assert (answer.status_code, issue["severity"], list(issue["details"])) == (202, "information", ["text"])


def test_another_type_than_json_is_not_acceptable(served: Gateway) -> None:
    assert served.get("/fhir/$export", headers={**ASYNC, "Accept": "image/png"}).status_code == 406


def test_a_head_begins_nothing(served: Gateway) -> None:
    assert served.client.head("/fhir/$export", headers=ASYNC).status_code == 405


@pytest.mark.parametrize("name", ["job.json", "00000001.json", "..%2Fjob.json", "x"])
def test_only_what_the_manifest_lists_is_served(whole: tuple[Export, dict[str, Any]], name: str) -> None:
    assert whole[0].client.get(f"{whole[0].url}/{name}").status_code == 404


def test_a_range_of_a_file_has_the_bytes_that_it_says(whole: tuple[Export, dict[str, Any]]) -> None:
    export, manifest = whole
    url = next(file["url"] for file in manifest["output"] if file["type"] == "ImagingStudy")
    content = export.client.get(url, headers={"Accept-Encoding": "identity"}).content
    part = export.client.get(url, headers={"Accept-Encoding": "gzip", "Range": "bytes=1000-2999"})
    assert part.status_code == 206
    assert "content-encoding" not in part.headers
    assert part.content == content[1000:3000]


def test_who_asks_too_often_is_told_to_wait(served: Gateway) -> None:
    export = begin(served.client)
    answers = [export.poll() for _ in range(15)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    assert export.over().status_code == 200


def test_a_cancelled_export_is_gone_and_so_are_its_lines(served: Gateway) -> None:
    export = begin(served.client)
    kept = Path(served.app.state.settings.export_directory) / export.url.rpartition("/")[2]  # type: ignore[union-attr]
    assert kept.stat().st_mode & 0o777 == 0o700
    assert served.client.delete(export.url).status_code == 202
    assert export.poll().status_code == 404
    assert served.client.delete(export.url).status_code == 404
    assert not kept.exists()


def test_a_file_that_is_taken_away_while_it_is_asked_for_is_not_there(nodes: CatalogueNodes, tmp_path: Path) -> None:
    with Gateway(nodes.tables(quirks=[]), export_directory=tmp_path / "kept") as running:
        (file,) = begin(running.client, "/fhir/$export?_type=Endpoint").manifest()["output"]
        (there,) = (tmp_path / "kept").rglob("*.ndjson")
        there.unlink()
        assert running.client.get(file["url"]).status_code == 404


def test_the_lines_of_a_finished_export_can_be_deleted(served: Gateway) -> None:
    export = begin(served.client, "/fhir/$export?_type=Endpoint")
    manifest = export.manifest()
    assert served.client.delete(export.url).status_code == 202
    assert served.client.get(manifest["output"][0]["url"]).status_code == 404


# --- bounds


def test_a_caller_has_so_many_exports_under_way_and_no_more(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(quirks=[]), export_at_once=0, export_jobs_per_caller=1) as running:
        begin(running.client)
        answer = running.get("/fhir/$export", headers=ASYNC)
        assert answer.status_code == 429
        assert "retry-after" in answer.headers


def test_who_begins_many_exports_at_once_has_no_more_of_them(nodes: CatalogueNodes) -> None:
    async def begun(url: str) -> list[int]:
        async with httpx.AsyncClient(headers=ASYNC, timeout=30) as client:
            await asyncio.gather(*(client.get(f"{url}/fhir/metadata") for _ in range(20)))
            answers = await asyncio.gather(*(client.get(f"{url}/fhir/$export") for _ in range(20)))
        return [answer.status_code for answer in answers]

    with Gateway(nodes.tables(quirks=[]), export_at_once=0, export_jobs_per_caller=1) as running:
        assert sorted(asyncio.run(begun(running.url))) == [202, *[429] * 19]


def test_lines_beyond_the_ceiling_end_the_export_with_a_word(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(quirks=[]), export_bytes=50_000, export_page=100) as running:
        answer = begin(running.client).over()
        assert answer.status_code == 413
        assert "GATEWAY_EXPORT_BYTES" in answer.json()["issue"][0]["diagnostics"]


def test_an_export_that_found_no_room_leaves_its_room_to_others(nodes: CatalogueNodes, tmp_path: Path) -> None:
    given: dict[str, Any] = {"export_bytes": 100_000, "export_page": 20, "export_directory": tmp_path / "kept"}
    with Gateway(nodes.tables(quirks=[]), **given) as running:
        assert begin(running.client).over().status_code == 413
        eventually(lambda: not list((tmp_path / "kept").rglob("*.ndjson")))
        few = "/fhir/$export?_type=ImagingStudy&_typeFilter=ImagingStudy%3Fmodality%3DMR&_elements=started"
        assert begin(running.client, few).manifest()["output"]


def test_exports_can_be_turned_off(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(quirks=[]), export_bytes=0) as running:
        assert running.get("/fhir/$export", headers=ASYNC).status_code == 404
        assert "operation" not in running.get("/fhir/metadata").text


@pytest.mark.parametrize("root", ["/fhir/r4", "/fhir/r5"])
def test_the_capability_statement_names_each_level_that_can_be_exported(served: Gateway, root: str) -> None:
    (rest,) = served.get(f"{root}/metadata").json()["rest"]
    levels = {resource["type"]: resource.get("operation") for resource in [{**rest, "type": ""}, *rest["resource"]]}
    defined = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition"
    assert {type_: operations for type_, operations in levels.items() if operations} == {
        "": [{"name": "export", "definition": f"{defined}/export"}],
        "Patient": [{"name": "export", "definition": f"{defined}/patient-export"}],
    }


def test_an_export_expires(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(quirks=[]), export_seconds=4.0) as running:
        export = begin(running.client, "/fhir/$export?_type=Endpoint")
        export.manifest()
        eventually(lambda: export.poll().status_code == 404)


def test_without_any_redis_it_works_in_one_process(nodes: CatalogueNodes) -> None:
    with Gateway(nodes.tables(quirks=[]), cache=False, **FAST) as running:
        export = begin(running.client)
        assert set(export.ids(export.manifest())) == HELD


@pytest.mark.parametrize("narrowed", ["patient={}", "_typeFilter=ImagingStudy%3Fsubject%3D{}&_type=ImagingStudy"])
def test_a_replica_that_never_gave_out_a_patient_s_id_exports_his_studies(
    nodes: CatalogueNodes, tmp_path: Path, narrowed: str
) -> None:
    given: dict[str, Any] = {"export_directory": tmp_path / "kept", "secret": "the same at both replicas"}
    tables = nodes.tables(quirks=[])
    with Gateway(tables, export_at_once=0, **given) as first:
        some = first.get("/fhir/ImagingStudy?_count=1").json()["entry"][0]["resource"]
        whose = some["subject"]["reference"]
        begun = begin(first.client, f"/fhir/$export?{narrowed.format(whose)}")
    with Gateway(tables, **given) as second:
        export = Export(second.client, begun.url.replace(first.url, second.url))
        studies = list(export.lines(export.manifest(), "ImagingStudy"))
    assert some["id"] in {one["id"] for one in studies}
    assert {one["subject"]["reference"] for one in studies} == {whose}


# --- what is missing is named


def test_a_node_that_fails_is_named_and_the_rest_is_there(
    nodes: CatalogueNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAUSES", (0.1, 0.1, 0.1))
    silent = {"id": "silent", "name": "silent", "adapter": "dicomweb"}
    silent |= {"connection": {"url": f"http://127.0.0.1:{free_ports(1)[0]}"}}
    with Gateway([*nodes.tables(quirks=[]), silent], **FAST) as running:
        export = begin(running.client)
        manifest = export.manifest()
        outcomes = list(export.lines(manifest, "OperationOutcome"))
        assert len(manifest["error"]) == 1
        assert any("silent" in one["issue"][0]["diagnostics"] for one in outcomes)
        assert all(one["issue"][0]["severity"] == "warning" for one in outcomes)
        assert set(export.ids(manifest)) == HELD
        assert export.ids(manifest, "Patient")


def test_a_node_that_stops_at_its_maximum_is_named(nodes: CatalogueNodes) -> None:
    row = {**ROWS[0][0], "StudyDate": "20200101", "StudyTime": "101010", "PatientID": "A1"}
    crowd = [{**row, "StudyInstanceUID": f"2.25.{number}"} for number in range(1000, 1060)]
    with (
        catalogue_nodes([crowd], maximum=20) as small,
        Gateway(small.tables(quirks=[], node_maximum=20), **FAST) as running,
    ):
        export = begin(running.client, "/fhir/$export?_type=ImagingStudy")
        manifest = export.manifest()
        told = [one["issue"][0] for one in export.lines(manifest, "OperationOutcome")]
        assert any(issue["code"] == "incomplete" and "n00" in issue["diagnostics"] for issue in told)


@pytest.mark.parametrize("names", [("silent",), ("silent", "mute")], ids=["one", "two"])
def test_an_export_of_silence_is_an_error_that_is_no_reason_to_ask_again(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(pages, "_PAUSES", (0.1,))
    ports = free_ports(len(names))
    nodes = [
        {"id": name, "name": name, "adapter": "dicomweb", "connection": {"url": f"http://127.0.0.1:{port}"}}
        for name, port in zip(names, ports, strict=True)
    ]
    with Gateway(nodes) as running:
        answer = begin(running.client).over()
    (issue,) = answer.json()["issue"]
    assert answer.status_code == 503
    assert all(name in issue["diagnostics"] for name in names)
    assert issue["code"] == "processing"


def test_a_node_that_fails_for_a_moment_costs_nothing() -> None:
    with catalogue_nodes(ROWS[:1]) as one, Flaky(int(one[0].rpartition(":")[2])) as flaky:
        (table,) = one.tables(quirks=[])
        table["connection"] = {"url": f"http://127.0.0.1:{flaky.port}"}
        with Gateway([table], export_page=50) as running:
            flaky.hang_up("/studies?", 4)
            export = begin(running.client, "/fhir/$export?_type=ImagingStudy")
            manifest = export.manifest()
            assert flaky.left == 0
            assert manifest["error"] == []
            assert set(export.ids(manifest)) == {row["StudyInstanceUID"] for row in ROWS[0]}


# --- whose data it is


def test_two_patients_12345_of_two_hospitals_stay_two() -> None:
    def study(number: int, issuer: str, name: str) -> dict[str, Any]:
        own = {"PatientID": "12345", "IssuerOfPatientID": issuer, "PatientName": name}
        return {**ROWS[0][0], **own, "StudyInstanceUID": f"2.25.{number}"}

    two = [[study(1, "NORTH", "Berg^Anna"), study(2, "NORTH", "Berg^Anna")], [study(3, "SOUTH", "Thal^Ben")]]
    with catalogue_nodes(two) as hospitals, Gateway(hospitals.tables(quirks=[]), export_page=10) as running:
        export = begin(running.client)
        manifest = export.manifest()
        patients = {one["id"]: one for one in export.lines(manifest, "Patient")}
        studies = {one["id"]: one["subject"]["reference"] for one in export.lines(manifest, "ImagingStudy")}
        bare = begin(running.client, "/fhir/$export?_typeFilter=ImagingStudy%3Fpatient.identifier%3D12345").over()
    assert bare.status_code == 409
    assert "NORTH" in bare.text
    assert "SOUTH" in bare.text
    assert len(patients) == 2
    assert {one["name"][0]["family"] for one in patients.values()} == {"Berg", "Thal"}
    assert all([identifier["value"] for identifier in one["identifier"]] == ["12345"] for one in patients.values())
    assert studies["2.25.1"] == studies["2.25.2"] != studies["2.25.3"]


def test_one_uid_of_two_patients_on_pages_far_apart_is_two_studies_with_an_id_each() -> None:
    rows = made_up(400, nodes=2, shared=0.0)
    newest, oldest = max(rows[0], key=lambda row: row["StudyDate"]), min(rows[1], key=lambda row: row["StudyDate"])
    oldest["StudyInstanceUID"] = newest["StudyInstanceUID"]
    with catalogue_nodes(rows) as hospitals, Gateway(hospitals.tables(quirks=[]), export_page=20) as running:
        export = begin(running.client, "/fhir/$export?_type=ImagingStudy")
        lines = list(export.lines(export.manifest(), "ImagingStudy"))
        uid = f"urn:oid:{newest['StudyInstanceUID']}"
        both = [one for one in lines if one["identifier"][0]["value"] == uid]
        read = [running.get(f"/fhir/ImagingStudy/{one['id']}") for one in both]
    assert len(lines) == 400
    assert [one["subject"]["identifier"]["value"] for one in both] == [newest["PatientID"], oldest["PatientID"]]
    assert both[0]["id"] == newest["StudyInstanceUID"] != both[1]["id"]
    assert [one.status_code for one in read] == [409, 200]
    assert read[1].json()["subject"]["identifier"]["value"] == oldest["PatientID"]
