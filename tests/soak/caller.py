"""One process of callers, each in a thread: `caller.py URL STUDIES SECONDS THREADS SEED` prints a line of JSON per request."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import httpx

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
_PRINTING = threading.Lock()
LEAVING = 0.08
"""The share of requests whose caller does not wait for the end."""


@dataclass
class Asked:
    """One request: `node` is whose root it was sent to, '' for all; `end` is a status, or left, broken, unreachable.

    `began` and `ended` are seconds of the epoch. `warned`: the answer says that it may lack something.
    """

    operation: str
    node: str
    began: float
    ended: float
    end: str
    warned: bool = False


class Caller(threading.Thread):
    """Asks one question after the other. `studies` are the UIDs by node; those of '' are held where nothing ever fails."""

    def __init__(self, url: str, studies: dict[str, list[str]], seconds: float, seed: int) -> None:
        super().__init__()
        self._url, self._studies, self._ends = url, studies, time.time() + seconds
        self._chance = random.Random(seed)

    def run(self) -> None:
        kinds = [self._search, self._page_through, self._metadata, self._retrieve, self._frames]
        with httpx.Client(base_url=self._url, timeout=60) as self._client:
            while time.time() < self._ends:
                self._chance.choices(kinds, [4, 2, 3, 2, 2])[0]()
                time.sleep(self._chance.random() * 0.05)

    def _place(self) -> tuple[str, str, str]:
        """A node ('' for all), the root of its services, and a study that it has."""
        node = self._chance.choice(["", "", *self._studies])
        return node, f"/nodes/{node}/dicom-web" if node else "/dicom-web", self._chance.choice(self._studies[node])

    def _search(self) -> None:
        node, root, study = self._place()
        day = self._chance.randrange(1, 29)
        keys = [
            f"StudyInstanceUID={study}",
            f"StudyDate=20240101-202402{day:02}",
            f"ModalitiesInStudy=CT&limit={day}",
            f"limit=5&offset={day}",
        ]
        self._ask("search", node, f"{root}/studies?{self._chance.choice(keys)}")

    def _page_through(self) -> None:
        """All nodes, five pages at most, as a caller of FHIR does it."""
        address = f"/fhir/ImagingStudy?_count={self._chance.choice((3, 10, 25))}"
        for _ in range(5):
            body = self._ask("fhir", "", address)
            following = re.search(
                rb'"relation":"next","url":"([^"]+)"', body.replace(b'" :', b'":').replace(b", ", b",")
            )
            if not following:
                return
            parts = urlsplit(following[1].decode())
            address = f"{parts.path}?{parts.query}"

    def _metadata(self) -> None:
        node, root, study = self._place()
        self._ask("metadata", node, f"{root}/studies/{study}/metadata")

    def _retrieve(self) -> None:
        node, root, study = self._place()
        self._ask("retrieve", node, f"{root}/studies/{study}", STORED)

    def _frames(self) -> None:
        node, root, study = self._place()
        self._ask("frames", node, f"{root}/studies/{study}/series/{study}.1/instances/{study}.1.1/frames/1", FRAMES)

    def _ask(self, operation: str, node: str, address: str, accept: str = "*/*") -> bytes:
        asked = Asked(operation, node, time.time(), 0.0, "")
        body = b""
        try:
            if self._chance.random() < LEAVING:
                self._leave(address, accept)
                asked.end = "left"
            else:
                answer = self._client.get(address, headers={"Accept": accept})
                asked.end, asked.warned, body = str(answer.status_code), "warning" in answer.headers, answer.content
        except httpx.RemoteProtocolError:
            asked.end = "broken"
        except httpx.HTTPError as error:
            asked.end = f"unreachable: {type(error).__name__}"
        asked.ended = time.time()
        with _PRINTING:
            print(json.dumps(asdict(asked)), flush=True)
        return body

    def _leave(self, address: str, accept: str) -> None:
        """Before the answer, or in the middle of it."""
        patience = self._chance.choice((0.002, 0.02, 0.2, 60))
        try:
            with self._client.stream("GET", address, headers={"Accept": accept}, timeout=patience) as answer:
                for _ in answer.iter_raw(1024):
                    break
        except httpx.HTTPError:
            return


def main(url: str, studies: str, seconds: str, threads: str, seed: str) -> None:
    callers = [Caller(url, json.loads(studies), float(seconds), int(seed) * 100 + n) for n in range(int(threads))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
