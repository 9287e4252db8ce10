"""What is said on an established association: requests, responses, and the instances that a node sends meanwhile (PS3.7).

The thread that asks is the one that reads: data sets go from the socket's buffer to their sinks piece by piece, and a
C-STORE is answered as its last piece has gone through. pynetdicom would gather each instance, hand it on between three
threads, and look for work once a millisecond on every association.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pynetdicom.dsutils import split_dataset

from gateway.adapters.dimse.connection import Connection, Late, Lost
from gateway.adapters.dimse.messages import (
    A_ABORT,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    COMMAND,
    LAST,
    P_DATA,
    RESPONSE,
    BadMessage,
    Command,
    Message,
    Service,
    command_of,
    pdu,
    pdus,
    store_response,
)
from gateway.adapters.dimse.negotiation import Accepted
from gateway.adapters.dimse.receiving import NOT_AUTHORISED, Sink

MAX_SENT_PDU = 131072
MAX_COMMAND, MAX_IDENTIFIER = 64 * 1024, 16 << 20
_MAX_OTHER_PDU = 256 * 1024
_TICK = 0.25

OpenSink = Callable[[Command, str], Sink]


class Aborted(Exception):
    """The node sent A-ABORT."""


class _Incoming:
    """A message on its way: its command, then its data set, gathered (an identifier) or through a sink (an instance)."""

    def __init__(self) -> None:
        self.encoded = bytearray()
        self.command: Command | None = None
        self.context_id = 0
        self.sink: Sink | None = None
        self.gathered: list[bytes] = []
        self.size = 0


class Conversation:
    """One association's messages, for the thread that uses it. `silence` is how many seconds the node may send nothing
    while an answer is due; `also_heard` tells when it was last heard elsewhere (C-MOVE), as time.monotonic().

    Raises Late for a node that is silent, Lost, Aborted, BadMessage, and Left after `stop`.
    """

    def __init__(self, connection: Connection, accepted: Accepted, silence: float, open_sink: OpenSink) -> None:
        self._connection = connection
        self._accepted = accepted
        self._silence = silence
        self._open_sink = open_sink
        self._incoming = _Incoming()
        self._heard = 0.0
        self._most = min(accepted.max_pdu or MAX_SENT_PDU, MAX_SENT_PDU)
        self._messages = self._read()
        self.also_heard: Callable[[], float] | None = None

    def send(self, context_id: int, command: bytes, data_set: bytes | None = None) -> None:
        pieces = list(pdus(context_id, COMMAND, command, self._most))
        if data_set is not None:
            pieces += pdus(context_id, 0, data_set, self._most)
        self._write(b"".join(pieces))

    def send_file(self, context_id: int, command: bytes, path: Path) -> None:
        """A request with the data set of a Part 10 file, as it is, no faster than the node takes it."""
        self.send(context_id, command)
        room = self._most - 6
        with path.open("rb") as file:
            file.seek(split_dataset(path)[1])
            piece = file.read(room)
            while True:
                following = file.read(room)
                self._write(pdu(context_id, 0 if following else LAST, piece))
                if not following:
                    return
                piece = following

    def _write(self, data: bytes) -> None:
        self._connection.write(data, time.monotonic() + self._silence)

    def responses(self, service: Service) -> Iterator[Message]:
        """What the node answers; the caller stops at the final one."""
        self._heard = time.monotonic()
        for message in self._messages:
            if message.command.field != service | RESPONSE:
                raise BadMessage("an answer to something else")
            yield message
            self._heard = max(self._heard, time.monotonic())

    @property
    def has_more(self) -> bool:
        """Whether more has already arrived."""
        return self._connection.available > 0

    def abandon(self) -> None:
        """The association has ended: an instance that was on its way will not be complete."""
        sink, self._incoming.sink = self._incoming.sink, None
        if sink:
            sink.abandon()

    # Reading

    def _read(self) -> Iterator[Message]:
        """Every message except C-STORE requests, which are answered here."""
        while True:
            header = bytes(self._exactly(6))
            kind, length = header[0], int.from_bytes(header[2:], "big")
            if kind == P_DATA:
                for message in self._p_data(length):
                    if message.command.field != Service.STORE:
                        yield message
            else:
                self._other(kind, length)
            self._heard = time.monotonic()

    def _other(self, kind: int, length: int) -> None:
        if kind == A_ABORT:
            raise Aborted
        if kind == A_RELEASE_RQ and length <= _MAX_OTHER_PDU:
            self._exactly(length)
            self._write(bytes([A_RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0]))
            raise Lost
        raise BadMessage("a PDU that is not expected")

    def _p_data(self, length: int) -> Iterator[Message]:
        while length > 0:
            header = bytes(self._exactly(6))
            size = int.from_bytes(header[:4], "big")
            length -= size + 4
            if size < 2 or length < 0:
                raise BadMessage("a PDV that does not fit")
            self._fragment(header[4], header[5], size - 2)
            if self._is_complete(header[5]):
                yield self._finished()

    def _fragment(self, context_id: int, control: int, rest: int) -> None:
        """Takes one fragment (PS3.8 Annex E) as it comes, without waiting for its end."""
        incoming = self._incoming
        if incoming.command is None:
            incoming.context_id = context_id
        if bool(control & COMMAND) != (incoming.command is None) or context_id != incoming.context_id:
            raise BadMessage("a fragment out of order")
        while rest:
            if not self._connection.available:
                self._fill()
            piece = self._connection.take(rest)
            rest -= len(piece)
            self._take(incoming, piece)
        if control & COMMAND and control & LAST:
            self._begin(incoming)

    def _take(self, incoming: _Incoming, piece: memoryview) -> None:
        incoming.size += len(piece)
        if incoming.command is None:
            if incoming.size > MAX_COMMAND:
                raise BadMessage("an endless command set")
            incoming.encoded += piece
        elif incoming.sink is None:
            if incoming.size > MAX_IDENTIFIER:
                raise BadMessage("an endless identifier")
            incoming.gathered.append(bytes(piece))
        else:
            begun = time.monotonic()
            incoming.sink.write(piece)
            self._heard += time.monotonic() - begun  # while the reader is slow the node cannot be heard

    def _begin(self, incoming: _Incoming) -> None:
        incoming.command, incoming.size = command_of(bytes(incoming.encoded)), 0
        if incoming.command.field == Service.STORE:
            if not incoming.command.has_data_set:
                raise BadMessage("a C-STORE without a data set")
            syntax = self._accepted.syntax(incoming.context_id)
            incoming.sink = self._open_sink(incoming.command, syntax) if syntax else Sink(NOT_AUTHORISED)

    def _is_complete(self, control: int) -> bool:
        command = self._incoming.command
        return command is not None and bool(control & LAST) and not (control & COMMAND and command.has_data_set)

    def _finished(self) -> Message:
        incoming, self._incoming = self._incoming, _Incoming()
        assert incoming.command is not None
        if incoming.sink is not None:
            begun = time.monotonic()
            incoming.sink.finish()
            self._heard += time.monotonic() - begun
            self.send(incoming.context_id, store_response(incoming.command, incoming.sink.status))
        data_set = b"".join(incoming.gathered) if incoming.command.has_data_set and incoming.sink is None else None
        return Message(incoming.command, incoming.context_id, data_set)

    def _exactly(self, size: int) -> memoryview:
        if size > _MAX_OTHER_PDU:
            raise BadMessage("a PDU that is too long")
        while self._connection.available < size:
            self._fill()
        return self._connection.take(size)

    def _fill(self) -> None:
        """Waits for more, as long as the silence may last; whoever is heard elsewhere meanwhile is not silent."""
        while True:
            deadline = self._heard + self._silence
            if self.also_heard is None:
                self._connection.fill(deadline)
                return
            deadline = max(deadline, self.also_heard() + self._silence)
            try:
                self._connection.fill(min(deadline, time.monotonic() + _TICK))
                return
            except Late:
                if time.monotonic() >= max(deadline, self.also_heard() + self._silence):
                    raise

    # Ending

    def release(self, seconds: float) -> bool:
        """A-RELEASE; whether the node agreed in time. What it still sends is dropped (PS3.8 7.2.2)."""
        deadline = time.monotonic() + seconds
        self._connection.write(bytes([A_RELEASE_RQ, 0, 0, 0, 0, 4, 0, 0, 0, 0]), deadline)
        while True:
            header = bytes(self._connection.exactly(6, deadline))
            kind, rest = header[0], int.from_bytes(header[2:], "big")
            while rest:
                if not self._connection.available:
                    self._connection.fill(deadline)
                rest -= len(self._connection.take(rest))
            if kind == A_RELEASE_RQ:
                self._connection.write(bytes([A_RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0]), deadline)
            elif kind != P_DATA:
                return kind == A_RELEASE_RP
