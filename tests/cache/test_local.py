"""The layer within the process: what it keeps, what it drops, and when it is not believed."""

import asyncio

import pytest

from gateway.cache import envelope, freshness
from gateway.cache.answers import Answers, Loaded
from gateway.cache.client import Cache
from gateway.cache.envelope import Entry, now
from gateway.cache.keys import key
from gateway.cache.local import COST, Local
from gateway.cache.purges import Purge
from gateway.cache.tags import study_tag

from .conftest import eventually
from .test_answers import Source, kept

K = key("find", "de-1", "question")


def entry(size=10, tags=()):
    return Entry(b"1" * size, now(), 30, mentions=frozenset(tags))


def test_the_least_recently_used_goes_first_and_the_bytes_add_up():
    local = Local(20_000)
    for name in "abcdefghij":
        local.put(name, entry(100))
        local.trim()
        local.get("a")
    assert local.get("a") is not None
    assert local.get("b") is None
    assert local.used <= 20_000
    local.put("a", entry(10))
    local.clear()
    assert (len(local), local.used) == (0, 0)


def test_what_is_no_longer_fresh_takes_no_room_once_something_new_comes(monkeypatch):
    local = Local(20_000)
    local.put("a", entry(100))
    local.trim()
    assert local.get("a") is not None
    later = now() + 31
    monkeypatch.setattr(envelope, "now", lambda: later)
    local.put("b", Entry(b"1", later, 30))
    local.trim()
    assert (local.get("a"), len(local)) == (None, 1)


def test_what_is_too_large_is_not_kept_and_takes_the_older_one_with_it():
    local = Local(20_000)
    local.put("a", entry(10))
    local.put("a", entry(20_000 // COST))
    local.trim()
    assert local.get("a") is None


def test_entries_go_by_their_tags():
    local = Local(20_000)
    local.put("a", entry(tags=[study_tag("1.2"), study_tag("1.3")]))
    local.put("b", entry(tags=[study_tag("1.3")]))
    local.drop_where(lambda _, tags: study_tag("1.2") in tags)
    assert (local.get("a"), local.get("b") is None) == (None, False)


async def test_a_second_question_needs_neither_the_node_nor_redis(cache):
    answers, source = Answers(cache), Source(Loaded(["row"]))
    await eventually(lambda: cache.is_coherent)
    await answers.rows(K, 30, source)
    await kept(cache, K)
    before = cache.hits + cache.misses
    for _ in range(10):
        assert await answers.rows(K, 30, source) == ["row"]
    assert (source.asked, cache.hits + cache.misses) == (1, before)
    await answers.close()


async def test_an_answer_that_was_asked_for_anew_stays_while_the_older_one_is_put_away(cache, monkeypatch):
    monkeypatch.setattr("gateway.cache.lull.QUIET", 0.2)
    monkeypatch.setattr("gateway.cache.lull.MOST", 0.2)
    answers = Answers(cache)
    await eventually(lambda: cache.is_coherent)
    assert await answers.rows(K, 30, Source(Loaded(["old"]))) == ["old"]
    await asyncio.sleep(0.1)
    with freshness.asked_anew():
        assert await answers.rows(K, 30, Source(Loaded(["new"]))) == ["new"]
    given = []
    for _ in range(20):
        await asyncio.sleep(0.02)
        given.append(await answers.rows(K, 30, Source(Loaded(["another"]))))
    assert given == [["new"]] * 20
    await answers.close()


@pytest.mark.interop
async def test_a_purge_anywhere_is_heard_everywhere(redis_server):
    caches = [await Cache.open(redis_server.url, timeout=5, retry_after=0.1) for _ in range(2)]
    here, there = (Answers(cache) for cache in caches)
    heard = []
    caches[1].on_purge(heard.append)
    await eventually(lambda: all(cache.is_coherent for cache in caches))
    source = Source(Loaded(["old"], tags=frozenset({study_tag("1.2")})))
    for purge in (
        lambda: caches[0].purge_study("1.2"),
        lambda: caches[0].purge_node("de-1"),
        lambda: caches[0].purge_all(),
        lambda: here.forget(K),
    ):
        await there.rows(K, 30, source)
        await kept(caches[1], K)
        asked = source.asked
        assert await there.rows(K, 30, source) == ["old"]
        assert source.asked == asked
        told = len(heard)
        assert await purge() in (1, None)
        await eventually(lambda told=told: len(heard) > told)
        await there.rows(K, 30, source)
        assert source.asked == asked + 1
    await asyncio.sleep(0.05)
    kinds = [purge.kind for purge in heard]
    assert set(kinds) == {"study", "node", "all", "keys"}
    assert Purge("study", ("1.2",)) in heard
    for one in (here, there, *caches):
        await one.close()


@pytest.mark.interop
async def test_while_purges_cannot_be_heard_the_layer_is_empty_and_not_believed(redis_server):
    cache = await Cache.open(redis_server.url, retry_after=0.1)
    heard = []
    cache.on_purge(heard.append)
    await eventually(lambda: cache.is_coherent)
    answers, source = Answers(cache), Source(Loaded(["row"]))
    await answers.rows(K, 30, source)
    await kept(cache, K)
    redis_server.kill()
    await eventually(lambda: not cache.is_coherent)
    await eventually(lambda: Purge("all") in heard)
    await answers.rows(K, 30, source)
    assert source.asked == 2
    redis_server.start()
    await eventually(lambda: cache.is_coherent)
    await answers.rows(K, 30, source)
    await kept(cache, K)
    asked = source.asked
    await answers.rows(K, 30, source)
    assert source.asked == asked
    await answers.close()
    await cache.close()


@pytest.mark.interop
async def test_a_subscription_that_redis_ends_is_noticed_and_begun_anew(redis_server):
    cache = await Cache.open(redis_server.url, timeout=5, retry_after=0.1)
    heard = []
    cache.on_purge(heard.append)
    await eventually(lambda: cache.is_coherent)
    await cache.ask(lambda link: link.client.client_kill_filter(_type="pubsub"))
    await eventually(lambda: Purge("all") in heard)
    await eventually(lambda: cache.is_coherent)
    await cache.close()
