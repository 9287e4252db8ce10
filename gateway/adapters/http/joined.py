"""What several callers wait for together: a token, or what there is to learn of a node."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from gateway.errors import NodeBusy

T = TypeVar("T")


async def joined(shared: asyncio.Task[T], node: str) -> T:
    """What a task gives that others wait for, too. When the node is closed meanwhile, those who wait are not cancelled with
    it: they ask others as well."""
    try:
        return await asyncio.shield(shared)
    except asyncio.CancelledError:
        asking = asyncio.current_task()
        if not shared.cancelled() or (asking and asking.cancelling()):
            raise
        raise NodeBusy(node, "not open") from None
