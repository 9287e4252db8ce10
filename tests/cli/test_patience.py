"""What the server puts up with: heads of requests that never end, and callers who take nothing of their answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import patience
from gateway.simulators.bulk import large_multiframe
from gateway.simulators.dicomweb import DicomwebSimulator
from tests.running import Gateway, serving

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says how long the body was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % size})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(app) as port:
        yield port


@contextmanager
def calling(port: int, window: int = 0) -> Iterator[socket.socket]:
    """Somebody who takes no more than a `window` of bytes ahead of what is read."""
    with socket.socket() as caller:
        if window:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        caller.settimeout(20)
        caller.connect(("127.0.0.1", port))
        yield caller


def received(caller: socket.socket) -> bytes:
    """All until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while more := caller.recv(1 << 16):
            found += more
    return found


@pytest.mark.parametrize(
    ("begun", "endless"),
    [
        (b"GET /", b"a" * 1000),
        (HEAD + b"X-Long: ", b"a" * 1000),
        (HEAD, b"X-Many: some\r\n" * 100),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: some\r\n" * 100),
    ],
    ids=["address", "header", "headers", "trailers"],
)
def test_what_surrounds_a_body_has_a_ceiling(begun: bytes, endless: bytes, port: int) -> None:
    with calling(port) as caller:
        caller.sendall(begun)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            caller.sendall(endless * 20_000)


def test_a_long_head_and_a_body_in_many_chunks_are_taken(port: int) -> None:
    with calling(port) as caller:
        caller.sendall(
            HEAD + b"X-Long: " + b"a" * 30_000 + b"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for _ in range(5_000):
            caller.sendall(b"10;an=extension\r\n" + b"x" * 16 + b"\r\n")
        caller.sendall(b"0\r\n\r\n")
        assert b"80000 bytes" in received(caller)


@pytest.mark.parametrize("begun", [b"", HEAD, b"\r\n"], ids=["nothing", "a part", "nothing but lines"])
def test_a_head_that_does_not_come_to_its_end_is_waited_for_so_long(
    begun: bytes, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.3)
    with calling(port) as caller:
        caller.sendall(begun)
        assert received(caller) in (b"", patience.TOO_LATE)


def test_who_sends_a_little_now_and_then_is_waited_for_no_longer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    with calling(port) as caller:
        caller.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
        assert b"0 bytes" in caller.recv(1 << 16)
        caller.settimeout(0.1)
        for _ in range(100):
            try:
                caller.sendall(b"X")
                if not caller.recv(1 << 16):
                    return
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return
    raise AssertionError("it waits on")


@contextmanager
def retrieving(directory: Path) -> Iterator[tuple[Gateway, socket.socket]]:
    """Somebody who has begun to read 50 frames, over the one connection that the node has."""
    study = large_multiframe(directory / "large.dcm", 50)
    with DicomwebSimulator(directory) as pacs:
        node = {"id": "n", "name": "n", "adapter": "dicomweb", "connection": {"url": pacs.url, "max_connections": 1}}
        with (
            Gateway([{**node, "quirks": [], "search_deadline": 5}], cache=False) as gateway,
            calling(gateway.port, 1 << 16) as caller,
        ):
            caller.sendall(
                f"GET /dicom-web/studies/{study} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {STORED}\r\n\r\n".encode()
            )
            assert caller.recv(100)
            yield gateway, caller


def taken_slowly(caller: socket.socket, seconds: float) -> bool:
    """Whether somebody who takes a MB or two a second is still served after so long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            if not caller.recv(1 << 16):
                return False
        except ConnectionResetError:
            return False
        time.sleep(0.03)
    return True


def test_a_caller_who_takes_nothing_keeps_the_hospital_from_nobody_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "READING_SECONDS", 1.0)
    with retrieving(tmp_path) as (gateway, _):
        answer = gateway.get("/nodes/n/dicom-web/studies")
        assert answer.status_code == 200, answer.text


def test_a_caller_who_takes_a_drop_now_and_then_does_not_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "READING_SECONDS", 1.0)
    monkeypatch.setattr(patience, "LEAST_READING", 64 << 20)
    with retrieving(tmp_path) as (gateway, caller):
        assert not taken_slowly(caller, 6)
        assert gateway.get("/nodes/n/dicom-web/studies").status_code == 200


def test_a_caller_on_a_slow_line_is_served_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "READING_SECONDS", 2.5)
    monkeypatch.setattr(patience, "LEAST_READING", 100)
    with retrieving(tmp_path) as (_, caller):
        assert taken_slowly(caller, 6)
