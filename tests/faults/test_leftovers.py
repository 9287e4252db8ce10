"""What requests leave to the collector, in a gateway in a process of its own: nothing of ours. A cycle keeps what a request had
in hand, patients' rows too, until the collector comes by, and makes it stop everybody for longer the more there are."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests import peers
from tests.bench import processes
from tests.faults.proxy import Fault, Kind
from tests.soak.caller import FRAMES, STORED
from tests.soak.stage import DEADLINES, KINDS, Stage, stage

_LOOKING = """
import gc, signal
from pathlib import Path
from gateway import allocator
allocator._EVERY = 3600
allocator.collect_the_young = lambda: None

def begin(*_):
    gc.collect()
    gc.disable()
    Path("begun").touch()

def is_ours(one):
    if type(one).__name__ == "frame":
        return "/gateway/" in one.f_code.co_filename
    return type(one).__module__.startswith("gateway.")

def name(one):
    return one.f_code.co_qualname if type(one).__name__ == "frame" else type(one).__qualname__

def end(*_):
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    Path("leaving").write_text(" ".join(sorted({name(one) for one in gc.garbage if is_ours(one)})))
    Path("leaving").rename("left")
    gc.garbage.clear()
    gc.collect()

signal.signal(signal.SIGUSR1, begin)
signal.signal(signal.SIGUSR2, end)
"""
_SETTINGS = {"find_ttl": 1, "location_ttl": 1, "metadata_ttl": 1, "spool_seconds": 1, "search_deadline": 6}


@dataclass
class Place:
    """A gateway over five nodes that may fall ill."""

    server: processes.Server
    scene: Stage
    asked: Counter[str] = field(default_factory=Counter)

    def study(self, node: str) -> str:
        """Another one of the node's studies each time."""
        self.asked[node] += 1
        return self.scene.studies[node][self.asked[node] - 1]

    def ask(self, node: str) -> list[int]:
        """Everything that is asked of a node, of a study of its own; and searches of all nodes."""
        study, number = self.study(node), self.asked[node]
        root, of = f"/nodes/{node}/dicom-web/studies", f"{study}/series/{study}.1/instances/{study}.1.1"
        with httpx.Client(base_url=self.server.url, timeout=60) as client:

            def status(path: str, accept: str = "*/*") -> int:
                try:
                    return client.get(path, headers={"Accept": accept}).status_code
                except httpx.RemoteProtocolError:  # broken off, as it should be
                    return 0

            return [
                status(f"/dicom-web/studies?StudyDate=20240101-202402{number + 10}"),
                status(f"/fhir/ImagingStudy?_count={number + 5}"),
                status(f"{root}?StudyInstanceUID={study}"),
                status(f"{root}/{study}/metadata"),
                status(f"{root}/{study}", STORED),
                status(f"{root}/{of}/frames/1", FRAMES),
            ]

    def begin(self) -> None:
        self._signal(signal.SIGUSR1, "begun")

    def left(self) -> str:
        """The names of what was left since then."""
        time.sleep(1.5)  # what is kept for a moment has gone
        return self._signal(signal.SIGUSR2, "left").read_text()

    def _signal(self, number: signal.Signals, answer: str) -> Path:
        told = self.server.directory / answer
        told.unlink(missing_ok=True)
        os.kill(self.server.process.pid, number)
        ends = time.monotonic() + 60
        while not told.exists() and time.monotonic() < ends:
            time.sleep(0.05)
        return told


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with peers.home() as folder, stage(folder) as scene:
        for node in scene.nodes:
            node |= {"breaker": {"failures": 10_000}, **dict.fromkeys(DEADLINES, 0.7)}
        with processes.gateway(scene.nodes, before=_LOOKING, redis_url=scene.redis.url, **_SETTINGS) as server:
            made = Place(server, scene)
            for node in scene.proxies:
                made.ask(node)
            yield made


@pytest.mark.parametrize("node", ["web", "pacs", "fhir"])
def test_answers_leave_nothing_to_the_collector(place: Place, node: str) -> None:
    place.begin()
    assert set(place.ask(node) + place.ask(node)) == {200}
    assert place.left() == ""


@pytest.mark.parametrize("kind", sorted(set(KINDS["http"]) - {"slow drip", "slow start"}))
def test_failures_of_a_web_server_leave_nothing_to_the_collector(place: Place, kind: Kind) -> None:
    fails(place, "web", kind)


@pytest.mark.parametrize("kind", sorted(set(KINDS["dimse"]) - {"slow drip", "slow start"}))
def test_failures_of_a_pacs_leave_nothing_to_the_collector(place: Place, kind: Kind) -> None:
    fails(place, "pacs", kind)


def fails(place: Place, node: str, kind: Kind) -> None:
    place.begin()
    with place.scene.proxies[node].by(Fault(kind, piece=16, delay=10.0, flood=100_000_000)):
        first, *_ = statuses = place.ask(node)
    assert first == 200, "the others answered"
    assert set(statuses) - {200}, "the node did not"
    assert place.left() == ""


def test_callers_who_leave_leave_nothing_to_the_collector(place: Place) -> None:
    place.begin()
    study = place.study("web")
    root = f"{place.server.url}/nodes/web/dicom-web/studies"
    with place.scene.proxies["web"].by(Fault("slow start", delay=0.5)):
        for address in (f"{root}?StudyInstanceUID={study}", f"{root}/{study}/metadata", f"{root}/{study}"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(address, headers={"Accept": "*/*"}, timeout=0.2)
    assert place.left() == ""
