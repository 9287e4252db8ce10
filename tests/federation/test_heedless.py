"""A node that does not look at the days it is asked for, and stops at a maximum: cutting by days leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.handmade import Given, dicomweb_node, given, server
from tests.running import Gateway

MAXIMUM, STUDIES = 100, 900


def study(number: int) -> dict[str, Any]:
    day = date(2024, 6, 30) - timedelta(days=number)
    return {
        "0020000D": {"vr": "UI", "Value": [f"1.2.3.{number}"]},
        "00100020": {"vr": "LO", "Value": [f"P{number}"]},
        "00080020": {"vr": "DA", "Value": [f"{day:%Y%m%d}"]},
        "00080030": {"vr": "TM", "Value": [f"{number % 24:02}0000"]},
        "00080061": {"vr": "CS", "Value": ["CT"]},
        "00201206": {"vr": "IS", "Value": [1]},
        "00201208": {"vr": "IS", "Value": [1]},
    }


class Heedless:
    """Gives the same studies whatever is asked for."""

    def __init__(self) -> None:
        self.studies, self.asked = [study(n * 7 % STUDIES) for n in range(STUDIES)], 0

    def __call__(self, method: str, path: str, query: dict[str, list[str]], *_: object) -> Given:
        self.asked += 1
        most = min(MAXIMUM, int(query.get("limit", ["10000"])[0]))
        told = {"Warning": f'299 n "There are {STUDIES - most} additional results that can be requested"'}
        return given(self.studies[:most], {"Content-Type": "application/dicom+json", **told})


@pytest.mark.parametrize(
    "asked", ["", "?StudyDate=20240101-20240630", "?StudyDate=20240201", "?limit=20", "?PatientID=P*"]
)
def test_a_node_that_does_not_look_at_days_and_stops_at_its_maximum_is_asked_a_few_times_and_named(asked: str) -> None:
    node = Heedless()
    with server(node) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        answer = gateway.get(f"/dicom-web/studies{asked}")
    said = "node n: stopped at its maximum number of results; it does not look at StudyDate"
    assert said in answer.headers["warning"]
    assert node.asked <= 25


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """140 studies of as many days."""
    directory = tmp_path_factory.mktemp("many")
    for number in range(140):
        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"1.2.3.{number}.1.1"
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.3.{number}.1"
        one.PatientID, one.PatientName, one.Modality = f"P{number}", "N", "CT"
        one.StudyDate, one.StudyTime = f"{date(2024, 6, 30) - timedelta(days=5 * number):%Y%m%d}", "120000"
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            one.SOPInstanceUID,
        )
        one.save_as(directory / f"{number}.dcm", enforce_file_format=True)
    return directory


@contextmanager
def pacs(directory: Path, **options: Any) -> Iterator[tuple[DimseSimulator, dict[str, Any]]]:
    """A PACS that stops at 100 studies without a word."""
    silent = DimseOptions(max_results=100, max_results_status=0, **options)
    with DimseSimulator(directory, ae_title="PACS", options=silent) as simulator:
        connection = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": "PACS"}
        node = {"id": "n", "name": "n", "adapter": "dimse", "patient_id_issuer": "I", "connection": connection}
        yield simulator, node


def test_a_pacs_that_stops_at_a_hundred_studies_without_a_word_is_asked_in_parts(many: Path) -> None:
    with pacs(many) as (simulator, node), Gateway([node], cache=False) as gateway:
        answer = gateway.get("/dicom-web/studies")
        assert simulator.operations["C-FIND STUDY"] <= 25
    assert len(answer.json()) == 140
    assert "warning" not in answer.headers


def test_a_pacs_that_looks_at_no_days_and_stops_at_a_round_number_without_a_word_is_named(many: Path) -> None:
    with pacs(many) as (simulator, node), Gateway([node], cache=False) as gateway:
        simulator.options = replace(simulator.options, ignored_keys=frozenset({"StudyDate"}))
        answer = gateway.get("/dicom-web/studies")
        assert simulator.operations["C-FIND STUDY"] <= 25
    assert len(answer.json()) == 100
    assert (
        "node n: stopped at its maximum number of results; it does not look at StudyDate" in answer.headers["warning"]
    )
