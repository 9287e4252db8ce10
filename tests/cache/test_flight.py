import asyncio
import contextvars

import pytest

from gateway.cache.flight import Flights
from gateway.errors import GatewayError, NodeTimeout

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Load:
    """A load that counts its starts, waits for a word, and knows whether it was cancelled."""

    def __init__(self, answer=42):
        self.answer, self.starts, self.cancelled, self.seen = answer, 0, 0, []
        self.go = asyncio.Event()

    async def __call__(self):
        self.starts += 1
        self.seen.append(who.get())
        who.set("changed by the load")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_two_hundred_callers_share_one_load_that_survives_the_first_one_leaving():
    flights, load = Flights(), Load()
    tasks = [asyncio.create_task(flights.fetch("k", load)) for _ in range(200)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert tasks[0].cancelled()
    load.go.set()
    assert await asyncio.gather(*tasks[1:]) == [42] * 199
    assert (load.starts, load.cancelled, len(flights)) == (1, 0, 0)


async def test_the_load_is_cancelled_when_the_last_caller_leaves_and_the_next_one_starts_anew():
    flights, load = Flights(), Load()
    tasks = [asyncio.create_task(flights.fetch("k", load)) for _ in range(3)]
    await settle()
    for task in tasks[:2]:
        task.cancel()
    await settle()
    assert (load.cancelled, len(flights)) == (0, 1)
    tasks[2].cancel()
    await settle()
    assert (load.cancelled, len(flights)) == (1, 0)
    load.go.set()
    assert await flights.fetch("k", load) == 42
    assert load.starts == 2


async def test_a_caller_that_comes_while_an_abandoned_load_unwinds_gets_a_load_of_its_own():
    flights, unwound = Flights(), asyncio.Event()

    async def stubborn():
        try:
            await asyncio.sleep(60)
        finally:
            await unwound.wait()

    first = asyncio.create_task(flights.fetch("k", stubborn))
    await settle()
    first.cancel()
    await settle()
    assert await flights.fetch("k", lambda: asyncio.sleep(0, "fresh")) == "fresh"
    unwound.set()
    await flights.close()


async def test_a_detached_load_runs_to_its_end_without_anyone():
    flights, load, kept = Flights(), Load(), []

    async def keep(answer, is_wanted):
        kept.append((answer, is_wanted()))

    task = asyncio.create_task(flights.fetch("k", load, afterwards=keep, detached=True))
    await settle()
    task.cancel()
    await settle()
    load.go.set()
    await settle()
    assert (load.cancelled, kept) == (0, [(42, True)])


async def test_a_failure_reaches_everyone_who_waits_and_nobody_after():
    flights, load = Flights(), Load(NodeTimeout("de-1", "no answer"))
    tasks = [asyncio.create_task(flights.fetch("k", load)) for _ in range(20)]
    await settle()
    load.go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is load.answer for outcome in outcomes)
    load.answer = 43
    assert await flights.fetch("k", load) == 43


async def test_a_failure_nobody_waits_for_is_not_reported_as_forgotten(caplog):
    flights, load = Flights(), Load(NodeTimeout("de-1", "no answer"))
    task = asyncio.create_task(flights.fetch("k", load, detached=True))
    await settle()
    task.cancel()
    await settle()
    load.go.set()
    await settle()
    import gc

    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_the_load_sees_the_context_of_its_first_caller_and_changes_nobodys():
    flights, load = Flights(), Load()

    async def caller(name):
        who.set(name)
        answer = await flights.fetch("k", load)
        return answer, who.get()

    tasks = [asyncio.create_task(caller(name)) for name in ("anna", "bert")]
    await settle()
    load.go.set()
    assert await asyncio.gather(*tasks) == [(42, "anna"), (42, "bert")]
    assert load.seen == ["anna"]


async def test_callers_have_their_answer_before_the_work_that_follows_is_done():
    flights, go = Flights(), asyncio.Event()

    async def keep(answer, is_wanted):
        await go.wait()

    load = Load()
    load.go.set()
    assert await flights.fetch("k", load, afterwards=keep) == 42
    assert await flights.fetch("k", load) == 42
    assert load.starts == 1, "a caller that comes before the answer is kept joins the load that found it"
    go.set()
    await settle()
    assert len(flights) == 0


async def test_after_a_forget_nobody_joins_the_old_load_and_its_answer_is_not_wanted():
    flights, old, wanted = Flights(), Load("old"), []

    async def keep(answer, is_wanted):
        wanted.append((answer, is_wanted()))

    first = asyncio.create_task(flights.fetch("k", old, afterwards=keep))
    await settle()
    flights.forget(lambda key: key == "k")
    new = Load("new")
    second = asyncio.create_task(flights.fetch("k", new, afterwards=keep))
    await settle()
    old.go.set()
    new.go.set()
    assert (await first, await second) == ("old", "new")
    await settle()
    assert sorted(wanted) == [("new", True), ("old", False)]


async def test_closing_cancels_what_is_under_way_tells_those_who_wait_and_leaves_no_task():
    before = asyncio.all_tasks()
    flights, load = Flights(), Load()
    task = asyncio.create_task(flights.fetch("k", load))
    await settle()
    await flights.close()
    with pytest.raises(GatewayError):
        await task
    with pytest.raises(GatewayError):
        await flights.fetch("k", load)
    assert load.cancelled == 1
    assert asyncio.all_tasks() == before


async def test_a_deadline_of_one_caller_is_its_own():
    flights, load = Flights(), Load()
    patient = asyncio.create_task(flights.fetch("k", load))
    await settle()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await flights.fetch("k", load)
    load.go.set()
    assert await patient == 42
