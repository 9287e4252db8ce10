"""What a federated question gives back: the items, and one issue for every node that failed or could not say everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.errors import NodeError
from gateway.model.dataset import Dataset
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import Level

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Issue:
    """What is missing from an answer and why. `node` is '' when it concerns the whole; `text` is safe to show."""

    node: str
    code: str
    text: str

    @staticmethod
    def of(error: NodeError) -> Issue:
        return Issue(error.node, error.code, error.detail)


STALE = "GW210"


def stale_issue(node: str, seconds: float) -> Issue:
    """The node could not be asked: what it said `seconds` ago stands in."""
    return Issue(node, STALE, f"node {node}: did not answer; what is shown of it is {seconds:.0f} s old")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Item]):
    """`issues` empty means that every selected node completed: only then are the items the whole truth."""

    items: tuple[Item, ...] = ()
    issues: tuple[Issue, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.issues


@dataclass(slots=True)  # not frozen, as Row
class Found:
    """One study, series or instance of one patient, whoever holds it.

    `attributes` come whole from the winner, `rows[0]`, except what follows the union of the holders (counts, modalities).
    `rows` has one row per holding node, winner first. `ambiguous` is '' normally; 'clash' when the same UID also names another
    patient of the same issuer, 'unlinked' when it also names a patient of an issuer nobody linked to this one.
    `counted` says that the counts were checked against every holder. `in_node` marks a clash inside one node.
    `patients` are all identifiers that the holders know this one patient by; by default those of `rows`.
    `updated` is when it was first seen or last seen to change (ms since the epoch), where that was asked for and is known.
    Treat it as frozen.
    """

    level: Level
    patient: PatientKey
    study: str
    series: str
    instance: str
    attributes: Dataset
    rows: tuple[Row, ...]
    ambiguous: str = ""
    in_node: bool = False
    counted: bool = True
    patients: frozenset[PatientKey] = frozenset()
    updated: int | None = None

    def __post_init__(self) -> None:
        if not self.patients:
            self.patients = frozenset(row.patient for row in self.rows)

    @property
    def origin(self) -> str:
        """The node whose description this is."""
        return self.rows[0].node

    @property
    def holders(self) -> tuple[str, ...]:
        """The nodes that hold it, winner first."""
        return tuple(row.node for row in self.rows)

    @property
    def known_as(self) -> frozenset[PatientKey]:
        """`patients` and the other identifiers that (0010,1002) of any holder gives."""
        return self.patients.union(*(row.linked for row in self.rows))
