"""QIDO-RS: the six search resources of PS3.18 10.6, over the federation or over one node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.edge import negotiation, problems
from gateway.edge.context import Context, context_of
from gateway.errors import InvalidQuery
from gateway.federation.page import Page
from gateway.model.answer import Found, Issue
from gateway.model.dataset import Dataset, attribute
from gateway.model.query import Match, Query, Ref, check_uid, parse_match
from gateway.model.vocabulary import (
    ISSUER,
    PATIENT_ID,
    RETRIEVE_AE_TITLE,
    RETRIEVE_URL,
    RETURNED,
    SERIES_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_UID,
    Level,
    level_of,
    path,
    path_name,
)
from gateway.telemetry import stage
from gateway.wire.threads import apart

_FUZZY_WARNING = (
    "The fuzzymatching parameter is not supported. Only literal matching has been performed."  # PS3.18 8.3.4.2
)
_UNICODE = attribute(SPECIFIC_CHARACTER_SET, ["ISO_IR 192"])
_REBUILT_WARNING = (
    "the places of this search's pages are not known here: rows may repeat or be left out; begin at offset 0"
)
_NAME = re.compile(r"[A-Za-z0-9.:_-]{1,128}")
_UNSUPPORTED_SWITCHES = {"emptyvaluematching", "multiplevaluematching"}


@dataclass(slots=True)
class Search:
    """One parsed QIDO-RS request: the query, its page, and the Warnings that the parameters alone call for."""

    query: Query
    limit: int | None = None
    offset: int = 0
    warnings: list[str] = field(default_factory=list)


@stage("plan")
def parse(level: Level, pairs: Sequence[tuple[str, str]], study: str | None, series: str | None) -> Search:
    """A search from its parameters (PS3.18 8.3.4). Raises InvalidQuery naming the parameter for whatever is not understood."""
    search = Search(Query(level))
    matches: dict[tuple[str, ...], Match | None] = {}
    returned: list[tuple[str, ...]] = []
    seen: set[str] = set()
    everything = False
    for name, value in pairs:
        plain = name.lower()
        if plain == "includefield":
            everything |= value.lower() == "all"
            returned += _included(value)
            continue
        if plain in _PARAMETERS:
            _once(plain, seen)
            _PARAMETERS[plain](search, value)
        elif plain not in ("node", "accept"):
            _add_match(matches, name, value)
    if everything and returned:
        raise InvalidQuery("includefield is either 'all' or a list of attributes", parameter="includefield")
    parents: dict[tuple[str, ...], str | None] = {(STUDY_UID,): study, (SERIES_UID,): series}
    search.query = Query(
        level,
        tuple(match for match in matches.values() if match and not _is_in_the_path(match, parents.get(match.path))),
        study=study and check_uid(study, "StudyInstanceUID"),
        series=series and check_uid(series, "SeriesInstanceUID"),
        return_=tuple(dict.fromkeys(returned)),
        all_attributes=everything,
        combined_datetime=True,
    )
    return search


def _included(value: str) -> list[tuple[str, ...]]:
    """The attributes of one includefield. What could not be the name of one is not repeated, as in `query_pairs`."""
    names = [each.strip() for each in value.split(",") if each.strip() and each.strip().lower() != "all"]
    if not all(map(_NAME.fullmatch, names)):
        raise InvalidQuery("includefield takes keywords and tags", parameter="includefield")
    return [path(name) for name in names]


def _once(name: str, seen: set[str]) -> None:
    if name in seen:
        raise InvalidQuery(f"{name} is given twice", parameter=name)
    seen.add(name)


def _add_match(matches: dict[tuple[str, ...], Match | None], name: str, value: str) -> None:
    path_ = path(name)
    if path_ in matches:
        raise InvalidQuery(f"{path_name(path_)} is given twice", parameter=name)
    if level_of(path_) is Level.IMAGE and path_name(path_) not in _INSTANCE_KEYS:
        raise InvalidQuery(f"{path_name(path_)} is not a key that can be searched by", parameter=name)
    matches[path_] = parse_match(path_, value)


def _is_in_the_path(match: Match, uid: str | None) -> bool:
    """Whether a key says once more what the path says (dicomtrolley does). Raises InvalidQuery for another UID than that."""
    if uid and match.values != (uid,):
        raise InvalidQuery(f"the path names another {match.name}", parameter=match.name)
    return bool(uid)


def _set_limit(search: Search, value: str) -> None:
    search.limit = negotiation.count(value, "limit")


def _set_offset(search: Search, value: str) -> None:
    search.offset = negotiation.count(value, "offset")


def _set_fuzzy(search: Search, value: str) -> None:
    if value.lower() not in ("true", "false"):
        raise InvalidQuery("fuzzymatching is true or false", parameter="fuzzymatching")
    if value.lower() == "true":
        search.warnings.append(_FUZZY_WARNING)


def _set_unsupported(name: str):  # type: ignore[no-untyped-def]
    def note(search: Search, value: str) -> None:
        if value.lower() not in ("true", "false"):
            raise InvalidQuery(f"{name} is true or false", parameter=name)
        if value.lower() == "true":
            search.warnings.append(f"The {name} parameter is not supported.")

    return note


_PARAMETERS = {
    "limit": _set_limit,
    "offset": _set_offset,
    "fuzzymatching": _set_fuzzy,
    **{name: _set_unsupported(name) for name in _UNSUPPORTED_SWITCHES},
}
_INSTANCE_KEYS = frozenset(
    {
        "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
        "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "ImageType",
        "ContentLabel", "ContentDescription", "PhotometricInterpretation", "SamplesPerPixel", "ViewPosition",
        "ImageLaterality", "ConceptNameCodeSequence.CodeValue", "CompletionFlag", "VerificationFlag",
    }
)  # fmt: skip


def endpoint(level: Level):  # type: ignore[no-untyped-def]
    """The handler of one search resource."""

    async def search(request: Request) -> Response:
        context = context_of(request)
        media_type = negotiation.json_type(request, strict=context.settings.strict_accept)
        asked = parse(level, query_pairs(request), *parents_of(request))
        page, is_rebuilt = await context.pipeline.search_by_offset(
            context.caller, asked.query, context.nodes, asked.offset, asked.limit
        )
        if is_rebuilt:
            asked.warnings.append(_REBUILT_WARNING)
        return await apart(len(page.items), respond, request, context, asked, page, media_type)

    return search


def query_pairs(request: Request) -> list[tuple[str, str]]:
    """The query string as pairs in order, '+' and percent-encoding decoded as UTF-8. Raises InvalidQuery for broken UTF-8.

    A name that no parameter could have is refused here, since errors repeat names and such a one may be a patient's.
    """
    pairs = []
    for piece in filter(None, request.url.query.split("&")):
        raw_name, _, value = piece.partition("=")
        name = unquote_plus(raw_name)
        if not _NAME.fullmatch(name):
            raise InvalidQuery("the name of a parameter is at most 128 letters, digits and any of . : _ -")
        try:
            pairs.append((name, unquote_plus(value, errors="strict")))
        except UnicodeDecodeError:
            raise InvalidQuery("the query string is not UTF-8", parameter=name) from None
    return pairs


def parents_of(request: Request) -> tuple[str | None, str | None]:
    """The study and series UIDs of the path."""
    return request.path_params.get("study"), request.path_params.get("series")


@stage("render")
def respond(request: Request, context: Context, asked: Search, page: Page, media_type: str) -> Response:
    """One page of results. Partial answers are not stored by anyone and carry one Warning per issue."""
    wanted = None if asked.query.all_attributes else wanted_tags(asked.query)
    body = orjson.dumps([render(found, wanted, context.root_of(found)) for found in page.items])
    notes = [*asked.warnings, *_additional(page)]
    issues = [*(Issue("", "", note) for note in notes), *page.issues]
    return context.json_response(
        request, body, media_type, problems.warnings(request, issues, context.root), page.complete
    )


def _additional(page: Page) -> list[str]:
    """The words of PS3.18 8.3.4.4; 'at least' while not every node was looked through to its end."""
    if not page.more:
        return []
    known = str(page.beyond) if page.total is not None or page.issues else f"at least {max(page.beyond, 1)}"
    return [f"There are {known} additional results that can be requested"]


def render(found: Found, wanted: frozenset[str] | None, root: str) -> Dataset:
    """A result as PS3.18 10.6.3.3 wants it: the attributes that are `wanted` (all for None), and where to retrieve it."""
    given = found.attributes.items()
    attributes = {tag: value for tag, value in given if len(value) > 1 and (wanted is None or tag in wanted)}
    ref = Ref(found.study, found.series or None, found.instance or None)
    attributes[SPECIFIC_CHARACTER_SET] = _UNICODE
    attributes[RETRIEVE_URL] = {"vr": "UR", "Value": [f"{root}/{ref.path}"]}
    attributes[RETRIEVE_AE_TITLE] = {"vr": "AE", "Value": list(found.holders)}
    return {tag: attributes[tag] for tag in sorted(attributes)}


def wanted_tags(query: Query) -> frozenset[str]:
    """The tags of the level asked for; of the levels above too where the path does not name them (PS3.18 Table 10.6.3-2)."""
    levels = [query.level]
    if query.level is not Level.STUDY and not query.study:
        levels.append(Level.STUDY)
    if query.level is Level.IMAGE and not query.series:
        levels.append(Level.SERIES)
    always = {STUDY_UID, PATIENT_ID, ISSUER}
    always |= {SERIES_UID} if query.level is not Level.STUDY else set()
    asked = {path_[0] for path_ in query.return_} | {match.path[0] for match in query.matches}
    return frozenset(always | asked | _tags_of(levels))


def _tags_of(levels: Iterable[Level]) -> set[str]:
    return {tag for level in levels for tag in RETURNED[level]}
