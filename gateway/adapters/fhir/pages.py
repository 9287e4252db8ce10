"""One search of a FHIR server under way: its pages, the resources its studies refer to, its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import cast

from gateway.adapters.fhir.bundle import Bundle, References, contained, is_named, references_to, study_uid
from gateway.adapters.fhir.search import Plan, Search, unused
from gateway.adapters.http.client import HttpClient
from gateway.errors import NodeProtocolError, NodeRefused
from gateway.model.seam import NOT_WHOLE, NativeQuery, Report
from gateway.model.vocabulary import Level
from gateway.wire.fhirjson import Resource

FHIR_JSON = "application/fhir+json"

_STRICT = {"Prefer": "handling=strict"}  # an unknown parameter is then an error (FHIR search, 'handling errors')
_NO = frozenset({400, 404, 405, 406, 410, 422, 501})
_FOLLOWED = ("subject", "patient", "basedOn")
_GONE = frozenset({404, 410})
_MOST_READS, _READS_AT_ONCE = 200, 4


class SearchRefused(Exception):
    """The server does not take a search as it is."""

    def __init__(self, search: Search, status: int) -> None:
        self.search, self.status = search, status


class Finding:
    """What one `find` has seen so far. `seconds` bound all of it; references are read for at most 200 resources."""

    def __init__(self, http: HttpClient, query: NativeQuery, seconds: float) -> None:
        self._http, self._query = http, query
        self._ends = time.monotonic() + seconds
        self._reads_left = _MOST_READS
        self._turns = asyncio.Semaphore(_READS_AT_ONCE)
        self._seen: set[str] = set()
        self._unused: frozenset[str] = frozenset()
        self._truncated = self._says_partial = False
        self._unread: set[str] = set()
        self.known = References(http.base_url)

    @property
    def within(self) -> float:
        return max(0.01, self._ends - time.monotonic())

    @property
    def is_full(self) -> bool:
        """The limit counts rows, and only at the study level is a study one row."""
        limit = self._query.limit if self._query.level is Level.STUDY else None
        return limit is not None and len(self._seen) >= limit

    def report(self, plan: Plan) -> Report:
        """A resource and what it refers to hold all there is to a study: what its rows do not say has no value, unless some of
        that was not read."""
        matched = plan.matched(self._unused) & plan.asked
        all_was_read = not self._unread
        return Report(
            matched, plan.asked - matched, truncated=self._truncated, complete_rows=all_was_read, gaps=self.gaps
        )

    @property
    def truncated(self) -> bool:
        """Whether there is more than was given."""
        return self._truncated

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing beside what was cut off: see Report."""
        return (NOT_WHOLE,) if self._says_partial else ()

    async def studies(self, plan: Plan, search: Search) -> AsyncGenerator[Resource, None]:
        """The studies of one search not seen in another. Raises SearchRefused, then nothing was given yet."""
        was_full = self.is_full
        if was_full:
            self._truncated = True
            return
        url = self._http.url("ImagingStudy", plan.query(search, self._query.limit))
        async with aclosing(self.pages(url, search, "ImagingStudy")) as pages:
            async for bundle in pages:
                fresh = list(self._fresh(bundle, search))
                await self._follow(fresh)
                for study in fresh:
                    yield study
                if self.is_full and bundle.link("next"):
                    self._truncated = True
                    return

    async def pages(self, url: str, search: Search, kind: str) -> AsyncGenerator[Bundle, None]:
        """The pages of a search for `kind`. Where the last is as full as the first and the server tells of more matches, some are
        missing; behind a shorter one its total is the estimate that it may be (FHIR R5, Bundle.total)."""
        visited: dict[str, int] = {}
        while url not in visited:
            bundle, base = await self.page(url, search, is_first=not visited)
            visited[url] = bundle.count_of(kind)
            yield bundle
            following = bundle.link("next")
            if not following:
                counts = list(visited.values())
                if bundle.total > sum(counts) and counts[-1] >= counts[0]:
                    self._truncated |= self.is_full
                    self._says_partial |= not self.is_full
                return
            url = self._http.check_address(following, base=base)
        self._truncated = True

    async def page(self, url: str, search: Search, *, is_first: bool) -> tuple[Bundle, str]:
        """One page of a search and its own address. Raises SearchRefused for the first page of one that is not taken."""
        node = self._http.node
        answer = await self._http.get_json(url, accept=FHIR_JSON, headers=_STRICT, expect=_NO, within=self.within)
        if answer.status in _NO:
            if is_first:
                raise SearchRefused(search, answer.status)
            raise NodeProtocolError(node, f"answered a page of a search with status {answer.status}")
        bundle = Bundle(node, answer.document, self._http.base_url)
        self._says_partial = self._says_partial or bundle.says_partial
        if is_first:
            self._unused |= unused(search, bundle.link("self"))
        self.known.lies_also_at(bundle.own_base)
        for full_url, resource in bundle.others:
            self.known.add(resource, full_url, is_own=bundle.is_own(resource))
        return bundle, answer.url

    def _fresh(self, bundle: Bundle, search: Search) -> Iterable[Resource]:
        for study in bundle.studies:
            named = bundle.name_of(study) or f"none {len(self._seen)}"  # those without an id are told apart
            if self._is_asked_for(study, search) and named not in self._seen:
                if self.is_full:
                    self._truncated = True
                    return
                self._seen.add(named)
                yield study

    def _is_asked_for(self, study: Resource, search: Search) -> bool:
        """Other studies are left out where the server ignored the UID, and a fault where it says it used it."""
        if self._query.study in (None, study_uid(study)):
            return True
        if {name for name, _ in search} & {"identifier", "study"} - self._unused:
            raise NodeProtocolError(self._http.node, "gave another study than the one asked for")
        return False

    async def _follow(self, studies: list[Resource]) -> None:
        """Reads what the studies refer to and the server did not include."""
        listed = (ref for study in studies for element in _FOLLOWED for ref in references_to(study, element))
        wanted = [ref for ref in dict.fromkeys(listed) if self.known.is_open(ref)]
        await asyncio.gather(*map(self.read, wanted))

    def is_unread(self, reference: str) -> bool:
        """Whether the server did not give it, though it may have it."""
        return reference in self._unread

    async def read(self, reference: str) -> Resource | None:
        """The resource, or None where the server does not give it. Not the server's silence: that is raised."""
        if self.known.is_open(reference):
            if self._reads_left <= 0:
                self._unread.add(reference)
                return None
            self._reads_left -= 1
            async with self._turns:
                self.known.settle(reference, await self._read(reference))
        return self.known.resolve(reference)

    async def _read(self, reference: str) -> Resource | None:
        try:
            url = self._http.check_address(self.known.address(reference))
            answer = await self._http.get_json(url, accept=FHIR_JSON, expect=_NO, within=self.within)
        except (NodeRefused, NodeProtocolError):
            self._unread.add(reference)
            return None
        found = answer.document
        if is_named(found, reference):
            return cast(Resource, found)
        if answer.status not in _GONE:
            self._unread.add(reference)
        return None

    async def resource(self, study: Resource, reference: str) -> Resource | None:
        """What a reference in a study names, contained in it or not."""
        return contained(study, reference) if reference.startswith("#") else await self.read(reference)
