"""Texts go out compressed where the caller takes it: JSON, XML and pages, never pixels (RFC 9110 8.4, 12.5.3). Pure ASGI.

What is compressed bears a weak ETag, since its bytes are not those of the plain text; the handlers compare weakly anyway. What
is kept and what is logged inside of this is the plain text.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import zstandard
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.wire.media import parse_media_type, split_list

_VARIES = (b"vary", b"Accept-Encoding")
_SMALLEST = 512
_APART = 256 * 1024
_KEPT_BYTES = 16 * 1024**2
_GZIP_LEVEL, _ZSTD_LEVEL = 1, 3
_TEXTS = frozenset(
    {
        "application/dicom+json", "application/json", "application/fhir+json", "application/problem+json",
        "application/dicom+xml", "application/fhir+xml", "application/xml", "application/vnd.sun.wadl+xml",
        "application/fhir+ndjson", "text/html", "text/plain",
    }
)  # fmt: skip


_READ = (b"accept-encoding", b"if-none-match")


class Compressor(Protocol):
    """One body on its way."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int = ..., /) -> bytes: ...


def _gzip() -> tuple[Compressor, int, int]:
    return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31), zlib.Z_SYNC_FLUSH, zlib.Z_FINISH


def _zstd() -> tuple[Compressor, int, int]:
    made = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    return made, zstandard.COMPRESSOBJ_FLUSH_BLOCK, zstandard.COMPRESSOBJ_FLUSH_FINISH


_CODINGS: dict[str, Callable[[], tuple[Compressor, int, int]]] = {"zstd": _zstd, "gzip": _gzip}
"""Those that we write, best first: how to begin a body, how to flush a piece of it, how to end it."""


class Compression:
    """Compresses texts. Whole bodies with an ETag are kept compressed for the next caller, up to 16 MB."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: OrderedDict[tuple[bytes, ...], bytes] = OrderedDict()
        self._size = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked, known = (b",".join(v for n, v in scope["headers"] if n == name) for name in _READ)
        coding = coding_for(asked)
        is_head = scope["method"] == "HEAD"
        await self._app(scope, receive, _Sender(self, send, coding, known, is_head) if coding else _as_it_is(send))

    async def whole(self, coding: str, body: bytes, headers: dict[bytes, bytes]) -> bytes:
        """A body that is there at once, compressed."""
        etag = headers.get(b"etag", b"")
        name = (coding.encode(), etag, headers.get(b"content-type", b""), b"%d" % len(body))
        kept = self._kept.get(name) if etag else None
        if kept is not None:
            self._kept.move_to_end(name)
            return kept
        made = _at_once(coding, body) if len(body) < _APART else await asyncio.to_thread(_at_once, coding, body)
        if etag:
            self._keep(name, made)
        return made

    def _keep(self, name: tuple[bytes, ...], made: bytes) -> None:
        self._size += len(made) - len(self._kept.pop(name, b""))
        self._kept[name] = made
        while self._size > _KEPT_BYTES:
            self._size -= len(self._kept.popitem(last=False)[1])


def _as_it_is(send: Send) -> Send:
    """Sends one answer to who takes nothing compressed."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start" and (message["status"] == 304 or _is_text(message)):
            message = {**message, "headers": [*message["headers"], _VARIES]}
        await send(message)

    return sender


class _Sender:
    """Sends one answer, compressed if it is a text. Its head is held back until the first bytes say how large it is."""

    def __init__(self, compression: Compression, send: Send, coding: str, known: bytes, is_head: bool) -> None:
        """`known` are the ETags that the caller has."""
        self._compression, self._send, self._coding, self._is_head = compression, send, coding, is_head
        self._known = known
        self._start: Message | None = None
        self._running: tuple[Compressor, int, int] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_text(message):
            self._start = {**message, "headers": [*message["headers"], _VARIES]}
        elif message["type"] == "http.response.start" and message["status"] == 304:
            await self._send({**message, "headers": [*self._as_known(message["headers"]), _VARIES]})
        elif message["type"] == "http.response.body" and self._start is not None:
            start, self._start = self._start, None
            await self._begin(start, message)
        elif message["type"] == "http.response.body" and self._running is not None:
            await self._send({**message, "body": self._piece(message)})
        else:
            await self._send(message)

    async def _begin(self, start: Message, first: Message) -> None:
        body, goes_on = first.get("body", b""), bool(first.get("more_body"))
        if not goes_on and not self._is_head and len(body) < _SMALLEST:
            await self._send(start)
            await self._send(first)
            return
        headers = dict(start["headers"])
        if self._is_head and int(headers.get(b"content-length", b"%d" % _SMALLEST)) < _SMALLEST:
            await self._send(start)
            await self._send(first)
            return
        encoded = [header for header in _weakened(start["headers"]) if header[0] != b"content-length"]
        encoded.append((b"content-encoding", self._coding.encode()))
        if self._is_head:
            pass
        elif goes_on:
            self._running = _CODINGS[self._coding]()
            first = {**first, "body": self._piece(first)}
        else:
            made = await self._compression.whole(self._coding, body, headers)
            encoded.append((b"content-length", b"%d" % len(made)))
            first = {**first, "body": made}
        await self._send({**start, "headers": encoded})
        await self._send(first)

    def _as_known(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The validator of what the caller has, so that it is this that goes on being fresh (RFC 9111 4.3.4)."""
        weak = _weakened(headers)
        has_packed = any(name == b"etag" and value in self._known for name, value in weak)
        return weak if has_packed else headers

    def _piece(self, message: Message) -> bytes:
        """Each piece leaves at once: what is streamed stays a stream."""
        assert self._running is not None
        compressor, block, finish = self._running
        body = message.get("body", b"")
        made = compressor.compress(body) if body else b""
        if message.get("more_body"):
            return made + compressor.flush(block) if body else made
        return made + compressor.flush(finish)


def _is_text(message: Message) -> bool:
    """Not for a range: its bytes are counted in the plain text (RFC 9110 14.4)."""
    headers = dict(message.get("headers", ()))
    if b"content-encoding" in headers or b"content-range" in headers:
        return False
    return _is_text_type(headers.get(b"content-type", b""))


@lru_cache(256)
def _is_text_type(content_type: bytes) -> bool:
    media_type = parse_media_type(content_type.decode("latin-1"))
    inner = media_type.parameters.get("type", "") if media_type.essence == "multipart/related" else media_type.essence
    return inner.lower() in _TEXTS


def _weakened(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [
        (name, b"W/" + value) if name == b"etag" and not value.startswith(b"W/") else (name, value)
        for name, value in headers
    ]


def _at_once(coding: str, body: bytes) -> bytes:
    compressor, _, finish = _CODINGS[coding]()
    return compressor.compress(body) + compressor.flush(finish)


@lru_cache(256)
def coding_for(accept_encoding: bytes) -> str:
    """The coding that the caller likes best of those that we write; '' for none (RFC 9110 12.5.3)."""
    weights: dict[str, float] = {}
    for member in split_list(accept_encoding.decode("latin-1").lower()):
        name, *parameters = (piece.strip() for piece in member.split(";"))
        weights.setdefault(name, _weight(parameters))
    rest = weights.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: weights.get(coding, rest))
    return best if weights.get(best, rest) > 0 else ""


def _weight(parameters: list[str]) -> float:
    text = next((one[2:].strip() for one in parameters if one.startswith("q=")), "1")
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
