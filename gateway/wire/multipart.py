"""multipart/related as a stream that never ends neatly when it is truncated (PS3.18 8.6.1.2, RFC 2387, RFC 2046)."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from gateway.wire.media import MediaType, parse_media_type

MAX_HEADER = 32 * 1024
_MAX_PADDING = 256
_LINE_END = re.compile(rb"[ \t]*(\r?\n)")
_PADDING = re.compile(rb"[ \t]*\r?")


class MultipartError(ValueError):
    """The body is not the multipart it claims to be: truncated before its closing delimiter, or past a limit."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part starts. Header names are lower-case; of a repeated header the last counts."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """The next bytes of the part's body, never empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The delimiter after the part was seen whole."""


Event = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


class MultipartParser:
    """Turns the bytes of a multipart body into events, in linear time and with memory bounded by chunk size and limits.

    A delimiter is a whole line: a body line that merely begins with the boundary is body. Whether lines end in CRLF or
    LF is learnt from the first delimiter, so that a body's own last CR or LF is never taken for a line end.
    """

    def __init__(self, boundary: str, *, max_header: int = MAX_HEADER, max_parts: int | None = None) -> None:
        if not boundary:
            raise MultipartError("the boundary is empty")
        self._dashed = b"--" + boundary.encode("latin-1", "replace")
        # Before the line end is known "\n--boundary" is searched for; the one put in front lets a body start with it.
        self._buffer = b"\r\n"
        self._delimiter = b"\n" + self._dashed
        self._newline = b"\n"
        # How many bytes in front of the buffer end the header, yet may begin the delimiter of an empty part.
        self._borrowed = 0
        self._state = _State.PREAMBLE
        self._max_header = max_header
        self._parts_left = max_parts

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes. Exhaust it before the next feed. Raises MultipartError past a limit."""
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            if self._state is _State.HEADERS:
                headers = self._take_headers()
                if headers is None:
                    return
                yield PartBegin(headers)
            elif self._state is _State.EPILOGUE:
                self._buffer = b""
                return
            else:
                in_body = self._state is _State.BODY
                found, before = self._take_up_to_delimiter()
                if in_body and before:
                    yield PartData(before)
                if not found:
                    return
                if in_body:
                    yield PartEnd()

    def finish(self) -> None:
        """Says that no more bytes come. Raises MultipartError unless the closing delimiter was seen."""
        if self._state is not _State.EPILOGUE:
            raise MultipartError("the multipart body ends before its closing delimiter")

    def _take_up_to_delimiter(self) -> tuple[bool, bytes]:
        """(whether a delimiter was taken, the bytes before it). What may yet become one stays in the buffer."""
        buffer, start = self._buffer, 0
        while (at := buffer.find(self._delimiter, start)) >= 0:
            after = at + len(self._delimiter)
            if buffer.startswith(b"--", after):
                return self._enter(_State.EPILOGUE, at, after + 2)
            line_end = _LINE_END.match(buffer, after, after + _MAX_PADDING)
            if line_end:
                self._learn_line_end(line_end.group(1))
                return self._enter(_State.HEADERS, at, line_end.end())
            if _may_go_on(buffer, after):
                return self._keep_from(at)
            start = at + 1
        return self._keep_from(self._possible_start(start))

    def _enter(self, state: _State, at: int, after: int) -> tuple[bool, bytes]:
        before = self._buffer[self._borrowed : at]
        self._buffer = self._buffer[after:]
        self._borrowed = 0
        self._state = state
        return True, before

    def _keep_from(self, at: int) -> tuple[bool, bytes]:
        before = self._buffer[self._borrowed : at]
        self._buffer = self._buffer[at:]
        self._borrowed = self._borrowed if at == 0 else 0
        return False, before

    def _possible_start(self, searched: int) -> int:
        """Where a tail begins that could be the first bytes of a delimiter; the buffer's length when there is none."""
        buffer, delimiter = self._buffer, self._delimiter
        at = max(searched, len(buffer) - len(delimiter) + 1)
        while (at := buffer.find(delimiter[:1], at)) >= 0:
            if delimiter.startswith(buffer[at:]):
                return at
            at += 1
        return len(buffer)

    def _learn_line_end(self, newline: bytes) -> None:
        if self._state is _State.PREAMBLE:
            self._newline = newline
            self._delimiter = newline + self._dashed

    def _take_headers(self) -> dict[str, str] | None:
        """The headers up to the empty line; None while incomplete. A part without headers has the empty line only."""
        buffer, newline = self._buffer, self._newline
        if buffer.startswith(newline):
            end, body = 0, 0
        else:
            end = buffer.find(newline * 2, 0, self._max_header + 2 * len(newline))
            body = end + len(newline)
        if end < 0:
            if len(buffer) > self._max_header:
                raise MultipartError("the header of a part is too large")
            return None
        self._count_part()
        # A part without a body may be header lines and a delimiter (RFC 2046 5.1.1), which then owns the empty line.
        self._buffer = buffer[body:]
        self._borrowed = len(newline)
        self._state = _State.BODY
        return _parse_headers(buffer[:end])

    def _count_part(self) -> None:
        if self._parts_left is None:
            return
        if self._parts_left == 0:
            raise MultipartError("the multipart body has too many parts")
        self._parts_left -= 1


def _may_go_on(buffer: bytes, after: int) -> bool:
    """Whether the line after the boundary could still turn out to be a delimiter's when more bytes come."""
    rest = buffer[after : after + _MAX_PADDING]
    if len(rest) == _MAX_PADDING:
        return False
    return rest == b"-" or _PADDING.fullmatch(rest) is not None


def _parse_headers(block: bytes) -> dict[str, str]:
    """Folded lines are joined; a line without a colon is left out rather than held against the part."""
    text = re.sub(r"\r?\n[ \t]+", " ", block.decode("utf-8", "replace"))
    headers = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


class _Body:
    """The body of one part; leaving it early is allowed, the rest is then drained before the next part."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._ended:
            event = await anext(self._events, None)
            if isinstance(event, PartData):
                return event.data
            self._ended = True
        raise StopAsyncIteration

    async def drain(self) -> None:
        async for _ in self:
            pass


@dataclass(frozen=True, slots=True)
class MultipartPart:
    """One part on its way. `body` is valid until the next part is asked for; truncated, it raises MultipartError."""

    headers: dict[str, str]
    body: AsyncIterator[bytes]

    @property
    def media_type(self) -> MediaType:
        """The part's Content-Type; text/plain when it has none (RFC 2046 5.1)."""
        return parse_media_type(self.headers.get("content-type", "text/plain"))


async def parts(
    chunks: AsyncIterator[bytes], boundary: str, *, max_header: int = MAX_HEADER, max_parts: int | None = None
) -> AsyncIterator[MultipartPart]:
    """The parts of a multipart body, one at a time; what is left of a body is drained before the next part.

    After the last part the epilogue is read to its end, so that the connection can be used again. Raises MultipartError
    when the body ends before its closing delimiter or passes a limit. Closes `chunks` when it ends or is left.
    """
    events = _events(chunks, MultipartParser(boundary, max_header=max_header, max_parts=max_parts))
    try:
        async for event in events:
            if isinstance(event, PartBegin):
                body = _Body(events)
                yield MultipartPart(event.headers, body)
                await body.drain()
    finally:
        await events.aclose()


async def _events(chunks: AsyncIterator[bytes], parser: MultipartParser) -> AsyncGenerator[Event, None]:
    try:
        async for chunk in chunks:
            for event in parser.feed(chunk):
                yield event
        parser.finish()
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def boundary() -> str:
    """A new boundary: a token, so it needs no quotes, and random, so no body holds it."""
    return f"gateway-{uuid.uuid4().hex}"


def content_type(boundary_: str, type_: str) -> str:
    """The Content-Type of the whole; `type_` is that of the parts and must be quoted (RFC 2387 3.1)."""
    return f'multipart/related; type="{type_}"; boundary={boundary_}'


def part_head(boundary_: str, headers: Mapping[str, str], *, first: bool = False) -> bytes:
    """What stands before a part's body. Only the first part goes without the line end that ends the body before it.

    Raises ValueError for a header with a line break, which would forge another header.
    """
    lines = [f"--{boundary_}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a line break in a part header")
    return (head if first else "\r\n" + head).encode()


def closing(boundary_: str) -> bytes:
    """What stands after the last part's body."""
    return f"\r\n--{boundary_}--\r\n".encode()


async def write(
    items: AsyncIterable[tuple[Mapping[str, str], AsyncIterable[bytes]]], boundary_: str
) -> AsyncIterator[bytes]:
    """A multipart body out of (headers, body) pairs. An error of a body breaks it off without a closing delimiter."""
    first = True
    async for headers, body in items:
        yield part_head(boundary_, headers, first=first)
        first = False
        async for chunk in body:
            yield chunk
    yield closing(boundary_)
