"""How answers leave the server: head and body together, in order, and nothing is held back for good."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.cli.sending import HoldingTransport
from tests.running import serving

LARGE = b"x" * 300_000


class Recorded:
    """A transport that remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def write(self, data: bytes) -> None:
        self.calls.append(("write", data))

    def writelines(self, pieces: Any) -> None:
        self.calls.append(("writelines", tuple(pieces)))

    def close(self) -> None:
        self.calls.append(("close", None))

    def get_extra_info(self, name: str) -> str:
        return f"info of {name}"


@pytest.fixture
async def held() -> tuple[HoldingTransport, Recorded]:
    recorded = Recorded()
    return HoldingTransport(recorded, asyncio.get_running_loop()), recorded  # type: ignore[arg-type]


async def test_the_head_leaves_with_the_body(held: tuple[HoldingTransport, Recorded]) -> None:
    transport, recorded = held
    transport.write(b"head")
    assert recorded.calls == []
    transport.write(LARGE)
    await asyncio.sleep(0)
    assert recorded.calls == [("writelines", (b"head", LARGE))]


async def test_a_head_alone_leaves_at_the_loop_s_next_turn(held: tuple[HoldingTransport, Recorded]) -> None:
    transport, recorded = held
    transport.write(b"head")
    await asyncio.sleep(0)
    assert recorded.calls == [("write", b"head")]


async def test_what_is_large_is_not_held(held: tuple[HoldingTransport, Recorded]) -> None:
    transport, recorded = held
    transport.write(LARGE)
    assert recorded.calls == [("write", LARGE)]


async def test_nothing_is_held_over_the_end(held: tuple[HoldingTransport, Recorded]) -> None:
    transport, recorded = held
    transport.write(b"last")
    transport.write(b"")
    transport.write(b"words")
    transport.close()
    await asyncio.sleep(0)
    assert recorded.calls == [("writelines", (b"last", b"")), ("write", b"words"), ("close", None)]


async def test_the_rest_is_the_transport_s_own(held: tuple[HoldingTransport, Recorded]) -> None:
    assert held[0].get_extra_info("peername") == "info of peername"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with as many chunks as the path says, then, for /0, breaks the connection off."""
    chunks = int(scope["path"][1:])
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(chunks):
        await send({"type": "http.response.body", "body": b"%d," % number * 1000, "more_body": True})
        await asyncio.sleep(0.001)
    if not chunks:
        raise ConnectionError("broken off")
    await send({"type": "http.response.body", "body": b""})


def ask(connection: socket.socket, path: str, until: bytes) -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    received = b""
    while not received.endswith(until) and (more := connection.recv(1 << 16)):
        received += more
    return received


def test_streams_arrive_whole_one_after_another_and_a_broken_one_ends() -> None:
    with serving(app) as port, socket.create_connection(("127.0.0.1", port), 30) as connection:
        for chunks in (1, 3, 7):
            answer = ask(connection, f"/{chunks}", b"\r\n0\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            for number in range(chunks):
                assert b"%d," % number * 1000 in body
        broken = ask(connection, "/0", b"never")
        assert broken.startswith(b"HTTP/1.1 200 OK")
        assert not broken.endswith(b"0\r\n\r\n")
