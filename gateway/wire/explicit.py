"""The bytes of a data set turned into Explicit VR Little Endian, values kept but for their byte order (PS3.5 7, A)."""

from __future__ import annotations

from array import array
from functools import lru_cache
from struct import pack, pack_into

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from gateway.wire.elements import (
    EXPLICIT_LITTLE,
    ITEM,
    ITEM_DELIMITER,
    LONG_VRS,
    MAX_DEPTH,
    SEQUENCE_DELIMITER,
    UNDEFINED,
    Encoding,
    Header,
    Part10Error,
    encoding_found,
    item_encoding,
    read_header,
)

_ENCAPSULABLE = 0x7FE00010
_BITS_ALLOCATED, _PIXEL_REPRESENTATION, _LUT_DESCRIPTOR = 0x00280100, 0x00280103, 0x00283002
_OPAQUE_VRS = (b"OB", b"OW")
_WORD = {b"US": 2, b"SS": 2, b"OW": 2, b"AT": 2, b"UL": 4, b"SL": 4, b"FL": 4, b"OF": 4, b"OL": 4}
_WORD |= {b"FD": 8, b"OD": 8, b"OV": 8, b"SV": 8, b"UV": 8}
_ARRAY_TYPE = {2: "H", 4: "I", 8: "Q"}


class ByteSwap:
    """Turns round the bytes of every word of a value that comes in chunks; an incomplete last word stays as it is."""

    def __init__(self, word: int) -> None:
        self._word = word
        self._carry = b""

    def feed(self, data: bytes) -> bytes:
        data = self._carry + data if self._carry else data
        whole = len(data) - len(data) % self._word
        self._carry = data[whole:]
        words = array(_ARRAY_TYPE[self._word], data[:whole])
        words.byteswap()
        return words.tobytes()

    def finish(self) -> bytes:
        return self._carry


def swapped(value: bytes, word: int) -> bytes:
    """A whole value with the bytes of every word turned round."""
    swap = ByteSwap(word)
    return swap.feed(value) + swap.finish()


@lru_cache(maxsize=8192)
def _dictionary(tag: int, creator: str) -> str:
    """The VR of PS3.6, or of a private dictionary pydicom has; UN where nobody knows. May be ambiguous: 'US or SS'."""
    try:
        return str(private_dictionary_VR(tag, creator) if tag & 0x10000 else dictionary_VR(tag))
    except KeyError:
        return "UN"


class _Level:
    """What the elements of one data set or item tell about its others."""

    __slots__ = ("bits_allocated", "creators", "lut_entries", "pixel_representation", "signed")

    def __init__(self) -> None:
        self.bits_allocated = 0
        self.pixel_representation: int | None = None
        self.lut_entries = 0
        self.creators: dict[int, str] = {}
        self.signed: list[int] = []
        """Where VRs stand in the output that are US or SS: Pixel Representation, later or a level up, decides."""

    def note(self, tag: int, value: bytes, *, little: bool) -> None:
        if tag in (_BITS_ALLOCATED, _PIXEL_REPRESENTATION, _LUT_DESCRIPTOR) and len(value) >= 2:
            number = int.from_bytes(value[:2], "little" if little else "big")
            if tag == _BITS_ALLOCATED:
                self.bits_allocated = number
            elif tag == _PIXEL_REPRESENTATION:
                self.pixel_representation = number
            else:
                self.lut_entries = number
        elif tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF:
            self.creators[tag] = value.decode("latin-1").strip(" \0")

    def dictionary_vr(self, tag: int) -> str:
        if not tag & 0x10000:
            return _dictionary(tag, "")
        if 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"
        return _dictionary(tag, self.creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF, ""))

    def word(self, tag: int, vr: bytes) -> int:
        """How many bytes are turned round together, 0 for none. Pixel cells above 16 bits are one word each."""
        if vr == b"OW" and tag == _ENCAPSULABLE and self.bits_allocated in (32, 64):
            return self.bits_allocated // 8
        return _WORD.get(vr, 0)


class Conversion:
    """Turns one data set into Explicit VR Little Endian: first its head, then its pixel data, then what is behind.

    VRs come from PS3.6, those of private elements from pydicom's private dictionaries, else UN. Ambiguous ones are
    decided as PS3.5 A.1 has it for Implicit VR (OW) and by Pixel Representation (US or SS). Text keeps its bytes. Group
    lengths, retired and no longer true, and zeros behind the last element are left out; a value too long for its VR
    becomes UN (PS3.5 6.2.2).
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._root = _Level()
        self._data = b""
        self._out = bytearray()

    def convert(self, data: bytes) -> bytes:
        """A run of whole top-level elements. Raises Part10Error where the bytes are no elements."""
        if self._encoding == EXPLICIT_LITTLE:
            return data
        self._data, self._out = data, bytearray()
        self._elements(0, len(data), self._encoding, self._root, 0)
        self._settle(self._root, None)
        converted = bytes(self._out)
        self._data, self._out = b"", bytearray()
        return converted

    def pixel_data(self, first: bytes) -> tuple[bytes, bytes, ByteSwap | None]:
        """(the new header, the value's first bytes as they were, what swaps the value) of the element in `first`."""
        header = read_header(first, 0, self._encoding)
        if header is None:
            raise Part10Error("the pixel data has no header")
        vr = self._vr(header, self._root)
        if header.length == UNDEFINED and not self._encoding.little:
            raise Part10Error("encapsulated pixel data in a big endian data set")
        vr = b"OB" if header.length == UNDEFINED and header.tag == _ENCAPSULABLE else vr
        word = 0 if self._encoding.little else self._root.word(header.tag, vr)
        return _header(header.tag, vr, header.length), first[header.size :], ByteSwap(word) if word else None

    def _elements(self, at: int, end: int | None, encoding: Encoding, level: _Level, depth: int) -> int:
        """Writes the elements from `at` to `end`, or to the item delimiter; gives the place behind."""
        if depth > MAX_DEPTH:
            raise Part10Error("sequences are nested too deeply")
        while end is None or at < end:
            if depth == 0 and not any(self._data[at : at + 8]):
                return len(self._data)
            header = read_header(self._data, at, encoding)
            if header is None:
                raise Part10Error("an element header is cut off")
            if end is None and header.tag == ITEM_DELIMITER:
                return at + 8
            at = self._element(header, at + header.size, encoding, level, depth)
        if at != end:
            raise Part10Error("an element is longer than what holds it")
        return at

    def _element(self, header: Header, at: int, encoding: Encoding, level: _Level, depth: int) -> int:
        vr = self._vr(header, level)
        if header.length == UNDEFINED:
            if vr in _OPAQUE_VRS:
                return self._fragments(header, at, encoding)
            return self._sequence(header, at, None, encoding, level, depth)
        end = at + header.length
        if end > len(self._data):
            raise Part10Error(f"({header.tag >> 16:04X},{header.tag & 0xFFFF:04X}) is cut off")
        if vr == b"SQ":
            return self._sequence_or_unknown(header, at, encoding, level, depth)
        if header.tag & 0xFFFF:
            self._plain(header.tag, vr, self._data[at:end], encoding, level, is_ambiguous=not header.vr)
        return end

    def _vr(self, header: Header, level: _Level) -> bytes:
        if header.vr:
            return header.vr
        vr = level.dictionary_vr(header.tag)
        if vr == "US or OW" and level.lut_entries == 1:
            return b"US"
        if vr.endswith("OW"):
            return b"OW"
        return vr[:2].encode() if len(vr) == 2 or " or " in vr else b"UN"

    def _plain(
        self, tag: int, vr: bytes, value: bytes, encoding: Encoding, level: _Level, *, is_ambiguous: bool
    ) -> None:
        level.note(tag, value, little=encoding.little)
        if is_ambiguous and vr == b"US" and level.dictionary_vr(tag) == "US or SS":
            level.signed.append(len(self._out) + 4)
        word = 0 if encoding.little else level.word(tag, vr)
        if len(value) > 0xFFFF and vr not in LONG_VRS:
            vr = b"UN"
        self._out += _header(tag, vr, len(value))
        self._out += swapped(value, word) if word else value

    def _sequence_or_unknown(self, header: Header, at: int, encoding: Encoding, level: _Level, depth: int) -> int:
        """A sequence of defined length; where its value is none, an implicit one keeps its bytes as UN."""
        start, end = len(self._out), at + header.length
        try:
            return self._sequence(header, at, end, encoding, level, depth)
        except Part10Error:
            if encoding.explicit:
                raise
        del self._out[start:]
        level.signed = [place for place in level.signed if place < start]
        self._out += _header(header.tag, b"UN", header.length) + self._data[at:end]
        return end

    def _sequence(self, header: Header, at: int, end: int | None, encoding: Encoding, level: _Level, depth: int) -> int:
        self._out += _header(header.tag, b"SQ", UNDEFINED)
        start = len(self._out)
        while end is None or at < end:
            found = item_encoding(self._data, at, encoding)
            item = read_header(self._data, at, found)
            at += 8
            if item is not None and item.tag == SEQUENCE_DELIMITER and end is None:
                self._out += pack("<HHL", 0xFFFE, 0xE0DD, 0)
                return at
            if item is None or item.tag != ITEM:
                raise Part10Error("a sequence holds something else than items")
            at = self._item(item.length, at, found, level, depth)
        if at != end:
            raise Part10Error("an item is longer than its sequence")
        pack_into("<L", self._out, start - 4, len(self._out) - start)
        return at

    def _item(self, length: int, at: int, encoding: Encoding, level: _Level, depth: int) -> int:
        if encoding.explicit:
            encoding = encoding_found(self._data, at, encoding)
        self._out += pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
        start, inner = len(self._out), _Level()
        at = self._elements(at, None if length == UNDEFINED else at + length, encoding, inner, depth + 1)
        if length == UNDEFINED:
            self._out += pack("<HHL", 0xFFFE, 0xE00D, 0)
        else:
            pack_into("<L", self._out, start - 4, len(self._out) - start)
        self._settle(inner, level)
        return at

    def _settle(self, level: _Level, above: _Level | None) -> None:
        """Decides US or SS for a finished level, or leaves it to the level above; no Pixel Representation means US."""
        if level.pixel_representation is None and above is not None:
            above.signed += level.signed
        elif level.pixel_representation == 1:
            for place in level.signed:
                self._out[place : place + 2] = b"SS"
        level.signed = []

    def _fragments(self, header: Header, at: int, encoding: Encoding) -> int:
        """Encapsulated pixel data inside an item (an icon): its fragments stay as they are."""
        start = at
        while True:
            item = read_header(self._data, at, encoding)
            if item is None or item.tag not in (ITEM, SEQUENCE_DELIMITER) or item.length == UNDEFINED:
                raise Part10Error("encapsulated pixel data holds something else than fragments")
            at += 8 + item.length
            if item.tag == SEQUENCE_DELIMITER:
                break
        self._out += _header(header.tag, b"OB", UNDEFINED) + self._data[start:at]
        return at


def _header(tag: int, vr: bytes, length: int) -> bytes:
    group, element = tag >> 16, tag & 0xFFFF
    if vr in LONG_VRS:
        return pack("<HH2sHL", group, element, vr, 0, length)
    return pack("<HH2sH", group, element, vr, length)
