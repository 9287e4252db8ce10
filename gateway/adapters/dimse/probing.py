"""Finds out what a DIMSE node does and how it matches, by asking it; for `ping` and the planning of searches."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field

from pydicom import Dataset as Identifier
from pydicom.uid import UID
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from gateway.adapters.dimse.associations import NodeAssociation
from gateway.adapters.dimse.operations import Associations, Operation, find_context
from gateway.adapters.dimse.retrieving import Models
from gateway.errors import NodeProtocolError, NodeRefused, Unsupported
from gateway.model.dataset import Dataset, text
from gateway.model.spans import span
from gateway.model.vocabulary import PATIENT_NAME, STUDY_DATE, STUDY_TIME, STUDY_UID
from gateway.wire.dicomjson import to_json
from gateway.wire.widen import widen_times

_SAMPLE, _FORMS = 50, 3
_RELATIONAL = b"\x01"  # PS3.4 Table C.5.1-1: byte 1 of the application information
PATIENT_ROOT = Models(
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
)
STUDY_ROOT = Models(
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)


QUIRKS = (
    "ignores-modalities-in-study",
    "matches-names-case-sensitively",
    "does-not-match-times",
    "not-relational",
    "series-without-study-but-not-negotiated",
)


@dataclass(slots=True)
class Findings:
    """What the node showed. None: it could not be told from what the node holds."""

    capabilities: list[str] = field(default_factory=list)
    implementation: str = ""
    latency: float = 0.0
    is_relational: bool = False
    negotiates_relational: bool = False
    ignores_modalities: bool | None = None
    ignores_case: bool | None = None
    takes_times: bool | None = None
    character_sets: set[str] = field(default_factory=set)

    @property
    def quirks(self) -> tuple[str, ...]:
        found = (
            self.ignores_modalities is True,
            self.ignores_case is False,
            self.takes_times is False,
            not self.is_relational,
            self.is_relational and not self.negotiates_relational,
        )
        return tuple(quirk for quirk, holds in zip(QUIRKS, found, strict=True) if holds)


class Probing:
    """One probe, in its thread."""

    def __init__(self, associations: Associations, models: Models, character_set: str) -> None:
        self._associations = associations
        self._models = models
        self._character_set = character_set
        self._character_sets: set[str] = set()
        self._other = PATIENT_ROOT if models == STUDY_ROOT else STUDY_ROOT

    def run(self, operation: Operation[Findings]) -> None:
        """Puts one Findings. Raises NodeError when the node accepts nothing, or accepts C-ECHO and does not answer it."""
        findings, begun = Findings(), time.perf_counter()
        with self._associations.other(operation, self._association()) as association:
            findings.latency = time.perf_counter() - begun
            self._learn_capabilities(association, findings)
        if "find" in findings.capabilities:
            self._learn(operation, findings)
        operation.channel.put(findings)

    def _association(self) -> NodeAssociation:
        models = (self._models, self._other)
        wanted = [Verification, *(getattr(model, name) for model in models for name in ("find", "get", "move"))]
        contexts: list[PresentationContext] = [context for model in wanted for context in find_context(model)]
        extension = SOPClassExtendedNegotiation()
        extension.sop_class_uid = UID(self._models.find)
        extension.service_class_application_information = _RELATIONAL
        return NodeAssociation(self._associations.peer, contexts, extended=[extension])

    def _learn_capabilities(self, association: NodeAssociation, findings: Findings) -> None:
        if association.accepts(Verification):
            begun = time.perf_counter()
            association.echo()
            findings.latency = time.perf_counter() - begun
            findings.capabilities.append("echo")
        findings.implementation = association.implementation
        findings.negotiates_relational = association.extension(self._models.find)[:1] == _RELATIONAL
        for name in ("find", "get", "move"):
            if association.accepts(getattr(self._models, name)):
                findings.capabilities.append(name)
            elif association.accepts(getattr(self._other, name)):
                findings.capabilities.append(f"{name} (other root only)")

    def _learn(self, operation: Operation[Findings], findings: Findings) -> None:
        asked = ("PatientName", "ModalitiesInStudy", "SpecificCharacterSet", "StudyDate", "StudyTime")
        rows = self._rows(operation, "STUDY", **dict.fromkeys(asked))
        findings.character_sets = self._character_sets - {""}
        self._learn_modalities(operation, findings, rows)
        self._learn_case(operation, findings, rows)
        self._learn_times(operation, findings, rows)
        below = {text(row, STUDY_UID) for row in self._rows(operation, "SERIES", SeriesInstanceUID=None)}
        findings.is_relational = bool(below - {""}) and (len(below) > 1 or len(rows) == 1)

    def _learn_modalities(self, operation: Operation[Findings], findings: Findings, rows: list[Dataset]) -> None:
        if rows:
            findings.ignores_modalities = bool(
                self._rows(operation, StudyInstanceUID=text(rows[0], STUDY_UID), ModalitiesInStudy="ZZ")
            )

    def _learn_case(self, operation: Operation[Findings], findings: Findings, rows: list[Dataset]) -> None:
        """Asks for one study under its own name with the case of every letter turned."""
        for row in rows:
            name, study = text(row, PATIENT_NAME), text(row, STUDY_UID)
            turned = name.swapcase()
            if study and name.isascii() and turned != name and not set(name) & set("*?=\\"):
                if self._rows(operation, StudyInstanceUID=study, PatientName=name):
                    findings.ignores_case = bool(self._rows(operation, StudyInstanceUID=study, PatientName=turned))
                return

    def _learn_times(self, operation: Operation[Findings], findings: Findings, rows: list[Dataset]) -> None:
        """Asks for a study of each form that times are written in by its second, and by the hours before and behind."""
        forms = {re.sub("[0-9]", "0", text(row, STUDY_TIME)): row for row in rows if text(row, STUDY_DATE)}
        for row in [row for row in forms.values() if span("TM", text(row, STUDY_TIME))][:_FORMS]:
            study, day, clock = (text(row, tag_) for tag_ in (STUDY_UID, STUDY_DATE, STUDY_TIME))
            ranges = (widen_times(clock, clock), *_others(clock))
            found = [
                bool(self._rows(operation, StudyInstanceUID=study, StudyDate=day, StudyTime=each)) for each in ranges
            ]
            findings.takes_times = findings.takes_times is not False and found == [True, *[False] * (len(ranges) - 1)]

    def _rows(self, operation: Operation[Findings], level: str = "STUDY", **keys: str | None) -> list[Dataset]:
        """A sample of rows; none where the node refuses the question. With more to come, the association is aborted."""
        rows: list[Dataset] = []
        identifier = _identifier(level, **{"StudyInstanceUID": None, **keys})
        with (
            suppress(NodeRefused, NodeProtocolError, Unsupported),
            self._associations.searching(operation) as association,
        ):
            for response in association.find(identifier, self._models.find):
                row = response.identifier() if response.is_pending else None
                if row is not None:
                    self._character_sets.add(_declared(row))
                    rows.append(to_json(row, default_character_set=self._character_set))
                if len(rows) >= _SAMPLE:
                    association.end()
                    break
        return rows


def _others(clock: str) -> list[str]:
    """Ranges of what is before the hour of a time, and of what is after."""
    hour = int(clock[:2])
    before = [widen_times("00", f"{hour - 1:02}")] if hour else []
    behind = [widen_times(f"{hour + 1:02}", "23")] if hour < 23 else []
    return before + behind


def _declared(row: Identifier) -> str:
    """(0008,0005) as the node sends it."""
    value = row.get("SpecificCharacterSet") or ""
    return value if isinstance(value, str) else "\\".join(map(str, value))


def _identifier(level: str, **keys: str | None) -> Identifier:
    identifier = Identifier()
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    identifier.QueryRetrieveLevel = level
    return identifier
