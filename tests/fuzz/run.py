"""Sends generated requests to a real gateway, and says which of them it failed at, and what it kept of them.

    python -m tests.fuzz.run --count 200000 --seed 1
    python -m tests.fuzz.run --seed 1 --only 4711

A request fails the gateway that is answered by a 5xx which no node explains, that raises, that is logged as a fault, that
takes more than its time, or whose answer is not what its Content-Type says. Exit code 1 means that there was one, or that something was left over.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import gzip
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import structlog
import zstandard

from gateway.edge.problems import BrokenOff
from gateway.simulators import corpus
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.faults.leftovers import Watched, eventually
from tests.fuzz.babbler import Babbler
from tests.fuzz.grammar import Held, Made, Maker
from tests.running import files_node
from tests.shelf import Shelf, fill

AT_ONCE = 24
MOST_SECONDS = 60.0
OVER_A_SOCKET = 50
"""Every so many requests one goes through the server and a socket; the others to the application itself."""
_WATCHED, _STUCK_SECONDS = 100, 240
_SMALL = 2_000_000
_SLOWEST = 5
_CACHES = {"kept_bytes": _SMALL, "local_cache_bytes": _SMALL, "spool_bytes": 50_000_000}
_UNEXPLAINED = b"GW000"
_EXPLAINED = (b"GW2", b"GW3", b"GW113", b"GW114", b"GW116")
"""Codes of a 5xx that a node is the reason of, or that says that nothing is stored here, or that the decoders are busy."""
_DECODED: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}
_CURRENT: ContextVar[Made] = ContextVar("made")


@dataclass
class Outcome:
    """What came of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unhandled: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str, str]] = field(default_factory=list)
    """Seconds, status and request of the slowest, the slowest first."""
    seconds: float = 0.0
    count: int = 0
    memory: list[int] = field(default_factory=list)
    """Bytes resident, at even distances from the first request to the last."""
    tasks: tuple[int, int] = (0, 0)
    permits: int = 0
    associations: int = 0
    unfinished: int = 0

    @property
    def leaks(self) -> list[str]:
        found = {"permits": self.permits, "associations": self.associations, "unfinished files": self.unfinished}
        told = [f"{count} {name} are out" for name, count in found.items() if count]
        before, after = self.tasks
        return told + ([f"{before} tasks have become {after}"] if after > before else [])

    @property
    def is_well(self) -> bool:
        return not (self.failures or self.unhandled or self.leaks)


def held_of(shelf: Shelf) -> list[Held]:
    def one(study: Any, file: Any) -> Held:
        data = file.bytes if len(file.bytes) < 60_000 else b""
        texts = (study.text("PatientID"), study.name, study.text("StudyDate"), study.text("AccessionNumber"))
        return Held(file.study, file.series, file.uid, *texts, data)

    return [one(study, file) for study in shelf.studies for file in study.files]


@contextmanager
def gateway_over(shelf: Shelf, held: Sequence[Held], seed: int) -> Iterator[Watched]:
    """Files, DICOMweb, DIMSE and FHIR nodes with the shelf, one that babbles, and one that takes what is stored."""
    with ExitStack() as stack:
        web = stack.enter_context(DicomwebSimulator(shelf.directory))
        pacs = DimseSimulator(shelf.directory, ae_title="PACS")
        port = pacs.start()
        stack.callback(pacs.stop)
        fhir = stack.enter_context(FhirSimulator(shelf.directory, "R4", FhirOptions(dicomweb_url=web.url)))
        babbler = stack.enter_context(Babbler(seed, held))
        spool = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-fuzz-")))
        (spool / "archive").mkdir()
        more = {"patient_id_issuer": "FUZZ", "time_zone": "Europe/Warsaw", "breaker": {"failures": 0}, "retries": 0}
        nodes = [
            files_node("disk", shelf.directory, **more),
            _node("web", "dicomweb", {"url": web.url}, more),
            _node("pacs", "dimse", {"host": "127.0.0.1", "port": port, "called_ae_title": "PACS"}, more),
            _node("fhir", "fhir", {"url": fhir.url, "version": "R4"}, {**more, "allow": [web.url]}),
            _node("babbler", "dicomweb", {"url": babbler.url}, more),
            files_node("archive", spool / "archive", store=True, **more),
        ]
        yield stack.enter_context(Watched(nodes, spool=spool / "spool", **_CACHES))


def _node(name: str, adapter: str, connection: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "name": name, "adapter": adapter, "connection": connection, **more}


class Fuzz:
    """Sends the requests of `numbers` within the gateway's own loop, some at once."""

    def __init__(self, gateway: Watched, maker: Maker, numbers: Sequence[int], *, is_watched: bool) -> None:
        self._gateway, self._maker, self._numbers, self._is_watched = gateway, maker, numbers, is_watched
        self._next = iter(numbers)
        self.outcome = Outcome(count=len(numbers))

    def run(self) -> Outcome:
        outcome, gateway = self.outcome, self._gateway
        structlog.get_config()["processors"].insert(0, self._noted)
        gateway.loop.set_exception_handler(lambda _, told: outcome.unhandled.append(str(told)[:500]))
        before = _settled_tasks(gateway)
        began = time.monotonic()
        waiting: Future[None] = asyncio.run_coroutine_threadsafe(self._all(), gateway.loop)
        waiting.result()
        if self._is_watched:
            faulthandler.cancel_dump_traceback_later()
        outcome.seconds = time.monotonic() - began
        eventually(gateway.is_idle, 10)
        outcome.tasks = before, _settled_tasks(gateway, before)
        outcome.permits, outcome.associations = gateway.permits_out(), gateway.associations_out()
        outcome.unfinished = gateway.unfinished()
        gc.collect()
        return outcome

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        every = max(1, len(self._numbers) // 10)
        for number in self._next:
            if number % every == 0:
                self.outcome.memory.append(psutil.Process().memory_info().rss)
                print(f"{number} of {len(self._numbers)}, {self.outcome.memory[-1] / 1e6:.0f} MB", file=sys.stderr)
            if self._is_watched and number % _WATCHED == 0:  # code that never lets go of the interpreter has no timeout
                faulthandler.dump_traceback_later(_STUCK_SECONDS, exit=True)
            made = self._maker.make(number)
            _CURRENT.set(made)
            began = time.monotonic()
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    status = await self._sent(made)
            except TimeoutError:
                status = "hang"
                self.outcome.failures.append(f"no end within {MOST_SECONDS:.0f} s: {made}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                status = "raised"
                self.outcome.failures.append(f"{type(error).__name__}: {error}: {made}")
            self.outcome.statuses[status] += 1
            told = (time.monotonic() - began, status, str(made))
            self.outcome.slowest = sorted((*self.outcome.slowest, told), reverse=True)[:_SLOWEST]

    def _noted(self, _: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A fault of ours over one node's answer is that node's failure to the caller; here it is ours."""
        if line.get("event") == "fault" and line.get("kind") != BrokenOff.__name__:
            where = f"{line.get('kind')} at {line.get('reason')}, node {line.get('node')}"
            self.outcome.failures.append(f"logged as a fault, {where}: {_CURRENT.get(None)}")
        return line

    async def _sent(self, made: Made) -> str:
        if made.number % OVER_A_SOCKET == 0:
            return await self._over_a_socket(made)
        call = Call(made, self._gateway.port)
        try:
            await self._gateway.app(call.scope, call.receive, call.send)
        except BrokenOff:
            return "broken off"
        if made.leaves is not None:
            return "left"
        fault = _fault(call.status, call.headers, b"".join(call.body), made)
        if fault:
            self.outcome.failures.append(f"{fault}: {made}")
        return str(call.status)

    async def _over_a_socket(self, made: Made) -> str:
        """The whole head as bytes: what the server itself makes of it is part of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._gateway.port)
        try:
            headers = [(b"host", f"127.0.0.1:{self._gateway.port}".encode()), (b"connection", b"close"), *made.headers]
            headers = [(name, value) for name, value in headers if name not in (b"content-length", b"expect")]
            headers.append((b"content-length", str(len(made.body)).encode()))
            target = made.path + (b"?" + made.query.replace(b" ", b"+") if made.query else b"")
            head = b"\r\n".join(
                (b" ".join((made.method.encode(), target, b"HTTP/1.1")), *(b": ".join(one) for one in headers))
            )
            writer.write(head + b"\r\n\r\n" + made.body)
            await writer.drain()
            answer = await reader.read()
        except OSError:
            return "socket closed"
        finally:
            writer.close()
        status = answer[9:12].decode("latin-1")
        if _UNEXPLAINED in answer[:5000] or status == "500":
            self.outcome.failures.append(f"{status} over a socket: {made}")
        return f"socket {status}"


class Call:
    """One request to the application: its body in pieces, its caller perhaps gone before the answer ends."""

    def __init__(self, made: Made, port: int) -> None:
        self._made = made
        self._pieces = _pieces(made)
        self._gone = asyncio.Event()
        self.status, self.headers, self.body = 0, {}, list[bytes]()
        headers = [(b"host", f"127.0.0.1:{port}".encode()), *made.headers]
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": made.method,
            "scheme": "http", "path": _decoded(made.path), "raw_path": made.path, "query_string": made.query,
            "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", port), "state": {},
        }  # fmt: skip
        if made.leaves == 0:
            self._gone.set()

    async def receive(self) -> dict[str, Any]:
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            return
        if self._made.leaves is not None:
            self._made.leaves -= 1
            if self._made.leaves <= 0:
                self._gone.set()
                await asyncio.sleep(0)
        self.body.append(message.get("body", b""))


def _pieces(made: Made) -> Iterator[dict[str, Any]]:
    size = max(1, len(made.body) // made.chunks + 1)
    pieces = [made.body[at : at + size] for at in range(0, len(made.body), size)] or [b""]
    for at, piece in enumerate(pieces, 1):
        yield {"type": "http.request", "body": piece, "more_body": at < len(pieces)}


def _decoded(path: bytes) -> str:
    return unquote(path.decode("ascii"))


def _fault(status: int, headers: dict[str, str], body: bytes, made: Made) -> str:
    """What is wrong with an answer; '' for nothing."""
    if status == 500 or _UNEXPLAINED in body[:5000]:
        return f"{status} {body[:300]!r}"
    if (
        status >= 500
        and not any(code in body for code in _EXPLAINED)
        and not made.path.endswith(b"/ready")
        and made.method != "HEAD"
    ):
        return f"{status} that no node explains {body[:300]!r}"
    if not 200 <= status < 600:
        return f"status {status}"
    if made.method == "HEAD":
        return ""  # the server leaves the body out
    if status in (204, 304):
        return "a body where none may be" if body else ""
    try:
        plain = _DECODED[headers.get("content-encoding", "identity")](body)
    except (KeyError, OSError, EOFError, zstandard.ZstdError) as error:
        return f"not the content coding that it says: {error!r}"
    return _not_what_it_says(headers.get("content-type", ""), plain)


def _not_what_it_says(type_: str, body: bytes) -> str:
    if "json" in type_ and "ndjson" not in type_:
        try:
            json.loads(body)
        except ValueError as error:
            return f"no JSON: {error}: {body[:200]!r}"
    if type_.startswith("multipart/related"):
        boundary = type_.partition("boundary=")[2].split(";")[0].strip('"').encode()
        if not body.rstrip().endswith(b"--" + boundary + b"--"):
            return "a multipart body without its end"
    return "" if type_ or not body else "a body without Content-Type"


def _settled_tasks(gateway: Watched, most: int | None = None) -> int:
    """The tasks of the loop once they are no more than `most`, or after some seconds."""
    if most is None:
        time.sleep(0.5)
        return gateway.tasks()
    eventually(lambda: gateway.tasks() <= most, 15)
    return gateway.tasks()


def told(outcome: Outcome) -> str:
    """The report for people."""
    rate = outcome.count / outcome.seconds if outcome.seconds else 0
    memory = ", ".join(f"{each / 1e6:.0f}" for each in outcome.memory)
    lines = [
        f"{outcome.count} requests in {outcome.seconds:.0f} s ({rate:.0f} a second)",
        "  " + ", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items())),
        *(f"  slow: {seconds:.1f} s for {status} {made[:160]}" for seconds, status, made in outcome.slowest),
        f"  tasks {outcome.tasks[0]} -> {outcome.tasks[1]}; permits out {outcome.permits}; associations out "
        f"{outcome.associations}; unfinished files {outcome.unfinished}",
        f"  resident MB, from the first to the last: {memory}",
        f"  {len(outcome.failures)} failures, {len(outcome.unhandled)} exceptions that nobody took",
    ]
    lines += [f"FAILED {each}" for each in outcome.failures[:40]]
    lines += [f"UNHANDLED {each}" for each in outcome.unhandled[:10]]
    lines += [f"LEAKED {each}" for each in outcome.leaks]
    return "\n".join(lines)


def fuzz(shelf: Shelf, seed: int, numbers: Sequence[int], *, is_watched: bool = False) -> Outcome:
    """With `is_watched` the process ends, and says where it was, when it does not get on for minutes."""
    held = held_of(shelf)
    with gateway_over(shelf, held, seed) as gateway:
        return Fuzz(gateway, Maker(seed, held), numbers, is_watched=is_watched).run()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, default=None)
    asked = parser.parse_args()
    numbers = range(asked.count) if asked.only is None else [asked.only]
    with tempfile.TemporaryDirectory(prefix="gw-fuzz-") as home:
        shelf = fill(Path(home) / "files", corpus.build(Path(home) / "corpus", scale="small"))
        outcome = fuzz(shelf, asked.seed, numbers, is_watched=True)
    print(told(outcome))
    return 0 if outcome.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
