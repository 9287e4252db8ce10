"""The federation's searches: which nodes are asked, what their rows add up to, and where a study is held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.cache.answers import Answers
from gateway.errors import Conflict, GatewayError, NodeError, NodeUnreachable, NoSuchStudy, NotFound
from gateway.federation.bearers import issuers_in_doubt
from gateway.federation.fanout import Outcome, ask_all, in_parallel
from gateway.federation.holders import MOST_COMPLETED, Hits, by_uid, depends_on_holder, questions
from gateway.federation.horizon import Reached
from gateway.federation.merge import Domains, merge, with_counts
from gateway.federation.node import Node
from gateway.federation.nodes import NodeConfig
from gateway.federation.search import NodeSearch
from gateway.model.answer import Answer, Found, Issue
from gateway.model.dataset import whole_number
from gateway.model.query import Match, Operator, Query
from gateway.model.study import Row
from gateway.model.vocabulary import SERIES_INSTANCE_COUNT, STUDY_UID, Level
from gateway.wire.threads import apart

_SHARED_STUDIES_COUNTED = 50


@dataclass(slots=True)
class Federation:
    """All configured nodes. `deadline` is the seconds that a whole search may take."""

    nodes: dict[str, Node]
    answers: Answers
    domains: Domains
    deadline: float
    refuse_bare_patient_id: bool = True
    reached: Reached = field(default_factory=Reached)
    priority: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.priority = {node.id: node.config.priority for node in self.nodes.values()}
        for node in self.nodes.values():
            node.guard.patience = min(node.guard.patience, self.deadline)

    def select(self, names: Sequence[str], may_use: Callable[[NodeConfig], bool]) -> list[Node]:
        """The nodes named (all when none is), less those the caller may not use. Raises NotFound for an unknown name."""
        if any(name not in self.nodes for name in names):
            raise NotFound("there is no node of that name; /nodes lists them", parameter="node")
        chosen = [self.nodes[name] for name in dict.fromkeys(names)] if names else list(self.nodes.values())
        return [node for node in chosen if may_use(node.config)]

    async def search(self, query: Query, nodes: Sequence[Node]) -> Answer[Found]:
        """Every result of every node, merged by UID and patient, unordered, counts checked against all holders.

        Raises NoNodeAnswered when no node answered, Conflict for a bare PatientID that two issuers use.
        """
        ends = asyncio.get_running_loop().time() + self.deadline
        if query.study and query.level is not Level.STUDY:
            _require_one_patient(query.study, await self._merged(_of_study(query.study), nodes, ends))
        if query.level is Level.STUDY:
            found, issues = await self._studies(query, nodes, ends)
        else:
            outcomes = await self._ask(query, nodes, ends)
            found, issues = self.merged(_rows(outcomes)), _issues(outcomes)
        self.check_bare_patient_id(query, found, nodes, issues)
        if query.level is Level.STUDY:
            found = await self.count_shared(found, issues, ends)
        else:
            found = self._marked_by_study(query.study, found)
        return Answer(tuple(found), tuple(dict.fromkeys(issues)))

    async def _studies(self, query: Query, nodes: Sequence[Node], ends: float) -> tuple[list[Found], list[Issue]]:
        """Studies with all their holders, also those whose own part does not answer a key such as ModalitiesInStudy."""
        asked = questions(query)
        outcomes = [await self._ask(one, nodes, ends) for one in asked]
        issues = [issue for one in outcomes for issue in _issues(one)]
        hits = Hits(tuple(tuple(_rows(one)) for one in outcomes))
        rows = hits.all_rows() if len(asked) > 1 else _rows(outcomes[0])
        if asked != [query] or any(map(depends_on_holder, query.matches)):
            more, gaps = await self._other_holders(hits, nodes, ends)
            rows, issues = rows + more, issues + gaps
        merged = await apart(len(rows), self.merged, rows)
        return hits.answering_all(merged), issues

    async def with_all_holders(
        self, items: Sequence[Found], rows: Sequence[Row], nodes: Sequence[Node], ends: float
    ) -> tuple[list[Found], list[Issue]]:
        """Studies found by a key that their holders answer differently, each told with all its holders, in their order.

        `rows` are all that were found, those of the items among them.
        """
        wanted = {one.study for one in items}
        hits = Hits((tuple(row for row in rows if row.study in wanted),))
        more, issues = await self._other_holders(hits, nodes, ends)
        merged = self.merged([*hits.all_rows(), *more])
        whole = {(one.study, patient): one for one in merged for patient in one.patients}
        return [whole.get((one.study, one.patient), one) for one in items], issues

    def merged(self, rows: Iterable[Row]) -> list[Found]:
        """One result per UID and patient, unordered."""
        return merge(rows, self.domains, self.priority)

    async def _other_holders(self, hits: Hits, nodes: Sequence[Node], ends: float) -> tuple[list[Row], list[Issue]]:
        """The rows of nodes that hold a study found elsewhere, asked for by its UID."""
        studies = hits.studies()
        missing = hits.missing(studies[:MOST_COMPLETED], [node.id for node in nodes])
        if not missing:
            return [], []
        rows, issues = await self.rows_at(missing, nodes, ends)
        if len(studies) > MOST_COMPLETED:
            text_ = f"other holders were looked up for the newest {MOST_COMPLETED} results only; narrow the search"
            issues.append(Issue("", "GW209", text_))
        return rows, issues

    async def rows_at(
        self, studies: Mapping[str, Sequence[str]], nodes: Sequence[Node], ends: float
    ) -> tuple[list[Row], list[Issue]]:
        """What those of the nodes that are named in `studies` have of the studies (UIDs) listed for each."""
        asked = [node for node in nodes if node.id in studies]
        try:
            outcomes = await self._ask(lambda node: by_uid(studies[node.id]), asked, ends)
        except NodeError as error:
            return [], [Issue.of(error)]
        return _rows(outcomes), _issues(outcomes)

    def _marked_by_study(self, study: str | None, found: list[Found]) -> list[Found]:
        """Series and instances of a study UID that names several patients are as ambiguous as their study.

        Raises Conflict where just this `study` was asked for: a node may say only now whose study it holds.
        """
        studies = merge((as_study(row) for one in found for row in one.rows), self.domains, {})
        if study:
            _require_one_patient(study, studies)
        kinds = {each.study: each.ambiguous for each in studies if each.ambiguous}
        return [replace(one, ambiguous=kinds[one.study]) if one.study in kinds else one for one in found]

    async def _merged(self, query: Query, nodes: Sequence[Node], ends: float) -> list[Found]:
        return self.merged(_rows(await self._ask(query, nodes, ends)))

    async def _ask(
        self, query: Query | Callable[[Node], Query], nodes: Sequence[Node], ends: float | None = None
    ) -> list[Outcome[tuple[tuple[Row, ...], list[Issue]]]]:
        """Each node within its own deadline, and all until `ends` on the loop's clock: the end of a whole search.

        `query` is the same for every node, or a function of the node.
        """

        async def ask(node: Node) -> tuple[tuple[Row, ...], list[Issue]]:
            seconds = min(node.config.search_deadline, left)
            search = NodeSearch(node, self.answers, ends=asyncio.get_running_loop().time() + seconds)
            rows = await node.guard.in_time(search.rows(query if isinstance(query, Query) else query(node)))
            return rows, search.issues

        left = self.deadline if ends is None else max(0.0, ends - asyncio.get_running_loop().time())
        return await ask_all(nodes, ask, deadline=left)

    def check_bare_patient_id(
        self, query: Query, found: Sequence[Found], nodes: Sequence[Node], issues: list[Issue]
    ) -> None:
        """House rule: a PatientID without an issuer that two issuers' patients bear is refused, or warned of."""
        issuers = () if len(nodes) == 1 else issuers_in_doubt(query, found, self.domains)
        if not issuers:
            return
        detail = (
            "this PatientID is used by more than one issuer: "
            + ", ".join(issuers)
            + "; add IssuerOfPatientID (DICOMweb) or a system (FHIR), or search one node"
        )
        if self.refuse_bare_patient_id:
            raise Conflict(detail, parameter="PatientID", choices=issuers)
        issues.append(Issue("", Conflict.code, detail))

    async def count_shared(self, found: list[Found], issues: list[Issue], ends: float) -> list[Found]:
        """Studies of several holders get their counts from all of them; beyond a ceiling they go without counts."""
        shared = [one for one in found if not one.counted][:_SHARED_STUDIES_COUNTED]
        counted = await in_parallel(shared, lambda one: self._counted(one, issues, ends))
        replaced = {id(old): new for old, new in zip(shared, counted, strict=True)}
        return [replaced.get(id(one), one) for one in found]

    async def _counted(self, study: Found, issues: list[Issue], ends: float) -> Found:
        try:
            series = await self.series_of(study, ends)
            sizes = await in_parallel(series.items, lambda one: self._size(one, ends))
            missing = series.issues
        except NodeError as error:
            missing = (Issue.of(error),)
        if missing:
            issues.extend(issue for issue in missing if issue not in issues)
            return study
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        return with_counts(study, series.items, total)

    async def _size(self, series: Found, ends: float) -> int | None:
        """How many instances a series has over all its holders; None when nobody can say."""
        if len(series.rows) == 1:
            given = whole_number(series.attributes, SERIES_INSTANCE_COUNT)
            if given is not None and given >= 0:
                return given
        instances = await self.instances_of(series, ends)
        return None if instances.issues else len(instances.items)

    async def series_of(self, study: Found, ends: float | None = None) -> Answer[Found]:
        """The union of the holders' series of one study of one patient."""
        return await self._below(study, Query(Level.SERIES, study=study.study), ends)

    async def instances_of(self, series: Found, ends: float | None = None) -> Answer[Found]:
        """The union of the holders' instances of one series of one patient."""
        return await self._below(series, Query(Level.IMAGE, study=series.study, series=series.series), ends)

    async def _below(self, found: Found, query: Query, ends: float | None) -> Answer[Found]:
        outcomes = await self._ask(query, [self.nodes[name] for name in found.holders], ends)
        rows = [row for row in _rows(outcomes) if row.patient in found.patients]
        return Answer(tuple(self.merged(rows)), tuple(_issues(outcomes)))

    async def studies(self, study: str, nodes: Sequence[Node]) -> Answer[Found]:
        """The studies of this UID, at least one; one per patient. The issues are the silent nodes.

        Raises NoSuchStudy when every node said no, NodeUnreachable when it was not found but not every node answered.
        """
        answer = await self.search(_of_study(study), nodes)
        if not answer.items and not answer.issues:
            raise NoSuchStudy(f"no node has the study {study}")
        if not answer.items:
            raise absent(f"the study {study}", answer.issues)
        return answer

    async def locate(self, study: str, nodes: Sequence[Node]) -> Answer[Found]:
        """The one study of this UID, as an answer of one item. Raises as `studies`; Conflict when the UID names several
        patients: their data cannot be told apart by it."""
        answer = await self.studies(study, nodes)
        _require_one_patient(study, answer.items)
        return answer

    async def forget(self, study: str, nodes: Sequence[Node]) -> None:
        """Has the nodes asked anew where a study is: what was remembered turned out not to be so."""
        await asyncio.gather(*(node.forget(_of_study(study), self.answers) for node in nodes))


def _of_study(study: str) -> Query:
    return Query(Level.STUDY, (Match((STUDY_UID,), Operator.EXACT, (study,)),))


def _require_one_patient(study: str, found: Sequence[Found]) -> None:
    """What lies below a study of two patients is never listed together. Raises Conflict."""
    if len(found) > 1 or any(one.in_node for one in found):
        raise ambiguous(study, found)


def as_study(row: Row) -> Row:
    """The study that a row lies in, as far as its identity goes."""
    return replace(row, level=Level.STUDY, series="", instance="", children=())


def _rows(outcomes: Iterable[Outcome[tuple[tuple[Row, ...], list[Issue]]]]) -> list[Row]:
    return [row for outcome in outcomes if outcome.value for row in outcome.value[0]]


def _issues(outcomes: Iterable[Outcome[tuple[tuple[Row, ...], list[Issue]]]]) -> list[Issue]:
    issues: list[Issue] = []
    for outcome in outcomes:
        if outcome.error:
            issues.append(Issue.of(outcome.error))
        elif outcome.value:
            issues.extend(outcome.value[1])
    return issues


def absent(what: str, issues: Sequence[Issue]) -> GatewayError:
    """404 only when every selected node said no; a silent node might have it. `what` is 'the study 1.2.3'."""
    if not issues:
        return NotFound(f"no node has {what}")
    silent = ", ".join(sorted({issue.node for issue in issues if issue.node}))
    return NodeUnreachable(silent, f"did not answer, and no other node has {what}", retry_after=30)


def ambiguous(study: str, found: Sequence[Found]) -> Conflict:
    """The UID names several patients: the addresses that name one each are the nodes' own roots."""
    nodes = sorted({node for one in found for node in one.holders})
    detail = f"the study {study} is held for more than one patient; open it at one node: " + ", ".join(
        f"/nodes/{node}/dicom-web" for node in nodes
    )
    return Conflict(detail, parameter="StudyInstanceUID", choices=tuple(nodes))
