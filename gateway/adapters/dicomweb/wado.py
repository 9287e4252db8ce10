"""WADO-RS bodies: the parts of a node's answer as instances or frames."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence

from gateway.adapters.http.client import Answer
from gateway.errors import NodeProtocolError
from gateway.model.dataset import Dataset, is_uid, text
from gateway.model.query import Ref
from gateway.model.seam import FramePart, Part
from gateway.model.vocabulary import INSTANCE_UID, SERIES_UID, STUDY_UID
from gateway.wire import multipart
from gateway.wire.elements import Part10Error
from gateway.wire.media import MediaType, parse_media_type
from gateway.wire.multipart import MultipartError, MultipartPart
from gateway.wire.part10 import AFTER_UIDS, Part10Stream, identified, open_part10

DICOM, OCTETS = "application/dicom", "application/octet-stream"
_MOST_DIGITS = 18
# What a value may be called here: nothing that a browser would run.
_MEDIA = re.compile(r"application/(?:octet-stream|pdf)|(?:audio|image|model|video)/[a-z0-9.-]{1,64}")
_FRAME_PLACE = re.compile(r"/frames/([0-9]{1,18})/?(?:[?#].*)?$")

# What a part is in when it does not say: PS3.18 Tables 8.7.3-2 to 8.7.3-5.
_DEFAULT_SYNTAX = {
    OCTETS: "1.2.840.10008.1.2.1",
    "image/jpeg": "1.2.840.10008.1.2.4.70",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/jpx": "1.2.840.10008.1.2.4.92",
    "image/jphc": "1.2.840.10008.1.2.4.201",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
    "video/mpeg2": "1.2.840.10008.1.2.4.100",
    "video/mp4": "1.2.840.10008.1.2.4.102",
}


async def answer_parts(node: str, answer: Answer, single: str) -> AsyncGenerator[MultipartPart, None]:
    """The parts of a multipart/related answer, or the whole of one in the media type `single` ('' takes any).

    Raises NodeProtocolError for another type and for a body that ends before its closing delimiter.
    """
    kind = parse_media_type(answer.content_type)
    try:
        if kind.essence == "multipart/related":
            async for part in multipart.parts(answer.body, kind.parameters.get("boundary", "")):
                yield MultipartPart(_inherited(part, kind), honest(node, part.body))
        elif kind.subtype and single in ("", kind.essence):
            yield MultipartPart(dict(answer.headers), answer.body)
        else:
            raise NodeProtocolError(node, "answered in another media type than asked for")
    except MultipartError:
        raise NodeProtocolError(node, "sent a multipart body that is cut short or malformed") from None


def _inherited(part: MultipartPart, whole: MediaType) -> dict[str, str]:
    """The headers of a part. One without a type has that of the whole; Orthanc says the transfer syntax only there."""
    kind = part.media_type if "content-type" in part.headers else parse_media_type(whole.parameters.get("type", ""))
    if "transfer-syntax" in kind.parameters or "transfer-syntax" not in whole.parameters:
        return {**part.headers, "content-type": str(kind)}
    parameters = {**kind.parameters, "transfer-syntax": whole.parameters["transfer-syntax"]}
    return {**part.headers, "content-type": str(MediaType(kind.type, kind.subtype, parameters))}


async def honest(node: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks, a broken body being the node's fault."""
    try:
        async for chunk in chunks:
            yield chunk
    except (MultipartError, Part10Error):
        raise NodeProtocolError(node, "sent a body that is cut short or no DICOM") from None


async def instance_part(node: str, ref: Ref, part: MultipartPart, *, framed: bool) -> Part:
    """One instance, identified by its own first bytes. Raises NodeProtocolError for another study than asked for.

    Where nothing but the connection frames the body, its elements are followed to notice that it is cut short.
    """
    try:
        stream = await open_part10(part.body, until=AFTER_UIDS)
        found = await identified(stream)
    except Part10Error:
        raise NodeProtocolError(node, "sent something else than a DICOM file") from None
    check_asked(node, ref, found)
    return Part(
        text(found, INSTANCE_UID) or str(stream.file_meta.get("MediaStorageSOPInstanceUID", "")),
        stream.transfer_syntax,
        honest(node, _whole(stream, checked=not framed)),
        text(found, SERIES_UID),
        _length(part.headers),
    )


async def _whole(stream: Part10Stream, *, checked: bool) -> AsyncIterator[bytes]:
    async for chunk in stream.raw(checked=checked):
        yield chunk


def check_asked(node: str, ref: Ref, found: Dataset) -> None:
    """Raises NodeProtocolError when an instance belongs to another study, series or instance than the one asked for."""
    for tag_, wanted in ((STUDY_UID, ref.study), (SERIES_UID, ref.series), (INSTANCE_UID, ref.instance)):
        if wanted and text(found, tag_) not in ("", wanted):
            raise NodeProtocolError(node, "sent another study, series or instance than the one asked for")


def ascending(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers in runs, each of which ascends: what comes for one is in order whether the node takes it for a list or for a
    set (PS3.18 10.4.1.1.6 has no number twice)."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] <= numbers[at - 1]:
            yield numbers[start:at]
            start = at


def check_number(node: str, number: int, part: MultipartPart) -> None:
    """Raises NodeProtocolError where the node itself says that a frame is another one than that whose turn it is."""
    said = _FRAME_PLACE.search(part.headers.get("content-location", ""))
    if said and int(said[1]) != number:
        raise NodeProtocolError(node, "sent another frame than the one asked for")


def frame_part(node: str, number: int, part: MultipartPart) -> FramePart:
    """Raw bytes in the media type and transfer syntax that the part names, else in the default one of its type. Both go out
    again, so that neither is repeated unless it is one: raises NodeProtocolError."""
    kind = part.media_type
    essence = kind.essence if kind.type else OCTETS
    is_known = _MEDIA.fullmatch(essence) is not None
    syntax = kind.parameters.get("transfer-syntax", "*")
    if (number and not is_known) or not (syntax in ("*", "") or is_uid(syntax)):
        raise NodeProtocolError(node, "sent pixels in a media type or transfer syntax that is none")
    if syntax in ("*", ""):
        syntax = _DEFAULT_SYNTAX.get(essence, "")
    return FramePart(number, essence if is_known else OCTETS, syntax, honest(node, part.body), _length(part.headers))


def _length(headers: Mapping[str, str]) -> int | None:
    raw = headers.get("content-length", "")
    return int(raw) if len(raw) <= _MOST_DIGITS and raw.isascii() and raw.isdecimal() else None
