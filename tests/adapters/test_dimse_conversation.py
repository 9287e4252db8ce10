"""What a node may send on an association, in whatever pieces, and what it may not."""

import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context

from gateway.adapters.dimse.associations import Response
from gateway.adapters.dimse.channel import Left
from gateway.adapters.dimse.connection import Connection, Late, Lost
from gateway.adapters.dimse.conversation import MAX_COMMAND, Aborted, Conversation
from gateway.adapters.dimse.messages import (
    COMMAND,
    EXPLICIT,
    IMPLICIT,
    LAST,
    BadMessage,
    Service,
    command_of,
    encoded_identifier,
    pdu,
    pdus,
    request,
)
from gateway.adapters.dimse.negotiation import Accepted
from gateway.adapters.dimse.receiving import SUCCESS, Sink

CT, MODEL = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.2.2.1"


class Kept(Sink):
    """A sink that keeps what goes through it."""

    def __init__(self):
        super().__init__(SUCCESS)
        self.kept, self.is_finished, self.is_abandoned = b"", False, False

    def write(self, data, /):
        self.kept += bytes(data)
        return len(data)

    def finish(self):
        self.is_finished = True

    def abandon(self):
        self.is_abandoned = True


def response(status, *, data_set):
    elements = ((0x0100, Service.FIND | 0x8000), (0x0800, 1 if data_set else 0x0101), (0x0900, status))
    return b"".join(struct.pack("<HHLH", 0, element, 2, value) for element, value in elements)


def row(data):
    return pdu(1, COMMAND | LAST, response(0xFF00, data_set=True)) + pdu(1, LAST, data)


FINAL = pdu(1, COMMAND | LAST, response(0, data_set=False))


def context(abstract_syntax):
    built = build_context(abstract_syntax, "1.2.840.10008.1.2.1")
    built._as_scu = True
    return built


@contextmanager
def conversation(sent, pieces=1 << 20, silence=2.0, sinks=None, stay=False):
    """One with a node that sends these bytes, so many at a time, and then closes unless it is to stay."""

    def serve():
        peer, _ = server.accept()
        with peer:
            for start in range(0, len(sent), pieces):
                peer.sendall(sent[start : start + pieces])
            leave.wait(5 if stay else 0)
            peer.shutdown(socket.SHUT_WR)
            while data := peer.recv(65536):
                received.append(data)

    received, leave = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection()
        connection.open("127.0.0.1", server.getsockname()[1], time.monotonic() + 2, None)
        accepted = Accepted({1: context(MODEL), 3: context(CT)})
        taken = {} if sinks is None else sinks

        def open_sink(command, syntax):
            return taken.setdefault(command.sop_instance_uid, Kept())

        talk = Conversation(connection, accepted, silence, open_sink)
        talk.connection, talk.received = connection, received
        try:
            yield talk
        finally:
            leave.set()
            connection.close(0.0)
            talk.abandon()
            thread.join()


def answers(talk):
    found = []
    for message in talk.responses(Service.FIND):
        found.append((message.command.status, message.data_set))
        if message.command.status != 0xFF00:
            return found
    raise AssertionError("the answers ended without a final one")


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("most", [40, 131072])
def test_rows_come_whole_in_whatever_pieces_they_are_sent(pieces, most):
    data = bytes(range(256)) * 3
    sent = b"".join(pdus(1, COMMAND, response(0xFF00, data_set=True), most)) + b"".join(pdus(1, 0, data, most))
    with conversation(sent * 2 + FINAL, pieces) as talk:
        assert answers(talk) == [(0xFF00, data), (0xFF00, data), (0, None)]


def test_a_command_and_its_data_set_may_share_a_pdu():
    command, data = pdu(1, COMMAND | LAST, response(0xFF00, data_set=True)), pdu(1, LAST, b"row!")
    shared = struct.pack(">BBL", 4, 0, len(command) + len(data) - 12) + command[6:] + data[6:]
    with conversation(shared + FINAL, 5) as talk:
        assert answers(talk) == [(0xFF00, b"row!"), (0, None)]


@pytest.mark.parametrize("pieces", [3, 100_000])
def test_an_instance_goes_through_its_sink_and_is_answered_before_anything_else_is_said(pieces):
    store, sinks, data = request(Service.STORE, CT, 7, data_set=True, instance="1.2.3"), {}, b"pixels" * 5000
    sent = b"".join(pdus(3, COMMAND, store, 4096)) + b"".join(pdus(3, 0, data, 4096))
    with conversation(sent + FINAL, pieces, sinks=sinks) as talk:
        assert answers(talk) == [(0, None)]
        assert (sinks["1.2.3"].kept, sinks["1.2.3"].is_finished) == (data, True)
    answer = command_of(b"".join(talk.received)[12:])
    assert (answer.field, answer.status, answer.sop_instance_uid) == (Service.STORE | 0x8000, SUCCESS, "1.2.3")


def test_an_instance_that_breaks_off_is_abandoned_and_never_finished():
    store, sinks = request(Service.STORE, CT, 7, data_set=True, instance="1.2.3"), {}
    sent = b"".join(pdus(3, COMMAND, store, 4096)) + pdu(3, 0, b"half of it")
    with conversation(sent, sinks=sinks) as talk, pytest.raises(Lost):
        answers(talk)
    assert (sinks["1.2.3"].is_finished, sinks["1.2.3"].is_abandoned) == (False, True)


@pytest.mark.parametrize(
    "sent",
    [
        pdu(1, LAST, b"data before a command"),
        pdu(1, COMMAND, b"\0") + pdu(1, LAST, b"data in a command"),
        pdu(1, COMMAND | LAST, response(0xFF00, data_set=True)) + pdu(3, LAST, b"in another context"),
        pdu(1, COMMAND | LAST, response(0xFF00, data_set=True)) + FINAL,
        pdu(1, COMMAND | LAST, b"\0\0\0\0\xff\xff\xff\xff"),
        pdu(1, COMMAND | LAST, request(Service.ECHO, CT, 1, data_set=False)),
        pdu(1, COMMAND | LAST, response(0, data_set=False)[:-10]),
        pdu(1, COMMAND, b"\0" * (MAX_COMMAND + 1)),
        struct.pack(">BBLLBB", 4, 0, 8, 100, 1, 3) + b"xx",
        struct.pack(">BBLLBB", 4, 0, 6, 0, 1, 3),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x02\0\0\0\0\x04....",
    ],
)
def test_what_is_out_of_protocol_is_refused(sent):
    with conversation(sent) as talk, pytest.raises(BadMessage):
        answers(talk)


def test_an_abort_a_release_and_a_closed_connection_end_an_answer():
    for sent, error in (
        (row(b"x") + b"\x07\0\0\0\0\x04\0\0\0\0", Aborted),
        (row(b"x") + b"\x05\0\0\0\0\x04\0\0\0\0", Lost),
        (row(b"x") + FINAL[:9], Lost),
    ):
        with conversation(sent) as talk, pytest.raises(error):
            answers(talk)


def test_silence_has_a_limit_also_in_the_middle_of_a_pdu_and_whoever_stops_waits_for_nothing():
    with conversation(row(b"x")[:-1], silence=0.3, stay=True) as talk, pytest.raises(Late):
        answers(talk)
    with conversation(b"", silence=60, stay=True) as talk:
        threading.Timer(0.2, talk.connection.stop).start()
        begun = time.monotonic()
        with pytest.raises(Left):
            answers(talk)
        assert time.monotonic() - begun < 5


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux alone can be told to acknowledge at once")
def test_what_came_is_acknowledged_before_more_is_waited_for():
    """A node that gathers small writes would otherwise keep the rest of its message back for 40 ms, again and again."""

    def is_prompt():
        return bool(connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection()
        connection.open("127.0.0.1", server.getsockname()[1], time.monotonic() + 2, None)
        node, _ = server.accept()
        with node:
            for _ in range(20):
                connection.write(b"ask", time.monotonic() + 2)
                assert node.recv(3) == b"ask"
                node.sendall(b"told")
                assert connection.exactly(4, time.monotonic() + 2) == b"told"
            connection.write(b"ask", time.monotonic() + 2)
            assert not is_prompt()  # as Linux does with whoever answers what comes
            with pytest.raises(Late):
                connection.fill(time.monotonic() + 0.01)
            assert is_prompt()
        connection.close(0)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_row_that_is_cut_short_is_no_row_and_nobody_else_s(syntax):
    named = Dataset()
    named.PatientID = "47114712"
    whole = encoded_identifier(named, syntax)
    for padding in (b"", b"\0\0"):
        assert Response(0xFF00, 0, whole + padding, syntax).identifier() == named
    named.StudyID = "1"
    for cut in (whole[:-4], encoded_identifier(named, syntax)[: len(whole) + 5]):
        assert Response(0xFF00, 0, cut, syntax).identifier() is None
