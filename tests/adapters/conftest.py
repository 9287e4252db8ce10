"""A peer whose every byte the test writes, for what well-behaved servers never do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest


@dataclass
class Exchange:
    """One request as it came in (`line`, `headers`, `body`), and the socket to answer on."""

    line: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    async def send(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class ScriptedPeer:
    """An HTTP/1.1 server that answers by `script`; the connection is closed when the script raises ConnectionError."""

    script: Script
    requests: list[Exchange] = field(default_factory=list)
    closed_connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                exchange = Exchange(head[0], headers, b"", writer)
                self.requests.append(exchange)
                exchange.body = await _body(reader, headers)
                await self.script(exchange)
        self.closed_connections += 1
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[[Script], Awaitable[ScriptedPeer]]]:
    """scripted(script) starts a peer on a port of its own; all are stopped at the end."""
    servers: list[asyncio.Server] = []

    async def start(script: Script) -> ScriptedPeer:
        peer = ScriptedPeer(script)
        server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, limit=2**20)
        servers.append(server)
        peer.port = server.sockets[0].getsockname()[1]
        return peer

    yield start
    for server in servers:
        server.close()
