"""A node that does not look at the days it is asked for, and stops at a maximum: cutting by days leads nowhere."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

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
