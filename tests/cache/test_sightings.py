"""When a study was first seen, changed or gone: written down once for all replicas, on one Redis and on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.cache.client import Cache
from gateway.cache.sightings import Seen, Sightings, digest_of, part
from gateway.errors import RecordUnavailable
from gateway.federation.sighted import seen_part
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import Level
from tests import peers

from .conftest import opened

A, B = (part(node, "1.2", "I", "P") for node in ("a", "b"))
FIRST, OTHER = digest_of("1.2", b"first"), digest_of("1.2", b"other")


@pytest.fixture
async def two(single_or_cluster: str, request: pytest.FixtureRequest) -> AsyncIterator[list[Sightings]]:
    """The same record as two replicas have it."""
    caches = [await opened(single_or_cluster) for _ in range(2)]
    yield [Sightings(cache, 400) for cache in caches]
    for cache in caches:
        await cache.close()


async def test_replicas_that_see_a_study_at_once_agree_since_when(two: list[Sightings]) -> None:
    before = await two[0].now()
    seen = [Seen(f"1.2.{number}", {A: FIRST}) for number in range(600)]
    mine, yours = await asyncio.gather(*(one.observe("together", seen) for one in two))
    assert mine == yours
    assert all(parts[A].moment > before and not parts[A].is_gone for parts in mine)
    assert await two[1].observe("together", seen) == mine
    assert await two[1].observe("another view", [Seen("1.2.1")]) == [{}]


async def test_a_part_is_new_when_it_comes_changes_goes_and_comes_back(two: list[Sightings]) -> None:
    one, other = two
    (first,) = await one.observe("v", [Seen("1.2", {A: FIRST, B: FIRST})])
    (same,) = await other.observe("v", [Seen("1.2", {A: FIRST})])  # b says nothing of it, or nothing at all
    assert same == first
    (same,) = await one.observe("v", [Seen("1.2", {A: "", B: ""}, told=("a", "b"))])
    assert same == first
    (changed,) = await other.observe("v", [Seen("1.2", {A: OTHER})])
    assert changed[A].moment >= first[A].moment
    assert changed[B] == first[B]
    (less,) = await one.observe("v", [Seen("1.2", {A: OTHER}, told=("a", "b"))])
    assert (less[A], less[B].is_gone, less[B].moment >= first[B].moment) == (changed[A], True, True)
    (still,) = await one.observe("v", [Seen("1.2", told=("b",))])
    assert still == less
    (back,) = await one.observe("v", [Seen("1.2", {B: FIRST})])
    assert not back[B].is_gone
    (same,) = await other.observe("v", [Seen("1.2", {A: FIRST}, told=("b",), is_old=True)])
    assert same == back
    (seen,) = await other.observe("v", [Seen("1.3", {A: FIRST}, is_old=True)])
    assert await one.observe("v", [Seen("1.3", {A: FIRST})]) == [seen]
    assert back[B].moment >= less[B].moment


async def test_who_may_ask_other_nodes_than_before_asks_since_then(two: list[Sightings]) -> None:
    one, other = two
    both = await one.asked_since("who", ["a", "b"])
    assert await other.asked_since("who", ["b", "a"]) == both
    alone = await one.asked_since("who", ["a"])
    assert alone >= both
    assert await other.asked_since("who", ["a", "b"]) >= alone
    assert await one.asked_since("another", ["a"]) >= alone


async def test_many_who_ask_at_once_wait_for_each_other_and_not_for_a_cache_that_fell(two: list[Sightings]) -> None:
    falls = two[0]._cache.failures
    seen = [Seen(f"1.2.{number}", {A: FIRST}) for number in range(100)]
    found = await asyncio.gather(*(two[0].observe("many", seen, patiently=True) for _ in range(40)))
    assert found == [found[0]] * 40
    assert (two[0]._cache.failures, two[0]._cache.state) == (falls, "up")


def test_a_series_that_is_told_twice_makes_no_order_of_its_parts() -> None:
    child = Row(Level.SERIES, "n", PatientKey("I", "P"), "1.2", "1.2.3", attributes={"00080060": {"vr": "CS"}})
    other = replace(child, attributes={"00080060": {"vr": "CS", "Value": ["CT"]}})
    rows = [
        Row(Level.STUDY, "n", PatientKey("I", "P"), "1.2", children=children)
        for children in ((child, other), (other, child))
    ]
    assert seen_part(rows[0]) == seen_part(rows[1])


async def test_what_is_recorded_after_a_moment_is_later_than_it(two: list[Sightings]) -> None:
    for number in range(50):
        before = await two[number % 2].now()
        (parts,) = await two[0].observe("clock", [Seen(f"1.{number}", {A: FIRST})])
        assert parts[A].moment > before


async def test_a_redis_that_is_gone_is_said_and_one_of_this_process_alone_is_none() -> None:
    with peers.redis() as peer:
        cache = await Cache.open(peer.url, timeout=5.0)
        record = Sightings(cache, 400)
        assert record.is_kept
        assert not Sightings(cache, 0).is_kept
        peer.kill()
        with pytest.raises(RecordUnavailable):
            await record.now()
        with pytest.raises(RecordUnavailable):
            await record.observe("v", [Seen("1.2", {A: FIRST})])
        await cache.close()
    off = await Cache.open("off")
    assert not Sightings(off, 400).is_kept
