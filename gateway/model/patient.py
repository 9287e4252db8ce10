"""Who a patient is: (issuer, id) and nothing else. Names and birth dates never decide (house rule of identity)."""

from __future__ import annotations

from typing import NamedTuple

from gateway.model.dataset import Dataset, items, text
from gateway.model.vocabulary import ISSUER, ISSUER_QUALIFIERS, OTHER_PATIENT_IDS, PATIENT_ID, tag

NAMING_A_PATIENT = (PATIENT_ID, ISSUER, ISSUER_QUALIFIERS)
"""The attributes that `patient_of` looks at."""
_UNIVERSAL_ENTITY_ID = tag("UniversalEntityID")


class PatientKey(NamedTuple):
    """One identifier of one patient. `issuer` is never empty; an empty `id` is a patient nobody named.

    A tuple: every row has one, and is looked up by it several times.
    """

    issuer: str
    id: str

    @property
    def is_named(self) -> bool:
        return bool(self.id)


def issuer_of(dataset: Dataset, default: str) -> str:
    """(0010,0021), else the Universal Entity ID of (0010,0024), else `default` (the node's `patient_id_issuer`)."""
    issuer = text(dataset, ISSUER)
    if issuer:
        return issuer
    for qualifiers in items(dataset, ISSUER_QUALIFIERS):
        universal = text(qualifiers, _UNIVERSAL_ENTITY_ID)
        if universal:
            return universal
    return default


def patient_of(dataset: Dataset, default_issuer: str) -> PatientKey:
    """The patient that a data set names. Surrounding spaces are padding (PS3.5 6.2 LO) and do not count.

    An id with letters that could not be decoded names nobody: two such ids may differ in just those letters.
    """
    identifier = text(dataset, PATIENT_ID).strip()
    issuer = issuer_of(dataset, default_issuer) if ISSUER in dataset or ISSUER_QUALIFIERS in dataset else default_issuer
    return PatientKey(issuer, identifier if can_be_read(identifier) else "")


def can_be_read(identifier: str) -> bool:
    """Whether all of its letters are known: two may differ in just those that are not."""
    return "\ufffd" not in identifier


def other_keys(dataset: Dataset) -> frozenset[PatientKey]:
    """The identifiers of (0010,1002) that carry an issuer of their own; one without an issuer proves nothing."""
    found = set()
    for item in items(dataset, OTHER_PATIENT_IDS):
        key = patient_of(item, "")
        if key.issuer and key.id:
            found.add(key)
    return frozenset(found)
