"""The processes of a measurement, one per part: the gateway, its nodes, the clients; and the gateway's memory from outside."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import peers
from tests.catalogue import free_ports

ROOT = Path(__file__).parents[2]
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Server:
    """A process that serves on a port of loopback; `directory` is where it was started, and has its `log`."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path = Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def gateway(nodes: Sequence[Mapping[str, Any]], *, before: str = "", **settings: object) -> Iterator[Server]:
    """The gateway as `serve` runs it, over [[node]] tables; `settings` are the GATEWAY_* variables in lower case.

    `before` is Python that the process runs first."""
    with peers.home() as directory:
        (directory / "nodes.toml").write_text(node_file(nodes))
        port = peers.free_port()
        given = {
            "nodes": "nodes.toml",
            "port": port,
            "audit": "audit",
            "spool": directory,
            "log_level": "WARNING",
            **settings,
        }
        environment = {f"GATEWAY_{name.upper()}": str(value) for name, value in given.items()}
        program = ["-c", f"{before}\nfrom gateway.__main__ import main\nmain()"] if before else ["-m", "gateway"]
        with _running([sys.executable, *program, "serve"], directory, port, **environment) as process:
            yield Server(process, port, directory)


def node_file(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The node file of these [[node]] tables."""
    return "\n".join(map(_node, nodes))


def _node(table: Mapping[str, Any]) -> str:
    """A [[node]] block. A JSON text, number, list or boolean is a TOML one."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    inner = [f"{key} = {json.dumps(value)}" for key, value in table["connection"].items()]
    return "\n".join(["[[node]]", *plain, "[node.connection]", *inner])


@contextmanager
def simulator(protocol: str, directory: Path) -> Iterator[Server]:
    """The simulator of a protocol over a directory of DICOM files."""
    with _module("peer", protocol, str(directory)) as server:
        yield server


@contextmanager
def simulators(protocol: str, directories: Sequence[Path], per_process: int) -> Iterator[list[int]]:
    """The ports of a simulator for each directory, so many in one process."""
    with ExitStack() as stack:
        ports = free_ports(len(directories))
        for start in range(0, len(directories), per_process):
            own = slice(start, start + per_process)
            listed = [",".join(map(str, some)) for some in (directories[own], ports[own])]
            home = stack.enter_context(peers.home())
            command = [sys.executable, "-m", "tests.bench.peer", protocol, *listed]
            stack.enter_context(_running(command, home, ports[own][-1]))
        yield ports


@contextmanager
def pump(upstream: str) -> Iterator[Server]:
    """The byte pump in front of a server."""
    with _module("pump", upstream) as server:
        yield server


@contextmanager
def loopback(size: int) -> Iterator[Server]:
    """A server of so many bytes that come from nowhere."""
    with _module("loopback", str(size)) as server:
        yield server


@contextmanager
def _module(name: str, *arguments: str) -> Iterator[Server]:
    """A module of this folder as a process; its last argument is its port."""
    with peers.home() as directory:
        port = peers.free_port()
        command = [sys.executable, "-m", f"tests.bench.{name}", *arguments, str(port)]
        with _running(command, directory, port) as process:
            yield Server(process, port)


@contextmanager
def _running(command: list[str], directory: Path, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Raises RuntimeError with the end of its log when it does not start."""
    with ExitStack() as stack:
        try:
            started = peers.running(command, directory, port, PYTHONPATH=str(ROOT), **environment)
            process = stack.enter_context(started)
        except RuntimeError:
            raise RuntimeError((directory / "log").read_text()[-2000:]) from None
        yield process


def node(identifier: str, adapter: str, connection: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A [[node]] table."""
    return {"id": identifier, "name": identifier, "adapter": adapter, "connection": connection, **more}


def processor_seconds(port: int) -> float:
    """Of the process that listens on a port, and of all that it started: unlike a rate, little changed by busy neighbours."""
    found = 0.0
    for listener in {
        one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"
    }:
        server = psutil.Process(listener)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                found += used.user + used.system
    return found


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


class Memory:
    """The resident memory of a gateway and its worker processes, looked at every 20 ms from outside, not that of its
    embedded Valkey. `growth` is in 10^6 bytes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        gateway = psutil.Process(process.pid)
        workers = [one for one in gateway.children(recursive=True) if "valkey" not in one.name()]
        self._processes = [gateway, *workers]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.before = self.most = self._resident()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        return (self.most - self.before) / _MEGABYTE

    def _resident(self) -> int:
        return sum(map(_resident, self._processes))

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, self._resident())
