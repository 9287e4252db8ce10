"""Tells the studies of two patients apart that have one StudyInstanceUID, also where an answer shows only one of them.

Where the other one lies on another page, or does not answer the search, nothing in the answer says that there is one; and whoever
collects studies by their ids would take the two for one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.cache import freshness
from gateway.cache.namesakes import Entry, Mark, NamesakeRecord, Shown, mark, node_mark
from gateway.federation.federate import Federation
from gateway.federation.merge import Domains
from gateway.federation.node import Node
from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.model.study import Row

_MOST_SETTLED = 1000
_PATIENCE = 1.5
"""Seconds that nodes have to tell of all that a page is in doubt about: who is silent longer leaves it in doubt."""

Asked = Mapping[str, Sequence[str]]
"""For each node (its id) the studies (UIDs) that it is asked for."""


def told_apart(found: Found) -> Found:
    """Of a UID that is said to be another patient's as well."""
    return replace(found, ambiguous=found.ambiguous or "clash")


def same_in_domains(found: Found, domains: Domains) -> Iterator[PatientKey]:
    """The identifiers that are its patient's by a `[[same_patient_domain]]`."""
    for key in (key for key in found.patients if key.is_named):
        for group in (group for group in domains.groups if key.issuer in group):
            yield from (PatientKey(issuer, key.id) for issuer in group)


@dataclass(slots=True)
class Namesakes:
    """What answers show is written into the `record`, and compared with what others showed before."""

    record: NamesakeRecord
    _settled: OrderedDict[int, Row] = field(default_factory=OrderedDict)

    async def told_apart(self, found: Sequence[Found], federation: Federation, nodes: Sequence[Node]) -> list[Found]:
        """The studies, in their order; what was shown as another patient's before is marked, unless each node that showed it so
        says that it is no more. `nodes` are those that the caller may ask: of any other one nobody knows."""
        unsettled = [one for one in found if not self._is_settled(one)]
        entries = [Entry(_marks(one, one.patients), frozenset(map(node_mark, one.holders))) for one in unsettled]
        recorded = await self.record.shown(
            [Shown(one.study, entry) for one, entry in zip(unsettled, entries, strict=True)]
        )
        here = _here(unsettled, entries)
        doubts = [
            doubt
            for one, known in zip(unsettled, recorded, strict=True)
            if known is not None and (doubt := _doubt(one, known, here[one.study], federation.domains))
        ]
        if doubts:
            await self._settle_doubts(doubts, federation, nodes)
        marked = {id(doubt.found): told_apart(doubt.found) for doubt in doubts if doubt.others}
        self._settle(
            one for one, known in zip(unsettled, recorded, strict=True) if known is not None and id(one) not in marked
        )
        return [marked.get(id(one), one) for one in found]

    async def _settle_doubts(self, doubts: Sequence[_Doubt], federation: Federation, nodes: Sequence[Node]) -> None:
        """Takes out of them what the nodes that said it say no more."""
        by_mark = {node_mark(node.id): node.id for node in nodes}
        for doubt in doubts:
            entries = (*doubt.others, *doubt.links)
            doubt.witnesses = {by_mark[one] for entry in entries for one in entry.nodes if one in by_mark}
        # What a node said before may bear out that there are two. That there are not, is for it to say anew.
        said, _ = await _said(_asked(doubts), federation, nodes)
        anew = [one for one in doubts if not one.is_borne_out(said[one.found.study], federation)]
        with freshness.asked_anew():
            said, silent = await _said(_asked(anew), federation, nodes)
        told = {one for one, node in by_mark.items() if node not in silent}
        for doubt in anew:
            doubt.hear(said[doubt.found.study], told, federation)
        await self.record.shown([Shown(one.found.study, None, one.gone) for one in doubts if one.gone])
        clashing = {doubt.found.study for doubt in doubts if doubt.others or doubt.gone}
        for key in [key for key, row in self._settled.items() if row.study in clashing]:
            del self._settled[key]

    def _is_settled(self, found: Found) -> bool:
        """Rows are shared by all who are given the same answer of a node: what they were shown as once is known."""
        return not found.ambiguous and all(self._settled.get(id(row)) is row for row in found.rows)

    def _settle(self, found: Iterable[Found]) -> None:
        self._settled.update((id(row), row) for one in found if not one.ambiguous for row in one.rows)
        while len(self._settled) > _MOST_SETTLED:
            self._settled.popitem(last=False)


@dataclass(slots=True, eq=False)
class _Doubt:
    """A study that was shown as `others`' as well: of whoever was not known to be its patient, or was by `links` alone, which may
    have been taken back. `gone` is what is no more so of all these."""

    found: Found
    others: list[Entry]
    links: list[Entry]
    witnesses: set[str] = field(default_factory=set)
    gone: list[Entry] = field(default_factory=list)

    def is_borne_out(self, rows: Sequence[Row], federation: Federation) -> bool:
        """Whether one of them is among the rows of the study. A node that shows it as this patient's, too, has to show both at
        once: it may have corrected whose it is."""
        shown = self._of_others(rows, federation)
        here = {row.node for row in rows if row.patient in self.found.patients}
        return self.witnesses.intersection(self.found.holders) <= here and any(one.marks & shown for one in self.others)

    def hear(self, rows: Sequence[Row], told: set[str], federation: Federation) -> None:
        """`told` are the nodes that gave all `rows` they have of the study."""
        shown = self._of_others(rows, federation)
        same = frozenset[Mark]().union(*(_same(one, federation.domains) for one in self._merged(rows, federation)))
        standing = [one for one in self.links if not one.nodes <= told or one.marks <= same]
        _, self.others = _parted(same.union(*(one.marks for one in standing)), self.others)
        self.gone = [one for one in self.others if one.nodes <= told and not one.marks & shown]
        self.others = [one for one in self.others if one not in self.gone]
        self.gone += [one for one in self.links if one not in standing]

    def _of_others(self, rows: Sequence[Row], federation: Federation) -> set[Mark]:
        """The marks of those whom the rows show and do not link to this patient."""
        same = {key for one in self._merged(rows, federation) for key in one.patients}
        return {_mark(row.study, row.patient, row.node) for row in rows if row.patient not in same}

    def _merged(self, rows: Sequence[Row], federation: Federation) -> list[Found]:
        """The study with what the rows add to it."""
        return [one for one in federation.merged([*rows, *self.found.rows]) if one.patients & self.found.patients]


def _asked(doubts: Iterable[_Doubt]) -> Asked:
    asked: dict[str, list[str]] = defaultdict(list)
    for doubt in doubts:
        for node in doubt.witnesses:
            asked[node].append(doubt.found.study)
    return asked


async def _said(
    asked: Asked, federation: Federation, nodes: Sequence[Node]
) -> tuple[Mapping[str, Sequence[Row]], set[str]]:
    """What the nodes have of the studies they are asked for, by study, and those that did not tell all of it."""
    said: dict[str, list[Row]] = defaultdict(list)
    if not asked:
        return said, set()
    ends = asyncio.get_running_loop().time() + _PATIENCE
    rows, issues = await federation.rows_at(asked, nodes, ends)
    for row in rows:
        said[row.study].append(row)
    silent = {node for issue in issues for node in issue.node.split(", ")}
    return said, set(asked) if "" in silent else silent


def _here(found: Iterable[Found], entries: Iterable[Entry]) -> Mapping[str, set[Entry]]:
    """What is shown now of each study: of whom one answer shows beside each other is told by `merge`."""
    here: dict[str, set[Entry]] = defaultdict(set)
    for one, entry in zip(found, entries, strict=True):
        here[one.study].add(entry)
    return here


def _doubt(found: Found, known: Sequence[Entry], here: set[Entry], domains: Domains) -> _Doubt | None:
    """None where nobody else is known. What was shown as two patients' who are one needs to be so still, if it alone makes one of
    others as well."""
    same, before = _same(found, domains), [one for one in known if one not in here]
    joined, _ = _parted(same, before)
    links = [one for one in joined if not one.marks <= same and len(one.marks) > 1]
    _, others = _parted(same, [one for one in before if one not in links])
    return _Doubt(found, others, links) if others else None


def _parted(same: frozenset[Mark], entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The entries of whoever bears these marks, directly, or through what was shown of him with another node; and the others'."""
    joined: list[Entry] = []
    others = list(entries)
    while near := [one for one in others if one.marks & same and not _differ(one.marks, same)]:
        others = [one for one in others if one not in near]
        joined += near
        same = same.union(*(one.marks for one in near))
    return joined, others


def _differ(one: frozenset[Mark], other: frozenset[Mark]) -> bool:
    """Whether an issuer would have given a patient two identifiers."""
    return any(a[0] == b[0] and a != b for a in one for b in other)


def _same(found: Found, domains: Domains) -> frozenset[Mark]:
    """The marks of whoever is known to be its patient, as `merge` knows it: no issuer gives him another identifier."""
    issuers = {key.issuer for key in found.patients}
    linked = (*found.known_as, *same_in_domains(found, domains))
    return _marks(found, [*found.patients, *(key for key in linked if key.issuer not in issuers)])


def _marks(found: Found, keys: Iterable[PatientKey]) -> frozenset[Mark]:
    return frozenset(_mark(found.study, key, found.origin) for key in keys)


def _mark(study: str, key: PatientKey, node: str) -> Mark:
    """A patient whom nobody named is his node's."""
    return mark(study, key.issuer, key.id if key.is_named else f"|{node}")
