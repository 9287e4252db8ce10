"""Work that waits until answers have stopped coming in, but not for ever."""

import asyncio

import pytest

from gateway.cache.lull import Lull


@pytest.fixture(autouse=True)
def times(monkeypatch):
    """Long enough that a slow machine tells them apart."""
    monkeypatch.setattr("gateway.cache.lull.QUIET", 0.3)
    monkeypatch.setattr("gateway.cache.lull.MOST", 1.0)


async def _when(lull: Lull) -> float:
    began = asyncio.get_running_loop().time()
    async with lull.turn():
        return asyncio.get_running_loop().time() - began


async def test_work_waits_for_the_last_of_the_answers():
    lull = Lull()
    lull.ends()
    work = asyncio.create_task(_when(lull))
    for _ in range(3):
        await asyncio.sleep(0.15)
        assert not work.done()
        lull.ends()
    assert await work >= 0.7


async def test_work_is_done_at_last_however_many_answers_come():
    lull = Lull()
    lull.ends()
    work = asyncio.create_task(_when(lull))
    while not work.done():
        await asyncio.sleep(0.02)
        lull.ends()
    assert await work >= 0.99


async def test_work_is_done_at_once_where_no_answer_came_for_long():
    assert await _when(Lull()) < 0.3


async def test_pieces_of_work_are_done_one_after_the_other_and_others_have_their_turn_between():
    lull, order = Lull(), []

    async def piece(number: int) -> None:
        async with lull.turn():
            order.append(number)
        await asyncio.sleep(0)

    async def other() -> None:
        for _ in range(20):
            order.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*map(piece, range(5)), other())
    assert [one for one in order if one != "other"] == [0, 1, 2, 3, 4]
    between = order[order.index(0) : order.index(4)]
    assert between.count("other") >= 4, order


async def test_work_that_is_given_up_keeps_nobody_waiting():
    lull = Lull()
    lull.ends()
    given_up, other = asyncio.create_task(_when(lull)), asyncio.create_task(_when(lull))
    await asyncio.sleep(0.05)
    given_up.cancel()
    assert await other < 0.6
