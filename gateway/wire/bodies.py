"""Frames and bulk data of one DICOM file as bodies in chunks, read in threads while they are sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from gateway.errors import InvalidQuery, NotFound
from gateway.model.seam import FramePart
from gateway.wire.frames import FrameTable
from gateway.wire.instance import BulkValue, Instance, iter_chunks, open_instance
from gateway.wire.threads import Threads


async def frames_of(threads: Threads, path: Path, numbers: Sequence[int]) -> AsyncGenerator[FramePart, None]:
    """The frames asked for (1-based), in that order. Raises InvalidQuery for one that the file does not have."""
    with await threads.call(open_instance, path) as instance:
        table = await threads.call(_frames_of, instance)
        wrong = [number for number in numbers if not 1 <= number <= table.count]
        if wrong:
            raise InvalidQuery(f"the instance has {table.count} frames, no frame {wrong[0]}", parameter="frames")
        for number in numbers:
            value = BulkValue(table.media_type, table.transfer_syntax, table.locate(number))
            async with aclosing(_body(threads, instance, value)) as body:
                yield FramePart(number, value.media_type, value.transfer_syntax, body, value.extent.size)


async def bulk_value_of(threads: Threads, path: Path, address: str) -> AsyncGenerator[FramePart, None]:
    """One long value by its path in the file, in one part or (encapsulated pixel data) one per frame. Raises NotFound."""
    with await threads.call(open_instance, path) as instance:
        try:
            values = await threads.call(instance.bulk_value, address)
        except LookupError:
            raise NotFound("the instance has no such bulk data") from None
        for value in values:
            async with aclosing(_body(threads, instance, value)) as body:
                yield FramePart(0, value.media_type, value.transfer_syntax, body, value.extent.size)


def _frames_of(instance: Instance) -> FrameTable:
    return instance.frames


def _body(threads: Threads, instance: Instance, value: BulkValue) -> AsyncGenerator[bytes, None]:
    return threads.steps(lambda: iter_chunks(instance.source, value.extent))
