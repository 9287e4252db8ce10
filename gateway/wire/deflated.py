"""What a received chunk holds of a data set: the chunk itself, or what it inflates to (PS3.5 A.5)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from gateway.wire.elements import Part10Error, Part10TooLarge

_INFLATED = 256 << 10


class Decoder(Protocol):
    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """The data set bytes in a chunk as received, in pieces; at least one, which may be empty."""

    def finish(self) -> None:
        """Raises Part10Error when the bytes ended too early."""


class Plain:
    """The data set as it is."""

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def finish(self) -> None:
        """Plain bytes have no end of their own; the walker knows where elements end."""


class Deflated:
    """PS3.5 A.5: the data set as a raw deflate stream. Pieces are bounded however well a chunk is compressed; `most` is what all
    of them may have, if that is given."""

    def __init__(self, most: int | None = None) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._most, self._size = most, 0

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        yield (piece := self._piece(chunk))
        # A full piece may have left output behind even when all of the input was taken.
        while not self._inflate.eof and (self._inflate.unconsumed_tail or len(piece) == _INFLATED):
            yield (piece := self._piece(self._inflate.unconsumed_tail))

    def _piece(self, data: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(data, _INFLATED)
        except zlib.error:
            raise Part10Error("the deflated data set is damaged") from None
        self._size += len(piece)
        if self._most is not None and self._size > self._most:
            raise Part10TooLarge(f"the data set inflates to more than {self._most} bytes")
        return piece

    def finish(self) -> None:
        if not self._inflate.eof:
            raise Part10Error("the deflated data set is truncated")
