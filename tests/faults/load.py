"""Steady load on a gateway whose node gets new studies meanwhile: no request may fail, and none may be shown what is too old."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.faults.leftovers import eventually
from tests.faults.ward import BOTH, fill, made
from tests.running import TRUST, Gateway

CLIENTS = 8
FIND_TTL, STALE = 1.0, 1.0
SLACK = 2.0
"""Seconds that one answer of a node may take on a busy machine: what it says is that old before it is kept."""


@dataclass(frozen=True)
class Seen:
    """One answer: when it was asked for, its status, and the studies in it."""

    asked: float
    status: int
    studies: frozenset[str]
    age: float
    text: str = ""


@dataclass
class Load:
    """Clients that ask the same and different things; `stored` is when each study had come to the node."""

    gateway: Gateway
    node: DicomwebSimulator
    folder: Path
    seen: list[Seen] = field(default_factory=list)
    others: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stored: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Load:
        self._clients = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(CLIENTS)]
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for client in self._clients:
            client.join(60)

    def store(self) -> str:
        """A study that is new at the node."""
        study = f"1.2.826.8.{next(self._numbers)}"
        data = made(study, "P-NEW", self.folder / "new.dcm").read_bytes()
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--b--\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        answer = httpx.post(f"{self.node.url}/studies", content=body, headers={"Content-Type": kind}, timeout=30)
        assert answer.status_code == 200
        self.stored[study] = time.monotonic()
        return study

    def run(self, seconds: float) -> None:
        assert not self._ended.wait(seconds)

    def _ask_on(self, number: int) -> None:
        with httpx.Client(base_url=self.gateway.url, timeout=30, verify=TRUST) as client:
            for turn in itertools.count(number):
                if self._ended.is_set():
                    return
                try:
                    self._ask(client, turn)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                time.sleep(0.005)

    def _ask(self, client: httpx.Client, turn: int) -> None:
        asked = time.monotonic()
        if turn % 4 == 0:
            answer = client.get(f"/dicom-web/studies/{BOTH}/metadata")
        elif turn % 4 == 1:
            answer = client.get(f"/dicom-web/studies?StudyDate=20000101-20991231&StudyID={turn % 500}")
        elif turn % 4 == 2:
            answer = client.get("/fhir/ImagingStudy?_count=200")
            self._note(asked, answer, [entry["resource"]["id"] for entry in answer.json().get("entry", ())])
        else:
            answer = client.get("/dicom-web/studies")
            self._note(asked, answer, [row["0020000D"]["Value"][0] for row in answer.json()])
        self.others[answer.status_code] += 1
        if answer.status_code != 200 or "warning" in answer.headers:
            self.failures.append(f"{answer.status_code} {answer.headers.get('warning')} {answer.text[:200]}")

    def _note(self, asked: float, answer: httpx.Response, studies: list[str]) -> None:
        age = float(answer.headers.get("age", 0))
        self.seen.append(Seen(asked, answer.status_code, frozenset(studies), age))

    def assert_nothing_failed_and_nothing_was_stale(self) -> None:
        assert not self.failures, (len(self.failures), self.failures[:3])
        assert sum(self.others.values()) > 50 * CLIENTS / 8
        assert max(one.age for one in self.seen) <= FIND_TTL + STALE + SLACK
        for study, when in self.stored.items():
            due = [one for one in self.seen if one.asked > when + FIND_TTL + STALE + SLACK]
            assert due, "nobody asked late enough"
            late = [one.asked - when for one in due if study not in one.studies]
            assert not late, f"not seen {max(late):.1f} s after it had come"


@contextmanager
def load(folder: Path, redis_url: str, **settings: Any) -> Iterator[Load]:
    """Over a gateway with this Redis and one DICOMweb node; it has warmed up once this is entered."""
    node_file = {"id": "web", "name": "web", "adapter": "dicomweb", "patient_id_issuer": "LOAD"}
    with DicomwebSimulator(fill(folder / "node", BOTH)) as node:
        nodes = [{**node_file, "connection": {"url": node.url}}]
        given: dict[str, Any] = {
            "redis_url": redis_url, "cache_timeout": 0.5, "find_ttl": FIND_TTL, "stale_seconds": STALE,
            "stale_if_error_seconds": 0.0, "spool": folder,
        }  # fmt: skip
        with Gateway(nodes, **{**given, **settings}) as gateway:
            assert gateway.get("/dicom-web/studies").status_code == 200
            with Load(gateway, node, folder) as running:
                yield running


def settled(running: Load) -> None:
    """Until clients that asked when the last study was due have their answers."""
    due = max(running.stored.values()) + FIND_TTL + STALE + SLACK
    assert eventually(lambda: sum(one.asked > due for one in list(running.seen)) > 5 * CLIENTS, 60)
