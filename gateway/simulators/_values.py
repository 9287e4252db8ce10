"""The long values of a DICOM file, read from where they lie on disk: bulk data by path, pixel data by frame."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from gateway.simulators._directory import UNREADABLE, Instance, chunks_of, element_vr, raw_element, read_dataset

PIXEL_DATA = Tag(0x7FE00010)
FRAME_TYPES = {
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
}
SWAPPED = {"OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}


@dataclass(frozen=True)
class Bytes:
    """A value: either in memory, or a span of a file."""

    size: int
    held: bytes | None = None
    path: Path | None = None
    start: int = 0

    def chunks(self) -> Iterable[bytes]:
        if self.held is not None:
            return (self.held,)
        return chunks_of(self.path, self.start, self.size) if self.path else ()

    def part(self, start: int, size: int) -> Bytes:
        if self.held is not None:
            return Bytes(size, held=self.held[start : start + size])
        return Bytes(size, path=self.path, start=self.start + start)


def whole_file(instance: Instance) -> Bytes:
    return Bytes(instance.size, path=instance.path)


def frame_media_type(transfer_syntax: str) -> str:
    """The media type of a frame as stored (PS3.18 Table 8.7.3-5); JPEG is what the other tables leave over."""
    if not UID(transfer_syntax).is_encapsulated:
        return "application/octet-stream"
    return FRAME_TYPES.get(transfer_syntax, "image/jpeg")


def declared_syntax(transfer_syntax: str) -> str:
    """The syntax that uncompressed values are sent in: they have no VRs, and big endian ones have been swapped."""
    return transfer_syntax if UID(transfer_syntax).is_encapsulated else "1.2.840.10008.1.2.1"


def frames(instance: Instance, numbers: Iterable[int]) -> list[Bytes] | None:
    """The frames (1-based), or None when the instance lacks one of them or has no pixel data."""
    dataset, count = read_dataset(instance.path), frame_count(instance)
    if PIXEL_DATA not in dataset or "Rows" not in dataset or not all(1 <= number <= count for number in numbers):
        return None
    if UID(instance.transfer_syntax).is_encapsulated:
        return [_encapsulated(instance, dataset, number, count) for number in numbers]
    value = _value(instance, dataset, PIXEL_DATA)
    return [_native(dataset, value, number, count) for number in numbers]


def frame_count(instance: Instance) -> int:
    return int(instance.text("00280008") or 1)


def _encapsulated(instance: Instance, dataset: Dataset, number: int, count: int) -> Bytes:
    start = _offset(raw_element(dataset, PIXEL_DATA))
    with instance.path.open("rb") as file:
        file.seek(start)
        frame = get_frame(file, number - 1, number_of_frames=count)
    return Bytes(len(frame), held=frame)


def _native(dataset: Dataset, value: Bytes, number: int, count: int) -> Bytes:
    bits = int(get_expected_length(dataset, unit="pixels")) * int(dataset.BitsAllocated) // count
    if dataset.BitsAllocated == 1 and bits % 8:
        return _unaligned(value, (number - 1) * bits, bits)
    size = int(get_expected_length(dataset)) // count
    return value.part((number - 1) * size, size)


def _unaligned(value: Bytes, first_bit: int, bits: int) -> Bytes:
    """A frame of a bitmap that does not begin on a byte (PS3.5 8.1.1: bits are packed across frames)."""
    start, shift = divmod(first_bit, 8)
    packed = b"".join(value.part(start, (shift + bits + 7) // 8).chunks())
    number = int.from_bytes(packed, "little") >> shift & (1 << bits) - 1
    return Bytes((bits + 7) // 8, held=number.to_bytes((bits + 7) // 8, "little"))


def bulk_value(instance: Instance, path: str) -> Bytes | None:
    """The value at a path as `_directory.to_json` writes it; None when there is none."""
    *above, last = path.split("/")
    try:
        holder = dataset = read_dataset(instance.path)
        for sequence, number in zip(above[::2], above[1::2], strict=True):
            holder = holder[Tag(int(sequence, 16))].value[int(number)]
        tag = Tag(int(last, 16))
        return _value(instance, dataset, tag) if holder is dataset else _in_memory(holder, tag, instance)
    except (IndexError, *UNREADABLE):
        return None


def _value(instance: Instance, dataset: Dataset, tag: BaseTag) -> Bytes:
    """A value of the top level, left on disk unless its bytes there are not those to send."""
    raw = raw_element(dataset, tag)
    rewritten = instance.transfer_syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    if isinstance(raw, RawDataElement) and not rewritten and raw.length != 0xFFFFFFFF:
        return Bytes(raw.length, path=instance.path, start=raw.value_tell)
    return _in_memory(dataset, tag, instance)


def _in_memory(holder: Dataset, tag: BaseTag, instance: Instance) -> Bytes:
    element = holder[tag]
    value = bytes(element.value or b"")
    if instance.transfer_syntax == ExplicitVRBigEndian:
        value = _little_endian(value, element_vr(element, tag))
    return Bytes(len(value), held=value)


def _little_endian(value: bytes, vr: str) -> bytes:
    if vr not in SWAPPED:
        return value
    words = array(SWAPPED[vr], value)
    words.byteswap()
    return words.tobytes()


def _offset(raw: DataElement | RawDataElement) -> int:
    """Where the value begins in the file."""
    return raw.value_tell if isinstance(raw, RawDataElement) else int(raw.file_tell or 0)
