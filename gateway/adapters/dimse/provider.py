"""The DIMSE provider of associations that nodes request of us: data sets stream to sinks, and silence has a limit.

It takes the place of `Association.dimse`, because pynetdicom gathers each received C-STORE data set in memory before
anyone sees it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydicom.dataset import Dataset as Command
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.pdu_primitives import P_DATA

from gateway.adapters.dimse.receiving import NOT_AUTHORISED, Sink

_LAST_OF_DATA_SET = 0x02  # PS3.8 Annex E.2: bit 0 command, bit 1 last
_GRACE = 0.3
_LAST_GRACE = 2.0

OpenSink = Callable[[Command, str], Sink]


def status_of_sink(event: evt.Event) -> int:
    """The handler of C-STORE requests: the data set has gone through its sink, only the status is left to say."""
    data_set = getattr(event.request, "DataSet", None)
    return data_set.status if isinstance(data_set, Sink) else NOT_AUTHORISED


def prepare_socket(association: Association, timeout: float) -> None:
    """No Nagle delay, and no read or write that lasts for ever: pynetdicom sets no limit once the connection stands."""
    connection = association.dul.socket.socket if association.dul.socket else None
    if connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)


def shut_down(association: Association) -> None:
    """Frees a thread that is stuck in a read or a write on the association's socket."""
    with suppress(OSError, AttributeError):
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


def abort(association: Association) -> None:
    """A-ABORT; returns when the association's threads have ended, after 2.3 s at most."""
    with suppress(Exception):  # the association may be ending by itself
        association.abort(block=False)
    if not has_ended(association, _GRACE):
        shut_down(association)
        has_ended(association, _LAST_GRACE)


def has_ended(association: Association, seconds: float) -> bool:
    """Waits so long for the association's threads."""
    deadline = time.monotonic() + seconds
    for thread in (association.dul, association):
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))
    return not (association.dul.is_alive() or association.is_alive())


class Provider(DIMSEServiceProvider):
    """One association's DIMSE. `silence` is how many seconds the peer may send nothing."""

    def __init__(self, assoc: Association, silence: float, open_sink: OpenSink) -> None:
        super().__init__(assoc)
        self._silence = silence
        self._open_sink = open_sink
        self._sink: Sink | None = None
        self._heard = time.monotonic()
        self._is_writing = False

    def get_msg(self, block: bool = False) -> Any:
        if not self._is_writing and time.monotonic() - self._heard > self._silence:
            self.assoc.abort(block=False)
        return super().get_msg(block)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """PDV by PDV, since a PDU may hold the end of the command and the start of the data set (PS3.8 Annex E)."""
        self._is_writing = True
        try:
            for value in primitive.presentation_data_value_list:
                self._receive(value)
        finally:
            self._heard = time.monotonic()
            self._is_writing = False

    def _receive(self, value: Any) -> None:
        one = P_DATA()
        one.presentation_data_value_list.append(value)
        if self._sink and value[1][0] & 0x03 == _LAST_OF_DATA_SET:
            # The last fragment: the sink has to be through with it before the request is served and answered.
            self._sink.write(value[1][1:])
            self._sink.finish()
            self._sink = None
            one.presentation_data_value_list[0] = (value[0], value[1][:1])
        super().receive_primitive(one)
        if self._sink is None and isinstance(self.message, C_STORE_RQ):
            self._sink = self.message.data_set = self._sink_for(self.message)

    def _sink_for(self, message: C_STORE_RQ) -> Sink:
        context = self.assoc._accepted_cx.get(message.context_id or 0)
        return self._open_sink(message.command_set, str(context.transfer_syntax[0])) if context else Sink()

    def abandon(self) -> None:
        """The association has ended: an instance that was on its way will not be complete."""
        sink, self._sink = self._sink, None
        if sink:
            sink.abandon()
