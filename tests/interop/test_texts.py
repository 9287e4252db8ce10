"""One value has many texts ('1015', '101500.000'), and one text is matched in many ways: no archive hides a study by that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.interop.conftest import ISSUER, node
from tests.running import Gateway, files_node

HELD = {
    "StudyTime": ["00", "095959.5", "10", "1015", "101500.123", "235959.9"],
    "PatientID": ["12345", "012345", "ab 12", "AB 12", "A_B", "a-b", "ÄB", "a%b", "a&b", "a+b", "a,b", "a/b"],
    "AccessionNumber": ["A1", "a1", "A,1", "00A1", "A%1", "Ä1", "A;1"],
    "StudyDescription": ["CT Thorax", "ct thorax", "Schädel", "Schaedel", "CT, thorax", "a[1]", "CT_THORAX", "CT%"],
    "ReferringPhysicianName": ["O'Neil^Pat", "Müller^Jörg", "MULLER^JORG", "de la Cruz^M"],
    "SeriesNumber": ["1", "01", "10"],
}
ASKED = {
    "StudyTime": ["000000-235959", "090000-095959", "100000-105959", "101500", "1015", "-0959"],
    "PatientID": [*HELD["PatientID"], "1*", "a?b", "?B", "Ä*", "*%*"],
    "AccessionNumber": [*HELD["AccessionNumber"], "A*", "?1"],
    "StudyDescription": [*HELD["StudyDescription"], "Sch?del", "*thorax", "*_*", "*%*", "*,*"],
    "ReferringPhysicianName": ["muller*", "*jorg", "O'N*", "de la cruz*", "m?ller^jorg"],
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("texts")
    files = [_study(directory / f"{key}{number}", key, text) for key in HELD for number, text in enumerate(HELD[key])]
    with peers.orthanc(files) as orthanc, peers.dcmqrscp(files) as dcmqrscp:
        nodes = [
            node("web", "dicomweb", {"url": orthanc.dicomweb}),
            node("pacs", "dimse", orthanc.address),
            node("qr", "dimse", dcmqrscp.address),
            files_node("disk", directory, patient_id_issuer=ISSUER, time_zone="Europe/Warsaw"),
        ]
        with Gateway(nodes) as running:
            yield running


def _study(directory: Path, key: str, text: str) -> Path:
    directory.mkdir()
    ct_series(directory, 1, rows=4, columns=4, key=directory.name)
    [path] = directory.iterdir()
    made = pydicom.dcmread(path)
    made.SpecificCharacterSet, made.PatientID = "ISO_IR 192", directory.name
    setattr(made, key, text)
    made.save_as(path)
    return path


def found(gateway: Gateway, holder: str, where: str, **asked: str) -> list[str]:
    answer = gateway.get(f"/nodes/{holder}/dicom-web/{where}", params=asked)
    assert answer.status_code == 200, answer.text
    return sorted(row["0020000D"]["Value"][0] for row in answer.json())


@pytest.mark.parametrize("holder", ["web", "pacs", "qr"])
@pytest.mark.parametrize(("key", "asked"), [(key, asked) for key in ASKED for asked in ASKED[key]])
def test_an_archive_finds_what_the_gateway_s_own_matching_finds(
    gateway: Gateway, holder: str, key: str, asked: str
) -> None:
    expected = found(gateway, "disk", "studies", **{key: asked})
    assert expected
    assert found(gateway, holder, "studies", **{key: asked}) == expected


@pytest.mark.parametrize("holder", ["web", "pacs", "qr"])
@pytest.mark.parametrize("text", HELD["SeriesNumber"])
def test_a_series_of_a_study_is_found_by_its_number_however_that_is_written(
    gateway: Gateway, holder: str, text: str
) -> None:
    studies = found(gateway, "disk", "studies", PatientID=f"SeriesNumber{HELD['SeriesNumber'].index(text)}")
    assert found(gateway, holder, f"studies/{studies[0]}/series", SeriesNumber=str(int(text))) == studies
