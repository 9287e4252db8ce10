"""Blocking work in threads: a caller who leaves waits for it to end, but not for what hangs."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from gateway.wire import threads


async def test_a_cancelled_caller_leaves_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PARTING", 0.1)
    release = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await threads.run(None, release.wait, 30)
        assert not release.is_set()
    finally:
        release.set()


async def test_a_cancelled_caller_leaves_after_a_call_that_ends() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(30)
        ended.set()

    task = asyncio.create_task(threads.run(None, work))
    await asyncio.to_thread(started.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, release.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_work_on_many_rows_is_done_in_a_thread_that_knows_whose_request_it_is() -> None:
    asked = ContextVar("asked", default="nobody")
    asked.set("caller")
    here = threading.get_ident()
    assert await threads.apart(1, lambda: (asked.get(), threading.get_ident() == here)) == ("caller", True)
    assert await threads.apart(10_000, lambda: (asked.get(), threading.get_ident() == here)) == ("caller", False)
