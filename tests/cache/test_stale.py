"""Answers that are no longer fresh: who gets them, for how long, and what is said of them."""

import asyncio
from dataclasses import dataclass

import pytest

from gateway.cache import envelope, freshness
from gateway.cache.answers import Answers, Loaded, Stale
from gateway.cache.envelope import Entry
from gateway.cache.keys import key
from gateway.cache.tags import patient_tag, study_tag
from gateway.errors import NodeProtocolError, NodeTimeout, NodeUnreachable, NoNodeAnswered

from .conftest import eventually
from .test_answers import Source, kept

K = key("find", "de-1", "question")
TTL, REVALIDATE, IF_ERROR = 30, 20, 300


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(envelope, "now", clock)
    return clock


@pytest.fixture(params=[0, 2**20], ids=["redis only", "with the layer in the process"])
async def answers(cache, clock, request):
    opened = Answers(cache, Stale(REVALIDATE, IF_ERROR), request.param)
    yield opened
    await opened.close()


async def ask(answers, source, **options):
    return await answers.answer(K, TTL, source, list, **options)


def about(seconds):
    return pytest.approx(seconds, abs=1.0)


def unreachable():
    return NodeUnreachable("de-1", "is away")


async def test_an_answer_tells_its_age_and_how_long_it_is_still_fresh(answers, cache, clock):
    source = Source(Loaded(["row"]))
    first = freshness.begin()
    await ask(answers, source)
    await kept(cache, K)
    clock.now += 12
    second = freshness.begin()
    assert (await ask(answers, source)).age == 12
    assert (first.age, first.remaining, first.stale) == (about(0), about(TTL), False)
    assert (second.age, second.remaining, second.stale) == (about(12), about(TTL - 12), False)


async def test_every_caller_who_joins_a_load_has_it_noted(answers):
    source = Source(Loaded(["row"]))
    source.go.clear()

    async def caller():
        collected = freshness.begin()
        await ask(answers, source)
        return collected.remaining

    tasks = [asyncio.create_task(caller()) for _ in range(5)]
    await asyncio.sleep(0.02)
    source.go.set()
    assert await asyncio.gather(*tasks) == [about(TTL)] * 5


async def test_the_oldest_answer_counts_and_the_first_that_ends():
    collected = freshness.begin()
    for age, remaining in ((1, 29), (200, 100), (5, 7)):
        freshness.current().note(age, remaining)
    assert (collected.age, collected.remaining) == (about(200), about(7))


async def test_an_answer_goes_on_to_age_while_others_are_waited_for():
    collected = freshness.begin()
    freshness.current().note(3, 30)
    await asyncio.sleep(0.2)
    assert collected.age >= 3.2
    assert collected.remaining <= 29.8


async def test_soon_after_its_time_an_answer_serves_at_once_while_one_asks_anew(answers, cache, clock):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + REVALIDATE - 1
    source.loaded = Loaded(["new"])
    source.go.clear()
    collected = freshness.begin()
    async with asyncio.timeout(5):
        given = [await ask(answers, source) for _ in range(20)]
    assert {(*each.value, each.is_stale) for each in given} == {("old", False)}
    assert (collected.age, collected.remaining, collected.stale) == (about(TTL + REVALIDATE - 1), 0, False)
    await eventually(lambda: source.asked == 2)
    source.go.set()
    assert await kept(cache, K, other_than=["old"]) == ["new"]
    assert (await ask(answers, source)).value == ["new"]
    assert source.asked == 2


async def test_asking_anew_that_fails_is_nobodys_error(answers, cache, clock, caplog):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + 1
    source.loaded = unreachable()
    assert (await ask(answers, source)).value == ["old"]
    await eventually(lambda: source.asked == 2)
    assert (await ask(answers, source)).value == ["old"]
    await asyncio.sleep(0.05)
    assert "never retrieved" not in caplog.text


async def test_later_callers_wait_for_the_new_answer(answers, cache, clock):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + REVALIDATE
    source.loaded = Loaded(["new"])
    assert (await ask(answers, source)).value == ["new"]


@pytest.mark.parametrize("failure", [unreachable(), NodeTimeout("de-1", "slow"), NoNodeAnswered((unreachable(),))])
async def test_while_the_node_is_away_the_old_answer_stands_in_and_is_marked(answers, cache, clock, failure):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + IF_ERROR - 1
    source.loaded = failure
    collected = freshness.begin()
    given = await ask(answers, source)
    assert (given.value, given.age, given.is_stale) == (["old"], TTL + IF_ERROR - 1, True)
    assert (collected.age, collected.remaining, collected.stale) == (about(TTL + IF_ERROR - 1), 0, True)
    clock.now += 1
    with pytest.raises(type(failure)):
        await ask(answers, source)


async def test_an_answer_given_as_text_ages_stands_in_and_is_noted_like_any_other(answers, cache, clock):
    source = Source(Loaded(["old"]))
    assert (await answers.text(K, TTL, source)).value == b'["old"]'
    await kept(cache, K)
    clock.now += TTL + REVALIDATE
    source.loaded = unreachable()
    with pytest.raises(NodeUnreachable):
        await answers.text(K, TTL, source, stale=False)
    collected = freshness.begin()
    given = await answers.text(K, TTL, source)
    assert (given.value, given.age, given.is_stale) == (b'["old"]', TTL + REVALIDATE, True)
    assert (collected.age, collected.stale) == (about(TTL + REVALIDATE), True)


async def test_a_node_that_answers_wrongly_is_not_excused_by_an_old_answer(answers, cache, clock):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + REVALIDATE
    source.loaded = NodeProtocolError("de-1", "answered with another study")
    with pytest.raises(NodeProtocolError):
        await ask(answers, source)


async def test_a_silent_node_is_waited_for_only_so_long_and_its_late_answer_is_kept(answers, cache, clock):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + REVALIDATE
    source.loaded = Loaded(["new"])
    source.go.clear()
    given = await ask(answers, source, patience=0.05)
    assert (given.value, given.is_stale) == (["old"], True)
    source.go.set()
    assert await kept(cache, K, other_than=["old"]) == ["new"]
    assert (await ask(answers, source, patience=0.05)).value == ["new"]
    assert source.asked == 2


async def test_without_an_old_answer_patience_changes_nothing(answers):
    source = Source(Loaded(["row"]))
    source.go.clear()
    asking = asyncio.create_task(ask(answers, source, patience=0.01))
    await asyncio.sleep(0.05)
    source.go.set()
    assert (await asking).value == ["row"]


@pytest.mark.parametrize("how", ["stale=False", "rows"])
async def test_who_wants_no_old_answer_gets_none(answers, cache, clock, how):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + 1
    source.loaded = unreachable()
    with pytest.raises(NodeUnreachable):
        await (answers.rows(K, TTL, source) if how == "rows" else ask(answers, source, stale=False))


async def test_both_windows_can_be_off(cache, clock):
    answers, source = Answers(cache, Stale(0, 0)), Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL
    source.loaded = unreachable()
    with pytest.raises(NodeUnreachable):
        await ask(answers, source)
    await answers.close()


async def test_that_there_is_nothing_ends_with_its_time(answers, cache, clock):
    source = Source(Loaded([], ttl=5, may_be_stale=False))
    await ask(answers, source)
    assert await kept(cache, K) == []
    clock.now += 4
    assert (await ask(answers, source)).value == []
    clock.now += 1
    source.loaded = unreachable()
    with pytest.raises(NodeUnreachable):
        await ask(answers, source)


async def test_an_envelope_opens_to_what_was_sealed_and_nothing_else_opens():
    tags = frozenset({study_tag("1.2"), patient_tag("I", "1")})
    entry = Entry(b'{"a": 1}', 1000.5, 30, 20, 300, tags)
    again = envelope.opened(envelope.sealed(entry))
    names = ("body", "fetched", "ttl", "while_revalidate", "if_error", "tags")
    assert [getattr(again, name) for name in names] == [getattr(entry, name) for name in names]
    for other in (None, b"", b"[]", b"\x02" + envelope.sealed(entry)[1:], envelope.sealed(entry)[:40]):
        assert envelope.opened(other) is None


async def test_an_answer_is_decoded_once_for_all(answers, cache):
    source, decoded = Source(Loaded(["row"])), []

    def decode(value):
        decoded.append(value)
        return tuple(value)

    given = await asyncio.gather(*(answers.answer(K, TTL, source, decode) for _ in range(10)))
    assert {each.value for each in given} == {("row",)}
    assert len(decoded) == 1


async def test_what_a_load_made_is_given_as_it_is_and_written_for_the_others(answers, cache):
    source = Source(Loaded(("row",), to_plain=list))
    assert (await answers.answer(K, TTL, source, tuple)).value is source.loaded.value
    assert await kept(cache, K) == ["row"]


async def test_what_has_no_json_form_is_not_given_at_all(answers):
    with pytest.raises(TypeError):
        await ask(answers, Source(Loaded(("\ud800",), to_plain=list)))


async def test_an_old_answer_that_was_purged_meanwhile_does_not_stand_in(answers, cache, clock):
    source = Source(Loaded(["old"], tags=frozenset({study_tag("1.2")})))
    await ask(answers, source)
    await kept(cache, K)
    clock.now += TTL + REVALIDATE
    source.loaded = unreachable()
    source.go.clear()
    asking = asyncio.create_task(ask(answers, source))
    await eventually(lambda: source.asked == 2)
    await cache.purge_study("1.2")
    source.go.set()
    with pytest.raises(NodeUnreachable):
        await asking


@pytest.mark.parametrize("body", [b"no JSON", b'{"rows": "in another form"}'], ids=["not JSON", "another version's"])
@pytest.mark.parametrize("age", [0, TTL + REVALIDATE + 1], ids=["fresh", "stale"])
async def test_what_cannot_be_read_in_redis_is_a_miss_and_not_the_nodes_failure(answers, cache, clock, body, age):
    def decode(value):
        return [row["uid"] for row in value]

    entry = Entry(body, clock() - age, TTL, REVALIDATE, IF_ERROR)
    assert await cache.set(K, envelope.sealed(entry), 300)
    source = Source(Loaded([{"uid": "1.2"}]))
    assert (await answers.answer(K, TTL, source, decode)).value == ["1.2"]
    source.loaded = unreachable()
    assert (await answers.answer(K, TTL, source, decode)).value == ["1.2"]
    assert source.asked == 1


async def test_an_answer_ends_though_the_clock_was_put_back(answers, cache, clock):
    source = Source(Loaded(["old"]))
    await ask(answers, source)
    await kept(cache, K)
    clock.now -= 3600
    source.loaded = Loaded(["new"])
    assert (await ask(answers, source)).value == ["new"]
