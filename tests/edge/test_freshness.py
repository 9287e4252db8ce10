"""What an answer tells the caches between here and the user: how old it is, and for how long it may be kept."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.running import Gateway, files_node
from tests.specimens import specimen, uid

STUDY = uid("s")
PATHS = (
    "/dicom-web/studies",
    f"/dicom-web/studies/{STUDY}/metadata",
    "/fhir/ImagingStudy",
    f"/fhir/ImagingStudy/{STUDY}",
)


def told(answer) -> tuple[int, int]:
    """(Age, what is left of max-age)."""
    found = re.fullmatch(r"private, max-age=(\d+), must-revalidate", answer.headers["cache-control"])
    assert found, answer.headers["cache-control"]
    age = int(answer.headers["age"])
    return age, int(found[1]) - age


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    specimen(tmp_path, "P", "s", "1")
    return tmp_path


def test_a_complete_answer_tells_its_age_and_how_long_it_may_be_kept(directory: Path) -> None:
    times = {"find_ttl": 60, "location_ttl": 60, "metadata_ttl": 60}
    with Gateway([files_node("f", directory)], **times) as gateway:
        first = {path: gateway.get(path) for path in PATHS}
        for answer in first.values():
            age, left = told(answer)
            assert age <= 10
            assert 40 < left <= 60
            assert "etag" in answer.headers
        time.sleep(1.1)
        for path in PATHS:
            answer = gateway.get(path)
            assert told(answer)[0] >= 1
            assert told(answer)[1] < told(first[path])[1]
            again = gateway.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
            assert told(again)[0] >= 1


def test_what_is_not_reused_here_is_kept_nowhere_unasked(directory: Path) -> None:
    with Gateway([files_node("f", directory)], find_ttl=0, location_ttl=0, metadata_ttl=0) as gateway:
        for path in PATHS:
            answer = gateway.get(path)
            assert answer.headers["cache-control"] == "private, no-cache"
            assert answer.headers["age"] == "0"


def test_the_shortest_time_of_the_nodes_counts(directory: Path) -> None:
    nodes = [files_node("f", directory), files_node("g", directory, ttl={"find": 5})]
    with Gateway(nodes, find_ttl=600) as gateway:
        assert told(gateway.get("/dicom-web/studies"))[1] <= 5


def test_a_partial_answer_is_stored_nowhere(directory: Path) -> None:
    missing = {"id": "x", "name": "x", "adapter": "dicomweb", "connection": {"url": "http://127.0.0.1:9/"}}
    with Gateway([files_node("f", directory), missing]) as gateway:
        for path in ("/dicom-web/studies", "/fhir/ImagingStudy"):
            assert gateway.get(path).headers["cache-control"] == "no-store"


def test_what_no_node_was_asked_for_has_no_age(directory: Path) -> None:
    with Gateway([files_node("f", directory)]) as gateway:
        answer = gateway.get("/fhir/metadata")
        assert "age" not in answer.headers
        assert answer.headers["cache-control"] == "private, no-cache"


def test_a_page_of_another_origin_may_read_all_of_it(directory: Path) -> None:
    with Gateway([files_node("f", directory)], cors_origins=("https://viewer.example",)) as gateway:
        answer = gateway.get("/dicom-web/studies", headers={"Origin": "https://viewer.example"})
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert exposed >= {"Warning", "ETag", "Link", "Retry-After", "Age"}


def test_the_metrics_count_look_ups_by_layer_and_outcome_and_name_nobody(directory: Path) -> None:
    with Gateway([files_node("f", directory)], find_ttl=60, kept_bytes=0) as gateway:
        before = _counted(gateway.get("/metrics").text)
        for _ in range(3):
            gateway.get("/dicom-web/studies?PatientID=P")
        text = gateway.get("/metrics").text
    more = {name: value - before.get(name, 0) for name, value in _counted(text).items()}
    assert more['gateway_cache_lookups_total{layer="local",outcome="hit"}'] == 2
    assert more['gateway_cache_lookups_total{layer="redis",outcome="miss"}'] == 1
    assert more['gateway_cache_loads_total{outcome="kept"}'] == 1
    assert STUDY not in text
    assert "gateway_cache_up 1.0" in text


def _counted(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("gateway_cache_")]
    return {name: float(value) for name, _, value in lines}


def test_a_304_varies_as_its_200_does(tmp_path: Path) -> None:
    """RFC 9110 15.4.5: a 304 has the Vary that the 200 would have had."""
    for n in range(6):
        specimen(tmp_path, "P", f"s{n}")
    with Gateway([files_node("a", tmp_path)], find_ttl=60) as gateway:
        path = "/dicom-web/studies?PatientID=P"
        first = gateway.get(path, headers={"Accept-Encoding": "gzip"})
        time.sleep(0.1)
        for wanted in (first.headers["etag"], "*"):
            for control in ("", "no-cache"):
                headers = {"Accept-Encoding": "gzip", "If-None-Match": wanted, "Cache-Control": control}
                again = gateway.get(path, headers=headers)
                assert again.status_code == 304
                assert again.headers["vary"] == first.headers["vary"]
