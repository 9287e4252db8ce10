"""A gateway process whose node file changes, whose callers never stop asking, and whose streams are read at leisure."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.simulators.bulk import ct_series, large_multiframe
from tests import peers
from tests.bench.processes import Server, node, node_file
from tests.running import TRUST

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
PATIENCE = 60.0


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `holds` says as soon as that is true; AssertionError when it never is."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came to be")


def put(served: Server, text: str) -> None:
    """Puts a node file in place at once, as a careful program does: by renaming."""
    new = served.directory / "nodes.new"
    new.write_text(text)
    new.replace(served.directory / "nodes.toml")


def write(served: Server, nodes: Sequence[Mapping[str, Any]]) -> None:
    put(served, node_file(nodes))


def listed(served: Server) -> dict[str, Any]:
    """/nodes."""
    return httpx.get(f"{served.url}/nodes", verify=TRUST, timeout=30).json()


def ids(served: Server) -> list[str]:
    return [one["id"] for one in listed(served)["nodes"]]


def log(served: Server) -> str:
    return (served.directory / "log").read_text()


class Stream:
    """A study that is being retrieved, read as slowly as one likes."""

    def __init__(self, served: Server, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        self._connection.request("GET", path, headers={"Accept": STORED})
        self._answer = self._connection.getresponse()
        self.status = self._answer.status
        self.received = len(self._answer.read(1_000_000))

    def rest(self) -> int:
        """All bytes of the body. Raises http.client.IncompleteRead, or an OSError, when it breaks off."""
        while chunk := self._answer.read(1_000_000):
            self.received += len(chunk)
        return self.received

    def close(self) -> None:
        self._connection.close()


@contextmanager
def asked_all_the_time(url: str, callers: int = 2) -> Iterator[Counter[object]]:
    """Callers that ask one thing again and again over connections that stay open; counts what they get, by status.

    Some have been answered once this is entered."""
    seen: Counter[object] = Counter()
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                try:
                    seen[client.get(url).status_code] += 1
                except httpx.HTTPError as error:
                    seen[type(error).__name__] += 1

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: seen.total() >= callers)
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class Hospitals:
    """Three directories in memory: two tiny ones, and one with an instance of 200 MB."""

    def __init__(self, home: Path) -> None:
        self.large, self.first, self.second = home / "large", home / "first", home / "second"
        self.large_study = large_multiframe(self.large / "multiframe.dcm", 200)
        self.large_bytes = (self.large / "multiframe.dcm").stat().st_size
        self.first_study = ct_series(self.first, 2, rows=32, columns=32, key="first")
        ct_series(self.second, 2, rows=32, columns=32, key="second")

    def node(self, name: str, directory: Path, **more: Any) -> dict[str, Any]:
        return node(name, "files", {"directory": str(directory)}, search_deadline=60, **more)


@pytest.fixture(scope="session")
def hospitals() -> Iterator[Hospitals]:
    with peers.home() as home:
        yield Hospitals(home)


def is_gone(pid: int) -> bool:
    """Whether the process has ended (one that nobody has waited for yet has)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(pid: int, signal: int) -> None:
    os.kill(pid, signal)
