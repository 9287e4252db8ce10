"""Runs blocking generators in threads, one step at a time, and closes them only when no thread is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_END = object()


async def stepped(executor: Executor, begin: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T, None]:
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


async def run(executor: Executor, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What a blocking call returns. When the caller is cancelled the call still ends before this does."""
    step = asyncio.get_running_loop().run_in_executor(executor, partial(work, *arguments, **options))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise
