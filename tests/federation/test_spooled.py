"""A series on its way into the spool: what becomes of it when those who asked have gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gateway.cache.spool import Spool
from gateway.errors import NodeProtocolError
from gateway.federation.spooled import SpooledSeries
from gateway.model.query import Ref


async def test_a_series_that_fails_after_everyone_has_left_is_no_fault_of_ours(tmp_path: Path) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    has_begun, may_fail, has_failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def instances() -> AsyncIterator[Any]:
        has_begun.set()
        await may_fail.wait()
        has_failed.set()
        raise NodeProtocolError("pacs", "1 sub-operation of C-GET failed")
        yield

    @contextlib.asynccontextmanager
    async def fetch(_: Ref) -> AsyncIterator[AsyncIterator[Any]]:
        yield instances()

    spool = Spool(tmp_path)
    await spool.open()
    spooled = SpooledSeries(spool)
    frames = spooled.frames("pacs", Ref("1.2", "1.3", "1.4"), [1], fetch)
    caller = asyncio.ensure_future(anext(frames))
    await has_begun.wait()
    caller.cancel()
    await asyncio.wait([caller])
    may_fail.set()
    await has_failed.wait()
    await asyncio.sleep(0)
    await spooled.close()
    del caller, frames
    gc.collect()
    await asyncio.sleep(0)
    assert unhandled == []
    await spool.close()
