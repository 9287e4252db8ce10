"""Purges that are not heard, refused, lost with the server that made them, or heard too late: nothing of before comes back."""

import asyncio

import pytest
import redis as plain_redis

from gateway.cache import envelope
from gateway.cache.answers import Answers, Loaded, Stale
from gateway.cache.client import Cache
from gateway.cache.keys import key
from gateway.cache.tags import study_tag
from gateway.errors import NodeUnreachable
from tests import peers

from .conftest import eventually
from .test_answers import Source, kept

pytestmark = pytest.mark.interop
K = key("find", "de-1", "question")
OLD, NEW = Loaded(["old"], tags=frozenset({study_tag("1.2")})), Loaded(["new"], tags=frozenset({study_tag("1.2")}))


async def opened(server):
    cache = await Cache.open(server.url, timeout=5.0, retry_after=0.2)
    await eventually(lambda: cache.is_coherent)
    return cache


async def deafened(server):
    """Two replicas whose subscriptions have just been cut, each with its answers; the first has noticed."""
    plain = plain_redis.Redis(unix_socket_path=str(server.socket))
    a, b = await opened(server), await opened(server)
    answers, others = Answers(a), Answers(b)
    plain.client_kill_filter(_type="pubsub", skipme=True)
    await eventually(lambda: not a.is_coherent)
    return a, b, answers, others


async def begun(answers):
    """A load under way, which began before whatever comes next: the hospital has begun to say what is old then."""
    source = Source(OLD)
    source.go.clear()
    asking = asyncio.create_task(answers.answer(K, 300, source, list))
    await eventually(lambda: source.asked == 1)
    return source, asking


async def closed(*opened_before):
    for each in opened_before:
        await each.close()


async def test_what_was_loaded_while_purges_could_not_be_heard_is_not_kept(redis_server):
    """A's subscription is cut; B purges; A hears again; A's load, begun before the purge, ends."""
    a, b, answers, others = await deafened(redis_server)
    await eventually(lambda: not b.is_coherent)
    source, asking = await begun(answers)
    await b.purge_study("1.2")
    await eventually(lambda: a.is_coherent and b.is_coherent)
    source.go.set()
    assert (await asking).value == ["old"]
    await asyncio.sleep(0.5)
    source.loaded = NEW
    mine = (await answers.answer(K, 300, source, list)).value
    theirs = (await others.answer(K, 300, Source(NEW), list)).value
    await closed(answers, others, a, b)
    assert (mine, theirs) == (["new"], ["new"])


async def test_who_cannot_hear_purges_writes_nothing_into_redis_for_those_who_can(redis_server):
    """As above, A still deaf when its load ends: B, which made the purge and hears everything, is given the old answer."""
    a, b, answers, others = await deafened(redis_server)
    source, asking = await begun(answers)
    await b.purge_study("1.2")
    source.go.set()
    await asking
    assert not a.is_coherent
    await asyncio.sleep(0.4)
    await eventually(lambda: b.is_coherent)
    theirs = (await others.answer(K, 300, Source(NEW), list)).value
    await closed(answers, others, a, b)
    assert theirs == ["new"]


async def test_a_purge_that_redis_refused_is_made_up_for(redis_server):
    """Redis refuses writes for a while (READONLY after a failover behind one address, NOREPLICAS, MISCONF)."""
    plain = plain_redis.Redis(unix_socket_path=str(redis_server.socket))
    a, b = await opened(redis_server), await opened(redis_server)
    answers = Answers(a, local_bytes=0)
    source = Source(OLD)
    await answers.answer(K, 300, source, list)
    assert await kept(a, K) == ["old"]
    plain.config_set("min-replicas-to-write", "1")
    await b.purge_study("1.2")
    assert b.owes
    plain.config_set("min-replicas-to-write", "0")
    await asyncio.sleep(5)  # retry_after is 0.2 s
    state, owes = b.state, b.owes
    source.loaded = NEW
    got = (await answers.answer(K, 300, source, list)).value
    await closed(answers, a, b)
    assert (got, state, owes) == (["new"], "up", False)


async def test_a_purge_from_the_command_line_survives_a_failover_to_a_server_that_had_not_heard_it(redis_server):
    """The command has ended; the replica that heard the purge is the only one left who knows of it."""
    plain = plain_redis.Redis(unix_socket_path=str(redis_server.socket))
    a = await opened(redis_server)
    answers = Answers(a, local_bytes=0)
    source = Source(OLD)
    await answers.answer(K, 300, source, list)
    assert await kept(a, K) == ["old"]
    plain.save()  # what the server that takes over knows
    command = await Cache.open(redis_server.url, timeout=5.0)
    assert await command.purge_study("1.2") == 1
    await command.close()
    assert await a.get(K) is None
    # As AOF everysec or an asynchronous replica: the delete is lost with the server that did it.
    redis_server.kill()
    await a.get("gw:1:x")
    redis_server.start()
    await eventually(lambda: a.state == "up")
    await asyncio.sleep(1)
    source.loaded = NEW
    got = (await answers.answer(K, 300, source, list)).value
    await closed(answers, a)
    assert got == ["new"]


async def test_an_answer_does_not_stand_in_beyond_its_window(cache, monkeypatch):
    class Clock:
        now = 1_000_000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(envelope, "now", clock)
    answers, source = Answers(cache, Stale(0, 300)), Source(OLD)
    await answers.answer(K, 30, source, list)
    await kept(cache, K)
    clock.now += 329  # the last second of its window
    source.loaded = NodeUnreachable("de-1", "is away")
    source.go.clear()
    asking = asyncio.create_task(answers.answer(K, 30, source, list))
    await eventually(lambda: source.asked == 2)
    clock.now += 10  # the node is silent for its search_deadline, and fails
    source.go.set()
    try:
        given = await asking
    except NodeUnreachable:
        given = None
    await answers.close()
    assert given is None or given.age < 330


class Lagging:
    """A way to Redis on which purges are heard `seconds` later than other answers (a cluster's bus, a busy loop, a network)."""

    def __init__(self, socket, path, seconds):
        self.socket, self.path, self.seconds = socket, path, seconds

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self._serve, str(self.path))
        return f"unix://{self.path}"

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        up_reader, up_writer = await asyncio.open_unix_connection(str(self.socket))
        subscribed = False

        async def there():
            nonlocal subscribed
            while data := await reader.read(65536):
                subscribed |= b"SUBSCRIBE" in data
                up_writer.write(data)
            up_writer.close()

        async def back():
            while data := await up_reader.read(65536):
                if subscribed and b"message" in data:
                    await asyncio.sleep(self.seconds)
                writer.write(data)
            writer.close()

        await asyncio.gather(there(), back(), return_exceptions=True)


@pytest.mark.parametrize("lag", [0.25, 1.0])
async def test_a_purge_that_is_heard_after_the_answer_was_written_takes_it_back(redis_server, lag):
    """A's load began before the purge and is written after it; the purge reaches A a moment later."""
    async with Lagging(redis_server.socket, redis_server.socket.parent / "lag.sock", lag) as url:
        a = await Cache.open(url, timeout=5.0, retry_after=0.2)
        await eventually(lambda: a.is_coherent)
        b = await opened(redis_server)
        answers, others = Answers(a), Answers(b)
        source, asking = await begun(answers)
        await b.purge_study("1.2")
        source.go.set()
        await asking
        await asyncio.sleep(lag + 2)  # A has heard it, both times
        theirs = (await others.answer(K, 300, Source(NEW), list)).value
        await closed(answers, others, a, b)
        assert theirs == ["new"]


async def test_a_new_primary_knows_that_the_old_one_had_evicted():
    """The index was evicted by the old primary; the one that takes over has the same keys, and has evicted nothing itself."""
    with peers.redis() as first, peers.redis(0, "--replicaof", f"127.0.0.1 {first.port}") as second:
        one, two = plain_redis.Redis(port=first.port), plain_redis.Redis(port=second.port)
        one.config_set("maxmemory-policy", "volatile-lru")
        one.config_set("maxmemory-samples", "64")
        cache = await Cache.open(first.url, timeout=5.0, retry_after=0.2)
        await eventually(lambda: cache.is_coherent)
        answers = Answers(cache, local_bytes=0)
        await answers.answer(K, 300, Source(OLD), list)
        assert await kept(cache, K) == ["old"]
        index = one.keys("gw:1:tag:*")[0]
        await asyncio.sleep(2)
        for n in range(20):
            one.set(f"other:{n}", b"x" * 100_000, px=60_000)
        for key_ in one.keys("*"):
            if key_ != index:
                one.touch(key_)
        await asyncio.sleep(1.1)
        one.get(K)
        limit = one.info("memory")["used_memory"]
        for n in range(200):
            one.get(K)
            for key_ in one.keys("other:*"):
                one.touch(key_)
            one.config_set("maxmemory", limit - 200 * n)
            if one.info("stats")["evicted_keys"]:
                break
        assert (one.exists(index), one.exists(K)) == (0, 1), "the index went before its entry"
        assert one.info("stats")["evicted_keys"] > 0
        one.wait(1, 5000)
        await cache.close()
        first.kill()
        two.replicaof("NO", "ONE")
        two.config_set("maxmemory", "100mb")
        cache = await Cache.open(second.url, timeout=5.0, retry_after=0.2)
        await eventually(lambda: cache.is_coherent)
        others = Answers(cache, local_bytes=0)
        dropped = await cache.purge_study("1.2")
        got = (await others.answer(K, 300, Source(NEW), list)).value
        await closed(answers, others, cache)
        assert (got, dropped) == (["new"], 1)


async def test_many_purges_before_a_failover_are_all_made_again(redis_server):
    cache = await Cache.open(redis_server.url, timeout=5, retry_after=0.2)
    await eventually(lambda: cache.state == "up")
    await cache.purge_study("1.2")
    for n in range(1000):
        await cache.purge_study(f"1.9.{n}")
    await Answers(cache, local_bytes=0).rows(K, 60, Source(OLD))
    await kept(cache, K)
    cache._fall("failover")
    await eventually(lambda: cache.state == "up")
    left = await cache.get(K)
    await cache.close()
    assert left is None
