"""Attribute matching as an archive does it (PS3.4 C.2.2.2): single value, UID list, wildcard, range, sequence."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_RANGE_VRS = frozenset({"DA", "TM", "DT"})


def is_universal(key: DataElement) -> bool:
    """An empty key, or '*' alone, matches everything, entities without the attribute too (PS3.4 C.2.2.2.3)."""
    if key.VR == "SQ":
        return not key.value or all(is_universal(element) for element in key.value[0])
    wanted = texts(key)
    return not wanted or (key.VR in _WILDCARD_VRS and all(set(text) == {"*"} for text in wanted))


def matches(key: DataElement, value: DataElement | None) -> bool:
    """Whether an entity with this attribute value (None: it has none) is a match for the key."""
    if is_universal(key):
        return True
    if value is None:
        return False
    if key.VR == "SQ":
        return any(_item_matches(key.value[0], item) for item in value.value or [])
    wanted = texts(key)
    return any(_text_matches(key.VR, text, wanted) for text in texts(value))


def _item_matches(keys: Dataset, item: Dataset) -> bool:
    return all(matches(key, item.get(key.tag)) for key in keys)


def _text_matches(vr: str, text: str, wanted: list[str]) -> bool:
    if vr == "UI":
        return text in wanted
    if vr in _RANGE_VRS:
        return any(_in_range(vr, text, want) for want in wanted)
    if vr == "PN":
        return any(_name_matches(text, want) for want in wanted)
    if vr in _WILDCARD_VRS:
        return any(_pattern(want).fullmatch(text) for want in wanted)
    return any(_number_or_text(text) == _number_or_text(want) for want in wanted)


def texts(element: DataElement) -> list[str]:
    """The values as text without their padding; empty ones are left out."""
    value: Any = element.value
    values = value if isinstance(value, MultiValue | list) else [value]
    return [text for text in (str(v).strip(" \0") for v in values if v is not None) if text]


def _name_matches(name: str, want: str) -> bool:
    """Without case, the name as a whole or one of its component groups; trailing carets mean nothing (PS3.5 6.2.1)."""
    name, want = name.casefold(), _plain(want.casefold())
    return any(_pattern(want).fullmatch(_plain(part)) for part in (name, *name.split("=")))


def _plain(name: str) -> str:
    return name.rstrip("^= ")


@lru_cache(maxsize=1024)
def _pattern(want: str) -> re.Pattern[str]:
    """A piece between stars that was found stays where it is, so that no key takes long."""
    first, *rest = [
        "".join("." if letter == "?" else re.escape(letter) for letter in piece) for piece in want.split("*")
    ]
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1] if piece)
    return re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL)


def _in_range(vr: str, text: str, want: str) -> bool:
    low, dash, high = (want, "", want) if vr == "DT" and re.search(r"-\d{4}$", want) else want.partition("-")
    if not dash:
        high = low
    return (not low or _padded(vr, text, "0") >= _padded(vr, low, "0")) and (
        not high or _padded(vr, text, "0") <= _padded(vr, high, "9")
    )


def _padded(vr: str, moment: str, digit: str) -> str:
    """A moment filled up to its full precision, so that '1030' as an end of a range includes 10:30:59."""
    digits = re.sub(r"[^0-9]", "", moment)
    return digits.ljust({"DA": 8, "TM": 12, "DT": 20}[vr], digit)


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
