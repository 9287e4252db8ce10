"""Many nodes' rows into one result each: by UID *and* by patient, so that no result ever holds two people.

The rules are house rules of identity and of merging; tests/federation/test_merge.py holds them over random node answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.model.answer import Found
from gateway.model.dataset import Dataset, attribute, text, texts, whole_number
from gateway.model.patient import PatientKey
from gateway.model.study import Row
from gateway.model.vocabulary import (
    INSTANCE_AVAILABILITY,
    MODALITIES_IN_STUDY,
    MODALITY,
    SERIES_INSTANCE_COUNT,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    Level,
)

_AVAILABILITY = {"": 0, "ONLINE": 0, "NEARLINE": 1, "OFFLINE": 2, "UNAVAILABLE": 3}
_COUNTS = {
    Level.STUDY: (STUDY_SERIES_COUNT, STUDY_INSTANCE_COUNT),
    Level.SERIES: (SERIES_INSTANCE_COUNT,),
    Level.IMAGE: (),
}


@dataclass(frozen=True, slots=True)
class Domains:
    """Which issuers share one space of identifiers: `[[same_patient_domain]]` of the node file."""

    groups: tuple[frozenset[str], ...] = ()

    def same(self, a: str, b: str) -> bool:
        return any(a in group and b in group for group in self.groups)


def same_patient(a: Row, b: Row, domains: Domains) -> bool:
    """Whether two rows of different nodes, or of one, are known to be of one patient.

    Same issuer and id; or different issuers that (0010,1002) of either, or a same-patient domain, links. A patient without
    an id is the same only within its own node: nothing proves more.
    """
    if not a.patient.is_named or not b.patient.is_named:
        return a.patient == b.patient and a.node == b.node
    if a.patient == b.patient:
        return True
    if a.patient.issuer == b.patient.issuer:
        return False
    if b.patient in a.linked or a.patient in b.linked:
        return True
    return a.patient.id == b.patient.id and domains.same(a.patient.issuer, b.patient.issuer)


def merge(rows: Iterable[Row], domains: Domains, priority: Mapping[str, int]) -> list[Found]:
    """One Found per UID and patient, in no particular order. `priority` ranks nodes (lower wins); all rows are of one level."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.uids].append(row)
    return [found for group in groups.values() for found in _merge_group(group, domains, priority)]


def _merge_group(group: list[Row], domains: Domains, priority: Mapping[str, int]) -> list[Found]:
    """The results of one UID: one, or one per patient when it names several."""
    if len(group) == 1:
        return [_alone(group[0], "", False)]
    clusters = _clusters(group, domains)
    return [
        _found(cluster, _ambiguity(cluster, clusters), _shares_node(cluster, clusters), priority)
        for cluster in clusters
    ]


def _clusters(group: list[Row], domains: Domains) -> list[list[Row]]:
    """Rows of one patient each. A chain of links that would join two ids of one issuer is not followed at all."""
    exact: dict[tuple[PatientKey, str], list[Row]] = defaultdict(list)
    for row in group:
        exact[row.patient, "" if row.patient.is_named else row.node].append(row)
    cells = list(exact.values())
    joined: list[list[Row]] = []
    for component in _components(cells, domains):
        together = [row for cell in component for row in cell]
        joined.extend([together] if _is_one_patient(together) else component)
    return joined


def _components(cells: list[list[Row]], domains: Domains) -> list[list[list[Row]]]:
    """The cells that links connect, directly or through others."""
    remaining, components = list(cells), []
    while remaining:
        component, frontier = [], [remaining.pop(0)]
        while frontier:
            cell = frontier.pop()
            component.append(cell)
            near = [other for other in remaining if any(same_patient(a, b, domains) for a in cell for b in other)]
            remaining = [other for other in remaining if other not in near]
            frontier.extend(near)
        components.append(component)
    return components


def _is_one_patient(rows: Sequence[Row]) -> bool:
    """No issuer gives two different ids."""
    ids: dict[str, str] = {}
    return all(ids.setdefault(row.patient.issuer, row.patient.id) == row.patient.id for row in rows)


def _ambiguity(cluster: list[Row], clusters: list[list[Row]]) -> str:
    if len(clusters) == 1:
        return ""
    mine = {row.patient.issuer for row in cluster}
    others = {row.patient.issuer for other in clusters if other is not cluster for row in other}
    return "clash" if mine & others else "unlinked"


def _shares_node(cluster: list[Row], clusters: list[list[Row]]) -> bool:
    mine = {row.node for row in cluster}
    return any(row.node in mine for other in clusters if other is not cluster for row in other)


def _found(cluster: list[Row], ambiguous: str, in_node: bool, priority: Mapping[str, int]) -> Found:
    """One result: the winner's attributes whole; only what exists follows the union of the holders."""
    if len(cluster) == 1:
        return _alone(cluster[0], ambiguous, in_node)
    best: dict[str, Row] = {}
    for row in sorted(cluster, key=lambda row: _rank(row, priority)):
        best[row.node] = _also_known(best[row.node], row) if row.node in best else row
    rows = tuple(best.values())
    winner = rows[0]
    attributes = dict(winner.attributes)
    counted = len(rows) == 1
    if not counted:
        _follow_union(attributes, winner.level, rows)
    return Found(
        winner.level,
        winner.patient,
        *winner.uids,
        attributes,
        rows,
        ambiguous=ambiguous,
        in_node=in_node,
        counted=counted,
        patients=frozenset(row.patient for row in cluster),
    )


def _alone(row: Row, ambiguous: str, in_node: bool) -> Found:
    """One holder's row as a result: most are, so this is what a search of many costs."""
    known = frozenset((row.patient,))
    return Found(row.level, row.patient, *row.uids, row.attributes, (row,), ambiguous, in_node, patients=known)


def _also_known(kept: Row, other: Row) -> Row:
    """The better row of one node, with the identifiers that the node knows the same patient by in the other."""
    return kept if other.patient == kept.patient else replace(kept, linked=kept.linked | {other.patient})


def _rank(row: Row, priority: Mapping[str, int]) -> tuple[int, int, int, str]:
    """Availability first, then completeness, then the node's priority: a stable order, whatever order the rows came in."""
    availability = _AVAILABILITY.get(text(row.attributes, INSTANCE_AVAILABILITY), 0)
    return availability, -_instances(row), priority.get(row.node, 0), row.node


def _instances(row: Row) -> int:
    tag = {Level.STUDY: STUDY_INSTANCE_COUNT, Level.SERIES: SERIES_INSTANCE_COUNT}.get(row.level)
    return (tag and whole_number(row.attributes, tag)) or 0


def _follow_union(attributes: Dataset, level: Level, rows: Sequence[Row]) -> None:
    """Several holders: modalities are the union, counts are left out until every holder was asked one level down."""
    for count in _COUNTS[level]:
        attributes.pop(count, None)
    modalities = union(texts(row.attributes, MODALITIES_IN_STUDY) for row in rows)
    if level is Level.STUDY and modalities:
        attributes[MODALITIES_IN_STUDY] = attribute(MODALITIES_IN_STUDY, modalities)


def union(groups: Iterable[Iterable[str]]) -> list[str]:
    """Each text once, sorted."""
    return sorted({text_ for group in groups for text_ in group})


def with_counts(found: Found, series: Sequence[Found], instances: int | None) -> Found:
    """A study of several holders once its series were asked of each: its counts and modalities follow their union.

    `instances` None leaves the instance count out: it is not known, so it is not claimed.
    """
    attributes = dict(found.attributes)
    attributes[STUDY_SERIES_COUNT] = attribute(STUDY_SERIES_COUNT, [len(series)])
    if instances is not None:
        attributes[STUDY_INSTANCE_COUNT] = attribute(STUDY_INSTANCE_COUNT, [instances])
    modalities = union(
        [*(texts(one.attributes, MODALITY) for one in series), texts(found.attributes, MODALITIES_IN_STUDY)]
    )
    if modalities:
        attributes[MODALITIES_IN_STUDY] = attribute(MODALITIES_IN_STUDY, modalities)
    return replace(found, attributes=attributes, counted=instances is not None)
