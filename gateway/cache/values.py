"""How a value lies in the cache: one byte that says how it is packed, a checksum, and the bytes."""

from __future__ import annotations

import struct
import zlib

import zstandard

COMPRESS_ABOVE = 512
MAX_VALUE = 64 * 1024 * 1024
MAX_PACKED = 8 * 1024 * 1024

_RAW, _ZSTD = 0x01, 0x02
_HEADER = struct.Struct(">BI")


def pack(value: bytes) -> bytes | None:
    """The value as it is stored; None when it is too large to be worth a place."""
    if len(value) > MAX_VALUE:
        return None
    kind, body = _RAW, value
    if len(value) > COMPRESS_ABOVE:
        compressed = zstandard.ZstdCompressor(level=3).compress(value)
        if len(compressed) < len(value):
            kind, body = _ZSTD, compressed
    return _HEADER.pack(kind, zlib.crc32(body)) + body if len(body) <= MAX_PACKED else None


def unpack(stored: bytes) -> bytes | None:
    """The value; None for anything that `pack` did not write, so that a foreign or damaged entry is a miss."""
    if len(stored) < _HEADER.size:
        return None
    kind, checksum = _HEADER.unpack_from(stored)
    body = stored[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        return None
    if kind == _RAW:
        return body
    return _decompress(body) if kind == _ZSTD else None


def _decompress(body: bytes) -> bytes | None:
    try:
        # The declared size is checked first: the decompressor would allocate it unseen.
        if not 0 <= zstandard.frame_content_size(body) <= MAX_VALUE:
            return None
        return zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError:
        return None
