"""A time has many texts ('1015', '101500.000'), and archives compare them as they like: none of them hides a study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.interop.conftest import node
from tests.running import Gateway

TIMES = ["00", "095959.5", "10", "1015", "101500.123", "235959.9"]
ASKED = {
    "000000-235959": TIMES,
    "090000-095959": ["095959.5"],
    "100000-105959": ["10", "1015", "101500.123"],
    "101500": ["1015", "101500.123"],
    "1015": ["1015", "101500.123"],
    "-0959": ["00", "095959.5"],
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    files = [_study(tmp_path_factory.mktemp("study"), clock) for clock in TIMES]
    with peers.orthanc(files) as orthanc, peers.dcmqrscp(files) as dcmqrscp:
        nodes = [
            node("web", "dicomweb", {"url": orthanc.dicomweb}),
            node("pacs", "dimse", orthanc.address),
            node("qr", "dimse", dcmqrscp.address),
        ]
        with Gateway(nodes) as running:
            yield running


def _study(directory: Path, clock: str) -> Path:
    ct_series(directory, 1, rows=4, columns=4, key=clock)
    [path] = (one for one in directory.rglob("*") if one.is_file())
    made = pydicom.dcmread(path)
    made.StudyDate, made.StudyTime = "20200101", clock
    made.save_as(path)
    return path


@pytest.mark.parametrize("holder", ["web", "pacs", "qr"])
@pytest.mark.parametrize("asked", ASKED)
def test_a_study_is_found_by_every_range_that_its_time_lies_in(gateway: Gateway, holder: str, asked: str) -> None:
    where = {"StudyDate": "20200101", "StudyTime": asked}
    rows = gateway.get(f"/nodes/{holder}/dicom-web/studies", params=where).json()
    assert sorted(row["00080030"]["Value"][0] for row in rows) == ASKED[asked]
