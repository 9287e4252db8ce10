"""WADO-RS: instances, frames, bulk data and metadata (PS3.18 10.4), streamed; an answer that cannot be completed breaks off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.edge import negotiation, problems
from gateway.edge.context import Context, context_of, mark_cacheable, revalidated
from gateway.edge.dicomweb import ranges, representations
from gateway.edge.dicomweb.ranges import Range
from gateway.edge.dicomweb.representations import DICOM_XML, Representation
from gateway.edge.negotiation import DICOM, OCTETS, DicomAccept, OctetAccept
from gateway.errors import GatewayError, InvalidQuery, NotAcceptable
from gateway.federation.node import aclosing_iterator, first_then
from gateway.model.answer import Issue
from gateway.model.dataset import text
from gateway.model.query import Ref, check_uid
from gateway.model.seam import FramePart
from gateway.model.vocabulary import RETRIEVE_URL
from gateway.outgoing import Metadata, Outgoing, OutgoingInstance
from gateway.telemetry import stage
from gateway.wire import dicomxml, multipart

T = TypeVar("T")
_MOST_FRAMES = 10_000
_BULKDATA = re.compile(r"[0-9A-Fa-f]{8}(\.[1-9][0-9]{0,8}\.[0-9A-Fa-f]{8}){0,16}")
Handler = Callable[[Request], Awaitable[Response]]


class CallerLeft(Exception):
    """The caller went away before the last byte: whoever keeps an account of the answer does not write it down as whole."""


class OpenStream(StreamingResponse):
    """A body that keeps what it reads from open until the last byte is sent or the caller leaves. HEAD reads nothing more."""

    def __init__(
        self, stack: AsyncExitStack, body: AsyncIterator[bytes], media_type: str, headers: dict[str, str]
    ) -> None:
        super().__init__(self._to_its_end(body), media_type=media_type, headers=headers)
        self._stack = stack
        self._body = body
        self._has_ended = False

    async def _to_its_end(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
        self._has_ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(CallerLeft):
            await self._sent(scope, receive, send)

    async def _sent(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack, aclosing_iterator(self._body):
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body"})
                return
            await super().__call__(scope, receive, send)
            if not self._has_ended:
                raise CallerLeft


def ref_of(request: Request) -> Ref:
    """The UIDs of the path. Raises InvalidQuery for one that is none."""
    given = request.path_params
    names = (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("instance", "SOPInstanceUID"))
    return Ref(*(check_uid(given[key], name) if key in given else None for key, name in names))  # type: ignore[arg-type]


async def retrieve(request: Request) -> Response:
    """A study, a series or an instance: multipart/related, or one instance as application/dicom."""
    context, ref = context_of(request), ref_of(request)
    strict = context.settings.strict_accept
    accept = negotiation.instances(request, strict=strict, one_instance=ref.instance is not None)
    async with AsyncExitStack() as stack:
        outgoing = await stack.enter_async_context(
            context.pipeline.retrieve(context.caller, ref, context.nodes, accept.transfer_syntaxes)
        )
        first = await anext(outgoing.instances)
        return await respond(request, context, accept, outgoing, first, stack)
    raise AssertionError("unreachable")


async def respond(
    request: Request,
    context: Context,
    accept: DicomAccept,
    outgoing: Outgoing,
    first: OutgoingInstance,
    stack: AsyncExitStack,
) -> Response:
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}
    first = await _with_first_chunk(first)
    if accept.single_part:
        media_type = f"{DICOM}; transfer-syntax={first.transfer_syntax}"
        response = OpenStream(stack.pop_all(), guarded(_alone(first, outgoing.instances)), media_type, headers)
    else:
        boundary = multipart.boundary()
        body = guarded(in_parts(boundary, first, outgoing.instances, lambda one: _head(context.root, one)))
        response = OpenStream(stack.pop_all(), body, multipart.content_type(boundary, DICOM), headers)
        response.status_code = 206 if outgoing.partial else 200
    return _with_issues(request, response, outgoing.issues, context.root)


async def _with_first_chunk(one: OutgoingInstance) -> OutgoingInstance:
    """The same instance once its first bytes are there: what fails before them can still be an error status."""
    body = one.body
    first = await anext(body, b"")
    return OutgoingInstance(one.ref, one.transfer_syntax, _joined(first, body))


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async with aclosing_iterator(rest) as chunks:
        async for chunk in chunks:
            yield chunk


async def _alone(one: OutgoingInstance, rest: AsyncIterator[OutgoingInstance]) -> AsyncIterator[bytes]:
    """The one instance, and then the node's own end of the retrieve: only that says that it was sent whole."""
    async with aclosing_iterator(one.body) as body:
        async for chunk in body:
            yield chunk
    async for _ in rest:
        raise problems.BrokenOff("a single part cannot hold a second instance")


def _head(root: str, one: OutgoingInstance) -> dict[str, str]:
    return {
        "Content-Type": f"{DICOM}; transfer-syntax={one.transfer_syntax}",
        "Content-Location": f"{root}/{one.ref.path}",
    }


class _Sent(Protocol):
    @property
    def body(self) -> AsyncIterator[bytes]: ...


P = TypeVar("P", bound=_Sent)


async def in_parts(
    boundary: str, first: P, rest: AsyncIterator[P], headers: Callable[[P], Mapping[str, str]]
) -> AsyncIterator[bytes]:
    """A multipart body, each part under its own headers, in the order they come."""
    is_first = True
    async for one in first_then(first, rest):
        head = multipart.part_head(boundary, headers(one), first=is_first)
        is_first = False
        async with aclosing_iterator(one.body) as body:
            async for chunk in _headed(head, body):
                yield chunk
    yield multipart.closing(boundary)


async def _headed(head: bytes, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The head of a part in one piece with the first bytes of its body: each piece costs a write of its own."""
    yield head + await anext(body, b"")
    async for chunk in body:
        yield chunk


async def guarded(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What fails after the first byte breaks the connection; its text goes to the log of the pipeline, not into the body."""
    try:
        async with aclosing_iterator(body) as chunks:
            async for chunk in chunks:
                yield chunk
    except (GatewayError, ValueError) as error:
        raise problems.BrokenOff(type(error).__name__) from None


async def frames(request: Request) -> Response:
    """`/frames/{list}`: multipart/related, or a single part for one frame (PS3.18 10.4.1.1.6)."""
    context, ref = context_of(request), ref_of(request)
    numbers = frame_numbers(request.path_params["frames"])
    accept = negotiation.octets(request, strict=context.settings.strict_accept, single=len(numbers) == 1)
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(
            context.pipeline.frames(context.caller, ref, numbers, context.nodes, _chooser(context, accept))
        )
        first = await anext(found.parts)
        location = f"{context.root}/{ref.path}/frames"
        response = _octets(stack, accept, first, found.parts, lambda part: f"{location}/{part.number}")
        return _with_issues(request, response, found.issues, context.root)
    raise AssertionError("unreachable")


def _chooser(context: Context, accept: OctetAccept) -> Callable[[FramePart], str]:
    """Stored bytes go out as they are where they are accepted: a viewer that asks for octets with any syntax takes them."""
    gives_explicit = context.settings.default_transfer_syntax == "explicit"
    return lambda part: accept.into(part.transfer_syntax, gives_explicit=gives_explicit)


def frame_numbers(listed: str) -> list[int]:
    """'1,3,2' as numbers. Raises InvalidQuery for anything that is no list of 1-based frame numbers."""
    numbers = [negotiation.count(piece, "frames", least=1) for piece in listed.split(",")]
    if len(numbers) > _MOST_FRAMES:
        raise InvalidQuery(f"more than {_MOST_FRAMES} frames were asked for at once", parameter="frames")
    return numbers


async def bulkdata(request: Request) -> Response:
    """One bulk data value, at the address that /metadata gave (PS3.18 10.4.1.1.5)."""
    context, ref = context_of(request), ref_of(request)
    path = bulkdata_path(request.path_params["path"])
    accept = _of_one_value(request, strict=context.settings.strict_accept)
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(context.pipeline.bulkdata(context.caller, ref, path, context.nodes))
        first = await anext(found.parts)
        _check(accept, first)
        location = f"{context.root}/{ref.path}/bulkdata/{path}"
        wanted = ranges.asked(request, first.size) if accept.single_part else None
        if wanted is not None:
            response = _ranged(request, stack, first, wanted, location)
        else:
            response = _octets(stack, accept, first, _checked(accept, found.parts), lambda _: location)
        if accept.single_part:
            response.headers["Accept-Ranges"] = "bytes"
        return _with_issues(request, response, found.issues, context.root)
    raise AssertionError("unreachable")


def _of_one_value(request: Request, *, strict: bool) -> OctetAccept:
    """As `octets`; who asks for a range of anything gets it of the value itself, not of a multipart body around it."""
    accept = negotiation.octets(request, strict=strict, single=True)
    takes_any = any(one.essence == "*/*" for one in negotiation.accepted(request, strict=strict))
    return replace(accept, single_part=True) if takes_any and request.headers.get("range") else accept


def _ranged(request: Request, stack: AsyncExitStack, first: FramePart, wanted: Range, location: str) -> Response:
    """206 with the range, or 416 with the size (RFC 9110 15.3.7, 15.5.17)."""
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization", "Content-Location": location}
    headers["Content-Range"] = wanted.content_range
    if not wanted.is_satisfiable:
        detail = f"the value has {wanted.size} bytes"
        return problems.render(request, 416, "GW101", "Range not satisfiable", detail, "Range", headers)
    headers["Content-Length"] = str(wanted.length)
    response = OpenStream(stack.pop_all(), guarded(ranges.cut(first.body, wanted)), _typed(first), headers)
    response.status_code = 206
    return response


def bulkdata_path(path: str) -> str:
    """'7FE00010', '54000100.1.54001010': tags, with the numbers of the items between. Raises InvalidQuery."""
    if not _BULKDATA.fullmatch(path):
        raise InvalidQuery("bulkdata is followed by a tag, or tags and item numbers", parameter="bulkdata")
    return path.upper()


def _check(accept: OctetAccept, part: FramePart) -> None:
    """Stored bytes go out under their own type. A viewer that asks for octets with any syntax takes them (OHIF)."""
    if not accept.takes(part.media_type, part.transfer_syntax):
        raise NotAcceptable(
            f"stored as {part.media_type}; transfer-syntax={part.transfer_syntax}; ask for that or for '*'",
            parameter="Accept",
        )


async def _checked(accept: OctetAccept, parts: AsyncIterator[FramePart]) -> AsyncIterator[FramePart]:
    async for part in parts:
        _check(accept, part)
        yield part


def _octets(
    stack: AsyncExitStack,
    accept: OctetAccept,
    first: FramePart,
    rest: AsyncIterator[FramePart],
    location: Callable[[FramePart], str],
) -> Response:
    headers = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}
    if accept.single_part:
        headers["Content-Location"] = location(first)
        return OpenStream(stack.pop_all(), guarded(first.body), _typed(first), headers)
    boundary = multipart.boundary()
    body = guarded(
        in_parts(boundary, first, rest, lambda part: {"Content-Type": _typed(part), "Content-Location": location(part)})
    )
    inner = first.media_type if first.media_type else OCTETS
    return OpenStream(stack.pop_all(), body, multipart.content_type(boundary, inner), headers)


def _with_issues(request: Request, response: Response, issues: Sequence[Issue], root: str) -> Response:
    """While a node is silent nobody keeps the answer: it may have known another patient of that UID."""
    if issues:
        response.headers["Cache-Control"] = "no-store"
    for warning in problems.warnings(request, issues, root):
        response.headers.append("Warning", warning)
    return response


def _typed(part: FramePart) -> str:
    return f"{part.media_type}; transfer-syntax={part.transfer_syntax}" if part.transfer_syntax else part.media_type


async def metadata(request: Request) -> Response:
    """`/metadata` at all three levels: every attribute, bulk data by our own addresses (PS3.18 10.4.1.1.2)."""
    context, ref = context_of(request), ref_of(request)
    alone = ref.instance is not None
    representation = representations.chosen(request, strict=context.settings.strict_accept, alone=alone)
    found = await context.pipeline.metadata(context.caller, ref, context.nodes)
    with stage("render"):
        identity = "".join((context.root, *(piece.digest for piece in found.pieces))).encode()
        warnings = problems.warnings(request, found.issues, context.root)
        if representation.is_xml:
            response = _metadata_in_xml(request, context, representation, found, identity, warnings)
        else:
            body = b"[" + b",".join(piece.at(context.root) for piece in found.pieces) + b"]"
            response = context.json_response(
                request, body, representation.type, warnings, complete=not found.issues, identity=identity
            )
    if found.partial and response.status_code == 200:
        response.status_code = 206
    return response


def _metadata_in_xml(
    request: Request,
    context: Context,
    representation: Representation,
    found: Metadata,
    identity: bytes,
    warnings: Sequence[str],
) -> Response:
    """One document an instance, written one after the other while they are sent: XML is large and slow to write."""
    documents = (instance for piece in found.pieces for instance in piece.each(context.root))
    identity += representation.name.encode()
    if representation.inner:
        boundary = representations.boundary_of(identity)
        located = ((dicomxml.write(each), f"{text(each, RETRIEVE_URL)}/metadata") for each in documents)
        body, media_type = representations.xml_parts(boundary, located), multipart.content_type(boundary, DICOM_XML)
    else:
        body, media_type = map(dicomxml.write, documents), DICOM_XML
    response = OpenStream(AsyncExitStack(), _one_by_one(body), media_type, {})
    mark_cacheable(response.headers, None if found.issues else identity)
    for warning in warnings:
        response.headers.append("Warning", warning)
    return revalidated(request, response)


async def _one_by_one(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece is made when the one before it has left; others have their turn between them."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
