"""Frames and bulk data of one DICOM file as bodies in chunks, read in threads while they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from gateway.errors import InvalidQuery, NotFound
from gateway.model.seam import FramePart
from gateway.wire.frames import Extent
from gateway.wire.instance import BulkValue, Instance, iter_chunks, open_instance

T = TypeVar("T")


async def frames_of(path: Path, numbers: Sequence[int]) -> AsyncIterator[FramePart]:
    """The frames asked for (1-based), in that order. Raises InvalidQuery for one that the file does not have."""
    instance = await asyncio.to_thread(open_instance, path)
    try:
        table = await asyncio.to_thread(lambda: instance.frames)
        wrong = [number for number in numbers if not 1 <= number <= table.count]
        if wrong:
            raise InvalidQuery(f"the instance has {table.count} frames, no frame {wrong[0]}", parameter="frames")
        for number in numbers:
            extent = await asyncio.to_thread(table.locate, number)
            body = _body(instance, extent)
            yield FramePart(number, table.media_type, table.transfer_syntax, body, _size(extent))
    finally:
        await asyncio.to_thread(instance.close)


async def bulk_value_of(path: Path, address: str) -> AsyncIterator[FramePart]:
    """One long value by its path in the file, in one part or (encapsulated pixel data) one per frame. Raises NotFound."""
    instance = await asyncio.to_thread(open_instance, path)
    try:
        for value in await asyncio.to_thread(_bulk_value, instance, address):
            body = _body(instance, value.extent)
            yield FramePart(0, value.media_type, value.transfer_syntax, body, _size(value.extent))
    finally:
        await asyncio.to_thread(instance.close)


def _bulk_value(instance: Instance, address: str) -> list[BulkValue]:
    try:
        return instance.bulk_value(address)
    except LookupError:
        raise NotFound("there is no such bulk data") from None


async def _body(instance: Instance, extent: Extent) -> AsyncIterator[bytes]:
    async for chunk in in_thread(lambda: iter_chunks(instance.source, extent)):
        yield chunk


def _size(extent: Extent) -> int | None:
    return getattr(extent, "size", None)


async def in_thread(make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """A blocking iterator, each step in a thread."""
    iterator, end = await asyncio.to_thread(make), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield item  # type: ignore[misc]
