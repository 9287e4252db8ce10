"""No part of a question is left out without a word, and nothing that was purged is told any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Gateway, files_node
from specimens import linked_to, specimen, uid

STUDY = uid("one")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("edge")
    specimen(folder / "a", "A1", "one")
    specimen(folder / "a", "A2", "two", OtherPatientIDsSequence=linked_to(("urn:b", "B2")))
    specimen(folder / "b", "B1", "three")
    nodes = [files_node(name, folder / name, patient_id_issuer=f"urn:{name}") for name in ("a", "b")]
    with Gateway(nodes) as running:
        yield running


@pytest.mark.parametrize("name", ["Node", "NODE"])
def test_a_node_that_is_named_in_capitals_is_not_left_out_without_a_word(gateway: Gateway, name: str) -> None:
    """Every other option of QIDO is read whatever its case; this one was taken for known and then read by nobody."""
    answer = gateway.get(f"/dicom-web/studies?{name}=b")
    bearers = [row["00100020"]["Value"][0] for row in answer.json()] if answer.status_code == 200 else []
    assert answer.status_code == 400 or bearers == ["B1"]


def test_a_node_that_is_named_in_capitals_is_not_left_out_of_a_retrieval_either(gateway: Gateway) -> None:
    assert gateway.get(f"/dicom-web/studies/{STUDY}/metadata?node=b").status_code == 404
    assert gateway.get(f"/dicom-web/studies/{STUDY}/metadata?NODE=b").status_code in (400, 404)


def test_a_representation_that_is_asked_for_in_capitals_is_not_left_out_without_a_word(gateway: Gateway) -> None:
    answer = gateway.get("/dicom-web/studies?Accept=application/json", headers={"Accept": "application/dicom+json"})
    assert answer.status_code == 400 or answer.headers["content-type"] == "application/json"


def test_a_patient_is_found_by_each_of_the_identifiers_that_he_is_shown_with(gateway: Gateway) -> None:
    """Repetition is AND: who bears both identifiers bears each of them."""
    (entry,) = gateway.get("/fhir/Patient", params={"identifier": "urn:a|A2"}).json()["entry"]
    shown = {(one["system"], one["value"]) for one in entry["resource"]["identifier"]}
    assert shown == {("urn:a", "A2"), ("urn:b", "B2")}
    by_both = gateway.get("/fhir/Patient?identifier=urn:a%7CA2&identifier=urn:b%7CB2").json()
    assert [one["resource"]["id"] for one in by_both.get("entry", [])] == [entry["resource"]["id"]]
    studies = gateway.get(f"/fhir/ImagingStudy?patient={entry['resource']['id']}&patient.identifier=urn:b%7CB2").json()
    assert [one["resource"]["id"] for one in studies.get("entry", [])] == [uid("two")]


@pytest.mark.parametrize("search", ["Patient?identifier=A1", "Endpoint?name=a", "Organization?name=a"])
def test_several_nodes_may_be_named_in_every_search(gateway: Gateway, search: str) -> None:
    """As in /fhir/ImagingStudy and in DICOMweb: ?node=a&node=b."""
    assert gateway.get("/fhir/ImagingStudy?node=a&node=b").status_code == 200
    assert gateway.get(f"/fhir/{search}&node=a&node=b").status_code == 200


def test_a_purge_of_a_node_reaches_what_it_told_of_another_node_s_study(tmp_path: Path) -> None:
    """The id that tells two patients' studies apart was made of what a said: it goes with all that came from a."""
    specimen(tmp_path / "a", "A1", "one", StudyDate="20100101")
    specimen(tmp_path / "b", "B1", "one", "2", StudyDate="20200101")
    nodes = [files_node(name, tmp_path / name, patient_id_issuer=f"urn:{name}") for name in ("a", "b")]

    with Gateway(nodes) as running:

        def the_id(**headers: str) -> tuple[str, bool]:
            answer = running.get("/fhir/ImagingStudy?node=b", headers=headers)
            (entry,) = answer.json()["entry"]
            return entry["resource"]["id"], "plan;dur=" not in answer.headers["server-timing"]

        running.get("/fhir/ImagingStudy?node=a")
        told_apart, _ = the_id()
        assert told_apart != STUDY
        assert the_id() == (told_apart, True)
        for file in (tmp_path / "a").iterdir():
            file.unlink()
        specimen(tmp_path / "a", "A1", "another")
        time.sleep(2)  # the files are looked at again
        assert running.app is not None
        federation: Any = running.app.state.estate.pipeline.federation
        asyncio.run_coroutine_threadsafe(federation.answers.purge_node("a"), running.loop).result(30)
        after, was_kept = the_id()
        anew, _ = the_id(**{"Cache-Control": "no-cache"})
        assert (after, was_kept) == (anew, False)
