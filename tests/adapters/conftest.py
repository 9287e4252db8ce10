"""Peers for the tests of the HTTP adapters: one whose every byte the test writes, and a real Orthanc."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import peers


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


@pytest.fixture(scope="session")
def free_port() -> int:
    return peers.free_port()


def needs(program: str) -> str:
    """The path of a program. Skips the test where it is missing, and fails it where CI promises that nothing is skipped."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/bin")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return path


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > ends:
                pytest.fail(f"{process.args} does not answer")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of an empty Debian Orthanc of the tests' own; its DICOMweb is at /dicom-web."""
    program = needs("Orthanc")
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not plugin.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("orthanc-dicomweb is not installed")
    home, port = tmp_path_factory.mktemp("orthanc"), peers.free_port()
    settings = {
        "StorageDirectory": str(home),
        "IndexDirectory": str(home),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(plugin)],
    }
    (home / "orthanc.json").write_text(json.dumps(settings))
    with open(home / "log", "wb") as log:
        process = subprocess.Popen([program, str(home / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/system", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # nothing of it is kept
        process.wait()
