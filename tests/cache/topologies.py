"""Several servers that act as one: a Valkey cluster of three, and a primary with its replica watched by Sentinels."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from gateway.cache.embedded import find_binaries
from tests import peers

PASSWORD = "hospital"
_SLOTS = 16384


@dataclass
class Servers:
    """The processes by port; `url` is what the gateway is told."""

    url: str = ""
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: dict[int, Callable[[], subprocess.Popen[bytes]]] = field(default_factory=dict)

    def kill(self, port: int) -> None:
        self.processes[port].kill()
        self.processes[port].wait()

    def restart(self, port: int) -> None:
        self.processes[port] = self.starts[port]()

    def client(self, port: int, **options: object) -> redis.Redis:
        return redis.Redis(port=port, password=PASSWORD, socket_timeout=5, **options)


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come about in time")


def _port() -> int:
    """The bus of a cluster listens 10,000 ports above the server: below those that Linux gives out by itself."""
    while (port := peers.free_port()) > 22_000:
        pass
    return port


def _server(stack: ExitStack, servers: Servers, directory: Path, port: int, *options: str) -> None:
    binary = str(next(find_binaries()))
    home = directory / str(port)
    home.mkdir()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--save", ""]
    command += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0", *options]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    servers.starts[port] = start
    servers.restart(port)
    wait(lambda: bool(servers.client(port).ping()))


@contextmanager
def cluster() -> Iterator[Servers]:
    """Three primaries that share all slots."""
    with peers.home() as directory, ExitStack() as stack:
        servers, ports = Servers(), [_port() for _ in range(3)]
        for number, port in enumerate(ports):
            _server(stack, servers, directory, port, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
            first, last = _SLOTS * number // 3, _SLOTS * (number + 1) // 3 - 1
            servers.client(port).execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            servers.client(port).execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in ports[1:]:
            servers.client(port).execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        wait(lambda: all(_is_whole(servers, port) for port in ports))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        servers.url = f"redis+cluster://:{PASSWORD}@{hosts}"
        yield servers


def _is_whole(servers: Servers, port: int) -> bool:
    told = servers.client(port).execute_command("CLUSTER", "INFO")
    told = told if isinstance(told, dict) else dict(line.split(":") for line in told.decode().split() if ":" in line)
    return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == 3


@contextmanager
def sentinels() -> Iterator[tuple[Servers, Callable[[], int]]]:
    """A primary, a replica and three Sentinels that watch them as "gateway"; gives also who is the primary now."""
    with peers.home() as directory, ExitStack() as stack:
        servers, first, second = Servers(), _port(), _port()
        _server(stack, servers, directory, first)
        _server(stack, servers, directory, second, "--replicaof", f"127.0.0.1 {first}")
        wait(lambda: servers.client(second).info("replication")["master_link_status"] == "up")
        watching = [_sentinel(stack, servers, directory, first) for _ in range(3)]
        clients = [redis.Redis(port=port, socket_timeout=5) for port in watching]
        wait(lambda: all(len(client.sentinel_sentinels("gateway")) == 2 for client in clients))
        wait(lambda: all(len(client.sentinel_slaves("gateway")) == 1 for client in clients))
        hosts = ",".join(f"127.0.0.1:{port}" for port in watching)
        servers.url = f"redis+sentinel://:{PASSWORD}@{hosts}/gateway/0"
        yield servers, lambda: int(clients[-1].sentinel_get_master_addr_by_name("gateway")[1])


def _sentinel(stack: ExitStack, servers: Servers, directory: Path, primary: int) -> int:
    port = _port()
    file = directory / f"sentinel-{port}.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor gateway 127.0.0.1 {primary} 2\nsentinel auth-pass gateway {PASSWORD}\n"
        "sentinel down-after-milliseconds gateway 500\nsentinel failover-timeout gateway 3000\n"
    )
    binary = str(next(find_binaries()))
    process = subprocess.Popen([binary, str(file), "--sentinel"], stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    servers.processes[port] = process
    client = redis.Redis(port=port, socket_timeout=5)
    wait(lambda: bool(client.ping()))
    # How often it asks and tells; what it decides from that is its own.
    client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 1000, "PUBLISH-PERIOD", 500)
    return port
