"""What overtakes what: an answer that is kept during a purge, callers that come after it, a load that began later."""

import asyncio

import pytest

from gateway.cache import freshness
from gateway.cache.answers import Answers, Loaded
from gateway.cache.keys import key
from gateway.cache.purges import EVERYTHING_KEPT, Purge
from gateway.cache.tags import study_tag

from .conftest import eventually
from .test_answers import Source, kept

ONE = frozenset({study_tag("1.2")})
OLD, NEW = key("find", "a-1", "old"), key("find", "b-1", "new")


@pytest.mark.parametrize("purge", [Purge("study", ("1.2",)), EVERYTHING_KEPT], ids=["study", "all"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
async def test_an_answer_that_is_kept_during_a_purge_is_found_by_the_next(cache, purge, step):
    answers = Answers(cache, local_bytes=0)
    await answers.rows(OLD, 60, Source(Loaded(["old"], tags=ONE)))
    assert await kept(cache, OLD) == ["old"]
    steps = 0

    async def insist(command):
        nonlocal steps
        answer = await type(cache).insist(cache, command)
        steps += 1
        if steps == step:
            await answers.rows(NEW, 60, Source(Loaded(["new"], tags=ONE)))
            assert await kept(cache, NEW) == ["new"]
        return answer

    cache.insist = insist
    await cache._purge(purge)
    del cache.insist
    await cache.purge_study("1.2")
    left = await cache.get(NEW), await cache.get(OLD)
    await answers.close()
    assert steps >= step, "the purge had not ended"
    assert left == (None, None)


async def test_all_who_ask_after_a_purge_of_what_is_being_loaded_share_one_new_load(cache):
    answers, old, new = Answers(cache), Source(Loaded(["old"], tags=ONE)), Source(Loaded(["new"], tags=ONE))
    old.go.clear()
    early = asyncio.create_task(answers.rows(OLD, 60, old))
    await eventually(lambda: old.asked == 1)
    await cache.purge_study("1.2")
    late = [asyncio.create_task(answers.rows(OLD, 60, new)) for _ in range(50)]
    await asyncio.sleep(0.1)
    old.go.set()
    assert await early == ["old"]
    assert await asyncio.gather(*late) == [["new"]] * 50
    found = await kept(cache, OLD)
    await answers.close()
    assert (old.asked, new.asked, found) == (1, 1, ["new"])


async def test_an_answer_that_was_asked_for_anew_is_not_replaced_by_that_of_a_load_that_began_before(cache):
    answers, old, new = Answers(cache), Source(Loaded(["old"])), Source(Loaded(["new"]))
    old.go.clear()
    slow = asyncio.create_task(answers.rows(OLD, 60, old))
    await eventually(lambda: old.asked == 1)
    with freshness.asked_anew():
        assert await answers.rows(OLD, 60, new) == ["new"]
    assert await kept(cache, OLD) == ["new"]
    old.go.set()
    assert await slow == ["old"]
    await asyncio.sleep(0.5)
    given = await answers.rows(OLD, 60, old), await kept(cache, OLD)
    await answers.close()
    assert given == (["new"], ["new"])
