"""An instance on its way into another transfer syntax, frame by frame: the pixels decoded or encoded, the data set told so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from struct import pack

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from gateway.errors import NotAcceptable
from gateway.imaging import attributes as images
from gateway.imaging.codestream import BEGIN_OF_JPEG_2000
from gateway.imaging.processes import EncodedFrame, Imaging, Recoded
from gateway.imaging.syntaxes import ALWAYS_LOSSY, EXPLICIT, NATIVE_SYNTAXES, RLE
from gateway.model import dataset as model
from gateway.wire.dicomjson import to_json
from gateway.wire.elements import EXPLICIT_LITTLE, ITEM, SEQUENCE_DELIMITER, UNDEFINED, Part10Error, read_header
from gateway.wire.explicit import Conversion
from gateway.wire.frames import MOST_FRAMES, frame_bits, offsets_of
from gateway.wire.part10 import Part10Stream, aside, decode
from gateway.wire.transfer import PIXEL_SECTIONS, behind_pixel_data, encoded, file_meta_of, sliced, within_head

Change = Callable[[Dataset], Dataset]
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_IMAGE_PIXEL = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
)  # fmt: skip
_SIZE = tuple(map(Tag, ("Rows", "Columns")))
_OF_PIXELS = tuple(map(Tag, (*_IMAGE_PIXEL, "ExtendedOffsetTable")))
_BEGIN_OF_IMAGE = (b"\xff\xd8\xff", BEGIN_OF_JPEG_2000)
_END_OF_IMAGE = b"\xff\xd9"
_MOST_NATIVE = (1 << 32) - 2


async def has_pixels(stream: Part10Stream) -> bool:
    """Whether there are pixels to decode; reads the head of the file."""
    head = await stream.read_head()
    found = await aside(head, lambda: decode(head, stream.encoding, _SIZE))
    return "Rows" in found and "Columns" in found


async def transcoded(stream: Part10Stream, into: str, imaging: Imaging, change: Change) -> AsyncIterator[bytes]:
    """The file in the syntax `into`, one frame at a time in memory; `change` is made to its data set as by `rewrite`.

    Raises NotAcceptable before the first byte where the pixels cannot be decoded or encoded so, Part10Error as the stream
    does and where its frames cannot be told apart. Closes the stream when it ends or is left.
    """
    try:
        conversion = Conversion(stream.encoding)
        converted = await asyncio.to_thread(conversion.convert, await stream.read_head())
        dataset = await aside(converted, lambda: within_head(change(decode(converted, EXPLICIT_LITTLE))))
        of_pixels = await aside(converted, lambda: decode(converted, EXPLICIT_LITTLE, _OF_PIXELS, 16 * MOST_FRAMES))
        attributes = _attributes(of_pixels)
        imaging.check_size(images.pixels_of_frame(attributes))
        count, stored = images.frame_count(attributes), stream.transfer_syntax
        source = EXPLICIT if stored in NATIVE_SYNTAXES else stored  # their bytes are turned round by now
        offsets = offsets_of(of_pixels.get("ExtendedOffsetTable") or b"", count, "Q")
        number, told, size = 0, None, 0
        with imaging.holding(images.bytes_of_frame(attributes), patient=True):
            async with aclosing(_frames(stream, conversion, attributes, stored, offsets)) as frames:
                async for data in frames:
                    frame = EncodedFrame(attributes, source, data)
                    recoded = await imaging.recode(frame, "" if into == EXPLICIT else into, patient=True)
                    if told is None:
                        told, size = recoded.told, len(recoded.data)
                        header = _header(told, size * count, into)
                        _describe(dataset, told, stored, into)
                        yield file_meta_of(stream, dataset, into)
                        for chunk in sliced(await asyncio.to_thread(encoded, dataset)):
                            yield chunk
                        yield header
                    number += 1
                    if number > count or (into == EXPLICIT and len(recoded.data) != size):
                        raise Part10Error("the frames are not all alike, or more than announced")
                    for chunk in sliced(_framed(recoded, into)):
                        yield chunk
        if number != count:
            raise Part10Error("there are fewer frames than announced")
        yield _end(size * count, into)
        behind = conversion.convert(await behind_pixel_data(stream))
        if behind.strip(b"\0"):
            yield encoded(change(decode(behind, EXPLICIT_LITTLE)))
    finally:
        await stream.aclose()


def _attributes(dataset: Dataset) -> model.Dataset:
    """The Image Pixel module in the DICOM JSON model."""
    few = Dataset()
    few.set_original_encoding(False, True)
    for keyword in _IMAGE_PIXEL:
        if keyword in dataset:
            few[keyword] = dataset[keyword]
    return to_json(few, bulk=lambda path: path)


def _describe(dataset: Dataset, told: dict[str, object], stored: str, into: str) -> None:
    """The data set as it holds for the new pixels. Native ones above 32 bits of length cannot be written."""
    dataset.PhotometricInterpretation = told["photometric_interpretation"]
    dataset.BitsAllocated = told["bits_allocated"]
    if "HighBit" in dataset and dataset.get("BitsStored"):
        dataset.HighBit = dataset.BitsStored - 1
    if told["samples_per_pixel"] != 1:
        dataset.PlanarConfiguration = 1 if into == RLE else 0
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    if stored not in NATIVE_SYNTAXES and "IconImageSequence" in dataset:
        del dataset["IconImageSequence"]  # its pixels are in the syntax of the file
    if stored in ALWAYS_LOSSY and not dataset.get("LossyImageCompression"):
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"


def _header(told: dict[str, object], length: int, into: str) -> bytes:
    if into != EXPLICIT:
        return _PIXEL_DATA + b"OB\0\0" + pack("<L", UNDEFINED) + pack("<HHL", ITEM >> 16, ITEM & 0xFFFF, 0)
    if length > _MOST_NATIVE:
        raise NotAcceptable("decoded, the instance is longer than a data element can be; ask for its frames")
    if told["bits_allocated"] == 1 and int(str(told["rows"])) * int(str(told["columns"])) % 8:
        raise NotAcceptable("frames of single bits that do not end at a byte are not decoded; ask for it as stored")
    vr = b"OB" if int(str(told["bits_allocated"])) <= 8 else b"OW"
    return _PIXEL_DATA + vr + b"\0\0" + pack("<L", length + length % 2)


def _framed(recoded: Recoded, into: str) -> bytes:
    if into == EXPLICIT:
        return recoded.data
    padded = recoded.data + b"\0" * (len(recoded.data) % 2)
    return pack("<HHL", ITEM >> 16, ITEM & 0xFFFF, len(padded)) + padded


def _end(length: int, into: str) -> bytes:
    if into == EXPLICIT:
        return b"\0" * (length % 2)
    return pack("<HHL", SEQUENCE_DELIMITER >> 16, SEQUENCE_DELIMITER & 0xFFFF, 0)


async def _frames(
    stream: Part10Stream, conversion: Conversion, attributes: model.Dataset, stored: str, offsets: Sequence[int]
) -> AsyncGenerator[bytes, None]:
    """Each frame whole, native ones little endian."""
    if stored in NATIVE_SYNTAXES:
        async for frame in _native_frames(_value(stream, conversion), attributes):
            yield frame
        return
    source = _Pieces(_value(stream, conversion), images.most_bytes_of_frame(attributes))
    async for frame in _grouped(source, images.frame_count(attributes), offsets, stored):
        yield frame


async def _value(stream: Part10Stream, conversion: Conversion) -> AsyncIterator[bytes]:
    """The value of the pixel data, of undefined length to its delimiter."""
    for until in PIXEL_SECTIONS:
        swap, is_first = None, True
        async for piece in stream.elements(until):
            if is_first:
                _, piece, swap = conversion.pixel_data(piece)
                is_first = False
            if piece:
                yield swap.feed(piece) if swap else piece
        if swap:
            yield swap.finish()


async def _native_frames(value: AsyncIterator[bytes], attributes: model.Dataset) -> AsyncIterator[bytes]:
    bits, count = frame_bits(attributes), images.frame_count(attributes)
    if not bits or bits % 8:
        raise NotAcceptable("pixels of single bits are not compressed; ask for the instance as stored")
    size, buffer, given = bits // 8, bytearray(), 0
    if size > images.bytes_of_frame(attributes):
        raise NotAcceptable("pixels of so many samples or bits are not compressed; ask for the instance as stored")
    async for piece in value:
        buffer += piece
        while len(buffer) >= size and given < count:
            yield bytes(buffer[:size])
            del buffer[:size]
            given += 1
        if given == count:
            buffer.clear()


class _Pieces:
    """Reads items out of the value of encapsulated pixel data (PS3.5 A.4), none longer than `most` bytes."""

    def __init__(self, value: AsyncIterator[bytes], most: int) -> None:
        self._value = value
        self._buffer = bytearray()
        self._most = most

    async def item(self, most: int = 0) -> bytes | None:
        """The value of the next item; None at the delimiter. Raises Part10Error where there is neither."""
        header = read_header(await self._take(8), 0, EXPLICIT_LITTLE)
        if header is not None and header.tag == SEQUENCE_DELIMITER:
            return None
        if header is None or header.tag != ITEM or header.length == UNDEFINED:
            raise Part10Error("the encapsulated pixel data has no end")
        if header.length > (most or self._most):
            raise Part10Error("a fragment is longer than its frame can be")
        return await self._take(header.length)

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await anext(self._value, None)
            if piece is None:
                raise Part10Error("the encapsulated pixel data is truncated")
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


async def _grouped(source: _Pieces, count: int, extended: Sequence[int], stored: str) -> AsyncIterator[bytes]:
    """The frames from their fragments: by the offset table as long as a fragment begins at each offset, else by what ends or
    begins an image; RLE has one fragment for each frame (PS3.5 A.4.2)."""
    table = await source.item(4 * MOST_FRAMES) or b""
    starts = _Starts(extended or offsets_of(table, count, "L"))
    at, frame = 0, bytearray()
    while (fragment := await source.item()) is not None:
        begins = starts.begins(at)
        if frame and count > 1 and (begins or (begins is None and _is_between(frame, fragment, stored))):
            yield bytes(frame)
            frame = bytearray()
        frame += fragment
        at += 8 + len(fragment)
        if len(frame) > source._most:
            raise Part10Error("a frame is longer than it can be")
    if frame:
        yield bytes(frame)


class _Starts:
    """What an offset table says of fragments that come one after the other: some writers leave nonsense there."""

    def __init__(self, offsets: Sequence[int]) -> None:
        is_sound = bool(offsets) and offsets[0] == 0 and all(a < b for a, b in pairwise(offsets))
        self._left = deque(offsets) if is_sound else None

    def begins(self, at: int) -> bool | None:
        """Whether the fragment at this offset begins a frame; None once no fragment began where the table has a frame begin."""
        if self._left and self._left[0] < at:
            self._left = None
        if self._left is None:
            return None
        is_start = bool(self._left) and self._left[0] == at
        if is_start:
            self._left.popleft()
        return is_start


def _is_between(frame: bytearray, fragment: bytes, stored: str) -> bool:
    """Whether an image ends with `frame`, or begins with `fragment`: some have much padding at their end, or no end."""
    return stored == RLE or _END_OF_IMAGE in frame[-10:] or fragment.startswith(_BEGIN_OF_IMAGE)
