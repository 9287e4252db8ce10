"""C-FIND of the DIMSE simulator: from a request identifier to rows, short of PS3.4 C.4.1 in the ways it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from gateway.simulators._dimse_index import (
    COMPUTED,
    IMAGE,
    LEVELS,
    PATIENT,
    SPECIFIC_CHARACTER_SET,
    STUDY,
    UNIQUE_KEY,
    Archive,
    Group,
    computed,
    is_of_every_level,
    level_of,
    raw_element,
)
from gateway.simulators._dimse_matching import is_universal, matches, texts
from gateway.simulators._dimse_options import DimseOptions

PENDING, PENDING_WITH_WARNING = 0xFF00, 0xFF01
_TEXT_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_BINARY_VRS = frozenset({"AT", "FD", "FL", "OB", "OW", "SL", "SQ", "SS", "SV", "UL", "UN", "US", "UV"})
_STRICT_VRS = frozenset({"DA", "IS", "TM", "UI"})
_QUERY_RETRIEVE_LEVEL = Tag("QueryRetrieveLevel")
_RETRIEVE_AE_TITLE = Tag("RetrieveAETitle")
_INSTANCE_AVAILABILITY = Tag("InstanceAvailability")
_CONTROL = frozenset({_QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET, _RETRIEVE_AE_TITLE})


class IdentifierRefusedError(Exception):
    """The identifier does not suit the information model (PS3.4 C.4.1.1.4)."""


@dataclass(frozen=True, slots=True)
class Find:
    """One C-FIND. `root` is the highest level of the information model: PATIENT or STUDY."""

    archive: Archive
    identifier: Dataset
    root: str
    ae_title: str
    options: DimseOptions
    is_implicit_vr: bool

    @property
    def level(self) -> str:
        level = str(self.identifier.get("QueryRetrieveLevel") or "").strip()
        if level not in LEVELS[LEVELS.index(self.root) :]:
            raise IdentifierRefusedError("QueryRetrieveLevel")
        return level

    def rows(self) -> Iterator[tuple[int, Dataset]]:
        """(pending status, identifier) for each match. Raises IdentifierRefusedError before the first."""
        level = self.level
        self._check_unique_keys_above(level)
        keys = [key for key in self.identifier if key.tag not in _CONTROL]
        known = [key for key in keys if self._is_known(key.tag, level)]
        effective = [key for key in known if key.keyword not in self.options.ignored_keys]
        heeded = len(effective) == len([key for key in keys if key.keyword not in self.options.omitted_keys])
        status = PENDING if heeded else PENDING_WITH_WARNING
        for group in self.archive.groups(level):
            if all(matches(key, self._value(key.tag, group)) for key in effective):
                row = self._row(known, level, group)
                copies = len(group) if self.options.one_row_per_instance and level != IMAGE else 1
                yield from ((status, row) for _ in range(copies))

    def _check_unique_keys_above(self, level: str) -> None:
        """Without relational queries every level above is named by its unique key (PS3.4 C.4.1.2.1)."""
        if self.options.relational:
            return
        for above in LEVELS[LEVELS.index(self.root) : LEVELS.index(level)]:
            key = self.identifier.get(UNIQUE_KEY[above])
            if key is None or is_universal(key):
                raise IdentifierRefusedError(above)

    def _is_known(self, tag: BaseTag, level: str) -> bool:
        """Whether this archive knows the attribute at the level asked for."""
        if is_of_every_level(tag):
            return True
        try:
            own = level_of(tag)
        except KeyError:
            return False
        if DataElement(tag, "UN", None).keyword in self.options.omitted_keys:
            return False
        # In Study Root the patient's attributes are the study's (PS3.4 C.6.2.1).
        own = STUDY if own == PATIENT and self.root == STUDY else own
        rank = LEVELS.index(own)
        if self.options.relational or tag in UNIQUE_KEY.values():
            return rank <= LEVELS.index(level)
        return own == level

    def _value(self, tag: BaseTag, group: Group) -> DataElement | None:
        if tag in COMPUTED:
            return self._computed(tag, group)
        return group[0].decoded.get(tag)

    def _computed(self, tag: BaseTag, group: Group) -> DataElement:
        """Where the archive's instances are is for its options to say."""
        if tag == _INSTANCE_AVAILABILITY:
            return DataElement(tag, "CS", self.options.availability)
        return computed(tag, group)

    def _row(self, keys: list[DataElement], level: str, group: Group) -> Dataset:
        first = group[0]
        character_set = self._character_set(first.decoded)
        row = Dataset()
        if character_set and not self.options.omit_character_set:
            row.SpecificCharacterSet = character_set
        row.QueryRetrieveLevel = level
        row.RetrieveAETitle = self.ae_title
        for key in keys:
            row[key.tag] = self._returned(key.tag, group)
        # Told that nothing has changed, pydicom writes the bytes of raw elements as they are.
        row.set_original_encoding(self.is_implicit_vr, True, row._character_set)
        return row

    def _character_set(self, decoded: Dataset) -> str | list[str]:
        if self.options.character_set:
            return self.options.character_set
        stored = decoded.get("SpecificCharacterSet") or ""
        return stored if isinstance(stored, str) else list(stored)

    def _returned(self, tag: BaseTag, group: Group) -> DataElement | RawDataElement:
        """The value's bytes as in the file, or encoded anew; empty where the file has none."""
        if self.options.garbage and dictionary_VR(tag) in _STRICT_VRS:
            return raw_element(tag, dictionary_VR(tag), b"garbage!")
        if tag in COMPUTED:
            return self._computed(tag, group)
        raw: DataElement | RawDataElement | None = group[0].raw.get_item(tag) if tag in group[0].raw else None
        vr = dictionary_VR(tag)
        decoded: DataElement | None = group[0].decoded.get(tag)
        if not isinstance(raw, RawDataElement) or vr.split(" ")[0] in _BINARY_VRS:
            return decoded if decoded is not None else raw_element(tag, vr, b"")
        if self.options.character_set and vr in _TEXT_VRS and decoded is not None:
            return raw_element(tag, vr, self._encoded(decoded))
        return raw_element(tag, vr, bytes(raw.value or b""))

    def _encoded(self, decoded: DataElement) -> bytes:
        """Letters that the character set lacks go out as '?', as from archives in the field."""
        codec = python_encoding[self.options.character_set]
        return "\\".join(texts(decoded)).encode(codec, "replace")
