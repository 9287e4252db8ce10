"""STOW-RS: instances stored at one node (PS3.18 10.5), read as they come; an outcome for each, in the order they came in."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.edge import problems, received
from gateway.edge.context import Context, context_of
from gateway.edge.dicomweb import representations
from gateway.edge.dicomweb.representations import Representation
from gateway.edge.negotiation import DICOM, MULTIPART
from gateway.errors import InvalidQuery, UnsupportedMediaType
from gateway.federation.incoming import Result
from gateway.federation.node import Node, aclosing_iterator
from gateway.model.dataset import Attribute, Dataset, attribute
from gateway.model.query import check_uid
from gateway.model.vocabulary import tag
from gateway.wire import dicomxml, multipart
from gateway.wire.media import parse_media_type

_MOST_PARTS = 50_000
_RETRIEVE_URL, _CLASS, _INSTANCE = tag("RetrieveURL"), tag("ReferencedSOPClassUID"), tag("ReferencedSOPInstanceUID")
_FAILURE, _WARNING = tag("FailureReason"), tag("WarningReason")
_STORED, _FAILED, _OTHERS = tag("ReferencedSOPSequence"), tag("FailedSOPSequence"), tag("OtherFailuresSequence")
_GONE = 499
"""What the log calls an answer that nobody is there to read."""


async def store(request: Request) -> Response:
    """POST /studies, POST /studies/{study}: 200 all stored, 202 with failures or warnings, 409 nothing stored."""
    context, study = context_of(request), request.path_params.get("study")
    if study is not None:
        check_uid(study, "StudyInstanceUID")
    form = representations.chosen(request, strict=context.settings.strict_accept, alone=True)
    boundary = _boundary(request)
    most = context.settings.store_request_bytes
    too_large = f"a request to store has at most {most} bytes; send fewer instances at once"
    received.check_length(request, most, too_large)
    chunks = received.pieces(request, most, too_large, idle=context.settings.store_idle)
    body = multipart.parts(chunks, boundary, max_parts=_MOST_PARTS)
    async with aclosing_iterator(body) as parts:
        try:
            stored = await context.pipeline.store(context.caller, study, parts, context.nodes)
        except ClientDisconnect:
            return Response(status_code=_GONE)
    if not stored.results:
        raise InvalidQuery("the body has no part: there is nothing to store")
    told, media_type = _written(_told(stored.results, study, _root(context, stored.node)), form)
    response = Response(told, media_type=media_type)
    response.status_code = _status(stored.results)
    response.headers["Cache-Control"] = "no-store"
    for warning in problems.warnings(request, stored.issues, context.root):
        response.headers.append("Warning", warning)
    return response


def _written(told: Dataset, form: Representation) -> tuple[bytes, str]:
    if form == representations.IN_XML_ALONE:
        return dicomxml.write(told), form.type
    return representations.xml_whole([told]) if form.is_xml else (orjson.dumps(told), form.type)


def _boundary(request: Request) -> str:
    """Raises UnsupportedMediaType for all but instances in a multipart body, InvalidQuery for one without a boundary."""
    kind = parse_media_type(request.headers.get("content-type", ""))
    is_plain = request.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
    if kind.essence != MULTIPART or kind.parameters.get("type", DICOM).lower() != DICOM or not is_plain:
        raise UnsupportedMediaType(f'instances are stored as {MULTIPART}; type="{DICOM}"', parameter="Content-Type")
    boundary = kind.parameters.get("boundary", "")
    if not boundary:
        raise InvalidQuery(f"{MULTIPART} without a boundary", parameter="Content-Type")
    return boundary


def _status(results: Sequence[Result]) -> int:
    kept = [result for result in results if result.is_stored]
    if not kept:
        return 409
    return 202 if len(kept) < len(results) or any(result.warning for result in kept) else 200


def _root(context: Context, node: Node) -> str:
    """Where the caller can have what was stored: a study of that UID at another node may be another patient's."""
    is_only = context.pipeline.nodes_of(context.caller, ()) == (node.id,)
    return context.root if is_only or not node.may("retrieve") else f"{context.base}/nodes/{node.id}/dicom-web"


def _told(results: list[Result], study: str | None, root: str) -> Dataset:
    """The Store Instances Response Module (PS3.18 Table I.1-1)."""
    kept = [result for result in results if result.is_stored and result.ref]
    studies = {result.ref.study for result in kept if result.ref} or ({study} if study else set())
    response: Dataset = {
        _RETRIEVE_URL: attribute(
            _RETRIEVE_URL, [f"{root}/studies/{one}" for one in studies] if len(studies) == 1 else []
        )
    }
    named = [result for result in results if result.failure and result.ref]
    others = [result for result in results if result.failure and not result.ref]
    for sequence, items in (
        (_FAILED, [{**_reference(one), **_reason(_FAILURE, one.failure)} for one in named]),
        (_STORED, [_stored(one, root) for one in kept]),
        (_OTHERS, [_reason(_FAILURE, one.failure) for one in others]),
    ):
        if items:
            response[sequence] = {"vr": "SQ", "Value": items}
    return response


def _stored(result: Result, root: str) -> Dataset:
    assert result.ref is not None
    url = {_RETRIEVE_URL: attribute(_RETRIEVE_URL, [f"{root}/{result.ref.path}"])}
    return {**_reference(result), **url, **(_reason(_WARNING, result.warning) if result.warning else {})}


def _reference(result: Result) -> Dataset:
    instance = result.ref.instance if result.ref else ""
    return {_CLASS: attribute(_CLASS, [result.sop_class]), _INSTANCE: attribute(_INSTANCE, [instance])}


def _reason(tag_: str, reason: int) -> dict[str, Attribute]:
    return {tag_: attribute(tag_, [reason])}
