"""Work is handed to one replica at a time, to another when that one is gone, and never twice at once."""

from __future__ import annotations

import asyncio

import pytest

from gateway.cache import work
from gateway.cache.client import Cache
from gateway.cache.work import Alone, Queue, Stream, queue_of


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for work that does not come."""
    monkeypatch.setattr(work, "_BLOCK", 0.05)


@pytest.fixture(params=["stream", "alone"])
def queue(request: pytest.FixtureRequest, cache: Cache, brief: None) -> Queue:
    return Stream(cache) if request.param == "stream" else Alone()


async def test_a_job_is_given_to_one_and_again_when_it_has_more_to_do(queue: Queue) -> None:
    await queue.put("a")
    entry = await queue.take()
    assert entry is not None
    assert entry.job == "a"
    assert await queue.take() is None
    await queue.next(entry)
    again = await queue.take()
    assert again is not None
    await queue.done(again)
    assert await queue.take() is None


async def test_a_job_is_there_once_however_often_it_is_put_in(queue: Queue) -> None:
    await asyncio.gather(*(queue.put("a") for _ in range(5)))
    entry = await queue.take()
    assert entry is not None
    await queue.put("a")  # while it is worked on
    assert await queue.take() is None
    await queue.done(entry)
    assert await queue.take() is None


async def test_jobs_take_turns(queue: Queue) -> None:
    await queue.put("a")
    await queue.put("b")
    taken = []
    for _ in range(4):
        entry = await queue.take()
        assert entry is not None
        taken.append(entry.job)
        await queue.next(entry)
    assert taken == ["a", "b", "a", "b"]


async def test_replicas_that_wait_are_served_in_turn(cache: Cache) -> None:
    one, other = Stream(cache), Stream(cache)
    waiting = [asyncio.create_task(one.take()), asyncio.create_task(other.take())]
    await asyncio.sleep(0.1)
    await one.put("a")
    await one.put("b")
    found = await asyncio.gather(*waiting)
    assert {entry.job for entry in found if entry} == {"a", "b"}


@pytest.mark.usefixtures("brief")
async def test_what_a_dead_replica_had_is_given_to_another(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = Stream(cache), Stream(cache)
    await dead.put("a")
    assert await dead.take()
    assert await alive.take() is None
    monkeypatch.setattr(work, "LEASE", 0.05)
    await asyncio.sleep(0.1)
    entry = await alive.take()
    assert entry is not None
    assert entry.job == "a"


async def test_what_is_held_is_not_given_away(cache: Cache) -> None:
    slow = Stream(cache)
    await slow.put("a")
    entry = await slow.take()
    assert entry is not None
    await asyncio.sleep(1.0)
    before = await idle(cache)
    await slow.hold(entry)
    assert await idle(cache) < before


async def idle(cache: Cache) -> int:
    """Milliseconds since somebody said to be working on the only entry."""
    script = "return redis.call('XPENDING', KEYS[1], 'replicas', '-', '+', 1)"
    ((_, _, milliseconds, _),) = await cache.ask(lambda link: link.run(script, ["gw:work:export"], []))  # type: ignore[misc]
    return int(milliseconds)


@pytest.mark.usefixtures("brief")
async def test_a_stream_that_redis_lost_is_begun_anew(cache: Cache) -> None:
    stream = Stream(cache)
    await stream.put("a")
    assert await stream.take()
    await cache.ask(lambda link: link.unlink(["gw:work:export"]))
    assert await stream.take() is None
    await stream.put("a")
    assert await stream.take()


async def test_a_purge_of_everything_leaves_the_work(cache: Cache) -> None:
    stream = Stream(cache)
    await stream.put("a")
    await cache.purge_all()
    assert await stream.take()


@pytest.mark.usefixtures("brief")
async def test_while_redis_is_away_nothing_is_given_and_nothing_raised() -> None:
    away = await Cache.open("redis://127.0.0.1:1/0", timeout=0.2)
    try:
        stream = queue_of(away)
        assert isinstance(stream, Stream)
        await stream.put("a")
        assert await stream.take() is None
    finally:
        await away.close()


async def test_without_redis_the_queue_is_of_this_process() -> None:
    off = await Cache.open("off")
    assert isinstance(queue_of(off), Alone)
    await off.close()
