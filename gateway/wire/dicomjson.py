"""The DICOM JSON model of PS3.18 Annex F: from pydicom data sets, back into them, and one row of it as a Record."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pydicom
from pydicom import config
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import BytesLengthException
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import DSfloat
from pydicom.values import convert_SQ

from gateway.model.dataset import Attribute, Dataset, as_text, items, walk
from gateway.model.dataset import values as json_values
from gateway.model.seam import Record, Value
from gateway.model.vocabulary import PIXEL_DATA, SPECIFIC_CHARACTER_SET, path
from gateway.wire import valuefields
from gateway.wire.charset import UTF_8, character_sets, decode
from gateway.wire.foreign import sanitize

__all__ = ["INLINE_LIMIT", "DicomRecord", "from_json", "sanitize", "to_json"]

INLINE_LIMIT = 1024
"""Bytes of a binary value that still go into the JSON as InlineBinary."""

LONG_VALUE = 64 * 1024
"""Bytes of a text or number that still stand in the JSON: contours and texts are what viewers read metadata for."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_REPRESENTATION = 0x00280103
_PIXELS = frozenset({PIXEL_DATA, "7FE00008", "7FE00009"})
BROKEN = (
    ValueError, OSError, EOFError, struct.error, LookupError, TypeError, AttributeError, ArithmeticError,
    NotImplementedError, RecursionError, BytesLengthException,
)  # fmt: skip
"""What pydicom makes of broken bytes."""


def to_json(
    dataset: pydicom.Dataset,
    *,
    default_character_set: str = "",
    bulk: Callable[[str], str] | None = None,
    inline_limit: int = INLINE_LIMIT,
) -> Dataset:
    """A data set in the DICOM JSON model. Never raises for a bad element: its text is kept, or its bytes as UN.

    `default_character_set` applies where the data set has no (0008,0005): hand the data set over as it was read, for
    what pydicom has already decoded stays as it is. `bulk` gives the address of a long value from its path, dotted tags
    with 1-based item numbers ('54000100.1.54001010'); without it everything is inline.
    """
    writer = _Writer(bulk, inline_limit)
    sets = character_sets(_declared(dataset), default_character_set)
    written = writer.dataset(_Scope(dataset, sets, signed=_is_signed(dataset, False)))
    if writer.wide or 0x00080005 in dataset:
        written[SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": [UTF_8]}
    return dict(sorted(written.items()))


def element_at(dataset: pydicom.Dataset, tag: int) -> DataElement | RawDataElement | None:
    """The element as it was read: nothing is converted, a value that was left in the file stays there."""
    return cast(DataElement | RawDataElement | None, dataset.get_item(tag, keep_deferred=True))


def sequence_items(dataset: pydicom.Dataset, tag: int) -> Sequence[pydicom.Dataset]:
    """The items of a sequence, parsed now if they are still bytes. Raises KeyError, or what broken bytes provoke."""
    element = element_at(dataset, tag)
    if isinstance(element, RawDataElement) and element.value is not None:
        # Inside UN everything is Implicit VR Little Endian (PS3.5 6.2.2).
        is_unknown = element.VR == "UN"
        implicit, little_endian = element.is_implicit_VR or is_unknown, element.is_little_endian or is_unknown
        return convert_SQ(element.value, implicit, little_endian, ["iso8859"], element.value_tell)
    found = dataset[tag].value
    return found if isinstance(found, Items) else ()


def _declared(dataset: pydicom.Dataset) -> str | Sequence[str] | None:
    """The values of (0008,0005) as they stand."""
    found = element_at(dataset, 0x00080005)
    if found is None or not found.value:
        return None
    if isinstance(found.value, bytes):
        return found.value.decode("ascii", "replace").rstrip(" \x00")
    return found.value if isinstance(found.value, str) else [str(term) for term in found.value]


@dataclass(frozen=True, slots=True)
class _Scope:
    """What holds for the elements of one data set or item: its character sets, its address, what 'US or SS' means."""

    source: pydicom.Dataset
    character_sets: Sequence[str]
    prefix: str = ""
    signed: bool = False

    def vr(self, tag: str, given: str | None) -> str:
        """The VR as written, unless it is missing, ambiguous, unknown, or a UN that is known better (PS3.5 6.2.2)."""
        if given in valuefields.VRS and given != "UN":
            return str(given)
        if int(tag[3], 16) % 2 == 0:
            return valuefields.dictionary_vr(tag, signed=self.signed)
        creator = element_at(self.source, int(tag[:4] + "00" + tag[4:6], 16))
        name = creator.value if creator is not None else b""
        return valuefields.private_vr(tag, decode(name, ()).strip(" \x00") if isinstance(name, bytes) else str(name))

    def below(self, item: pydicom.Dataset, tag: str, number: int) -> _Scope:
        """The scope of an item: what it does not say itself it inherits (PS3.5 7.5.3)."""
        own = _declared(item)
        sets = character_sets(own) if own else self.character_sets
        return _Scope(item, sets, f"{self.prefix}{tag}.{number}.", _is_signed(item, self.signed))


class _Writer:
    """Writes one data set and everything below it; `wide` says that some text was not ASCII."""

    def __init__(self, bulk: Callable[[str], str] | None, inline_limit: int) -> None:
        self._bulk = bulk
        self._inline_limit = inline_limit
        self.wide = False

    def dataset(self, scope: _Scope) -> Dataset:
        """The attributes of one data set or item, without group lengths, padding and (0008,0005)."""
        written: Dataset = {}
        for key, element in list(scope.source.items()):
            tag = f"{int(key):08X}"
            if tag.endswith("0000") or tag.startswith(("0002", "FFF")) or tag == SPECIFIC_CHARACTER_SET:
                continue
            try:
                written[tag] = self._attribute(scope, tag, element)
            except BROKEN:
                written[tag] = self._damaged(scope, tag, element)
        return written

    def _attribute(self, scope: _Scope, tag: str, element: DataElement | RawDataElement) -> Attribute:
        vr = scope.vr(tag, element.VR)
        if isinstance(element, RawDataElement):
            return self._raw(scope, tag, vr, element)
        if vr == "SQ":
            return self._sequence(scope, tag, element.value or ())
        if isinstance(element.value, bytes):
            return self._bytes(scope, tag, vr, element.value, scope.source.original_encoding[1] is not False)
        return self._converted(vr, element.value)

    def _raw(self, scope: _Scope, tag: str, vr: str, raw: RawDataElement) -> Attribute:
        """An element whose value field is still bytes; where it is None the value was left in the file."""
        if not raw.length:
            return {"vr": vr}
        little_endian = raw.is_little_endian or raw.VR == "UN"
        if vr == "SQ":
            return self._sequence(scope, tag, sequence_items(scope.source, raw.tag))
        if tag == PIXEL_DATA and raw.VR not in valuefields.VRS and raw.length == _UNDEFINED_LENGTH:
            vr = "OB"
        if raw.value is None:
            return {"vr": vr, "BulkDataURI": self._bulk(scope.prefix + tag)} if self._bulk else {"vr": vr}
        return self._bytes(scope, tag, vr, raw.value, little_endian)

    def _bytes(self, scope: _Scope, tag: str, vr: str, value: bytes, little_endian: bool) -> Attribute:
        if self._bulk and self._is_long(vr, len(value), scope.prefix + tag):
            return {"vr": vr, "BulkDataURI": self._bulk(scope.prefix + tag)}
        if vr in valuefields.BINARY_VRS:
            # The web is little endian (PS3.18 8.7.3).
            return _inline(vr, value if little_endian else valuefields.turned(value, valuefields.word_size(vr)))
        self.wide = self.wide or not value.isascii() or b"\x1b" in value
        return _valued(vr, valuefields.values(vr, value, scope.character_sets, little_endian=little_endian))

    def _converted(self, vr: str, value: Any) -> Attribute:
        """An element that pydicom, or the program that made the data set, has already given Python values."""
        many = value if isinstance(value, MutableSequence | tuple) else [value]
        content = valuefields.trimmed([_from_python(vr, one) for one in many])
        self.wide = self.wide or not all(as_text(one).isascii() for one in content)
        return _valued(vr, content)

    def _sequence(self, scope: _Scope, tag: str, source: Iterable[pydicom.Dataset]) -> Attribute:
        return _valued("SQ", [self.dataset(scope.below(item, tag, number)) for number, item in enumerate(source, 1)])

    def _is_long(self, vr: str, length: int, address: str) -> bool:
        if vr not in valuefields.BULK_VRS:
            return False
        return address in _PIXELS or length > (self._inline_limit if vr in valuefields.BINARY_VRS else LONG_VALUE)

    def _damaged(self, scope: _Scope, tag: str, element: DataElement | RawDataElement) -> Attribute:
        """What cannot be read as its VR is handed on as bytes, never dropped."""
        value = element.value
        return self._bytes(scope, tag, "UN", value, True) if isinstance(value, bytes) else {"vr": "UN"}


def _is_signed(source: pydicom.Dataset, inherited: bool) -> bool:
    """Whether 'US or SS' means SS: (0028,0103) of this data set, else of those above."""
    found = element_at(source, _PIXEL_REPRESENTATION)
    if found is None or found.value in (None, "", b""):
        return inherited
    return found.value not in (0, b"\x00\x00")


def _from_python(vr: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if vr == "AT":
        return f"{int(value):08X}"
    if vr == "PN":
        return valuefields.person_name(str(value))
    if vr in ("IS", "DS"):
        return valuefields.number(str(value).strip())
    return valuefields.plain(value) if isinstance(value, int | float) else str(value)


def _valued(vr: str, content: list[Any]) -> Attribute:
    """An empty attribute has no Value (PS3.18 F.2.5)."""
    return {"vr": vr, "Value": content} if content else {"vr": vr}


def _inline(vr: str, value: bytes) -> Attribute:
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}


def from_json(dataset: Dataset) -> pydicom.Dataset:
    """The other direction, in UTF-8. Bulk data that is elsewhere becomes empty. Raises ValueError naming a bad tag."""
    read = _read(dataset)
    if SPECIFIC_CHARACTER_SET in dataset or not _is_ascii(dataset):
        read.SpecificCharacterSet = UTF_8
    return read


def _read(dataset: Dataset) -> pydicom.Dataset:
    read = pydicom.Dataset()
    for tag, attribute in sorted(dataset.items()):
        vr = attribute["vr"]
        try:
            value = _to_python(vr, attribute)
            read.add(DataElement(int(tag, 16), vr, value, validation_mode=config.IGNORE))
        except (TypeError, ValueError, AttributeError, binascii.Error):
            raise ValueError(f"{tag} does not hold a {vr}") from None
    return read


def _is_ascii(dataset: Dataset) -> bool:
    return all(
        _is_ascii(one) if attribute["vr"] == "SQ" else as_text(one).isascii()
        for attribute in dataset.values()
        for one in attribute.get("Value", ())
    )


def _to_python(vr: str, attribute: Attribute) -> Any:
    content = attribute.get("Value", [])
    if vr == "SQ":
        return Items([_read(item) for item in content])
    if vr in valuefields.BINARY_VRS:
        return base64.b64decode(attribute.get("InlineBinary", ""), validate=True)
    if vr == "AT":
        return [int(one, 16) for one in content]
    if vr in ("FL", "FD"):
        return [float(one) for one in content]
    if vr == "DS":
        return [DSfloat(one, auto_format=True) if isinstance(one, float) else as_text(one) for one in content]
    if content and isinstance(content[0], int | float):
        return content if len(content) > 1 else content[0]
    texts = [as_text(one) for one in content]
    return texts[0] if len(texts) == 1 else texts or ""


class DicomRecord:
    """One row in the DICOM JSON model, read by keyword or tag, dotted through sequences ('00081032.CodeValue')."""

    __slots__ = ("dataset",)

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def value(self, path_: str) -> Value | None:
        """Text or a number; a list where there are several; None when absent. Sequences give their first item."""
        tags = path(path_)
        holder = self.dataset
        for step in tags[:-1]:
            below = items(holder, step)
            if not below:
                return None
            holder = below[0]
        found = [one if isinstance(one, int | float) else as_text(one) for one in json_values(holder, tags[-1])]
        if holder.get(tags[-1], {}).get("vr") == "SQ" or not any(one != "" for one in found):
            return None
        return found[0] if len(found) == 1 else cast(Value, found)

    def children(self, path_: str) -> Iterable[Record]:
        """One record per item of the sequence; items of the sequences on the way are all visited."""
        tags = path(path_)
        return [DicomRecord(item) for holder in walk(self.dataset, tags) for item in items(holder, tags[-1])]
