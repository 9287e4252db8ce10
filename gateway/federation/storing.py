"""Stores what a caller sends at one node: which node, whose the study is there, instance by instance, and what is then outdated."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.cache.answers import Answers
from gateway.errors import GatewayError, InvalidQuery, NodeError, NodeProtocolError, NowhereToStore, Unsupported
from gateway.federation.coercion import as_it_is, with_issuer
from gateway.federation.fanout import cancel_all
from gateway.federation.incoming import FAILED, OTHER_PATIENT, Arrived, Intake, Result
from gateway.federation.merge import Domains
from gateway.federation.node import Node, aclosing_iterator
from gateway.federation.whose import Claims, Whose
from gateway.model.answer import Issue
from gateway.model.seam import Adapter, Part, Stores
from gateway.wire.multipart import MultipartError, MultipartPart

NOT_STORED = "GW211"
_PATIENCE = 1.0
"""Seconds that a node, and who waits for it, waits for the next instance of a slow sender."""


@dataclass(slots=True)
class Storing:
    """All that is stored passes here. `directory` is where instances lie meanwhile, `most` the bytes that one may have."""

    answers: Answers
    domains: Domains
    directory: Path
    most: int
    claims: Claims
    _purging: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, node: Node, study: str | None, parts: AsyncIterator[MultipartPart]) -> Store:
        """One request. Raises Unsupported where the node takes nothing; nothing of the body is read yet."""
        adapter = _adapter(node)
        issuer = node.config.patient_id_issuer
        coerce = with_issuer(issuer) if node.config.store.set_issuer else as_it_is
        intake = Intake(parts, self.directory, self.most, study, coerce)
        return Store(node, adapter, intake, Whose(node, adapter, self.domains, self.claims))

    async def purge(self, store: Store) -> None:
        """Has every replica forget what is outdated now; to its end, also when the caller leaves."""
        if not store.sent:
            return
        task = asyncio.create_task(self.answers.stored(store.node.id, sorted(store.sent)))
        self._purging.add(task)
        task.add_done_callback(self._purging.discard)
        await asyncio.shield(task)


def chosen(nodes: Sequence[Node], purpose: str, *, is_named: bool) -> Node:
    """The node that what comes goes to: the one that is named, else the one of this purpose of use, else the default one.

    Raises NowhereToStore, saying what the node file needs.
    """
    if is_named:
        return nodes[0]
    for_purpose = (node for node in nodes if purpose and purpose in node.config.store.purposes)
    by_default = (node for node in nodes if node.config.store.default)
    found = next(for_purpose, None) or next(by_default, None)
    if found is None:
        raise NowhereToStore(
            "no node takes what is stored here for this caller: store at /nodes/{id}/dicom-web, or have one [[node]] of the node "
            "file say `store = true`, or `store = { purposes = [...] }` for the callers of a purpose of use"
        )
    return found


def _adapter(node: Node) -> Stores:
    """Where the pixels are, there they go."""
    if not node.may("store"):
        raise Unsupported(
            node.id, "is not to be given instances: the `capabilities` of its node file are without store"
        )
    adapter: Adapter = node.finder if node.retriever is None else node.retriever
    if not isinstance(adapter, Stores):
        raise Unsupported(
            node.id, "stores nothing itself: name its DICOMweb or DIMSE service in the node file (`retrieve`)"
        )
    return adapter


@dataclass(slots=True)
class Store:
    """One request to store at one node. `issues` is what the node failed with after it had taken something."""

    node: Node
    adapter: Stores
    intake: Intake
    whose: Whose
    issues: list[Issue] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    """The studies of which something was given to the node, whatever became of it."""
    _coming: asyncio.Task[Arrived | None] | None = None

    @property
    def results(self) -> list[Result]:
        return self.intake.results

    @property
    def count(self) -> int:
        """How many are stored."""
        return sum(result.is_stored for result in self.results)

    def shortcomings(self) -> tuple[Issue, ...]:
        """The issues, and that instances were not stored, if some were not: for the audit."""
        lacking = len(self.results) - self.count
        own = Issue(self.node.id, NOT_STORED, f"instances not stored: {lacking} of {len(self.results)}")
        return (*self.issues, own) if lacking else tuple(self.issues)

    async def run(self) -> None:
        """Every part to its result. Raises NodeError where the node took nothing because it cannot be talked to, and
        InvalidQuery (or what the body broke with) for a body that ends early; what came whole before is stored."""
        try:
            one = await self._first()
            while one is not None:
                one = await self._stored(one)
        except NodeError as error:
            if not self.count:
                raise
            self.issues.append(Issue.of(error))
            await self._give_up()
        finally:
            await cancel_all([self._coming] if self._coming else [])
            self.whose.close()
            await self.intake.close()
        if self.intake.broken is not None:
            raise self._of_the_body(self.intake.broken)

    def _of_the_body(self, error: Exception) -> Exception:
        """What ended the body early, telling what is stored nevertheless."""
        if isinstance(error, MultipartError):
            error = InvalidQuery(str(error))
        if not isinstance(error, GatewayError):
            return error
        return error.rephrased(lambda text: f"{text}; instances before that which are stored: {self.count}")

    async def _first(self, one: Arrived | None = None) -> Arrived | None:
        """The next instance, or `one`, whose study is of the same patient at the node, as far as that is known."""
        one = one or await self._next()
        while one is not None and not await self.whose.fits(one):
            one.result.failure = OTHER_PATIENT
            one = await self._next()
        return one

    async def _next(self) -> Arrived | None:
        coming, self._coming = self._coming, None
        return await (coming or self.intake.next())

    async def _soon(self) -> bool:
        """Whether the next instance is there before the node has waited for it too long."""
        self._coming = asyncio.create_task(self.intake.next())
        await asyncio.wait({self._coming}, timeout=_PATIENCE)
        return self._coming.done()

    async def _stored(self, first: Arrived) -> Arrived | None:
        """Gives the node the instance and all that follow at once of studies that were looked at; the next one after those.

        The turn at the node ends there: about another study it is asked in a turn of its own, and a slow sender holds none.
        """
        waiting: deque[Arrived] = deque([first])
        given: deque[Result] = deque()
        async with self.node.working("store") as turn, aclosing_iterator(self._offered(waiting, given)) as parts:
            async with aclosing_iterator(self.adapter.store(parts)) as outcomes:
                async for outcome in outcomes:
                    turn.answered()
                    given.popleft().take(outcome)
            if given:
                raise NodeProtocolError(self.node.id, "did not say what became of an instance")
        return await self._first(waiting.popleft() if waiting else None)

    async def _offered(self, waiting: deque[Arrived], given: deque[Result]) -> AsyncIterator[Part]:
        """As long as the next one is there soon, of a study that is known to be its patient's; it is else left in `waiting`."""
        while waiting:
            one = waiting.popleft()
            self.sent.add(one.ref.study)
            given.append(one.result)
            yield one.part
            if not await self._soon():
                return
            following = await self._next()
            if following is None:
                return
            waiting.append(following)
            if not self.whose.known(following):
                return

    async def _give_up(self) -> None:
        """Reads the rest, so that each part has its result: it failed."""
        while (one := await self._next()) is not None:
            one.result.failure = FAILED


__all__ = ["Store", "Storing", "chosen"]
