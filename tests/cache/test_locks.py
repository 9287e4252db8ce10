"""Single-flight over replicas: one load for all, bounded waits, and no wait at all for what is not kept."""

import asyncio
import time

import pytest

from gateway.cache import locks
from gateway.cache.answers import Answers, Loaded
from gateway.cache.client import Cache
from gateway.cache.keys import key
from gateway.errors import NodeTimeout

from .conftest import eventually
from .test_answers import Source

pytestmark = pytest.mark.interop
K = key("find", "de-1", "question")


@pytest.fixture
async def replicas(redis_server):
    caches = [await Cache.open(redis_server.url, timeout=5, retry_after=0.1) for _ in range(3)]
    await eventually(lambda: all(cache.state == "up" for cache in caches))
    opened = [Answers(cache) for cache in caches]
    yield opened
    for each in (*opened, *caches):
        await each.close()


async def locked(answers):
    return await answers._cache.ask(lambda link: link.client.exists(locks._name(K)))


async def test_one_load_serves_all_replicas(replicas):
    source = Source(Loaded(["row"]))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source)) for answers in replicas for _ in range(70)]
    await eventually(lambda: source.asked == 1)
    await asyncio.sleep(0.1)
    source.go.set()
    assert await asyncio.gather(*tasks) == [["row"]] * 210
    assert source.asked == 1
    await asyncio.sleep(0.1)
    assert not await locked(replicas[0])


async def test_loads_that_begin_one_right_after_another_are_one(replicas):
    source = Source(Loaded(["row"]))
    for n in range(30):
        k = key("find", "de-1", n)
        await asyncio.gather(*(answers.rows(k, 30, source) for answers in replicas))
    assert source.asked == 30


async def test_the_lock_lasts_as_long_as_the_load(replicas, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.3)
    source = Source(Loaded(["row"]))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source)) for answers in replicas]
    await asyncio.sleep(1.0)
    assert source.asked == 1
    source.go.set()
    await asyncio.gather(*tasks)
    assert source.asked == 1


@pytest.mark.parametrize("outcome", [Loaded(["half"], cacheable=False), NodeTimeout("de-1", "slow"), Loaded([], ttl=0)])
async def test_a_load_that_is_not_kept_lets_the_others_go_at_once(replicas, outcome):
    source = Source(outcome)
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source)) for answers in replicas]
    await eventually(lambda: source.asked == 1)
    await asyncio.sleep(0.1)
    source.go.set()
    started = time.monotonic()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert time.monotonic() - started < locks.LOCK_SECONDS / 2
    assert source.asked == 3
    await asyncio.sleep(0.1)
    assert not await locked(replicas[0])


async def test_a_replica_that_died_with_the_lock_holds_nobody_up_for_longer_than_it_lasts(replicas, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.5)
    died = await locks.claim(replicas[0]._cache, K)
    died.lock._starts.cancel()
    source = Source(Loaded(["row"]))
    async with asyncio.timeout(20):
        assert await replicas[1].rows(K, 30, source) == ["row"]
    assert source.asked == 1


async def test_a_caller_who_leaves_lets_the_next_replica_load(replicas):
    source = Source(Loaded(["row"]))
    source.go.clear()
    first = asyncio.create_task(replicas[0].rows(K, 30, source))
    await eventually(lambda: source.asked == 1)
    second = asyncio.create_task(replicas[1].rows(K, 30, source))
    await asyncio.sleep(0.05)
    first.cancel()
    await eventually(lambda: source.asked == 2, locks.LOCK_SECONDS)
    source.go.set()
    assert await second == ["row"]


async def test_a_caller_who_leaves_while_the_lock_is_asked_for_leaves_none(replicas):
    for n in range(40):
        asking = asyncio.create_task(replicas[0].rows(K, 30, Source(Loaded(["row"], cacheable=False))))
        for _ in range(n % 8):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.2)
    assert not await locked(replicas[1])


async def test_a_lock_that_became_anothers_is_not_released(replicas):
    mine = await locks.claim(replicas[0]._cache, K)
    await replicas[0]._cache.ask(lambda link: link.client.set(locks._name(K), "another"))
    await mine.lock.release()
    assert await locked(replicas[0])


async def test_when_redis_goes_down_those_who_wait_load_for_themselves(replicas, redis_server):
    source = Source(Loaded(["row"]))
    source.go.clear()
    first = asyncio.create_task(replicas[0].rows(K, 30, source))
    await eventually(lambda: source.asked == 1)
    second = asyncio.create_task(replicas[1].rows(K, 30, source))
    await asyncio.sleep(0.1)
    redis_server.kill()
    await eventually(lambda: source.asked == 2)
    source.go.set()
    assert await asyncio.gather(first, second) == [["row"]] * 2


async def test_what_is_never_kept_is_never_locked(replicas):
    source = Source(Loaded(["row"]))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 0, source)) for answers in replicas]
    await eventually(lambda: source.asked == 3)
    source.go.set()
    await asyncio.gather(*tasks)
