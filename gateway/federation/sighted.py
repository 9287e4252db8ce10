"""Tells the record of sightings what results show of studies, and says of them when they were first seen, changed or gone."""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.cache import freshness
from gateway.cache.keys import canonical
from gateway.cache.sightings import Parts, Seen, Sightings, digest_of, node_of, part
from gateway.errors import RecordUnavailable
from gateway.federation.fanout import cancel_all
from gateway.federation.federate import Federation
from gateway.federation.holders import MOST_COMPLETED
from gateway.federation.node import Node
from gateway.model.answer import Found, Issue
from gateway.model.study import Row
from gateway.model.vocabulary import RETURNED, Level, tag
from gateway.telemetry import log, place_of
from gateway.wire.threads import apart

# What every search asks for and an ImagingStudy is made of: who it is of is in the name of the part.
_NO_FACTS = frozenset(map(tag, ("RetrieveURL", "PatientID", "IssuerOfPatientID")))
_OF_A_STUDY, _OF_A_SERIES = (tuple(sorted(set(RETURNED[level]) - _NO_FACTS)) for level in (Level.STUDY, Level.SERIES))
_MOST_NOTED = 512
_MOST_UNWRITTEN, _AT_ONCE = 20_000, 100
_OLD = 2.0
"""Seconds from which on an answer of a node is one from before."""


def seen_part(row: Row) -> tuple[str, str]:
    """The name of a node's part of a study, and the digest of what it says of it."""
    children = sorted(
        canonical([child.series, [child.attributes.get(each) for each in _OF_A_SERIES]]) for child in row.children
    )
    others = sorted((key.issuer, key.id) for key in row.linked)
    facts = b"".join((canonical([[row.attributes.get(each) for each in _OF_A_STUDY], others]), *children))
    return part(row.node, row.study, row.patient.issuer, row.patient.id), digest_of(row.study, facts)


def latest(parts: Parts, nodes: Collection[str]) -> int | None:
    """The last moment at which something of a study at these nodes was new, in milliseconds since the epoch."""
    return max((each.moment for name, each in parts.items() if node_of(name) in nodes), default=None)


@dataclass(frozen=True, slots=True)
class _Sight:
    """Rows as a caller saw them; `said` is when the oldest was told, on the loop's clock."""

    view: str
    rows: Sequence[Row]
    said: float


@dataclass(slots=True)
class Record:
    """What the pipeline tells the record. `view` is the digest of the view that something is seen through; studies and rows
    are as the nodes know them."""

    sightings: Sightings
    _noted: OrderedDict[tuple[str, int], Row] = field(default_factory=OrderedDict)
    _unwritten: deque[_Sight] = field(default_factory=deque)
    _writing: asyncio.Task[None] | None = None

    def note(self, view: str, found: Sequence[Found], issues: Sequence[Issue]) -> None:
        """Has what a search has found written down soon: nobody waits for it. Nothing of nodes with an issue: what they say may
        be old. What was noted of the same answer of a node before costs nothing; what there is no room for is seen another time.
        """
        if not self.sightings.is_kept:
            return
        doubtful = _named_in(issues)
        rows = [row for one in found for row in one.rows if row.node not in doubtful and not self._is_noted(view, row)]
        if not rows or sum(len(one.rows) for one in self._unwritten) > _MOST_UNWRITTEN:
            return
        said = asyncio.get_running_loop().time() - freshness.current().age
        self._unwritten.append(_Sight(view, rows, said))
        if self._writing is None or self._writing.done():
            # It belongs to no request: it must not carry the context of the one that began it.
            self._writing = asyncio.create_task(self._write(), name="sightings", context=contextvars.Context())

    async def close(self) -> None:
        """Gives up what is not written down yet."""
        self._unwritten.clear()
        await cancel_all([self._writing] if self._writing else [])

    async def _write(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._unwritten:
            sight = self._unwritten.popleft()
            rows = [row for row in sight.rows if not self._is_noted(sight.view, row)]
            for first in range(0, len(rows), _AT_ONCE):
                some = rows[first : first + _AT_ONCE]
                try:
                    await self.sightings.observe(sight.view, _seen(some, is_old=clock() - sight.said >= _OLD))
                except RecordUnavailable:
                    self._unwritten.clear()
                    return
                except Exception as error:  # noqa: BLE001 - odd data of one node do not keep all others from being seen
                    log().error("fault", kind=type(error).__name__, reason=place_of(error))
                self._remember(sight.view, some)

    async def of_study(
        self, view: str, found: Sequence[Found], nodes: Sequence[Node], issues: Sequence[Issue]
    ) -> int | None:
        """Writes down all that the nodes have of one study, and gives the moment since when it is so; None when that is not
        known."""
        if not self.sightings.is_kept:
            return None
        doubtful = _named_in(issues)
        rows = [row for one in found for row in one.rows if row.node not in doubtful]
        parts = dict(map(seen_part, rows))
        told = [node.id for node in nodes if node.id not in doubtful]
        try:
            (recorded,) = await self.sightings.observe(view, [Seen(found[0].study, parts, told, _is_old())])
        except RecordUnavailable:
            return None
        self._remember(view, rows)
        if any(recorded[name].digest != digest for name, digest in parts.items()):
            return None  # somebody saw it change since: what is shown is from before
        return latest(recorded, {node.id for node in nodes})

    async def was_here(self, view: str, study: str, nodes: Sequence[Node]) -> bool:
        """Whether one of the nodes was seen to have the study."""
        if not self.sightings.is_kept:
            return False
        try:
            (recorded,) = await self.sightings.observe(view, [Seen(study)])
        except RecordUnavailable:
            return False
        asked = {node.id for node in nodes}
        return any(node_of(name) in asked for name in recorded)

    async def gone(self, view: str, study: str, nodes: Sequence[Node]) -> None:
        """Writes down that none of the nodes has the study any more."""
        try:
            await self.sightings.observe(view, [Seen(study, told=[node.id for node in nodes])])
        except RecordUnavailable:
            return

    def _is_noted(self, view: str, row: Row) -> bool:
        return self._noted.get((view, id(row))) is row

    def _remember(self, view: str, rows: Iterable[Row]) -> None:
        """Rows are shared by all who are given the same answer of a node, so that they are known again."""
        for row in rows:
            self._noted[view, id(row)] = row
        while len(self._noted) > _MOST_NOTED:
            self._noted.popitem(last=False)


@dataclass(slots=True)
class Watch:
    """One search for studies that were first seen or changed at a moment that `accepts` takes (ms since the epoch).

    `since` is when these nodes became those that the caller may ask: nothing counts as seen before.

    Within `freshness.asked_anew`. What is recorded at a node that does not show the study in this search (it may not answer a
    key there) is asked for by its UID: it has gone, or has changed, or neither.
    """

    sightings: Sightings
    federation: Federation
    view: str
    nodes: Sequence[Node]
    accepts: Callable[[int], bool]
    since: int
    issues: list[Issue] = field(default_factory=list)
    _shown: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _recorded: dict[str, Parts] = field(default_factory=dict)
    _looked_at: dict[int, Row] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _asked_for: int = 0
    _verdicts: dict[str, bool] = field(default_factory=dict)
    _asked: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._asked = frozenset(node.id for node in self.nodes)

    async def learn(self, found: Sequence[Found], certain: Sequence[Found], ends: float) -> None:
        """Looks at results before they are judged. Of those that are `certain` every node has told what it has that answers.

        `ends` is on the loop's clock. Raises RecordUnavailable.
        """
        await self._observe([row for one in found for row in one.rows])
        missing = self._missing(certain)
        if missing:
            await self._look_for(missing, ends)

    def takes(self, found: Found) -> bool:
        """Whether a result that was learned is wanted."""
        verdict = self._verdicts.get(found.study)
        if verdict is None:
            moment = self.moment(found)
            verdict = self._verdicts[found.study] = moment is None or self.accepts(moment)
        return verdict

    def moment(self, found: Found) -> int | None:
        """When a result that was learned was first seen or last changed."""
        moment = latest(self._recorded.get(found.study, {}), self._asked)
        return moment and max(moment, self.since)

    async def _observe(self, rows: Iterable[Row], told: Mapping[str, Iterable[str]] | None = None) -> None:
        """`told` are the nodes that have told all they have, by study."""
        # A search learns of the same results again and again, and of a few more each time.
        unknown = {id(row): row for row in rows if id(row) not in self._looked_at}
        self._looked_at |= unknown
        new = [row for row in unknown.values() if _name(row) not in self._shown[row.study]]
        seen = {one.study: one for one in await apart(len(new), _seen, new)}
        for study, nodes in (told or {}).items():
            parts = dict.fromkeys(self._shown[study], "") | dict(seen[study].parts if study in seen else {})
            seen[study] = Seen(study, parts, nodes)
        studies = list(seen.values())
        for one, recorded in zip(
            studies, await self.sightings.observe(self.view, studies, patiently=True), strict=True
        ):
            self._shown[one.study].update(one.parts)
            self._recorded[one.study] = recorded
            self._verdicts.pop(one.study, None)

    def _missing(self, certain: Sequence[Found]) -> dict[str, list[str]]:
        """For each node the studies that it is recorded to have and has not shown."""
        missing: dict[str, list[str]] = defaultdict(list)
        unsettled = {one.study for one in certain if one.study not in self._settled}
        self._settled |= unsettled
        for study in unsettled:
            absent = {name for name, each in self._recorded[study].items() if not each.is_gone} - self._shown[study]
            for node in self._asked & set(map(node_of, absent)):
                missing[node].append(study)
        return missing

    async def _look_for(self, missing: Mapping[str, Sequence[str]], ends: float) -> None:
        studies = sorted({study for listed in missing.values() for study in listed})
        wanted = set(studies[: max(0, MOST_COMPLETED - self._asked_for)])
        self._asked_for += len(wanted)
        if len(wanted) < len(studies):
            text = "other holders were looked up for the first results only; narrow the search"
            self.issues.append(Issue("", "GW209", text))
        asked = {node: some for node, listed in missing.items() if (some := [uid for uid in listed if uid in wanted])}
        rows, issues = await self.federation.rows_at(asked, self.nodes, ends) if asked else ([], [])
        self.issues += issues
        silent = _named_in(issues)
        told: dict[str, list[str]] = defaultdict(list)
        for node in asked.keys() - silent:
            for study in asked[node]:
                told[study].append(node)
        await self._observe(rows, told)


def _is_old() -> bool:
    """Whether this request was given answers from before: what they say may have changed, and been recorded, since."""
    return freshness.current().age >= _OLD


def _seen(rows: Iterable[Row], *, is_old: bool = False) -> list[Seen]:
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        name, digest = seen_part(row)
        parts[row.study][name] = digest
    return [Seen(study, each, is_old=is_old) for study, each in parts.items()]


def _name(row: Row) -> str:
    return part(row.node, row.study, row.patient.issuer, row.patient.id)


def _named_in(issues: Iterable[Issue]) -> frozenset[str]:
    """The nodes that issues speak of; one may speak of several."""
    return frozenset(node for issue in issues for node in issue.node.split(", ") if node)
