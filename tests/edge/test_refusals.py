"""What is refused before anything is asked: paths that are none, methods that are none, each in our own form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Gateway, files_node
from specimens import specimen


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory: Path = tmp_path_factory.mktemp("files")
    specimen(directory, "P", "s")
    with Gateway([files_node("f", directory)]) as running:
        yield running


@pytest.mark.parametrize(
    "path",
    [
        "/foo",
        "/dicom-web/foo",
        "/dicom-web/studies/1.2/foo",
        "/nodes/f/dicom-web/foo",
        "/nodes/f",
        "/fhir/Foo/1",
        "/fhir",
    ],
)
def test_a_path_that_there_is_not_is_404_whatever_the_method(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        response = gateway.client.request(method, path, follow_redirects=True)
        assert response.status_code == 404, f"{method} {path}"
        assert "GW105" in response.text
        expected = "application/fhir+json" if path.startswith("/fhir") else "application/problem+json"
        assert response.headers["content-type"].startswith(expected)


@pytest.mark.parametrize("path", ["/dicom-web/series", "/fhir/ImagingStudy", "/nodes", "/nodes/f/dicom-web/series"])
def test_a_method_that_a_path_does_not_have_is_405_and_says_which_it_has(gateway: Gateway, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        response = gateway.client.request(method, path)
        assert response.status_code == 405
        assert "GET" in response.headers["allow"]
        assert "GW107" in response.text


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/dicom-web/studies?PatientName=", "PatientName"),
        ("/dicom-web/studies?00081030=", "00081030"),
        ("/fhir/ImagingStudy?patient.name=", "patient.name"),
        ("/fhir/Patient?name:contains=", "name:contains"),
        ("/fhir/DiagnosticReport?identifier=", "identifier"),
    ],
)
def test_a_value_that_is_longer_than_any_archive_has_is_refused_by_name(
    gateway: Gateway, path: str, parameter: str
) -> None:
    """What a caller asks is remembered in many places: a pattern of 60,000 characters took a megabyte, of each caller's making."""
    response = gateway.get(path + "ab*" * 500)
    assert response.status_code == 400
    assert parameter in response.text
    assert "ab*" not in response.text
    assert gateway.get(path + "ab*" * 20).status_code != 413


def test_a_long_list_of_short_values_is_taken(gateway: Gateway) -> None:
    listed = ",".join(f"2.25.{number}" for number in range(1000, 1500))
    for path in (f"/dicom-web/studies?StudyInstanceUID={listed}", f"/fhir/ImagingStudy?_id={listed}"):
        assert gateway.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/fhir/metadata", "/fhir/nothing", "/dicom-web/studies/1.2"])
def test_a_list_of_what_is_accepted_that_goes_on_and_on_holds_nobody_up(gateway: Gateway, path: str) -> None:
    """Each range that takes something was held against each that refuses: one request of 60 KB, which needs no token, for minutes."""
    refused = "application/fhir+json;q=0,application/fhir+xml;q=0,multipart/related;q=0,application/dicom+json;q=0"
    accept = ",".join([*(f"*/*;a={number}" for number in range(800)), refused])
    began = time.monotonic()
    response = gateway.get(path, headers={"Accept": accept})
    assert response.status_code in (404, 406), response.text
    assert time.monotonic() - began < 1.0


def test_a_long_list_of_what_is_accepted_is_refused_in_words(gateway: Gateway) -> None:
    response = gateway.get("/dicom-web/studies", headers={"Accept": "application/dicom+json," * 65})
    assert (response.status_code, response.json()["parameter"]) == (406, "Accept")
    assert gateway.get("/dicom-web/studies", headers={"Accept": "x/y," * 63 + "*/*"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "between"),
    [
        ("/dicom-web/studies?multiplevaluematching=true&ModalitiesInStudy=X0", "%5CX"),
        ("/fhir/ImagingStudy?modality=X0", "&modality=X"),
    ],
)
def test_a_search_that_is_a_question_to_every_node_for_each_of_many_values_is_refused(
    gateway: Gateway, path: str, between: str
) -> None:
    """4,000 of them were 4,000 C-FINDs to every PACS, by one request."""
    asked = [path, *map(str, range(1, 33))]
    response = gateway.get(between.join(asked))
    assert (response.status_code, "ModalitiesInStudy" in response.text) == (400, True), response.text
    assert gateway.get(between.join(asked[:-1])).status_code == 200
