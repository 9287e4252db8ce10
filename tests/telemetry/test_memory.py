"""What is given back to the system while nobody asks for it."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from gateway import allocator
from gateway.federation.fanout import cancel_all


class Held:
    """Something that a failed request had in hand."""


async def failing() -> weakref.ref[Held]:
    """A task that failed, whose error's frames hold each other and it."""
    held = Held()
    told = weakref.ref(held)

    async def fails() -> None:
        mine = held  # noqa: F841 - kept by this frame
        try:
            raise ValueError
        except ValueError as error:
            kept = error  # noqa: F841 - the cycle
            raise

    with pytest.raises(ValueError):
        await asyncio.create_task(fails())
    return told


async def test_what_failed_requests_leave_behind_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_EVERY", 0.05)
    told = await failing()
    assert told() is not None
    giving = asyncio.create_task(allocator.give_back())
    try:
        ends = asyncio.get_running_loop().time() + 20
        while told() is not None and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.05)
        assert told() is None
    finally:
        await cancel_all([giving])
