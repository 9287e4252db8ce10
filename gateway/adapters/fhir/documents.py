"""Reports and orders at a FHIR server: found by id, study, patient or identifier, each with who it is about."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from urllib.parse import quote

from gateway.adapters.fhir import search as studies
from gateway.adapters.fhir.bearers import OF_STUDIES, Bearers
from gateway.adapters.fhir.bundle import references_to, study_uid
from gateway.adapters.fhir.pages import FHIR_JSON, Finding, SearchRefused
from gateway.adapters.fhir.search import Search
from gateway.adapters.fhir.server import Server
from gateway.adapters.http.client import HttpClient
from gateway.errors import NodeProtocolError, NodeRefused, Unsupported
from gateway.model.seam import NativeQuery, NodeResource, Report, ResourceQuery
from gateway.model.vocabulary import Level
from gateway.wire.fhirjson import Resource

_PAGE, _STUDIES_AT_ONCE = 100, 20
_Placed = tuple[str, Resource]  # a resource, behind the address that another server has it at
_STUDY = re.compile(r"ImagingStudy/([A-Za-z0-9.-]{1,64})")


class Documents:
    """One question under way. Its references are read within the same deadline, and are as few as those of a study search."""

    def __init__(self, http: HttpClient, query: ResourceQuery, server: Server) -> None:
        self._http, self._query, self._server = http, query, server
        self._finding = Finding(http, NativeQuery(Level.STUDY, study=query.study or None), http.timeouts.total)
        self._bearers = Bearers(self._finding.known)
        self._seen: set[str] = set()
        self._unread: set[str] = set()
        self._truncated = False

    async def found(self) -> AsyncGenerator[NodeResource | Report, None]:
        """Each resource once."""
        try:
            async for fresh in self._batches():
                await self._follow([resource for _, resource in fresh])
                for address, resource in fresh:
                    yield self._with_bearer(resource, address)
        except SearchRefused as refusal:
            names = ", ".join(name for name, _ in refusal.search)
            raise NodeProtocolError(
                self._http.node, f"refused a search by {names} with status {refusal.status}"
            ) from None
        yield Report(truncated=self._truncated or self._finding.truncated, gaps=(*self._finding.gaps, *self._gaps))

    @property
    def _gaps(self) -> tuple[str, ...]:
        """What may be of the study that is asked for, of which nothing tells."""
        if not self._unread or not self._query.study:
            return ()
        studies_ = f"{len(self._unread)} {'study' if len(self._unread) == 1 else 'studies'}"
        return (f"could not read {studies_} that its {self._query.kind} resources refer to, which may be of this one",)

    async def _batches(self) -> AsyncGenerator[list[_Placed], None]:
        for identifier in self._query.ids:
            yield self._fresh([("", resource) for resource in [await self._read(identifier)] if resource])
        for search in [] if self._query.ids else await self._searches():
            try:
                async for page in self._pages(search):
                    yield self._fresh(page)
            except SearchRefused as refusal:
                for other in await self._otherwise(refusal):
                    async for page in self._pages(other):
                        yield self._fresh(page)

    async def _read(self, identifier: str) -> Resource | None:
        """The resource of an id. Raises NodeProtocolError when the server gives another one."""
        url = self._http.url(f"{self._query.kind}/{identifier}")
        answer = await self._http.get_json(url, accept=FHIR_JSON, expect={404, 410}, within=self._finding.within)
        resource = answer.document
        if resource is None:
            return None
        if not isinstance(resource, dict) or resource.get("id") != identifier:
            raise NodeProtocolError(self._http.node, f"gave something else than the {self._query.kind} asked for")
        return resource

    def _fresh(self, resources: Iterable[_Placed]) -> list[_Placed]:
        """Those of the kind that were not seen, up to the ceiling."""
        fresh = []
        for address, resource in resources:
            # Those without an id are told apart.
            named = address or str(resource.get("id") or f"none {len(self._seen)}")
            if resource.get("resourceType") != self._query.kind or named in self._seen:
                continue
            if len(self._seen) >= self._query.limit:
                self._truncated = True
                break
            self._seen.add(named)
            fresh.append((address, resource))
        return fresh

    # --- what the server is asked

    async def _searches(self) -> list[Search]:
        """The searches that together find it all."""
        identifiers: Search = ()
        if self._query.identifiers:
            identifiers = (("identifier", ",".join(self._query.identifiers)),)
        if self._query.study:
            return [(*one, *identifiers) for one in await self._of_study()]
        if self._query.patient.match:
            return [(*one, *identifiers) for one in await self._of_patient()]
        if not identifiers:
            raise Unsupported(self._http.node, f"cannot be asked for the {self._query.kind} of this patient")
        return [identifiers]

    async def _of_study(self) -> list[Search]:
        """By the study where the server can, which only R5 has a parameter for; else by its patient: the rest is left out."""
        references, people = [], []
        plan = studies.build(NativeQuery(Level.STUDY, study=self._query.study), self._server)
        async for study in self._finding.studies(plan, plan.searches[0]):
            self._finding.known.add(study)
            references.append(f"ImagingStudy/{study.get('id')}")
            people += [one for element in ("subject", "patient") for one in references_to(study, element)]
        if not references:
            return []
        if "study" in self._server.others.get(self._query.kind, ()):
            return [(("study", ",".join(references)),)]
        named = dict.fromkeys(_escaped(one) for one in people if not one.startswith("#"))
        if not named:
            raise Unsupported(self._http.node, f"cannot be asked for the {self._query.kind} of this study")
        return [(("patient", ",".join(named)),)]

    async def _of_patient(self) -> list[Search]:
        """By the Patient's identifier, and by that in the reference itself where the mapping reads it, too."""
        found: list[Search] = []
        for name, value in studies.patient_id(self._query.patient, self._server):
            if name.endswith(":identifier") or self._server.has(name):
                found.append(((name.replace("subject", "patient", 1), value),))
            else:
                found += await self._by_patients(value)
        return found

    async def _otherwise(self, refusal: SearchRefused) -> list[Search]:
        """Who does not chain is asked for the Patient first. A server that cannot search identifiers inside references is taken to
        hold none that only they lead to, as in study searches. Raises the refusal of any other search."""
        (name, value), *rest = refusal.search
        if name == "patient:identifier":
            return []
        if name == "patient.identifier":
            return [(*one, *rest) for one in await self._by_patients(value)]
        raise refusal

    async def _by_patients(self, identifiers: str) -> list[Search]:
        search: Search = (("identifier", identifiers),)
        bundle, _ = await self._finding.page(self._address("Patient", search), search, is_first=True)
        if bundle.link("next") or bundle.total > bundle.count_of("Patient"):
            raise NodeProtocolError(self._http.node, "has more patients of one identifier than are asked for at once")
        people = [
            f"Patient/{one['id']}" for _, one in bundle.others if one["resourceType"] == "Patient" and "id" in one
        ]
        return [(("patient", ",".join(people)),)] if people else []

    def _address(self, kind: str, search: Search, count: int = _PAGE) -> str:
        pairs = [*search, ("_count", str(count))]
        query = "&".join(f"{quote(name, safe=':.')}={quote(value, safe=':,|/')}" for name, value in pairs)
        return self._http.url(kind, query)

    async def _pages(self, search: Search) -> AsyncGenerator[list[_Placed], None]:
        url = self._address(self._query.kind, search, min(_PAGE, self._query.limit))
        async with aclosing(self._finding.pages(url, search, self._query.kind)) as pages:
            async for bundle in pages:
                yield [(bundle.address_of(resource), resource) for _, resource in bundle.others]
                if self._truncated:
                    return

    # --- what its resources refer to

    async def _follow(self, resources: list[Resource]) -> None:
        """Reads whom and which studies they are about, then whom the studies are about where that is another reference."""
        named = (one for resource in resources for element in OF_STUDIES for one in references_to(resource, element))
        open_studies = [one for one in dict.fromkeys(named) if self._finding.known.is_open(one)]
        await self._know([found[1] for one in open_studies if (found := _STUDY.fullmatch(one))])
        await self._read_all((*(one for each in resources for one in references_to(each, "subject")), *open_studies))
        self._unread |= set(filter(self._finding.is_unread, open_studies))
        await self._read_all(one for resource in resources for one in self._bearers.patients_of_studies(resource))

    async def _read_all(self, references: Iterable[str]) -> None:
        wanted = [one for one in dict.fromkeys(references) if self._finding.known.is_open(one)]
        await asyncio.gather(*map(self._finding.read, wanted))

    async def _know(self, ids: list[str]) -> None:
        """Several studies at once where the server searches them by id: each report has one of its own. What this does not find
        is read one by one."""
        if len(ids) < 2 or "_id" not in self._server.parameters:
            return
        for start in range(0, len(ids), _STUDIES_AT_ONCE):
            search: Search = (("_id", ",".join(ids[start : start + _STUDIES_AT_ONCE])),)
            try:
                bundle, _ = await self._finding.page(self._address("ImagingStudy", search), search, is_first=True)
            except (SearchRefused, NodeProtocolError, NodeRefused):
                return
            for study in filter(bundle.is_own, bundle.studies):
                self._finding.known.add(study)

    def _with_bearer(self, resource: Resource, address: str) -> NodeResource:
        uids = {reference: uid for reference, study in self._bearers.studies(resource) if (uid := study_uid(study))}
        return NodeResource(resource, self._server.version, self._bearers.bearer(resource), uids, address)


def _escaped(value: str) -> str:
    return re.sub(r"([\\,$|])", r"\\\1", value)
