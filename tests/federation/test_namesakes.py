"""Who collects studies by their ids never takes two patients' for one, wherever and whenever each of them is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peers
import pytest
from running import Gateway, files_node
from specimens import linked_to, specimen, uid

STUDY = uid("one")


def studies(gateway: Gateway, **query: Any) -> list[dict[str, Any]]:
    bundle = gateway.get("/fhir/ImagingStudy", params=query).json()
    return [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == "match"]


def the_id(gateway: Gateway, **query: Any) -> str:
    (study,) = studies(gateway, **query)
    return str(study["id"])


def two_hospitals(folder: Path) -> list[dict[str, Any]]:
    """One UID, by mistake, for a study of 2010 at a and for another person's of 2020 at b."""
    specimen(folder / "a", "A1", "one", StudyDate="20100101")
    specimen(folder / "b", "B1", "one", "2", StudyDate="20200101")
    return [files_node(name, folder / name, patient_id_issuer=f"HOSPITAL-{name}") for name in ("a", "b")]


EARLY, LATE = {"started": "lt2015"}, {"started": "ge2015"}


@pytest.mark.parametrize("found", [EARLY, LATE], ids=["the earlier first", "the later first"])
def test_two_searches_that_find_one_patient_each_under_one_uid_give_two_ids(tmp_path: Path, found: Any) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        first = the_id(gateway, **found)
        second = the_id(gateway, **(LATE if found is EARLY else EARLY))
        assert first == STUDY, "nothing tells of another one yet"
        assert second != first
        again = gateway.get(f"/fhir/ImagingStudy/{second}").json()
        assert again["subject"]["identifier"]["value"] == ("B1" if found is EARLY else "A1")
        refused = gateway.get(f"/fhir/ImagingStudy/{first}")
        assert refused.status_code == 409, "what was named by the UID alone names neither now"
        assert second in refused.text
        assert {study["id"] for study in studies(gateway)} >= {second}


def test_two_pages_of_one_search_never_give_one_id_to_two_patients(tmp_path: Path) -> None:
    nodes = two_hospitals(tmp_path)
    with Gateway(nodes) as gateway:
        first = gateway.get("/fhir/ImagingStudy", params={"_count": 1}).json()
        following = next(link["url"] for link in first["link"] if link["relation"] == "next")
        second = gateway.get(following).json()
        ids = [page["entry"][0]["resource"]["id"] for page in (first, second)]
    assert len(set(ids)) == 2


def test_two_nodes_asked_one_after_the_other_give_two_ids(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        assert len({the_id(gateway, node=node) for node in ("a", "b")}) == 2


def test_two_patients_of_one_node_get_two_ids_one_after_the_other(tmp_path: Path) -> None:
    specimen(tmp_path, "A1", "one", StudyDate="20100101")
    specimen(tmp_path, "A2", "one", "2", StudyDate="20200101")
    with Gateway([files_node("a", tmp_path)]) as gateway:
        ids = {found: the_id(gateway, started=found) for found in ("lt2015", "ge2015")}
        assert len(set(ids.values())) == 2
        mine = gateway.get(f"/fhir/ImagingStudy/{ids['ge2015']}").json()
        assert mine["subject"]["identifier"]["value"] == "A2"


def test_two_replicas_give_two_ids(tmp_path: Path) -> None:
    nodes = two_hospitals(tmp_path)
    with (
        peers.redis() as redis,
        Gateway(nodes, redis_url=redis.url) as one,
        Gateway(nodes, redis_url=redis.url) as other,
    ):
        assert the_id(one, **EARLY) != the_id(other, **LATE)


def test_references_to_studies_of_a_patient_have_the_same_ids(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        ids = {}
        for whose in ("a", "b"):
            patient = f"urn:imaging-gateway:issuer:HOSPITAL-{whose}|{whose.upper()}1"
            query = {"identifier": patient, "_revinclude": "ImagingStudy:subject"}
            entries = gateway.get("/fhir/Patient", params=query).json()["entry"]
            (ids[whose],) = [e["resource"]["id"] for e in entries if e["resource"]["resourceType"] == "ImagingStudy"]
        assert ids["a"] != ids["b"]
        assert ids["b"] == the_id(gateway, **LATE)


def test_a_patient_whose_identifier_is_corrected_keeps_his_study_and_its_id(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "A1", "one")
    node = files_node("a", tmp_path / "a", patient_id_issuer="HOSPITAL")
    with peers.redis() as redis:
        with Gateway([node], redis_url=redis.url) as gateway:
            assert the_id(gateway) == STUDY
        for file in (tmp_path / "a").iterdir():
            file.unlink()
        specimen(tmp_path / "a", "A2", "one")
        with Gateway([node], redis_url=redis.url, find_ttl=0, location_ttl=0) as gateway:
            (study,) = studies(gateway)
            assert (study["id"], study["subject"]["identifier"]["value"]) == (STUDY, "A2")
            assert gateway.get(f"/fhir/ImagingStudy/{STUDY}").status_code == 200


def test_a_patient_known_by_two_identifiers_has_one_id_whoever_tells_of_him(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "A1", "one", OtherPatientIDsSequence=linked_to(("B", "B1")))
    specimen(tmp_path / "b", "B1", "one", "2")
    nodes = [files_node(name, tmp_path / name, patient_id_issuer=name.upper()) for name in ("a", "b")]
    with Gateway(nodes) as gateway:
        assert {the_id(gateway, node=node) for node in ("a", "b")} == {STUDY}
        assert the_id(gateway) == STUDY


def test_while_a_node_is_silent_that_may_have_the_other_study_the_ids_stay_two(tmp_path: Path) -> None:
    nodes = two_hospitals(tmp_path)
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url) as gateway:
            assert the_id(gateway, **EARLY) == STUDY
        nodes[0] = {
            "id": "a", "name": "a", "adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9"},
            "patient_id_issuer": "HOSPITAL-a", "search_deadline": 1,
        }  # fmt: skip
        with Gateway(nodes, redis_url=redis.url) as gateway:
            mine = the_id(gateway, **LATE)
            assert mine != STUDY
            assert gateway.get(f"/fhir/ImagingStudy/{mine}").json()["subject"]["identifier"]["value"] == "B1"


def test_without_redis_a_search_answers_all_the_same(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path), cache=False) as gateway:
        assert the_id(gateway, **EARLY) == STUDY
