"""FHIR nodes: ImagingStudy search on an STU3, R4, R4B or R5 server, and where its Endpoints say the pixels are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from gateway.adapters.fhir import search as search
from gateway.adapters.fhir.bundle import holders, references_to, says_modality_above, wado_address
from gateway.adapters.fhir.documents import Documents
from gateway.adapters.fhir.pages import FHIR_JSON, Finding, SearchRefused
from gateway.adapters.fhir.server import Server, Version, product_of, server_of, version_of
from gateway.adapters.http.client import HttpClient
from gateway.adapters.http.joined import joined
from gateway.errors import NodeError, NodeProtocolError, NodeRefused, Unsupported
from gateway.model.query import Ref
from gateway.model.seam import Location, NativeQuery, NodeResource, Probe, Record, Report, ResourceQuery
from gateway.model.vocabulary import Level
from gateway.wire.fhirjson import FhirRecord, Resource

_CAPABILITIES_FOR = 600.0
_LOOKED_AT = 50


class FhirAdapter:
    """One FHIR server. Its records are whole ImagingStudy resources, whatever the level asked for.

    `resolve()` in a path reaches what the server includes or gives when read: the patient, the order, the referrer.
    """

    def __init__(self, node: str, *, http: HttpClient, version: Version = "R4") -> None:
        self.node = node
        self._http = http
        self._version: Version = version
        self._asking: asyncio.Task[Server] | None = None
        self._ask_again = 0.0
        self._refused: frozenset[str] = frozenset()
        self._modality_is_above = False
        self._has_includes = True

    async def open(self) -> None:
        await self._http.open()

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._http.close()

    async def probe(self) -> Probe:
        started = time.monotonic()
        statement = await self._statement()
        latency = time.monotonic() - started
        server, version = server_of(statement, self._version), version_of(statement)
        advice = [f'version = "{version}"'] if version and version != self._version else []
        if server.parameters:
            await self._look_at_some()
        if self._modality_is_above:
            advice.append(
                "modalities of studies whose series do not say them are not searched by, but looked for in all studies"
            )
        if wanting := search.wanting(server):
            advice.append(f"the server does not search by {', '.join(wanting)}: such searches read all its studies")
        return Probe(
            product=product_of(statement),
            capabilities=("find", "locate") if server.parameters else (),
            advice=tuple(advice),
            latency=latency,
            details={"fhirVersion": version or "", "searchParam": " ".join(sorted(server.parameters))},
        )

    async def _look_at_some(self) -> None:
        """Shows what no statement says: where modalities are, that the parameter of that name is to find."""
        with suppress(NodeError):
            async with aclosing(self.find(NativeQuery(Level.STUDY, limit=_LOOKED_AT))) as found:
                async for _ in found:
                    pass

    async def find(self, query: NativeQuery) -> AsyncGenerator[Record | Report, None]:
        """Each study once. A search that the server refuses is asked again without what it may lack."""
        finding = Finding(self._http, query, self._http.timeouts.total)
        while True:
            plan = search.build(query, await self._capable())
            try:
                for one in plan.searches:
                    async with aclosing(finding.studies(plan, one)) as studies:
                        async for study in studies:
                            self._modality_is_above = self._modality_is_above or says_modality_above(study)
                            yield FhirRecord(study, finding.known.resolve)
                break
            except SearchRefused as refusal:
                self._leave_out(refusal, plan)
        yield finding.report(plan)

    def _leave_out(self, refusal: SearchRefused, plan: search.Plan) -> None:
        """Remembers what the server refused. Raises NodeProtocolError when it refused a plain search that it offers."""
        doubtful = search.unpromised(refusal.search)
        if doubtful:
            self._refused |= doubtful
        elif plan.includes and self._has_includes:
            self._has_includes = False
        else:
            raise NodeProtocolError(self.node, f"answered a search with status {refusal.status}")

    async def resources(self, query: ResourceQuery) -> AsyncGenerator[NodeResource | Report, None]:
        """Nothing where the server does not list the kind."""
        server = await self._capable()
        if query.kind not in server.others:
            yield Report()
            return
        async with aclosing(Documents(self._http, query, server).found()) as found:
            async for one in found:
                yield one

    # --- where the pixels are

    async def locate(self, ref: Ref) -> Sequence[Location]:
        """By the study's own Endpoints, else by those of its series. Raises NodeRefused when none may be followed."""
        query = NativeQuery(Level.STUDY, study=ref.study)
        finding = Finding(self._http, query, self._http.timeouts.total)
        found: dict[Location, None] = {}
        refusals: list[NodeRefused] = []
        for study in await self._with_endpoints(query, finding):
            for part, holder in holders(study, ref):
                for address in await self._addresses(finding, study, holder):
                    try:
                        found[Location("dicomweb", self._http.check_address(address), part)] = None
                    except NodeRefused as refusal:
                        refusals.append(refusal)
                if found and part == ref and holder is study:
                    break
        if refusals and not found:
            raise refusals[0]
        return _gathered(ref, found)

    async def _with_endpoints(self, query: NativeQuery, finding: Finding) -> list[Resource]:
        server = await self._capable()
        include = {"ImagingStudy:endpoint"} & server.includes
        plan = replace(search.build(query, server), includes=tuple(include))
        try:
            return [study async for study in finding.studies(plan, plan.searches[0])]
        except SearchRefused as refusal:
            self._leave_out(refusal, plan)
            return await self._with_endpoints(query, finding)

    async def _addresses(self, finding: Finding, study: Resource, holder: Resource) -> list[str]:
        endpoints = [await finding.resource(study, reference) for reference in references_to(holder, "endpoint")]
        return [address for endpoint in endpoints if endpoint and (address := wado_address(endpoint))]

    # --- what the server can do

    async def _capable(self) -> Server:
        """From the CapabilityStatement, asked once for all who wait and again after ten minutes."""
        if self._asking is None or (self._asking.done() and self._is_stale(self._asking)):
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        server = await joined(self._asking, self.node)
        includes = server.includes if self._has_includes else frozenset()
        # The parameter of that name looks at the series alone.
        unfit = {"modality"} if self._modality_is_above else frozenset()
        return replace(server, refused=self._refused | unfit, includes=includes)

    def _is_stale(self, asked: asyncio.Task[Server]) -> bool:
        return asked.cancelled() or asked.exception() is not None or time.monotonic() > self._ask_again

    async def _ask(self) -> Server:
        server = server_of(await self._statement(), self._version)
        if not server.parameters:
            raise Unsupported(self.node, "does not search ImagingStudy, as its CapabilityStatement has it")
        self._ask_again = time.monotonic() + _CAPABILITIES_FOR
        self._refused, self._has_includes = frozenset(), True  # a refusal may have been of one value only
        return server

    async def _statement(self) -> Any:
        document = (await self._http.get_json(self._http.url("metadata"), accept=FHIR_JSON)).document
        if not isinstance(document, dict) or document.get("resourceType") != "CapabilityStatement":
            raise NodeProtocolError(self.node, "answered with something else than a CapabilityStatement")
        return document


def _gathered(ref: Ref, found: Iterable[Location]) -> list[Location]:
    """One location where every series is at the same address, else one for each series."""
    addresses = {location.address for location in found}
    if len(addresses) == 1 and ref.series is None:
        return [Location("dicomweb", addresses.pop(), ref)]
    return list(found)
