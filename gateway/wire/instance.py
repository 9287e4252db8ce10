"""One DICOM file on disk: its attributes, frames and long values, each found without reading the rest (PS3.10 7)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from gateway.model.dataset import Dataset
from gateway.wire import valuefields
from gateway.wire.dicomjson import BROKEN, LONG_VALUE, element_at, sequence_items, to_json
from gateway.wire.elements import UNDEFINED, Encoding, Part10Error, read_header
from gateway.wire.filemeta import guessed_syntax
from gateway.wire.frames import (
    MOST_FRAMES,
    NATIVE,
    OCTETS,
    Extent,
    FrameTable,
    PixelElement,
    frame_count,
    frame_table,
    iter_chunks,
    offsets_of,
    pixel_word,
    read_fragments,
)

__all__ = ["BulkValue", "FrameTable", "Instance", "Part10Error", "iter_chunks", "metadata", "open_instance"]

_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_EXTENDED_OFFSETS = 0x7FE00001
_GROUPS = (b"\2\0", b"\x08\0", b"\0\x08")
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0\0\0\0\0"
_IN_MEMORY = 8 << 20
_PIECE = 1 << 20
MAX_INFLATED = 4 << 30
_BROKEN = (*BROKEN, zlib.error)


class BulkValue(NamedTuple):
    """One part of a bulk data value, and what its bytes are."""

    media_type: str
    transfer_syntax: str
    extent: Extent


class Instance:
    """One DICOM file, open; close it, or use it as a context. Everything here blocks: callers run it in threads.

    `source` is where the extents that it gives out are read: the file, or the inflated copy of a deflated one.
    `dataset` holds what stands before the pixel data; its long values were left in the file.
    """

    def __init__(
        self,
        source: BinaryIO,
        transfer_syntax: str,
        dataset: pydicom.Dataset,
        pixels: PixelElement | None,
        resources: ExitStack,
    ) -> None:
        self.source = source
        self.transfer_syntax = transfer_syntax
        self.dataset = dataset
        self.pixels = pixels
        self._resources = resources

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def metadata(self, bulk: Callable[[str], str], *, default_character_set: str = "") -> Dataset:
        """Its attributes in the DICOM JSON model; `bulk` gives the address of a long value by its path (`to_json`)."""
        written = to_json(self.dataset, default_character_set=default_character_set, bulk=bulk)
        if self.pixels is not None:
            written[self.pixels.tag] = {"vr": self.pixels.vr, "BulkDataURI": bulk(self.pixels.tag)}
        return written

    @cached_property
    def frames(self) -> FrameTable:
        """Where the frames are; none when there is no pixel data. Raises Part10Error when they cannot be told apart."""
        if self.pixels is None:
            return FrameTable(0, OCTETS, NATIVE, lambda number: Extent())
        return frame_table(self.source, self.pixels, self._attributes, self.transfer_syntax, self._extended_offsets())

    def bulk_value(self, path: str) -> list[BulkValue]:
        """The value at a path that `metadata` gave out: one part, or for encapsulated pixel data one part per frame.

        Raises LookupError when there is nothing of the kind.
        """
        if self.pixels is not None and path == self.pixels.tag:
            return self._pixel_values(self.pixels)
        holder, tag = self._holder(path)
        element = element_at(holder, tag)
        if isinstance(element, RawDataElement):
            return [BulkValue(OCTETS, NATIVE, _extent(element, f"{tag:08X}"))]
        if isinstance(element, DataElement) and isinstance(element.value, bytes):
            return [BulkValue(OCTETS, NATIVE, Extent(data=element.value))]
        raise LookupError(path)

    def is_complete(self) -> bool:
        """Whether the file is as long as its elements say; one that is still being written is not."""
        size = self.source.seek(0, 2)
        ends = [
            element.value_tell + element.length
            for element in self.dataset.values()
            if isinstance(element, RawDataElement) and element.length != UNDEFINED
        ]
        if self.pixels is None:
            return not ends or self._ends_well(max(ends), size)
        if not self.pixels.is_encapsulated:
            return self._ends_well(self.pixels.offset + self.pixels.length, size)
        self.source.seek(-8, 2)
        if self.source.read(8) == _END_OF_SEQUENCE:
            return True
        try:
            return self._ends_well(read_fragments(self.source, self.pixels.offset)[2], size)
        except Part10Error:
            return False

    def _ends_well(self, at: int, size: int) -> bool:
        """Whether whole elements, and perhaps zeros, follow up to the end of the file."""
        encoding = Encoding(
            explicit=not self.dataset.original_encoding[0], little=bool(self.dataset.original_encoding[1])
        )
        while at < size:
            self.source.seek(at)
            first = self.source.read(12)
            header = read_header(first, 0, encoding)
            if header is None or not header.tag:
                return not first.strip(b"\0")
            if header.length == UNDEFINED:
                return True
            at += header.size + header.length
        return at == size

    @cached_property
    def _attributes(self) -> Dataset:
        return to_json(self.dataset, bulk=lambda path: path)

    def _extended_offsets(self) -> tuple[int, ...]:
        element, count = element_at(self.dataset, _EXTENDED_OFFSETS), frame_count(self._attributes)
        if not isinstance(element, RawDataElement) or element.length != 8 * count or count > MOST_FRAMES:
            return ()
        return offsets_of(b"".join(iter_chunks(self.source, _extent(element, f"{_EXTENDED_OFFSETS:08X}"))), count, "Q")

    def _pixel_values(self, pixels: PixelElement) -> list[BulkValue]:
        if pixels.is_encapsulated:
            table = self.frames
            return [
                BulkValue(table.media_type, table.transfer_syntax, table.locate(number))
                for number in range(1, table.count + 1)
            ]
        word = pixel_word(pixels, self._attributes)
        return [BulkValue(OCTETS, NATIVE, Extent(((pixels.offset, pixels.length),), word=word))]

    def _holder(self, path: str) -> tuple[pydicom.Dataset, int]:
        """The data set or item that holds the last tag of a dotted path. Raises LookupError."""
        steps = path.split(".")
        holder = self.dataset
        try:
            for tag, number in zip(steps[:-1:2], steps[1::2], strict=True):
                holder = sequence_items(holder, int(tag, 16))[int(number) - 1]
            return holder, int(steps[-1], 16)
        except _BROKEN:
            raise LookupError(path) from None


def _extent(element: RawDataElement, tag: str) -> Extent:
    vr = element.VR if element.VR in valuefields.VRS else valuefields.dictionary_vr(tag)
    word = 1 if element.is_little_endian else valuefields.word_size(str(vr))
    if element.value is None:
        return Extent(((element.value_tell, element.length),), word=word)
    return Extent(data=valuefields.turned(element.value, word))


def metadata(file: Path | BinaryIO, bulk: Callable[[str], str], *, default_character_set: str = "") -> Dataset:
    """The attributes of one DICOM file, its pixel data and other long values as BulkDataURI. Raises Part10Error."""
    with open_instance(file) as instance:
        return instance.metadata(bulk, default_character_set=default_character_set)


def open_instance(file: Path | BinaryIO) -> Instance:
    """Reads a DICOM file up to its pixel data. A file object stays the caller's and has to be seekable.

    Raises Part10Error for what is no DICOM file or a broken one, OSError where the file itself cannot be opened or read.
    """
    with ExitStack() as resources:
        stream = file if not isinstance(file, Path) else resources.enter_context(file.open("rb"))
        try:
            syntax, start = _file_meta(stream)
            if syntax == DeflatedExplicitVRLittleEndian:
                stream, start = _inflated(stream, start, resources), 0
            stream.seek(start)
            dataset, pixels = _head(stream, syntax)
        except Part10Error:
            raise
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno:  # the disk's or the share's own; pydicom's have none
                raise
            raise Part10Error(f"the data set cannot be read ({type(error).__name__})") from None
        return Instance(stream, syntax, dataset, pixels, resources.pop_all())
    raise AssertionError("unreachable: the context passes every exception on")


def _file_meta(stream: BinaryIO) -> tuple[str, int]:
    """(Transfer Syntax UID, where the data set begins); a file without File Meta Information is guessed."""
    stream.seek(0)
    first = stream.read(132)
    start = 132 if first[128:] == b"DICM" else 0
    if start == 0 and first[:2] not in _GROUPS:
        raise Part10Error("not a DICOM file")
    stream.seek(start)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    end = stream.tell()
    syntax = str(meta.get("TransferSyntaxUID") or "")
    if syntax == DeflatedExplicitVRLittleEndian:
        # Deflated bytes can look like one more element of group 0002: here only the group length tells.
        end = start + 12 + int(meta.get("FileMetaInformationGroupLength") or end - start - 12)
    stream.seek(end)
    return syntax or guessed_syntax(stream.read(6)), end


def _inflated(stream: BinaryIO, start: int, resources: ExitStack) -> BinaryIO:
    """The data set of a deflated file (PS3.5 A.5) in a temporary file, in memory while it is small."""
    copy = cast(BinaryIO, resources.enter_context(SpooledTemporaryFile(_IN_MEMORY)))  # noqa: SIM115
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    stream.seek(start)
    piece = b""
    while not inflate.eof:
        packed = inflate.unconsumed_tail
        if not packed and len(piece) < _PIECE:  # a full piece may leave output behind that needs no more input
            packed = stream.read(64 << 10)
            if not packed:
                raise Part10Error("the deflated data set is truncated")
        piece = inflate.decompress(packed, _PIECE)
        copy.write(piece)
        if copy.tell() > MAX_INFLATED:
            raise Part10Error("the deflated data set is too long")
    return copy


def _head(stream: BinaryIO, syntax: str) -> tuple[pydicom.Dataset, PixelElement | None]:
    """The elements before the pixel data, values above LONG_VALUE left where they are, and where the pixel data is."""
    big_endian = syntax == ExplicitVRBigEndian
    found: list[PixelElement] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found[:] = [_pixel_element(tag, vr, stream.tell(), length, big_endian)]
        return tag in _PIXEL_TAGS

    dataset = read_dataset(
        stream, syntax == ImplicitVRLittleEndian, not big_endian, stop_when=at_pixels, defer_size=LONG_VALUE
    )
    for element in _left_out(dataset):
        stream.seek(element.value_tell)
        dataset[element.tag] = element._replace(value=stream.read(element.length))
    return dataset, found[0] if found else None


def _pixel_element(tag: int, vr: str | None, offset: int, length: int, big_endian: bool) -> PixelElement:
    name = f"{tag:08X}"
    if vr not in valuefields.VRS:
        vr = "OB" if length == UNDEFINED else valuefields.dictionary_vr(name)
    return PixelElement(name, str(vr), offset, length, big_endian)


def _left_out(dataset: pydicom.Dataset) -> Iterator[RawDataElement]:
    """What was left in the file for its length but has to be in the metadata: long sequences, above all."""
    for element in list(dataset.values()):
        if isinstance(element, RawDataElement) and element.value is None and element.length:
            vr = element.VR if element.VR in valuefields.VRS and element.VR != "UN" else None
            if (vr or valuefields.dictionary_vr(f"{int(element.tag):08X}")) not in valuefields.BULK_VRS:
                yield element
