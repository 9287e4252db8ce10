"""Redis as a cluster and behind Sentinels: the same cache, through failovers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.cache import connections, locks
from gateway.cache.answers import Answers, Loaded
from gateway.cache.client import Cache
from gateway.cache.keys import key
from gateway.cache.tags import study_tag
from gateway.errors import SettingsError

from . import topologies
from .conftest import eventually
from .test_answers import Source
from .topologies import Servers

TAGS = frozenset({study_tag("1.2")})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Servers]:
    with topologies.cluster() as servers:
        yield servers


@pytest.fixture
def sentinels() -> Iterator[tuple[Servers, Callable[[], int]]]:
    with topologies.sentinels() as watched:
        yield watched


async def opened(url: str) -> Cache:
    cache = await Cache.open(url, timeout=2.0, retry_after=0.2)
    await eventually(lambda: cache.state == "up" and cache.is_coherent, 20)
    return cache


async def nothing_more_is_heard(caches: list[Cache]) -> None:
    """Waits for the purges of an earlier test, which cross the cluster in their own time: what they reach is loaded anew."""
    heard: list[object] = []
    for cache in caches:
        cache.on_purge(heard.append)
    known = -1
    while known != len(heard):
        known = len(heard)
        await asyncio.sleep(0.5)


async def test_a_cluster_keeps_gives_and_purges_over_all_its_servers(cluster: Servers) -> None:
    cache = await opened(cluster.url)
    keys = [key("find", f"n-{n % 7}", n) for n in range(200)]
    assert all(
        await asyncio.gather(*(cache.set(k, k.encode(), 60, TAGS if k in keys[:50] else frozenset()) for k in keys))
    )
    assert await cache.get_many([*keys, "missing"]) == [*(k.encode() for k in keys), None]
    assert await cache.purge_study("1.2") == 50
    assert await cache.purge_node("n-1") == len([k for k in keys[50:] if ":n-1:" in k])
    await cache.delete(*keys[50:70])
    assert await cache.get_many(keys[50:70]) == [None] * 20
    assert await cache.purge_all() == sum([":n-1:" not in k for k in keys[70:]])
    assert not await cache._link.has_evicted()  # type: ignore[union-attr]
    await cache.close()


async def test_replicas_on_a_cluster_load_once_and_hear_each_others_purges(cluster: Servers) -> None:
    caches = [await opened(cluster.url) for _ in range(2)]
    replicas, source = [Answers(cache) for cache in caches], Source(Loaded(["row"], tags=TAGS))
    await nothing_more_is_heard(caches)
    keys = [key("find", "de-1", "cluster", n) for n in range(20)]
    for k in keys:
        await asyncio.gather(*(answers.rows(k, 60, source) for answers in replicas for _ in range(5)))
    assert source.asked == 20
    async with asyncio.timeout(10):
        while None in await caches[0].get_many(keys):
            await asyncio.sleep(0.02)
    heard: list[object] = []
    caches[1].on_purge(heard.append)
    assert await caches[0].purge_study("1.2") == 20
    await eventually(lambda: bool(heard))
    await replicas[1].rows(key("find", "de-1", "cluster", 0), 60, source)
    assert source.asked == 21
    for each in (*replicas, *caches):
        await each.close()


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_a_cluster_that_loses_a_server_costs_no_answer_and_is_used_again(cluster: Servers, how: str) -> None:
    cache = await opened(cluster.url)
    answers, source = Answers(cache, local_bytes=0), Source(Loaded(["row"]))
    port = next(iter(cluster.processes))
    for n in range(60):
        if n == 20:
            cluster.kill(port) if how == "killed" else cluster.processes[port].send_signal(signal.SIGSTOP)
        assert await answers.rows(key("find", "de-1", "lost", n % 10), 60, source) == ["row"]
    assert cache.failures
    cluster.restart(port) if how == "killed" else cluster.processes[port].send_signal(signal.SIGCONT)
    await eventually(lambda: cache.state == "up", 30)

    async def works() -> bool:
        return all([await cache.set(key("find", "de-1", "back", n), b"v", 60) for n in range(30)])

    async with asyncio.timeout(30):
        while not await works():
            await asyncio.sleep(0.2)
    await answers.close()
    await cache.close()


async def test_a_failover_under_load_costs_no_answer_and_shows_nothing_older_than_declared(
    sentinels: tuple[Servers, Callable[[], int]],
) -> None:
    servers, primary = sentinels
    cache = await opened(servers.url)
    answers = Answers(cache, local_bytes=0)
    killed, ttl, failed, oldest = primary(), 1.0, [], 0.0
    stop = asyncio.Event()

    async def load() -> Loaded:
        return Loaded(time.time())

    async def caller(number: int) -> None:
        nonlocal oldest
        while not stop.is_set():
            k = key("find", "de-1", "failover", number % 3)
            try:
                asked = time.time()
                given = await answers.rows(k, ttl, load)
                oldest = max(oldest, asked - given)
            except Exception as error:  # noqa: BLE001 - every one is a finding
                failed.append(error)
            await asyncio.sleep(0.01)

    callers = [asyncio.create_task(caller(number)) for number in range(6)]
    await asyncio.sleep(0.5)
    servers.kill(killed)
    await eventually(lambda: cache.state == "down", 10)
    await eventually(lambda: cache.state == "up", 30)
    await eventually(lambda: primary() != killed, 10)  # one Sentinel hears of it from another
    before = cache.hits
    await eventually(lambda: cache.hits > before, 10)
    stop.set()
    await asyncio.gather(*callers)
    assert failed == []
    assert oldest <= ttl + 0.05
    await answers.close()
    await cache.close()


async def test_a_primary_that_hands_over_is_left_for_the_new_one(sentinels: tuple[Servers, Callable[[], int]]) -> None:
    servers, primary = sentinels
    cache = await opened(servers.url)
    before = primary()
    watching = [port for port in servers.processes if port not in servers.starts]
    servers.processes[watching[0]].kill()
    topologies.redis.Redis(port=watching[1]).execute_command("SENTINEL", "FAILOVER", "gateway")
    await eventually(lambda: primary() != before, 20)

    async def written() -> bool:
        return await cache.set("gw:1:k", b"new", 60)

    async with asyncio.timeout(20):
        while not await written():
            await asyncio.sleep(0.1)
    assert servers.client(primary()).exists("gw:1:k")
    await eventually(lambda: cache.is_coherent, 20)
    await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@host",
        "redis+cluster://:secret@",
        "redis+sentinel://:secret@host",
        "redis+sentinel://:secret@host/service/x",
        "redis+sentinel://:secret@host/service/0/1",
        "redis+other://:secret@host",
        "http+cluster://:secret@host",
        "redis+cluster://:secret@host:port",
        "redis://:secret@host:port",
    ],
)
def test_what_is_no_such_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        connections.connect(url, 1.0)
    assert "secret" not in str(refusal.value)
    assert "GATEWAY_REDIS_URL" in str(refusal.value)


async def test_names_and_passwords_are_read_from_the_url_with_their_escapes() -> None:
    credentials, hosts = connections._parsed("u%40x:p%2Fw@a:1,[::1]:2,c", 7)
    assert credentials == {"username": "u@x", "password": "p/w"}
    assert hosts == [("a", 1), ("::1", 2), ("c", 7)]
    link = connections.connect("rediss+sentinel://u:p@a,b:2/service/3?sentinel_password=q", 1.0)
    kwargs = link.client.connection_pool.connection_kwargs  # type: ignore[union-attr]
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("u", "p", 3)
    assert link.client.connection_pool.connection_class.__name__ == "SentinelManagedSSLConnection"  # type: ignore[union-attr]


def test_a_lock_lies_in_the_slot_of_its_entry() -> None:
    from redis.crc import key_slot

    k = key("find", "de-1@0a1b", "question")
    assert key_slot(k.encode()) == key_slot(locks._name(k).encode())
