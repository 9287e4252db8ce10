"""Look-ups that come together: one question to Redis, whose callers come and go as they like."""

import asyncio

from gateway.cache.together import Together


class Store:
    """Answers every key with itself, once it is let go; remembers what it was asked together."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def get_many(self, keys):
        self.asked.append(list(keys))
        await self.go.wait()
        return [None if key == "nothing" else key.encode() for key in keys]


async def test_what_one_turn_of_the_loop_asks_for_is_asked_together_and_each_key_once():
    store = Store()
    together = Together(store.get_many)
    found = await asyncio.gather(*(together.get(key) for key in ("a", "b", "nothing", "a")))
    assert found == [b"a", b"b", None, b"a"]
    assert store.asked == [["a", "b", "nothing"]]
    assert await together.get("a") == b"a"
    assert len(store.asked) == 2, "what comes later is asked anew"


async def test_a_caller_that_leaves_takes_nothing_from_the_others():
    store = Store()
    store.go.clear()
    together = Together(store.get_many)
    first, other = (asyncio.create_task(together.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    store.go.set()
    assert await other == b"a"
    assert first.cancelled()


async def test_whoever_waits_when_it_is_closed_finds_nothing():
    store = Store()
    store.go.clear()
    together = Together(store.get_many)
    begun = asyncio.create_task(together.get("a"))
    async with asyncio.timeout(5):
        while not store.asked:
            await asyncio.sleep(0)
    late = asyncio.create_task(together.get("b"))
    await asyncio.sleep(0)
    await together.close()
    assert [await begun, await late] == [None, None]
