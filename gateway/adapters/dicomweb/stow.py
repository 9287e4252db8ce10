"""STOW-RS towards a node (PS3.18 10.5): one instance as a multipart body of known length, and what the node says became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from gateway.adapters.dicomweb.wado import DICOM
from gateway.adapters.http.client import Answer, HttpClient
from gateway.errors import NodeProtocolError
from gateway.model.dataset import Dataset, items, text, values
from gateway.model.seam import Part, StoreOutcome
from gateway.model.vocabulary import tag
from gateway.wire import multipart
from gateway.wire.foreign import sanitize

_REFERENCED, _FAILED = tag("ReferencedSOPSequence"), tag("FailedSOPSequence")
_REFERENCED_UID, _FAILURE, _WARNING = tag("ReferencedSOPInstanceUID"), tag("FailureReason"), tag("WarningReason")
_PROCESSING_FAILURE, _OUT_OF_RESOURCES, _SYNTAX_NOT_SUPPORTED = 0x0110, 0xA700, 0xC122  # PS3.18 Table I.2-2

REFUSED = {413: _OUT_OF_RESOURCES, 415: _SYNTAX_NOT_SUPPORTED, 507: _OUT_OF_RESOURCES}
"""Statuses that say all there is to say of the one instance: too large for the node, or in a syntax that it does not take."""
MAYBE_REFUSED = frozenset({400, 409, 500})
"""Those that come with a store response, mostly, and are about this instance in any case; Orthanc says 400 where one fails."""


class Upload:
    """The body of one request with one instance in it."""

    def __init__(self, part: Part) -> None:
        boundary = multipart.boundary()
        # Orthanc refuses a part that names its transfer syntax here, too.
        self._head = multipart.part_head(boundary, {"Content-Type": DICOM}, first=True)
        self._tail = multipart.closing(boundary)
        self._part = part
        self.headers = {"Content-Type": multipart.content_type(boundary, DICOM)}
        if part.size is not None:  # not every server takes a body of unknown length
            self.headers["Content-Length"] = str(len(self._head) + part.size + len(self._tail))

    async def body(self) -> AsyncIterator[bytes]:
        yield self._head
        async for chunk in self._part.body:
            yield chunk
        yield self._tail


async def outcome(http: HttpClient, answer: Answer, uid: str) -> StoreOutcome:
    """What became of the one instance sent (PS3.18 Table I.1-1); what the response does not mention was not stored.

    Raises NodeProtocolError for a success that is no store response.
    """
    if answer.status in REFUSED:
        return StoreOutcome("", uid, REFUSED[answer.status])
    if answer.status not in MAYBE_REFUSED:
        return _told(http.node, await http.read_json(answer), uid)
    with suppress(NodeProtocolError):
        return _told(http.node, await http.read_json(answer), uid)
    return StoreOutcome("", uid, _PROCESSING_FAILURE)


def _told(node: str, document: Any, uid: str) -> StoreOutcome:
    try:
        response = sanitize(document[0] if isinstance(document, list) and len(document) == 1 else document)
    except ValueError:
        raise NodeProtocolError(node, "answered a store with something else than a store response") from None
    for sequence, read in ((_FAILED, _failed), (_REFERENCED, _stored)):
        for item in items(response, sequence):
            if uid in ("", text(item, _REFERENCED_UID)):
                return read(item)
    return StoreOutcome("", uid, _PROCESSING_FAILURE)


def _failed(item: Dataset) -> StoreOutcome:
    return StoreOutcome(*_named(item), failure=_reason(item, _FAILURE) or _PROCESSING_FAILURE)


def _stored(item: Dataset) -> StoreOutcome:
    return StoreOutcome(*_named(item), warning=_reason(item, _WARNING))


def _named(item: Dataset) -> tuple[str, str]:
    return text(item, tag("ReferencedSOPClassUID")), text(item, _REFERENCED_UID)


def _reason(item: Dataset, tag_: str) -> int:
    return next((value for value in values(item, tag_) if isinstance(value, int) and 0 < value <= 0xFFFF), 0)
