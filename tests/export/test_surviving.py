"""An export goes on when its process is killed, and is shared by replicas: no line is lost, none comes twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import peers
from tests.bench import processes
from tests.bench.processes import Server
from tests.catalogue import CatalogueNodes, catalogue_nodes, made_up
from tests.export.asking import Export, begin
from tests.lifecycle.conftest import eventually
from tests.running import TRUST

ROWS = made_up(3000, nodes=4, shared=0.05)
HELD = {row["StudyInstanceUID"] for part in ROWS for row in part}
PATIENTS = {row["PatientID"] for part in ROWS for row in part}


@pytest.fixture(scope="module")
def nodes() -> Iterator[CatalogueNodes]:
    with catalogue_nodes(ROWS, delay=0.01) as running:
        yield running


def settings(kept: Path, **more: Any) -> dict[str, Any]:
    common = {"probe": "false", "secret": "the same at all replicas", "log_level": "INFO", "cache_timeout": 5}
    return {**common, "export_directory": kept, "store": kept.parent / "store", "export_page": 150, **more}


def at(export: Export, served: Server, client: httpx.Client) -> Export:
    """The same export, asked of another process."""
    return Export(client, re.sub(r"^http://[^/]+", served.url, export.url))


def pages(told: str) -> int:
    return int(re.search(r"in (\d+) pages", told).group(1))  # type: ignore[union-attr]


def has_come_to(export: Export, least: int) -> bool:
    export.poll()
    return bool(export.progress) and pages(export.progress[-1]) >= least


def steps(served: Server) -> int:
    told = httpx.get(f"{served.url}/metrics", verify=TRUST, timeout=30).text
    found = re.findall(r'^gateway_export_steps_total\{outcome="(?:done|complete)"\} ([\d.]+)', told, re.MULTILINE)
    return int(sum(map(float, found)))


def require_whole(export: Export) -> None:
    manifest = export.manifest(120)
    for file in (*manifest["output"], *manifest["error"]):
        assert export.url in file["url"]
    assert manifest["error"] == []
    studies, patients = export.ids(manifest), export.ids(manifest, "Patient")
    assert set(studies) == HELD
    assert len(patients) == len(PATIENTS)
    assert set(studies.values()) == set(patients.values()) == {1}


def test_a_killed_gateway_goes_on_with_its_exports_when_it_is_back(nodes: CatalogueNodes, tmp_path: Path) -> None:
    given = settings(tmp_path / "kept")
    with httpx.Client(timeout=60) as client:
        with processes.gateway(nodes.tables(quirks=[]), **given) as served:
            export = begin(client, f"{served.url}/fhir/$export")
            eventually(lambda: has_come_to(export, 3))
            served.process.kill()
            served.process.wait()
        with processes.gateway(nodes.tables(quirks=[]), **given) as served:
            again = at(export, served, client)
            again.poll()
            assert pages(again.progress[0]) >= 3
            require_whole(again)


def test_a_node_that_is_another_archive_since_an_export_began_is_named_as_incomplete(
    nodes: CatalogueNodes, tmp_path: Path
) -> None:
    """Behind the place that was come to, its newer studies are not asked for any more."""
    given, tables = settings(tmp_path / "kept"), nodes.tables(quirks=[])
    with httpx.Client(timeout=60) as client:
        with processes.gateway(tables, **given) as served:
            export = begin(client, f"{served.url}/fhir/$export?_type=ImagingStudy")
            eventually(lambda: has_come_to(export, 3))
            served.process.kill()
            served.process.wait()
        tables[1]["connection"] = tables[0]["connection"]
        tables[2]["search_deadline"] = 50
        with processes.gateway(tables, **given) as served:
            again = at(export, served, client)
            missing = [one["issue"][0]["diagnostics"] for one in again.lines(again.manifest(120), "OperationOutcome")]
    assert [text for text in missing if "another archive" in text] == [
        "node n01: is another archive than when the export began, or is read otherwise; some of its studies may be missing"
    ]


@pytest.mark.interop
def test_replicas_share_an_export_and_one_that_is_killed_is_not_missed(nodes: CatalogueNodes, tmp_path: Path) -> None:
    with peers.redis() as redis, httpx.Client(timeout=60) as client:
        given = settings(tmp_path / "kept", redis_url=redis.url)
        tables = nodes.tables(quirks=[])
        with processes.gateway(tables, **given) as one, processes.gateway(tables, **given) as other:
            export = begin(client, f"{one.url}/fhir/$export")
            eventually(lambda: steps(one) >= 2 and steps(other) >= 2)
            other.process.kill()
            other.process.wait()
            require_whole(export)


@pytest.mark.interop
def test_what_redis_forgets_is_found_in_the_directory(nodes: CatalogueNodes, tmp_path: Path) -> None:
    with peers.redis() as redis, httpx.Client(timeout=60) as client:
        given = settings(tmp_path / "kept", redis_url=redis.url, export_at_once=0)
        tables = nodes.tables(quirks=[])
        with processes.gateway(tables, **given) as waiting:
            export = begin(client, f"{waiting.url}/fhir/$export?_type=Endpoint,Organization")
            import redis as client_of_redis

            client_of_redis.Redis.from_url(redis.url).flushall()
            with processes.gateway(tables, **{**given, "export_at_once": 1}):
                assert export.ids(export.manifest(), "Endpoint").total() == 4


def test_a_cancelled_export_stops_while_it_is_worked_on(nodes: CatalogueNodes, tmp_path: Path) -> None:
    with (
        httpx.Client(timeout=60) as client,
        processes.gateway(nodes.tables(quirks=[]), **settings(tmp_path / "kept")) as served,
    ):
        export = begin(client, f"{served.url}/fhir/$export")
        eventually(lambda: has_come_to(export, 2))
        assert client.delete(export.url).status_code == 202
        assert client.get(export.url).status_code == 404
        eventually(lambda: not list((tmp_path / "kept").iterdir()))
        second = begin(client, f"{served.url}/fhir/$export?_type=Endpoint")
        assert second.manifest()["output"]


def test_another_secret_ends_an_export_whose_patient_ids_would_change(nodes: CatalogueNodes, tmp_path: Path) -> None:
    given = settings(tmp_path / "kept")
    with httpx.Client(timeout=60) as client:
        with processes.gateway(nodes.tables(quirks=[]), **{**given, "export_at_once": 0}) as served:
            export = begin(client, f"{served.url}/fhir/$export")
        with processes.gateway(nodes.tables(quirks=[]), **{**given, "secret": "another one than before"}) as served:
            answer = at(export, served, client).over()
            assert answer.status_code == 403
            assert "GATEWAY_SECRET" in answer.text


def test_workers_of_one_gateway_share_its_exports(nodes: CatalogueNodes) -> None:
    given = {"probe": "false", "export_page": 150, "workers": 2, "cache_timeout": 5}
    with httpx.Client(timeout=60) as client, processes.gateway(nodes.tables(quirks=[]), **given) as served:
        export = begin(client, f"{served.url}/fhir/$export?_type=ImagingStudy")
        assert set(export.ids(export.manifest(120))) == HELD
