"""WADO-URI for viewers that know nothing newer: one object by query parameters, as it is or rendered (PS3.18 9)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from gateway.edge import negotiation
from gateway.edge.context import Context, context_of
from gateway.edge.dicomweb import rendering, wado
from gateway.edge.dicomweb.rendered import answered
from gateway.edge.negotiation import DICOM, DicomAccept
from gateway.errors import GatewayError, InvalidQuery, NotAcceptable
from gateway.federation.pictures import PDF, RENDERED_TYPES, Asked
from gateway.imaging.options import LINEAR, QUALITY, Rendering, Viewport
from gateway.model.query import Ref, check_uid
from gateway.wire.media import parse_media_type, split_list

_FORBIDDEN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
_ONLY_RENDERED = (
    "annotation", "frameNumber", "rows", "columns", "region", "windowCenter", "windowWidth", "imageQuality",
)  # fmt: skip
_REFUSED = {
    "anonymize": "objects are not anonymised here",
    "presentationUID": "presentation states are not applied",
    "presentationSeriesUID": "presentation states are not applied",
}
_OWN_NAMES = {"frames": "frameNumber", "viewport": "region"}
_CHARSETS = ("utf-8", "iso_ir 192")


async def retrieve(request: Request) -> Response:
    """`/wado?requestType=WADO&studyUID=&seriesUID=&objectUID=`. Raises InvalidQuery naming the parameter."""
    context, given = context_of(request), request.query_params
    if given.get("requestType") != "WADO":
        raise InvalidQuery("requestType is WADO", parameter="requestType")
    for name, why in _REFUSED.items():
        if given.get(name, "no") != "no":
            raise NotAcceptable(why, parameter=name)
    if given.get("charset", _CHARSETS[0]).lower() not in _CHARSETS:
        raise InvalidQuery("charset is UTF-8", parameter="charset")
    ref = Ref(*(check_uid(given.get(name, ""), name) for name in ("studyUID", "seriesUID", "objectUID")))
    types = _types(request)
    if types[0] == DICOM:
        return await _as_stored(request, context, ref)
    if "transferSyntax" in given:
        raise InvalidQuery(f"transferSyntax goes with contentType {DICOM}", parameter="transferSyntax")
    try:
        return await answered(request, context, ref, _asked(given, types), single=True)
    except GatewayError as error:
        error.parameter = _own_name(given, error.parameter)
        raise


def _own_name(given: QueryParams, parameter: str | None) -> str | None:
    """What this service calls a parameter of the newer one."""
    if parameter == "Accept" and "contentType" in given:
        return "contentType"
    return _OWN_NAMES.get(parameter or "", parameter)


def _types(request: Request) -> tuple[str, ...]:
    """The media types asked for, best first: contentType, else Accept (PS3.18 9.1.2.1.1). Raises NotAcceptable."""
    listed = request.query_params.get("contentType", "")
    ranges = [parse_media_type(one) for one in split_list(listed)] or negotiation.accepted(request, strict=False)
    known = (DICOM, PDF, *RENDERED_TYPES, "image/*", "*/*")
    types = tuple(one.essence for one in ranges if one.essence in known)
    if not types and listed:
        raise NotAcceptable(
            f"contentType is one of {', '.join((DICOM, *RENDERED_TYPES, PDF))}", parameter="contentType"
        )
    return types or ("*/*",)


async def _as_stored(request: Request, context: Context, ref: Ref) -> Response:
    given = request.query_params
    wrong = next((name for name in _ONLY_RENDERED if name in given), None)
    if wrong:
        raise InvalidQuery(f"{wrong} does not go with contentType {DICOM}", parameter=wrong)
    syntax = given.get("transferSyntax", "")
    if syntax in _FORBIDDEN:
        raise InvalidQuery("this transfer syntax is not for the web (PS3.18 8.7.3)", parameter="transferSyntax")
    accept = DicomAccept(True, (check_uid(syntax, "transferSyntax") if syntax else "",))
    async with AsyncExitStack() as stack:
        outgoing = await stack.enter_async_context(
            context.pipeline.retrieve(context.caller, ref, context.nodes, accept.transfer_syntaxes)
        )
        first = await anext(outgoing.instances)
        return await wado.respond(request, context, accept, outgoing, first, stack)
    raise AssertionError("unreachable")


def _asked(given: QueryParams, types: tuple[str, ...]) -> Asked:
    made = Rendering(
        window=_window(given),
        viewport=_viewport(given),
        quality=rendering.quality(given["imageQuality"], "imageQuality") if "imageQuality" in given else QUALITY,
    )
    numbers = (negotiation.count(given["frameNumber"], "frameNumber", least=1),) if "frameNumber" in given else ()
    annotation = tuple(word.strip() for word in given.get("annotation", "").split(",") if word.strip())
    return Asked(tuple(one for one in types if one != DICOM), made, numbers, annotation)


def _window(given: QueryParams) -> tuple[float, float, str] | None:
    names = [name for name in ("windowCenter", "windowWidth") if name in given]
    if not names:
        return None
    if len(names) == 1:
        raise InvalidQuery("windowCenter and windowWidth go together", parameter=names[0])
    rendering.number(given["windowCenter"], "windowCenter")
    return rendering.window_of(given["windowCenter"], given["windowWidth"], LINEAR, "windowWidth")


def _viewport(given: QueryParams) -> Viewport:
    columns, rows = (rendering.side(given[name], name) if name in given else 0 for name in ("columns", "rows"))
    viewport = Viewport(columns, rows)
    if "region" not in given:
        return viewport
    corners = [rendering.number(piece.strip(), "region") for piece in given["region"].split(",")]
    if len(corners) != 4 or not (0 <= corners[0] < corners[2] <= 1 and 0 <= corners[1] < corners[3] <= 1):
        raise InvalidQuery("region is xmin,ymin,xmax,ymax, each from 0 to 1", parameter="region")
    x, y, right, bottom = corners
    return replace(viewport, x=x, y=y, width=right - x, height=bottom - y, relative=True)
