"""Changes an instance on its way in where its node needs it, and writes that into it: Original Attributes Sequence (0400,0561).

Spliced into the bytes as they came, in their own encoding: whatever is not changed stays as it is, to the byte.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from struct import pack

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from gateway.model import vocabulary
from gateway.model.dataset import Dataset as Described
from gateway.model.dataset import text
from gateway.model.patient import issuer_of
from gateway.model.vocabulary import INSTANCE_UID, PATIENT_ID, SOP_CLASS_UID
from gateway.wire.elements import (
    ITEM,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    ElementWalker,
    Encoding,
    Part10Error,
    read_header,
)
from gateway.wire.filemeta import file_meta
from gateway.wire.part10 import MAX_HEAD, Part10Stream

SYSTEM = "IMAGING-GATEWAY"
"""Modifying System (0400,0563)."""
_ISSUER, _ORIGINAL_ATTRIBUTES = int(vocabulary.ISSUER, 16), 0x04000561

Coerce = Callable[[Part10Stream, Described], AsyncIterator[bytes] | None]
"""The file with what the node needs, or None where it needs nothing. It is given what identifies the instance."""


def as_it_is(stream: Part10Stream, found: Described) -> AsyncIterator[bytes] | None:
    """For nodes that need nothing."""
    return None


def with_issuer(issuer: str) -> Coerce:
    """Gives IssuerOfPatientID (0010,0021) to an instance whose patient id names no issuer at all. `issuer` is ASCII."""

    def coerce(stream: Part10Stream, found: Described) -> AsyncIterator[bytes] | None:
        if issuer_of(found, "") or PATIENT_ID not in found:
            return None
        return _written(stream, found, _splice(stream, issuer))

    return coerce


def unchanged(stream: Part10Stream, found: Described) -> AsyncIterator[bytes]:
    """The file as it came; one that lacks its preamble (fresh data sets of dicomweb-client) gets a File Meta Information of
    ours before the same data set."""
    return stream.raw() if stream.has_file_meta else _written(stream, found, _all(stream))


async def _all(stream: Part10Stream) -> AsyncIterator[bytes]:
    yield stream.head
    async for piece in stream.tail:
        yield piece


async def _written(stream: Part10Stream, found: Described, elements: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The file of these elements, deflated again where it was."""
    if stream.has_file_meta:
        yield stream.before
    else:
        yield file_meta(text(found, SOP_CLASS_UID), text(found, INSTANCE_UID), stream.transfer_syntax)
    if stream.transfer_syntax != DeflatedExplicitVRLittleEndian:
        async for piece in elements:
            yield piece
        return
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    async for piece in elements:
        yield deflate.compress(piece)
    yield deflate.flush()


async def _splice(stream: Part10Stream, issuer: str) -> AsyncIterator[bytes]:
    """The head of `stream` reaches behind the issuer's place."""
    encoding, head = stream.encoding, stream.head
    start, end = _place(head, _ISSUER, encoding)
    changed, original = Dataset(), Dataset()
    changed.IssuerOfPatientID, original.IssuerOfPatientID = issuer, ""
    try:
        yield head[:start] + _encoded(changed, encoding) + head[end:]
        async for piece in stream.elements(_ORIGINAL_ATTRIBUTES):
            yield piece
        before = await _gathered(stream)
        yield _with_item(before, _encoded(_record(original), encoding), encoding)
        async for piece in stream.tail:
            yield piece
    finally:
        await stream.aclose()


def _place(head: bytes, tag: int, encoding: Encoding) -> tuple[int, int]:
    """Where an element begins and ends in the head, or where it would be."""
    return ElementWalker(encoding, tag).feed(head), ElementWalker(encoding, tag + 1).feed(head)


async def _gathered(stream: Part10Stream) -> bytes:
    """The Original Attributes Sequence that is there already, b'' if there is none."""
    pieces, size = [], 0
    async for piece in stream.elements(_ORIGINAL_ATTRIBUTES + 1):
        size += len(piece)
        if size > MAX_HEAD:
            raise Part10Error("an Original Attributes Sequence without end")
        pieces.append(piece)
    return b"".join(pieces)


def _record(original: Dataset) -> Dataset:
    """What was changed, when, by whom and why (PS3.3 C.12.1.1.9)."""
    record = Dataset()
    record.ModifiedAttributesSequence = [original]
    record.AttributeModificationDateTime = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    record.ModifyingSystem = SYSTEM
    record.SourceOfPreviousValues = ""
    record.ReasonForTheAttributeModification = "COERCE"
    return record


def _with_item(sequence: bytes, item: bytes, encoding: Encoding) -> bytes:
    """The sequence (or none) with one item more, its length defined."""
    order = "<" if encoding.little else ">"
    items = _items(sequence, encoding) + pack(f"{order}HHL", ITEM >> 16, ITEM & 0xFFFF, len(item)) + item
    group, element = _ORIGINAL_ATTRIBUTES >> 16, _ORIGINAL_ATTRIBUTES & 0xFFFF
    if not encoding.explicit:
        return pack(f"{order}HHL", group, element, len(items)) + items
    return pack(f"{order}HH2sHL", group, element, b"SQ", 0, len(items)) + items


def _items(sequence: bytes, encoding: Encoding) -> bytes:
    header = read_header(sequence, 0, encoding) if sequence else None
    if header is None:
        return b""
    if header.length != UNDEFINED:
        return sequence[header.size :]
    end = read_header(sequence, len(sequence) - 8, encoding)
    if end is None or end.tag != SEQUENCE_DELIMITER:
        raise Part10Error("a sequence without its delimiter")
    return sequence[header.size : -8]


def _encoded(dataset: Dataset, encoding: Encoding) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = not encoding.explicit, encoding.little
    write_dataset(buffer, dataset)
    return buffer.getvalue()
