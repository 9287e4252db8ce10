"""The conformance table of the README: every row that says yes is held to a request that shows it."""

from __future__ import annotations

import bulk_rows
import dicomweb_rows
import dicomweb_search_rows
import document_rows
import fhir_mapping_rows
import fhir_rows
import fhir_search_rows
import pytest
import record_rows
from conformance_table import SHOWN, rows
from small_hospital import Small

CHECKED_IN = (
    dicomweb_search_rows,
    dicomweb_rows,
    fhir_rows,
    fhir_mapping_rows,
    fhir_search_rows,
    bulk_rows,
    document_rows,
    record_rows,
)


def test_every_yes_has_a_check_and_every_check_a_yes() -> None:
    table = rows()
    assert len(table) > 50
    assert {row for row, (_, done, _) in table.items() if done == "yes"} == set(SHOWN)


def test_every_no_says_why() -> None:
    assert [row for row, (_, done, why) in rows().items() if done == "no" and not why.strip()] == []


@pytest.mark.parametrize("row", sorted(row for row, (_, done, _) in rows().items() if done == "yes"))
def test_a_yes_is_shown_by_a_request(hospital: Small, row: str) -> None:
    SHOWN[row](hospital)


NOT_SERVED = {
    "F2c": [("GET", "metadata?_format=ttl", 406)],
    "F4b": [("GET", "ImagingStudy/1.2.3/_history", 404), ("GET", "ImagingStudy/1.2.3/_history/1", 404)],
    "F4c": [
        ("POST", "ImagingStudy", 405), ("PUT", "ImagingStudy/1", 405), ("PATCH", "Patient/1", 405),
        ("DELETE", "Endpoint/files", 405), ("POST", "", 404),
    ],
    "F5b": [("GET", "Patient/1/ImagingStudy", 404), ("GET", "_search?_id=1", 404)],
    "F16": [
        ("GET", f"ImagingStudy?{name}=x", 400)
        for name in ("_has:Observation:patient:code", "_text", "_content", "_filter", "_list", "_query")
    ],
    "F19": [("GET", "Subscription", 404)],
    "B8b": [("GET", "$export?_since=2026-01-01T00:00:00Z", 400), ("GET", "$export?_until=2026-01-01T00:00:00Z", 400)],
    "B9": [("GET", "Group/1/$export", 404)],
    "B10": [("GET", f"$export?{name}=x", 400) for name in ("includeAssociatedData", "organizeOutputBy")],
    "P12b": [("GET", f"ImagingStudy?{name}=ServiceRequest/1", 400) for name in ("basedon", "based-on")],
    "P13b": [("GET", "ImagingStudy?referrer=Practitioner/1", 400)],
    "P14": [("GET", "ImagingStudy?encounter=1", 400)],
    "P15": [("GET", "ImagingStudy?reason=x", 400)],
    "P16": [("GET", "ImagingStudy?performer=x", 400)],
    "P17": [("GET", "ImagingStudy?interpreter=x", 400)],
    "P18": [("GET", "ImagingStudy?body-structure=x", 400)],
    "P22": [("GET", f"ImagingStudy?modality:{one}=x", 400) for one in ("above", "below", "in", "not-in", "text")],
}  # fmt: skip


@pytest.mark.parametrize("row", NOT_SERVED)
def test_what_fhir_has_and_the_gateway_has_not_is_refused_with_an_outcome(hospital: Small, row: str) -> None:
    assert rows()[row][1] == "no"
    for root in ("/fhir/r4", "/fhir/r5"):
        for method, path, status in NOT_SERVED[row]:
            answer = hospital.gateway.client.request(method, f"{root}/{path}", headers={"Prefer": "respond-async"})
            assert (answer.status_code, answer.json()["resourceType"]) == (status, "OperationOutcome"), path
            name = path.partition("?")[2].partition("=")[0]
            assert status != 400 or name.partition(":")[0] in answer.json()["issue"][0]["diagnostics"], path
