"""What a Redis refuses or forgets of the word that its entries are vouched for."""

import asyncio
import os
from contextlib import suppress
from itertools import count

import pytest
import redis as plain_redis

from gateway.cache import session
from gateway.cache.client import Cache
from gateway.cache.keys import key
from gateway.cache.tags import study_tag
from tests.cache.conftest import await_socket, eventually

pytestmark = pytest.mark.interop

K = key("find", "de-1", "question")


@pytest.fixture
def start(redis_server):
    """Has it begin anew with these options; gives its URL, and a client of another application."""

    def begin(*options):
        redis_server.kill()
        redis_server.start(*options)
        await_socket(redis_server.socket)
        return redis_server.url, plain_redis.Redis(unix_socket_path=str(redis_server.socket))

    return begin


def fill(plain):
    """Others' keys, until no more is taken."""
    for size in (10_000, 1):
        with suppress(plain_redis.exceptions.OutOfMemoryError):
            for n in count():
                plain.set(f"another:{size}:{n}", b"x" * size)


async def test_a_full_redis_with_an_append_only_file_still_gives_what_it_has_after_a_blip(start, monkeypatch):
    monkeypatch.setattr(session, "_NOTICED", 0.5)
    url, plain = start("--appendonly", "yes", "--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    cache = await Cache.open(url, timeout=2.0, retry_after=0.2)
    await eventually(lambda: cache.state == "up")
    await cache.set(K, b"kept", 300)
    await asyncio.to_thread(fill, plain)
    assert await cache.get(K) == b"kept"
    await eventually(lambda: plain.info()["uptime_in_seconds"] >= 3)
    await asyncio.to_thread(fill, plain)
    plain.config_set("maxmemory", "1mb")  # it is as full as others make it, whatever its buffers give back
    assert await cache.get(K) == b"kept"
    cache._fall("a moment")
    await asyncio.sleep(3)
    state, got = cache.state, await cache.get(K)
    await cache.close()
    assert (state, got) == ("up", b"kept")


async def test_a_full_redis_with_an_append_only_file_is_used_by_a_gateway_that_starts(start):
    url, plain = start("--appendonly", "yes", "--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    await asyncio.to_thread(fill, plain)
    cache = await Cache.open(url, timeout=2.0, retry_after=0.2)
    await asyncio.sleep(3)
    state = cache.state
    await cache.close()
    assert state == "up"


async def test_with_the_redis_of_compose_a_later_replica_keeps_what_others_kept(start):
    """docker/compose.yml: append-only file, volatile-lru. The word is read at starts alone: it is the first to be evicted."""
    url, plain = start("--appendonly", "yes", "--maxmemory", "8mb", "--maxmemory-policy", "volatile-lru")
    first = await Cache.open(url, timeout=2.0, retry_after=0.2)
    await eventually(lambda: first.state == "up")
    await asyncio.sleep(1.2)  # the clock of LRU
    for n in range(6000):
        await first.set(key("find", "de-1", f"q{n}"), os.urandom(2000), 300)
        if n % 500 == 499 and plain.info()["evicted_keys"] and not plain.keys("gw:run:*"):
            break
    await asyncio.sleep(0.2)
    lately = key("find", "de-1", f"q{n}")
    assert await first.get(lately) is not None
    evicted = not plain.keys("gw:run:*")
    second = await Cache.open(url, timeout=2.0, retry_after=0.2)
    await eventually(lambda: second.state == "up")
    got = await second.get(lately)
    await first.close()
    await second.close()
    assert got is not None, f"the whole cache was dropped; the word had been evicted: {evicted}"


NEEDED = ("~gw:*", "&gw:*", "+@all", "-@dangerous", "+info")  # as the README has it


@pytest.mark.parametrize(
    ("may", "state", "said"), [(NEEDED, "up", ""), ((*NEEDED, "-info"), "down", "NoPermissionError")]
)
async def test_what_a_user_may_not_do_is_why_the_cache_is_down(start, caplog, may, state, said):
    url, plain = start()
    plain.execute_command("ACL", "SETUSER", "gw", "on", ">p", *may)
    cache = await Cache.open(url.replace("unix://", "unix://gw:p@"), timeout=2.0, retry_after=0.2)
    kept = await cache.set(K, b"kept", 300, frozenset([study_tag("1.2")]))
    dropped = await cache.purge_study("1.2")
    found = cache.state
    await cache.close()
    assert (found, kept) == (state, state == "up")
    assert state == "down" or dropped == 1
    assert said in caplog.text
