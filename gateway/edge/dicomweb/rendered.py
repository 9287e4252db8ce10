"""WADO-RS rendered resources and thumbnails: one image alone, several in multipart/related (PS3.18 10.4.1.1.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response

from gateway.cache import bodies
from gateway.edge import negotiation, problems
from gateway.edge.context import Context, context_of, revalidated
from gateway.edge.dicomweb import rendering
from gateway.edge.dicomweb.wado import OpenStream, frame_numbers, guarded, in_parts, ref_of
from gateway.edge.problems import BrokenOff
from gateway.errors import NotAcceptable
from gateway.federation.pictures import PDF, Asked, Picture
from gateway.imaging.options import GIF
from gateway.model.query import Ref
from gateway.outgoing import OutgoingPictures
from gateway.wire import multipart
from gateway.wire.media import MediaType

_PRIVATE = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}


async def rendered(request: Request) -> Response:
    """`/rendered` of a study, a series, an instance or frames: one image, or all of them as parts."""
    context, ref, numbers = context_of(request), ref_of(request), _numbers(request)
    asked = rendering.asked(request, strict=context.settings.strict_accept, numbers=numbers)
    return await answered(request, context, ref, asked)


async def answered(request: Request, context: Context, ref: Ref, asked: Asked, *, single: bool = False) -> Response:
    """The answer to whoever asks for rendered images, by WADO-RS or WADO-URI; the latter knows single parts only."""
    async with AsyncExitStack() as stack:
        outgoing = await stack.enter_async_context(context.pipeline.rendered(context.caller, ref, context.nodes, asked))
        first = await anext(outgoing.pictures)
        is_one = ref.instance and (len(asked.numbers) <= 1 or first.media_type == GIF)
        if is_one and (single or _wants_one(request)):
            response = await _alone(request, first, outgoing, stack)
        else:
            response = _together(context, first, outgoing, stack)
        return _with_notes(request, response, outgoing, context.root)
    raise AssertionError("unreachable")


def _numbers(request: Request) -> list[int]:
    listed = request.path_params.get("frames")
    return frame_numbers(listed) if listed else []


def _wants_one(request: Request) -> bool:
    """Whether the best range asked for is no multipart one."""
    ranges: list[MediaType] = negotiation.accepted(request, strict=False)
    return not ranges or ranges[0].type != "multipart"


async def _alone(request: Request, one: Picture, outgoing: OutgoingPictures, stack: AsyncExitStack) -> Response:
    if one.media_type == PDF:
        return OpenStream(stack.pop_all(), guarded(one.body), PDF, dict(_PRIVATE))
    body = b"".join([chunk async for chunk in one.body])
    async for _ in outgoing.pictures:
        raise BrokenOff("a single part cannot hold a second image")
    return _image(request, body, one.media_type)


def _image(request: Request, body: bytes, media_type: str) -> Response:
    response = Response(body, media_type=media_type, headers=dict(_PRIVATE))
    response.headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    making = bodies.current()
    if making is not None:
        making.refuse()  # images would push the look-ups out of the memory that is for them
    return response


def _together(context: Context, first: Picture, outgoing: OutgoingPictures, stack: AsyncExitStack) -> Response:
    boundary = multipart.boundary()
    body = guarded(in_parts(boundary, first, outgoing.pictures, lambda one: _head(context.root, one)))
    response = OpenStream(stack.pop_all(), body, multipart.content_type(boundary, first.media_type), dict(_PRIVATE))
    response.status_code = 206 if outgoing.partial else 200
    return response


def _head(root: str, one: Picture) -> dict[str, str]:
    frame = f"/frames/{one.number}" if one.number else ""
    return {"Content-Type": one.media_type, "Content-Location": f"{root}/{one.ref.path}{frame}/rendered"}


def _with_notes(request: Request, response: Response, outgoing: OutgoingPictures, root: str) -> Response:
    if outgoing.issues:
        response.headers["Cache-Control"] = "no-store"
        if "etag" in response.headers:
            del response.headers["ETag"]
    _warn(request, response, outgoing.notes, root)
    for warning in problems.warnings(request, outgoing.issues, root):
        response.headers.append("Warning", warning)
    return revalidated(request, response) if "etag" in response.headers else response


def _warn(request: Request, response: Response, notes: Sequence[str], root: str) -> None:
    for note in notes:
        response.headers.append("Warning", problems.warning(note, root))


async def thumbnail(request: Request) -> Response:
    """`/thumbnail` of a study, a series, an instance or a frame: one small image, never with the patient's identity."""
    context, ref, numbers = context_of(request), ref_of(request), _numbers(request)
    if len(numbers) > 1:
        raise NotAcceptable("a thumbnail shows one frame", parameter="frames")
    asked = rendering.of_thumbnail(request, strict=context.settings.strict_accept, numbers=numbers)
    picture, issues = await context.pipeline.thumbnail(context.caller, ref, context.nodes, asked)
    response = _image(request, b"".join([chunk async for chunk in picture.body]), picture.media_type)
    frame = f"/frames/{picture.number}" if picture.number else ""
    response.headers["Content-Location"] = f"{context.root}/{picture.ref.path}{frame}/thumbnail"
    notes = ("The following annotation values are not supported: a thumbnail has none",)
    _warn(request, response, notes if "annotation" in request.query_params else (), context.root)
    if issues:
        response.headers["Cache-Control"] = "no-store"
        del response.headers["ETag"]
    for warning in problems.warnings(request, issues, context.root):
        response.headers.append("Warning", warning)
    return revalidated(request, response)
