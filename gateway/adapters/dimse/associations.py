"""One association with a DIMSE node: requested, used and ended within deadlines, its failures in our own words.

Everything here blocks and runs in worker threads, except `stop`, which any thread may call. This is the one place where
what pynetdicom reports becomes a NodeError.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import PresentationContext

from gateway.adapters.dimse.channel import Left
from gateway.adapters.dimse.provider import (
    OpenSink,
    Provider,
    abort,
    has_ended,
    prepare_socket,
    refuse,
    shut_down,
    status_of_sink,
)
from gateway.errors import NodeBusy, NodeError, NodeProtocolError, NodeRefused, NodeTimeout, NodeUnreachable

# Identifiers hold patients' names: pynetdicom logs them at INFO, and parts of them with each failure to decode.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"
# A file is sent from the disk as it is, and only where the node took its own transfer syntax.
_config.STORE_SEND_CHUNKED_DATASET = True
if logging.getLogger("pynetdicom").level == logging.NOTSET:
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte
_TRANSIENT, _PRESENTATION = 2, 3  # PS3.8 9.3.4
_RELEASE_TIMEOUT = 1.0
_LENIENCE = 0.2

Response = tuple[Dataset, Dataset | None]


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to call, as whom, and for how long; times in seconds. `response_timeout` counts silence, not the whole."""

    node: str
    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    connect_timeout: float
    response_timeout: float
    tls: ssl.SSLContext | None
    max_pdu: int


class NodeAssociation:
    """An association requested of a node. The constructor does no I/O; `end` follows `request`, even if that raised."""

    def __init__(
        self,
        peer: Peer,
        contexts: Sequence[PresentationContext],
        *,
        scp_roles: Sequence[str] = (),
        extended: Sequence[SOPClassExtendedNegotiation] = (),
        open_sink: OpenSink = refuse,
    ) -> None:
        self.peer = peer
        self._contexts = list(contexts)
        self._negotiation: list[Any] = [*(build_role(uid, scp_role=True) for uid in scp_roles), *extended]
        self._open_sink = open_sink
        self._association: Association | None = None
        self._provider: Provider | None = None
        self._deadline = 0.0
        self._is_connected = False
        self._is_left = False

    def request(self) -> None:
        """Raises NodeUnreachable, NodeTimeout, NodeBusy or NodeRefused; Left when `stop` came first."""
        peer = self.peer
        entity = AE(peer.calling_ae_title)
        entity.connection_timeout = entity.acse_timeout = peer.connect_timeout
        entity.dimse_timeout = entity.network_timeout = None
        self._deadline = time.monotonic() + peer.connect_timeout
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_CONN_OPEN, self._on_connected),
            (evt.EVT_C_STORE, status_of_sink),
        ]
        # pynetdicom waits for its own reading thread, which half a PDU, or one byte a minute, would hold for ever.
        watchdog = threading.Timer(peer.connect_timeout + _LENIENCE, self._shut_down)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._association = entity.associate(
                peer.host,
                peer.port,
                self._contexts,
                ae_title=peer.called_ae_title,
                max_pdu=peer.max_pdu,
                ext_neg=self._negotiation,
                tls_args=(peer.tls, peer.host) if peer.tls else None,
                evt_handlers=handlers,
            )
        except OSError:
            raise NodeUnreachable(peer.node, "its host name or address cannot be resolved") from None
        finally:
            watchdog.cancel()
        if self._is_left:
            raise Left
        if not self._association.is_established:
            raise self._refusal(self._association)

    def _shut_down(self) -> None:
        if self._association and not self._association.is_established:
            shut_down(self._association)

    def _on_requested(self, event: evt.Event) -> None:
        self._association = event.assoc
        self._provider = event.assoc.dimse = Provider(event.assoc, self.peer.response_timeout, self._open_sink)
        if self._is_left:
            shut_down(event.assoc)

    def _on_connected(self, event: evt.Event) -> None:
        self._is_connected = True
        prepare_socket(event.assoc, self.peer.response_timeout)
        event.assoc.acse_timeout = max(0.05, self._deadline - time.monotonic())

    def _refusal(self, association: Association) -> NodeError:
        """Why there is no association (PS3.8 Table 9-21: result, source and reason of a rejection)."""
        node, answer = self.peer.node, association.acceptor.primitive
        is_late = time.monotonic() >= self._deadline - 0.05
        if association.is_rejected and answer is not None:
            return _rejection(node, answer.result, (answer.result_source, answer.diagnostic))
        if answer is not None:
            return NodeRefused(node, "accepts none of the proposed presentation contexts")
        if is_late:
            return NodeTimeout(node, "did not answer the association request in time")
        if not self._is_connected:
            return NodeUnreachable(node, "no connection to its DICOM port")
        return NodeUnreachable(node, "closed the connection instead of answering the association request")

    @property
    def is_usable(self) -> bool:
        """Whether an idle association still stands; a socket with something to read is one that the node is ending.

        One that was stopped is none, even if its work had just ended: the next search on it would end without a word.
        """
        association = self._association
        if self._is_left or association is None or not association.is_established or not association.dul.is_alive():
            return False
        wrapped = association.dul.socket
        return bool(wrapped and wrapped.socket and not wrapped.ready and not association.acse.is_aborted())

    @property
    def established(self) -> Association:
        if self._association is None:
            raise NodeUnreachable(self.peer.node, "no association")
        return self._association

    def accepts(self, abstract_syntax: str, *, as_scp: bool = False) -> bool:
        """Whether the node accepted a context for it; `as_scp` asks for the one in which we receive."""
        contexts = self.established.accepted_contexts
        return any(c.abstract_syntax == abstract_syntax and (c.as_scp if as_scp else c.as_scu) for c in contexts)

    def accepts_syntax(self, abstract_syntax: str, transfer_syntax: str) -> bool:
        contexts = self.established.accepted_contexts
        return any(c.abstract_syntax == abstract_syntax and transfer_syntax in c.transfer_syntax for c in contexts)

    @property
    def implementation(self) -> str:
        return self.established.acceptor.implementation_version_name or ""

    def extension(self, sop_class: str) -> bytes:
        """The node's answer to SOP Class Extended Negotiation, b'' where it gave none (PS3.7 D.3.3.5)."""
        return self.established.acceptor.sop_class_extended.get(sop_class, b"")  # type: ignore[call-overload, no-any-return]

    def echo(self) -> None:
        """Raises NodeError unless the node answers C-ECHO with success."""
        status = self._one(lambda: self.established.send_c_echo(), "C-ECHO")
        if status != 0x0000:
            raise NodeRefused(self.peer.node, f"answered C-ECHO with status {status:04X}")

    def store(self, path: Path, message_id: int) -> int:
        """C-STORE of a Part 10 file as it is; the status. The node must have accepted its transfer syntax."""
        return self._one(lambda: self.established.send_c_store(path, msg_id=message_id), "C-STORE")

    def find(self, identifier: Dataset, model: str) -> Iterator[Response]:
        return self._all(lambda: self.established.send_c_find(identifier, model), "C-FIND")

    def get(self, identifier: Dataset, model: str) -> Iterator[Response]:
        return self._all(lambda: self.established.send_c_get(identifier, model), "C-GET")

    def move(
        self, identifier: Dataset, model: str, destination: str, message_id: int, heard: Callable[[], float]
    ) -> Iterator[Response]:
        """`heard` tells when the C-STORE side last heard of the node: a C-MOVE itself may be silent for minutes."""
        if self._provider:
            self._provider.also_heard = heard
        return self._all(
            lambda: self.established.send_c_move(identifier, destination, model, msg_id=message_id), "C-MOVE"
        )

    def _one(self, send: Callable[[], Dataset], service: str) -> int:
        try:
            status = send()
        except Exception:  # noqa: BLE001 - whatever pynetdicom or pydicom make of a peer's bytes
            raise self._breakdown(service) from None
        if "Status" not in status:
            raise self._breakdown(service)
        return int(status.Status)

    def _all(self, send: Callable[[], Iterator[Response]], service: str) -> Iterator[Response]:
        """Every response with its identifier, if any. Raises NodeError when they stop without a final one."""
        try:
            for status, identifier in send():
                if "Status" not in status:
                    raise self._breakdown(service)
                yield status, identifier
        except (NodeError, Left):
            raise
        except Exception:  # noqa: BLE001 - whatever pynetdicom or pydicom make of a peer's bytes
            raise self._breakdown(service) from None

    def _breakdown(self, service: str) -> Exception:
        """Why a conversation ended before its final response."""
        node, provider = self.peer.node, self._provider
        if provider is None or provider.is_stopped:
            return Left()
        if provider.is_timed_out:
            return NodeTimeout(node, f"fell silent during {service}")
        if provider.is_aborted_by_peer:
            return NodeProtocolError(node, f"aborted the association during {service}")
        if provider.is_lost:
            return NodeUnreachable(node, f"closed the connection during {service}")
        return NodeProtocolError(node, f"answered {service} out of protocol")

    def stop(self) -> None:
        """From any thread, without blocking: the thread that uses the association aborts it and gets Left."""
        self._is_left = True
        provider = self._provider
        if provider:
            provider.stop()
        self._shut_down()

    def end(self, *, release: bool = False) -> None:
        """A-RELEASE when asked for and possible, else A-ABORT; returns when the association's threads have ended."""
        association = self._association
        if association is None:
            return
        if release and self.is_usable:
            with suppress(Exception):
                association.acse_timeout = _RELEASE_TIMEOUT
                association.release()
        if not association.is_released or not has_ended(association, _RELEASE_TIMEOUT):
            abort(association)
        if self._provider:
            self._provider.abandon()


def _rejection(node: str, result: int | None, reason: tuple[int | None, int | None]) -> NodeError:
    texts = {
        (1, 3): "does not know our calling AE title",
        (1, 7): "does not go by the called AE title",
        (1, 2): "does not know the DICOM application context",
        (2, 2): "does not speak our protocol version",
        (3, 1): "rejected the association: temporary congestion",
        (3, 2): "rejected the association: local limit exceeded",
    }
    source, diagnostic = reason
    text = texts.get((source or 0, diagnostic or 0), "rejected the association without a reason")
    if result == _TRANSIENT or source == _PRESENTATION:
        return NodeBusy(node, text)
    return NodeRefused(node, text)
