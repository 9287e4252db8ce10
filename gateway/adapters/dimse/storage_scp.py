"""Receives what our own C-MOVE requests make nodes send, and nothing else (PS3.4 C.4.2, Storage SCP).

One per process and AE title, shared by all DIMSE nodes: to a PACS, an AE title is one host and one port.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from pydicom.dataset import Dataset as Command
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from gateway.adapters.dimse.provider import Provider, abort, prepare_socket, status_of_sink
from gateway.adapters.dimse.receiving import Intake, Sink
from gateway.adapters.dimse.storage_contexts import receivable_contexts
from gateway.errors import SettingsError

_REJECTED_PERMANENT, _SERVICE_USER, _CALLING_NOT_RECOGNISED = 1, 1, 3  # PS3.8 Table 9-21
_MAX_PDU = 131072
_GREETING_TIMEOUT = 10.0
_STRANGERS = 4
_LOOK_UP_EVERY = 10.0
"""Seconds between two look-ups of where a caller of one AE title may call from."""
_LOOK_UP_SECONDS = 2.0
"""Seconds that the start waits for all of them."""


@dataclass(frozen=True, slots=True)
class PendingMove:
    """A C-MOVE under way: who will send, on whose behalf, under which Message ID, and where the instances go."""

    message_id: int
    originator: str
    senders: frozenset[str]
    intake: Intake


class _Server(ThreadedAssociationServer):
    """The TLS handshake happens at the first read, in the caller's own thread: who never sends it keeps nobody out. `known` gives
    the addresses of those who may call."""

    known: Callable[[], Collection[str]] = tuple
    _strangers: tuple[socket.socket, ...] = ()

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = cast(socket.socket, self.socket).accept()
        client.settimeout(_GREETING_TIMEOUT)
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Who calls from elsewhere may be a PACS that has moved, or somebody who never says who he is: all such together have a few
        places."""
        if client_address[0] in self.known():
            return True
        self._strangers = tuple(one for one in self._strangers if one.fileno() >= 0)
        if len(self._strangers) >= _STRANGERS:
            return False
        self._strangers = (*self._strangers, request)
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: the default prints a traceback, and the peer sees its connection closed."""


class StorageReceiver:
    """The C-MOVE destination. `allowed_calling` maps each AE title that may call to the addresses it may call from.

    Addresses are IP addresses or host names, resolved at `open`, and again when one of these titles calls from elsewhere: a PACS
    may move, and a name server be silent for a while. Port 0 takes a free one: see `port` after `open`.
    """

    def __init__(
        self,
        ae_title: str,
        host: str,
        port: int,
        allowed_calling: Mapping[str, Collection[str]],
        *,
        tls: ssl.SSLContext | None = None,
        max_associations: int = 32,
        response_timeout: float = 60.0,
    ) -> None:
        self.ae_title = ae_title
        self.host = host
        self.port = port
        self._allowed_calling = allowed_calling
        self._tls = tls
        self._max_associations = max_associations
        self._response_timeout = response_timeout
        self._addresses: dict[str, frozenset[str]] = {}
        self._looked_up: dict[str, float] = {}
        self._server: ThreadedAssociationServer | None = None
        self._message_ids = itertools.cycle(range(1, 0x10000))
        self._pending: dict[int, PendingMove] = {}
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Raises SettingsError when the port is taken."""
        await self.admit(self._allowed_calling)
        try:
            self._server = await asyncio.to_thread(self._start)
        except OSError:
            raise SettingsError(f"the C-MOVE receiver cannot listen on {self.host}:{self.port}") from None
        self.port = int(self._server.server_address[1])

    async def close(self) -> None:
        server, self._server = self._server, None
        if server:
            await asyncio.to_thread(self._stop, server)

    async def admit(self, allowed_calling: Mapping[str, Collection[str]]) -> None:
        """From now on these may call, and no others; associations that are there go on. Whose name takes long to look up keeps
        nobody waiting: it is known once it is found, and until then from where it was."""
        before = {title.strip(): names for title, names in self._allowed_calling.items()}
        now = {title.strip(): names for title, names in allowed_calling.items()}
        known = {title: self._addresses.get(title, frozenset()) for title in now if before.get(title) == now[title]}
        self._allowed_calling = allowed_calling
        self._addresses = {title: known.get(title, frozenset()) for title in now}
        threads = [
            threading.Thread(target=self._look_up, args=(title, allowed_calling), name="host-names", daemon=True)
            for title in self._addresses
        ]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(_wait_for, threads, _LOOK_UP_SECONDS)

    def _start(self) -> ThreadedAssociationServer:
        entity = AE(self.ae_title)
        entity.maximum_pdu_size = _MAX_PDU
        entity.maximum_associations = self._max_associations
        entity.acse_timeout = min(_GREETING_TIMEOUT, self._response_timeout)
        entity.dimse_timeout = None
        entity.network_timeout = None
        entity.supported_contexts = receivable_contexts()
        entity.add_supported_context(Verification)
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._on_connected),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_CONN_CLOSE, self._on_closed),
            (evt.EVT_C_STORE, status_of_sink),
        ]
        server = entity.make_server(
            (self.host, self.port), ssl_context=self._tls, evt_handlers=handlers, server_class=_Server
        )
        cast(_Server, server).known = self._known
        entity._servers.append(server)
        threading.Thread(target=server.serve_forever, name=f"storage-scp-{self.ae_title}", daemon=True).start()
        return server

    def _stop(self, server: ThreadedAssociationServer) -> None:
        with suppress(OSError):
            # The accepting thread looks up only every half second, unless it is woken.
            cast(socket.socket, server.socket).shutdown(socket.SHUT_RDWR)
        server.shutdown()
        for association in server.active_associations:
            abort(association)

    def _on_connected(self, event: evt.Event) -> None:
        prepare_socket(event.assoc, self._response_timeout)
        open_sink = partial(self._open_sink, event.assoc)
        event.assoc.dimse = Provider(event.assoc, self._response_timeout, open_sink)

    def _on_requested(self, event: evt.Event) -> None:
        """Rejects who is not known, before anything is negotiated."""
        association = event.assoc
        peer = association.requestor.address_info
        if peer and self._may_call(_calling(association), peer.address):
            return
        association.acse.send_reject(_REJECTED_PERMANENT, _SERVICE_USER, _CALLING_NOT_RECOGNISED)
        _let_it_be_sent(association)

    def _known(self) -> frozenset[str]:
        return frozenset().union(*self._addresses.values())

    def _may_call(self, title: str, address: str) -> bool:
        """In the thread of the association."""
        if address in self._addresses.get(title, ()):
            return True
        now = time.monotonic()
        with self._lock:
            if now - self._looked_up.get(title, -math.inf) < _LOOK_UP_EVERY or title not in self._addresses:
                return False
            self._looked_up[title] = now
        return address in self._look_up(title, self._allowed_calling)

    def _look_up(self, title: str, allowed: Mapping[str, Collection[str]]) -> frozenset[str]:
        """The addresses of one title, which are remembered while these titles may call."""
        found = frozenset(_resolved(next((names for name, names in allowed.items() if name.strip() == title), ())))
        with self._lock:
            if found and allowed is self._allowed_calling:
                self._addresses = {**self._addresses, title: found}
        return found

    def _on_closed(self, event: evt.Event) -> None:
        if isinstance(event.assoc.dimse, Provider):
            event.assoc.dimse.abandon()

    @contextmanager
    def expecting(self, originator: str, senders: Collection[str], intake: Intake) -> Iterator[int]:
        """While it lasts, what `senders` send for `originator` goes to `intake`. Yields the C-MOVE's Message ID."""
        with self._lock:
            message_id = next(number for number in self._message_ids if number not in self._pending)
            self._pending[message_id] = PendingMove(message_id, originator, frozenset(senders), intake)
        try:
            yield message_id
        finally:
            with self._lock:
                del self._pending[message_id]

    def _open_sink(self, association: Association, command: Command, transfer_syntax: str) -> Sink:
        uid = str(command.get("AffectedSOPInstanceUID", ""))
        move = self._move_of(_calling(association), command, uid)
        if move is None:
            return Sink()
        return move.intake.open(str(command.get("AffectedSOPClassUID", "")), uid, transfer_syntax)

    def _move_of(self, sender: str, command: Command, uid: str) -> PendingMove | None:
        """By Move Originator (PS3.7 9.3.1.1) where the node gives it; else a C-MOVE that still waits for the instance.

        A node that gives no originator and whose instances we could not list must be the only one sending to us.
        """
        with self._lock:
            moves = [move for move in self._pending.values() if sender in move.senders]
        message_id = command.get("MoveOriginatorMessageID")
        if message_id is not None:
            originator = str(command.get("MoveOriginatorApplicationEntityTitle") or "").strip()
            moves = [m for m in moves if m.message_id == message_id and originator in ("", m.originator)]
            return moves[0] if moves else None
        listed = [m for m in moves if m.intake.names_instances and m.intake.wants(uid)]
        if listed:
            return listed[0]
        return moves[0] if len(moves) == 1 and not moves[0].intake.names_instances else None


def _calling(association: Association) -> str:
    primitive = association.requestor.primitive
    return str(primitive.calling_ae_title or "").strip() if primitive else ""


def _let_it_be_sent(association: Association) -> None:
    """pynetdicom closes the socket right after this event; a rejection that is still queued would be lost."""
    deadline = time.monotonic() + 1.0
    while association.dul.is_alive() and association.dul.to_provider_queue.qsize() and time.monotonic() < deadline:
        time.sleep(0.005)


def _wait_for(threads: Sequence[threading.Thread], seconds: float) -> None:
    ends = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))


def _resolved(names: Collection[str]) -> Iterator[str]:
    for name in names:
        with suppress(OSError):
            yield from (str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
