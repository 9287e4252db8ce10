"""Who collects studies by their ids never takes two patients' for one, wherever and whenever each of them is found."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from running import Gateway, files_node
from specimens import linked_to, specimen, uid

from tests.catalogue import catalogue_nodes
from tests.handmade import dicomweb_node, given, server
from tests.security.conftest import issuer_beside

STUDY = uid("one")
SECRET = "the same on both replicas"


def studies(gateway: Gateway, *, bearer: str = "", **query: Any) -> list[dict[str, Any]]:
    headers = {"Authorization": bearer} if bearer else {}
    bundle = gateway.get("/fhir/ImagingStudy", params=query, headers=headers).json()
    return [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == "match"]


def the_id(gateway: Gateway, **query: Any) -> str:
    (study,) = studies(gateway, **query)
    return str(study["id"])


def hospitals(folder: Path, *names: str) -> list[dict[str, Any]]:
    """A node for each of these folders, with an issuer of its own."""
    return [files_node(name, folder / name, patient_id_issuer=f"HOSPITAL-{name}") for name in names]


def two_hospitals(folder: Path) -> list[dict[str, Any]]:
    """One UID, by mistake, for a study of 2010 at a and for another person's of 2020 at b."""
    specimen(folder / "a", "A1", "one", StudyDate="20100101")
    specimen(folder / "b", "B1", "one", "2", StudyDate="20200101")
    return hospitals(folder, "a", "b")


def linked_hospitals(folder: Path) -> list[dict[str, Any]]:
    """One study of one patient, A1 at a, which says that he is B1 at b."""
    specimen(folder / "a", "A1", "one", OtherPatientIDsSequence=linked_to(("B", "B1")))
    specimen(folder / "b", "B1", "one", "2")
    return [files_node(name, folder / name, patient_id_issuer=name.upper()) for name in ("a", "b")]


def correct(folder: Path, patient: str, **more: Any) -> None:
    """Puts the patient in the place of whoever had the study there."""
    for file in folder.iterdir():
        file.unlink()
    specimen(folder, patient, "one", **more)


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
        correct(tmp_path / "a", "A2")
        with Gateway([node], redis_url=redis.url, find_ttl=0, location_ttl=0) as gateway:
            (study,) = studies(gateway)
            assert (study["id"], study["subject"]["identifier"]["value"]) == (STUDY, "A2")
            assert gateway.get(f"/fhir/ImagingStudy/{STUDY}").status_code == 200


def test_a_patient_known_by_two_identifiers_has_one_id_whoever_tells_of_him(tmp_path: Path) -> None:
    nodes = linked_hospitals(tmp_path)
    with Gateway(nodes) as gateway:
        assert {the_id(gateway, node=node) for node in ("a", "b")} == {STUDY}
        assert the_id(gateway) == STUDY


def silent(name: str, issuer: str) -> dict[str, Any]:
    """A node that nobody is at home at."""
    return dicomweb_node(name, 9, patient_id_issuer=issuer, search_deadline=1)


def test_while_a_node_is_silent_that_has_the_other_study_each_keeps_the_id_that_it_was_given(tmp_path: Path) -> None:
    nodes = two_hospitals(tmp_path)
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url, secret=SECRET) as gateway:
            assert the_id(gateway, **EARLY) == STUDY
            mine = the_id(gateway, **LATE)
        with Gateway([silent("a", "HOSPITAL-a"), nodes[1]], redis_url=redis.url, secret=SECRET) as gateway:
            assert the_id(gateway, **LATE) == mine
            assert gateway.get(f"/fhir/ImagingStudy/{mine}").json()["subject"]["identifier"]["value"] == "B1"
            assert gateway.get(f"/fhir/ImagingStudy/{STUDY}").status_code == 409, "that was the other one's"
            assert studies(gateway, _id=STUDY) == []


def test_a_node_that_is_taken_out_for_a_while_takes_no_id_with_it(tmp_path: Path) -> None:
    nodes = two_hospitals(tmp_path)
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url, secret=SECRET) as gateway:
            first = the_id(gateway, **EARLY)
        with Gateway(nodes[1:], redis_url=redis.url, secret=SECRET) as gateway:
            assert the_id(gateway, **LATE) != first


def test_the_silence_of_a_node_that_has_neither_changes_no_id(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "A1", "one")
    nodes = [files_node("a", tmp_path / "a", patient_id_issuer="HOSPITAL"), silent("c", "C")]
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url) as gateway:
            assert the_id(gateway) == STUDY
        correct(tmp_path / "a", "A2")
        with Gateway(nodes, redis_url=redis.url, find_ttl=0, location_ttl=0) as gateway:
            assert the_id(gateway) == STUDY


def test_who_was_shown_once_with_both_his_identifiers_has_one_id_while_the_node_is_silent_that_links_them(
    tmp_path: Path,
) -> None:
    nodes = linked_hospitals(tmp_path)
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url) as gateway:
            assert the_id(gateway) == STUDY
        with Gateway([silent("a", "A"), nodes[1]], redis_url=redis.url) as gateway:
            assert the_id(gateway) == STUDY


def test_two_identifiers_of_one_issuer_are_two_patients_whatever_links_them(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "A1", "one", StudyDate="20100101")
    more = {"StudyDate": "20200101", "OtherPatientIDsSequence": linked_to(("HOSPITAL", "A1"))}
    specimen(tmp_path / "b", "B1", "one", "2", **more)
    nodes = [files_node(name, tmp_path / name, patient_id_issuer="HOSPITAL") for name in ("a", "b")]
    with Gateway(nodes) as gateway:
        assert the_id(gateway, **EARLY) != the_id(gateway, **LATE)


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_link_that_was_taken_back_joins_nobody(tmp_path: Path, first: str) -> None:
    """Where it had been shown that both are one, and each is found alone since."""
    nodes = linked_hospitals(tmp_path)
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url) as gateway:
            assert the_id(gateway) == STUDY
        correct(tmp_path / "a", "A1")
        with Gateway(nodes, redis_url=redis.url, find_ttl=0, location_ttl=0) as gateway:
            ids = {node: the_id(gateway, node=node) for node in sorted("ab", key=lambda node: node != first)}
            assert ids["a"] != ids["b"]


def test_a_link_that_stands_is_not_doubted_by_who_was_shown_without_it(tmp_path: Path) -> None:
    nodes = linked_hospitals(tmp_path)
    with peers.redis() as redis:
        for asked in (["a", "b"], ["b"], ["a"], ["b"]):
            with Gateway(nodes, redis_url=redis.url, find_ttl=0, location_ttl=0) as gateway:
                for node in asked:
                    assert the_id(gateway, node=node) == STUDY
                assert the_id(gateway) == STUDY


def test_an_issuer_that_is_named_anew_changes_no_id(tmp_path: Path) -> None:
    rows = [row(f"P{number}", "20200101", uid(number)) for number in range(200)]
    with catalogue_nodes([rows], delay=0.1) as nodes, peers.redis() as redis:
        for name in ("OLD", "NEW"):
            with Gateway(nodes.tables(patient_id_issuer=name), redis_url=redis.url, find_ttl=0) as gateway:
                found = {study["id"] for study in studies(gateway, _count=200)}
            assert found == {uid(number) for number in range(200)}


# --- callers who may ask different nodes


@pytest.fixture(scope="module")
def issuer() -> Iterator[Any]:
    with issuer_beside() as running:
        yield running


def id_for(gateway: Gateway, issuer: Any, nodes: list[str], **query: Any) -> str:
    claims = {"scope": "system/*.rs"} | ({"nodes": nodes} if nodes else {})
    return the_id(gateway, bearer=issuer.bearer(**claims), **query)


def test_what_one_may_not_ask_of_has_another_id_all_the_same(tmp_path: Path, issuer: Any) -> None:
    with Gateway(two_hospitals(tmp_path), oidc_issuer=issuer.issuer) as gateway:
        assert id_for(gateway, issuer, ["a"]) != id_for(gateway, issuer, ["b"])


def test_a_caller_of_fewer_nodes_decides_for_nobody_else(tmp_path: Path, issuer: Any) -> None:
    with Gateway(two_hospitals(tmp_path), oidc_issuer=issuer.issuer) as gateway:
        mine = id_for(gateway, issuer, [], **EARLY)
        id_for(gateway, issuer, ["b"], **LATE)
        assert id_for(gateway, issuer, [], **LATE) != mine


# --- reads, and what shows nobody


def test_an_id_that_was_given_for_one_never_reads_the_other(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        assert the_id(gateway, **EARLY) == STUDY
        assert gateway.get(f"/fhir/ImagingStudy/{STUDY}", params={"node": "b"}).status_code == 409


def test_a_read_names_a_study_as_a_search_does(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        read = gateway.get(f"/fhir/ImagingStudy/{STUDY}", params={"node": "b"}).json()
        assert (read["id"], read["subject"]["identifier"]["value"]) == (STUDY, "B1")
        assert the_id(gateway, **EARLY) != STUDY


def test_an_id_that_is_given_can_be_read_though_its_rows_were_shown_under_another_before(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        the_id(gateway, **EARLY)
        the_id(gateway, **LATE)
        again = the_id(gateway, **EARLY, _sort="started")
        assert gateway.get(f"/fhir/ImagingStudy/{again}").status_code == 200


def test_to_count_studies_is_to_show_none(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path)) as gateway:
        counted = gateway.get("/fhir/ImagingStudy", params={**EARLY, "_summary": "count"}).json()
        assert counted["total"] == 1
        assert the_id(gateway, **LATE) == STUDY


def row(patient: str, date: str, study: str = STUDY) -> dict[str, str]:
    """A study of the catalogue."""
    return {
        "StudyInstanceUID": study,
        "PatientID": patient,
        "StudyDate": date,
        "StudyTime": "101500",
        "PatientName": "X",
    }


A, B = row("A", "20100101"), row("B", "20200101")


@pytest.mark.parametrize("held", [[[A], [B]], [[A, B]]], ids=["at two nodes", "at one node"])
def test_nodes_are_not_asked_each_time_whether_two_are_two(held: list[list[dict[str, str]]]) -> None:
    with catalogue_nodes(held) as nodes, Gateway(nodes.tables(patient_id_issuer="H")) as gateway:
        the_id(gateway, **EARLY)
        the_id(gateway, **LATE)
        nodes.reset()
        for count in range(2, 12):
            the_id(gateway, **LATE, _count=count, _total="none")
        assert max(one.requests for one in nodes.counts()) <= 2


def two_clashes(folder: Path) -> list[dict[str, Any]]:
    """Two UIDs that a's patient and b's bear, and a study that b alone has."""
    for name, year in (("one", "2021"), ("two", "2020")):
        specimen(folder / "a", "A1", name, StudyDate="20100101")
        specimen(folder / "b", "B1", name, "2", StudyDate=f"{year}0101")
    specimen(folder / "b", "B1", "three", "3", StudyDate="20190101")
    return hospitals(folder, "a", "b")


def test_a_search_by_an_id_finds_nobody_elses_study_and_counts_none(tmp_path: Path) -> None:
    with Gateway(two_clashes(tmp_path)) as gateway:
        assert {study["id"] for study in studies(gateway, **EARLY)} == {uid("one"), uid("two")}
        query = {"_id": f"{uid('one')},{uid('two')}", "_total": "accurate", "node": "b"}
        for count in (1, 50):
            bundle = gateway.get("/fhir/ImagingStudy", params={**query, "_count": count}).json()
            assert (bundle["total"], bundle.get("entry", [])) == (0, [])


def test_a_page_that_has_nothing_left_is_not_the_end(tmp_path: Path) -> None:
    with Gateway(two_clashes(tmp_path)) as gateway:
        studies(gateway, **EARLY)
        query = {"_id": f"{uid('one')},{uid('three')}", "_count": 1, "node": "b"}
        assert [study["id"] for study in studies(gateway, **query)] == [uid("three")]


def test_what_is_still_kept_of_a_study_that_is_gone_has_not_the_id_that_another_has_by_then() -> None:
    held = [as_row(STUDY, "A", "20100101")]
    with (
        server(lambda *_: given(held)) as one,
        catalogue_nodes([[B]]) as nodes,
        Gateway([dicomweb_node("gone", one), *nodes.tables(patient_id_issuer="H")]) as gateway,
    ):
        the_id(gateway, **EARLY)
        held.clear()
        second = the_id(gateway, **LATE)
        assert second not in [study["id"] for study in studies(gateway, **EARLY, _summary="false", _elements="subject")]


def as_row(study: str, patient: str, date: str) -> dict[str, Any]:
    values = {
        "0020000D": ("UI", study),
        "00100020": ("LO", patient),
        "00080020": ("DA", date),
        "00080030": ("TM", "101500"),
    }
    return {tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in values.items()}


def test_the_silence_of_another_studys_node_changes_no_id_and_takes_no_node_down(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "A1", "one", StudyDate="20100101")
    specimen(tmp_path / "b", "B1", "two", StudyDate="20100102")
    specimen(tmp_path / "c", "C1", "two", "2", StudyDate="20200101")
    nodes = hospitals(tmp_path, "a", "b", "c")
    with peers.redis() as redis, socket.create_server(("127.0.0.1", 0), backlog=50) as hole:
        with Gateway(nodes, redis_url=redis.url, secret=SECRET) as gateway:
            studies(gateway, **EARLY)
            studies(gateway, **LATE)
        correct(tmp_path / "a", "A2", StudyDate="20100101")
        port = hole.getsockname()[1]
        hanging = dicomweb_node("c", port, patient_id_issuer="HOSPITAL-c", search_deadline=8)
        given_ = {"redis_url": redis.url, "secret": SECRET, "find_ttl": 0, "location_ttl": 0}
        with Gateway([*nodes[:2], hanging], **given_) as gateway:
            assert uid("one") in {study["id"] for study in studies(gateway, node="a,b")}
            states = {node["id"]: node["state"] for node in gateway.get("/nodes").json()["nodes"]}
    assert states["a"] == "up"


def test_an_id_stays_while_one_of_two_holders_is_silent(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P1", "one", StudyDate="20100101")
    specimen(tmp_path / "c", "P1", "one", "2", StudyDate="20100101")
    specimen(tmp_path / "b", "B1", "one", "3", StudyDate="20200101")
    issuers = {"a": "H", "c": "H", "b": "H-b"}
    nodes = [files_node(name, tmp_path / name, patient_id_issuer=issuer) for name, issuer in issuers.items()]
    with peers.redis() as redis:
        with Gateway(nodes, redis_url=redis.url, secret=SECRET) as gateway:
            the_id(gateway, **LATE)
            mine = the_id(gateway, **EARLY)
        with Gateway([silent("a", "H"), *nodes[1:]], redis_url=redis.url, secret=SECRET) as gateway:
            assert the_id(gateway, **EARLY) == mine
            assert gateway.get(f"/fhir/ImagingStudy/{mine}").status_code == 200


def test_without_redis_a_search_answers_all_the_same(tmp_path: Path) -> None:
    with Gateway(two_hospitals(tmp_path), cache=False) as gateway:
        assert the_id(gateway, **EARLY) == STUDY
