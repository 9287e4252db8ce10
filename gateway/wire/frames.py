"""Where each frame of the pixel data is in a file, so that a frame is read by a seek (PS3.5 8, A.4; PS3.3 C.7.6.3)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from struct import calcsize, unpack
from typing import BinaryIO

from pydicom.uid import ExplicitVRLittleEndian

from gateway.model.dataset import Dataset, text, values
from gateway.model.vocabulary import tag
from gateway.wire.elements import EXPLICIT_LITTLE, ITEM, SEQUENCE_DELIMITER, UNDEFINED, Part10Error, read_header
from gateway.wire.uncompressed import UNCOMPRESSED
from gateway.wire.valuefields import turned, word_size

CHUNK = 1 << 20
NATIVE = str(ExplicitVRLittleEndian)
OCTETS = "application/octet-stream"
# PS3.18 Tables 8.7.3-2, -3 and -5; what is not listed is application/octet-stream.
_JPEG_FAMILY = "1.2.840.10008.1.2.4."
_MEDIA_TYPES = {
    **dict.fromkeys(("50", "51", "57", "70"), "image/jpeg"),
    **dict.fromkeys(("80", "81"), "image/jls"),
    **dict.fromkeys(("90", "91"), "image/jp2"),
    **dict.fromkeys(("92", "93"), "image/jpx"),
    **dict.fromkeys(("110", "111", "112"), "image/jxl"),
    **dict.fromkeys(("201", "202", "203"), "image/jphc"),
    **dict.fromkeys(("100", "100.1", "101", "101.1"), "video/mpeg"),
    **dict.fromkeys(("102", "102.1", "103", "103.1", "104", "104.1", "105", "105.1", "106", "106.1"), "video/mp4"),
    **dict.fromkeys(("107", "108"), "video/H265"),
}
_RLE_LOSSLESS = "1.2.840.10008.1.2.5"
MOST_FRAMES = 1 << 20
"""And fragments, of one instance: each is a place that is kept while its frames are read."""
_END_OF_IMAGE = b"\xff\xd9"

_ROWS, _COLUMNS, _SAMPLES = tag("Rows"), tag("Columns"), tag("SamplesPerPixel")
_BITS_ALLOCATED, _NUMBER_OF_FRAMES = tag("BitsAllocated"), tag("NumberOfFrames")
_PHOTOMETRIC = tag("PhotometricInterpretation")


def frame_media_type(transfer_syntax: str) -> str:
    """The media type of one frame in a transfer syntax."""
    if transfer_syntax == _RLE_LOSSLESS:
        return "image/dicom-rle"
    if not transfer_syntax.startswith(_JPEG_FAMILY):
        return OCTETS
    return _MEDIA_TYPES.get(transfer_syntax.removeprefix(_JPEG_FAMILY), OCTETS)


@dataclass(frozen=True, slots=True)
class Extent:
    """Some bytes of an open file: `ranges` are (offset, length), one after the other; or they are `data` itself.

    `word` is the number of bytes that big endian order turns round. `bits` are (first, count) within the ranges, where
    what is meant does not begin or end at a byte or word: frames of one bit per pixel are packed without a gap.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    data: bytes = b""
    word: int = 1
    bits: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """The number of bytes that come out."""
        if self.bits:
            return (self.bits[1] + 7) // 8
        return len(self.data) + sum(length for _, length in self.ranges)


def iter_chunks(source: BinaryIO, extent: Extent) -> Generator[bytes, None, None]:
    """The bytes of an extent, little endian, at most CHUNK at a time. Raises Part10Error when the file is too short."""
    if extent.bits:
        whole = b"".join(_words(source, extent))
        first, count = extent.bits
        number = int.from_bytes(whole, "little") >> first & ((1 << count) - 1)
        yield number.to_bytes(extent.size, "little")
        return
    if extent.data:
        yield extent.data
    yield from _words(source, extent)


def _words(source: BinaryIO, extent: Extent) -> Iterator[bytes]:
    for offset, length in extent.ranges:
        for at in range(offset, offset + length, CHUNK):
            wanted = min(CHUNK, offset + length - at)
            # Other frames may be read from the same file between two chunks.
            source.seek(at)
            chunk = source.read(wanted)
            if len(chunk) != wanted:
                raise Part10Error("the file ends in the middle of a value")
            yield turned(chunk, extent.word)


@dataclass(frozen=True, slots=True)
class PixelElement:
    """The pixel data element: where its value begins, how long it is (UNDEFINED when encapsulated), and its VR."""

    tag: str
    vr: str
    offset: int
    length: int
    is_big_endian: bool = False

    @property
    def is_encapsulated(self) -> bool:
        return self.length == UNDEFINED


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frames of one instance; `locate` takes a number from 1 to `count`. All are in one transfer syntax."""

    count: int
    media_type: str
    transfer_syntax: str
    locate: Callable[[int], Extent]


def frame_table(
    source: BinaryIO, pixels: PixelElement, attributes: Dataset, transfer_syntax: str, offsets: Sequence[int] = ()
) -> FrameTable:
    """Finds the frames. `offsets` is the Extended Offset Table (7FE0,0001), if the instance has one.

    Raises Part10Error when the boundaries cannot be told.
    """
    if not pixels.is_encapsulated:
        return _native(pixels, attributes)
    if transfer_syntax in UNCOMPRESSED:
        raise Part10Error("encapsulated pixel data in an uncompressed data set")
    media_type = frame_media_type(transfer_syntax)
    table, fragments, _ = read_fragments(source, pixels.offset)
    if media_type.startswith("video/"):
        frames = [fragments]
    else:
        count = frame_count(attributes)
        frames = _grouped(source, fragments, count, offsets or offsets_of(table, count, "L"))
    return FrameTable(
        len(frames),
        media_type,
        transfer_syntax,
        lambda number: Extent(tuple((offset + 8, length) for offset, length in frames[number - 1])),
    )


def _number(attributes: Dataset, tag_: str, default: int) -> int:
    found = next(iter(values(attributes, tag_)), None)
    return found if isinstance(found, int) and found > 0 else default


def frame_count(attributes: Dataset) -> int:
    return _number(attributes, _NUMBER_OF_FRAMES, 1)


def offsets_of(table: bytes, count: int, form: str) -> tuple[int, ...]:
    """The offsets of a table, if there is one for each frame: 'L' for a basic, 'Q' for an extended one."""
    return unpack(f"<{count}{form}", table) if len(table) == count * calcsize(f"<{form}") else ()


def frame_bits(attributes: Dataset) -> int:
    """The bits of one native frame (PS3.5 8.1.1); 0 when the image attributes are missing."""
    samples = _number(attributes, _SAMPLES, 1)
    bits = _number(attributes, _ROWS, 0) * _number(attributes, _COLUMNS, 0) * _number(attributes, _BITS_ALLOCATED, 0)
    # YBR_FULL_422 has one pair of chrominance samples for two pixels (PS3.3 C.7.6.3.1.2).
    return bits * 2 if text(attributes, _PHOTOMETRIC) == "YBR_FULL_422" and samples == 3 else bits * samples


def _native(pixels: PixelElement, attributes: Dataset) -> FrameTable:
    size, available = frame_bits(attributes), pixels.length * 8
    count = frame_count(attributes)
    if not size or size * count > available:
        raise Part10Error("the pixel data is shorter than its frames")
    word = pixel_word(pixels, attributes)

    def locate(number: int) -> Extent:
        first, end = (number - 1) * size, number * size
        start, stop = first // (8 * word) * word, min(-(-end // (8 * word)) * word, pixels.length)
        exact = first == start * 8 and end == stop * 8
        return Extent(
            ((pixels.offset + start, stop - start),), word=word, bits=None if exact else (first - start * 8, size)
        )

    return FrameTable(count, OCTETS, NATIVE, locate)


def pixel_word(pixels: PixelElement, attributes: Dataset) -> int:
    """How many bytes have to be turned round; in OW even 8-bit pixels are stored in 16-bit words (PS3.5 8.1.2)."""
    if not pixels.is_big_endian:
        return 1
    return max(_number(attributes, _BITS_ALLOCATED, 8) // 8, word_size(pixels.vr) if pixels.vr == "OW" else 1)


def read_fragments(source: BinaryIO, at: int) -> tuple[bytes, list[tuple[int, int]], int]:
    """(the Basic Offset Table, (offset of the item, length of its value) per fragment, where the element ends).

    Raises Part10Error for more fragments than are looked at, and for what does not end.
    """
    table: bytes | None = None
    found: list[tuple[int, int]] = []
    while True:
        source.seek(at)
        header = read_header(source.read(8), 0, EXPLICIT_LITTLE)
        if header is not None and header.tag == SEQUENCE_DELIMITER:
            return table or b"", found, at + 8
        if header is None or header.tag != ITEM or header.length == UNDEFINED:
            raise Part10Error("the encapsulated pixel data has no end")
        if table is None:
            table = source.read(header.length) if header.length <= 4 * MOST_FRAMES else b""
        elif len(found) == MOST_FRAMES:
            raise Part10Error(f"the pixel data has more than {MOST_FRAMES} fragments")
        else:
            found.append((at, header.length))
        at += 8 + header.length


def _grouped(
    source: BinaryIO, fragments: list[tuple[int, int]], count: int, offsets: Sequence[int]
) -> list[list[tuple[int, int]]]:
    """The fragments of each frame: by the offset table if it is sound, else one by one, else by the ends of images."""
    by_table = _by_offsets(fragments, offsets, count)
    if by_table:
        return by_table
    if len(fragments) == count:
        return [[fragment] for fragment in fragments]
    if count == 1 and fragments:
        return [fragments]
    by_marker = _by_end_of_image(source, fragments)
    if len(by_marker) != count:
        raise Part10Error("the boundaries of the frames cannot be told")
    return by_marker


def _by_offsets(
    fragments: list[tuple[int, int]], offsets: Sequence[int], count: int
) -> list[list[tuple[int, int]]] | None:
    """None unless there is one offset per frame and a fragment begins at each: some writers leave nonsense here."""
    if len(offsets) != count or not fragments:
        return None
    starts = {offset - fragments[0][0]: index for index, (offset, _) in enumerate(fragments)}
    indices = [starts.get(offset, -1) for offset in offsets]
    if indices[0] != 0 or sorted(set(indices)) != indices:
        return None
    return [fragments[first:end] for first, end in zip(indices, [*indices[1:], len(fragments)], strict=True)]


def _by_end_of_image(source: BinaryIO, fragments: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """A frame ends with the fragment whose last bytes hold the marker of JPEG, JPEG-LS and JPEG 2000."""
    frames: list[list[tuple[int, int]]] = [[]]
    for offset, length in fragments:
        if frames[-1] and _ends_image(source, *frames[-1][-1]):
            frames.append([])
        frames[-1].append((offset, length))
    return [frame for frame in frames if frame]


def _ends_image(source: BinaryIO, offset: int, length: int) -> bool:
    tail = min(length, 10)
    source.seek(offset + 8 + length - tail)
    return _END_OF_IMAGE in source.read(tail)
