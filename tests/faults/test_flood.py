"""Nodes that answer with far too much: what a gateway, in a process of its own, keeps of it while it comes, and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.bench import processes
from tests.faults.proxy import Fault, FaultProxy
from tests.faults.ward import BOTH, SICK, fill

AT_ONCE = 12
MOST_MEANWHILE, MOST_AFTERWARDS = 300, 40
"""10^6 bytes. One answer may be 64 MiB long, and two of one node are held at most."""


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[tuple[processes.Server, FaultProxy]]:
    with DicomwebSimulator(fill(tmp_path / "node", BOTH, SICK)) as peer, FaultProxy(peer.port, "http") as proxy:
        node = processes.node("web", "dicomweb", {"url": f"http://127.0.0.1:{proxy.port}/dicom-web"})
        with processes.gateway([node], cache="false", log_level="ERROR") as server:
            yield server, proxy


def test_a_dozen_floods_at_once_are_not_held_at_once_and_nothing_of_them_stays(
    flooded: tuple[processes.Server, FaultProxy],
) -> None:
    server, proxy = flooded
    address = f"{server.url}/dicom-web/studies"

    def ask(number: int) -> int:
        path = f"/{BOTH}/metadata" if number % 2 else f"?StudyDate=20240101-202401{number + 10}"
        return httpx.get(address + path, timeout=120).status_code

    with ThreadPoolExecutor(AT_ONCE) as callers:
        assert set(callers.map(ask, range(AT_ONCE))) == {200}
        with processes.Memory(server.process) as memory:
            with proxy.by(Fault("flood")):
                assert set(callers.map(ask, range(AT_ONCE))) <= {502, 503, 504}
            assert memory.growth < MOST_MEANWHILE
            assert set(callers.map(ask, range(AT_ONCE))) == {200}
            assert (memory._resident() - memory.before) / 1e6 < MOST_AFTERWARDS
