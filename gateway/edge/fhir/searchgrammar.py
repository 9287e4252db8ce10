"""The grammar of a FHIR search: names with modifiers and chains, alternatives, escapes, tokens (FHIR R4 search 3.1.1.4)."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery

_ESCAPABLE = frozenset(",|$\\")


class NotSupported(InvalidQuery):
    """A parameter, or a modifier of one, that is not served: with `Prefer: handling=lenient` it is left out, and named."""


@dataclass(frozen=True, slots=True)
class Name:
    """A parameter's name taken apart: 'subject:Patient.name:exact' is of `base` subject, `type` Patient, `chain` name and
    `modifier` exact; what is not there is ''."""

    base: str
    type: str = ""
    chain: str = ""
    modifier: str = ""

    @property
    def key(self) -> str:
        """The parameter without its type and modifier: 'subject.name'."""
        return f"{self.base}.{self.chain}" if self.chain else self.base


def name_of(text: str) -> Name:
    """Never raises: what is no name that FHIR knows is a key that no table has."""
    head, dot, chain = text.partition(".")
    base, _, first = head.partition(":")
    if dot:
        chain, _, modifier = chain.partition(":")
        return Name(base, first, chain or "-", modifier)
    if first[:1].isupper():
        return Name(base, first)
    return Name(base, modifier=first)


def alternatives(raw: str, parameter: str) -> list[str]:
    """The pieces of a comma list, empty ones left out, their escapes kept. Raises InvalidQuery for commas alone."""
    pieces = [piece for piece in _split(raw, ",") if piece]
    if raw and not pieces:
        raise InvalidQuery(f"{parameter} has commas and no value", parameter=parameter)
    return pieces


def plain(piece: str) -> str:
    """A piece without its escapes: a backslash keeps ',', '|', '$' and itself from meaning anything."""
    text, escaped = [], False
    for character in piece:
        if escaped and character not in _ESCAPABLE:
            text.append("\\")
        if character == "\\" and not escaped:
            escaped = True
            continue
        text.append(character)
        escaped = False
    return "".join(text) + ("\\" if escaped else "")


def fields(piece: str) -> list[str]:
    """The fields between the bars of a piece, without escapes."""
    return [plain(field) for field in _split(piece, "|")]


def token(piece: str) -> tuple[str | None, str]:
    """(system, value) of a token; system None when there is no '|', '' for '|value'. What follows a second bar is the value's."""
    system, *rest = _split(piece, "|")
    return (plain(system), plain("|".join(rest))) if rest else (None, plain(system))


def _split(text: str, separator: str) -> list[str]:
    pieces, start, escaped = [], 0, False
    for position, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == separator:
            pieces.append(text[start:position])
            start = position + 1
    return [*pieces, text[start:]]


def reference(piece: str, type_: str, base: str, parameter: str) -> str:
    """The id of a reference to one of this server's resources of a type: 'Patient/1', '1', or its address below `base`.

    Raises InvalidQuery for a resource of another type or server.
    """
    where, _, identifier = plain(piece).rpartition("/")
    roots = (f"{base}/fhir{version}/{type_}" for version in ("", "/r4", "/r5"))
    if where not in ("", type_, *roots) or not identifier:
        raise InvalidQuery(f"{parameter} refers to a {type_} of this server: {type_}/<id>", parameter=parameter)
    return identifier


def is_true(values: list[str], parameter: str) -> bool:
    """A boolean parameter's one value. Raises InvalidQuery."""
    return one_of(single(values, parameter), ("true", "false"), parameter) == "true"


def single(values: list[str], parameter: str) -> str:
    """The one value of a parameter that takes no alternatives. Raises InvalidQuery."""
    if len(values) != 1:
        raise InvalidQuery(f"{parameter} takes one value", parameter=parameter)
    return values[0]
