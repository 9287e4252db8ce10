"""Purging by study and by patient: all that mentions it goes, whatever Redis evicted, and nothing else."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import orjson
import pytest

from gateway.cache import envelope
from gateway.cache.answers import Answers, Loaded
from gateway.cache.client import Cache
from gateway.cache.envelope import Entry
from gateway.cache.keys import FEDERATED, PREFIX, federated_key, key
from gateway.cache.purges import Purge, PurgeLog, heard
from gateway.cache.sealing import Seal
from gateway.cache.tags import ANY_ISSUER, patient_tag, study_tag

from .conftest import eventually
from .test_answers import Source, kept

K = key("find", "de-1", "question")
ONE, TWO = study_tag("1.2"), study_tag("1.3")
ANNA = patient_tag("SU-KRAKOW", "12345")


async def filled(cache, **entries):
    """Entries by name with their tags, and a node each."""
    keys = {name: key("find", f"{name}-1", name) for name in entries}
    for name, tags in entries.items():
        await Answers(cache, local_bytes=0).rows(keys[name], 60, Source(Loaded([name], tags=frozenset(tags))))
    assert None not in [await kept(cache, each) for each in keys.values()]
    return keys


async def left(cache, keys):
    return {name for name, k in keys.items() if await cache.get(k) is not None}


async def test_a_purge_of_a_study_takes_all_that_mentions_it_and_nothing_else(cache):
    keys = await filled(cache, a=[ONE], b=[ONE, TWO, ANNA], c=[TWO], d=[])
    assert await cache.purge_study("1.2") == 2
    assert await left(cache, keys) == {"c", "d"}
    assert await cache.purge_study("1.2") == 0


async def test_a_purge_of_a_patient_takes_him_under_his_issuer_only(cache):
    other = patient_tag("SU-WARSZAWA", "12345")
    keys = await filled(cache, a=[ANNA, ONE], b=[other], c=[patient_tag(ANY_ISSUER, "12345")])
    assert await cache.purge_patient("SU-KRAKOW", "12345") == 2
    assert await left(cache, keys) == {"b"}, "and the question for that number of whatever issuer"


async def test_an_answer_of_thousands_of_studies_is_found_by_each_of_them(cache):
    tags = [study_tag(f"1.2.{n}") for n in range(3000)]
    keys = await filled(cache, a=tags)
    assert await left(cache, keys) == {"a"}
    assert await cache.purge_study("1.2.2999") == 1


async def test_purging_everything_leaves_nothing_of_ours(cache):
    keys = await filled(cache, a=[ONE], b=[TWO])
    await cache.ask(lambda link: link.set("another application", b"x", 60_000))
    assert await cache.purge_all() == 2
    assert await left(cache, keys) == set()
    assert [key async for key in cache._link.client.scan_iter()] == [b"another application"]


async def test_no_key_shows_an_identifier_of_a_patient(cache):
    await filled(cache, a=[ANNA, ONE])
    keys = b" ".join([k async for k in cache._link.client.scan_iter()]).decode()
    assert f"{PREFIX}:tag:{ANNA.hex()}" in keys
    assert "12345" not in keys.replace(ANNA.hex(), "").replace(ONE.hex(), "").partition("find")[0]
    assert "KRAKOW" not in keys


async def test_an_index_ends_with_its_last_entry_and_forgets_those_that_ended(cache):
    source = Source(Loaded(["short"], tags=frozenset([ONE]), may_be_stale=False))
    answers = Answers(cache)
    await answers.rows(key("find", "a", 1), 0.2, source)
    await asyncio.sleep(0.5)
    await answers.rows(key("find", "a", 2), 60, source)
    assert await kept(cache, key("find", "a", 2)) == ["short"]
    index = f"{PREFIX}:tag:{ONE.hex()}"
    assert await cache._link.client.zrange(index, 0, -1) == [key("find", "a", 2).encode()]
    assert 50 < await cache._link.client.ttl(index) <= 60
    await answers.close()


async def test_what_an_evicted_index_no_longer_names_is_found_all_the_same(cache, monkeypatch):
    keys = await filled(cache, a=[ONE], b=[TWO])
    await cache._link.client.delete(f"{PREFIX}:tag:{ONE.hex()}")

    async def has_evicted():
        return True

    monkeypatch.setattr(cache._link, "has_evicted", has_evicted)
    assert await cache.purge_study("1.2") == 1
    assert await left(cache, keys) == {"b"}


async def test_a_purge_that_reads_every_entry_holds_up_nobody_and_comes_to_its_end(redis_server, monkeypatch):
    """Of megabytes each, as lists of thousands of studies are; the deadline of a command is the usual one."""
    cache = await Cache.open(redis_server.url)
    await eventually(lambda: cache.is_coherent)

    async def has_evicted():
        return True

    monkeypatch.setattr(cache._link, "has_evicted", has_evicted)
    text = orjson.dumps([os.urandom(500_000).hex() * 5] * 6)
    for n in range(20):
        entry = Entry(os.urandom(4_000_000) + text, envelope.now(), 60, mentions=frozenset({ONE}))
        assert await cache.set(key("find", "a", n), envelope.sealed(entry), 60)
        assert await cache.set(key("find", "b", n), envelope.sealed(Entry(os.urandom(4_000_000), 0.0, 60)), 60)
    async with longest_pause() as longest:
        dropped = await cache.purge_study("1.2")
    state, owes = cache.state, cache.owes
    await cache.close()
    assert (dropped, state, owes) == (20, "up", False)
    assert longest() < 0.2


@asynccontextmanager
async def longest_pause():
    """The longest that the event loop was held up inside."""
    loop = asyncio.get_running_loop()
    longest, last = 0.0, loop.time()

    async def watch():
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.005)
            longest, last = max(longest, loop.time() - last), loop.time()

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    yield lambda: longest
    watching.cancel()


async def test_an_entry_under_another_key_that_no_index_names_goes_with_any_purge(redis_server, monkeypatch):
    """While a key is renewed, replicas of both read one Redis; what cannot be read may mention what is purged."""
    old, new = [await Cache.open(redis_server.url, timeout=5, seal=Seal(bytes([n]) * 32)) for n in (1, 2)]
    await eventually(lambda: old.is_coherent and new.is_coherent)
    keys = await filled(old, a=[ONE])
    await old.set_json(federated_key("offsets", "view", "a"), ["a place"], 60)
    await new.set_json(federated_key("offsets", "view", "b"), ["a place"], 60)
    await new._link.client.delete(f"{PREFIX}:tag:{ONE.hex()}")

    async def has_evicted():
        return True

    monkeypatch.setattr(new._link, "has_evicted", has_evicted)
    await new.purge_study("1.2")
    assert await left(old, keys) == set()
    assert await new.get_json(federated_key("offsets", "view", "b")) == ["a place"], (
        "it can be read, and mentions nobody"
    )
    await old.close()
    await new.close()


async def test_eviction_is_noticed(cache):
    assert not await cache._link.has_evicted()
    await cache._link.client.config_set("maxmemory-policy", "allkeys-lru")
    await cache._link.client.config_set("maxmemory", str(3 * 1024 * 1024))
    for n in range(40):
        await cache.set(f"gw:1:{n}", os.urandom(200_000), 60)
    assert await cache._link.has_evicted()


@pytest.mark.parametrize("purge", ["study", "patient", "node", "all"])
async def test_what_is_purged_while_it_is_loaded_is_not_kept_and_new_callers_get_a_new_load(cache, purge):
    answers = Answers(cache)
    old = Source(Loaded("outdated", tags=frozenset([ONE, ANNA])))
    old.go.clear()
    asking = asyncio.create_task(answers.rows(K, 30, old))
    await eventually(lambda: old.asked == 1)
    await {
        "study": lambda: answers._cache.purge_study("1.2"),
        "patient": lambda: answers._cache.purge_patient("SU-KRAKOW", "12345"),
        "node": lambda: answers._cache.purge_node("de-1"),
        "all": lambda: answers._cache.purge_all(),
    }[purge]()
    late = asyncio.create_task(answers.rows(K, 30, Source(Loaded("fresh", tags=frozenset([ONE, ANNA])))))
    await asyncio.sleep(0.05)
    old.go.set()
    assert await asking == "outdated"
    assert await late == "fresh"
    assert await kept(cache, K) == "fresh"
    await answers.close()


async def test_a_purge_of_another_study_disturbs_no_load(cache):
    answers, source = Answers(cache), Source(Loaded("row", tags=frozenset([ONE])))
    source.go.clear()
    tasks = [asyncio.create_task(answers.rows(K, 30, source))]
    await eventually(lambda: source.asked == 1)
    await cache.purge_study("1.3")
    tasks.append(asyncio.create_task(answers.rows(K, 30, source)))
    await asyncio.sleep(0.05)
    source.go.set()
    assert await asyncio.gather(*tasks) == ["row", "row"]
    assert (source.asked, await kept(cache, K)) == (1, "row")
    await answers.close()


async def test_what_was_purged_during_an_outage_does_not_come_back():
    cache = await Cache.open(retry_after=0.1)
    keys = await filled(cache, a=[ONE], b=[ANNA], c=[TWO])
    os.kill(cache._server.pid, signal.SIGSTOP)
    try:
        assert await cache.purge_study("1.2") == 0
        await cache.purge_patient("SU-KRAKOW", "12345")
        assert cache.owes
    finally:
        os.kill(cache._server.pid, signal.SIGCONT)
    await eventually(lambda: cache.state == "up")
    assert await left(cache, keys) == {"c"}
    assert not cache.owes
    await cache.close()


def test_a_message_comes_back_as_its_purge_and_nonsense_purges_everything():
    for purge in (Purge("study", ("1.2",)), Purge.of_patient("I", "1"), Purge("all"), Purge("keys", (K,))):
        assert heard(purge.message("a"), "b") == purge
        assert heard(purge.message("a"), "a") is None
    for nonsense in (
        b"",
        b"[]",
        b'{"kind": "study"}',
        b'{"kind": "?", "values": []}',
        b'{"kind":"patient","values":["x"]}',
    ):
        assert heard(nonsense, "b") == Purge("all")
    assert b"12345" not in Purge.of_patient("SU-KRAKOW", "12345").message("a")


def test_the_log_remembers_what_it_can_and_is_careful_beyond():
    log = PurgeLog(4)
    log.add(Purge("study", ("1.2",)))
    assert log.has_touched(K, frozenset([ONE, TWO]), 0)
    assert not log.has_touched(K, frozenset([ONE]), 1)
    assert not log.has_touched(K, frozenset([TWO]), 0)
    for _ in range(3):
        log.add(Purge("study", ("1.3",)))
    assert not log.has_touched(K, frozenset([ONE]), 1)
    assert not log.has_touched(K, frozenset([TWO]), 1, until=1)
    log.add(Purge("node", ("de-1",)))
    assert log.has_touched(key("find", "de-2", 1), frozenset(), 0), "what was purged then is not known any more"
    assert log.has_touched(K, frozenset(), 4)
    assert not log.has_touched(key("find", "de-2", 1), frozenset(), 4)


def test_a_federated_key_goes_with_any_node():
    assert Purge("node", ("de-1",)).drops_key(key("find", FEDERATED, 1))
    assert not Purge("node", ("de-1",)).drops_key(key("find", "de-2", 1))


@pytest.mark.interop
async def test_what_was_purged_just_before_a_failover_is_purged_again_after_it(redis_server):
    cache = await Cache.open(redis_server.url, timeout=5, retry_after=0.2)
    await eventually(lambda: cache.state == "up")
    await cache.purge_study("1.2")
    keys = await filled(cache, a=[ONE], b=[TWO])  # as a replica that had not heard of it still has them
    cache._fall("failover")
    await eventually(lambda: cache.state == "up")
    assert await left(cache, keys) == {"b"}
    await cache.close()
