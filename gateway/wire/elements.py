"""Finding the data elements in the bytes of a data set without holding them or decoding their values (PS3.5 7)."""

from __future__ import annotations

import re
from collections.abc import Container
from struct import Struct
from typing import NamedTuple

from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_DELIMITER = 0xFFFEE00D
SEQUENCE_DELIMITER = 0xFFFEE0DD

MAX_DEPTH = 64
LONG_VRS = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
_SHORT_VRS = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_16)
_LITTLE, _BIG = Struct("<HHL"), Struct(">HHL")
_LITTLE_EXPLICIT = Struct("<HH2sHL")
_LITTLE_LONG, _BIG_LONG = Struct("<L"), Struct(">L")
_LITTLE_SHORT, _BIG_SHORT = Struct("<H"), Struct(">H")
_UNPLAIN = re.compile(rb"[^ -}\0]|\\|\0.")
_BIG_ITEM_GROUP = b"\xff\xfe"


class Part10Error(ValueError):
    """The bytes are no DICOM file, or not all of it. The text names tags and lengths, never a value."""


class Part10TooLarge(Part10Error):
    """There is more than is taken here."""


class Encoding(NamedTuple):
    """How the elements of a data set are encoded."""

    explicit: bool
    little: bool


EXPLICIT_LITTLE = Encoding(explicit=True, little=True)
IMPLICIT_LITTLE = Encoding(explicit=False, little=True)
EXPLICIT_BIG = Encoding(explicit=True, little=False)


class Header(NamedTuple):
    """A data element or item up to its value. `vr` is b'' where the encoding has none; `length` may be UNDEFINED."""

    tag: int
    vr: bytes
    length: int
    size: int


def is_vr(code: bytes) -> bool:
    """Whether two bytes can be a VR: two capitals, which an implicit length has only from 16 kB on."""
    return len(code) == 2 and 0x40 < code[0] < 0x5B and 0x40 < code[1] < 0x5B


def read_header(data: bytes, at: int, encoding: Encoding) -> Header | None:
    """The header at `at`; None when it does not end within `data`.

    An element of an explicit data set without a plausible VR is taken for implicit, as some writers slip into it.
    """
    if at + 8 > len(data):
        return None
    little = encoding.little
    group, element, length = (_LITTLE if little else _BIG).unpack_from(data, at)
    tag = group << 16 | element
    if not encoding.explicit or group == 0xFFFE:
        return Header(tag, b"", length, 8)
    vr = data[at + 4 : at + 6]
    if vr in LONG_VRS:
        if at + 12 > len(data):
            return None
        return Header(tag, vr, (_LITTLE_LONG if little else _BIG_LONG).unpack_from(data, at + 8)[0], 12)
    if vr not in _SHORT_VRS and not is_vr(vr):
        return Header(tag, b"", length, 8)
    return Header(tag, vr, (_LITTLE_SHORT if little else _BIG_SHORT).unpack_from(data, at + 6)[0], 8)


def plain_values(data: bytes, encoding: Encoding, wanted: Container[int]) -> dict[int, str] | None:
    """The wanted UI and LO values of a run of top-level elements, without pydicom, which takes ten times as long.

    None where a value is more than one plain word in the letters that all character sets share, or where something of
    undefined length stands among the elements: then only a full decoding tells.
    """
    found: dict[int, str] = {}
    at, size = 0, len(data)
    while at < size:
        if encoding == EXPLICIT_LITTLE:
            at = _hasten(data, at, UNDEFINED, wanted)
            if at >= size:
                break
        header = read_header(data, at, encoding)
        if header is None or header.length == UNDEFINED or not header.tag:
            return None
        start = at + header.size
        at = start + header.length
        if header.tag in wanted:
            text = _plain(data[start:at], header.vr) if bool(header.vr) == encoding.explicit else None
            if text is None:
                return None
            found[header.tag] = text
    return found if at == size else None


def picked(data: bytes, encoding: Encoding, tags: Container[int], most: int) -> bytes:
    """The top-level elements of these tags out of a run of whole ones, and the first, which shows how all are encoded.

    Nothing else is looked into, however much it holds. Raises Part10Error where no element can be, and for one to be picked
    that has more than `most` bytes.
    """
    found: list[bytes] = []
    at, size = 0, len(data)
    while at < size:
        if encoding == EXPLICIT_LITTLE and at:
            at = _hasten(data, at, UNDEFINED, tags)
        header = read_header(data, at, encoding)
        if header is None or not header.tag:
            break
        end = (
            ElementWalker(encoding).end_of(data, at) if header.length == UNDEFINED else at + header.size + header.length
        )
        if header.tag in tags:
            if end - at > most:
                raise Part10Error(f"({header.tag >> 16:04X},{header.tag & 0xFFFF:04X}) is too long")
            found.append(data[at:end])
        elif not at and end <= most:
            found.append(data[:end])
        at = end
    return b"".join(found)


def _hasten(data: bytes, at: int, until: int, stops: Container[int] = ()) -> int:
    """Steps over top-level elements of Explicit VR Little Endian, up to the first that takes a second look: one with a tag
    of `until` or more or among `stops`, a delimiter, zeros, an unknown VR, an undefined length, a header not whole."""
    last = len(data) - 12
    unpack, is_short, is_long = _LITTLE_EXPLICIT.unpack_from, _SHORT_VRS, LONG_VRS
    while at <= last:
        group, element, vr, length, long_length = unpack(data, at)
        tag = group << 16 | element
        if tag >= until or not tag or group == 0xFFFE or tag in stops:
            return at
        if vr in is_short:
            at += 8 + length
        elif vr in is_long and long_length != UNDEFINED:
            at += 12 + long_length
        else:
            return at
    return at


def _plain(value: bytes, vr: bytes) -> str | None:
    if vr not in (b"UI", b"LO", b"") or _UNPLAIN.search(value):
        return None
    text = value.rstrip(b"\0 ").decode("ascii")
    return text if len(value) - len(text) < 2 and text[:1] != " " else None


def encoding_found(data: bytes, at: int, expected: Encoding) -> Encoding:
    """The encoding of a data set that starts at `at`, judged by its first VR; `expected` where bytes lack."""
    code = data[at + 4 : at + 6]
    return expected if len(code) < 2 else Encoding(is_vr(code), expected.little)


def item_encoding(data: bytes, at: int, encoding: Encoding) -> Encoding:
    """The encoding of the item at `at`: UN holds little endian even in a big endian data set (PS3.5 6.2.2)."""
    big = data[at : at + 2] == _BIG_ITEM_GROUP
    return Encoding(encoding.explicit, not big)


class _Container:
    """Something of undefined length that is still open: a sequence, or (`is_item`) an item in one."""

    __slots__ = ("encoding", "is_item", "is_judged")

    def __init__(self, encoding: Encoding, *, is_item: bool) -> None:
        self.encoding = encoding
        self.is_item = is_item
        self.is_judged = not encoding.explicit


class ElementWalker:
    """Follows the elements of one data set through chunks: O(1) for every value, however long.

    Values and containers of defined length are stepped over whole; only undefined lengths are entered, to find their
    delimiters (PS3.5 7.5). It stops in front of the first top-level element whose tag is `until` or more; set a higher
    `until` to go on. One that is `strict` wants top-level elements in order, each once (PS3.5 7.1), and nothing but zeros behind
    zeros: readers differ in which of two they believe.
    """

    def __init__(self, encoding: Encoding, until: int | None = None, *, strict: bool = False) -> None:
        self.encoding = encoding
        self.until = until
        self.strict = strict
        self._last = -1
        self.stopped = False
        self._skip = 0
        self._open: list[_Container] = []
        self._padding = False

    def feed(self, data: bytes) -> int:
        """How many bytes of `data` were followed. The rest, a header's beginning or what comes after the stop, is to be
        fed again with more behind it. Raises Part10Error where no element can be.
        """
        size, at = len(data), self._skip
        self.stopped = False
        while at < size and not self._padding:
            if not self._open and not self.strict and self.encoding == EXPLICIT_LITTLE:
                at = _hasten(data, at, UNDEFINED if self.until is None else self.until)
                if at >= size:
                    break
            length = self._step(data, at)
            if length is None:
                self._skip = 0
                return at
            at += length
        if self._padding:
            if self.strict and data[min(at, size) :].strip(b"\0"):
                raise Part10Error("something stands behind the padding")
            at = size
        self._skip = max(at - size, 0)
        return min(at, size)

    def finish(self, rest: bytes) -> None:
        """Says that the data set ends here, `rest` not being followed. Raises Part10Error when that is mid-element.

        An end exactly between two top-level elements looks like a complete data set: nothing announces its length.
        """
        if self._skip or self._open:
            raise Part10Error("the data set ends in the middle of an element")
        # Files are padded with zeros behind the last element by some writers; no element begins with two of them.
        if rest.strip(b"\0") or len(rest) == 1:
            raise Part10Error("the data set ends in the middle of an element header")

    def end_of(self, data: bytes, at: int) -> int:
        """Where the top-level element at `at` ends. Raises Part10Error where that cannot be told from `data`."""
        while (length := self._step(data, at)) is not None:
            at += length
            if not self._open:
                return at
        raise Part10Error("the data set ends in the middle of an element")

    def _step(self, data: bytes, at: int) -> int | None:
        """How far it is to the next header; None when this one is incomplete or the walk stops at it."""
        if not self._open:
            return self._top(data, at)
        container = self._open[-1]
        return self._nested(data, at, container) if container.is_item else self._item(data, at, container)

    def _top(self, data: bytes, at: int) -> int | None:
        header = read_header(data, at, self.encoding)
        if header is None:
            return None
        if header.tag == 0 and not any(data[at : at + 8]):
            self._padding = True
            return 8
        if self.until is not None and header.tag >= self.until:
            self.stopped = True
            return None
        if self.strict and header.tag <= self._last:
            raise Part10Error("elements are out of order, or stand twice")
        self._last = header.tag
        return self._value(header, self.encoding)

    def _nested(self, data: bytes, at: int, item: _Container) -> int | None:
        header = read_header(data, at, item.encoding)
        if header is None:
            return None
        if header.tag == ITEM_DELIMITER:
            self._open.pop()
            return 8
        if not item.is_judged:
            item.encoding = encoding_found(data, at, item.encoding)
            item.is_judged = True
            header = read_header(data, at, item.encoding)
            if header is None:
                return None
        return self._value(header, item.encoding)

    def _item(self, data: bytes, at: int, sequence: _Container) -> int | None:
        encoding = item_encoding(data, at, sequence.encoding)
        header = read_header(data, at, encoding)
        if header is None:
            return None
        if header.tag == SEQUENCE_DELIMITER:
            self._open.pop()
            return 8
        if header.tag != ITEM:
            raise Part10Error(f"({header.tag >> 16:04X},{header.tag & 0xFFFF:04X}) where an item must be")
        if header.length != UNDEFINED:
            return 8 + header.length
        self._enter(_Container(encoding, is_item=True))
        return 8

    def _value(self, header: Header, encoding: Encoding) -> int:
        if header.tag >> 16 == 0xFFFE:
            raise Part10Error("a delimiter outside a sequence")
        if header.length != UNDEFINED:
            return header.size + header.length
        self._enter(_Container(encoding, is_item=False))
        return header.size

    def _enter(self, container: _Container) -> None:
        if len(self._open) >= 2 * MAX_DEPTH:
            raise Part10Error("sequences are nested too deeply")
        self._open.append(container)
