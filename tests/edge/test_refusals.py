"""What is refused before anything is asked: paths that are none, methods that are none, each in our own form."""

from __future__ import annotations

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
