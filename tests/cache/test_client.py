import asyncio
import os
import signal
import time

import pytest
from redis.asyncio import Redis

from gateway.cache.client import Cache
from gateway.cache.keys import FEDERATED, key
from gateway.cache.missed import MAX_MISSED
from gateway.errors import SettingsError

from .conftest import eventually


async def beside(cache: Cache) -> Redis:
    """A plain client of the same server, to see and to spoil what the cache keeps there."""
    return Redis(connection_pool=cache._link.client.connection_pool)


@pytest.mark.parametrize("size", [0, 1, 512, 513, 100_000, 3_000_000])
async def test_what_is_set_is_got_whatever_its_size(cache, size):
    value = os.urandom(size // 2) + b"\x00" * (size - size // 2)
    assert await cache.set("k", value, 10)
    assert await cache.get("k") == value


async def test_large_values_lie_compressed_and_small_ones_do_not(cache):
    await cache.set("large", b"a" * 100_000, 10)
    await cache.set("small", b"a" * 100, 10)
    plain = await beside(cache)
    assert await plain.strlen("large") < 1000
    assert (await plain.get("small")).endswith(b"a" * 100)


async def test_an_entry_is_gone_after_its_time(cache):
    await cache.set("k", b"v", 0.6)
    assert await cache.get("k") == b"v"
    await asyncio.sleep(0.8)
    assert await cache.get("k") is None


async def test_a_value_without_time_or_too_large_is_not_kept_and_takes_the_older_one_with_it(cache):
    for value, ttl in [(b"new", 0), (os.urandom(9 * 1024 * 1024), 10)]:
        await cache.set("k", b"old", 10)
        assert not await cache.set("k", value, ttl)
        assert await cache.get("k") is None


async def test_damaged_and_foreign_values_are_misses(cache):
    plain = await beside(cache)
    await cache.set("k", b"a" * 1000, 10)
    good = await plain.get("k")
    for bad in [
        b"",
        b"x",
        b"foreign value",
        good[:-1],
        good[:-1] + b"?",
        b"\x03" + good[1:],
        b"\x01" + good[1:-4] + b"zzzz",
    ]:
        await plain.set("k", bad)
        assert await cache.get("k") is None
    await plain.delete("k")
    await plain.lpush("k", "a list")
    assert await cache.get("k") is None
    assert cache.state == "up"


async def test_several_values_come_in_the_order_of_their_keys_and_are_counted(cache):
    await cache.set("a", b"1", 10)
    await cache.set("c", b"3", 10)
    assert await cache.get_many(["a", "b", "c"]) == [b"1", None, b"3"]
    assert await cache.get_many([]) == []
    assert (cache.hits, cache.misses) == (2, 1)


async def test_json_comes_back_as_json_and_what_is_none_as_the_default(cache):
    await cache.set_json("k", {"é": [1, None, "2"]}, 10)
    assert await cache.get_json("k") == {"é": [1, None, "2"]}
    await cache.set("bad", b"{", 10)
    assert await cache.get_json("bad", "default") == "default"
    with pytest.raises(TypeError):
        await cache.set_json("k", object(), 10)


async def test_a_purge_takes_one_node_and_the_federated_answers_and_leaves_the_others(cache):
    mine = [key(kind, node, n) for kind in ("find", "metadata") for node in ("de-1", "de-1@0a1b") for n in range(600)]
    others = [key("find", node, 1) for node in ("de-11", "de", "fr-1", "de-1x@0a1b")]
    federated = key("find", FEDERATED, 1)
    await asyncio.gather(*(cache.set(k, b"v", 60) for k in [*mine, *others, federated]))
    assert await cache.purge_node("de-1") == len(mine) + 1
    assert await cache.get_many([*mine, federated]) == [None] * (len(mine) + 1)
    assert await cache.get_many(others) == [b"v"] * len(others)


async def test_many_callers_at_once_need_few_connections_and_all_get_their_answer(cache):
    await cache.set("k", b"v", 10)
    assert set(await asyncio.gather(*(cache.get("k") for _ in range(2000)))) == {b"v"}
    clients = await (await beside(cache)).client_list()
    assert len(clients) <= 10


async def test_cancelled_callers_leave_no_answer_behind_for_others(cache):
    for n in range(20):
        await cache.set(f"k{n}", b"%d" % n, 10)
    tasks = [asyncio.create_task(cache.get(f"k{n % 20}")) for n in range(400)]
    for n, task in enumerate(tasks):
        await asyncio.sleep(0) if n % 7 == 0 else None
        if n % 3 == 0:
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for n, answer in enumerate(answers):
        assert isinstance(answer, asyncio.CancelledError) or answer == b"%d" % (n % 20)
    assert cache.state == "up"


async def test_a_killed_embedded_server_is_missed_by_nobody_and_comes_back_by_itself():
    cache = await Cache.open(retry_after=0.2)
    await cache.set("k", b"v", 60)
    os.kill(cache._server.pid, signal.SIGKILL)
    assert [await cache.get("k") for _ in range(50)] == [None] * 50
    assert not await cache.set("k", b"v2", 60) or cache.state == "up"
    await eventually(lambda: cache.state == "up")
    assert await cache.set("k", b"v3", 60)
    assert await cache.get("k") == b"v3"
    await cache.close()


@pytest.mark.interop
async def test_a_killed_redis_is_used_again_once_it_is_back(redis_server):
    cache = await Cache.open(redis_server.url, retry_after=0.1)
    await eventually(lambda: cache.state == "up")
    await cache.set("k", b"v", 60)
    redis_server.kill()
    assert await cache.get("k") is None
    await eventually(lambda: cache.state == "down")
    assert not await cache.set("k", b"v", 60)
    redis_server.start()
    await eventually(lambda: cache.state == "up")
    assert await cache.set("k", b"again", 60)
    assert await cache.get("k") == b"again"
    await cache.close()


@pytest.mark.interop
async def test_a_redis_that_is_restarted_under_idle_connections_costs_no_answer(redis_server):
    cache = await Cache.open(redis_server.url, retry_after=0.1)
    await eventually(lambda: cache.state == "up")
    await cache.set("k", b"v", 60)
    redis_server.kill()
    redis_server.start()
    await eventually(redis_server.socket.exists)
    await asyncio.sleep(0.05)
    await cache.get("k")
    await eventually(lambda: cache.state == "up")
    assert await cache.set("k", b"again", 60)
    await cache.close()


async def test_a_redis_that_is_not_there_at_the_start_is_no_error_and_costs_nothing(tmp_path):
    cache = await Cache.open(f"unix://{tmp_path}/none.sock", timeout=30.0)
    started = time.perf_counter()
    assert cache.state == "down"
    assert await cache.get("k") is None
    await cache.delete("k")
    assert time.perf_counter() - started < 5
    await cache.close()


async def test_a_hanging_server_costs_everyone_together_one_timeout_and_then_nothing():
    cache = await Cache.open(timeout=0.5, retry_after=0.2)
    pid = cache._server.pid
    await cache.set("k", b"v", 60)
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.perf_counter()
        answers = await asyncio.gather(*(cache.get("k") for _ in range(300)))
        first = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(1000):
            await cache.get("k")
        then = time.perf_counter() - started
        assert set(answers) == {None}
        assert 0.4 < first < 10, "one of three hundred"
        assert then < 10, "none of a thousand"
        assert cache.state == "down"
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: cache.state == "up")
    assert await cache.get("k") == b"v"
    await cache.close()


async def test_what_was_deleted_overwritten_or_purged_during_the_outage_does_not_come_back():
    cache = await Cache.open(retry_after=0.1)
    purged, kept = key("find", "de-1", 1), key("find", "fr-1", 1)
    for k in ("deleted", "overwritten", purged, kept):
        await cache.set(k, b"old", 60)
    pid = cache._server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await cache.delete("deleted")
        assert not await cache.set("overwritten", b"new", 60)
        await cache.purge_node("de-1")
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: cache.state == "up")
    assert await cache.get_many(["deleted", "overwritten", purged, kept]) == [None, None, None, b"old"]
    await cache.close()


async def test_too_many_missed_deletes_become_a_purge_of_everything():
    cache = await Cache.open(retry_after=0.1)
    entry = key("find", "fr-1", 1)
    await cache.set(entry, b"old", 60)
    pid = cache._server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for n in range(MAX_MISSED + 2):
            await cache.delete(key("find", "de-1", n))
        assert len(cache._missed.keys) <= MAX_MISSED
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: cache.state == "up")
    assert await cache.get(entry) is None
    await cache.close()


@pytest.mark.interop
async def test_a_redis_that_is_full_refuses_and_the_older_value_is_gone(redis_server):
    cache = await Cache.open(redis_server.url, retry_after=0.1)
    await eventually(lambda: cache.state == "up")
    await cache.set("k", b"old", 60)
    plain = await beside(cache)
    await plain.config_set("maxmemory-policy", "noeviction")
    await plain.config_set("maxmemory", "1")
    assert not await cache.set("k", b"new", 60)
    assert await cache.get("k") is None
    assert cache.state == "up"
    await cache.close()


async def test_off_is_an_address_too():
    cache = await Cache.open("off")
    assert cache.state == "off"
    assert await cache.get("k") is None
    await cache.close()


async def test_an_address_that_is_none_is_refused_without_showing_its_password():
    with pytest.raises(SettingsError) as refusal:
        await Cache.open("http://user:secret@host")
    assert "secret" not in str(refusal.value)


async def test_closing_leaves_no_task_and_answers_nothing_more():
    before = asyncio.all_tasks()
    cache = await Cache.open(retry_after=0.1)
    os.kill(cache._server.pid, signal.SIGSTOP)
    await cache.get("k")
    await cache.close()
    assert await cache.get("k") is None
    assert asyncio.all_tasks() == before
