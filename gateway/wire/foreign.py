"""Makes sound DICOM JSON of what a foreign server sent: its small mistakes are mended, a wrong shape is refused."""

from __future__ import annotations

import re
from functools import lru_cache
from math import isfinite
from typing import Any

from gateway.model.dataset import NUMERIC_VRS, PN_GROUPS, Attribute, Dataset
from gateway.model.vocabulary import SPECIFIC_CHARACTER_SET
from gateway.wire.charset import UTF_8
from gateway.wire.valuefields import BINARY_VRS, VRS, dictionary_vr, number, person_name, plain, trimmed

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_PADDING = " \x00"
_NO_TEXT = frozenset({"SQ", "PN", "AT", "UN"}) | BINARY_VRS
_MOST_LOOKS, _MOST_SHAPES, _MOST_NAMES = 8192, 1024, 256
_NOTHING = type(None)
_WORDS = frozenset({"NaN", "Infinity", "-Infinity"})


def sanitize(dataset: object) -> Dataset:
    """The same attributes with upper-case tags, a VR, values of the right type, and no Value where there is none.

    Mends `{"vr": "DA"}`, `"Value": null`, `[""]`, a value without its list, PN as text, numbers as text (and the other
    way round), a missing VR. Raises ValueError for any other shape; its text names the tag at most, never a value.
    """
    try:
        return _dataset(dataset)
    except RecursionError:
        raise ValueError("sequences are nested too deeply") from None


def _dataset(dataset: object) -> Dataset:
    if not isinstance(dataset, dict):
        raise ValueError("a data set is not a JSON object")
    names = tuple(dataset)
    shape = _shapes.get(names)
    if shape is not None and _is_sound(dataset, shape):
        return {**dataset, SPECIFIC_CHARACTER_SET: _UNICODE} if SPECIFIC_CHARACTER_SET in dataset else dataset
    mended: Dataset = {}
    for name, attribute in dataset.items():
        if tag := _sound_tag(name, attribute):
            mended[tag] = attribute
        elif tag := _tag(name):
            mended[tag] = _attribute(tag, attribute)
            if type(attribute) is dict:
                _learn(name, attribute)
    if SPECIFIC_CHARACTER_SET in mended:
        mended[SPECIFIC_CHARACTER_SET] = _UNICODE
    if shape is None:
        _learn_shape(names, mended)
    return mended


_UNICODE: Attribute = {"vr": "CS", "Value": [UTF_8]}
_shapes: dict[tuple[object, ...], tuple[tuple[str, type | None], ...]] = {}
"""By the names of a data set, which are all as they should be: of each attribute its VR, and as what a value is looked at."""


def _learn_shape(names: tuple[object, ...], mended: Dataset) -> None:
    """Lets the next data set with the same attributes go as it is, if it may: of one node, mostly all of them."""
    if len(names) <= _MOST_NAMES and len(_shapes) < _MOST_SHAPES and names == tuple(mended):
        _shapes[names] = tuple((one["vr"], _kind_of(one["vr"])) for one in mended.values())


def _kind_of(vr: str) -> type | None:
    """As what a value is looked at that may go as it is: a number, items (list), a name (dict) or a text; None where none may."""
    if vr in NUMERIC_VRS:
        return float
    return {"PN": dict, "SQ": list}.get(vr, None if vr in _NO_TEXT else str)


def _is_sound(dataset: dict[str, Any], shape: tuple[tuple[str, type | None], ...]) -> bool:
    """Whether nothing is to be mended: each attribute is a VR alone, or with what goes as it is: a name, texts, numbers, items
    or bulk data. Written out as one loop: it takes more than anything else that is done to a row."""
    try:
        for (vr, kind), attribute in zip(shape, dataset.values(), strict=False):
            if attribute["vr"] != vr:
                return False
            if len(attribute) == 1:
                continue
            content = attribute.get("Value")
            if len(attribute) != 2 or type(content) is not list:
                if content is None and len(attribute) == 2 and _is_bulk_data(attribute):
                    continue
                return False
            value = content[0]
            if kind is str:
                if type(value) is not str or not (value[0] > " " < value[-1]):  # nothing that may be padding
                    return False
                if len(content) != 1 and not all(map(_is_sound_text, content)):
                    return False
            elif kind is float:
                if not _is_sound_number(value) or (len(content) != 1 and not all(map(_is_sound_number, content))):
                    return False
            elif kind is list:
                if not all(map(_is_sound_item, content)):
                    return False
            elif kind is None or len(content) != 1 or not _is_sound_name(value):
                return False
    except (LookupError, TypeError):
        return False
    return True


def _is_sound_item(item: object) -> bool:
    shape = _shapes.get(tuple(item)) if type(item) is dict else None
    return shape is not None and SPECIFIC_CHARACTER_SET not in item and _is_sound(item, shape)  # type: ignore[operator,arg-type]


def _is_sound_name(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and _is_sound_text(value["Alphabetic"])


def _is_bulk_data(attribute: dict[str, Any]) -> bool:
    return type(attribute.get("BulkDataURI", attribute.get("InlineBinary"))) is str


def _is_sound_number(value: object) -> bool:
    return -(2**63) <= value < 2**64 if type(value) is int else type(value) is float and isfinite(value)


@lru_cache(maxsize=8192)
def _tag(name: object) -> str:
    """The tag in upper case; '' for a group length, which says nothing. Raises ValueError for what is no tag."""
    if not isinstance(name, str) or not _TAG.fullmatch(name):
        raise ValueError("an attribute name is not an 8-digit hexadecimal tag")
    return "" if name.endswith("0000") else name.upper()


_looks: dict[tuple[object, object, type], tuple[str, type | None]] = {}
"""By a name, a VR and the type of a value, all as sent: the tag, and what the value is then looked at as; None where it
never goes as it is."""


def _learn(name: object, attribute: dict[str, Any]) -> None:
    """Lets the next one of this kind go as it is, if it may."""
    content, vr = attribute.get("Value"), attribute.get("vr")
    if type(vr) is not str or len(_looks) >= _MOST_LOOKS:
        return
    tag = _tag(name)
    is_known = vr in VRS and _vr(tag, vr) == vr
    if attribute.keys() == {"vr"}:
        _looks[name, vr, _NOTHING] = tag, _NOTHING if is_known else None
    elif type(content) is list and content:
        kind, wanted = type(content[0]), _kind_of(vr)
        fits = kind is wanted or (kind is int and wanted is float)
        _looks[name, vr, kind] = tag, wanted if is_known and fits else None


def _sound_tag(name: object, attribute: Any) -> str:
    """Its tag where there is nothing to mend, as mostly: a VR alone, or with one value that goes as it is (a text, a name, a
    number), or with several texts. Else ''."""
    try:
        content = attribute.get("Value")
        value: Any = None if content is None else content[0]
        tag, looked_at_as = _looks[name, attribute["vr"], type(value)]
    except (LookupError, TypeError, AttributeError):
        return ""
    if looked_at_as is _NOTHING:
        return tag if len(attribute) == 1 else ""
    if len(attribute) != 2 or type(content) is not list:
        return ""
    if len(content) > 1:
        return tag if looked_at_as is str and all(map(_is_sound_text, content)) else ""
    if looked_at_as is float:
        return tag if _is_sound_number(value) else ""
    if looked_at_as is dict:
        value = value.get("Alphabetic") if len(value) == 1 else None
    return tag if looked_at_as is not None and _is_sound_text(value) else ""


def _is_sound_text(value: object) -> bool:
    return type(value) is str and value != "" and value[0] not in _PADDING and value[-1] not in _PADDING


def _attribute(tag: str, attribute: object) -> Attribute:
    if attribute is None:
        attribute = {}
    if not isinstance(attribute, dict):
        raise ValueError(f"{tag} is not a JSON object")
    for key in ("InlineBinary", "BulkDataURI"):
        if attribute.get(key) is not None:
            return _binary(tag, key, attribute)
    content = attribute.get("Value")
    many = [] if content is None else content if isinstance(content, list) else [content]
    is_empty = not any(one not in (None, "") for one in many)
    vr = _vr(tag, attribute.get("vr"))
    if vr == "UN" and not is_empty:
        vr = "LO"
    if vr in BINARY_VRS:
        if not is_empty:
            raise ValueError(f"{tag} is binary and has a Value")
        return {"vr": vr}
    mended = trimmed([_value(tag, vr, one) for one in many])
    return {"vr": vr, "Value": mended} if any(one is not None for one in mended) else {"vr": vr}


def _binary(tag: str, key: str, attribute: dict[str, Any]) -> Attribute:
    if not isinstance(attribute[key], str):
        raise ValueError(f"{tag} has a {key} that is not text")
    sent = attribute.get("vr")
    return {"vr": sent if isinstance(sent, str) and sent in VRS else dictionary_vr(tag), key: attribute[key]}


def _vr(tag: str, sent: object) -> str:
    """The VR sent, unless PS3.6 gives another. Raises ValueError where only one of them is SQ."""
    listed = dictionary_vr(tag)
    vr = sent.upper() if isinstance(sent, str) and sent.upper() in VRS else "UN"
    if vr == "UN" or vr == listed:
        return listed
    if listed == "UN" or _interchangeable(vr, listed):
        return vr
    if "SQ" in (vr, listed):
        raise ValueError(f"{tag} is not a {vr}")
    return listed


def _interchangeable(vr: str, listed: str) -> bool:
    """Pairs that the dictionary lists as alternatives ('US or SS', 'OB or OW')."""
    return {vr, listed} <= {"US", "SS", "OW"} or {vr, listed} <= {"OB", "OW"}


def _value(tag: str, vr: str, value: Any) -> Any:
    if vr == "SQ":
        return _dataset({} if value is None else value)
    if value is None or value == "" or value == {}:
        return None
    if isinstance(value, bool | list):
        raise ValueError(f"{tag} has a value of the wrong type")
    if vr == "PN":
        return _person_name(tag, value)
    if isinstance(value, dict):
        raise ValueError(f"{tag} has a value of the wrong type")
    if vr == "AT":
        return _tag_value(tag, value)
    if vr in NUMERIC_VRS:
        return _numeric(tag, vr, value)
    return str(value).strip(" \x00") or None


def _person_name(tag: str, value: Any) -> dict[str, str] | None:
    if isinstance(value, str):
        return person_name(value)
    if not isinstance(value, dict) or not all(isinstance(part, str | None) for part in value.values()):
        raise ValueError(f"{tag} is not a person name")
    groups = {group: str(value.get(group) or "").strip(" \x00") for group in PN_GROUPS}
    return {group: text for group, text in groups.items() if text} or None


def _tag_value(tag: str, value: Any) -> str:
    text = f"{value:08X}" if isinstance(value, int) else str(value)
    if not _TAG.fullmatch(text):
        raise ValueError(f"{tag} has a value that is not a tag")
    return text.upper()


def _numeric(tag: str, vr: str, value: Any) -> int | float | str | None:
    """IS and DS may keep text that is no number, as in the files they come from; binary numbers may not."""
    found = number(value.strip(" \x00")) if isinstance(value, str) else value
    if isinstance(found, str) and vr not in ("IS", "DS") and found not in _WORDS:
        raise ValueError(f"{tag} is not a number")
    if isinstance(found, int) and not -(2**63) <= found < 2**64:
        raise ValueError(f"{tag} is out of range")
    return None if found == "" else plain(found)
