"""What a compressed frame says of its own size, before anything of it is decoded: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

from struct import error, unpack_from
from typing import NamedTuple

BEGIN_OF_JPEG_2000 = b"\xff\x4f\xff\x51"
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_START_OF_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


class Size(NamedTuple):
    """`rows` are 0 where they follow behind the samples."""

    rows: int
    columns: int
    samples: int


def size_of(data: bytes) -> Size | None:
    """None where the frame does not say: it is in another syntax, or broken."""
    try:
        return _of_jpeg(data) if data[:2] == b"\xff\xd8" else _of_jpeg_2000(data)
    except (error, IndexError):
        return None


def _of_jpeg(data: bytes) -> Size | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            return Size(*unpack_from(">HHB", data, at + 5))
        if marker == _START_OF_SCAN:
            return None
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int(unpack_from(">H", data, at + 2)[0])
    return None


def _of_jpeg_2000(data: bytes) -> Size | None:
    """Within a file or alone; its area begins at an offset of its own (ISO/IEC 15444-1 A.5.1)."""
    at = data.find(BEGIN_OF_JPEG_2000)
    if at < 0:
        return None
    right, bottom, left, top = unpack_from(">4L", data, at + 8)
    return Size(bottom - top, right - left, *unpack_from(">H", data, at + 40))
