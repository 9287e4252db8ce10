"""The planted cases, asked by raw HTTP: what must be one is one, what must be two stays two, and what is missing is named."""

from __future__ import annotations

from typing import Any

import pytest
from national_nodes import DEAD, Demo, attribute

STUDY, ISSUER, PATIENT_ID = "0020000D", "00100021", "00100020"
RETRIEVE_URL, HOLDERS, SERIES_COUNT, INSTANCE_COUNT = "00081190", "00080054", "00201206", "00201208"


def rows(demo: Demo, **parameters: str) -> list[dict[str, Any]]:
    answer = demo.get("/dicom-web/studies", params=parameters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def bundle(demo: Demo, **parameters: str) -> dict[str, Any]:
    answer = demo.get("/fhir/ImagingStudy", params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def matches(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in found.get("entry", []) if entry["search"]["mode"] == "match"]


def by_uid(uid: str) -> str:
    return f"urn:dicom:uid|urn:oid:{uid}"


def uid_of(resource: dict[str, Any]) -> str:
    """The StudyInstanceUID of an ImagingStudy."""
    return str(resource["identifier"][0]["value"]).removeprefix("urn:oid:")


def part_count(demo: Demo, path: str) -> int:
    answer = demo.get(path)
    assert answer.status_code == 200, answer.text
    return answer.content.count(b"\r\nContent-Type: application/dicom")


def test_every_node_that_is_up_answers(demo: Demo) -> None:
    answered = {node for row in rows(demo) for node in attribute(row, HOLDERS)}
    assert answered == set(demo.corpus.nodes) - {DEAD}


def test_the_failing_node_is_named_by_both_edges_and_nothing_is_kept(demo: Demo) -> None:
    for path in ("/dicom-web/studies", "/dicom-web/studies?StudyDate=20250403"):
        answer = demo.get(path)
        (warning,) = answer.headers.get_list("warning")
        assert warning.startswith(f"299 {demo.url}/dicom-web ")
        assert DEAD in warning
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers
    for root in ("/fhir", "/fhir/r4", "/fhir/r5"):
        answer = demo.get(f"{root}/ImagingStudy")
        (outcome,) = [e["resource"] for e in answer.json()["entry"] if e["search"]["mode"] == "outcome"]
        assert [DEAD in issue["diagnostics"] for issue in outcome["issue"]] == [True]
        assert "total" not in answer.json(), "what is not complete is not counted"
        assert answer.headers["cache-control"] == "no-store"


def test_only_the_dead_node_is_an_error_and_not_an_empty_list(demo: Demo) -> None:
    for path in (
        f"/nodes/{DEAD}/dicom-web/studies",
        f"/dicom-web/studies?node={DEAD}",
        f"/fhir/ImagingStudy?node={DEAD}",
    ):
        answer = demo.get(path)
        assert answer.status_code == 503
        assert DEAD in answer.text
        assert int(answer.headers["retry-after"]) > 0


def test_a_study_that_no_node_has_is_503_while_one_is_silent_and_404_when_all_said_no(demo: Demo) -> None:
    unknown = "/studies/1.2.3.4.5.6.7"
    silent = demo.get(f"/dicom-web{unknown}")
    assert (silent.status_code, "retry-after" in silent.headers) == (503, True)
    assert DEAD in silent.text
    assert demo.get(f"/nodes/es-madrid/dicom-web{unknown}").status_code == 404
    assert demo.get("/fhir/ImagingStudy/1.2.3.4.5.6.7").status_code == 503
    assert demo.get("/fhir/ImagingStudy/1.2.3.4.5.6.7?node=es-madrid,ee-tartu").status_code == 404


@pytest.mark.parametrize("case", ["uid-clash", "unlinked"])
def test_one_uid_of_two_patients_is_two_results_that_lead_to_one_node_each(demo: Demo, case: str) -> None:
    planted = demo.corpus.case(case)
    found = rows(demo, StudyInstanceUID=planted.study_uid)
    assert {(attribute(row, HOLDERS)[0], attribute(row, PATIENT_ID)[0]) for row in found} == {
        (study.node, study.patient_id) for study in planted.studies
    }
    for row in found:
        (node,) = attribute(row, HOLDERS)
        (url,) = attribute(row, RETRIEVE_URL)
        held = demo.corpus.nodes[node].study(planted.study_uid)
        assert url == f"{demo.url}/nodes/{node}/dicom-web/studies/{planted.study_uid}"
        assert part_count(demo, url) == len(held.instances)
        assert demo.get(f"{url}/metadata").json()[0][PATIENT_ID]["Value"] == [held.patient_id]


@pytest.mark.parametrize("case", ["uid-clash", "unlinked"])
def test_the_federated_root_does_not_choose_between_two_patients(demo: Demo, case: str) -> None:
    planted = demo.corpus.case(case)
    series = planted.studies[0].series[0]
    study = f"/dicom-web/studies/{planted.study_uid}"
    instance = f"{study}/series/{series.series_uid}/instances/{series.instances[0].sop_instance_uid}"
    paths = (
        study,
        f"{study}/metadata",
        instance,
        f"{instance}/metadata",
        f"{instance}/frames/1",
        f"{instance}/bulkdata/7FE00010",
    )
    for path in paths:
        answer = demo.get(path)
        assert answer.status_code == 409, path
        assert all(f"/nodes/{node}/dicom-web" in answer.json()["detail"] for node in planted.nodes)


@pytest.mark.parametrize("case", ["uid-clash", "unlinked"])
def test_a_clash_has_two_fhir_ids_and_the_bare_one_lists_both(demo: Demo, case: str) -> None:
    planted = demo.corpus.case(case)
    found = matches(bundle(demo, identifier=by_uid(planted.study_uid)))
    ids = {resource["id"]: resource for resource in found}
    assert len(ids) == 2
    bare = demo.get(f"/fhir/ImagingStudy/{planted.study_uid}")
    assert bare.status_code == 409
    assert all(identifier in bare.text for identifier in ids)
    patients = set()
    for identifier, searched in ids.items():
        whole = demo.get(f"/fhir/ImagingStudy/{identifier}").json()
        assert whole["subject"] == searched["subject"]
        assert whole["endpoint"] == searched["endpoint"]
        patients.add((whole["endpoint"][0]["reference"], whole["subject"]["identifier"]["value"]))
        node = whole["endpoint"][0]["reference"].removeprefix("Endpoint/")
        held = demo.corpus.nodes[node].study(planted.study_uid)
        assert whole["numberOfInstances"] == len(held.instances)
        (by_id,) = matches(bundle(demo, _id=identifier))
        assert by_id == searched
    assert patients == {(f"Endpoint/{study.node}", study.patient_id) for study in planted.studies}


def test_a_study_that_two_nodes_hold_is_one_with_two_endpoints(demo: Demo) -> None:
    planted = demo.corpus.case("shared-study")
    series, instances = len(planted.studies[0].series), len(planted.studies[0].instances)
    (row,) = rows(demo, StudyInstanceUID=planted.study_uid)
    assert set(attribute(row, HOLDERS)) == set(planted.nodes)
    assert (attribute(row, SERIES_COUNT), attribute(row, INSTANCE_COUNT)) == ([series], [instances])
    (searched,) = matches(bundle(demo, identifier=by_uid(planted.study_uid)))
    whole = demo.get(f"/fhir/ImagingStudy/{searched['id']}").json()
    for resource in (searched, whole):
        assert {each["reference"] for each in resource["endpoint"]} == {f"Endpoint/{node}" for node in planted.nodes}
        assert (resource["numberOfSeries"], resource["numberOfInstances"]) == (series, instances)
    assert part_count(demo, f"/dicom-web/studies/{planted.study_uid}") == instances


def test_a_split_study_is_whole(demo: Demo) -> None:
    planted = demo.corpus.case("split-study")
    series = {one.series_uid: len(one.instances) for study in planted.studies for one in study.series}
    instances, modalities = sum(series.values()), {m for study in planted.studies for m in study.modalities}
    (row,) = rows(demo, StudyInstanceUID=planted.study_uid)
    assert (attribute(row, SERIES_COUNT), attribute(row, INSTANCE_COUNT)) == ([len(series)], [instances])
    assert set(attribute(row, "00080061")) == modalities
    (searched,) = matches(bundle(demo, identifier=by_uid(planted.study_uid)))
    whole = demo.get(f"/fhir/ImagingStudy/{planted.study_uid}").json()
    for resource in (searched, whole):
        assert (resource["numberOfSeries"], resource["numberOfInstances"]) == (len(series), instances)
        assert {each["code"] for each in resource["modality"]} == modalities
    assert {one["uid"]: len(one["instance"]) for one in whole["series"]} == series
    assert part_count(demo, f"/dicom-web/studies/{planted.study_uid}") == instances
    for modality in modalities:
        assert [attribute(found, STUDY) for found in rows(demo, StudyDate="20250403", ModalitiesInStudy=modality)] == [
            [planted.study_uid]
        ]


@pytest.mark.parametrize("modality", ["CT", "RTSTRUCT"])
def test_a_split_study_is_whole_by_whatever_key_it_is_found(demo: Demo, modality: str) -> None:
    planted = demo.corpus.case("split-study")
    (row,) = rows(demo, StudyDate="20250403", ModalitiesInStudy=modality)
    assert set(attribute(row, HOLDERS)) == set(planted.nodes)
    assert attribute(row, INSTANCE_COUNT) == [sum(len(study.instances) for study in planted.studies)]


def test_a_bare_patient_id_of_two_people_is_refused_with_the_issuers_named(demo: Demo) -> None:
    for path in (
        "/dicom-web/studies?PatientID=12345",
        "/dicom-web/series?PatientID=12345",
        "/dicom-web/studies?PatientID=12345&StudyDate=20250101-20251231",
        "/fhir/ImagingStudy?patient.identifier=12345",
        "/fhir/ImagingStudy?subject:identifier=12345",
    ):
        answer = demo.get(path)
        assert answer.status_code == 409, path
        assert "SU-KRAKOW" in answer.text, path
        assert "HU-MADRID" in answer.text, path


def test_the_same_patient_id_works_once_it_says_whose_it_is(demo: Demo) -> None:
    for study in demo.corpus.case("shared-patient-id").studies:
        issuer = study.issuer or demo.corpus.nodes[study.node].hospital.patient_id_issuer
        (row,) = rows(demo, PatientID="12345", IssuerOfPatientID=issuer)
        assert (attribute(row, STUDY), attribute(row, ISSUER)) == ([study.study_uid], [issuer])
        (resource,) = matches(bundle(demo, identifier=by_uid(study.study_uid)))
        system = resource["subject"]["identifier"]["system"]
        (found,) = matches(bundle(demo, **{"patient.identifier": f"{system}|12345"}))
        assert found["id"] == study.study_uid
        alone = demo.get(f"/nodes/{study.node}/dicom-web/studies?PatientID=12345").json()
        assert [attribute(row, STUDY) for row in alone] == [[study.study_uid]]
        (found,) = matches(bundle(demo, **{"patient.identifier": "12345", "node": study.node}))
        assert found["id"] == study.study_uid


def test_patients_without_an_id_stay_apart(demo: Demo) -> None:
    planted = demo.corpus.case("no-patient-id")
    found = [row for row in rows(demo) if attribute(row, STUDY)[0] in planted.study_uids]
    assert {(attribute(row, STUDY)[0], tuple(attribute(row, HOLDERS))) for row in found} == {
        (study.study_uid, (study.node,)) for study in planted.studies
    }
    for study in planted.studies:
        (resource,) = matches(bundle(demo, identifier=by_uid(study.study_uid)))
        assert "reference" not in resource["subject"]
        assert "identifier" not in resource["subject"]
        assert part_count(demo, f"/dicom-web/studies/{study.study_uid}") == len(study.instances)


def test_undated_studies_come_last_in_both_directions(demo: Demo) -> None:
    dated = {study.study_uid for study in demo.corpus.studies() if study.study_date.isdecimal()}
    undated = {study.study_uid for study in demo.corpus.studies() if not study.study_date}
    assert demo.corpus.case("no-date").study_uid in undated
    lists = [[attribute(row, STUDY)[0] for row in rows(demo)]]
    for sort in ("-started", "started"):
        found = matches(bundle(demo, _sort=sort, _count="1000"))
        lists.append([uid_of(resource) for resource in found])
        assert not [resource["id"] for resource in found if resource["id"] in undated and "started" in resource]
    for listed in lists:
        first = min(listed.index(uid) for uid in undated)
        assert not dated & set(listed[first:])


def test_a_date_with_dots_sorts_as_a_date(demo: Demo) -> None:
    undated = {study.study_uid for study in demo.corpus.studies() if not study.study_date}
    listed = [attribute(row, STUDY)[0] for row in rows(demo)]
    assert set(listed[-len(undated) :]) == undated


def test_what_each_node_holds_is_what_its_own_root_counts(demo: Demo) -> None:
    for node in demo.corpus.nodes.values():
        if node.id == DEAD:
            continue
        for row in demo.get(f"/nodes/{node.id}/dicom-web/studies").json():
            held = node.study(attribute(row, STUDY)[0])
            given = attribute(row, SERIES_COUNT), attribute(row, INSTANCE_COUNT)
            assert given == ([len(held.series)], [len(held.instances)]), held.study_uid
