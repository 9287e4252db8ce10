"""A TCP proxy before a real peer, with the faults of networks and of servers that die: switched while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "none", "refuse", "black hole", "freeze", "slow start", "slow drip", "reset", "close", "short length",
    "no last chunk", "close delimited", "cut pdu", "abort", "reject", "scramble", "flood",
]  # fmt: skip

_P_DATA, _LIMIT = 0x04, 1 << 24
# PS3.8 9.3.4: rejected, transient, by the presentation layer, local limit exceeded. PS3.8 9.3.8: by the service-user.
_REJECTION = bytes([0x03, 0, 0, 0, 0, 4, 0, 2, 3, 2])
_ABORT = bytes([0x07, 0, 0, 0, 0, 4, 0, 0, 0, 0])
_ROW = b'{"0020000D":{"vr":"UI","Value":["1.2.3"]},"00100010":{"vr":"PN","Value":[{"Alphabetic":"Flood^Of^Rows"}]}},'


@dataclass(frozen=True)
class Fault:
    """What becomes of a connection, or only of those whose opening (request head, A-ASSOCIATE-RQ) matches `only`.

    refuse           nobody listens (for all connections, whatever `only` says)
    black hole       takes the connection and never answers
    freeze           as black hole, and nothing passes any more on connections that are open already
    slow start       waits `delay` seconds before it passes anything on
    slow drip        passes the answer on in pieces of `piece` bytes, one each `delay` seconds
    reset, close     half of the answer, then RST or FIN (DIMSE: half of a P-DATA-TF PDU, after `whole` whole ones)
    short length     HTTP: half of the body of a Content-Length
    no last chunk    HTTP: half of the body as a chunk, without the last chunk
    close delimited  HTTP: half of a body whose only end is that of the connection, which ends in good order
    abort            DIMSE: A-ABORT in place of a PDU, after `whole` whole ones
    reject           DIMSE: A-ASSOCIATE-RJ, local limit exceeded
    scramble         the answer comes whole, its DICOM data sets as noise
    flood            HTTP: a JSON list of `flood` bytes
    """

    kind: Kind = "none"
    only: str = ""
    delay: float = 30.0
    piece: int = 64
    whole: int = 1
    flood: int = 200_000_000

    def applies_to(self, opening: bytes) -> bool:
        return self.kind != "none" and re.search(self.only.encode(), opening) is not None


class FaultProxy:
    """Listens on `port` and passes everything on to the port `upstream` of loopback. A context manager.

    With `tls` it is a TLS server in front of the plain peer. `held` counts the connections that a fault has in its
    hands: callers who gave up are not among them. A change of the fault drops all connections, but for a freeze.
    """

    def __init__(self, upstream: int, speaks: Literal["http", "dimse"], tls: ssl.SSLContext | None = None) -> None:
        self.upstream, self.speaks, self.tls = upstream, speaks, tls
        self.fault = Fault()
        self._links: set[asyncio.Task[None]] = set()
        self._in_hand: set[object] = set()
        self._frozen = asyncio.Event()

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy_0", daemon=True)
        self._thread.start()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._drop(listen=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(15)

    @property
    def held(self) -> int:
        return len(self._in_hand)

    def set(self, fault: Fault) -> None:
        """Holds from now on for every connection."""
        self._run(self._change(fault))

    @contextmanager
    def by(self, fault: Fault) -> Iterator[None]:
        self.set(fault)
        try:
            yield
        finally:
            self.set(Fault())

    async def _change(self, fault: Fault) -> None:
        self.fault = fault
        if fault.kind == "freeze":
            self._frozen.set()
            return
        self._frozen.clear()
        await self._drop(listen=fault.kind != "refuse")

    async def _drop(self, *, listen: bool) -> None:
        self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        if listen:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self.tls, backlog=256, limit=_LIMIT
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, http.client.HTTPException, EOFError):
            _reset(writer)
        finally:
            self._links.discard(link)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opening = await self._opening(reader)
        fault = self.fault
        if not fault.applies_to(opening):
            if fault.only and self.speaks == "http":
                # The next request of the connection may be one that the fault is for.
                opening = opening.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
            await self._passed(opening, reader, writer)
            return
        with self._holding(writer):
            behaviour = _BEHAVIOURS[fault.kind]
            await _until_either(behaviour(self, fault, opening, reader, writer))

    @contextmanager
    def _holding(self, what: object) -> Iterator[None]:
        self._in_hand.add(what)
        try:
            yield
        finally:
            self._in_hand.discard(what)

    async def _opening(self, reader: asyncio.StreamReader) -> bytes:
        return await (reader.readuntil(b"\r\n\r\n") if self.speaks == "http" else _pdu(reader))

    async def _passed(
        self,
        opening: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Both ways until one side ends; `answer` passes on what the peer says, in the way of a fault."""
        from_peer, to_peer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=_LIMIT)
        to_peer.write(opening)
        try:
            await _until_either(self._pump(reader, to_peer), (answer or self._pump)(from_peer, writer))
        finally:
            to_peer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if self._frozen.is_set():
                with self._holding(source):
                    await _gone(source)
                return
            sink.write(data)
            await sink.drain()


async def _until_either(*works: Coroutine[Any, Any, None]) -> None:
    """Until the first of them ends; what it raises is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _gone(reader: asyncio.StreamReader) -> None:
    """Until the caller has gone; what it says meanwhile goes nowhere."""
    while await reader.read(1 << 16):
        pass


async def _pdu(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(6)
    return head + await reader.readexactly(int.from_bytes(head[2:], "big"))


Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def _black_hole(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    await _gone(reader)


async def _slow_start(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    """A caller who leaves meanwhile is let go at once."""
    said = bytearray(opening)

    async def listen() -> None:
        while data := await reader.read(1 << 16):
            said.extend(data)

    await _until_either(asyncio.sleep(fault.delay), listen())
    if not reader.at_eof():
        await proxy._passed(bytes(said), reader, writer)


async def _slow_drip(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    async def drip(source: Reader, sink: Writer) -> None:
        while data := await source.read(fault.piece):
            sink.write(data)
            await sink.drain()
            await asyncio.sleep(fault.delay)

    await proxy._passed(opening, reader, writer, drip)


async def _broken_http(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    """The peer's answer to the request, in a framing that says how much is to come, or does not; and half of it."""

    async def answer() -> None:
        head, body = await asyncio.to_thread(_asked, proxy.upstream, opening)
        half = body[: max(1, len(body) // 2)]
        if fault.kind == "no last chunk":
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(half):x}\r\n".encode() + half + b"\r\n")
        elif fault.kind == "close delimited":
            writer.write(head + b"Connection: close\r\n\r\n" + half)
        elif fault.kind == "scramble":
            writer.write(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body.replace(b"DICM", b"NOIS"))
        else:
            writer.write(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + half)
        await writer.drain()
        await asyncio.sleep(0.05)  # what is still buffered would be lost in a reset
        if fault.kind == "reset":
            _reset(writer)

    await _until_either(answer(), _gone(reader))


def _asked(port: int, opening: bytes) -> tuple[bytes, bytes]:
    """Status line and Content-Type of the peer's answer, as the begin of a head; and its body."""
    line, *lines = opening.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    headers = dict(one.split(": ", 1) for one in lines if ": " in one)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, target, headers=headers | {"Accept-Encoding": "identity"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    kind = answer.getheader("content-type", "application/octet-stream")
    return f"HTTP/1.1 {answer.status} OK\r\nContent-Type: {kind}\r\n".encode("latin-1"), body


async def _broken_dimse(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    async def answer(source: Reader, sink: Writer) -> None:
        whole = fault.whole
        while True:
            pdu = await _pdu(source)
            if pdu[0] == _P_DATA and fault.kind != "scramble":
                whole -= 1
            if whole < 0:
                sink.write(_ABORT if fault.kind == "abort" else pdu[: len(pdu) // 2])
                await sink.drain()
                # After an A-ABORT the other side closes (PS3.8 9.2.1, state 13); a reset would overtake what is buffered.
                await asyncio.sleep(5 if fault.kind == "abort" else 0.05)
                if fault.kind == "reset":
                    _reset(sink)
                return
            sink.write(_noise(pdu) if fault.kind == "scramble" and pdu[0] == _P_DATA else pdu)
            await sink.drain()

    await proxy._passed(opening, reader, writer, answer)


def _noise(pdu: bytes) -> bytes:
    """The PDU with the fragments of data sets as noise; commands stay (PS3.8 9.3.5 and annex E.2)."""
    changed, at = bytearray(pdu), 6
    while at + 6 <= len(pdu):
        length = int.from_bytes(pdu[at : at + 4], "big")
        if not pdu[at + 5] & 1:
            changed[at + 6 : at + 4 + length] = b"\xa5" * (length - 2)
        at += 4 + length
    return bytes(changed)


async def _broken(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    broken = _broken_http if proxy.speaks == "http" else _broken_dimse
    await broken(proxy, fault, opening, reader, writer)


async def _reject(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    writer.write(_REJECTION)
    await writer.drain()
    await asyncio.wait_for(_gone(reader), 5)


async def _flood(proxy: FaultProxy, fault: Fault, opening: bytes, reader: Reader, writer: Writer) -> None:
    async def pour() -> None:
        kind = b"application/dicom+json" if b"dicom" in opening else b"application/fhir+json"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nConnection: close\r\n\r\n[")
        rows = _ROW * ((1 << 18) // len(_ROW))
        for _ in range(fault.flood // len(rows) + 1):
            writer.write(rows)
            await writer.drain()
        writer.write(_ROW[:-1] + b"]")
        await writer.drain()

    await _until_either(pour(), _gone(reader))


_BEHAVIOURS: dict[Kind, Callable[[FaultProxy, Fault, bytes, Reader, Writer], Coroutine[Any, Any, None]]] = {
    "black hole": _black_hole,
    "freeze": _black_hole,
    "slow start": _slow_start,
    "slow drip": _slow_drip,
    "reset": _broken,
    "close": _broken,
    "short length": _broken,
    "no last chunk": _broken,
    "close delimited": _broken,
    "cut pdu": _broken,
    "abort": _broken,
    "reject": _reject,
    "scramble": _broken,
    "flood": _flood,
}
