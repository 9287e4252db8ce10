"""How answers leave: the head together with the first bytes of the body, in one system call and mostly in one packet."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.cli.patience import PatientProtocol

_MOST_HELD = 8192


class Protocol(PatientProtocol):
    """The server's protocol, on a transport that holds the head of an answer until its body comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, HoldingTransport(transport, self.loop)))


class HoldingTransport:
    """A transport that holds one small write until the next one, or until the loop has done what it is at.

    All else is the transport's own. Nothing is held over its closing.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        elif len(data) > _MOST_HELD:
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
