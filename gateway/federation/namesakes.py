"""Tells the studies of two patients apart that have one StudyInstanceUID, also where an answer shows only one of them.

Where the other one lies on another page, or does not answer the search, nothing in the answer says that there is one; and whoever
collects studies by their ids would take the two for one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from gateway.cache import freshness
from gateway.cache.namesakes import NamesakeRecord, Shown, mark
from gateway.errors import GatewayError
from gateway.federation.fanout import in_parallel
from gateway.federation.federate import Federation
from gateway.federation.merge import Domains
from gateway.federation.node import Node
from gateway.model.answer import Answer, Found
from gateway.model.patient import PatientKey
from gateway.model.study import Row

_MOST_SETTLED = 1000
_PATIENCE = 3.0
"""Seconds for all that a page is in doubt about: who is silent longer leaves it in doubt."""


def told_apart(found: Found) -> Found:
    """Of a UID that is said to be another patient's as well, where nothing tells how far that one's study lies from here."""
    return replace(found, ambiguous=found.ambiguous or "clash", in_node=found.in_node or found.patient.is_named)


def same_in_domains(key: PatientKey, domains: Domains) -> Iterator[PatientKey]:
    """The identifiers of other issuers that are the same patient's by a `[[same_patient_domain]]`."""
    for group in domains.groups:
        if key.is_named and key.issuer in group:
            yield from (PatientKey(issuer, key.id) for issuer in group)


@dataclass(slots=True)
class Namesakes:
    """What answers show is written into the `record`, and compared with what others showed before."""

    record: NamesakeRecord
    _settled: OrderedDict[int, Row] = field(default_factory=OrderedDict)

    async def told_apart(
        self, found: Sequence[Found], federation: Federation, nodes: Sequence[Node], *, are_all: bool
    ) -> list[Found]:
        """The studies, in their order; what was shown as another patient's before is marked, unless each of the `nodes` says
        that it is no more. `nodes` are those that the caller may ask; `are_all` says that there are no others."""
        unsettled = [one for one in found if not self._is_settled(one)]
        here: dict[str, frozenset[str]] = {}
        for one in unsettled:
            here[one.study] = here.get(one.study, frozenset()) | _same(one, federation.domains)
        shown = await self.record.shown(list(map(_shown, unsettled)))
        told = [(one, marks) for one, marks in zip(unsettled, shown, strict=True) if marks is not None]
        doubtful = [one for one, marks in told if marks - here[one.study]]
        ends = asyncio.get_running_loop().time() + _PATIENCE
        answers = await in_parallel(doubtful, lambda one: _whose(one, federation, nodes, ends))
        verdicts = {id(one): _verdict(one, answer) for one, answer in zip(doubtful, answers, strict=True)}
        if are_all:
            cleared = [answer.items[0] for answer in answers if answer and _is_one(answer)]
            await self.record.shown([replace(_shown(one), only=True) for one in cleared])
        self._settle(one for one, _ in told if not verdicts.get(id(one), one).ambiguous)
        return [verdicts.get(id(one), one) for one in found]

    def _is_settled(self, found: Found) -> bool:
        """Rows are shared by all who are given the same answer of a node: what they were shown as once is known."""
        return all(self._settled.get(id(row)) is row for row in found.rows)

    def _settle(self, found: Iterable[Found]) -> None:
        self._settled.update((id(row), row) for one in found for row in one.rows)
        while len(self._settled) > _MOST_SETTLED:
            self._settled.popitem(last=False)


def _shown(found: Found) -> Shown:
    return Shown(found.study, _marks(found, found.patients))


def _same(found: Found, domains: Domains) -> frozenset[str]:
    """The marks of whoever is known to be its patient."""
    linked = [other for key in found.patients for other in same_in_domains(key, domains)]
    return _marks(found, [*found.known_as, *linked])


def _marks(found: Found, keys: Iterable[PatientKey]) -> frozenset[str]:
    """A patient whom nobody named is his node's."""
    return frozenset(mark(found.study, key.issuer, key.id if key.is_named else f"|{found.origin}") for key in keys)


async def _whose(found: Found, federation: Federation, nodes: Sequence[Node], ends: float) -> Answer[Found] | None:
    """What the nodes say now, and not what they said: an identifier may have been corrected. None where they do not."""
    try:
        async with asyncio.timeout_at(ends):
            with freshness.asked_anew():
                return await federation.studies(found.study, nodes)
    except (GatewayError, TimeoutError):
        return None


def _verdict(found: Found, answer: Answer[Found] | None) -> Found:
    """The study itself where it is nobody else's."""
    mine = [one for one in answer.items if one.patients & found.patients] if answer else []
    if len(mine) == 1 and mine[0].ambiguous:
        return replace(found, ambiguous=mine[0].ambiguous, in_node=mine[0].in_node)
    return found if mine and answer is not None and _is_one(answer) else told_apart(found)


def _is_one(answer: Answer[Found]) -> bool:
    return answer.complete and len(answer.items) == 1
