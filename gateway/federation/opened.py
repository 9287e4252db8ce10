"""One instance on its way from a node: opened, checked to be what was asked for, and read only as it passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.errors import NodeProtocolError
from gateway.federation.node import Node
from gateway.model.dataset import Attribute, Dataset, text
from gateway.model.patient import NAMING_A_PATIENT, PatientKey
from gateway.model.query import Ref
from gateway.model.study import Row
from gateway.model.vocabulary import INSTANCE_UID, SERIES_UID, STUDY_UID
from gateway.wire.part10 import Part10Error, Part10Stream


@dataclass(frozen=True, slots=True)
class OpenedInstance:
    """`stream` is used once, and before the next instance is asked for."""

    node: str
    ref: Ref
    stream: Part10Stream


async def drain(one: OpenedInstance) -> None:
    """Reads an instance to its end, for what taps it on the way. Raises NodeProtocolError when it is truncated."""
    try:
        async for _ in one.stream.raw():
            pass
    except Part10Error:
        raise NodeProtocolError(one.node, "sent a truncated instance") from None


@dataclass(slots=True)
class Bearer:
    """Whose the instances of one retrieve are: `owner`'s, the patient that their study was found for, and nobody else's."""

    node: Node
    owner: Row
    _named: set[PatientKey] = field(default_factory=set)
    _whose: tuple[Attribute | None, ...] = ()

    def check(self, ref: Ref, found: Dataset) -> Ref:
        """The instance's own place, after checking that it is what was asked for and of the patient it was found for.

        Raises NodeProtocolError: another study, series or instance, or another patient's, is never passed on.
        """
        study, series, instance = (text(found, tag) for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID))
        asked = ((ref.study, study), (ref.series, series), (ref.instance, instance))
        if not (series and instance) or any(wanted and wanted != given for wanted, given in asked):
            raise NodeProtocolError(self.node.id, "sent another study, series or instance than the one asked for")
        whose = tuple(map(found.get, NAMING_A_PATIENT))
        if whose != self._whose:  # of a series they are mostly all the same
            self._check_patient(found)
            self._whose = whose
        return Ref(study, series, instance)

    def _check_patient(self, found: Dataset) -> None:
        if not self._is_owners(self.node.reader.patient(found, self.owner.patient.issuer)):
            raise NodeProtocolError(self.node.id, "sent an instance of another patient than the study's")
        named = self.node.reader.patient(found, "")
        if any(not self._agree(named, other) for other in self._named):
            raise NodeProtocolError(self.node.id, "sent instances of two patients as one study")
        self._named.add(named)

    def _is_owners(self, patient: PatientKey) -> bool:
        """The same key; or the same id where the search gave no issuer of its own; or an alias that the search gave.

        Where the mapping takes the patient id from elsewhere than (0010,0020), the files' own id says nothing.
        """
        if patient == self.owner.patient or patient in self.owner.linked or self.node.moves_patient_id:
            return True
        return patient.id == self.owner.patient.id and self.owner.patient.issuer == self.node.reader.issuer

    def _agree(self, a: PatientKey, b: PatientKey) -> bool:
        """Whether two instances' own patients can be one: whatever the study is known by, the files may not contradict
        each other. One that names no issuer has any."""
        known = {self.owner.patient, *self.owner.linked}
        if a.id == b.id:
            return a.issuer == b.issuer or not (a.issuer and b.issuer) or known >= {a, b}
        return known >= {self._with_issuer(a), self._with_issuer(b)}

    def _with_issuer(self, patient: PatientKey) -> PatientKey:
        return patient if patient.issuer else PatientKey(self.owner.patient.issuer, patient.id)
