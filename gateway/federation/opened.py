"""One instance on its way from a node: opened, checked to be what was asked for, and read only as it passes."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import NodeProtocolError
from gateway.federation.node import Node
from gateway.model.dataset import Dataset, text
from gateway.model.patient import PatientKey
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


def check_instance(node: Node, ref: Ref, owner: Row, found: Dataset) -> Ref:
    """The instance's own place, after checking that it is what was asked for and of the patient it was found for.

    Raises NodeProtocolError: another study, series or instance, or another patient's, is never passed on.
    """
    study, series, instance = (text(found, tag) for tag in (STUDY_UID, SERIES_UID, INSTANCE_UID))
    asked = ((ref.study, study), (ref.series, series), (ref.instance, instance))
    if not (series and instance) or any(wanted and wanted != given for wanted, given in asked):
        raise NodeProtocolError(node.id, "sent another study, series or instance than the one asked for")
    if not _is_owners(node, owner, node.reader.patient(found, owner.patient.issuer)):
        raise NodeProtocolError(node.id, "sent an instance of another patient than the study's")
    return Ref(study, series, instance)


def _is_owners(node: Node, owner: Row, patient: PatientKey) -> bool:
    """The same key; or the same id where the search gave no issuer of its own; or an alias that the search gave.

    Where the mapping takes the patient id from elsewhere than (0010,0020), the files' own id says nothing.
    """
    if patient == owner.patient or patient in owner.linked or node.moves_patient_id:
        return True
    return patient.id == owner.patient.id and owner.patient.issuer == node.reader.issuer
