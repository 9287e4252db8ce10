"""What a FHIR request may say besides its keys: the page it is on, the format it takes, how much it wants counted and included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import Gateway, files_node
from tests.specimens import specimen


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("files")
    for number in range(5):
        specimen(directory, f"P{number}", f"s{number}", StudyDate=f"2026030{number + 1}", PatientName="Doe^J")
    with Gateway([files_node("disk", directory, patient_id_issuer="I")]) as running:
        yield running


def link(bundle: dict[str, Any], relation: str) -> str:
    return next((each["url"] for each in bundle["link"] if each["relation"] == relation), "")


def of_kind(bundle: dict[str, Any], kind: str) -> list[str]:
    found = (entry["resource"] for entry in bundle.get("entry", []))
    return [one["id"] for one in found if one["resourceType"] == kind]


# --- links


@pytest.mark.parametrize("search", ["ImagingStudy?_count=2", "Patient?name=Doe&_count=2", "Patient/_search"])
def test_each_page_s_own_link_is_its_own(gateway: Gateway, search: str) -> None:
    if search.endswith("_search"):
        bundle = gateway.client.post(f"/fhir/{search}", data={"name": "Doe", "_count": "2"}).json()
    else:
        bundle = gateway.get(f"/fhir/{search}").json()
    pages = [bundle]
    while onward := link(pages[-1], "next"):
        pages.append(gateway.get(onward).json())
        assert link(pages[-1], "self") == onward
    assert len(pages) == 3
    for page in pages:
        again = gateway.get(link(page, "self")).json()
        assert again["entry"] == page["entry"]
