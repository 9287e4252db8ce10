"""A small real PACS over a directory of files: C-ECHO, C-FIND, C-GET, C-MOVE, C-STORE, with faults on demand."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import _config, evt

from gateway.simulators._dimse_index import PATIENT, STUDY, Archive, StoredInstance
from gateway.simulators._dimse_options import DOES_NOT_MATCH, UNABLE_TO_PROCESS, DimseOptions
from gateway.simulators._dimse_query import PENDING, Find, IdentifierRefusedError
from gateway.simulators._dimse_sending import StoredFile, of_another_study, prepare, selected
from gateway.simulators._dimse_serving import (
    FIND,
    GET,
    MOVE,
    SharedContexts,
    Silence,
    entity,
    hang_up,
    proposed,
    quieten,
    set_up,
    shut_down,
)

# pynetdicom gives an event's attributes at run time.
Event = Any

SUCCESS, CANCELLED = 0x0000, 0xFE00
_PATIENT_ROOT = frozenset({FIND[1], GET[1], MOVE[1]})
_POLL = 0.02


class DimseSimulator:
    """One PACS in background threads. Use it as a context manager, or `start` it (the bound port) and `stop` it.

    `operations` counts what came over the wire: 'connection', 'association', 'rejected', 'released', 'aborted',
    'C-ECHO', 'C-FIND STUDY', 'C-GET', 'C-MOVE', 'C-STORE', 'C-CANCEL'. `requests` keeps the last 1000 identifiers.
    """

    def __init__(
        self,
        directory: Path,
        ae_title: str = "SIMULATOR",
        host: str = "127.0.0.1",
        port: int = 0,
        options: DimseOptions | None = None,
    ) -> None:
        self.archive = Archive(Path(directory))
        self.ae_title, self.host, self.port = ae_title, host, port
        self.options = options or DimseOptions()
        self.operations: Counter[str] = Counter()
        self.requests: deque[tuple[str, Dataset]] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._associations: set[Any] = set()
        self._connections: set[Any] = set()
        self._server: Any = None
        self._silence: Silence | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def open_associations(self) -> int:
        """Associations that are established now; not those that ended while they were being established."""
        with self._lock:
            return sum(one.is_established and one.is_alive() for one in self._associations)

    def start(self) -> int:
        """Reads the directory, listens, and gives the port."""
        self._stopped.clear()
        if self.options.black_hole == "tcp":
            self._silence = Silence(self.host, self.port, lambda: self._count("connection"))
            self.port = self._silence.port
            return self.port
        quieten()
        self.archive.scan()
        server: Any = entity(self.ae_title, self.archive, self.options).start_server(
            (self.host, self.port), block=False, ssl_context=self.options.tls, evt_handlers=self._handlers()
        )
        server.contexts = SharedContexts(server.contexts)
        self._server = server
        self.port = server.server_address[1]
        return self.port

    def stop(self) -> None:
        """Closes every connection and waits for the threads, at most a few seconds."""
        self._stopped.set()
        if self._silence:
            self._silence.close()
            self._silence = None
        if self._server is None:
            return
        shut_down(self._server)
        threads = list(self._server.active_associations)
        with self._lock:
            connections = list(self._connections)
        for association in connections:
            hang_up(association)
        for thread in threads:
            thread.join(3)
        self._server = None

    def rescan(self) -> None:
        """Reads the directory anew; what a C-STORE brought is known without it."""
        self.archive.scan()

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_CONN_CLOSE, self._on_close),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_REJECTED, lambda event: self._count("rejected")),
            (evt.EVT_RELEASED, lambda event: self._count("released")),
            (evt.EVT_ABORTED, lambda event: self._count("aborted")),
            (evt.EVT_DIMSE_RECV, self._on_message),
            (evt.EVT_SOP_EXTENDED, self._on_extended),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_GET, self._on_get),
            (evt.EVT_C_MOVE, self._on_move),
            (evt.EVT_C_STORE, self._on_store),
        ]

    def _count(self, operation: str, identifier: Dataset | None = None) -> None:
        with self._lock:
            self.operations[operation] += 1
            if identifier is not None:
                self.requests.append((operation, identifier))

    def _on_connection(self, event: Event) -> None:
        set_up(event.assoc)
        prepare(event.assoc)
        self._count("connection")
        with self._lock:
            self._connections.add(event.assoc)

    def _on_close(self, event: Event) -> None:
        with self._lock:
            self._connections.discard(event.assoc)
            self._associations.discard(event.assoc)

    def _on_established(self, event: Event) -> None:
        self._count("association")
        with self._lock:
            self._associations.add(event.assoc)

    def _on_message(self, event: Event) -> None:
        if type(event.message).__name__ == "C_CANCEL_RQ":
            self._count("C-CANCEL")

    def _on_extended(self, event: Event) -> dict[str, bytes]:
        """Relational queries where asked for and had; nothing else of PS3.4 C.5.1.1.1."""
        asked = {model: info for model, info in event.app_info.items() if model in FIND}
        answer = bytes([1 if self.options.relational else 0])
        return {model: bytes([info[0] & answer[0]]) + bytes(len(info) - 1) for model, info in asked.items() if info}

    def _waits(self, event: Event) -> None:
        """The delay before an answer; in a black hole, until the peer leaves or the simulator stops."""
        until = time.monotonic() + self.options.delay
        while self.options.black_hole == "association" or time.monotonic() < until:
            if self._stopped.wait(_POLL) or event.assoc.acse.is_aborted() or not event.assoc.dul.is_alive():
                return

    def _on_echo(self, event: Event) -> int:
        self._count("C-ECHO")
        self._waits(event)
        return SUCCESS

    def _on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        identifier = _identifier(event)
        if identifier is None:
            yield UNABLE_TO_PROCESS, None
            return
        self._count(f"C-FIND {identifier.get('QueryRetrieveLevel', '')}", identifier)
        self._waits(event)
        if self.options.failure:
            yield self.options.failure, None
            return
        is_implicit = event.context.transfer_syntax == ImplicitVRLittleEndian
        find = Find(self.archive, identifier, _root(event), self.ae_title, self.options, is_implicit)
        try:
            for number, row in enumerate(find.rows()):
                if event.is_cancelled:
                    yield CANCELLED, None
                    return
                if number == self.options.max_results:
                    if self.options.max_results_status:
                        yield self.options.max_results_status, None
                    return
                yield row
        except IdentifierRefusedError:
            yield self.options.refusal, None

    def _on_get(self, event: Event) -> Iterator[Any]:
        yield from self._retrieve(event, "C-GET")

    def _on_move(self, event: Event) -> Iterator[Any]:
        """Connects to the configured destination only (PS3.4 C.4.2)."""
        host, port = self.options.destinations.get(event.move_destination, (None, None))
        caller = event.assoc.requestor.ae_title
        opened = (evt.EVT_CONN_OPEN, self._on_move_connection, [caller])
        yield host, port, {"contexts": proposed(self.archive), "evt_handlers": [opened]}
        yield from self._retrieve(event, "C-MOVE")

    def _on_move_connection(self, event: Event, caller: str) -> None:
        set_up(event.assoc)
        prepare(event.assoc, caller)

    def _retrieve(self, event: Event, operation: str) -> Iterator[Any]:
        """The number of instances, then each as pynetdicom's handlers yield them."""
        identifier = _identifier(event)
        self._count(operation, identifier)
        self._waits(event)
        found = self._selected(identifier, _root(event))
        if found is None or self.options.failure:
            yield 1
            yield self.options.failure or DOES_NOT_MATCH, None
            return
        yield len(found)
        for number, stored in enumerate(found):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            if number == self.options.abort_after:
                event.assoc.abort()
                return
            yield PENDING, StoredFile(stored)

    def _selected(self, identifier: Dataset | None, root: str) -> list[StoredInstance] | None:
        if identifier is None:
            return None
        try:
            found = selected(self.archive, identifier, root)
        except ValueError:
            return None
        return of_another_study(self.archive, found) if self.options.foreign_study else found

    def _on_store(self, event: Event) -> int:
        """Keeps the data set's bytes as they came."""
        self._count("C-STORE")
        self._waits(event)
        path = self.archive.directory / f"{event.request.AffectedSOPInstanceUID}.dcm"
        if _config.STORE_RECV_CHUNKED_DATASET:
            shutil.copyfile(event.dataset_path, path)
        else:
            path.write_bytes(event.encoded_dataset())
        if self.archive.add(path):
            return SUCCESS
        path.unlink()
        return UNABLE_TO_PROCESS


def _root(event: Event) -> str:
    return PATIENT if event.context.abstract_syntax in _PATIENT_ROOT else STUDY


def _identifier(event: Event) -> Dataset | None:
    """The request identifier with every value read; None when it cannot be."""
    try:
        identifier: Dataset = event.identifier
        for _ in identifier.iterall():
            pass
    except (ValueError, KeyError, NotImplementedError, EOFError):
        return None
    return identifier


__all__ = ["DimseOptions", "DimseSimulator"]
