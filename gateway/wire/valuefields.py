"""One data element: its VR where the file leaves it open, and its value field as JSON values (PS3.5 6.2)."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydicom import datadict

from gateway.model.dataset import NUMERIC_VRS, PN_GROUPS
from gateway.wire.charset import decode

BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
# Those whose values may be given as BulkDataURI (PS3.18 Table F.2.7-1 and 10.4.1.1.2).
BULK_VRS = BINARY_VRS | NUMERIC_VRS | frozenset({"LT", "ST", "UC", "UT"})
_SINGLE_VALUED = frozenset({"LT", "ST", "UR", "UT"})
_TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI"}) | _SINGLE_VALUED
_FORMATS = {
    "US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d",
}  # fmt: skip
VRS = BINARY_VRS | _TEXT_VRS | frozenset(_FORMATS) | {"AT", "SQ"}
_WORD_SIZES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PADDING = " \x00"


class BadValueError(ValueError):
    """The value field does not fit its VR; the caller gives its bytes instead."""


@lru_cache(maxsize=16384)
def dictionary_vr(tag: str, *, signed: bool = False) -> str:
    """The VR of PS3.6; where it lists several, the one that applies in Implicit VR (PS3.5 A.1); 'UN' when unlisted."""
    try:
        listed = datadict.dictionary_VR(int(tag, 16))
    except KeyError:
        return "UN"
    if listed.startswith("US or SS"):
        return "SS" if signed else "US"
    if listed == "US or OW":
        return "OW"
    if listed == "OB or OW":
        return "OW" if tag.startswith(("0028", "5400", "60", "7FE0")) else "OB"
    return listed if listed in VRS else "UN"


@lru_cache(maxsize=16384)
def private_vr(tag: str, creator: str) -> str:
    """The VR of a private attribute, when its creator's dictionary is known, else 'UN'; 'LO' for a private creator."""
    if 0x10 <= int(tag[4:], 16) <= 0xFF:
        return "LO"
    try:
        found = datadict.private_dictionary_VR(int(tag, 16), creator)
    except KeyError:
        return "UN"
    return found if found in VRS else "UN"


def values(vr: str, field: bytes, character_sets: Sequence[str], *, little_endian: bool = True) -> list[Any]:
    """The JSON values of a value field that is neither a sequence nor binary; trailing empty ones are left out.

    Raises BadValueError when the bytes cannot be of that VR. A number that is none keeps its text.
    """
    if vr in _TEXT_VRS:
        return trimmed(_text_values(vr, decode(field, character_sets, vr)))
    order = "<" if little_endian else ">"
    if vr == "AT":
        numbers = _unpack(f"{order}HH", field)
        return [f"{group:04X}{element:04X}" for group, element in zip(numbers[::2], numbers[1::2], strict=True)]
    return [plain(found) for found in _unpack(order + _FORMATS[vr], field)]


def _text_values(vr: str, text: str) -> list[Any]:
    if vr in _SINGLE_VALUED:
        return [text.rstrip(_PADDING) or None]
    convert = _CONVERT.get(vr)
    parts = [part.strip(_PADDING) for part in text.split("\\")]
    return [(convert(part) if convert else part) if part else None for part in parts]


def _unpack(form: str, field: bytes) -> tuple[Any, ...]:
    count, rest = divmod(len(field), struct.calcsize(form))
    if rest:
        raise BadValueError("length does not fit the VR")
    return struct.unpack(form[0] + form[1:] * count, field)


def trimmed(content: list[Any]) -> list[Any]:
    """Without the empty values at the end."""
    while content and content[-1] is None:
        content.pop()
    return content


def number(text: str) -> int | float | str:
    """IS or DS text as a JSON number; text that is none stays as it is."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _DECIMAL.fullmatch(text):
        return text
    found = float(text)
    if math.isinf(found):
        return text
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


def plain(found: Any) -> Any:
    """A number that JSON can hold; NaN and the infinities are words (PS3.18 F.2.3.1)."""
    if isinstance(found, float) and not math.isfinite(found):
        return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"
    return found


def person_name(text: str) -> dict[str, str] | None:
    """'alphabetic=ideographic=phonetic' as the JSON object; None when empty."""
    groups = (group.strip(_PADDING) for group in text.split("="))
    return {name: group for name, group in zip(PN_GROUPS, groups, strict=False) if group} or None


def word_size(vr: str) -> int:
    """The bytes of one number of a VR, which is what byte order turns round; 1 for text and OB."""
    return _WORD_SIZES.get(vr) or struct.calcsize("=" + _FORMATS.get(vr, "B"))


def turned(field: bytes, word: int) -> bytes:
    """Each word of `word` bytes in the other byte order; what fills no whole number of words stays."""
    if word == 1 or len(field) % word:
        return field
    swapped = bytearray(len(field))
    for at in range(word):
        swapped[at::word] = field[word - 1 - at :: word]
    return bytes(swapped)


_CONVERT: Mapping[str, Callable[[str], Any]] = {"IS": number, "DS": number, "PN": person_name}
