"""QIDO-RS: the six search resources of PS3.18 10.6, over the federation or over one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.edge import problems
from gateway.edge.context import Context, context_of
from gateway.edge.dicomweb import representations
from gateway.edge.dicomweb.qidoquery import Search, parse, shown
from gateway.edge.dicomweb.representations import Representation
from gateway.edge.querystring import query_pairs
from gateway.federation.page import Page
from gateway.model import zoned
from gateway.model.answer import Found, Issue
from gateway.model.dataset import Dataset, attribute
from gateway.model.query import Ref
from gateway.model.vocabulary import RETRIEVE_AE_TITLE, RETRIEVE_URL, SPECIFIC_CHARACTER_SET, Level
from gateway.telemetry import stage
from gateway.wire.threads import apart

_ALWAYS = (SPECIFIC_CHARACTER_SET, RETRIEVE_URL, RETRIEVE_AE_TITLE)
_UNICODE = attribute(SPECIFIC_CHARACTER_SET, ["ISO_IR 192"])
_REBUILT_WARNING = (
    "the places of this search's pages are not known here: rows may repeat or be left out; begin at offset 0"
)


def endpoint(level: Level):  # type: ignore[no-untyped-def]
    """The handler of one search resource."""

    async def search(request: Request) -> Response:
        context = context_of(request)
        representation = representations.chosen(request, strict=context.settings.strict_accept)
        with stage("plan"):
            asked = parse(level, query_pairs(request), *parents_of(request))
        accepts = zoned.condition(asked.query, request.scope["estate"].time_zones)
        page, is_rebuilt = await context.pipeline.search_by_offset(
            context.caller, asked.query, context.nodes, asked.offset, asked.limit, accepts
        )
        notes = [_REBUILT_WARNING] if is_rebuilt else []
        return await apart(len(page.items), respond, request, context, asked, page, representation, notes)

    return search


def parents_of(request: Request) -> tuple[str | None, str | None]:
    """The study and series UIDs of the path."""
    return request.path_params.get("study"), request.path_params.get("series")


@stage("render")
def respond(
    request: Request,
    context: Context,
    asked: Search,
    page: Page,
    representation: Representation,
    notes: Sequence[str],
) -> Response:
    """One page of results. Partial answers are not stored by anyone and carry one Warning per issue."""
    render = renderer(shown(asked.query))
    rows = [render(found, context.root_of(found)) for found in page.items]
    if representation.is_xml:
        body, media_type = representations.xml_whole(rows)
    else:
        body, media_type = orjson.dumps(rows), representation.type
    issues = [*(Issue("", "", note) for note in (*notes, *_additional(page))), *page.issues]
    return context.json_response(
        request, body, media_type, problems.warnings(request, issues, context.root), page.complete
    )


def _additional(page: Page) -> list[str]:
    """The words of PS3.18 8.3.4.4; 'at least' while not every node was looked through to its end."""
    if not page.more:
        return []
    known = str(page.beyond) if page.total is not None else f"at least {max(page.beyond, 1)}"
    return [f"There are {known} additional results that can be requested"]


def renderer(is_shown: Callable[[str], bool]) -> Callable[[Found, str], Dataset]:
    """Gives a result, retrieved at a root, as PS3.18 10.6.3.3 wants it: the attributes that are shown and have a value, in
    order, and where to retrieve it. Results with the same attributes are put in order once."""
    templates: dict[tuple[str, ...], tuple[Dataset, bool]] = {}

    def render(found: Found, root: str) -> Dataset:
        tags = tuple(found.attributes)
        if tags not in templates:
            templates[tags] = {tag: {} for tag in sorted({*tags, *_ALWAYS})}, all(map(is_shown, tags))
        template, are_all_shown = templates[tags]
        row = {
            **template,
            **found.attributes,
            SPECIFIC_CHARACTER_SET: _UNICODE,
            RETRIEVE_URL: {"vr": "UR", "Value": [f"{root}/{_path(found)}"]},
            RETRIEVE_AE_TITLE: {"vr": "AE", "Value": [row.node for row in found.rows]},
        }
        if are_all_shown and 1 not in map(len, row.values()):  # a VR alone
            return row
        return {tag: value for tag, value in row.items() if len(value) > 1 and (tag in _ALWAYS or is_shown(tag))}

    return render


def _path(found: Found) -> str:
    if not found.series:
        return f"studies/{found.study}"
    return Ref(found.study, found.series, found.instance or None).path
