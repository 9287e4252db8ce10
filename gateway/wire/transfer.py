"""DICOM files on their way to the web: into a transfer syntax it allows (PS3.18 8.7.3), and with a changed data set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gateway.wire.elements import EXPLICIT_LITTLE, Part10Error
from gateway.wire.explicit import Conversion
from gateway.wire.filemeta import file_meta
from gateway.wire.part10 import AFTER_PIXEL_DATA, MAX_HEAD, PIXEL_DATA, Part10Stream, aside, decode, guarded

FORBIDDEN_ON_THE_WEB = frozenset({str(ImplicitVRLittleEndian), str(ExplicitVRBigEndian)})
"""PS3.18 8.7.3.1: an origin server shall not send these."""
_FIRST, _BEYOND = 1, 1 << 32
_NAMED = (0x00080016, 0x00080018)
"""The SOP Class and Instance UIDs, which the File Meta Information repeats."""
PIXEL_SECTIONS = (PIXEL_DATA + 1, PIXEL_DATA + 2, AFTER_PIXEL_DATA)
_CHUNK = 1 << 20


def written_syntax(stored: str) -> str:
    """The syntax that a file is written in anew: Implicit VR, Big Endian and deflated ones as Explicit VR Little Endian."""
    if stored in FORBIDDEN_ON_THE_WEB or stored == DeflatedExplicitVRLittleEndian:
        return str(ExplicitVRLittleEndian)
    return stored


def must_become_explicit(stream: Part10Stream) -> bool:
    """Whether `explicit_little_endian` changes the file: its syntax is forbidden on the web, or not as declared."""
    return (
        stream.transfer_syntax in FORBIDDEN_ON_THE_WEB or stream.encoding != EXPLICIT_LITTLE or not stream.has_file_meta
    )


async def explicit_little_endian(stream: Part10Stream) -> AsyncIterator[bytes]:
    """The file in a syntax the web allows: Implicit VR and Big Endian become Explicit VR Little Endian, others pass.

    Nothing is lost: values keep their bytes, their byte order apart (see Conversion). A changed file has a File Meta
    Information of ours, and a bare data set gets one. Raises Part10Error as the stream does. Closes the stream when it
    ends or is left.
    """
    try:
        if not must_become_explicit(stream):
            async for chunk in stream.raw():
                yield chunk
            return
        conversion = Conversion(stream.encoding)
        head = await stream.read_head()
        yield file_meta_of(stream, await aside(head, lambda: decode(head, stream.encoding, _NAMED)))
        for chunk in sliced(await aside(head, lambda: conversion.convert(head))):
            yield chunk
        async for chunk in _pixel_data(stream, conversion):
            yield chunk
        yield conversion.convert(await behind_pixel_data(stream))
    finally:
        await stream.aclose()


async def rewrite(stream: Part10Stream, change: Callable[[Dataset], Dataset]) -> AsyncIterator[bytes]:
    """The file with `change` made to its data set; pixel data passes by in chunks.

    `change` gets the elements before the pixel data and, when there are any, in a second call those behind it; it may
    change its argument. What it adds on the wrong side of the pixel data is left out; what it raises passes on. The
    transfer syntax is that of `written_syntax`. Elements that are not touched keep
    their bytes. Raises Part10Error as the stream does. Closes the stream when it ends or is left.
    """
    try:
        conversion = Conversion(stream.encoding)
        stored = await stream.read_head()
        head = await aside(stored, lambda: conversion.convert(stored))
        changed = await aside(head, lambda: within_head(change(decode(head, EXPLICIT_LITTLE))))
        yield file_meta_of(stream, changed)
        for chunk in sliced(await aside(head, lambda: encoded(changed))):
            yield chunk
        async for chunk in _pixel_data(stream, conversion):
            yield chunk
        behind = conversion.convert(await behind_pixel_data(stream))
        if behind.strip(b"\0"):
            yield encoded(_within(change(decode(behind, EXPLICIT_LITTLE)), AFTER_PIXEL_DATA, _BEYOND))
    finally:
        await stream.aclose()


async def _pixel_data(stream: Part10Stream, conversion: Conversion) -> AsyncIterator[bytes]:
    for until in PIXEL_SECTIONS:
        swap = None
        is_first = True
        async for piece in stream.elements(until):
            if is_first:
                header, piece, swap = conversion.pixel_data(piece)
                yield header
                is_first = False
            if piece:
                yield swap.feed(piece) if swap else piece
        if swap:
            yield swap.finish()


async def behind_pixel_data(stream: Part10Stream) -> bytes:
    """All that follows the pixel data: padding, signatures, private groups above; bounded like a head."""
    pieces, size = [], 0
    async for piece in stream.tail:
        size += len(piece)
        if size > MAX_HEAD:
            raise Part10Error(f"more than {MAX_HEAD} bytes behind the pixel data")
        pieces.append(piece)
    return b"".join(pieces)


def file_meta_of(stream: Part10Stream, dataset: Dataset, transfer_syntax: str = "") -> bytes:
    """The File Meta Information of ours for a changed file, in the syntax it is written in anew unless another is named."""
    meta = stream.file_meta
    with guarded():
        return file_meta(
            str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")),
            str(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID", "")),
            transfer_syntax or written_syntax(stream.transfer_syntax),
        )


def encoded(dataset: Dataset) -> bytes:
    """A data set in Explicit VR Little Endian; elements that were never looked at keep their bytes."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    with guarded():
        write_dataset(buffer, dataset)
    return buffer.getvalue()


def within_head(dataset: Dataset) -> Dataset:
    """The data set without what does not belong before the pixel data; its argument changed."""
    return _within(dataset, _FIRST, PIXEL_DATA)


def _within(dataset: Dataset, low: int, high: int) -> Dataset:
    # Iterating over a data set would decode every value; over its keys it does not.
    for tag in [tag for tag in dataset.keys() if not low <= tag < high]:  # noqa: SIM118
        del dataset[tag]
    return dataset


def sliced(data: bytes) -> Iterator[bytes]:
    """The bytes in chunks that a connection takes well."""
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
