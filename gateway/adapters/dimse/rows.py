"""The rows of one C-FIND on their way to its reader: read as they come, decoded and handed over a batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gateway.adapters.dimse.associations import Response
from gateway.adapters.dimse.channel import Channel
from gateway.adapters.dimse.identifiers import FindRequest
from gateway.errors import NodeProtocolError
from gateway.model.seam import Record, Report
from gateway.wire.ceiling import FoundBytes
from gateway.wire.dicomjson import DicomRecord, to_json

# Decoding is pure Python: two threads at it are no faster than one, and the event loop would wait for each of them.
_DECODING = threading.Lock()
_AT_ONCE = 1 << 20
"""Bytes that are decoded at a time."""


class Rows:
    """In a thread: gathers responses, and passes on what has gathered when there are `most` or no more is there yet."""

    def __init__(
        self,
        node: str,
        request: FindRequest,
        character_set: str,
        channel: Channel[Sequence[Record | Report]],
        most: int,
    ) -> None:
        self.count = 0
        self._node = node
        self._request = request
        self._character_set = character_set
        self._channel = channel
        self._most = most
        self._gathered: list[Response] = []
        self._found = FoundBytes(node)
        self._waiting = 0

    def add(self, response: Response, *, has_more: bool) -> None:
        """Takes a row. Raises NodeProtocolError for one that is no data set, Left when the reader has gone."""
        self.count += 1
        size = len(response.data_set or b"")
        self._waiting += size
        self._found.add(size)
        self._gathered.append(response)
        if len(self._gathered) >= self._most or self._waiting >= _AT_ONCE or not has_more:
            self.pass_on()

    def pass_on(self) -> None:
        gathered, self._gathered, self._waiting = self._gathered, [], 0
        rows: list[Record | Report] = []
        for response in gathered:
            with _DECODING:
                rows.append(self._row(response))
        if rows:
            self._channel.put(rows, len(rows))

    def _row(self, response: Response) -> Record:
        identifier = response.identifier()
        if identifier is None:
            raise NodeProtocolError(self._node, "sent a row that is no data set")
        row = to_json(identifier, default_character_set=self._character_set)
        self._request.note(response.status, row)
        return DicomRecord(row)
