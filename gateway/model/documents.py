"""Resources of FHIR nodes that are passed on beside the studies (DiagnosticReport, ServiceRequest), each with whose it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.model.answer import Found
from gateway.model.query import Query
from gateway.model.study import Row
from gateway.model.vocabulary import Level

KINDS = ("DiagnosticReport", "ServiceRequest")


@dataclass(frozen=True, slots=True)
class Document:
    """One resource of one patient, as its node gave it, in the FHIR `version` that the node speaks.

    `id` is the node's own, which another node may use for something else; so may the node itself where it passes on what another
    server has at `address`. `row` says whose it is, and nothing of a study.
    `studies` are the StudyInstanceUIDs behind the references to ImagingStudy in it, as far as they could be resolved.
    """

    kind: str
    version: str
    id: str
    resource: dict[str, Any]
    row: Row
    studies: Mapping[str, str] = field(default_factory=dict)
    address: str = ""

    @property
    def node(self) -> str:
        return self.row.node

    @property
    def bearer(self) -> Found:
        """Its patient, in the form that conditions on patients are written for."""
        return Found(Level.STUDY, self.row.patient, "", "", "", self.row.attributes, (self.row,))


@dataclass(frozen=True, slots=True)
class DocumentSearch:
    """What is asked of all nodes: the documents of `kind` that answer everything given, at least one of these four.

    `patient` has keys on PatientID and its issuer; `is_theirs` decides on what a node gave. `identifiers` are FHIR tokens
    (system|value), ORed. `study` is a StudyInstanceUID. `ids` are the nodes' own ids, by node: other nodes are not asked.
    """

    kind: str
    patient: Query = field(default_factory=lambda: Query(Level.STUDY))
    is_theirs: Callable[[Found], bool] | None = None
    identifiers: tuple[str, ...] = ()
    study: str = ""
    ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
