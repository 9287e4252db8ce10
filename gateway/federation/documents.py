"""Reports and orders of many nodes: which nodes have any, whose each of them is, and what is left out, named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gateway.cache.answers import Loaded
from gateway.cache.keys import key
from gateway.cache.tags import ANY_ISSUER, Tag, patient_tag, study_tag
from gateway.errors import Conflict, NodeError, NodeProtocolError, NotFound, Unmappable
from gateway.federation.bearers import names_issuer
from gateway.federation.fanout import ask_all
from gateway.federation.federate import Federation
from gateway.federation.node import Node, aclosing_iterator
from gateway.model.answer import Answer, Issue, stale_issue
from gateway.model.documents import Document, DocumentSearch
from gateway.model.query import Match, Operator, Query
from gateway.model.seam import NodeResource, Report, ResourceQuery, Resources
from gateway.model.study import from_plain, to_plain
from gateway.model.vocabulary import PATIENT_ID, STUDY_UID, Level
from gateway.telemetry import looking_up, stage

_MOST_DATA = 8 * 1024 * 1024
"""Characters of base64 that one node's answer is kept with: what is beyond is left out of its documents, which say so."""

_DEEPEST = 100
"""Levels of a resource: what lies deeper cannot be kept, and says nothing that is understood."""

_NOT_PASSED_ON = frozenset({"text", "contained"})
"""Narrative is another's XHTML, and what is contained has been read where it was needed."""


@dataclass(slots=True)
class _Said:
    """What one node gave. `unidentified` are resources of which it does not say, or not surely, whose they are; `gaps` say
    what else is missing."""

    documents: list[Document] = field(default_factory=list)
    unidentified: int = 0
    truncated: bool = False
    gaps: tuple[str, ...] = ()


async def documents(federation: Federation, search: DocumentSearch, nodes: Sequence[Node]) -> Answer[Document]:
    """What the nodes have, with an issue for each that failed or gave what is left out. Nodes whose protocol has no such
    resources take no part.

    Raises NotFound when no node takes part, NoNodeAnswered when all that do failed, Conflict for a bare PatientID that the
    patients of several issuers bear, whether these have documents or only studies, and for a study UID of several patients.
    """
    asked = [node for node in nodes if isinstance(node.finder, Resources) and node.may("find")]
    if not asked:
        raise NotFound(f"no selected node has {search.kind}: only FHIR nodes are asked for it")
    if search.ids:
        asked = [node for node in asked if node.id in search.ids]

    async def ask(node: Node) -> tuple[list[Document], list[Issue]]:
        return await node.guard.in_time(_of_node(federation, node, search))

    outcomes = await ask_all(asked, ask, deadline=federation.deadline)
    issues = [Issue.of(outcome.error) for outcome in outcomes if outcome.error]
    found: list[Document] = []
    for outcome in outcomes:
        if outcome.value:
            found += outcome.value[0]
            issues += outcome.value[1]
    await _check_bare_patient_id(federation, search, found, nodes, issues)
    if search.study and found:
        found = await _of_its_patient(federation, search, found, nodes, issues)
    return Answer(tuple(found), tuple(dict.fromkeys(issues)))


async def _check_bare_patient_id(
    federation: Federation,
    search: DocumentSearch,
    found: Sequence[Document],
    nodes: Sequence[Node],
    issues: list[Issue],
) -> None:
    """A hospital may know a patient of this id by studies alone: those bear it just as well."""
    bare = search.patient.match_on(PATIENT_ID)
    if bare is None or names_issuer(search.patient, bare) or len(nodes) == 1:
        return
    bearers = [document.bearer for document in found]
    try:
        studies = await federation.search(search.patient, nodes)
        bearers += studies.items
        issues += studies.issues
    except NodeError as error:
        issues.append(Issue.of(error))
    federation.check_bare_patient_id(search.patient, bearers, nodes, issues)


async def _of_its_patient(
    federation: Federation, search: DocumentSearch, found: list[Document], nodes: Sequence[Node], issues: list[Issue]
) -> list[Document]:
    """The documents of the study's own patient, as all nodes tell whose it is."""
    by_uid = Query(Level.STUDY, (Match((STUDY_UID,), Operator.EXACT, (search.study,)),))
    try:
        answer = await federation.search(by_uid, nodes)
    except NodeError as error:
        issues.append(Issue.of(error))
        return found
    issues += answer.issues
    studies = [one for one in answer.items if search.is_theirs is None or search.is_theirs(one)]
    if len(studies) > 1 or any(one.in_node for one in studies):
        text = f"the study {search.study} is held for more than one patient; give the patient as well"
        raise Conflict(text, parameter="study", choices=tuple(sorted({one.patient.issuer for one in studies})))
    patients = {key for one in studies for key in one.known_as}
    kept = [one for one in found if not patients or one.bearer.known_as & patients]
    left_out = Counter(one.node for one in found) - Counter(one.node for one in kept)
    for node, count in left_out.items():
        text = f"node {node}: gave {count} {search.kind} of another patient than the study's, left out"
        issues.append(Issue(node, NodeProtocolError.code, text))
    return kept


async def _of_node(federation: Federation, node: Node, search: DocumentSearch) -> tuple[list[Document], list[Issue]]:
    native = node.asker.ask(search.patient)
    if native is None:
        return [], []
    ids, limit = tuple(search.ids.get(node.id, ())), node.config.max_results
    query = ResourceQuery(search.kind, native, search.identifiers, search.study, ids, limit)
    named = key("documents", node.digest, replace(query, identifiers=tuple(sorted(search.identifiers))))
    with stage("cache"):
        load = looking_up(lambda: _load(node, query, search))
        kept = await federation.answers.answer(named, node.ttl.find, load, partial(_from_plain, node.id))
    said: _Said = kept.value
    issues = list(_shortcomings(node, search.kind, said))
    if kept.is_stale:
        issues.append(stale_issue(node.id, kept.age))
    theirs = [one for one in said.documents if search.is_theirs is None or search.is_theirs(one.bearer)]
    others = len(said.documents) - len(theirs)
    if others and not (ids or search.study):  # it was asked for the patient's
        issues.append(_issue(node, NodeProtocolError.code, f"{others} {search.kind} of other patients, left out"))
    return theirs, issues


def _shortcomings(node: Node, kind: str, said: _Said) -> Iterable[Issue]:
    if said.unidentified:
        text = f"{said.unidentified} {kind} without saying for certain whose they are, left out"
        yield _issue(node, Unmappable.code, text)
    if said.truncated:
        yield Issue(node.id, "GW209", f"node {node.id}: has more {kind} than are asked for; narrow the search")
    for gap in said.gaps:
        yield Issue(node.id, "GW212", f"node {node.id}: {gap}")


def _issue(node: Node, code: str, what: str) -> Issue:
    return Issue(node.id, code, f"node {node.id}: gave {what}")


async def _load(node: Node, query: ResourceQuery, search: DocumentSearch) -> Loaded:
    said = await node.asking("resources", lambda _: _collect(node, query))
    is_settled = bool(said.documents) and not said.gaps
    ttl = node.ttl.find if is_settled else min(node.ttl.find, node.ttl.negative)
    return Loaded(said, ttl=ttl, tags=_mentions(said, search), may_be_stale=is_settled, to_plain=_to_plain)


def _mentions(said: _Said, search: DocumentSearch) -> frozenset[Tag]:
    keys = {each for one in said.documents for each in (one.row.patient, *one.row.linked)}
    asked = search.patient.match_on(PATIENT_ID)
    open_ = {patient_tag(ANY_ISSUER, identifier) for identifier in (asked.values if asked else ())}
    uids = {search.study, *(uid for one in said.documents for uid in one.studies.values())} - {""}
    return frozenset({*open_, *map(study_tag, uids), *(patient_tag(each.issuer, each.id) for each in keys)})


async def _collect(node: Node, query: ResourceQuery) -> _Said:
    said, is_whole, room = _Said(), False, _MOST_DATA
    async with aclosing_iterator(node.finder.resources(query)) as given:  # type: ignore[attr-defined]
        async for one in given:
            if isinstance(one, Report):
                said.truncated, said.gaps, is_whole = one.truncated, one.gaps, True
                continue
            document = _document(node, query.kind, one)
            if document is None:
                said.unidentified += 1
                continue
            room -= _bound(document.resource, room)
            said.documents.append(document)
    if not is_whole:
        raise NodeProtocolError(node.id, "broke off in the middle of its answer")
    return said


def _document(node: Node, kind: str, given: NodeResource) -> Document | None:
    """The resource with its patient; None where the mapping finds none."""
    try:
        row = node.reader.bearer(given.bearer)
    except Unmappable:
        return None
    if not row.patient.is_named:
        return None
    held = {name: value for name, value in given.resource.items() if name not in _NOT_PASSED_ON}
    if _is_too_deep(held):
        held = {}  # nothing is left of it that could be passed on
    if given.resource.get("contained"):
        held["contained"] = []  # references into it are seen to lead nowhere
    identifier = str(given.resource.get("id") or "")
    return Document(kind, given.version, identifier, held, row, given.studies, given.address)


def _is_too_deep(held: dict[str, Any]) -> bool:
    level: list[Any] = [held]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, (dict, list))]
    return bool(level)


def _bound(resource: dict[str, Any], room: int) -> int:
    """Empties the data of the attachments that there is no room for; how much of it is kept."""
    kept, attachments = 0, resource.get("presentedForm")
    for one in attachments if isinstance(attachments, list) else []:
        if isinstance(one, dict) and isinstance(one.get("data"), str):
            if len(one["data"]) > room - kept:
                one["data"] = ""
            kept += len(one["data"])
    return kept


def _to_plain(said: _Said) -> dict[str, Any]:
    return {
        "documents": [
            [one.kind, one.version, one.id, one.resource, to_plain(one.row), dict(one.studies), one.address]
            for one in said.documents
        ],
        "unidentified": said.unidentified,
        "truncated": said.truncated,
        "gaps": said.gaps,
    }


def _from_plain(node: str, plain: Any) -> _Said:
    try:
        found = [
            Document(kind, version, identifier, resource, from_plain(row), studies, address)
            for kind, version, identifier, resource, row, studies, address in plain["documents"]
        ]
        return _Said(found, plain["unidentified"], plain["truncated"], tuple(plain["gaps"]))
    except (KeyError, TypeError, ValueError):
        raise NodeProtocolError(node, "has an answer in the cache that cannot be read") from None
