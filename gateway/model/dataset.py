"""Reading and writing one data set in the DICOM JSON model (PS3.18 Annex F): a plain dict from 8-hex tag to {"vr", "Value"}.

Plain dicts keep the hot path fast; nothing here mutates its argument unless it says so. Every text is str (UTF-8 on the wire).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.model.vocabulary import vr as vr_of

Attribute = dict[str, Any]
Dataset = dict[str, Attribute]

PN_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def values(dataset: Dataset, tag: str) -> list[Any]:
    """The values of an attribute as JSON holds them; [] when absent or empty. None marks an empty value among others."""
    attribute = dataset.get(tag)
    return attribute.get("Value", []) if attribute else []


def texts(dataset: Dataset, tag: str) -> list[str]:
    """The values as text, empty ones left out; a PN gives its component groups joined by '='. Sequences give []."""
    return [text for text in map(as_text, values(dataset, tag)) if text]


def text(dataset: Dataset, tag: str) -> str:
    """The first non-empty value as text, or ''."""
    found = dataset.get(tag)
    values = found.get("Value") if found else None
    if not values:
        return ""
    first = values[0]
    return first if first and type(first) is str else next(filter(None, map(as_text, values)), "")


def whole_number(dataset: Dataset, tag: str) -> int | None:
    """The first value as a whole number; None for what is none, or none that a DICOM attribute could hold."""
    found = text(dataset, tag)
    return int(found) if _WHOLE.fullmatch(found) else None


_WHOLE = re.compile(r"-?[0-9]{1,12}")


_UID = re.compile(r"[0-9][0-9.]{0,63}")


def is_uid(text_: str) -> bool:
    """Whether it is written as UIDs are: components with a leading zero are wrong (PS3.5 9.1), and in the archives."""
    return _UID.fullmatch(text_) is not None


def as_text(value: Any) -> str:
    """One JSON value as DICOM text: a PN object becomes 'alphabetic=ideographic=phonetic', a number its shortest form."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        groups = [str(value.get(group) or "") for group in PN_GROUPS]
        return "=".join(groups).rstrip("=") if any(groups) else ""
    return str(value)


def items(dataset: Dataset, tag: str) -> list[Dataset]:
    """The items of a sequence; [] when absent or empty."""
    return [item for item in values(dataset, tag) if isinstance(item, dict)]


def walk(dataset: Dataset, path: tuple[str, ...]) -> Iterator[Dataset]:
    """The data sets that hold the last tag of `path`: the data set itself, or every item that the sequences lead to."""
    if len(path) == 1:
        yield dataset
        return
    for item in items(dataset, path[0]):
        yield from walk(item, path[1:])


def attribute(tag: str, content: Iterable[Any], vr: str | None = None) -> Attribute:
    """An attribute from text or numbers: PN text becomes the JSON object, IS/DS/US text becomes numbers where it is one.

    An empty content gives an attribute without Value, as PS3.18 F.2.5 asks.
    """
    vr = vr or vr_of(tag)
    encoded = [_encode(vr, value) for value in content]
    while encoded and encoded[-1] is None:
        encoded.pop()
    return {"vr": vr, "Value": encoded} if encoded else {"vr": vr}


def _encode(vr: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if vr == "PN" and isinstance(value, str):
        return {group: part for group, part in zip(PN_GROUPS, value.split("="), strict=False) if part} or None
    if isinstance(value, str) and vr in NUMERIC_VRS:
        return _number(value)
    return value


NUMERIC_VRS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"})


def _number(value: str) -> int | float | str:
    """A numeric text as a JSON number; text that is none stays text, so that nothing is lost."""
    try:
        number = float(value)
    except ValueError:
        return value
    if number != number or number in (float("inf"), float("-inf")):
        return value
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
