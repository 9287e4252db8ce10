import asyncio
import os
import signal

import orjson
import pytest

from gateway.cache import envelope
from gateway.cache.answers import Answers, Loaded, Ttl
from gateway.cache.client import Cache
from gateway.cache.keys import FEDERATED, key
from gateway.errors import NodeTimeout

K = key("find", "de-1", "question")


class Source:
    """A node that counts how often it is asked."""

    def __init__(self, loaded):
        self.loaded, self.asked = loaded, 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self):
        self.asked += 1
        await self.go.wait()
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
async def answers(cache):
    opened = Answers(cache)
    yield opened
    await opened.close()


async def kept(cache: Cache, k: str, other_than: object = None, within: float = 10.0):
    """What is kept, once it is something `other_than` this; that itself when it never is."""
    value, ends = other_than, asyncio.get_running_loop().time() + within
    while value == other_than and asyncio.get_running_loop().time() < ends:
        await asyncio.sleep(0.02)
        entry = envelope.opened(await cache.get(k))
        value = None if entry is None else orjson.loads(entry.body)
    return value


async def test_a_second_question_is_answered_without_the_node(answers, cache):
    source = Source(Loaded([{"00100020": {"vr": "LO", "Value": ["Ω"]}}]))
    first = await answers.rows(K, 30, source)
    await kept(cache, K)
    assert await answers.rows(K, 30, source) == first == source.loaded.value
    assert source.asked == 1


async def test_young_objects_are_looked_at_when_an_answer_is_kept_and_whoever_asked_has_it(answers, cache, monkeypatch):
    looked = []
    monkeypatch.setattr("gateway.cache.answers.collect_the_young", lambda: looked.append(True))
    await answers.rows(K, 30, Source(Loaded(["row"])))
    assert not looked
    await kept(cache, K)
    assert looked == [True]


async def test_an_answer_may_be_null_or_empty_and_is_still_an_answer(answers, cache):
    for n, value in enumerate([None, [], {}, 0, ""]):
        source, k = Source(Loaded(value)), key("find", "de-1", n)
        assert await answers.rows(k, 30, source) == value
        async with asyncio.timeout(10):
            while await cache.get(k) is None:
                await asyncio.sleep(0.01)
        assert await answers.rows(k, 30, source) == value
        assert source.asked == 1


async def test_a_partial_answer_is_given_and_not_kept(answers, cache):
    source = Source(Loaded(["half"], cacheable=False))
    assert await answers.rows(K, 30, source) == ["half"]
    assert await kept(cache, K, within=0.4) is None
    await answers.rows(K, 30, source)
    assert source.asked == 2


async def test_a_negative_answer_may_have_a_shorter_life(answers, cache):
    source = Source(Loaded([], ttl=0.6))
    await answers.rows(K, 30, source)
    assert await kept(cache, K) == []
    await asyncio.sleep(0.6)
    await answers.rows(K, 30, source)
    assert source.asked == 2


async def test_a_failure_is_raised_and_not_kept(answers, cache):
    source = Source(NodeTimeout("de-1", "no answer"))
    for _ in range(2):
        with pytest.raises(NodeTimeout):
            await answers.rows(K, 30, source)
    assert await kept(cache, K, within=0.4) is None
    assert source.asked == 2


async def test_two_hundred_callers_ask_the_node_once_though_the_first_one_leaves(answers, cache):
    source = Source(Loaded(["row"]))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source)) for _ in range(200)]
    async with asyncio.timeout(5):
        while not source.asked:
            await asyncio.sleep(0.001)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    source.go.set()
    assert await asyncio.gather(*tasks[1:]) == [["row"]] * 199
    assert source.asked == 1


async def test_every_caller_gets_a_copy_of_its_own(answers):
    source = Source(Loaded([{"a": [1]}]))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source)) for _ in range(2)]
    await asyncio.sleep(0.02)
    source.go.set()
    first, second = await asyncio.gather(*tasks)
    first[0]["a"].append(2)
    assert second == [{"a": [1]}]


@pytest.mark.parametrize("forget", ["forget", "purge_node"])
@pytest.mark.parametrize("k", [K, key("find", FEDERATED, "question")])
async def test_what_is_forgotten_while_it_is_loaded_is_not_kept(answers, cache, forget, k):
    source = Source(Loaded("outdated"))
    source.go.clear()
    asking = asyncio.create_task(answers.rows(k, 30, source))
    await asyncio.sleep(0.02)
    await (answers.forget(k) if forget == "forget" else answers.purge_node("de-1"))
    source.go.set()
    assert await asking == "outdated"
    assert await kept(cache, k, within=0.4) is None
    assert await answers.rows(k, 30, Source(Loaded("fresh"))) == "fresh"


async def test_without_redis_every_answer_is_right_and_only_slower():
    cache = await Cache.open(retry_after=5)
    answers, source = Answers(cache, local_bytes=0), Source(Loaded(["row"]))
    await answers.rows(K, 30, source)
    assert await kept(cache, K) == ["row"]
    os.kill(cache._server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(2):
            for _ in range(20):
                assert await answers.rows(K, 30, source) == ["row"]
    finally:
        await answers.close()
        await cache.close()
    assert source.asked == 21


async def test_every_kind_has_a_time_and_an_unknown_kind_has_none():
    ttl = Ttl(find=5)
    assert (ttl.of("find"), ttl.of("metadata")) == (5, 3600)
    with pytest.raises(AttributeError):
        ttl.of("nonsense")
