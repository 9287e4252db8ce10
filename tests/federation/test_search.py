"""Searching limited nodes: what a node cannot match is matched here, looked up below, or told; never dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Gateway

from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def archive(built: Corpus) -> Iterator[DimseSimulator]:
    with DimseSimulator(built.nodes["pl-krakow"].directory, ae_title="PLKRAKOW") as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def healthy(archive: DimseSimulator) -> None:
    archive.options = DimseOptions()
    archive.operations.clear()


def dimse_node(simulator: DimseSimulator, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": "PLKRAKOW"}
    return {
        "id": "pl-krakow",
        "name": "Krakow",
        "adapter": "dimse",
        "character_set": "ISO_IR 101",
        "patient_id_issuer": "SU-KRAKOW",
        "connection": connection,
        **more,
    }


def uids(answer: list[dict[str, Any]], tag: str = "0020000D") -> set[str]:
    return {row[tag]["Value"][0] for row in answer}


def warnings(response: Any) -> str:
    return " ".join(response.headers.get_list("warning"))


def expected(built: Corpus, modality: str) -> set[str]:
    return {study.study_uid for study in built.nodes["pl-krakow"].studies if modality in study.modalities}


def test_a_pacs_that_does_not_know_modalities_in_study_is_asked_for_its_series(
    built: Corpus, archive: DimseSimulator
) -> None:
    archive.options = DimseOptions(omitted_keys=frozenset({"ModalitiesInStudy"}))
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"ModalitiesInStudy": "CT"})
    assert uids(response.json()) == expected(built, "CT") != set()
    assert "warning" not in response.headers
    assert archive.operations["C-FIND SERIES"] >= len(built.nodes["pl-krakow"].studies) - 1


def test_a_pacs_that_ignores_modalities_in_study_does_not_return_other_studies(
    built: Corpus, archive: DimseSimulator
) -> None:
    archive.options = DimseOptions(ignored_keys=frozenset({"ModalitiesInStudy"}))
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"ModalitiesInStudy": "CT"})
        none = gateway.get("/dicom-web/studies", params={"ModalitiesInStudy": "ZZ"})
    assert uids(response.json()) == expected(built, "CT")
    assert none.json() == []


def test_a_descent_beyond_the_budget_is_an_issue_that_names_the_key(archive: DimseSimulator) -> None:
    archive.options = DimseOptions(omitted_keys=frozenset({"ModalitiesInStudy"}))
    with Gateway([dimse_node(archive, descent_parents=2)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"ModalitiesInStudy": "CT"})
    assert response.status_code == 413
    assert response.json()["code"] == "GW207"
    assert "ModalitiesInStudy" in response.json()["detail"]


def test_a_key_below_the_study_is_looked_up_in_a_hierarchical_pacs(built: Corpus, archive: DimseSimulator) -> None:
    study = next(study for study in built.nodes["pl-krakow"].studies if study.is_generated)
    with Gateway([dimse_node(archive)]) as gateway:
        by_series = gateway.get("/fhir/ImagingStudy", params={"series": study.series[0].series_uid})
        by_instance = gateway.get("/fhir/ImagingStudy", params={"instance": study.instances[0].sop_instance_uid})
    for response in (by_series, by_instance):
        assert [entry["resource"]["id"] for entry in response.json()["entry"]] == [study.study_uid]


def test_all_series_of_a_hierarchical_pacs_are_found_study_by_study(built: Corpus, archive: DimseSimulator) -> None:
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/series", params={"Modality": "CT"})
        instances = gateway.get("/dicom-web/instances", params={"Modality": "CT"})
    series = {s.series_uid for study in built.nodes["pl-krakow"].studies for s in study.series if s.modality == "CT"}
    assert uids(response.json(), "0020000E") == series != set()
    assert uids(instances.json(), "0020000E") == series
    assert all(row["00100021"]["Value"] for row in [*response.json(), *instances.json()]), "every row names its issuer"


def test_a_filter_on_what_no_level_of_the_node_gives_is_told_not_dropped(archive: DimseSimulator) -> None:
    archive.options = DimseOptions(omitted_keys=frozenset({"StudyDescription"}))
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"StudyDescription": "anything"})
    assert response.json() == []
    assert "StudyDescription" in warnings(response)


def test_a_filter_that_a_fhir_format_does_not_carry_is_told_not_dropped(built: Corpus) -> None:
    with FhirSimulator(built.nodes["de-berlin"].directory, version="R4", options=FhirOptions(profile="mii")) as server:
        node = {"id": "de-berlin", "name": "Berlin", "adapter": "fhir", "mapping": "mii-bildgebung"}
        with Gateway([{**node, "connection": {"url": server.url, "version": "R4"}}]) as gateway:
            response = gateway.get("/dicom-web/studies", params={"PatientAge": "050Y"})
    assert response.json() == []
    assert "PatientAge" in warnings(response)


def test_a_node_that_stops_at_its_maximum_is_asked_in_parts_and_what_may_be_missing_is_named(
    built: Corpus, archive: DimseSimulator
) -> None:
    archive.options = DimseOptions(max_results=2)
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/studies")
    dated = {study.study_uid for study in built.nodes["pl-krakow"].studies if study.study_date}
    assert dated <= uids(response.json())
    assert "stopped at its maximum number of results; not all is shown of studies without a StudyDate" in warnings(
        response
    )
    assert response.headers["cache-control"] == "no-store"


def test_what_cannot_be_asked_in_parts_small_enough_is_named(archive: DimseSimulator) -> None:
    archive.options = DimseOptions(max_results=2)
    with Gateway([dimse_node(archive)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"StudyDate": "20000101-20261231", "StudyTime": "00-23"})
    assert len(response.json()) == 2
    assert "narrow the search" in warnings(response)
    assert response.headers["cache-control"] == "no-store"


def test_repeated_rows_of_a_misbehaving_pacs_are_one_study(built: Corpus, archive: DimseSimulator) -> None:
    archive.options = DimseOptions(one_row_per_instance=True)
    with Gateway([dimse_node(archive)]) as gateway:
        found = [row["0020000D"]["Value"][0] for row in gateway.get("/dicom-web/studies").json()]
    assert sorted(found) == sorted({study.study_uid for study in built.nodes["pl-krakow"].studies})


def test_a_name_is_found_with_and_without_its_diacritics(
    built: Corpus, archive: DimseSimulator, tmp_path: Path
) -> None:
    study = next(s for s in built.nodes["pl-krakow"].studies if not s.patient_name.isascii())
    from gateway.model.folding import fold_name

    with Gateway([dimse_node(archive)]) as gateway:
        for name in (study.patient_name, fold_name(study.patient_name), study.patient_name.upper()):
            response = gateway.get("/dicom-web/studies", params={"PatientName": name})
            assert study.study_uid in uids(response.json()), name
            shown = {row["00100010"]["Value"][0]["Alphabetic"] for row in response.json()}
            assert study.patient_name in shown
