"""Judges: fhirpy and fhirclient, the two FHIR clients of Python. Search, pages, references, includes and reads, in R4."""

from __future__ import annotations

from typing import Any

import pytest
from fhirclient import client as smart
from fhirclient.models.endpoint import Endpoint
from fhirclient.models.imagingstudy import ImagingStudy
from fhirclient.models.organization import Organization
from fhirclient.models.patient import Patient
from fhirclient.server import FHIRNotFoundException
from fhirpy import AsyncFHIRClient, SyncFHIRClient
from fhirpy.base.exceptions import OperationOutcome, ResourceNotFound
from fhirpy.lib import SyncFHIRSearchSet

from tests.judges.conftest import Judged, operations_of
from tests.shelf import HeldStudy

pytestmark = pytest.mark.interop

USED = {
    SyncFHIRClient: {"resources", "reference", "execute", "get"},
    SyncFHIRSearchSet: {
        "search", "limit", "sort", "include", "fetch", "fetch_all", "fetch_raw", "first", "get", "count", "clone",
        "elements", "revinclude", "has",
    },
}  # fmt: skip
WRITES = "the gateway's FHIR is read-only"
NOT_USED = {
    **dict.fromkeys(("create", "delete", "patch", "save", "update", "get_or_create"), WRITES),
    "resource": "makes what is to be written",
    "execute": "of a SearchSet: an operation on a type, and there is none",
    "resource_class": "asks nobody",
    "searchset_class": "asks nobody",
}


@pytest.mark.parametrize("client", USED, ids=lambda client: client.__name__)
def test_every_operation_of_the_client_is_used_or_left_out_with_a_reason(client: type) -> None:
    assert operations_of(client) - USED[client] - NOT_USED.keys() == set()
    assert operations_of(client) >= USED[client]


@pytest.fixture
def fhirpy(judged: Judged) -> SyncFHIRClient:
    return SyncFHIRClient(judged.fhir)


@pytest.fixture
def fhirclient(judged: Judged) -> smart.FHIRClient:
    return smart.FHIRClient(settings={"app_id": "judge", "api_base": judged.fhir})


def study_uid(resource: Any) -> str:
    return str(resource["identifier"][0]["value"].removeprefix("urn:oid:"))


def uid_token(study: HeldStudy) -> str:
    return f"urn:dicom:uid|urn:oid:{study.uid}"


def test_fhirpy_finds_every_study_page_by_page(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    whole = fhirpy.resources("ImagingStudy").limit(100).fetch_all()
    paged = fhirpy.resources("ImagingStudy").limit(4).fetch_all()
    assert [each.id for each in paged] == [each.id for each in whole]
    assert set(judged.named([study_uid(each) for each in whole])) == {study.uid for study in judged.studies}
    assert fhirpy.resources("ImagingStudy").count() == len(whole)
    first = fhirpy.resources("ImagingStudy").limit(4).fetch()
    assert [each.id for each in first] == [each.id for each in whole[:4]]


def test_fhirpy_finds_a_study_by_what_describes_it(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    for study in judged.studies[:6]:
        found = fhirpy.resources("ImagingStudy").search(identifier=uid_token(study))
        only = found.get()
        assert study_uid(only) == study.uid
        assert only["numberOfInstances"] == len(study.files)
        by_modality = found.clone().search(modality=sorted(study.modalities)[0])
        assert by_modality.first()["id"] == only["id"]
        if day := study.text("StudyDate"):
            started = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            assert found.search(started=started).fetch()[0]["id"] == only["id"]
            assert found.search(started__lt=started).fetch() == []


def test_fhirpy_follows_references_and_includes(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    study = judged.studies[0]
    search = fhirpy.resources("ImagingStudy").search(identifier=uid_token(study))
    bundle = search.include("ImagingStudy", "endpoint").include("ImagingStudy", "subject").fetch_raw()
    kinds = [entry["resource"]["resourceType"] for entry in bundle["entry"]]
    assert kinds.count("ImagingStudy") == kinds.count("Patient") == 1
    assert kinds.count("Endpoint") == 5
    found = search.get()
    patient = found["subject"].to_resource()
    assert study.text("PatientID") in [each["value"] for each in patient["identifier"]]
    endpoint = found["endpoint"][0].to_resource()
    assert endpoint["address"].startswith(judged.gateway.url)
    again = fhirpy.resources("ImagingStudy").search(patient=f"Patient/{patient['id']}").fetch_all()
    assert study.uid in [study_uid(each) for each in again]
    read = fhirpy.reference("ImagingStudy", found["id"]).to_resource()
    instances = {one["uid"] for series in read["series"] for one in series["instance"]}
    assert instances == {file.uid for file in study.files}


def test_fhirpy_is_shown_the_elements_that_it_wants(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    found = fhirpy.resources("ImagingStudy").elements("started", "identifier").limit(100).fetch()
    assert set(judged.named([study_uid(each) for each in found])) == {study.uid for study in judged.studies}
    shown = {"resourceType", "id", "meta", "identifier", "started", "status", "subject"}
    assert all(set(each) <= shown for each in found)
    assert all(each["meta"]["tag"][0]["code"] == "SUBSETTED" for each in found)


def test_fhirpy_finds_by_modifiers_and_chains(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    studies = fhirpy.resources("ImagingStudy").limit(100)
    for code in ("CT", "MR"):
        other = studies.search(modality__not=code).fetch()
        wanted = {study.uid for study in judged.studies if code not in study.modalities}
        assert set(judged.named([study_uid(each) for each in other])) == wanted
    for study in judged.few:
        found = studies.search(patient__identifier=study.text("PatientID")).fetch()
        assert study.uid in [study_uid(each) for each in found]


def test_fhirpy_is_given_a_patient_s_studies_with_it(judged: Judged, fhirpy: SyncFHIRClient) -> None:
    study = judged.studies[0]
    found = fhirpy.resources("ImagingStudy").search(identifier=uid_token(study)).get()
    identifier = found["subject"]["reference"].removeprefix("Patient/")
    search = fhirpy.resources("Patient").search(_id=identifier).revinclude("ImagingStudy", "patient")
    given = [entry["resource"] for entry in search.fetch_raw()["entry"]]
    assert [each["id"] for each in given if each["resourceType"] == "Patient"] == [identifier]
    assert study.uid in [study_uid(each) for each in given if each["resourceType"] == "ImagingStudy"]
    with pytest.raises(OperationOutcome, match="_has:Observation:patient:code"):
        fhirpy.resources("Patient").has("Observation", "patient", code="x").fetch()


def test_fhirpy_sorts(fhirpy: SyncFHIRClient) -> None:
    moments = [
        each.get("started", "") for each in fhirpy.resources("ImagingStudy").sort("started").limit(100).fetch_all()
    ]
    dated = [moment[:10] for moment in moments if moment]
    assert len(dated) > 8
    assert dated == sorted(dated)


def test_fhirpy_is_told_what_is_wrong(fhirpy: SyncFHIRClient) -> None:
    with pytest.raises(OperationOutcome, match="nosuchparameter"):
        fhirpy.resources("ImagingStudy").search(nosuchparameter="1").fetch()
    with pytest.raises(ResourceNotFound):
        fhirpy.reference("ImagingStudy", "no-such-id").to_resource()


def test_fhirpy_reads_the_capability_statement(fhirpy: SyncFHIRClient) -> None:
    told = fhirpy.execute("metadata", method="get")
    assert told["fhirVersion"] == "4.0.1"
    assert "ImagingStudy" in [each["type"] for each in told["rest"][0]["resource"]]


async def test_fhirpy_asks_without_waiting_too(judged: Judged) -> None:
    client = AsyncFHIRClient(judged.fhir)
    found = [each async for each in client.resources("ImagingStudy").limit(5)]
    assert set(judged.named([study_uid(each) for each in found])) == {study.uid for study in judged.studies}


def test_fhirclient_finds_every_study_page_by_page(judged: Judged, fhirclient: smart.FHIRClient) -> None:
    found = list(ImagingStudy.where({"_count": "4"}).perform_resources_iter(fhirclient.server))
    uids = [each.identifier[0].value.removeprefix("urn:oid:") for each in found]
    assert set(judged.named(uids)) == {study.uid for study in judged.studies}
    assert len({each.id for each in found}) == len(found)


def test_fhirclient_reads_what_it_found_and_what_that_refers_to(judged: Judged, fhirclient: smart.FHIRClient) -> None:
    server = fhirclient.server
    for study in judged.studies[:4]:
        [found] = ImagingStudy.where({"identifier": uid_token(study)}).perform_resources_iter(server)
        read = ImagingStudy.read(found.id, server)
        assert {one.uid for series in read.series for one in series.instance} == {file.uid for file in study.files}
        assert {series.modality.code for series in read.series} == study.modalities
        patient = Patient.read(found.subject.reference.removeprefix("Patient/"), server)
        assert study.text("PatientID") in [each.value for each in patient.identifier]
        endpoint = Endpoint.read(found.endpoint[0].reference.removeprefix("Endpoint/"), server)
        assert endpoint.connectionType.code == "dicom-wado-rs"
        owner = endpoint.managingOrganization.reference.removeprefix("Organization/")
        assert Organization.read(owner, server).name


def test_fhirclient_knows_the_server_and_is_told_what_is_not_there(fhirclient: smart.FHIRClient) -> None:
    assert fhirclient.prepare()
    assert fhirclient.server.capabilityStatement.fhirVersion == "4.0.1"
    with pytest.raises(FHIRNotFoundException):
        ImagingStudy.read("no-such-id", fhirclient.server)
