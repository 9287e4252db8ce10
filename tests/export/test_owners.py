"""Whose an export is: another caller, or the same one with other rights, is told that there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.catalogue import CatalogueNodes, catalogue_nodes, made_up
from tests.edge.test_kept_answers import ViewsBySubject
from tests.export.asking import ASYNC
from tests.running import Gateway
from tests.security.conftest import TestIssuer, issuer_beside

ROWS = made_up(40, nodes=2)
ALL = "system/*.rs"


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with issuer_beside() as running:
        yield running


@pytest.fixture(scope="module")
def nodes() -> Iterator[CatalogueNodes]:
    with catalogue_nodes(ROWS) as running:
        yield running


@pytest.fixture
def served(nodes: CatalogueNodes, issuer: TestIssuer, tmp_path: Path) -> Iterator[Gateway]:
    tables = nodes.tables(quirks=[])
    tables[1]["purposes"] = ["TREAT"]
    kept = tmp_path / "kept"
    with Gateway(tables, views=ViewsBySubject(), oidc_issuer=issuer.issuer, export_directory=kept) as running:
        yield running


class Asker:
    """One caller; `claims` are those of its token."""

    def __init__(self, served: Gateway, issuer: TestIssuer, **claims: Any) -> None:
        self._served, self._issuer = served, issuer
        self.claims = {"scope": ALL, "purpose_of_use": "TREAT", **claims}

    def ask(self, address: str, method: str = "GET", **claims: Any) -> httpx.Response:
        bearer = self._issuer.bearer(**{**self.claims, **claims})
        return self._served.client.request(method, address, headers={**ASYNC, "Authorization": bearer})

    def exported(self, path: str = "/fhir/$export") -> tuple[str, dict[str, Any]]:
        begun = self.ask(path)
        assert begun.status_code == 202, begun.text
        address, ends = begun.headers["content-location"], time.monotonic() + 60
        while time.monotonic() < ends:
            answer = self.ask(address)
            if answer.status_code == 200:
                return address, answer.json()
            time.sleep(0.6)
        raise AssertionError("the export did not end")


def test_somebody_elses_export_is_not_there(served: Gateway, issuer: TestIssuer) -> None:
    owner, other = Asker(served, issuer), Asker(served, issuer, sub="dr-b")
    address, manifest = owner.exported()
    assert manifest["requiresAccessToken"] is True
    file = manifest["output"][0]["url"]
    assert owner.ask(file).status_code == 200
    for url, method in ((address, "GET"), (file, "GET"), (address, "DELETE")):
        assert other.ask(url, method).status_code == 404
        assert served.client.request(method, url, headers=ASYNC).status_code == 401
    assert owner.ask(file).status_code == 200


@pytest.mark.parametrize(
    "claims",
    [{"purpose_of_use": "HRESCH"}, {"scope": "system/ImagingStudy.rs"}, {"nodes": ["n00"]}, {"client_id": "other"}],
)
def test_other_rights_do_not_open_an_export(served: Gateway, issuer: TestIssuer, claims: dict[str, Any]) -> None:
    owner = Asker(served, issuer)
    address, manifest = owner.exported("/fhir/$export?_type=ImagingStudy")
    assert owner.ask(address, **claims).status_code == 404
    assert owner.ask(manifest["output"][0]["url"], **claims).status_code == 404


def test_by_default_the_types_are_those_that_the_scopes_allow(served: Gateway, issuer: TestIssuer) -> None:
    _, manifest = Asker(served, issuer, scope="system/ImagingStudy.rs").exported()
    assert {file["type"] for file in manifest["output"]} == {"ImagingStudy"}


def test_a_type_that_the_scopes_do_not_allow_is_refused(served: Gateway, issuer: TestIssuer) -> None:
    answer = Asker(served, issuer, scope="system/ImagingStudy.rs").ask("/fhir/$export?_type=Patient")
    assert answer.status_code == 403
    assert "Patient" in answer.json()["issue"][0]["diagnostics"]


def test_the_nodes_are_those_that_serve_the_purpose(served: Gateway, issuer: TestIssuer) -> None:
    researching = Asker(served, issuer, purpose_of_use="HRESCH")
    _, manifest = researching.exported("/fhir/$export?_type=ImagingStudy")
    ids = set()
    for file in manifest["output"]:
        ids |= {json.loads(line)["id"] for line in researching.ask(file["url"]).text.splitlines()}
    assert ids == {row["StudyInstanceUID"] for row in ROWS[0]}


def test_an_export_shows_what_the_callers_view_shows(served: Gateway, issuer: TestIssuer) -> None:
    researcher = Asker(served, issuer, sub="researcher")
    _, manifest = researcher.exported("/fhir/$export?_type=Patient")
    patients = [
        json.loads(line) for file in manifest["output"] for line in researcher.ask(file["url"]).text.splitlines()
    ]
    assert patients
    assert not any("Madeup" in str(patient) for patient in patients)


def test_a_token_is_kept_nowhere(served: Gateway, issuer: TestIssuer) -> None:
    owner = Asker(served, issuer)
    owner.exported()
    directory = served.app.state.settings.export_directory  # type: ignore[union-attr]
    kept = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"dr-a" in kept
    assert b"eyJ" not in kept
