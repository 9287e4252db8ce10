"""An Orthanc that gives no more than its LimitFindResults: all is found in parts, or what is not is named."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.simulators.bulk import ct_series
from tests import peers
from tests.interop.conftest import node
from tests.running import Gateway

MOST = 50
CHANCE = random.Random(7)
Held = dict[str, str]


def times() -> str:
    """A TM in one of its forms."""
    hour, minute, fraction = CHANCE.randint(0, 23), CHANCE.randint(0, 59), CHANCE.randint(0, 999_999)
    return CHANCE.choice(
        [f"{hour:02}", f"{hour:02}{minute:02}", f"{hour:02}{minute:02}59.{fraction:06}", f"{hour:02}5959.7"]
    )


def days() -> Iterator[tuple[str, str]]:
    """More than MOST on one day, without a time on another, without a day, and the rest spread."""
    for _ in range(70):
        yield "20200505", times()
    for _ in range(20):
        yield "20190101", ""
    for _ in range(60):
        yield "", ""
    for _ in range(70):
        yield f"20{CHANCE.randint(10, 25)}{CHANCE.randint(1, 12):02}{CHANCE.randint(1, 28):02}", times()


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[peers.Orthanc, Held]]:
    """Orthanc, and the day of each study in it."""
    files, held = [], Held()
    for number, (day, clock) in enumerate(days()):
        directory: Path = tmp_path_factory.mktemp("study")
        ct_series(directory, 1, rows=4, columns=4, key=f"limited-{number}")
        [path] = directory.iterdir()
        made = pydicom.dcmread(path)
        made.StudyDate, made.StudyTime, made.PatientID = day, clock, f"{CHANCE.choice('ABZ09')}{number}"
        made.save_as(path)
        files.append(path)
        held[str(made.StudyInstanceUID)] = day
    with peers.orthanc(files, most_found=MOST) as orthanc:
        yield orthanc, held


@pytest.mark.parametrize("adapter", ["dicomweb", "dimse"])
def test_every_dated_study_is_told_once_and_what_has_no_date_is_declared(
    held: tuple[peers.Orthanc, Held], adapter: str
) -> None:
    orthanc, days_of = held
    connection = {"url": orthanc.dicomweb} if adapter == "dicomweb" else orthanc.address
    told, offset, said = [], 0, ""
    with Gateway([node("limited", adapter, connection)], probe=True) as gateway:
        while True:
            answer = gateway.get(f"/dicom-web/studies?limit=30&offset={offset}")
            assert answer.status_code == 200, answer.text
            page = [row["0020000D"]["Value"][0] for row in answer.json()]
            told += page
            offset += len(page)
            said += answer.headers.get("warning", "")
            if len(page) < 30:
                break
    dated = {uid for uid, day in days_of.items() if day}
    assert len(told) == len(set(told))
    missing = sorted(days_of[uid] for uid in dated - set(told))
    assert not missing, (len(missing), len(told), missing[0], missing[-1], said)
    assert set(told) == set(days_of) or "not all is shown of studies without a StudyDate" in said
    declared = re.findall(r"not all is shown of (StudyDate [^\"]*)", said)
    assert all(part.endswith((", StudyTime unknown", ", Modality unknown")) for part in declared), declared
