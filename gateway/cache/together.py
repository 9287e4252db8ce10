"""Puts look-ups that come together into one: a search over many nodes begins with one round trip to Redis, not with one each."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence

GetMany = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]


class Together:
    """The look-ups of one event loop: those of one turn are asked of `get_many`, which does not raise, as one."""

    def __init__(self, get_many: GetMany) -> None:
        self._get_many = get_many
        self._gathering: dict[str, asyncio.Future[bytes | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> bytes | None:
        """The value of the key. A caller that leaves takes nothing from the others."""
        if not self._gathering:
            # It belongs to no request: it must not carry the context of the one that came first.
            task = asyncio.create_task(self._ask(), name="cache look-ups", context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if key not in self._gathering:
            self._gathering[key] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._gathering[key])

    async def _ask(self) -> None:
        # The task begins when this turn's callers have all been here.
        gathered, self._gathering = self._gathering, {}
        values: Sequence[bytes | None] = [None] * len(gathered)
        try:
            values = await self._get_many(list(gathered))
        finally:
            for future, value in zip(gathered.values(), values, strict=True):
                if not future.done():
                    future.set_result(value)

    async def close(self) -> None:
        """Whoever still waits finds nothing."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._gathering.values():  # of a task that was never begun
            if not future.done():
                future.set_result(None)
