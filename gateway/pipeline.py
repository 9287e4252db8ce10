"""Every request on one page: authorise -> plan -> ask -> view -> audit. No route reaches a node by another way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from gateway import metrics
from gateway.cache import bodies, freshness
from gateway.errors import Forbidden, GatewayError, Gone, NodeUnreachable, NoSuchStudy
from gateway.federation.documents import documents
from gateway.federation.fanout import in_parallel
from gateway.federation.federate import Federation
from gateway.federation.namesakes import Namesakes
from gateway.federation.node import Node, aclosing_iterator
from gateway.federation.offsets import Offsets, Walked
from gateway.federation.page import Page, Reach, ordered
from gateway.federation.paging import Paging
from gateway.federation.pictures import Asked, Chooses, Picture, Pictures
from gateway.federation.resilience import Health
from gateway.federation.retrieve import OpenedInstance, Retrieval
from gateway.federation.sighted import Record, Watch
from gateway.federation.storing import Store, Storing, chosen
from gateway.imaging.syntaxes import EXPLICIT, can_decode
from gateway.model.answer import Answer, Found, Issue
from gateway.model.documents import Document, DocumentSearch
from gateway.model.query import Match, Operator, Query, Ref
from gateway.model.vocabulary import PATIENT_ID, Level
from gateway.outgoing import (
    Choice,
    Metadata,
    Outgoing,
    OutgoingInstance,
    OutgoingParts,
    OutgoingPictures,
    StudyTree,
    chosen_as_seen,
    instances_by_series,
    outgoing,
    reach_as_seen,
    reach_of_watch,
    ref_as_seen,
    require_shown,
    view_issues,
    view_pictures,
    view_written,
)
from gateway.privacy.view import View, view_found, view_ref
from gateway.security.audit import Audit, AuditRecord, constant
from gateway.security.caller import Caller
from gateway.security.policy import Policy
from gateway.telemetry import stage
from gateway.wire.multipart import MultipartPart


class Views(Protocol):
    """Chooses what a caller may see."""

    def of(self, caller: Caller) -> View: ...


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node for people: `state` as in Health; `reason` names the failure that its last operation ended with, if it did.

    `availability` is what the node file says of its studies, '' where it leaves that to the node.
    """

    id: str
    name: str
    country: str
    organisation: str
    adapter: str
    mapping: str
    state: str
    reason: str
    availability: str
    health: Health


@dataclass(slots=True)
class Pipeline:
    """The stages, wired by app.py."""

    federation: Federation
    retrieval: Retrieval
    policy: Policy
    views: Views
    audit: Audit
    offsets: Offsets
    storing: Storing
    pictures: Pictures
    seen: Record
    namesakes: Namesakes
    gives_explicit: bool = False

    async def search(
        self,
        caller: Caller,
        query: Query,
        names: Sequence[str],
        reach: Reach | None = None,
        *,
        resource: str = "ImagingStudy",
        permission: str = "",
        distinct: int = 0,
    ) -> Page:
        """The results that `reach` wants (all of them, newest first, by default) and that the caller may see, in order.

        Of the first `distinct` studies each whose UID is another patient's as well is marked so, also where that one is not found.

        Raises GatewayError; all nodes failing is an error. With `reach.updated` nodes are asked anew, and RecordUnavailable is
        raised where nobody knows when studies were first seen.
        """
        asking = self._request("search", caller, names, query=query, resource=resource, permission=permission)
        async with asking as (nodes, view, record):
            with stage("merge"):
                reach = reach_as_seen(reach or Reach(), view)
                asks = (caller.subject, caller.client, caller.purpose, *names)

                async def ask(reach: Reach) -> Page:
                    page = await self._page(asks, view, view.query(query), nodes, reach)
                    return await self._told_apart(caller, page, distinct, reach) if distinct else page

                page = await _first_with_results(ask, reach)
            record.studies = sorted({found.study for found in page.items})
            record.issues, record.count = page.issues, len(page.items)
            with stage("view"):
                items = tuple(view_found(view, found) for found in page.items)
            return replace(page, items=items, issues=view_issues(view, page.issues))

    async def _page(self, asks: Sequence[str], view: View, query: Query, nodes: Sequence[Node], reach: Reach) -> Page:
        if reach.updated is None:
            page = await Paging(self.federation).page(query, nodes, reach)
            if query.level is Level.STUDY:
                self.seen.note(view.digest, page.items, page.issues)
            return page
        since = await self.seen.sightings.asked_since((view.digest, *asks), (node.id for node in nodes))
        watch = Watch(self.seen.sightings, self.federation, view.digest, nodes, reach.updated, since)
        with freshness.asked_anew():
            page = await Paging(self.federation, watch).page(query, nodes, reach_of_watch(reach, watch))
        return replace(page, items=tuple(replace(one, updated=watch.moment(one)) for one in page.items))

    async def _told_apart(self, caller: Caller, page: Page, first: int, reach: Reach) -> Page:
        """What has another id than it was found by is looked at once more, and so is what takes the place of one left out."""
        kept, rest, accepts = list[Found](), list(page.items), reach.accepts
        while rest and len(kept) < first:
            shown, rest = rest[: first - len(kept)], rest[first - len(kept) :]
            pairs = zip(shown, await self._distinct(caller, shown), strict=True)
            kept += [new for old, new in pairs if new is old or accepts is None or accepts(new)]
        total = None if page.total is None else page.total - len(page.items) + len(kept) + len(rest)
        return replace(page, items=(*kept, *rest), total=total)

    async def _distinct(self, caller: Caller, found: Sequence[Found]) -> list[Found]:
        """The studies, marked where the UID was shown as another patient's, be it at a node that this request is not for."""
        return await self.namesakes.told_apart(found, self.federation, self._nodes_for(caller, ()))

    async def search_by_offset(
        self,
        caller: Caller,
        query: Query,
        names: Sequence[str],
        offset: int,
        size: int | None,
        accepts: Callable[[Found], bool] | None = None,
    ) -> tuple[Page, bool]:
        """As `search`, for results counted from the first; and whether the places of this caller's pages were lost, so that
        rows may come twice or not at all. What `accepts` takes must follow from the query."""
        after = await self.offsets.place(self._walked(caller, query, names), offset) if offset else None
        skip = 0 if after else offset
        page = await self.search(caller, query, names, Reach(size=size, after=after, skip=skip, accepts=accepts))
        is_full = page.more or len(page.items) == size  # also the last one: many clients ask on until nothing comes
        behind, end = page.last if page.items and is_full else None, offset + len(page.items)

        async def remember(walker: Caller) -> None:
            if behind is not None:
                await self.offsets.remember(self._walked(walker, query, names), end, behind)

        await remember(caller)
        _note_place(remember if behind else None, is_first=not offset)
        return page, bool(skip)

    def _walked(self, caller: Caller, query: Query, names: Sequence[str]) -> Walked:
        return Walked.of(caller, self.views.of(caller).digest, query, names)

    async def study(self, caller: Caller, uid: str, names: Sequence[str], choose: Choice) -> Answer[StudyTree]:
        """One study with its series and instances. `choose` picks among the patients' studies of the UID, as the caller
        sees them, or raises. Raises NotFound when every node said no."""
        async with self._request("read", caller, names, ref=Ref(uid)) as (nodes, view, record):
            with stage("merge"):
                answer = await self.federation.studies(view.uid_inbound(uid), nodes)
                answer = replace(answer, items=tuple(await self._distinct(caller, answer.items)))
                located = chosen_as_seen(choose, answer, view)
                series = await self.federation.series_of(located)
                instances = await in_parallel(series.items, self.federation.instances_of)
                updated = await self.seen.of_study(view.digest, answer.items, nodes, answer.issues)
            gaps = [*series.issues, *(issue for each in instances for issue in each.issues)]
            record.issues = tuple(dict.fromkeys((*answer.issues, *gaps)))
            pairs = zip(ordered(series.items), instances_by_series(series.items, instances), strict=True)
            with stage("view"):
                shown = tuple(
                    (view_found(view, one), tuple(view_found(view, i) for i in inner)) for one, inner in pairs
                )
                study = replace(view_found(view, located), updated=updated)
                tree = StudyTree(study, shown, is_whole=not gaps)
            return Answer((tree,), view_issues(view, record.issues))

    async def metadata(self, caller: Caller, ref: Ref, names: Sequence[str]) -> Metadata:
        """The metadata of each instance (DICOM JSON model), as the caller may see it."""
        async with self._request("metadata", caller, names, ref=ref) as (nodes, view, record):
            with stage("merge"):
                described = await self.retrieval.metadata(view_ref(view, ref), nodes)
            self.seen.note(view.digest, [described.study], described.silent)
            record.issues, record.count = (*described.silent, *described.gaps), sum(map(len, described.pieces))
            with stage("view"):
                pieces = tuple(view_written(view, piece) for piece in described.pieces)
            return Metadata(pieces, view_issues(view, record.issues), bool(described.gaps))

    async def documents(
        self, caller: Caller, search: DocumentSearch, names: Sequence[str], *, permission: str
    ) -> Answer[Document]:
        """Reports or orders, whole. Raises Forbidden also for who sees studies changed: what a report says cannot be."""
        action = "search" if permission == "s" else "read"
        asking = self._request(action, caller, names, query=search.patient, resource=search.kind, permission=permission)
        async with asking as (nodes, view, record):
            if not view.is_plain:
                raise Forbidden(f"{search.kind} is not given to who sees studies changed: its text names people")
            with stage("merge"):
                answer = await documents(self.federation, search, nodes)
            record.issues, record.count = answer.issues, len(answer.items)
            self._note_whose(record, answer.items)
            return answer

    def _note_whose(self, record: AuditRecord, shown: Sequence[Document]) -> None:
        """Also of what was asked for by an id or an identifier of its own."""
        ids = tuple(sorted({one.row.patient.id for one in shown if one.row.patient.is_named}))
        if ids:
            record.match |= self.audit.hashed([Match((PATIENT_ID,), Operator.LIST, ids)])
        record.studies = sorted({*record.studies, *(uid for one in shown for uid in one.studies.values())})

    @asynccontextmanager
    async def retrieve(
        self, caller: Caller, ref: Ref, names: Sequence[str], transfer_syntaxes: Sequence[str]
    ) -> AsyncIterator[Outgoing]:
        """The instances under `ref`, each in the first of the syntaxes that it can be given in, stored before all: '' is our
        default, '*' any. Leaving closes what is open upstream."""
        async with (
            self._request("retrieve", caller, names, ref=ref) as (nodes, view, record),
            self.retrieval.open(view_ref(view, ref), nodes) as opened,
        ):
            record.issues = (*opened.silent, *opened.gaps)
            self.seen.note(view.digest, [opened.study], opened.silent)
            self.audit.begun(record)
            async with aclosing_iterator(
                self._outgoing(opened.instances, view, transfer_syntaxes, record)
            ) as instances:
                yield Outgoing(instances, view_issues(view, record.issues), bool(opened.gaps))

    async def _outgoing(
        self, instances: AsyncIterator[OpenedInstance], view: View, wanted: Sequence[str], record: AuditRecord
    ) -> AsyncIterator[OutgoingInstance]:
        async for one in instances:
            record.count += 1
            yield await outgoing(one, view, self._meant(one.stream.transfer_syntax, wanted), self.pictures.imaging)

    def _meant(self, stored: str, wanted: Sequence[str]) -> tuple[str, ...]:
        default = EXPLICIT if self.gives_explicit and can_decode(stored) else ""
        return tuple(one or default for one in wanted)

    @asynccontextmanager
    async def frames(
        self, caller: Caller, ref: Ref, numbers: Sequence[int], names: Sequence[str], choose: Chooses
    ) -> AsyncIterator[OutgoingParts]:
        """The frames (1-based) of one instance, in the order asked for, each in the syntax that `choose` says ('' for as it is)
        or refuses. Pixel data carries no identifiers to hide."""
        async with (
            self._request("frames", caller, names, ref=ref) as (nodes, view, record),
            self.retrieval.frames(view_ref(view, ref), numbers, nodes) as opened,
        ):
            record.count, record.issues = len(numbers), opened.silent
            self.audit.begun(record)
            recoded = self.pictures.recoded(view_ref(view, ref), nodes, opened, choose)
            async with aclosing_iterator(recoded) as parts:
                yield OutgoingParts(parts, view_issues(view, opened.silent))

    @asynccontextmanager
    async def bulkdata(self, caller: Caller, ref: Ref, path: str, names: Sequence[str]) -> AsyncIterator[OutgoingParts]:
        """One bulk data value of one instance, in one part or more, by its path ('54000100.1.54001010'): of those that its
        metadata show."""
        place = tuple(path.split("."))
        async with self._request("bulkdata", caller, names, ref=ref) as (nodes, view, record):
            inner = view_ref(view, ref)
            if not view.is_plain:
                described = await self.retrieval.metadata(inner, nodes)
                require_shown(view, described.pieces, place)
            async with self.retrieval.bulkdata(inner, place, nodes) as opened:
                record.issues = opened.silent
                self.audit.begun(record)
                yield OutgoingParts(opened.parts, view_issues(view, opened.silent))

    async def store(
        self, caller: Caller, study: str | None, parts: AsyncIterator[MultipartPart], names: Sequence[str]
    ) -> Store:
        """Stores each part at the one node of `names`, else at the one that the node file chooses for the caller. `study` is
        the only one taken, if given. Nothing of `parts` is read before it is sure that the caller may, and where to.

        Raises Forbidden, NowhereToStore, Unsupported, InvalidQuery (the body ends early), NodeError (nothing was taken).
        """
        ref = Ref(study) if study else None
        async with self._request("store", caller, names, ref=ref, permission="c") as (nodes, view, record):
            node = chosen(nodes, caller.purpose, is_named=len(names) == 1)
            record.nodes = (node.id,)
            if not view.is_plain:
                raise Forbidden("who sees studies changed cannot store: their identifiers are not those of the node")
            store = self.storing.begin(node, study, parts)
            self.audit.begun(record)
            try:
                await store.run()
            finally:
                record.studies = sorted(store.sent) or record.studies
                record.count, record.issues = store.count, store.shortcomings()
                await self.storing.purge(store)
            return store

    @asynccontextmanager
    async def rendered(
        self, caller: Caller, ref: Ref, names: Sequence[str], asked: Asked
    ) -> AsyncIterator[OutgoingPictures]:
        """The instances under `ref` rendered; what is written into them is what the caller may see."""
        async with (
            self._request("rendered", caller, names, ref=ref) as (nodes, view, record),
            self.pictures.open(view_ref(view, ref), nodes, view.dataset, asked, documents=view.is_plain) as opened,
        ):
            record.issues = (*opened.silent, *opened.gaps)
            self.audit.begun(record)
            async with aclosing_iterator(view_pictures(view, opened.pictures, record)) as pictures:
                yield OutgoingPictures(pictures, view_issues(view, record.issues), bool(opened.gaps), opened.notes)

    async def thumbnail(
        self, caller: Caller, ref: Ref, names: Sequence[str], asked: Asked
    ) -> tuple[Picture, tuple[Issue, ...]]:
        """One small picture for what is under `ref`, with nobody's identity in it."""
        async with self._request("thumbnail", caller, names, ref=ref) as (nodes, view, record):
            picture, record.issues = await self.pictures.thumbnail(view_ref(view, ref), nodes, asked)
            return replace(picture, ref=ref_as_seen(view, picture.ref)), view_issues(view, record.issues)

    def access(self, caller: Caller) -> Hashable:
        """All of the caller, and of the nodes as they are set up now, that decides what it may see: two callers of one access get
        the same answers."""
        return id(self), self.views.of(caller).digest, caller.scopes, caller.purpose, caller.nodes, caller.is_open

    def again(self, caller: Caller, grounds: bodies.Grounds, started: float) -> bool:
        """Whether a caller of the same access may have an answer on the same grounds once more; written into the audit then.

        False where anything is not as it was: the request is then to take the whole way, which says what is wrong.
        `started` is by time.monotonic.
        """
        try:
            self.policy.require(caller, grounds.resource, grounds.permission)
            nodes = self._nodes_for(caller, grounds.names)
            if tuple((node.id, node.digest) for node in nodes) != grounds.nodes:
                return False
            self.audit.again(caller, grounds.record, started)
        except GatewayError:
            return False
        return True

    def nodes_of(self, caller: Caller, names: Sequence[str]) -> tuple[str, ...]:
        """The ids of the nodes named (all when none is) that the caller may use now. Raises NotFound for an unknown name."""
        return tuple(node.id for node in self._nodes_for(caller, names))

    def sources_of(self, names: Sequence[str]) -> dict[str, str]:
        """What each of these nodes is an archive of now: see Node.source."""
        return {name: node.source for name in names if (node := self.federation.nodes.get(name))}

    @contextmanager
    def exporting(
        self, action: str, caller: Caller, names: Sequence[str], resources: Sequence[tuple[str, str]], ref: str
    ) -> Iterator[AuditRecord]:
        """Decides on a part of an export that asks no node, and writes its one audit record: `resources` are the types with
        the permission that each needs, `ref` says which export and file. Raises Forbidden, also when no node is left."""
        record = self.audit.begin(action, caller, names)
        record.ref = ref
        try:
            for resource, permission in resources:
                self.policy.require(caller, resource, permission)
            record.nodes = self.nodes_of(caller, names)
            self.policy.require_nodes(caller, record.nodes, names)
            yield record
            record.outcome = "partial" if record.issues else "success"
        except GatewayError as error:
            record.outcome = error.code
            raise
        except BaseException as error:
            record.outcome = type(error).__name__
            raise
        finally:
            self.audit.write(record)

    def require(self, action: str, caller: Caller, names: Sequence[str], resource: str, permission: str) -> None:
        """Raises Forbidden or NotFound, and writes it down, before anything of the request is looked at."""
        try:
            self.policy.require(caller, resource, permission)
            if names:
                self.policy.require_nodes(caller, self.nodes_of(caller, names), names)
        except GatewayError as error:
            record = self.audit.begin(action, caller, names)
            record.outcome = error.code
            self.audit.write(record)
            raise

    def node_states(self, caller: Caller) -> list[NodeState]:
        """Every node that the caller may use, in the order of the node file."""
        return [_state(node) for node in self._nodes_for(caller, ())]

    def _nodes_for(self, caller: Caller, names: Sequence[str]) -> list[Node]:
        may_use = self.policy.may_use
        return self.federation.select(names, lambda config: may_use(caller, config.id, config.purposes))

    @asynccontextmanager
    async def _request(
        self,
        action: str,
        caller: Caller,
        names: Sequence[str],
        *,
        query: Query | None = None,
        ref: Ref | None = None,
        resource: str = "ImagingStudy",
        permission: str = "",
    ) -> AsyncIterator[tuple[list[Node], View, AuditRecord]]:
        """Authorises and plans; writes an audit record of its end whatever happens; lets no error out that has not passed the view.

        Gives the nodes the caller may ask and the view it asks through. Raises Forbidden, also when no node is left.
        """
        view = self.views.of(caller)
        record = self.audit.begin(action, caller, names, query=query, ref=ref)
        permission = permission or ("s" if action == "search" and resource == "ImagingStudy" else "r")
        nodes: list[Node] = []
        try:
            with stage("plan"):
                self.policy.require(caller, resource, permission)
                nodes = self._nodes_for(caller, names)
                record.nodes = tuple(node.id for node in nodes)
                record.studies = [view.uid_inbound(ref.study)] if ref else record.studies
                self.policy.require_nodes(caller, record.nodes, names)
            yield nodes, view, record
            record.outcome = "partial" if record.issues else "success"
            if record.issues:
                metrics.partial_answers.labels(action).inc()
            else:
                _note_grounds(resource, permission, names, nodes, record)
        except GatewayError as error:
            raise await self._told(error, record, view, ref, nodes) from None
        except BaseException as error:
            record.outcome = type(error).__name__
            raise
        finally:
            self.audit.write(record)

    async def _told(
        self, error: GatewayError, record: AuditRecord, view: View, ref: Ref | None, nodes: Sequence[Node]
    ) -> GatewayError:
        """What the caller hears of it, through the view; it is what the record says, too."""
        record.outcome = error.code
        told = await self._known_gone(error, view, ref, nodes) if isinstance(error, NoSuchStudy) and ref else error
        record.outcome = told.code
        return told.rephrased(view.error)

    async def _known_gone(self, error: NoSuchStudy, view: View, ref: Ref, nodes: Sequence[Node]) -> GatewayError:
        """Gone for a study that these nodes were seen to have through this view, once each of them says anew that it has it
        not; what keeps them from saying so; else the error as it is."""
        study = view.uid_inbound(ref.study)
        if not await self.seen.was_here(view.digest, study, nodes):
            return error
        try:
            with freshness.asked_anew():
                answer = await self.federation.studies(study, nodes)
        except NoSuchStudy:
            await self.seen.gone(view.digest, study, nodes)
            return Gone(f"the study {study} is deleted: each node that had it says so")
        except GatewayError as other:
            return other
        holders = ", ".join(sorted({node for one in answer.items for node in one.holders}))
        return NodeUnreachable(holders, f"has the study {study} again; ask once more", retry_after=1)


async def _first_with_results(ask: Callable[[Reach], Awaitable[Page]], reach: Reach) -> Page:
    """The page, or the next one that holds anything where all of it was left out: whoever walks on goes by what a page holds."""
    page = await ask(reach)
    issues = page.issues
    while page.as_found and not page.items and page.more and page.last is not None:
        page = await ask(replace(reach, after=page.last, skip=0))
        issues = tuple(dict.fromkeys((*issues, *page.issues)))
    return replace(page, issues=issues)


def _note_place(remember: Callable[[Caller], Awaitable[None]] | None, *, is_first: bool) -> None:
    """A first page begins a walk for each caller that is given it; where a later one begins is its caller's own affair."""
    making = bodies.current()
    if making is not None:
        making.then = remember
        if not is_first:
            making.refuse()


def _note_grounds(
    resource: str, permission: str, names: Sequence[str], nodes: Sequence[Node], record: AuditRecord
) -> None:
    making = bodies.current()
    if making is not None:
        asked = tuple((node.id, node.digest) for node in nodes)
        making.give_grounds(bodies.Grounds(resource, permission, tuple(names), asked, constant(record)))


def _state(node: Node) -> NodeState:
    failure, config, health = node.guard.failure, node.config, node.guard.health()
    return NodeState(
        node.id,
        config.name,
        config.country,
        config.organisation,
        config.adapter,
        config.mapping_name,
        health.state,
        failure.title if failure else health.failure if health.state == "degraded" else "",
        config.availability,
        health,
    )
