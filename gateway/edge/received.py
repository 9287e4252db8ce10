"""What a request brings besides its address: its preferences; its body, read within its ceiling, from callers who go on sending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from gateway.errors import InvalidQuery, TooLarge
from gateway.wire.media import split_list

_IDLE, _WHOLE = 30.0, 120.0


def preferences(request: Request) -> list[str]:
    """What the Prefer headers ask for (RFC 7240 2), in their order: 'handling=lenient', in lower case and without quotes."""
    listed = split_list(",".join(request.headers.getlist("prefer")))
    parts = (part for preference in listed for part in split_list(preference, ";"))
    return ["".join(part.replace('"', "").split()).lower() for part in parts]


def check_length(request: Request, most: int, too_large: str) -> None:
    """Raises TooLarge for a body that says itself that it is; before a byte of it is read."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > most:
        raise TooLarge(too_large)


async def pieces(request: Request, most: int, too_large: str, *, idle: float = _IDLE) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooLarge in the words of `too_large` beyond `most` bytes, InvalidQuery when nothing comes
    for `idle` seconds, and ClientDisconnect when the caller leaves."""
    chunks, size = request.stream(), 0
    while True:
        try:
            async with asyncio.timeout(idle):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise InvalidQuery(f"the body stopped: nothing came for {idle:g} s") from None
        if chunk is None:
            return
        size += len(chunk)
        if size > most:
            raise TooLarge(too_large)
        yield chunk


async def whole(request: Request, most: int, too_large: str) -> bytes:
    """The body at once. Raises as `pieces`, without reading more than `most` bytes, and for who takes too long."""
    check_length(request, most, too_large)
    try:
        async with asyncio.timeout(_WHOLE):
            return b"".join([chunk async for chunk in pieces(request, most, too_large)])
    except TimeoutError:
        raise InvalidQuery(f"the body did not come to its end within {_WHOLE:g} s") from None
