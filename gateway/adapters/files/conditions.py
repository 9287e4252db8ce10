"""A NativeQuery as SQL over the index of files: what SQL can decide exactly, and an account of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import InvalidQuery
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import (
    INSTANCE_UID,
    MODALITIES_IN_STUDY,
    MODALITY,
    PATIENT_ID,
    SERIES_UID,
    SOP_CLASS_UID,
    STUDY_DATE,
    STUDY_UID,
    Level,
)
from gateway.model.vocabulary import path as path_of

STUDY = ("study", "issuer", "patient")
"""The columns that make one study: two patients under one Study Instance UID are two."""
_UID_COLUMNS = {STUDY_UID: "study", SERIES_UID: "series", INSTANCE_UID: "instance", SOP_CLASS_UID: "sop_class"}


@dataclass(slots=True)
class Conditions:
    """A query as SQL: a WHERE clause with its values, and the native paths it takes care of."""

    clauses: list[str] = field(default_factory=lambda: ["1"])
    values: list[Any] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def add(self, clause: str, values: Sequence[Any]) -> None:
        self.clauses.append(clause)
        self.values.extend(values)

    @property
    def where(self) -> str:
        return " AND ".join(self.clauses)


def conditions(query: NativeQuery) -> Conditions:
    """What SQL can decide exactly; the rest is reported as ignored and left to whoever asked."""
    found = Conditions()
    for column, uid in (("study", query.study), ("series", query.series)):
        if uid:
            found.add(f"{column} = ?", [uid])
    for match in query.match:
        try:
            path = path_of(match.path)
        except InvalidQuery:
            found.unknown.add(match.path)
            continue
        condition = _condition(path, match, query.level) if len(path) == 1 else None
        if condition is None:
            found.ignored.add(match.path)
        else:
            found.add(*condition)
            found.matched.add(match.path)
    return found


def _condition(path: tuple[str, ...], match: NativeMatch, level: Level) -> tuple[str, Sequence[Any]] | None:
    is_listed = match.operator in (Operator.EXACT, Operator.LIST)
    marks = ", ".join("?" * len(match.values))
    if path[0] in _UID_COLUMNS and is_listed:
        return f"{_UID_COLUMNS[path[0]]} IN ({marks})", match.values
    if path[0] == PATIENT_ID and is_listed:
        return f"patient IN ({marks})", [value.strip() for value in match.values]
    if path[0] == STUDY_DATE:
        return _date_condition(match)
    if path[0] == MODALITY and is_listed and level is not Level.STUDY:
        return f"modality IN ({marks})", match.values
    if path[0] == MODALITIES_IN_STUDY and is_listed:
        group = ", ".join(STUDY)
        return f"({group}) IN (SELECT {group} FROM held WHERE modality IN ({marks}))", match.values  # noqa: S608
    return None


def _date_condition(match: NativeMatch) -> tuple[str, Sequence[Any]] | None:
    """A date that is not written YYYYMMDD (ACR-NEMA wrote dots) is left for whoever asked to decide."""
    low, high = match.values[0], match.values[-1]
    if match.operator is Operator.RANGE:
        return "(length(study_date) <> 8 OR study_date BETWEEN ? AND ?)", [low or "0", high or "9"]
    if match.operator is Operator.EXACT:
        return "(length(study_date) <> 8 OR study_date = ?)", [low]
    return None
