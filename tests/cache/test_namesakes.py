"""As whose a StudyInstanceUID was shown: written down once for all replicas, on one Redis and on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.cache.client import Cache
from gateway.cache.namesakes import Entry, NamesakeRecord, Shown, mark, node_mark
from tests import peers

from .conftest import opened

MINE, YOURS = (Entry(frozenset({mark("1.2", "I", whose)}), frozenset({node_mark("n")})) for whose in ("P", "Q"))


@pytest.fixture
async def two(single_or_cluster: str) -> AsyncIterator[list[NamesakeRecord]]:
    """The same record as two replicas have it."""
    caches = [await opened(single_or_cluster) for _ in range(2)]
    yield [NamesakeRecord(cache, 400) for cache in caches]
    for cache in caches:
        await cache.close()


async def test_of_two_replicas_that_show_two_patients_at_once_one_at_least_is_told_of_the_other(
    two: list[NamesakeRecord],
) -> None:
    studies = [f"1.2.{number}" for number in range(350)]
    mine, yours = await asyncio.gather(
        *(one.shown([Shown(study, entry) for study in studies]) for one, entry in zip(two, (MINE, YOURS), strict=True))
    )
    assert all([MINE, YOURS] in pair or [YOURS, MINE] in pair for pair in zip(mine, yours, strict=True))
    (kept,) = await two[0].shown([Shown("1.2.7", MINE)])
    assert kept is not None
    assert set(kept) == {MINE, YOURS}


async def test_whose_it_is_no_more_is_forgotten_once_that_is_sure(two: list[NamesakeRecord]) -> None:
    await two[0].shown([Shown("1.3", MINE), Shown("1.3", YOURS), Shown("1.4", MINE)])
    assert await two[1].shown([Shown("1.3", None, [MINE])]) == [[YOURS]]
    assert await two[0].shown([Shown("1.3", YOURS), Shown("1.4", MINE)]) == [[YOURS], [MINE]]


async def test_several_identifiers_and_nodes_of_one_patient_are_read_as_they_were_written(
    two: list[NamesakeRecord],
) -> None:
    both = Entry(MINE.marks | {mark("1.2", "J", "Q")}, frozenset(map(node_mark, ("n", "o"))))
    await two[0].shown([Shown("1.6", MINE), Shown("1.6", both)])
    assert await two[1].shown([Shown("1.6", None, [MINE])]) == [[both]]


async def test_a_uid_that_a_whole_archive_bears_fills_no_redis(two: list[NamesakeRecord]) -> None:
    for number in range(600):
        entry = Entry(frozenset({mark("1.5", "I", str(number))}), MINE.nodes)
        await two[0].shown([Shown("1.5", entry)])
    (kept,) = await two[0].shown([Shown("1.5", MINE)])
    assert kept is not None
    assert 200 < len(kept) < 300


async def test_a_redis_that_does_not_answer_tells_of_nobody_and_not_that_there_is_none() -> None:
    with peers.redis() as peer:
        cache = await opened(peer.url)
        record = NamesakeRecord(cache, 400)
        assert await record.shown([Shown("1.2", MINE)]) == [[MINE]]
        peer.kill()
        assert await record.shown([Shown("1.2", YOURS)]) == [None]
        await cache.close()


async def test_where_nothing_is_to_be_remembered_nothing_is_asked() -> None:
    async with asyncio.timeout(10):
        cache = await Cache.open("off")
        assert await NamesakeRecord(cache, 0).shown([Shown("1.2", MINE)]) == [None]
        assert await NamesakeRecord(cache, 400).shown([]) == []
        await cache.close()
