"""Media types and Accept lists as DICOMweb peers really write them (RFC 9110 8.3.1, 12.5.1; PS3.18 8.7)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_UTF_8 = ("utf-8", "utf8", "*", "")


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type or range. Type, subtype and parameter names are lower-case; values are unquoted, their case kept."""

    type: str
    subtype: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def essence(self) -> str:
        """'multipart/related', without parameters."""
        return f"{self.type}/{self.subtype}"

    @property
    def quality(self) -> float:
        """The q-weight, 0.0 to 1.0; 1.0 when absent, 0.0 when it cannot be read."""
        try:
            weight = float(self.parameters.get("q", "1"))
        except ValueError:
            return 0.0
        return min(max(weight, 0.0), 1.0) if weight == weight else 0.0

    def accepts(self, essence: str) -> bool:
        """Whether this range takes in a type such as 'application/dicom'; parameters are not looked at."""
        type_, _, subtype = essence.lower().partition("/")
        return self.type in ("*", type_) and self.subtype in ("*", subtype)

    def takes(self, offer: MediaType) -> int:
        """How closely this range describes what is offered: 0 not at all, 1 '*/*', 2 'type/*', 3 the type itself, 4 with
        the type of its parts. A character set other than UTF-8 is never offered."""
        if not self.accepts(offer.essence) or self.parameters.get("charset", "utf-8").lower() not in _UTF_8:
            return 0
        if "*" in (self.type, self.subtype):
            return 1 if self.type == "*" else 2
        inner = self.parameters.get("type", "*/*").lower()
        if "type" not in offer.parameters or inner == "*/*":
            return 3
        return 4 if parse_media_type(inner).accepts(offer.parameters["type"]) else 0

    def __str__(self) -> str:
        return "".join([self.essence, *(f"; {name}={quoted(value)}" for name, value in self.parameters.items())])


def quoted(value: str) -> str:
    """A parameter value as it is written: a token stays, anything else becomes a quoted-string (RFC 9110 5.6.4)."""
    if _TOKEN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def split_list(text: str, separator: str = ",") -> list[str]:
    """The members of a list header; separators inside quotes do not count, empty members fall out.

    A quote that is never closed reaches to the end.
    """
    members, start, in_quotes, escaped = [], 0, False, False
    for position, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\" and in_quotes:
            escaped = True
        elif character == '"':
            in_quotes = not in_quotes
        elif character == separator and not in_quotes:
            members.append(text[start:position])
            start = position + 1
    members.append(text[start:])
    return [member for member in map(str.strip, members) if member]


def parse_media_type(text: str) -> MediaType:
    """A media type from its header text; never raises: what has no slash gets an empty subtype, a bare '*' is '*/*'.

    Tolerated, because peers send them: an unquoted type=application/dicom; parameters inside the quotes of the inner
    type (type="application/dicom; transfer-syntax=*"), which come out beside it, an outer one of the same name winning.
    """
    essence, *rest = split_list(text, ";") or [""]
    type_, _, subtype = essence.lower().partition("/")
    if essence == "*":
        subtype = "*"
    parameters = _parameters(rest)
    inner = split_list(parameters.get("type", ""), ";")
    if len(inner) > 1:
        parameters = {**_parameters(inner[1:]), **parameters, "type": inner[0]}
    return MediaType(type_.strip(), subtype.strip(), parameters)


def parse_accept(text: str) -> list[MediaType]:
    """The ranges of an Accept header, preferred first; equal weights keep their order, a weight of 0 refuses."""
    return sorted(map(parse_media_type, split_list(text)), key=lambda range_: -range_.quality)


def preferred(ranges: Sequence[MediaType], offers: Sequence[MediaType]) -> int | None:
    """The place of the offer that the ranges (preferred first, as of `parse_accept`) like best; None where they take none.

    An offer has the weight of the range that describes it most closely (RFC 9110 12.5.1). Of equal weights the one of the
    earlier range counts, then the earlier offer.
    """
    weights = [_weight(ranges, offer) for offer in offers]
    best = max(range(len(offers)), key=lambda place: (weights[place], -place), default=0)
    return best if weights and weights[best][0] > 0 else None


def _weight(ranges: Sequence[MediaType], offer: MediaType) -> tuple[float, int]:
    closeness, place = max(((one.takes(offer), -place) for place, one in enumerate(ranges)), default=(0, 0))
    return (ranges[-place].quality, place) if closeness else (0.0, 0)


def _parameters(members: list[str]) -> dict[str, str]:
    """The first of a repeated name counts, so that a later one cannot contradict what was already negotiated."""
    parameters: dict[str, str] = {}
    for member in members:
        name, _, value = member.partition("=")
        parameters.setdefault(name.strip().lower(), _unquoted(value.strip()))
    return parameters


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    closing = re.match(r'"((?:[^"\\]|\\.)*)', value, re.DOTALL)
    return _ESCAPED.sub(r"\1", closing.group(1)) if closing else value
