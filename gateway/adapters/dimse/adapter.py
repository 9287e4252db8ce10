"""The DIMSE adapter: C-ECHO, C-FIND, C-GET or C-MOVE, and C-STORE, in threads that end with their reader."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeVar

from gateway import metrics
from gateway.adapters.dimse.associations import NodeAssociation, NothingAccepted, Peer
from gateway.adapters.dimse.channel import Channel
from gateway.adapters.dimse.identifiers import FindRequest, TextMatching, request_of
from gateway.adapters.dimse.operations import Associations, Operation, find_context
from gateway.adapters.dimse.probing import PATIENT_ROOT, STUDY_ROOT, Findings, Probing
from gateway.adapters.dimse.receiving import Begun, Event, Finished
from gateway.adapters.dimse.retrieving import CANCELLED, Retrieving
from gateway.adapters.dimse.rows import Rows
from gateway.adapters.dimse.storage_scp import StorageReceiver
from gateway.adapters.dimse.storing import on_disk, store_each
from gateway.errors import NodeBusy, NodeProtocolError, NodeRefused, Unsupported
from gateway.model.query import Ref
from gateway.model.seam import NativeQuery, Part, Probe, Record, Report, StoreOutcome
from gateway.model.vocabulary import MODALITIES_IN_STUDY, Level

__all__ = ["DimseAdapter", "StorageReceiver"]

T = TypeVar("T")
_ROWS_AHEAD = 256
_BYTES_AHEAD = 1 << 20
_OUT_OF_RESOURCES, _SOP_CLASS_NOT_SUPPORTED = 0xA700, 0x0122


class DimseAdapter:
    """One DICOM application entity as a node: Finds, Retrieves, Stores.

    Times are seconds; `response_timeout` counts a node's silence, never the length of an exchange. `reading_timeout` is
    how long a reader may take nothing while its association waits for it. `name_matching` "wide" (see `identifiers`)
    finds names whatever the node thinks of case and diacritics; "exact" pushes them as given, for a node that is known
    to match as we do. `move_calling_ae_titles` are the AE titles under which the node answers a C-MOVE, if not its own.
    """

    def __init__(
        self,
        node: str,
        *,
        host: str,
        port: int,
        called_ae_title: str,
        calling_ae_title: str = "IMAGING-GW",
        max_associations: int = 4,
        connect_timeout: float = 10.0,
        response_timeout: float = 60.0,
        permit_timeout: float = 30.0,
        reading_timeout: float = 300.0,
        tls: ssl.SSLContext | None = None,
        retrieve: Literal["auto", "get", "move"] = "auto",
        move_receiver: StorageReceiver | None = None,
        move_destination_ae: str = "",
        move_calling_ae_titles: Sequence[str] = (),
        character_set: str = "",
        relational: bool = False,
        patient_root: bool = False,
        name_matching: Literal["wide", "exact"] = "wide",
        max_pdu: int = 131072,
    ) -> None:
        self.node = node
        self._peer = Peer(
            node, host, port, called_ae_title, calling_ae_title, connect_timeout, response_timeout, tls, max_pdu
        )
        self._models = PATIENT_ROOT if patient_root else STUDY_ROOT
        self._retrieve = retrieve
        self._receiver = move_receiver
        self._destination = move_destination_ae or (move_receiver.ae_title if move_receiver else "")
        self._senders = tuple(move_calling_ae_titles) or (called_ae_title.strip(),)
        self._matching = TextMatching(name_matching == "exact", character_set=character_set)
        self._relational = relational
        self._ignored_keys: frozenset[str] = frozenset()
        self._limits = (max_associations, permit_timeout, reading_timeout)
        self._associations = self._new_associations()

    def _new_associations(self) -> Associations:
        limit, patience, reading_patience = self._limits
        return Associations(
            self._peer,
            lambda: NodeAssociation(self._peer, find_context(self._models.find)),
            limit,
            patience=patience,
            reading_patience=reading_patience,
        )

    @property
    def associations(self) -> Associations:
        """For health pages and tests: how many are in use and idle."""
        return self._associations

    async def open(self) -> None:
        """Starts no association: the first question does."""
        await self._associations.open()

    async def close(self) -> None:
        """Aborts what is under way; returns when no thread and no association is left."""
        await self._associations.close()

    # Finds

    async def find(self, query: NativeQuery) -> AsyncIterator[Record | Report]:
        """One C-FIND. Rows are decoded by their own (0008,0005), else by the node's.

        Raises Unsupported for a level below STUDY without its parents on a node that does not take that.
        """
        matching = replace(self._matching, character_set=query.character_set or self._matching.character_set)
        request = request_of(query, matching)

        def work(operation: Operation[Sequence[Record | Report]]) -> None:
            self._find(operation, query, request, matching.character_set)

        try:
            async with self._associations.operation(work, _ROWS_AHEAD) as found:
                async for batch in found:
                    for item in batch:
                        yield item
        except NothingAccepted:
            raise Unsupported(self.node, "does not accept C-FIND") from None

    def _find(
        self,
        operation: Operation[Sequence[Record | Report]],
        query: NativeQuery,
        request: FindRequest,
        character_set: str,
    ) -> None:
        """In a thread."""
        truncated, rows = False, Rows(self.node, request, character_set, operation.channel, max(1, _ROWS_AHEAD // 4))
        with self._associations.searching(operation) as association:
            self._require(association, self._models.find, "C-FIND")
            for response in association.find(request.identifier, self._models.find):
                if not response.is_pending:
                    truncated = self._is_truncated(response.status, query, rows.count)
                elif rows.count == query.limit:
                    # C-CANCEL is not heeded by every PACS: an abort always is.
                    truncated = True
                    association.end()
                    break
                else:
                    rows.add(response, has_more=association.has_more)
        rows.pass_on()
        operation.channel.put([request.report(truncated=truncated, known_ignored=self._ignored_keys)])

    def _require(self, association: NodeAssociation, model: str, service: str) -> None:
        if not association.accepts(model):
            raise Unsupported(self.node, f"does not accept {service}")

    def _is_truncated(self, status: int, query: NativeQuery, rows: int) -> bool:
        """What a final status means (PS3.4 Table C.4-1). Raises for a failure: a maximum is one that gave some rows."""
        if status == 0x0000:
            return False
        if status == _OUT_OF_RESOURCES and not rows:
            raise NodeBusy(self.node, "is out of resources for C-FIND")
        # A cancel is the node's own: nobody here sends one.
        if status >> 12 == 0xB or (rows and status in (_OUT_OF_RESOURCES, CANCELLED)):
            return True
        lacks_parents = (query.level is not Level.STUDY and not query.study) or (
            query.level is Level.IMAGE and not query.series
        )
        is_refusal = status == 0xA900 or status >> 12 == 0xC
        if status == _SOP_CLASS_NOT_SUPPORTED or (lacks_parents and is_refusal):
            raise Unsupported(self.node, f"does not take a C-FIND at {query.level} level like this")
        raise NodeRefused(self.node, f"answered C-FIND with status {status:04X}")

    # Retrieves

    async def retrieve(self, ref: Ref) -> AsyncIterator[Part]:
        """C-GET, or C-MOVE to the receiver. Each body is File Meta Information and the data set bytes as they came.

        What is not complete raises, however late: a listed instance that did not come, a sub-operation that failed.
        """
        async with self._associations.operation(self._retrieving(ref), _BYTES_AHEAD) as events:
            async for event in events:
                if not isinstance(event, Begun):
                    raise NodeProtocolError(self.node, "sent data that belongs to no instance")
                body = _Body(events, event.header, self.node)
                yield Part(event.sop_instance_uid, event.transfer_syntax, body, event.series_instance_uid)
                await body.skip()

    def _retrieving(self, ref: Ref) -> Callable[[Operation[Event]], None]:
        retrieving = Retrieving(
            self._associations,
            self._models,
            ref,
            relational=self._relational,
            receiver=self._receiver,
            destination=self._destination,
            senders=self._senders,
        )
        ways = {"get": retrieving.by_get, "move": retrieving.by_move, "auto": retrieving.by_either}
        return ways[self._retrieve]

    # Stores

    async def store(self, parts: AsyncIterator[Part]) -> AsyncGenerator[StoreOutcome, None]:
        """C-STORE of each part as it is, or uncompressed in the syntax that the node takes; one association as a rule."""
        jobs: SimpleQueue[tuple[Path, str] | None] = SimpleQueue()

        def work(operation: Operation[StoreOutcome]) -> None:
            store_each(self._peer, operation, jobs, metrics.sent_to(self.node).inc)

        async with self._associations.operation(work, 1) as stored:
            try:
                async for part in parts:
                    async with on_disk(part) as path:
                        jobs.put((path, part.sop_instance_uid))
                        outcome = await anext(stored)
                    yield outcome
            finally:
                jobs.put(None)

    # Adapter

    @property
    def takes_times(self) -> bool:
        return self._matching.takes_times

    async def probe(self) -> Probe:
        """C-ECHO, what is accepted, and how it matches; what it learns is used by later searches of this adapter."""
        probing = Probing(self._associations, self._models, self._matching.character_set)
        findings = await self._only(probing.run)
        self._matching = replace(
            self._matching, ignores_case=findings.ignores_case is True, takes_times=findings.takes_times is True
        )
        if findings.ignores_modalities:
            self._ignored_keys |= {MODALITIES_IN_STUDY}
        details = {
            "implementation_version_name": findings.implementation,
            "relational": "negotiated" if findings.negotiates_relational else "yes" if findings.is_relational else "no",
            "character_sets": ", ".join(sorted(findings.character_sets)),
        }
        return Probe(
            product=findings.implementation,
            capabilities=tuple(findings.capabilities),
            quirks=findings.quirks,
            advice=tuple(self._advice(findings)),
            latency=findings.latency,
            details=details,
        )

    def _advice(self, findings: Findings) -> Iterator[str]:
        """What the PACS administrator enters, and what goes into the node file."""
        peer, receiver = self._peer, self._receiver
        services = "C-FIND, C-GET" + (", C-MOVE" if receiver else "")
        yield f"PACS: allow AE title {peer.calling_ae_title} to call {peer.called_ae_title} ({services})"
        if receiver:
            yield f"PACS: C-MOVE destination AE title {self._destination}, host {receiver.host}, port {receiver.port}"
        if "get" not in findings.capabilities:
            yield 'node file: retrieve = "move"' if "move" in findings.capabilities else "PACS: allow C-GET or C-MOVE"
        wanted = self._matching.character_set
        if findings.character_sets == {"ISO_IR 100"} and wanted not in ("", "ISO_IR 100"):
            yield "PACS: it answers in Latin-1 only and may drop other letters (Orthanc: DefaultEncoding = Utf8)"
        if findings.is_relational != self._relational:
            yield f"node file: relational = {str(findings.is_relational).lower()}"

    async def _only(self, work: Callable[[Operation[T]], None]) -> T:
        async with self._associations.operation(work, 1) as found:
            return await anext(found)


class _Body:
    """The chunks of one instance, taken from its retrieve's events until it is finished."""

    def __init__(self, events: Channel[Event], header: bytes, node: str) -> None:
        self._events = events
        self._header = header
        self._node = node
        self._received = metrics.received_from(node)
        self._is_finished = False

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if self._header:
            header, self._header = self._header, b""
            return header
        if self._is_finished:
            raise StopAsyncIteration
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            raise NodeProtocolError(self._node, "ended in the middle of an instance") from None
        if isinstance(event, bytes):
            self._received.inc(len(event))
            return event
        self._is_finished = isinstance(event, Finished)
        raise StopAsyncIteration

    async def skip(self) -> None:
        """Reads to the end what the reader left."""
        async for _ in self:
            pass
