"""Values out of another server's FHIR resources, checked one by one: what is not what its type says is left out, and noted."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.periods import span_of

Read = Callable[[Any], Any]

_CODE = re.compile(r"[^\s\x00-\x1f]+(?: [^\s\x00-\x1f]+)*")
_URI = re.compile(r"[^\s\x00-\x1f]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_DATE_TIME = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))?)?)?"
)
_USES = frozenset({"usual", "official", "temp", "secondary", "old"})
_SHOWABLE = frozenset(
    {
        "application/pdf",
        "text/plain",
        "text/rtf",
        "application/rtf",
        "image/jpeg",
        "image/png",
        "image/tiff",
        "application/dicom",
    }
)
"""Media types of attachments that run nothing where they are opened: no HTML, SVG or XML."""


@dataclass(slots=True)
class Values:
    """Reads the elements of one resource; None for what is not there or not to be passed on. `lost` tells whether anything
    was there that is not passed on."""

    lost: bool = False

    def lose(self) -> None:
        self.lost = True

    def _kept(self, given: Any, read: Any) -> Any:
        """What was read; noted where something was given and nothing is left."""
        if given is not None and read in (None, "", [], {}):
            self.lost = True
        return read or None

    def text(self, given: Any) -> str | None:
        """A string or markdown. It may hold anything that a text can say: it is not HTML."""
        plain = _CONTROL.sub("", given) if isinstance(given, str) else ""
        return self._kept(given, plain if plain.strip() else None)  # type: ignore[no-any-return]

    def code(self, given: Any) -> str | None:
        return self._matching(_CODE, given)

    def uri(self, given: Any) -> str | None:
        return self._matching(_URI, given)

    def date_time(self, given: Any) -> str | None:
        found = self._matching(_DATE_TIME, given)
        return self._kept(given, found if found and span_of(found) else None)  # type: ignore[no-any-return]

    def instant(self, given: Any) -> str | None:
        found = self.date_time(given)
        return self._kept(given, found if found and "T" in found else None)  # type: ignore[no-any-return]

    def _matching(self, pattern: re.Pattern[str], given: Any) -> str | None:
        is_one = isinstance(given, str) and pattern.fullmatch(given) and not _CONTROL.search(given)
        return self._kept(given, given if is_one else None)  # type: ignore[no-any-return]

    def boolean(self, given: Any) -> bool | None:
        if given is not None and not isinstance(given, bool):
            self.lost = True
        return given if isinstance(given, bool) else None

    def many(self, read: Read) -> Read:
        """The values of an element that repeats, or did not yet in an earlier version."""

        def read_all(given: Any) -> list[Any] | None:
            listed = given if isinstance(given, list) else [] if given is None else [given]
            return [value for one in listed if (value := read(one)) is not None] or None

        return read_all

    def members(self, given: Any, reads: Mapping[str, Read]) -> Resource | None:
        """An element by its members; those not in `reads` are lost."""
        if not isinstance(given, dict):
            return self._kept(given, None)  # type: ignore[no-any-return]
        self.lost |= not given.keys() <= reads.keys()
        found = {name: value for name, read in reads.items() if (value := read(given.get(name))) is not None}
        return self._kept(given, found)  # type: ignore[no-any-return]

    def coding(self, given: Any) -> Resource | None:
        of = {"system": self.uri, "version": self.text, "code": self.code, "display": self.text}
        return self.members(given, {**of, "userSelected": self.boolean})

    def concept(self, given: Any) -> Resource | None:
        return self.members(given, {"coding": self.many(self.coding), "text": self.text})

    def period(self, given: Any) -> Resource | None:
        return self.members(given, {"start": self.date_time, "end": self.date_time})

    def identifier(self, given: Any) -> Resource | None:
        """One without a value identifies nothing."""
        of = {"use": self._use, "type": self.concept, "system": self.uri, "value": self.text, "period": self.period}
        found = self.members(given, of)
        return self._kept(given, found if found and "value" in found else None)  # type: ignore[no-any-return]

    def _use(self, given: Any) -> str | None:
        return self._kept(given, given if isinstance(given, str) and given in _USES else None)  # type: ignore[no-any-return]

    def reference(self, given: Any) -> Resource | None:
        """To whom or what, by identifier and name: the resource itself is at the node and cannot be had here."""
        return self.members(given, {"identifier": self.identifier, "display": self.text})

    def annotation(self, given: Any) -> Resource | None:
        of = {"authorString": self.text, "time": self.date_time, "text": self.text}
        found = self.members(given, of)
        return self._kept(given, found if found and "text" in found else None)  # type: ignore[no-any-return]

    def attachment(self, given: Any) -> Resource | None:
        """Its data where they are of a kind that runs nothing; never an address at the node."""
        of = {"contentType": self._media_type, "language": self.code, "data": self._data, "title": self.text}
        found = self.members(given, {**of, "creation": self.date_time})
        if found and "data" in found and found.get("contentType") not in _SHOWABLE:
            del found["data"]
            self.lost = True
        return self._kept(given, found)  # type: ignore[no-any-return]

    def _media_type(self, given: Any) -> str | None:
        essence = given.partition(";")[0].strip().lower() if isinstance(given, str) else None
        return self._matching(_CODE, essence)

    def _data(self, given: Any) -> str | None:
        """In one line, as R5 has it; earlier versions let it be folded (FHIR R4 datatypes, base64Binary)."""
        data = "".join(given.split()) if isinstance(given, str) else None
        try:
            is_data = data is not None and bool(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            is_data = False
        return self._kept(given, data if is_data else None)  # type: ignore[no-any-return]
