"""Requests that are refused before anybody has looked at what they ask for, as the audit tells of them.

Somebody who tries tokens, or asks far too often, must be seen by whoever reads the audit, and must not be able to fill it. So
of one address and caller, refused for one reason, the first is written down at once, and how many followed when a minute is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.security.audit import AuditRecord
from gateway.security.caller import Caller
from gateway.telemetry import request_id

NOBODY = Caller("")
"""Who has not shown who it is."""
_SECONDS = 60.0
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class _Kind:
    action: str
    code: str
    subject: str
    client: str
    address: str


@dataclass(slots=True)
class _Followed:
    """How many came after the first, and the request id of the last of them."""

    ends: asyncio.TimerHandle
    count: int = 0
    request: str = ""


@dataclass(slots=True)
class TurnedAway:
    """`write` is set while there is an audit to write to. Beyond ten thousand kinds at a time the others are told as one, without
    an address."""

    write: Callable[[AuditRecord], None] | None = None
    seconds: float = _SECONDS
    most: int = _MOST
    _open: dict[_Kind, _Followed] = field(default_factory=dict)

    def note(self, action: str, code: str, address: str, caller: Caller = NOBODY) -> None:
        """One request was refused. `code` is that of the error, `address` the peer's, or what a trusted proxy says it is."""
        kind = _Kind(action, code, caller.subject, caller.client, address)
        if kind not in self._open and len(self._open) >= self.most:
            kind = _Kind(action, code, "", "", "")
        followed = self._open.get(kind)
        if followed is None:
            ends = asyncio.get_running_loop().call_later(self.seconds, self._end, kind)
            self._open[kind] = _Followed(ends)
            self._tell(kind, 1, request_id.get())
        else:
            followed.count, followed.request = followed.count + 1, request_id.get()

    def close(self) -> None:
        """Tells what has not been told."""
        for kind, followed in list(self._open.items()):
            followed.ends.cancel()
            self._end(kind)
        self.write = None

    def _end(self, kind: _Kind) -> None:
        followed = self._open.pop(kind)
        if followed.count:
            self._tell(kind, followed.count, followed.request)

    def _tell(self, kind: _Kind, count: int, request: str) -> None:
        if self.write is not None:
            caller = Caller(kind.subject, kind.client)
            record = AuditRecord(kind.action, caller, (), request, datetime.now(UTC), {}, "", address=kind.address)
            record.outcome, record.count = kind.code, count
            self.write(record)
