"""Takes in the instances that one retrieve expects, fragment by fragment, and passes them to its reader (PS3.7 9.1.1).

The thread that writes into a sink is the one that reads the node's socket: while the reader is slow, it waits here, and
TCP slows the node down. Nothing ever holds an instance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from gateway.adapters.dimse.channel import Channel, Left
from gateway.wire.part10 import file_meta

SUCCESS, OUT_OF_RESOURCES, NOT_AUTHORISED = 0x0000, 0xA700, 0x0124
CHUNK = 256 * 1024
_TICK = 0.25


@dataclass(frozen=True, slots=True)
class Begun:
    """An instance begins; its data set follows in chunks, up to `Finished`. `header` is preamble and File Meta."""

    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax: str
    header: bytes


class Finished:
    """The instance that was begun is complete."""


Event = Begun | Finished | bytes


class Sink(BytesIO):
    """Stands where pynetdicom keeps a received data set; takes every fragment and keeps none. Never raises."""

    def __init__(self, status: int = NOT_AUTHORISED) -> None:
        super().__init__()
        self.status = status

    def write(self, data: Any, /) -> int:
        return len(data)

    def finish(self) -> None:
        """The last fragment has been written."""

    def abandon(self) -> None:
        """The association ended before the last fragment."""


class Intake:
    """The instances that one retrieve expects, streamed into its channel one at a time.

    `expected` maps SOPInstanceUID to SeriesInstanceUID; None takes whatever comes. `on_left` is called from the
    receiving thread when the reader has gone. Instances may arrive on several associations at once.
    """

    def __init__(
        self, channel: Channel[Event], expected: Mapping[str, str] | None, on_left: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._expected = expected
        self._on_left = on_left
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self.received: set[str] = set()
        self.unlisted = 0
        self.refused = 0  # those, and what came again
        self.broken = 0
        self.heard = 0.0

    def wants(self, sop_instance_uid: str) -> bool:
        """Whether this instance is expected and has not begun to arrive."""
        with self._lock:
            known = self._expected is None or sop_instance_uid in self._expected
            return known and sop_instance_uid not in self._begun

    @property
    def anything(self) -> bool:
        return bool(self._begun)

    @property
    def names_instances(self) -> bool:
        return self._expected is not None

    @property
    def missing(self) -> int:
        return len(self._expected.keys() - self.received) if self._expected is not None else 0

    def lacking(self) -> dict[str, list[str]]:
        """The instances that have not come, by series; an empty list stands for all of the series."""
        expected = self._expected or {}
        begun = {series for uid, series in expected.items() if uid in self.received}
        lacking: dict[str, list[str]] = {}
        for uid, series in expected.items():
            if uid not in self.received:
                lacking.setdefault(series, []).extend([uid] if series in begun else [])
        return lacking

    def open(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str) -> Sink:
        """Where the data set of this instance goes; a sink that refuses it when it is not expected or comes again."""
        if not self.wants(sop_instance_uid):
            self.refused += 1
            self.unlisted += sop_instance_uid not in self._begun
            return Sink()
        with self._lock:
            self._begun.add(sop_instance_uid)
        series = (self._expected or {}).get(sop_instance_uid, "")
        header = file_meta(sop_class_uid, sop_instance_uid, transfer_syntax)
        return _StreamedInstance(self, Begun(sop_instance_uid, series, transfer_syntax, header))

    def take_turn(self, begun: Begun) -> None:
        while not self._turn.acquire(timeout=_TICK):
            if self._channel.left:
                raise Left
        self.put(begun, len(begun.header))

    def put(self, event: Event, weight: int) -> None:
        self.heard = float("inf")  # waiting for the reader is not the node's silence
        try:
            self._channel.put(event, weight)
        finally:
            self.heard = time.monotonic()

    def end_turn(self, sop_instance_uid: str, complete: bool) -> None:
        if complete:
            self.received.add(sop_instance_uid)
        else:
            self.broken += 1
        self._turn.release()

    def reader_left(self) -> None:
        self._on_left()


class _StreamedInstance(Sink):
    """Gathers fragments into chunks and puts them into the channel."""

    def __init__(self, intake: Intake, begun: Begun) -> None:
        super().__init__(SUCCESS)
        self._intake = intake
        self._begun = begun
        self._has_turn = False
        self._gathered: list[bytes] = []
        self._size = 0

    def write(self, data: Any, /) -> int:
        self._gathered.append(bytes(data))
        self._size += len(data)
        self._intake.heard = time.monotonic()
        if self._size >= CHUNK:
            self._flush()
        return len(data)

    def _flush(self) -> None:
        chunk, self._gathered, self._size = b"".join(self._gathered), [], 0
        if self.status != SUCCESS:
            return
        try:
            if not self._has_turn:
                self._intake.take_turn(self._begun)
                self._has_turn = True
            if chunk:
                self._intake.put(chunk, len(chunk))
        except Left:
            self.status = OUT_OF_RESOURCES
            self._intake.reader_left()

    def finish(self) -> None:
        self._flush()
        if self.status == SUCCESS:
            try:
                self._intake.put(Finished(), 0)
            except Left:
                self.status = OUT_OF_RESOURCES
                self._intake.reader_left()
        self._end(complete=self.status == SUCCESS)

    def abandon(self) -> None:
        self._gathered = []
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if self._has_turn:
            self._has_turn = False
            self._intake.end_turn(self._begun.sop_instance_uid, complete)
