"""Ids and references of the FHIR edge: ImagingStudy.id, Identifier.system, and the way back from each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, unquote

from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.model.query import check_uid

DICOM_UID = "urn:dicom:uid"
_ISSUER_PREFIX = "urn:imaging-gateway:issuer:"
# The 64 characters that a FHIR id may have (FHIR R4 datatypes, id).
_FHIR_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-."
_DIGITS = "0123456789."
_PACKED = 38


def study_id(found: Found, patient_mark: Callable[[PatientKey], str]) -> str:
    """The StudyInstanceUID; of a clash 8 hex of the patient, or of the node where he has no id, and the packed UID."""
    if not found.ambiguous:
        return found.study
    whose = patient_mark(min(found.patients)) if found.patient.is_named else node_mark(found.origin)
    return f"{whose[:8]}-{pack(found.study)}"


def names_study(identifier: str, found: Found, patient_mark: Callable[[PatientKey], str]) -> bool:
    """Whether an ImagingStudy.id is this study's. The id that tells a clash apart goes on naming it while the other study
    is not seen, because its node is silent or was not asked; the bare UID names it only while nothing contradicts."""
    if identifier == study_id(found, patient_mark):
        return True
    named = [patient_mark(key) for key in found.patients if key.is_named]
    return identifier in {f"{whose[:8]}-{pack(found.study)}" for whose in named or map(node_mark, found.holders)}


def node_mark(node: str) -> str:
    """What tells a node's ids from another's: 8 hex."""
    return hashlib.sha256(node.encode()).hexdigest()[:8]


def uid_of_id(identifier: str) -> str:
    """The StudyInstanceUID that an ImagingStudy.id holds. Raises InvalidQuery for an id that holds none."""
    if len(identifier) >= 9 + _PACKED and identifier[8] == "-":
        return check_uid(unpack(identifier[9 : 9 + _PACKED]), "_id")
    return check_uid(identifier, "_id")


def pack(uid: str) -> str:
    """A UID as 38 characters: its digits and dots as a number to the base 11, written to the base 64."""
    number = 0
    for character in "1" + uid:
        number = number * 11 + (_DIGITS.index(character))
    packed = ""
    for _ in range(_PACKED):
        number, rest = divmod(number, 64)
        packed = _FHIR_ALPHABET[rest] + packed
    return packed


def unpack(packed: str) -> str:
    """The inverse of `pack`; '' for what it did not make."""
    number = 0
    for character in packed:
        position = _FHIR_ALPHABET.find(character)
        if position < 0:
            return ""
        number = number * 64 + position
    uid = ""
    while number:
        number, rest = divmod(number, 11)
        uid = _DIGITS[rest] + uid
    return uid[1:]


class Issuers:
    """Identifier.system for an issuer and back, by what mappings and node files declare: `systems` has the one that each
    issuer is shown with, `issuers` the issuer of every system, so that both the OID and the URI of an authority find."""

    def __init__(self, systems: Mapping[str, str], issuers: Mapping[str, str] | None = None) -> None:
        self._systems = dict(systems)
        self._issuers = {system: issuer for issuer, system in systems.items()} | dict(issuers or {})

    def system(self, issuer: str) -> str:
        """A declared URI; an OID or URI as itself; any other text inside a URN of ours."""
        declared = self._systems.get(issuer)
        if declared:
            return declared
        if issuer.replace(".", "").isdecimal() and "." in issuer:
            return f"urn:oid:{issuer}"
        if issuer.startswith(("urn:", "http://", "https://")):
            return issuer
        return _ISSUER_PREFIX + quote(issuer, safe="")

    def issuers(self, system: str) -> tuple[str, ...]:
        """The issuers that a system may stand for, as rows may carry them."""
        found = [self._issuers.get(system, ""), system]
        if system.startswith("urn:oid:"):
            found.append(system.removeprefix("urn:oid:"))
        if system.startswith(_ISSUER_PREFIX):
            found.append(unquote(system.removeprefix(_ISSUER_PREFIX)))
        return tuple(dict.fromkeys(filter(None, found)))

    def are_same(self, one: str, other: str) -> bool:
        """Whether two systems mean the same authority; '' is none."""
        return one == other or not set(self.issuers(one)).isdisjoint(self.issuers(other))


def declared(pairs: Iterable[tuple[str, str]]) -> Issuers:
    """Issuers from (issuer, system) pairs; the first system of an issuer is the one shown."""
    systems: dict[str, str] = {}
    issuers: dict[str, str] = {}
    for issuer, system in pairs:
        systems.setdefault(issuer, system)
        issuers.setdefault(system, issuer)
    return Issuers(systems, issuers)
