"""Who asked for what, why, of whom, and what came of it: one JSON line per request, in a sink of its own.

An answer that goes out piece by piece, and what is stored, has a line of its own before the first piece: the same but for
`outcome` ("begun"), `count` and `seconds`, under the `request_id` of the line that tells its end. Where there is only that
one the process did not live to its end: what the line names may have been shown.

A record is never dropped. It is queued without waiting and written by a thread of its own, in order. While the sink
refuses records, or too many wait for it, `begin` refuses new requests (AuditUnavailable) before any node is asked: what
is not written down is not shown. Requests already under way finish; their records wait and are written when the sink
recovers. At the end, records that the file still refuses go to standard error. A line that is no JSON object is a record
that a full disk cut short: it was written again, whole, behind that or to standard error.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import AuditUnavailable, SettingsError
from gateway.model.answer import Issue
from gateway.model.folding import fold
from gateway.model.query import Match, Operator, Query, Ref
from gateway.security.caller import Caller
from gateway.telemetry import log, request_id

_MOST_WAITING = 10_000
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_BATCH = 500
_GATHER_SECONDS = 0.005
"""How long the writing thread lets records gather: one that woke up for each would take the interpreter from the requests."""
_STANDARD_ERROR = 2
BEGUN = "begun"
_NEWLINE = 0x0A


@dataclass(slots=True)
class AuditRecord:
    """One request. The pipeline fills in `outcome` (success, partial, an error code), `studies`, `issues` and `count`.

    `match` is the search's attributes with their values keyed-hashed; `ref` is the path of UIDs that was asked for. `address` is
    where it came from, of one that was turned away.
    """

    action: str
    caller: Caller
    nodes: tuple[str, ...]
    request_id: str
    at: datetime
    match: dict[str, str | list[str]]
    ref: str
    studies: list[str] = field(default_factory=list)
    issues: Sequence[Issue] = ()
    count: int = 0
    outcome: str = ""
    started: float = field(default_factory=time.monotonic)
    address: str = ""

    def as_json(self) -> dict[str, Any]:
        """The record as it is written; UIDs are in clear, no other value of a patient is."""
        return {
            **_asking(self.at, self.request_id, self.caller),
            **self.what(),
            "seconds": round(time.monotonic() - self.started, 3),
            **({"address": self.address} if self.address else {}),
        }

    def what(self) -> dict[str, Any]:
        """The part of the record that does not depend on who asks and when."""
        return {
            "action": self.action,
            "nodes": self.nodes,
            "ref": self.ref,
            "match": self.match,
            "outcome": self.outcome,
            "studies": self.studies,
            "count": self.count,
            "issues": [{"node": issue.node, "code": issue.code} for issue in self.issues],
        }


def _asking(at: datetime, identifier: str, caller: Caller) -> dict[str, Any]:
    """Who asks and when."""
    return {
        "time": at,  # orjson writes it, ten times as fast
        "request_id": identifier,
        "subject": caller.subject,
        "client": caller.client,
        "purpose": caller.purpose,
    }


def constant(record: AuditRecord) -> bytes:
    """What `Audit.again` writes of a record: the members of its JSON object that are the same for the same answer."""
    return orjson.dumps(record.what())[1:-1]


def match_hash(secret: bytes, name: str, value: str) -> str:
    """A match value as the audit keeps it, so that who holds the secret can ask whether a value was searched for.

    `name` is the attribute's keyword, `value` its DICOM text: a range is 'low-high', a wildcard the pattern itself.
    """
    key = hmac.digest(secret, b"audit match value", "sha256")
    return "hmac:" + hmac.digest(key, f"{name}\0{fold(value.strip())}".encode(), hashlib.sha256).hex()[:32]


class Audit:
    """The audit sink. `path` None is standard error. `open` it before use; `close` waits until all is written."""

    def __init__(self, path: Path | None, secret: bytes, *, most_waiting: int = _MOST_WAITING) -> None:
        self._secret = secret
        self._most_waiting = most_waiting
        self._sink = Sink(path)
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    async def open(self) -> None:
        """Opens the file, made with mode 0600 if there is none. Raises SettingsError when that fails."""
        try:
            self._sink.open()
        except OSError:
            raise SettingsError(
                "GATEWAY_AUDIT: the file cannot be opened to append", parameter="GATEWAY_AUDIT"
            ) from None
        self._thread = threading.Thread(target=self._drain, name="audit", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Writes what waits; what the sink refuses to the end goes to standard error."""
        if self._thread is None:
            return
        self._closing.set()
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)
        if self._thread.is_alive():
            log().error("audit", outcome="failed", reason="the sink does not take the last records", count=self.waiting)
        self._thread = None

    @property
    def waiting(self) -> int:
        """Records not yet handed to the sink."""
        return self._waiting.qsize()

    def begin(
        self,
        action: str,
        caller: Caller,
        nodes: Sequence[str],
        query: Query | None = None,
        ref: Ref | None = None,
    ) -> AuditRecord:
        """The record of a request that is about to be served. Raises AuditUnavailable when it could not be kept."""
        self._require_sink()
        asked = ref or (Ref(query.study, query.series) if query and query.study else None)
        return AuditRecord(
            action,
            caller,
            tuple(nodes),
            request_id.get(),
            datetime.now(UTC),
            self.hashed(query.asked) if query else {},
            asked.path if asked else "",
            [asked.study] if asked else [],
        )

    def write(self, record: AuditRecord) -> None:
        """Queues the record as it is now; never waits, never fails for the sink's sake."""
        self._put(orjson.dumps(record.as_json()) + b"\n")

    def begun(self, record: AuditRecord) -> None:
        """Queues what is known of a request before its first piece passes. Raises AuditUnavailable when it could not be kept;
        then nothing may."""
        self._require_sink()
        self._put(orjson.dumps({**record.as_json(), "outcome": BEGUN, "count": 0}) + b"\n")

    def again(self, caller: Caller, what: bytes, started: float) -> None:
        """Queues the record of a request that gets an answer again, `what` being that answer's `constant` part.

        `started` is by time.monotonic. Raises AuditUnavailable when it could not be kept; then nothing may be shown.
        """
        self._require_sink()
        asking = orjson.dumps(_asking(datetime.now(UTC), request_id.get(), caller))
        seconds = round(time.monotonic() - started, 3)
        self._put(b'%b,%b,"seconds":%a}\n' % (asking[:-1], what, seconds))

    def _require_sink(self) -> None:
        if self._sink.failing or self.waiting >= self._most_waiting:
            raise AuditUnavailable("requests are not served while their audit cannot be written; try again shortly")

    def _put(self, line: bytes) -> None:
        if self._thread is None and self._closing.is_set():
            self._write(line)  # the last request outlived the writing thread
        else:
            self._waiting.put(line)

    def hashed(self, matches: Sequence[Match]) -> dict[str, str | list[str]]:
        """What a record says of the values of a patient."""
        hashes: dict[str, list[str]] = {}
        for match in matches:
            values = ["-".join(match.values)] if match.operator is Operator.RANGE else match.values
            hashes.setdefault(match.name, []).extend(match_hash(self._secret, match.name, value) for value in values)
        return {name: found[0] if len(found) == 1 else found for name, found in hashes.items()}

    def _drain(self) -> None:
        """The writing thread: takes what waits, in batches, until the None that ends it."""
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            if batch[0] is not None:
                time.sleep(_GATHER_SECONDS)
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            ended = None in batch
            self._write(b"".join(line for line in batch if line is not None))
        self._sink.close()

    def _write(self, lines: bytes) -> None:
        """Writes until the sink has all; on the way out, what it refuses is given to standard error."""
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[self._sink.write(rest) :]
            except OSError as error:
                log().error("audit", outcome="failed", reason=type(error).__name__, code=error.errno)
                if self._closing.wait(_RETRY_SECONDS):
                    os.write(_STANDARD_ERROR, rest)
                    return


class Sink:
    """A file that is appended to, or standard error. Only the writing thread calls `write`.

    `failing` is true from a write that failed until one that does not.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = self._reader = -1
        self._identity: tuple[int, int] | None = None
        self._is_stream = self._was_cut = False
        self.failing = False

    def open(self) -> None:
        """Raises OSError."""
        if self._path is None:
            self._descriptor = os.dup(_STANDARD_ERROR)
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        status = os.fstat(self._descriptor)
        self._identity, self._is_stream = _identity(status), not stat.S_ISREG(status.st_mode)
        if not self._is_stream:
            with suppress(OSError):  # who may only append to it knows no more than what this process did itself
                self._reader = os.open(f"/dev/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def write(self, lines: memoryview) -> int:
        """How many bytes of whole records were written, perhaps none; the rest is to be given again. Raises OSError when nothing
        was written; the next call tries anew."""
        try:
            self._follow()
            # Several workers may write here. A pipe takes only so much in one piece, a full disk only a part of it.
            with _alone(self._descriptor):
                piece = _piece(lines) if self._is_stream else lines
                whole = self._write_whole(piece)
        except OSError:
            self.failing = True
            raise
        self.failing = whole < len(piece)
        return whole

    def _write_whole(self, piece: memoryview) -> int:
        """A record behind one that was cut begins on a line of its own, so that the cut one is a line that is no JSON object."""
        before = b"\n" if self._is_cut() else b""
        data = memoryview(before + piece)
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError:
            if not done:
                raise
        self._was_cut = data[done - 1] != _NEWLINE
        return max(0, bytes(data[:done]).rfind(b"\n") + 1 - len(before))

    def _is_cut(self) -> bool:
        """Whether the file ends in the middle of a record, this process's or another's."""
        if self._reader < 0:
            return self._was_cut
        size = os.fstat(self._reader).st_size
        return size > 0 and os.pread(self._reader, 1, size - 1) != b"\n"

    def close(self) -> None:
        for descriptor in (self._descriptor, self._reader):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._reader = -1

    def _follow(self) -> None:
        """Opens the file anew when another has its name now: a log was rotated."""
        if self._path is not None and (self._descriptor < 0 or self._identity != _identity_of(self._path)):
            self.close()
            self.open()


def _piece(lines: memoryview) -> memoryview:
    """As many whole lines as a pipe takes in one piece (POSIX write), at least one."""
    end = bytes(lines[: select.PIPE_BUF]).rfind(b"\n") + 1
    return lines[: end or bytes(lines).index(b"\n") + 1]


@contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """Keeps other processes out, also those that inherited the same pipe: a POSIX lock belongs to a process."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError:  # not everything that can be written to can be locked
        yield
        return
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return None
