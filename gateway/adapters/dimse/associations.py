"""One association with a DIMSE node: requested, used and ended within deadlines, its failures in our own words.

Everything here blocks and runs in worker threads, except `stop`, which any thread may call. This is the one place where
what happens on an association becomes a NodeError.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import _config
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from gateway.adapters.dimse.channel import Left
from gateway.adapters.dimse.connection import BUFFER, Connection, Late, Lost
from gateway.adapters.dimse.conversation import Aborted, Conversation, OpenSink
from gateway.adapters.dimse.messages import (
    A_ABORT,
    SHORTEST_PDU,
    Command,
    Message,
    Service,
    encoded_identifier,
    identifier_of,
    request,
)
from gateway.adapters.dimse.negotiation import ACCEPTED, REJECTED, Accepted, Proposal, rejection
from gateway.adapters.dimse.receiving import Sink
from gateway.errors import NodeBusy, NodeError, NodeProtocolError, NodeRefused, NodeTimeout, NodeUnreachable

# Identifiers hold patients' names: pynetdicom logs them at INFO, and parts of them with each failure to decode.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"
if logging.getLogger("pynetdicom").level == logging.NOTSET:
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

PENDING = (0xFF00, 0xFF01)
MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers of one byte
_TRANSIENT, _PRESENTATION = 2, 3  # PS3.8 9.3.4
_RELEASE_TIMEOUT = 1.0
_GRACE = 0.3


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


@dataclass(frozen=True, slots=True)
class Response:
    """A response of the node; `data_set` is its identifier as it came, if it has one. `failed` and `sent` count sub-operations."""

    status: int
    failed: int
    data_set: bytes | None
    transfer_syntax: str
    sent: int = 0

    @property
    def is_pending(self) -> bool:
        return self.status in PENDING

    def identifier(self) -> Dataset | None:
        """None where there is none, or none that can be read."""
        try:
            return None if self.data_set is None else identifier_of(self.data_set, self.transfer_syntax)
        except Exception:  # noqa: BLE001 - whatever pydicom makes of a peer's bytes
            return None


def refuse(command: Command, transfer_syntax: str) -> Sink:
    """The sink of an association on which nothing is expected."""
    return Sink()


class NothingAccepted(NodeRefused):
    """The node takes the association, but nothing that was proposed on it."""


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
        self._proposal = Proposal(
            peer.calling_ae_title, peer.called_ae_title, peer.max_pdu, contexts, scp_roles, extended
        )
        self._open_sink = open_sink
        self._connection: Connection | None = None
        self._conversation: Conversation | None = None
        self._accepted = Accepted()
        self._is_left = False

    def request(self) -> None:
        """Raises NodeUnreachable, NodeTimeout, NodeBusy, NodeRefused or NodeProtocolError; Left when `stop` came first."""
        peer = self.peer
        connection = self._connection = Connection()
        if self._is_left:
            raise Left
        try:
            deadline = time.monotonic() + peer.connect_timeout
            connection.open(peer.host, peer.port, deadline, peer.tls)
            connection.write(self._proposal.encoded(), deadline)
            self._accepted = self._answer(connection, deadline)
        except Late:
            raise NodeTimeout(peer.node, "did not answer the association request in time") from None
        except Lost:
            what = "closed the connection instead of answering the association request"
            raise NodeUnreachable(
                peer.node, what if connection.is_open else "no connection to its DICOM port"
            ) from None
        except OSError:
            raise NodeUnreachable(peer.node, "its host name or address cannot be resolved") from None
        self._conversation = Conversation(connection, self._accepted, peer.response_timeout, self._open_sink)

    def _answer(self, connection: Connection, deadline: float) -> Accepted:
        """What the node accepted. Raises Lost for what is no answer, NodeBusy or NodeRefused for a rejection."""
        header = bytes(connection.exactly(6, deadline))
        length = int.from_bytes(header[2:], "big")
        if header[0] not in (ACCEPTED, REJECTED) or length > BUFFER // 2:
            raise Lost
        encoded = header + bytes(connection.exactly(length, deadline))
        try:
            if header[0] == REJECTED:
                result, *reason = rejection(encoded)
            else:
                accepted = self._proposal.outcome(encoded)
        except Exception:  # noqa: BLE001 - whatever pynetdicom makes of a peer's bytes
            raise Lost from None
        if header[0] == REJECTED:
            connection.is_open = False
            raise _rejection(self.peer.node, result, (reason[0], reason[1]))
        if 0 < accepted.max_pdu < SHORTEST_PDU:
            raise NodeProtocolError(self.peer.node, "takes no PDU that is long enough to hold anything")
        if not accepted.contexts:
            raise NothingAccepted(self.peer.node, "accepts none of the proposed presentation contexts")
        return accepted

    @property
    def is_usable(self) -> bool:
        """Whether an idle association still stands; a socket with something to read is one that the node is ending.

        One that was stopped is none, even if its work had just ended: the next search on it would end without a word.
        """
        connection = self._connection
        return self._conversation is not None and connection is not None and not self._is_left and connection.is_silent

    @property
    def has_more(self) -> bool:
        """Whether more of an answer has already arrived."""
        return self._conversation is not None and self._conversation.has_more

    def accepts(self, abstract_syntax: str, *, as_scp: bool = False) -> bool:
        """Whether the node accepted a context for it; `as_scp` asks for the one in which we receive."""
        return self._context(abstract_syntax, as_scp=as_scp) is not None

    def accepts_syntax(self, abstract_syntax: str, transfer_syntax: str) -> bool:
        return self._context(abstract_syntax, transfer_syntax) is not None

    def _context(self, abstract_syntax: str, transfer_syntax: str = "", *, as_scp: bool = False) -> int | None:
        for number, context in self._accepted.contexts.items():
            is_it = context.abstract_syntax == abstract_syntax and (context.as_scp if as_scp else context.as_scu)
            if is_it and transfer_syntax in ("", str(context.transfer_syntax[0])):
                return number
        return None

    @property
    def implementation(self) -> str:
        return self._accepted.implementation

    def extension(self, sop_class: str) -> bytes:
        """The node's answer to SOP Class Extended Negotiation, b'' where it gave none (PS3.7 D.3.3.5)."""
        return self._accepted.extensions.get(sop_class, b"")

    def echo(self) -> None:
        """Raises NodeError unless the node answers C-ECHO with success."""
        (response,) = self._ask(Service.ECHO, Verification)
        if response.status != 0x0000:
            raise NodeRefused(self.peer.node, f"answered C-ECHO with status {response.status:04X}")

    def store(self, path: Path, sop_class: str, instance: str, syntax: str, message_id: int) -> int:
        """C-STORE of a Part 10 file as it is; the status. The node must have accepted its transfer syntax."""
        context = self._required(sop_class, syntax)
        command = request(Service.STORE, sop_class, message_id, data_set=True, instance=instance)
        (response,) = self._responses(
            Service.STORE, lambda conversation: conversation.send_file(context, command, path)
        )
        return response.status

    def find(self, identifier: Dataset, model: str) -> Iterator[Response]:
        return self._ask(Service.FIND, model, identifier)

    def get(self, identifier: Dataset, model: str) -> Iterator[Response]:
        return self._ask(Service.GET, model, identifier)

    def move(
        self, identifier: Dataset, model: str, destination: str, message_id: int, heard: Callable[[], float]
    ) -> Iterator[Response]:
        """`heard` tells when the C-STORE side last heard of the node: a C-MOVE itself may be silent for minutes."""
        if self._conversation:
            self._conversation.also_heard = heard
        return self._ask(Service.MOVE, model, identifier, message_id=message_id, destination=destination)

    def _required(self, abstract_syntax: str, syntax: str = "") -> int:
        context = self._context(abstract_syntax, syntax)
        if context is None:
            raise NodeProtocolError(self.peer.node, "does not accept what was asked of it")
        return context

    def _ask(
        self,
        service: Service,
        abstract_syntax: str,
        identifier: Dataset | None = None,
        *,
        message_id: int = 1,
        destination: str = "",
    ) -> Iterator[Response]:
        context = self._required(abstract_syntax)
        command = request(
            service, abstract_syntax, message_id, data_set=identifier is not None, destination=destination
        )
        syntax = self._accepted.syntax(context)
        data_set = None if identifier is None else encoded_identifier(identifier, syntax)
        return self._responses(service, lambda conversation: conversation.send(context, command, data_set))

    def _responses(self, service: Service, send: Callable[[Conversation], None]) -> Iterator[Response]:
        """Every response up to the final one. Raises NodeError when they stop without it."""
        conversation = self._conversation
        if conversation is None:
            raise NodeUnreachable(self.peer.node, "no association")
        name = f"C-{service.name}"
        try:
            send(conversation)
            for message in conversation.responses(service):
                response = self._response(message)
                yield response
                if not response.is_pending:
                    return
        except (NodeError, Left):
            raise
        except Late:
            raise NodeTimeout(self.peer.node, f"fell silent during {name}") from None
        except Lost:
            raise NodeUnreachable(self.peer.node, f"closed the connection during {name}") from None
        except Aborted:
            raise NodeProtocolError(self.peer.node, f"aborted the association during {name}") from None
        except Exception:  # noqa: BLE001 - whatever is made of a peer's bytes
            raise NodeProtocolError(self.peer.node, f"answered {name} out of protocol") from None

    def _response(self, message: Message) -> Response:
        command = message.command
        syntax = self._accepted.syntax(message.context_id)
        failed, sent = command.failed_suboperations, command.sent_suboperations
        return Response(command.status, failed, message.data_set, syntax, sent)

    def stop(self) -> None:
        """From any thread, without blocking: the thread that uses the association aborts it and gets Left."""
        self._is_left = True
        connection = self._connection
        if connection:
            connection.stop()

    def end(self, *, release: bool = False) -> None:
        """A-RELEASE when asked for and possible, else A-ABORT; returns when the connection is closed."""
        connection, self._connection = self._connection, None
        conversation, self._conversation = self._conversation, None
        if connection is None:
            return
        connection.resume()
        is_over = not connection.is_open
        with suppress(Late, Lost, Left, OSError):
            if conversation and release and not is_over:
                is_over = conversation.release(_RELEASE_TIMEOUT)
        with suppress(Late, Lost, Left, OSError):
            if not is_over and not connection.is_writing:
                connection.write(bytes([A_ABORT, 0, 0, 0, 0, 4, 0, 0, 0, 0]), time.monotonic() + _GRACE)
        connection.close(0.0 if is_over else _GRACE)
        if conversation:
            conversation.abandon()


def _rejection(node: str, result: int, reason: tuple[int, int]) -> NodeError:
    """Why there is no association (PS3.8 Table 9-21: result, source and reason of a rejection)."""
    texts = {
        (1, 3): "does not know our calling AE title",
        (1, 7): "does not go by the called AE title",
        (1, 2): "does not know the DICOM application context",
        (2, 2): "does not speak our protocol version",
        (3, 1): "rejected the association: temporary congestion",
        (3, 2): "rejected the association: local limit exceeded",
    }
    text = texts.get(reason, "rejected the association without a reason")
    if result == _TRANSIENT or reason[0] == _PRESENTATION:
        return NodeBusy(node, text)
    return NodeRefused(node, text)
