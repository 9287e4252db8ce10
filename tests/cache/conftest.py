import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gateway.cache.client import Cache
from gateway.cache.embedded import EmbeddedServer
from tests import peers

from . import topologies


async def eventually(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Waits until the condition holds; fails when it does not in time."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def opened(url: str) -> Cache:
    """A cache that has found its Redis."""
    cache = await Cache.open(url, timeout=5.0, retry_after=0.2)
    await eventually(lambda: cache.state == "up", 20)
    return cache


class RealRedis:
    """A redis-server as Debian packages it, on a unix socket; it can be killed and started again on the same address."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                str(self.socket),
                "--save",
                "",
                "--dir",
                str(self.socket.parent),
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


def await_socket(path: Path, seconds: float = 30) -> None:
    """Waits until somebody listens there."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.005)
    raise AssertionError("redis-server did not start")


@pytest.fixture
def redis_server() -> Iterator[RealRedis]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    directory = Path(tempfile.mkdtemp(prefix="gw-test-"))
    server = RealRedis(directory)
    server.start()
    await_socket(server.socket)
    yield server
    server.kill()
    shutil.rmtree(directory)


@pytest.fixture(params=["embedded", pytest.param("redis-server", marks=pytest.mark.interop)])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """The same cache on the embedded Valkey and on a real redis-server; patient, since the machine may be busy."""
    url = None if request.param == "embedded" else request.getfixturevalue("redis_server").url
    opened = await Cache.open(url, timeout=5.0, retry_after=0.2)
    await eventually(lambda: opened.state == "up")
    yield opened
    await opened.close()


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer() as running:
        yield running


@pytest.fixture(scope="module", params=["single", "cluster"])
def single_or_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Redis as they are set up."""
    if request.param == "single":
        with peers.redis() as peer:
            yield peer.url
    else:
        with topologies.cluster() as servers:
            yield servers.url
