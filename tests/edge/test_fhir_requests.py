"""What a FHIR request may say besides its keys: the page it is on, the format it takes, how much it wants counted and included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.running import Gateway, files_node
from tests.specimens import specimen, uid


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("files")
    for number in range(5):
        specimen(directory, f"P{number}", f"s{number}", StudyDate=f"2026030{number + 1}", PatientName="Doe^J")
    with Gateway([files_node("disk", directory, patient_id_issuer="I")]) as running:
        yield running


def link(bundle: dict[str, Any], relation: str) -> str:
    return next((each["url"] for each in bundle["link"] if each["relation"] == relation), "")


def of_kind(bundle: dict[str, Any], kind: str) -> list[str]:
    found = (entry["resource"] for entry in bundle.get("entry", []))
    return [one["id"] for one in found if one["resourceType"] == kind]


# --- links


@pytest.mark.parametrize("search", ["ImagingStudy?_count=2", "Patient?name=Doe&_count=2", "Patient/_search"])
def test_each_page_s_own_link_is_its_own(gateway: Gateway, search: str) -> None:
    if search.endswith("_search"):
        bundle = gateway.client.post(f"/fhir/{search}", data={"name": "Doe", "_count": "2"}).json()
    else:
        bundle = gateway.get(f"/fhir/{search}").json()
    pages = [bundle]
    while onward := link(pages[-1], "next"):
        pages.append(gateway.get(onward).json())
        assert link(pages[-1], "self") == onward
    assert len(pages) == 3
    for page in pages:
        again = gateway.get(link(page, "self")).json()
        assert again["entry"] == page["entry"]


# --- formats and versions

JSON4, JSON5, XML4 = (
    f"application/fhir+{form}; fhirVersion={version}"
    for form, version in (("json", "4.0"), ("json", "5.0"), ("xml", "4.0"))
)


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("application/fhir+json;q=0, */*", XML4),
        ("application/json;q=0, application/*;q=0.5", XML4),
        ("*/*, application/fhir+xml;q=0", JSON4),
        ("*/*;q=0, application/fhir+xml", XML4),
        ("application/json;q=0, application/fhir+json", JSON4),
        ("application/fhir+json; fhirVersion=4.0; q=0, application/fhir+json", JSON5),
        ("application/fhir+json; fhirVersion=3.0, application/fhir+json; fhirVersion=5.0; q=0.5", JSON5),
        ("application/fhir+json; fhirVersion=3.0, application/fhir+xml", XML4),
        ("application/fhir+json; fhirVersion=4.0.1", JSON4),
        ("application/fhir+json; fhirVersion=3.0", ""),
        ("application/fhir+json; fhirVersion=4.01", ""),
        ("application/fhir+json; fhirVersion=4.3", ""),
        ("application/fhir+json;q=0", ""),
        ("application/json, application/fhir+json;q=0", ""),
        ("*/*, application/*;q=0", ""),
    ],
)
def test_what_is_refused_is_not_sent_and_what_is_not_had_is_passed_over(
    gateway: Gateway, accept: str, given: str
) -> None:
    answer = gateway.get("/fhir/ImagingStudy?_count=1", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"] if given else "") == (200 if given else 406, given)


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("application/fhir+json; fhirVersion=4.0", ""),
        ("application/fhir+json; fhirVersion=5.0; q=0, */*; q=0.1", XML4.replace("4.0", "5.0")),
        ("application/fhir+json; fhirVersion=5.0; q=0, application/fhir+json", ""),
    ],
)
def test_a_root_of_one_version_gives_no_other(gateway: Gateway, accept: str, given: str) -> None:
    answer = gateway.get("/fhir/r5/ImagingStudy?_count=1", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"] if given else "") == (200 if given else 406, given)


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("application/fhir+json; fhirVersion=3.0", ""),
        ("application/fhir+json; fhirVersion=5.0", JSON5),
        ("application/fhir json; fhirVersion=5.0", JSON5),
        ("application/fhir+xml;fhirVersion=4.0", XML4),
        ("xml", XML4),
    ],
)
def test_format_names_a_version_too(gateway: Gateway, form: str, given: str) -> None:
    answer = gateway.get("/fhir/ImagingStudy", params={"_format": form})
    if given:
        assert (answer.status_code, answer.headers["content-type"]) == (200, given)
    else:
        assert (answer.status_code, answer.json()["issue"][0]["expression"]) == (406, ["http._format"])


# --- how much


@pytest.mark.parametrize("search", ["ImagingStudy?", "Patient?name=Doe&", "Endpoint?"])
@pytest.mark.parametrize("total", ["none", "estimate", "accurate"])
def test_who_asks_for_the_count_alone_is_given_it(gateway: Gateway, search: str, total: str) -> None:
    """Whatever _total says: `none` only means that there is no need to count."""
    bundle = gateway.get(f"/fhir/{search}_summary=count&_total={total}").json()
    assert (bundle["total"], "entry" in bundle) == (1 if search == "Endpoint?" else 5, False)


@pytest.mark.parametrize("search", ["ImagingStudy?", "Patient?name=Doe&", "Endpoint?"])
def test_who_needs_no_total_is_given_none(gateway: Gateway, search: str) -> None:
    assert "total" not in gateway.get(f"/fhir/{search}_total=none").json()


@pytest.mark.parametrize(
    ("included", "kinds"),
    [
        ("_include:iterate=Endpoint:organization", ()),
        ("_include:iterate=Endpoint:organization:Organization&_include=ImagingStudy:patient", ("Patient",)),
        ("_include=ImagingStudy:endpoint&_include:iterate=Endpoint:organization", ("Endpoint", "Organization")),
        ("_include:iterate=Endpoint:organization&_include=ImagingStudy:endpoint", ("Endpoint", "Organization")),
        ("_include:iterate=ImagingStudy:endpoint&_include:iterate=Endpoint:organization", ("Endpoint", "Organization")),
        ("_include=*&_include:iterate=Endpoint:organization", ("Endpoint", "Organization", "Patient")),
    ],
)
def test_what_included_resources_refer_to_comes_with_those_that_refer_to_it(
    gateway: Gateway, included: str, kinds: tuple[str, ...]
) -> None:
    bundle = gateway.get(f"/fhir/ImagingStudy?{included}").json()
    everything = ("Endpoint", "Organization", "Patient")
    assert tuple(kind for kind in everything if of_kind(bundle, kind)) == kinds
    assert len(of_kind(bundle, "ImagingStudy")) == 5


# --- codes


@pytest.mark.parametrize("parameter", ["connection-type", "status", "connection-type:not"])
def test_a_system_without_a_code_is_refused_and_does_not_find_nothing(gateway: Gateway, parameter: str) -> None:
    system = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
    answer = gateway.get("/fhir/Endpoint", params={parameter: f"{system}|"})
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["expression"] == [f"http.{parameter}"]


# --- accession numbers


@pytest.mark.parametrize(
    "said", [{"LocalNamespaceEntityID": "RIS"}, {"UniversalEntityID": "1.2.3.4", "UniversalEntityIDType": "ISO"}]
)
@pytest.mark.parametrize("key", ["identifier", "based-on:identifier", "basedon:identifier"])
def test_an_accession_number_is_found_under_every_name_of_its_issuer(
    tmp_path: Path, said: dict[str, str], key: str
) -> None:
    item = Dataset()
    for keyword, value in said.items():
        setattr(item, keyword, value)
    specimen(tmp_path, "P", "s", AccessionNumber="ACC", IssuerOfAccessionNumberSequence=Sequence([item]))
    names = [{"issuer": "RIS", "oid": "1.2.3.4", "uri": "https://ris.example/accession"}]
    with Gateway([files_node("disk", tmp_path, patient_id_issuer="I", issuers=names)]) as gateway:
        for system in ("https://ris.example/accession", "urn:oid:1.2.3.4"):
            assert of_kind(found(gateway, key, f"{system}|ACC"), "ImagingStudy") == [uid("s")], system
        for system in ("https://other.example", "urn:oid:1.2.3.5", ""):
            assert of_kind(found(gateway, key, f"{system}|ACC"), "ImagingStudy") == [], system


def found(gateway: Gateway, key: str, value: str) -> dict[str, Any]:
    answer = gateway.get("/fhir/ImagingStudy", params={key: value})
    assert answer.status_code == 200, answer.text
    bundle: dict[str, Any] = answer.json()
    return bundle
