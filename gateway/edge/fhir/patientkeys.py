"""Search parameters of Patient, for Patient itself and chained from ImagingStudy: identifier, name, birth date, id.

A patient is (issuer, id): a name or a birth date finds studies, it never says that two of them are one patient's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.edge.fhir.criteria import Criteria, Key, Parser, any_of
from gateway.edge.fhir.datekeys import add_dates
from gateway.edge.fhir.imagingstudy import BIRTH_DATE, GENDERS, SEX, Renderer, display_name
from gateway.edge.fhir.searchgrammar import plain, reference, token
from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery
from gateway.model.answer import Found
from gateway.model.dataset import PN_GROUPS, text, values
from gateway.model.folding import fold, fold_name
from gateway.model.moments import parse_date
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator
from gateway.model.vocabulary import PATIENT_ID, PATIENT_NAME

_GENDER = "http://hl7.org/fhir/administrative-gender"
_WORD = re.compile(r"\w+")
_COMPONENTS = {"name": slice(0, 5), "family": slice(0, 1), "given": slice(1, 3)}


async def references(criteria: Criteria, values_: list[str], modifier: str, parameter: str = "patient") -> None:
    """Patient ids of ours: resolved to (issuer, id); one that was never given out finds nothing."""
    renderer = criteria.renderer
    ids = [reference(value, "Patient", renderer.base, parameter) for value in values_]
    keys = [await renderer.patients.key_of(identifier) for identifier in ids]
    if None in keys:
        criteria.unknown.append(
            f"{parameter}: this Patient id was not given out here, or not kept; search by patient.identifier"
        )
    criteria.add_patients([key for key in keys if key])


async def identifier(criteria: Criteria, values_: list[str], modifier: str) -> None:
    """system|value is one person; a bare value is refused by the federation when two issuers use it."""
    tokens = [token(value) for value in values_]
    if any(not value for _, value in tokens):
        raise InvalidQuery("a patient identifier needs a value", parameter="patient.identifier")
    if any(system == "" for system, _ in tokens):
        text_ = "every patient identifier here has a system: give it, or leave the '|' away"
        raise InvalidQuery(text_, parameter="patient.identifier")
    with_system = [(system, value) for system, value in tokens if system]
    if with_system and len(with_system) != len(tokens):
        raise InvalidQuery("give every alternative a system, or none", parameter="patient.identifier")
    if not with_system:
        criteria.matches.append(any_of((PATIENT_ID,), [value for _, value in tokens]))
        return
    issuers = criteria.renderer.issuers.issuers
    criteria.add_patients([PatientKey(issuer, value) for system, value in with_system for issuer in issuers(system)])


def name_parser(element: str) -> Parser:
    """A string parameter over the parts of the name: begins with (by default), `:contains`, or `:exact`."""

    async def parse(criteria: Criteria, values_: list[str], modifier: str) -> None:
        wanted = [plain(value) for value in values_]
        if not all(wanted):
            raise InvalidQuery(f"{element} needs a text", parameter=element)
        if len(wanted) == 1:
            criteria.matches += _pushed(wanted[0])
        criteria.conditions.append(
            lambda found: any(_answers(part, one, modifier) for part in _parts(found, element) for one in wanted)
        )

    return parse


def _pushed(wanted: str) -> list[Match]:
    """What nodes can be asked for: the longest word, anywhere in the name; nothing for a text without words."""
    word = max(_WORD.findall(fold(wanted)), key=len, default="")
    return [Match((PATIENT_NAME,), Operator.WILDCARD, (f"*{word}*",))] if word else []


def _answers(part: str, wanted: str, modifier: str) -> bool:
    if modifier == "exact":
        return fold(part) == fold(wanted)
    if modifier == "contains":
        return fold_name(wanted) in fold_name(part)
    return fold_name(part).startswith(fold_name(wanted))


def _parts(found: Found, element: str) -> Iterator[str]:
    """The texts of a HumanName, of all three groups of the PN (PS3.5 6.2.1.2)."""
    for value in values(found.attributes, PATIENT_NAME)[:1]:
        groups = value if isinstance(value, dict) else {PN_GROUPS[0]: str(value)}
        for group in PN_GROUPS:
            components = [part.strip() for part in str(groups.get(group) or "").split("^")]
            yield from filter(None, components[_COMPONENTS[element]])
    if element == "name":
        yield display_name(found.attributes, PATIENT_NAME)


async def birth_date(criteria: Criteria, values_: list[str], modifier: str) -> None:
    """A date with a prefix."""
    add_dates(criteria, values_, "birthdate", BIRTH_DATE, _born)


def _born(found: Found) -> str | None:
    born = parse_date(text(found.attributes, BIRTH_DATE))
    return born.isoformat() if born else None


async def gender(criteria: Criteria, values_: list[str], modifier: str) -> None:
    """An administrative gender that DICOM has a code for."""
    codes = {gender: code for code, gender in GENDERS.items()}
    tokens = [token(value) for value in values_]
    if any(system not in (None, "", _GENDER) for system, _ in tokens):
        raise InvalidQuery(f"gender is coded in {_GENDER}", parameter="gender")
    wanted = [codes[one_of(code, codes, "gender")] for _, code in tokens]
    criteria.matches.append(any_of((SEX,), wanted))


def _has_name(renderer: Renderer, found: Found) -> bool:
    return bool(display_name(found.attributes, PATIENT_NAME))


_STRINGS = frozenset({"exact", "contains"})


def _name(element: str) -> Key:
    text_ = "begins with, without case and diacritics; :contains anywhere; :exact as written"
    parse = name_parser(element)
    return Key("string", parse, _STRINGS, present=_has_name if element == "name" else None, documentation=text_)


KEYS = {
    "identifier": Key(
        "token",
        identifier,
        present=lambda renderer, found: found.patient.is_named,
        documentation="system|value; a bare value that two issuers use is refused with 409",
    ),
    "_id": Key("token", references, documentation="an id that was given out here"),
    "name": _name("name"),
    "family": _name("family"),
    "given": _name("given"),
    "birthdate": Key(
        "date",
        birth_date,
        present=lambda renderer, found: _born(found) is not None,
        documentation="prefixes eq ne gt lt ge le sa eb ap",
    ),
    "gender": Key("token", gender, documentation="male, female or other"),
}
"""By name; chained from ImagingStudy as patient.<name> and subject.<name>."""
