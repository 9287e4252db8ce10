"""One row of one node's answer: a study, a series or an instance in DICOM terms, with its patient and its origin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gateway.errors import Unmappable
from gateway.model.dataset import Attribute, Dataset, attribute, is_uid, text
from gateway.model.patient import PatientKey, other_keys, patient_of
from gateway.model.vocabulary import INSTANCE_UID, ISSUER, OTHER_PATIENT_IDS, SERIES_UID, STUDY_UID, Level, keyword

_UID_TAGS = {
    Level.STUDY: (STUDY_UID,),
    Level.SERIES: (STUDY_UID, SERIES_UID),
    Level.IMAGE: (STUDY_UID, SERIES_UID, INSTANCE_UID),
}
_NOBODY: frozenset[PatientKey] = frozenset()


@dataclass(slots=True)  # not frozen: a search makes one per row, and that would cost it four times as much
class Row:
    """What one node said about one study, series or instance.

    `attributes` is the DICOM JSON model (upper-case tags) as the node gave it, patient and study attributes included;
    it always carries (0010,0021) = `patient.issuer` and the UIDs of its own level and above. `linked` are the patient's
    other identifiers by (0010,1002), `patient` not among them. `children` are rows of lower levels that the node gave
    in the same answer; none says nothing about what exists. Treat it and its `attributes` as frozen: copy before changing.
    """

    level: Level
    node: str
    patient: PatientKey
    study: str
    series: str = ""
    instance: str = ""
    attributes: Dataset = field(default_factory=dict)
    linked: frozenset[PatientKey] = frozenset()
    children: tuple[Row, ...] = ()

    @property
    def uid(self) -> str:
        """The UID of the row's own level."""
        return {Level.STUDY: self.study, Level.SERIES: self.series, Level.IMAGE: self.instance}[self.level]

    @property
    def uids(self) -> tuple[str, str, str]:
        """(study, series, instance), '' for the levels below: the row's place in the hierarchy, whatever its node."""
        return self.study, self.series, self.instance


def row_of(
    level: Level,
    node: str,
    attributes: Dataset,
    issuer: str,
    *,
    study: str = "",
    series: str = "",
    children: tuple[Row, ...] = (),
) -> Row:
    """A row from a data set, which is not changed. `issuer` is the node's `patient_id_issuer`.

    `study` and `series` are the UIDs asked under, used where the data set leaves them out. Raises Unmappable when a UID
    of `level` or above is missing or is no UID.
    """
    patient = patient_of(attributes, issuer)
    attributes = {**attributes, ISSUER: _single(ISSUER, patient.issuer)}
    uids, asked = ["", "", ""], (study, series, "")
    for place, tag in enumerate(_UID_TAGS[level]):
        told = text(attributes, tag)
        uid = uids[place] = _checked(level, tag, told or asked[place])
        if uid != told:
            attributes[tag] = _single(tag, uid)
    linked = other_keys(attributes) - {patient} if OTHER_PATIENT_IDS in attributes else _NOBODY
    return Row(level, node, patient, uids[0], uids[1], uids[2], attributes, linked, children)


@lru_cache(1024)
def _single(tag: str, value: str) -> Attribute:
    """Shared by the rows of a node, which mostly lack the issuer: attributes are frozen."""
    return attribute(tag, [value])


def _checked(level: Level, tag: str, uid: str) -> str:
    uid = uid.rstrip(" \0")
    if not is_uid(uid):
        raise Unmappable(f"a {level} record has no {keyword(tag)}" + (" that is a UID" if uid else ""))
    return uid


def to_plain(row: Row) -> dict[str, Any]:
    """The row as plain JSON values, for the cache; `from_plain` is its inverse."""
    return {
        "level": row.level,
        "node": row.node,
        "patient": [row.patient.issuer, row.patient.id],
        "uids": list(row.uids),
        "attributes": row.attributes,
        "linked": sorted([key.issuer, key.id] for key in row.linked) if row.linked else [],
        "children": [to_plain(child) for child in row.children] if row.children else [],
    }


def from_plain(plain: dict[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError for anything `to_plain` did not make."""
    study, series, instance = plain["uids"]
    return Row(
        level=Level(plain["level"]),
        node=plain["node"],
        patient=PatientKey(*plain["patient"]),
        study=study,
        series=series,
        instance=instance,
        attributes=plain["attributes"],
        linked=frozenset(PatientKey(*key) for key in plain["linked"]),
        children=tuple(from_plain(child) for child in plain["children"]),
    )
