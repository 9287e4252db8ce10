"""Host names looked up in a thread each: one that no name server answers for keeps no other name waiting, nor the end.

The event loop's own threads are few, and of all nodes. Nothing gathers here: a node's connections look a name up once at a
time, and keep what they found for a while.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


@dataclass(frozen=True, slots=True)
class Resolved:
    """One address of a host, written in numbers."""

    address: str
    port: int
    family: int
    protocol: int


async def addresses_of(host: str, port: int, family: int) -> list[Resolved]:
    """Raises OSError for a name that cannot be resolved."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Resolved]] = loop.create_future()

    def settle(outcome: list[Resolved] | Exception) -> None:
        if found.done():
            return
        if isinstance(outcome, Exception):
            found.set_exception(outcome)
        else:
            found.set_result(outcome)

    def look_up() -> None:
        outcome: list[Resolved] | Exception
        try:
            outcome = _looked_up(host, port, family)
        except (OSError, UnicodeError) as error:
            outcome = error
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    try:
        threading.Thread(target=look_up, name="host-name", daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread can be started") from None
    return await found


def _looked_up(host: str, port: int, family: int) -> list[Resolved]:
    entries = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    found = []
    for kind, _, protocol, _, address in entries:
        name, service = socket.getnameinfo(address, _NUMERIC)  # with the scope that a link-local address has
        found.append(Resolved(name, int(service), kind, protocol))
    return found
