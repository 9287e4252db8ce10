"""One client that asks on a connection that it keeps, and times each answer to its last byte."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """`milliseconds` from the request sent to the last byte read."""

    body: bytes
    milliseconds: float


class Client:
    """Use it as a context manager. `token` '' sends none."""

    def __init__(self, root: str, token: str = "", timeout: float = 120) -> None:
        self.root = root
        self._connection = http.client.HTTPConnection(urlsplit(root).netloc, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> Client:
        self._connection.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, target: str, accept: str) -> Answer:
        """`target` is a path below the root, or a whole URL of the same server. Raises RuntimeError unless it is a 200."""
        path = target.removeprefix(self.root)
        began = time.perf_counter()
        answer = self._answer(path, accept)
        body = answer.read()
        milliseconds = (time.perf_counter() - began) * 1e3
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status} for {path[:80]}: {body[:200]!r}")
        return Answer(body, milliseconds)

    def _answer(self, path: str, accept: str) -> http.client.HTTPResponse:
        headers = {"Accept": accept, **self._headers}
        try:
            self._connection.request("GET", path, headers=headers)
            return self._connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):  # it was idle for too long
            self._connection.close()
            self._connection.request("GET", path, headers=headers)
            return self._connection.getresponse()
