"""One range of the bytes of one value: 206, 416, or the whole (RFC 9110 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from gateway.federation.node import aclosing_iterator

_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `first` to `last`, both included, of `size`; `first` past the end cannot be satisfied."""

    first: int
    last: int
    size: int

    @property
    def is_satisfiable(self) -> bool:
        return self.first < self.size

    @property
    def content_range(self) -> str:
        if not self.is_satisfiable:
            return f"bytes */{self.size}"
        return f"bytes {self.first}-{self.last}/{self.size}"

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def asked(request: Request, size: int | None) -> Range | None:
    """The range that is asked for; None for the whole: no range, several, a malformed one, or a value of unknown size.

    With If-Range it is the whole too: there is no strong validator to compare it with (RFC 9110 13.1.5).
    """
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or size is None or request.method != "GET" or request.headers.get("if-range"):
        return None
    first, last = found.groups()
    if not first:
        return _suffix(last, size)
    if last and int(last) < int(first):
        return None
    return Range(int(first), min(int(last), size - 1) if last else size - 1, size)


def _suffix(length: str, size: int) -> Range | None:
    if not length:
        return None
    wanted = int(length)
    return Range(max(0, size - wanted), size - 1, size) if wanted else Range(size, size, size)


async def cut(body: AsyncIterator[bytes], wanted: Range) -> AsyncIterator[bytes]:
    """The bytes of the range; what follows is not read. Raises ValueError where the value ends before the range does."""
    at, left = 0, wanted.length
    async with aclosing_iterator(body) as chunks:
        async for chunk in chunks:
            begin = max(0, wanted.first - at)
            at += len(chunk)
            piece = chunk[begin : begin + left]
            if piece:
                left -= len(piece)
                yield piece
            if not left:
                return
    raise ValueError("the value is shorter than was said")
