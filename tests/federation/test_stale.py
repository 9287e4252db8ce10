"""What a gateway shows of a node that has gone silent: for a while the older answer, and it says so."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.cache.purges import EVERYTHING_KEPT, Purge
from gateway.cache.spool import Spool
from gateway.federation.spooled import SpooledSeries
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from gateway.simulators.dicomweb import DicomwebSimulator
from tests.running import Gateway
from tests.specimens import specimen, uid

STUDY, SERIES = uid("s"), uid("s", "1")
SEARCH = "/dicom-web/studies?PatientID=P&IssuerOfPatientID=I"


def node(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "adapter": "dicomweb",
        "connection": {"url": url},
        "patient_id_issuer": "I",
        "quirks": [],
        **more,
    }


@pytest.fixture
def web(tmp_path: Path) -> Any:
    specimen(tmp_path, "P", "s", "1")
    with DicomwebSimulator(tmp_path) as simulator:
        yield simulator


def searches(web: DicomwebSimulator) -> int:
    return web.operations["search_studies"]


def test_the_older_answer_stands_in_and_the_answer_is_partial_and_says_how_old(web: DicomwebSimulator) -> None:
    with Gateway([node("w", web.url)], find_ttl=0.2, stale_seconds=0) as gateway:
        assert len(gateway.get(SEARCH).json()) == 1
        web.stop()
        time.sleep(0.3)
        answer = gateway.get(SEARCH)
        assert (answer.status_code, len(answer.json())) == (200, 1)
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers
        warnings = " ".join(answer.headers.get_list("warning"))
        assert "node w: did not answer; what is shown of it is" in warnings
        bundle = gateway.get("/fhir/ImagingStudy?identifier=urn:oid:" + STUDY).json()
        assert "total" not in bundle or bundle["total"] == 0
        assert gateway.get("/nodes").json()["nodes"][0]["state"] == "down"


def test_fhir_says_so_with_its_code(web: DicomwebSimulator) -> None:
    with Gateway([node("w", web.url)], find_ttl=0.2, location_ttl=0.2, stale_seconds=0) as gateway:
        assert gateway.get("/fhir/ImagingStudy").json()["total"] == 1
        web.stop()
        time.sleep(0.3)
        bundle = gateway.get("/fhir/ImagingStudy").json()
        [outcome] = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "outcome"]
        assert outcome["issue"][0]["details"]["coding"][0]["code"] == "GW210"
        assert len(bundle["entry"]) == 2
        assert "total" not in bundle


def test_a_black_hole_is_waited_for_less_long_than_its_deadline(web: DicomwebSimulator) -> None:
    silent = node("w", web.url, search_deadline=2.0)
    with Gateway([silent], find_ttl=0.2, stale_seconds=0) as gateway:
        assert len(gateway.get(SEARCH).json()) == 1
        web.options = dataclasses.replace(web.options, black_hole=True)
        time.sleep(0.3)
        answer = gateway.get(SEARCH)
        assert (answer.status_code, len(answer.json())) == (200, 1)
        assert "what is shown of it is" in " ".join(answer.headers.get_list("warning"))


def test_metadata_of_a_silent_node_stands_in_but_its_pixels_do_not(web: DicomwebSimulator) -> None:
    times = {"find_ttl": 0.2, "location_ttl": 0.2, "metadata_ttl": 0.2, "stale_seconds": 0}
    with Gateway([node("w", web.url)], **times) as gateway:
        path = f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata"
        assert len(gateway.get(path).json()) == 1
        web.stop()
        time.sleep(0.3)
        answer = gateway.get(path)
        assert (answer.status_code, len(answer.json())) == (200, 1)
        assert "what is shown of it is" in " ".join(answer.headers.get_list("warning"))
        assert answer.headers["cache-control"] == "no-store"
        assert gateway.get(f"/dicom-web/studies/{STUDY}/series/{SERIES}").status_code in (502, 503, 504)


def test_pixels_come_from_the_holder_that_answers_and_not_by_an_old_answer_of_the_other(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "P", "s", "1")
    specimen(tmp_path / "b", "P", "s", "2")
    with DicomwebSimulator(tmp_path / "a") as a, DicomwebSimulator(tmp_path / "b") as b:
        times = {"find_ttl": 0.2, "location_ttl": 0.2, "stale_seconds": 0}
        with Gateway([node("a", a.url), node("b", b.url)], **times) as gateway:
            path = f"/dicom-web/studies/{STUDY}"
            assert gateway.get(path).content.count(b"application/dicom") == 2
            assert len(gateway.get(f"{path}/series").json()) == 2
            b.stop()
            time.sleep(0.3)
            answer = gateway.get(path)
            assert (answer.status_code, answer.content.count(b"application/dicom")) == (200, 1)
            assert "node b" in " ".join(answer.headers.get_list("warning"))
            assert len(gateway.get(f"{path}/series").json()) == 2, "a search still shows what it had"


def test_the_spool_lets_go_of_what_is_purged(tmp_path: Path) -> None:
    forgotten: list[tuple[str, str]] = []
    spooled = SpooledSeries(Spool(tmp_path, max_bytes=0))
    spooled.spool.forget = lambda *place: forgotten.append(place)  # type: ignore[method-assign, assignment]
    for name, patient, study in (("w", "P", "1.2"), ("w", "Q", "1.3"), ("v", "P", "1.4")):
        linked = frozenset({PatientKey("J", f"{patient} elsewhere")})
        spooled.settle(Row(Level.STUDY, name, PatientKey("I", patient), study, linked=linked))
    for purge, places in (
        (Purge("study", ("1.3",)), [("w", "1.3")]),
        (Purge.of_patient("I", "P"), [("w", "1.2"), ("v", "1.4")]),
        (Purge.of_patient("J", "P elsewhere"), [("w", "1.2"), ("v", "1.4")]),
        (Purge("node", ("w",)), [("w", "1.2"), ("w", "1.3")]),
        (Purge("all"), []),
        (EVERYTHING_KEPT, [("w", "1.2"), ("w", "1.3"), ("v", "1.4")]),
    ):
        forgotten.clear()
        spooled.purged(purge)
        assert forgotten == places


def test_it_can_be_turned_off(web: DicomwebSimulator) -> None:
    with Gateway([node("w", web.url)], find_ttl=0.2, stale_seconds=0, stale_if_error_seconds=0) as gateway:
        assert gateway.get(SEARCH).status_code == 200
        web.stop()
        time.sleep(0.3)
        assert gateway.get(SEARCH).status_code == 503


def test_soon_after_its_time_an_answer_comes_at_once_and_whole_while_the_node_is_asked(web: DicomwebSimulator) -> None:
    with Gateway([node("w", web.url)], find_ttl=0.2, stale_seconds=60) as gateway:
        first = gateway.get(SEARCH)
        time.sleep(0.3)
        second = gateway.get(SEARCH)
        assert second.json() == first.json()
        assert second.headers["cache-control"] == "private, no-cache"
        assert second.headers["etag"] == first.headers["etag"]
        ends = time.monotonic() + 30
        while searches(web) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
        assert searches(web) == 2


def test_a_node_has_times_of_its_own(web: DicomwebSimulator, tmp_path: Path) -> None:
    with DicomwebSimulator(tmp_path) as other:
        nodes = [node("w", web.url, ttl={"find": 0}), node("v", other.url)]
        with Gateway(nodes, find_ttl=600) as gateway:
            gateway.get(SEARCH)
            before = searches(web), searches(other)
            for _ in range(3):
                assert gateway.get(SEARCH).status_code == 200
            assert (searches(web), searches(other)) == (before[0] + 3, before[1])


def test_that_there_is_nothing_is_believed_for_a_shorter_time(web: DicomwebSimulator) -> None:
    with Gateway([node("w", web.url, ttl={"negative": 2.0})], find_ttl=600) as gateway:
        nobody = SEARCH.replace("PatientID=P", "PatientID=NOBODY")
        for _ in range(3):
            assert gateway.get(nobody).json() == []
        assert searches(web) == 1
        time.sleep(2.1)
        gateway.get(nobody)
        assert searches(web) == 2
