"""The query parameters of rendered resources and thumbnails, read into one value (PS3.18 8.3.5), and what they accept."""

from __future__ import annotations

import math
from collections.abc import Sequence

from starlette.requests import Request

from gateway.edge import negotiation
from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery, NotAcceptable
from gateway.federation.pictures import PDF, RENDERED_TYPES, Asked
from gateway.imaging.options import LINEAR, LINEAR_EXACT, QUALITY, SIGMOID, Rendering, Viewport
from gateway.wire.media import MediaType, parse_media_type

_FUNCTIONS = (LINEAR, LINEAR_EXACT, SIGMOID)
_PROFILES = ("no", "yes", "srgb")
_MOST_SIDE = 8192
_ANY = ("*/*", "image/*", PDF, *RENDERED_TYPES)


def asked(request: Request, *, strict: bool, numbers: Sequence[int] = ()) -> Asked:
    """What a request for a rendered resource asks for. Raises InvalidQuery naming the parameter, NotAcceptable."""
    given = request.query_params
    rendering = Rendering(
        window=window(given["window"]) if "window" in given else None,
        viewport=viewport(given["viewport"]) if "viewport" in given else Viewport(),
        quality=quality(given["quality"], "quality") if "quality" in given else QUALITY,
        icc_profile=one_of(given.get("iccprofile", "no"), _PROFILES, "iccprofile"),
    )
    annotation = tuple(dict.fromkeys(word.strip() for word in given.get("annotation", "").split(",") if word.strip()))
    return Asked(media_types(request, strict=strict), rendering, tuple(numbers), annotation)


def of_thumbnail(request: Request, *, strict: bool, numbers: Sequence[int] = ()) -> Asked:
    """As `asked`; a thumbnail has a viewport without a region, and nothing else (PS3.18 8.3.5.2)."""
    given = request.query_params
    view = viewport(given["viewport"]) if "viewport" in given else Viewport()
    if (view.x, view.y, view.width, view.height) != (0.0, 0.0, None, None):
        raise InvalidQuery("the viewport of a thumbnail is its width and height", parameter="viewport")
    types = media_types(request, strict=strict)
    if all(one == PDF for one in types):
        raise NotAcceptable(f"a thumbnail is available as {', '.join(RENDERED_TYPES)}", parameter="Accept")
    return Asked(types, Rendering(viewport=view, quality=80), tuple(numbers))


def media_types(request: Request, *, strict: bool) -> tuple[str, ...]:
    """The rendered types that are accepted, best first; those of the parts where multipart/related is asked for.

    Raises InvalidQuery where DICOM and rendered types are mixed (PS3.18 8.7.5), NotAcceptable where there is none of ours.
    """
    ranges = negotiation.ranges(request, strict=strict)
    wanted = [_inner(one) for one in ranges if one.quality > 0]
    refused = frozenset(_inner(one) for one in ranges if one.quality <= 0)
    found = tuple(dict.fromkeys(type_ for one in wanted if one in _ANY for type_ in _without(one, refused)))
    if found and any(is_dicom(one) for one in wanted):
        raise InvalidQuery("Accept mixes DICOM media types and rendered ones", parameter="Accept")
    if not found:
        raise NotAcceptable(f"this is rendered as {', '.join((*RENDERED_TYPES, PDF))}", parameter="Accept")
    return found


def _without(wanted: str, refused: frozenset[str]) -> Sequence[str]:
    """What a range stands for beside types that are refused (q=0), which is more exact than any wildcard."""
    if "*" not in wanted or not refused.intersection((*RENDERED_TYPES, PDF)):
        return (wanted,)
    range_ = parse_media_type(wanted)
    return [one for one in (*RENDERED_TYPES, PDF) if range_.accepts(one) and one not in refused]


def _inner(range_: MediaType) -> str:
    if range_.essence in (negotiation.MULTIPART, "multipart/*"):
        return range_.parameters.get("type", "*/*").lower()
    return range_.essence


def is_dicom(essence: str) -> bool:
    return essence.startswith("application/dicom")


def window(text: str) -> tuple[float, float, str]:
    """'center,width' or 'center,width,function' (PS3.18 8.3.5.1.4); no function is linear."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) not in (2, 3):
        raise InvalidQuery("window is center,width,function", parameter="window")
    function = one_of(pieces[2].lower() if len(pieces) == 3 else LINEAR, _FUNCTIONS, "window")
    return window_of(pieces[0], pieces[1], function, "window")


def window_of(center: str, width: str, function: str, parameter: str) -> tuple[float, float, str]:
    """A window from its two numbers. Raises InvalidQuery for a width that the function does not have (PS3.3 C.11.2.1.2)."""
    wide = number(width, parameter)
    if wide <= 0 or (function == LINEAR and wide < 1):
        raise InvalidQuery(f"{parameter} has no such width", parameter=parameter)
    return number(center, parameter), wide, function


def viewport(text: str) -> Viewport:
    """'vw,vh' or 'vw,vh,sx,sy,sw,sh' (PS3.18 8.3.5.1.3); a negative sw or sh flips, an empty one of the last four is whole."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) < 2 or len(pieces) > 6:
        raise InvalidQuery("viewport is vw,vh or vw,vh,sx,sy,sw,sh", parameter="viewport")
    columns, rows = (side(piece, "viewport") for piece in pieces[:2])
    x, y, width, height = (
        number(piece, "viewport") if piece else None for piece in (*pieces[2:], *[""] * (6 - len(pieces)))
    )
    if width == 0 or height == 0 or (x or 0) < 0 or (y or 0) < 0:
        raise InvalidQuery("the region of the viewport is empty or begins outside of the image", parameter="viewport")
    flips = (width or 0) < 0, (height or 0) < 0
    return Viewport(columns, rows, x or 0.0, y or 0.0, width and abs(width), height and abs(height), flips)


def side(text: str, parameter: str) -> int:
    """A number of rows or columns to come out."""
    return negotiation.count(text, parameter, least=1, most=_MOST_SIDE)


def quality(text: str, parameter: str) -> int:
    return negotiation.count(text, parameter, least=1, most=100)


def number(text: str, parameter: str) -> float:
    """A finite decimal number. Raises InvalidQuery."""
    try:
        found = float(text) if len(text) <= 32 and "_" not in text else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or abs(found) > 1e12:
        raise InvalidQuery(f"{parameter} holds something that is not a number", parameter=parameter)
    return found
