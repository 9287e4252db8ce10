"""DICOM files as streams: what stands before the pixel data is read, the rest only passes by (PS3.10 7, PS3.5 A)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from typing import TypeVar

from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from gateway.model import dataset as model
from gateway.model import vocabulary
from gateway.wire.deflated import Decoder, Deflated, Plain
from gateway.wire.elements import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    ElementWalker,
    Encoding,
    Part10Error,
    Part10TooLarge,
    encoding_found,
    picked,
    plain_values,
    read_header,
)
from gateway.wire.filemeta import file_meta, guessed_syntax, read_file_meta

__all__ = ["Part10Error", "Part10Stream", "file_meta", "identify", "open_part10"]

PIXEL_DATA = 0x7FE00008
"""Where a head ends: at the first of Float (7FE0,0008), Double Float (7FE0,0009) and plain Pixel Data (7FE0,0010)."""
AFTER_PIXEL_DATA = 0x7FE00011
AFTER_UIDS = 0x00200010
"""Where a head may end for `identify`: every identifying element has a lower tag."""

MAX_HEAD = 64 << 20
_QUICK = 256 << 10
T = TypeVar("T")
_ENCODINGS = {ImplicitVRLittleEndian: IMPLICIT_LITTLE, ExplicitVRBigEndian: EXPLICIT_BIG}
_IDENTIFYING = (
    vocabulary.SOP_CLASS_UID,
    vocabulary.INSTANCE_UID,
    vocabulary.STUDY_UID,
    vocabulary.SERIES_UID,
    vocabulary.PATIENT_ID,
    vocabulary.ISSUER,
    vocabulary.ISSUER_QUALIFIERS,
)
_IDENTIFYING_TAGS = {int(tag, 16): tag for tag in _IDENTIFYING}
_MOST_PICKED = 64 << 10
_TRANSFER_SYNTAX, _CHARACTER_SET = 0x00020010, 0x00080005


def decode(data: bytes, encoding: Encoding, tags: tuple[int, ...] | None = None, most: int = _MOST_PICKED) -> Dataset:
    """A data set from its bytes, its values decoded when they are looked at. `tags` leaves out all others; none of these may
    have more than `most` bytes."""
    only = list(tags) if tags else None
    found = picked(data, encoding, {*tags, _CHARACTER_SET}, most) if tags else data
    with guarded():
        return read_dataset(BytesIO(found), not encoding.explicit, encoding.little, specific_tags=only)


async def aside(head: bytes, work: Callable[[], T]) -> T:
    """What work on a head returns. Long ones (a functional group per frame) are worked on off the event loop."""
    return work() if len(head) < _QUICK else await asyncio.to_thread(work)


@contextmanager
def guarded() -> Iterator[None]:
    """For what pydicom does with values: it neither checks nor warns of them, and whatever it raises is a Part10Error.

    Its own exceptions are of any kind and carry the broken value, patient data, in their text.
    """
    try:
        with config.disable_value_validation():
            yield
    except Exception as error:  # noqa: BLE001
        raise Part10Error(f"the data set cannot be understood ({type(error).__name__})") from None


class Part10Stream:
    """One DICOM file that is being received. Use one of `raw`, `tail` (or what is made of them in wire.transfer), once.

    `transfer_syntax` is the Transfer Syntax UID of the file, guessed from the first element when missing. `encoding` is
    that of the elements in `head` and `tail`, deflated ones being inflated; like pydicom, it believes the first VR more
    than the Transfer Syntax. `has_file_meta` says that preamble and Transfer Syntax UID are there, without which a file
    is no DICOM file to others. `is_as_declared`: the first VR and the Transfer Syntax agree.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        meta: bytes,
        declared_syntax: str,
        received: bytes,
        offset: int,
        *,
        strict: bool = False,
        inflated: int | None = None,
    ) -> None:
        self._meta = meta
        self.before = received[:offset]
        """What stands before the data set, as it was received: preamble and File Meta Information."""
        self.has_file_meta = received[128:132] == b"DICM" and bool(declared_syntax)
        self.transfer_syntax = transfer_syntax = declared_syntax or guessed_syntax(received[offset : offset + 6])
        declared: Encoding = _ENCODINGS.get(transfer_syntax, EXPLICIT_LITTLE)  # type: ignore[call-overload]
        self.encoding = encoding_found(
            received if transfer_syntax != DeflatedExplicitVRLittleEndian else b"", offset, declared
        )
        self.is_as_declared = self.encoding == declared
        self._chunks = chunks
        self._originals: deque[bytes] | None = deque([received])
        self._is_deflated = transfer_syntax == DeflatedExplicitVRLittleEndian
        self._decoder: Decoder = Deflated(inflated) if self._is_deflated else Plain()
        self._pieces = self._decoded(received[offset:])
        self._walker = ElementWalker(self.encoding, strict=strict)
        self._pending = b""
        self._ended = False
        self._head = b""
        self._dataset: Dataset | None = None

    @cached_property
    def file_meta(self) -> FileMetaDataset:
        """The File Meta Information as read, empty when the file has none."""
        return FileMetaDataset(decode(self._meta, EXPLICIT_LITTLE)) if self._meta else FileMetaDataset()

    @property
    def head(self) -> bytes:
        """The elements read so far, encoded as `encoding` says."""
        return self._head

    @property
    def dataset(self) -> Dataset:
        """The elements of `head`, not those behind it. A value is decoded when it is looked at."""
        if self._dataset is None:
            self._dataset = decode(self._head, self.encoding)
        return self._dataset

    @property
    def tail(self) -> AsyncIterator[bytes]:
        """Everything behind `head`, from its first tag on. Raises Part10Error when it ends mid-element."""
        return self.elements(None)

    async def read_head(self, until: int = PIXEL_DATA, limit: int = MAX_HEAD) -> bytes:
        """Extends `head` to the first top-level element with a tag of `until` or more, and gives it back.

        Raises Part10TooLarge when it would pass `limit` bytes, Part10Error when the file is truncated in it.
        """
        found, size = [self._head], len(self._head)
        async for piece in self._up_to(until):
            size += len(piece)
            if size > limit:
                raise Part10TooLarge(f"more than {limit} bytes before the pixel data")
            found.append(piece)
        if len(found) > 1:
            self._head, self._dataset = b"".join(found), None
        return self._head

    async def beginning(self, limit: int) -> bytes | None:
        """The file as received up to its pixel data's header at least, all of it where it has none; None for a deflated one, or
        when `limit` bytes do not reach so far. Only `raw` may follow."""
        if self.transfer_syntax == DeflatedExplicitVRLittleEndian or self._originals is None:
            return None
        for until in (PIXEL_DATA, None):
            async for _ in self._up_to(until):
                if sum(map(len, self._originals)) > limit:
                    return None
            if self._ended or self._is_at_pixel_data():
                break
        return b"".join(self._originals)

    def _is_at_pixel_data(self) -> bool:
        """Whether the walker stopped in front of pixels, not of what may stand above them without any (PS3.3 C.12.1.1.3)."""
        header = read_header(self._pending, 0, self.encoding) if self._walker.stopped else None
        return header is not None and header.tag < AFTER_PIXEL_DATA

    async def elements(self, until: int | None) -> AsyncGenerator[bytes, None]:
        """What follows, up to the first top-level element with a tag of `until` or more; None goes to the end.

        Whoever leaves it early closes the stream with `aclose`. The file cannot be passed on `raw` after this.
        """
        self._originals = None
        async for piece in self._up_to(until):
            yield piece

    async def raw(self, *, checked: bool = True) -> AsyncGenerator[bytes, None]:
        """The file exactly as it was received, chunk by chunk, from its first byte.

        Raises Part10Error at the end when it came in the middle of an element, a deflate stream, or encapsulated pixel
        data without its delimiter. An end exactly between two top-level elements cannot be noticed. Without `checked`
        nothing is: for files that are stored broken and wanted as they are. Closes the source when it ends or is left.
        """
        originals = self._originals
        if originals is None:
            raise RuntimeError("the file was already taken apart")
        self._walker.until = None
        try:
            while originals:
                yield originals.popleft()
            if checked:
                self._follow(b"")
            async for piece in self._pieces:
                if checked:
                    self._follow(piece)
                while originals:
                    yield originals.popleft()
            if checked:
                self._finish()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Leaves the rest of the file unread and closes its source."""
        await self._pieces.aclose()
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def _up_to(self, until: int | None) -> AsyncIterator[bytes]:
        self._walker.until = until
        settled = self._follow(b"")
        while not self._walker.stopped and not self._ended:
            if settled:
                yield settled
            piece = await anext(self._pieces, None)
            if piece is None:
                self._finish()
                settled, self._pending = self._pending, b""
            else:
                settled = self._follow(piece)
        if settled:
            yield settled

    def _follow(self, piece: bytes) -> bytes:
        """Lets the walker follow the bytes; gives those back that belong to elements whose header is known."""
        data = self._pending + piece if self._pending else piece
        followed = self._walker.feed(data)
        self._pending = data[followed:]
        return data[:followed]

    def _finish(self) -> None:
        self._ended = True
        self._decoder.finish()
        self._walker.finish(self._pending)

    async def _decoded(self, first: bytes) -> AsyncGenerator[bytes, None]:
        chunk: bytes | None = first
        while chunk is not None:
            for piece in self._decoder.decode(chunk):
                yield piece
                if self._is_deflated:  # others have their turn: a chunk may inflate to a thousand times as much
                    await asyncio.sleep(0)
            chunk = await anext(self._chunks, None)
            if chunk is not None and self._originals is not None:
                self._originals.append(chunk)


async def open_part10(
    chunks: AsyncIterator[bytes],
    *,
    until: int = PIXEL_DATA,
    limit: int = MAX_HEAD,
    strict: bool = False,
    inflated: int | None = None,
) -> Part10Stream:
    """Reads a DICOM file up to its first top-level element with a tag of `until` or more; the rest waits in the stream.

    A small `until` (AFTER_UIDS) lets the first byte go on early and holds little; `read_head` goes on from there. A
    missing preamble, and a data set without any File Meta Information that begins with group 0008, are read as well.
    With `strict` all of it is read as a `strict` ElementWalker does. `inflated` is what a deflated data set may inflate to.
    Raises Part10Error for anything else and for a file truncated so far, Part10TooLarge for a head above `limit` bytes; `chunks`
    is then closed.
    """
    try:
        received, offset, end = await read_file_meta(chunks)
        meta = received[offset:end]
        stream = Part10Stream(chunks, meta, _declared_syntax(meta), received, end, strict=strict, inflated=inflated)
        await stream.read_head(until, limit)
    except BaseException:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
        raise
    return stream


def _declared_syntax(meta: bytes) -> str:
    plain = plain_values(meta, EXPLICIT_LITTLE, frozenset({_TRANSFER_SYNTAX}))
    if plain is not None:
        declared = plain.get(_TRANSFER_SYNTAX, "")
    else:
        with guarded():
            declared = str(decode(meta, EXPLICIT_LITTLE).get("TransferSyntaxUID", "") or "").strip(" \0")
    if declared and not model.is_uid(declared):
        raise Part10Error("the Transfer Syntax UID is none")
    return declared


def identify(stream: Part10Stream) -> model.Dataset:
    """The UIDs, the Patient ID and its issuer that `stream.head` holds, in the DICOM JSON model.

    Needs a head that reaches AFTER_UIDS. What the file does not have is left out.
    """
    plain = plain_values(stream.head, stream.encoding, _IDENTIFYING_TAGS)
    if plain is not None:
        return {_IDENTIFYING_TAGS[tag]: model.attribute(_IDENTIFYING_TAGS[tag], [plain[tag]]) for tag in sorted(plain)}
    with guarded():
        return _in_json(decode(stream.head, stream.encoding, tuple(_IDENTIFYING_TAGS)), frozenset(_IDENTIFYING))


async def identified(stream: Part10Stream) -> model.Dataset:
    """As `identify`; a long head is looked through off the event loop."""
    return await aside(stream.head, lambda: identify(stream))


def _in_json(found: Dataset, wanted: frozenset[str] | None) -> model.Dataset:
    described: model.Dataset = {}
    for element in found:
        tag = f"{element.tag:08X}"
        if wanted is not None and tag not in wanted:
            continue
        if element.VR == "SQ":
            described[tag] = {"vr": "SQ", "Value": [_in_json(item, None) for item in element.value]}
        else:
            values = element.value if element.VM > 1 else [element.value]
            described[tag] = model.attribute(tag, [str(value) for value in values if value is not None])
    return described
