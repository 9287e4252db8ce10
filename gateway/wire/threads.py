"""Runs blocking work in threads: generators one step at a time, closed only when no thread is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_END = object()
_PARTING = 2.0
"""Seconds that a cancelled caller waits for a blocking call to end."""
_MANY = 1000
"""Rows: of so many a step takes few milliseconds, and going to a thread and back is most of one."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Blocking work for one node, in `executor` (None: the loop's own), its failures told as `told` says.

    `failures` are the exceptions that `told` turns into this house's errors; any other is a fault of ours and passes.
    """

    executor: Executor | None
    failures: tuple[type[Exception], ...]
    told: Callable[[Exception], Exception]

    async def call(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """What a blocking call returns."""
        try:
            return await run(self.executor, work, *arguments, **options)
        except self.failures as error:
            raise self.told(error) from None

    async def steps(self, begin: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T, None]:
        """The items of a blocking generator."""
        async with aclosing(stepped(self.executor, begin)) as items:
            while True:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                except self.failures as error:
                    raise self.told(error) from None
                yield item


async def apart(size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What pure work on so many rows returns. With many it is done in a thread: it takes no less time there, but the event
    loop has its turn every few milliseconds meanwhile."""
    if size <= _MANY:
        return work(*arguments, **options)
    # The request's account and freshness are in its context.
    return await run(None, partial(copy_context().run, work), *arguments, **options)


async def stepped(executor: Executor | None, begin: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T, None]:
    """The items of a blocking generator. Leaving early closes it, and so the files and cursors it holds.

    A thread cannot be interrupted: when the caller is cancelled during a step, the generator is closed right after it.
    """
    loop = asyncio.get_running_loop()
    blocking = begin()
    step: asyncio.Future[object] | None = None
    try:
        while True:
            step = loop.run_in_executor(executor, next, blocking, _END)
            item = await asyncio.shield(step)
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        if step is None or step.done():
            blocking.close()
        else:
            step.add_done_callback(lambda done: _close_after(done, blocking))


def _close_after(step: asyncio.Future[object], blocking: Generator[object, None, None]) -> None:
    """Nobody waits for the step any more: its exception, if it has one, ends here."""
    if not step.cancelled():
        step.exception()
    blocking.close()


async def run(executor: Executor | None, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What a blocking call returns. When the caller is cancelled the call still ends before this does, unless it hangs (a
    file server that is gone): nobody's deadline waits for that."""
    step = asyncio.get_running_loop().run_in_executor(executor, partial(work, *arguments, **options))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step], timeout=_PARTING)
        step.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
