"""The demo's hospitals: one process per simulated server, each gone when this process is, however it ends."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import gateway
from gateway.errors import SettingsError

_START_DEADLINE = 60.0
_STOP_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One simulated server, not yet known to listen."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def address(self) -> str:
        """What it printed once it listened. Raises SettingsError naming its log when it does not start."""
        output = self.process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], _START_DEADLINE)
        address = output.readline().decode().partition(" ")[2].strip() if ready else ""
        if not address:
            raise SettingsError(f"the simulated hospital {self.name} did not start; see {self.log}")
        return address


class Peers:
    """Starts simulated servers; leaving the context stops them all.

    Each has a pipe as its standard input, of which only this process holds the other end: the kernel closes it even when
    this process is killed, and the server then ends.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._peers: list[Peer] = []
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def start(self, name: str, protocol: str, directory: Path, *more: str) -> Peer:
        """Begins to start one; `more` are options of `simulate`."""
        log = self._logs / f"{name}.log"
        command = [sys.executable, "-P", "-m", "gateway", "simulate", protocol, "--directory", str(directory)]
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - this program itself
                [*command, "--until-eof", *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(Path(gateway.__file__).parents[1])},
                # Ctrl-C in the terminal is for the gateway, which then stops these in order.
                start_new_session=True,
            )
        peer = Peer(name, process, log)
        self._peers.append(peer)
        return peer

    def hold_silent_port(self) -> int:
        """A port that refuses connections and that nobody else can get: a server that is down."""
        down = self._held.enter_context(socket.socket())
        down.bind(("127.0.0.1", 0))
        port: int = down.getsockname()[1]
        return port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            _close(peer.process.stdin)
        ends = time.monotonic() + _STOP_DEADLINE
        for peer in self._peers:
            try:
                peer.process.wait(max(ends - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait()
            _close(peer.process.stdout)
        self._held.close()


def _close(pipe: IO[Any] | None) -> None:
    if pipe:
        with suppress(OSError):
            pipe.close()
