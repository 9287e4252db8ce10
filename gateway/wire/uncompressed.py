"""Uncompressed DICOM files between Implicit and Explicit VR Little Endian, for nodes that take one of the two only (PS3.5 A)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from struct import pack

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gateway.wire.elements import (
    EXPLICIT_LITTLE,
    ITEM,
    ITEM_DELIMITER,
    MAX_DEPTH,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    Encoding,
    Header,
    Part10Error,
    encoding_found,
    read_header,
)
from gateway.wire.explicit import Conversion
from gateway.wire.filemeta import file_meta
from gateway.wire.part10 import Part10Stream
from gateway.wire.transfer import PIXEL_SECTIONS, behind_pixel_data

UNCOMPRESSED = frozenset(
    map(str, (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian))
)
"""The syntaxes whose pixel data are plain cells: between them a file can be written anew without touching an image."""
TARGETS = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
"""What such a file can be written as here, the better first: it keeps the VR of private elements."""
_NOT_ENTERED = frozenset({b"OB", b"OW"})


async def written_as(stream: Part10Stream, syntax: str) -> AsyncIterator[bytes]:
    """The uncompressed file in one of TARGETS, with a File Meta Information of ours; pixel data passes by in chunks.

    Values keep their bytes, those of Big Endian apart. Raises Part10Error as the stream does, and for pixel data that is
    encapsulated after all. Closes the stream when it ends or is left.
    """
    conversion, implicit = Conversion(stream.encoding), syntax == ImplicitVRLittleEndian

    def written(data: bytes) -> bytes:
        plain = conversion.convert(data)
        return implicit_little_endian(plain) if implicit else plain

    try:
        head = await stream.read_head()
        dataset = stream.dataset
        yield file_meta(str(dataset.get("SOPClassUID", "")), str(dataset.get("SOPInstanceUID", "")), syntax)
        yield written(head)
        for until in PIXEL_SECTIONS:
            async for chunk in _pixel_data(stream, until, conversion, implicit):
                yield chunk
        yield written(await behind_pixel_data(stream))
    finally:
        await stream.aclose()


async def _pixel_data(stream: Part10Stream, until: int, conversion: Conversion, implicit: bool) -> AsyncIterator[bytes]:
    swap, is_first = None, True
    async for piece in stream.elements(until):
        if is_first:
            header, piece, swap = conversion.pixel_data(piece)
            told = _required(read_header(header, 0, EXPLICIT_LITTLE))
            if told.length == UNDEFINED:
                raise Part10Error("encapsulated pixel data in an uncompressed data set")
            yield _header(told) if implicit else header
            is_first = False
        if piece:
            yield swap.feed(piece) if swap else piece
    if swap:
        yield swap.finish()


def implicit_little_endian(data: bytes) -> bytes:
    """A run of whole top-level elements of Explicit VR Little Endian without their VRs, sequences with delimiters.

    Group lengths, retired and no longer true, and zeros behind the last element are left out. Raises Part10Error where
    the bytes are no elements.
    """
    out = bytearray()
    _elements(data, 0, len(data), EXPLICIT_LITTLE, out, 0)
    return bytes(out)


def _elements(data: bytes, at: int, end: int | None, encoding: Encoding, out: bytearray, depth: int) -> int:
    """Writes the elements from `at` to `end`, or to the item delimiter; gives the place behind."""
    if depth > MAX_DEPTH:
        raise Part10Error("sequences are nested too deeply")
    while end is None or at < end:
        if depth == 0 and not any(data[at : at + 8]):
            return len(data)
        header = _required(read_header(data, at, encoding))
        at += header.size
        if end is None and header.tag == ITEM_DELIMITER:
            return at
        at = _element(data, header, at, encoding, out, depth)
    if at != end:
        raise Part10Error("an element is longer than what holds it")
    return at


def _element(data: bytes, header: Header, at: int, encoding: Encoding, out: bytearray, depth: int) -> int:
    if header.vr == b"SQ" or header.length == UNDEFINED:
        if header.vr in _NOT_ENTERED:
            raise Part10Error("encapsulated pixel data in an uncompressed data set")
        # UN of undefined length holds Implicit VR Little Endian (PS3.5 6.2.2).
        inner = Encoding(explicit=encoding.explicit and header.vr == b"SQ", little=True)
        out += pack("<HHL", header.tag >> 16, header.tag & 0xFFFF, UNDEFINED)
        return _sequence(data, at, None if header.length == UNDEFINED else at + header.length, inner, out, depth)
    end = at + header.length
    if end > len(data):
        raise Part10Error(f"({header.tag >> 16:04X},{header.tag & 0xFFFF:04X}) is cut off")
    if header.tag & 0xFFFF:
        out += _header(header) + data[at:end]
    return end


def _sequence(data: bytes, at: int, end: int | None, encoding: Encoding, out: bytearray, depth: int) -> int:
    while end is None or at < end:
        item = _required(read_header(data, at, encoding))
        at += 8
        if item.tag == SEQUENCE_DELIMITER and end is None:
            break
        if item.tag != ITEM:
            raise Part10Error("a sequence holds something else than items")
        found = encoding_found(data, at, encoding) if encoding.explicit and item.length else encoding
        out += pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
        at = _elements(data, at, None if item.length == UNDEFINED else at + item.length, found, out, depth + 1)
        out += pack("<HHL", 0xFFFE, 0xE00D, 0)
    if end is not None and at != end:
        raise Part10Error("an item is longer than its sequence")
    out += pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return at


def _header(header: Header) -> bytes:
    return pack("<HHL", header.tag >> 16, header.tag & 0xFFFF, header.length)


def _required(header: Header | None) -> Header:
    if header is None:
        raise Part10Error("an element header is cut off")
    return header
