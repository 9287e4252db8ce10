"""Searches whose whole result is at hand, ordered by id: how many are given at once, how much of each, and what comes next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from starlette.responses import Response

from gateway.edge import negotiation
from gateway.edge.fhir import shown
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.request import FhirRequest
from gateway.edge.fhir.searchgrammar import Name, NotSupported, alternatives, name_of, single
from gateway.edge.fhir.searchset import Searchset, digest, outcome_of
from gateway.edge.fhir.shown import Shown
from gateway.edge.querystring import one_of, query_pairs
from gateway.errors import InvalidQuery
from gateway.federation.page import Cursor, Position
from gateway.model.answer import Issue

TOTALS = ("none", "estimate", "accurate")
RESULTS = ("_count", "_summary", "_elements", "_total", "_cursor", "_format", "_pretty", "node")
"""How results are given, the same for every listing."""

AddKey = Callable[[Name, str, list[str]], Awaitable[None]]


@dataclass(slots=True)
class Listing:
    """One search of `kind`; `used` are the pairs that the links repeat, `ignored` what a lenient caller gave in vain."""

    kind: str
    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    count: int | None = None
    shown: Shown = field(default_factory=Shown)
    total: str = ""
    cursor: str = ""

    def add_result(self, name: str, values: list[str], *, is_r5: bool) -> None:
        if name != "node" and name in [used for used, _ in self.used]:
            raise InvalidQuery(f"{name} is given twice", parameter=name)
        if name == "_count":
            self.count = negotiation.count(single(values, name), name, most=10_000)
        elif name == "_summary":
            self.shown.summary = one_of(single(values, name), shown.SUMMARIES, name)
        elif name == "_elements":
            self.shown.elements = shown.elements(values, self.kind, is_r5=is_r5)
        elif name == "_total":
            self.total = one_of(single(values, name), TOTALS, name)
        elif name == "_cursor":
            self.cursor = ",".join(values)


async def parse(asked: FhirRequest, kind: str, add_key: AddKey) -> Listing:
    """The request's search; `add_key` takes what selects. Raises InvalidQuery naming the parameter."""
    listing = Listing(kind)
    for text, raw in query_pairs(asked.request):
        try:
            if text in RESULTS and raw:
                listing.add_result(text, alternatives(raw, text), is_r5=asked.renderer.is_r5)
            elif text not in RESULTS:
                await add_key(name_of(text), text, alternatives(raw, text))
            if raw and text != "_cursor":
                listing.used.append((text, raw))
        except NotSupported:
            if not asked.is_lenient:
                raise
            listing.ignored.append(text)
    listing.shown.check()
    return listing


def unsupported(kind: str, text: str) -> NotSupported:
    return NotSupported(
        f"'{text}' is not a supported search parameter of {kind}; /fhir/metadata lists them", parameter=text
    )


@dataclass(frozen=True, slots=True)
class Paged:
    """The resources of one page, out of `total`; `next` is the cursor behind them, '' for none."""

    items: Sequence[Resource]
    total: int
    next: str


def paged(asked: FhirRequest, listing: Listing, found: Iterable[Resource]) -> Paged:
    """The page asked for, of what was found. Raises InvalidQuery for a cursor of another search."""
    everything = sorted(found, key=lambda one: str(one["id"]))
    named = digest(asked, listing.kind, listing.used)
    cursor = Cursor(asked.request.app.state.cursor_secret)
    rest = everything
    if listing.cursor:
        behind = cursor.open(listing.cursor, named).study
        rest = [one for one in everything if str(one["id"]) > behind]
    count = asked.context.settings.page_size if listing.count is None else listing.count
    items = rest[: 0 if listing.shown.summary == "count" else count]
    onward = cursor.seal(Position("", "", str(items[-1]["id"]), ""), named) if items and len(rest) > len(items) else ""
    return Paged(items, len(everything), onward)


def respond(
    asked: FhirRequest,
    listing: Listing,
    page: Paged,
    issues: Sequence[Issue] = (),
    included: Mapping[str, Resource] = MappingProxyType({}),
) -> Response:
    """The page as a searchset, with what was included by reference."""
    bundle = Searchset(
        listing.kind,
        listing.used,
        [listing.shown.of(one) for one in page.items],
        included,
        outcome_of(issues, listing.ignored),
        page.total if listing.shown.needs_total(listing.total) and not issues else None,
        listing.cursor,
        page.next,
    ).bundle(asked)
    return asked.respond(bundle, complete=not issues and not listing.ignored)
