"""ImagingStudy in the profile asked for: what each profile wants is there, and only what meets one claims it."""

from __future__ import annotations

from typing import Any

import fhirkit
import pytest
from fhir.resources import get_fhir_model_class as r5_class
from fhir.resources.R4B import get_fhir_model_class as r4b_class
from fhir_rules import faults
from national_nodes import Demo

from gateway.edge.fhir import profiles
from tests.running import Gateway

Resource = dict[str, Any]
EU = "http://hl7.eu/fhir/imaging/StructureDefinition/ImagingStudyEuImaging"
MII = "https://www.medizininformatik-initiative.de/fhir/ext/modul-bildgebung/StructureDefinition/mii-pr-bildgebung-bildgebungsstudie"
REGION = "http://hl7.eu/fhir/StructureDefinition/anatomical-region"
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
ROOTS = {"/fhir/r4": "R4", "/fhir/r5": "R5"}


def studies(demo: Demo, root: str, query: str) -> list[Resource]:
    """Read one by one, as searches give no instances."""
    answer = demo.get(f"{root}/ImagingStudy?{query}&_count=1000")
    assert answer.status_code == 200, answer.text[:300]
    found = [e["resource"]["id"] for e in answer.json()["entry"] if e["search"]["mode"] == "match"]
    profile = query.partition("_profile=")[2].partition("&")[0]
    return [demo.get(f"{root}/ImagingStudy/{each}?_profile={profile}").json() for each in found]


def codings(coded: Resource) -> list[Resource]:
    return coded.get("coding", [coded])


@pytest.mark.parametrize("root", ROOTS)
def test_the_european_profile_has_typed_identifiers_the_order_and_the_region(demo: Demo, root: str) -> None:
    found = studies(demo, root, f"_profile={EU}")
    claimed = [one for one in found if one.get("meta", {}).get("profile") == [EU]]
    assert claimed
    for one in found:
        (uid,) = [each for each in one["identifier"] if each.get("system") == "urn:dicom:uid"]
        assert uid["type"]["coding"] == [{"system": DCM, "code": "110180", "display": "Study Instance UID"}]
        assert uid["value"].startswith("urn:oid:")
        issued = all("system" in order["identifier"] for order in one.get("basedOn", ()))
        assert (one in claimed) == (issued and "reference" in one["subject"])
        for order in one.get("basedOn", ()):
            types = {(each["system"], each["code"]) for each in order["identifier"]["type"]["coding"]}
            assert types == {(V2_0203, "ACSN"), (DCM, "121022")}
        for series in one["series"]:
            absent = "extension" in series["modality"]
            assert absent or all(each["system"] == DCM for each in codings(series["modality"]))
    with_region = [one for one in found if any(each["url"] == REGION for each in one.get("extension", ()))]
    breast = [one for one in with_region if "76752008" in str(one["extension"])]
    assert breast
    for one in breast:
        sites = [series["bodySite"] for series in one["series"] if "bodySite" in series]
        coded = [coding for site in sites for coding in codings(site.get("concept", site))]
        assert {"system": SCT, "code": "76752008", "display": "BREAST"} in coded


def test_the_german_profile_is_claimed_where_its_required_bindings_hold(demo: Demo) -> None:
    found = studies(demo, "/fhir/r4", "_profile=mii")
    claimed = [one for one in found if one.get("meta", {}).get("profile") == [MII]]
    assert claimed
    assert any(one not in claimed for one in found)
    for one in found:
        coded = [s[name] for s in one["series"] for name in ("modality", "bodySite", "laterality") if name in s]
        assert (one in claimed) == all("code" in each for each in coded)
        for series in one["series"]:
            for instance in series["instance"]:
                assert instance["sopClass"]["system"] == "urn:ietf:rfc:3986"
                assert instance["sopClass"]["code"].startswith("urn:oid:1.2.840.10008.")


def test_a_body_part_without_a_concept_keeps_its_dicom_term(demo: Demo) -> None:
    sites = [
        s["bodySite"] for one in studies(demo, "/fhir/r4", "_profile=mii") for s in one["series"] if "bodySite" in s
    ]
    assert all(site["display"] for site in sites)
    assert {"code" in site for site in sites} == {True, False}


@pytest.mark.parametrize(
    ("root", "profile"), [("/fhir/r4", "eu"), ("/fhir/r5", "eu"), ("/fhir/r4", "mii"), ("/fhir/r5", "base")]
)
def test_every_profile_is_valid_fhir(demo: Demo, root: str, profile: str) -> None:
    find = r5_class if root.endswith("r5") else r4b_class
    for body in [
        demo.get(f"{root}/ImagingStudy?_profile={profile}&_count=1000").json(),
        *studies(demo, root, f"_profile={profile}"),
    ]:
        find(body["resourceType"]).model_validate(body)
        assert faults(body) == []
        if root.endswith("r4"):
            assert [str(issue) for issue in fhirkit.validate(body)] == []


def test_a_search_says_when_a_result_cannot_meet_the_profile(demo: Demo) -> None:
    bundle = demo.get("/fhir/ImagingStudy?_profile=eu&node=ee-tartu&_count=100").json()
    matches = [e["resource"] for e in bundle["entry"] if e["search"]["mode"] == "match"]
    told = [i for e in bundle["entry"] if e["search"]["mode"] == "outcome" for i in e["resource"]["issue"]]
    all_met = all(one.get("meta", {}).get("profile") == [EU] for one in matches)
    assert all_met == (not [issue for issue in told if issue.get("expression") == ["http._profile"]])
    assert not all_met
    assert demo.get(next(link["url"] for link in bundle["link"] if link["relation"] == "self")).json() == bundle


def test_a_profile_that_there_is_not_is_refused_by_name(demo: Demo) -> None:
    for path in ("/fhir/ImagingStudy?_profile=http://elsewhere.example", "/fhir/r5/ImagingStudy?_profile=mii",
                 "/fhir/r5/ImagingStudy/1.2.3?_profile=mii", f"/fhir/ImagingStudy?_profile={EU}&_profile=mii"):  # fmt: skip
        answer = demo.get(path)
        assert answer.status_code == 400, path
        assert answer.json()["issue"][0]["expression"] == ["http._profile"]


def test_the_configured_profile_is_that_of_requests_that_name_none(demo: Demo) -> None:
    with Gateway([table for table in demo.tables if table["id"] == "de-berlin"], fhir_profile="mii") as gateway:
        for root, names in (("/fhir/r4", {MII}), ("/fhir/r5", set())):
            entries = gateway.get(f"{root}/ImagingStudy?_count=100").json()["entry"]
            found = [e["resource"] for e in entries if e["search"]["mode"] == "match"]
            assert {url for one in found for url in one.get("meta", {}).get("profile", ())} == names
        asked = gateway.get("/fhir/ImagingStudy?_profile=base&_count=100").json()["entry"]
        assert not any("profile" in e["resource"].get("meta", {}) for e in asked)


def test_every_body_part_that_has_a_concept_lies_in_a_region() -> None:
    from gateway.model.anatomy import BODY_PARTS

    spanning = {"CHESTABDOMEN", "CHESTABDPELVIS"}  # two regions
    assert {term for term in BODY_PARTS.values() if term not in profiles._REGION_OF} == spanning
