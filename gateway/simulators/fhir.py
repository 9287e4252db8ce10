"""A FHIR server that knows the imaging studies of a directory: ImagingStudy search and read in STU3, R4, R4B and R5."""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.simulators import _documents as documents
from gateway.simulators import _imagingstudy as write
from gateway.simulators._directory import Directory, Json
from gateway.simulators._facts import Facts, Naming
from gateway.simulators._fhirsearch import PATIENT, BadValue, parameters
from gateway.simulators._imagingstudy import FHIR_VERSIONS, KVID, Shape
from gateway.simulators._peer import Handler, Peer, PeerOptions, garbage
from gateway.simulators._searchset import (
    RESULT_PARAMETERS,
    Pages,
    Search,
    acceptable,
    any_fits,
    capability_statement,
    includes_of,
    pairs,
    references,
)

Version = Literal["STU3", "R4", "R4B", "R5"]
FHIR_JSON = "application/fhir+json"
DOCUMENTS = ("DiagnosticReport", "ServiceRequest")
IDENTIFYING = frozenset({"identifier", "study", "_id"})


@dataclass(frozen=True)
class FhirOptions(PeerOptions):
    """How the server is set up, and what it does wrong.

    `profile="mii"` writes as the German MII does: R4, kvid-10, Europe/Berlin, accession number in the order only.
    `dicomweb_url` is the address of its Endpoint; without one there is none. `patient_system` and `accession_system`
    are the identifier systems where the files name no OID; `issuer_systems` maps labels of (0010,0021) to systems.
    `time_zone` (IANA) gives `started` its offset where the files have none; without it `started` is a date.
    `service_requests` serves the orders behind the accession numbers, `reports` a report of each study; `documents` are
    reports and orders given word for word, `strange_documents` has every search of these give them all. An unknown search
    parameter is a 400, unless `lenient` or the caller asks for it. Parameters in `ignores_parameters` are not matched, and
    the self link says they were; those in `refuses_parameters` are not known. `foreign_study` answers with another study
    than the one named.
    """

    profile: Literal["", "mii"] = ""
    dicomweb_url: str | None = None
    endpoint_at: Literal["study", "series"] = "study"
    organization: str = "Simulated hospital"
    patient_system: str = ""
    accession_system: str = "https://hospital.example/accession-numbers"
    issuer_systems: Mapping[str, str] = field(default_factory=dict)
    time_zone: str = ""
    service_requests: bool = False
    reports: bool = False
    documents: Sequence[Json] = ()
    strange_documents: bool = False
    page_size: int = 20
    lenient: bool = False
    ignores_parameters: frozenset[str] = frozenset()
    refuses_parameters: frozenset[str] = frozenset()
    foreign_study: bool = False

    def healthy(self) -> FhirOptions:
        """The same server without its faults."""
        faults = {
            "delay",
            "black_hole",
            "status_500",
            "garbage_json",
            "redirect_to",
            "duplicates",
            "ignores_parameters",
            "foreign_study",
            "strange_documents",
        }
        kept = {name: value for name, value in vars(self).items() if name not in faults}
        return FhirOptions(**kept)

    @property
    def naming(self) -> Naming:
        mii = self.profile == "mii"
        zone = self.time_zone or ("Europe/Berlin" if mii else "")
        system = self.patient_system or (KVID if mii else "https://hospital.example/patients")
        return Naming(system, self.accession_system, self.issuer_systems, ZoneInfo(zone) if zone else None)


class FhirSimulator(Peer):
    """Read and search of ImagingStudy, Patient, DiagnosticReport and ServiceRequest, read of Endpoint and Organization.

    `operations` counts metadata, search_<Resource>, read_<Resource> and next_page.
    """

    path = "/fhir"

    def __init__(self, directory: Path | str, version: Version = "R4", options: FhirOptions | None = None) -> None:
        self._setup = options or FhirOptions()
        if self._setup.profile and version != "R4":
            raise ValueError("the MII profile is an R4 profile")
        super().__init__(self._setup)
        self.version = version
        self.facts = [Facts(study, self._setup.naming) for study in Directory(Path(directory)).studies]
        self._pages: OrderedDict[str, Pages] = OrderedDict()
        self._app = Starlette(routes=self._routes())

    @property
    def app(self) -> Starlette:
        return self._app

    @property
    def shape(self) -> Shape:
        options = self.options if isinstance(self.options, FhirOptions) else self._setup
        return Shape(
            version=self.version,
            profile=options.profile,
            dicomweb_url=options.dicomweb_url,
            endpoint_at=options.endpoint_at,
            organization=options.organization,
            service_requests=options.service_requests and self.version != "STU3",
            reports=options.reports or bool(options.documents),
        )

    def _routes(self) -> list[Route]:
        table: list[tuple[str, str, Handler]] = [
            ("metadata", "/metadata", self._metadata),
            ("next_page", "", self._next_page),
            ("search_ImagingStudy", "/ImagingStudy", self._search_studies),
            ("search_Patient", "/Patient", self._search_patients),
        ]
        for kind in DOCUMENTS:
            table.append((f"search_{kind}", f"/{kind}", partial(self._search_documents, kind)))
        for kind in ("ImagingStudy", "Patient", "Endpoint", "Organization", *DOCUMENTS):
            table.append((f"read_{kind}", f"/{kind}/{{id}}", partial(self._read, kind)))
        gets = [
            Route(self.path + where, self._served(operation, handler), methods=["GET"])
            for operation, where, handler in table
        ]
        posts = [
            Route(f"{self.path}/{kind}/_search", self._served(f"search_{kind}", handler), methods=["POST"])
            for kind, handler in (("ImagingStudy", self._search_studies), ("Patient", self._search_patients))
        ]
        return [*posts, *gets]

    def _served(self, operation: str, handler: Handler) -> Handler:
        async def negotiated(request: Request) -> Response:
            if not acceptable(request.headers.get("accept", "*/*"), self.version):
                return self._outcome(406, "not-supported", "only application/fhir+json of this version is written")
            if _options(request).garbage_json:
                return garbage(FHIR_JSON)
            return await handler(request)

        return self.counted(operation, negotiated, public=operation == "metadata")

    # -- read

    async def _read(self, kind: str, request: Request) -> Response:
        wanted = request.path_params["id"]
        if kind == "ImagingStudy" and _options(request).foreign_study:
            wanted = next((facts.id for facts in self.facts if facts.id != wanted), wanted)
        found = self._resource(kind, wanted)
        return self._json(found) if found else self._outcome(404, "not-found", f"no {kind} with this id")

    def _resource(self, kind: str, id_: str) -> Json | None:
        shape = self.shape
        if kind == "ImagingStudy":
            return next((write.imaging_study(facts, shape) for facts in self.facts if facts.id == id_), None)
        if kind == "Patient":
            return next((write.patient(facts.patient, shape) for facts in self.facts if facts.patient.id == id_), None)
        if kind in DOCUMENTS:
            return next((one for one in self._documents(kind) if one["id"] == id_), None)
        if kind == "Endpoint" and id_ == "pacs" and shape.dicomweb_url:
            return write.endpoint(shape)
        return write.organization(shape) if (kind, id_) == ("Organization", "hospital") else None

    # -- search

    async def _search_studies(self, request: Request) -> Response:
        known = {name: parameter.fits for name, parameter in parameters(self.shape).items()}
        try:
            search = await self._understood(request, set(known))
            named = [
                (name, value) for name, value in search.matching if name not in _options(request).ignores_parameters
            ]
            found = [facts for facts in self.facts if all(any_fits(known[name], facts, value) for name, value in named)]
        except BadValue as bad:
            return self._outcome(400, "invalid", str(bad))
        if _options(request).foreign_study and IDENTIFYING & {name for name, _ in named}:
            found = [facts for facts in self.facts if facts not in found][:1]
        ids = [facts.id for facts in found for _ in range(1 + _options(request).duplicates)]
        return self._first_page("ImagingStudy", ids, search)

    async def _search_patients(self, request: Request) -> Response:
        try:
            search = await self._understood(request, set(PATIENT))
            people = {facts.patient.id: facts.patient for facts in self.facts}
            found = [
                who
                for who in people.values()
                if all(any_fits(PATIENT[name].fits, who, value) for name, value in search.matching)
            ]
        except BadValue as bad:
            return self._outcome(400, "invalid", str(bad))
        return self._first_page("Patient", [who.id for who in found], search)

    def _documents(self, kind: str) -> list[Json]:
        """The reports or orders, each once: one order may be behind several studies."""
        options = self.options if isinstance(self.options, FhirOptions) else self._setup
        found = [one for one in options.documents if one["resourceType"] == kind]
        if kind == "ServiceRequest" and self.shape.orders:
            found += [write.service_request(facts, self.shape) for facts in self.facts if facts.request_id]
        elif kind == "DiagnosticReport" and options.reports:
            found += [documents.diagnostic_report(facts, self.shape) for facts in self.facts]
        return list({one["id"]: one for one in reversed(found)}.values())[::-1]

    async def _search_documents(self, kind: str, request: Request) -> Response:
        known = documents.parameters(kind, self.shape) | documents.modified(self.shape)
        people = {facts.patient.id: facts.patient for facts in self.facts}
        try:
            search = await self._understood(request, set(known))
        except BadValue as bad:
            return self._outcome(400, "invalid", str(bad))
        options = _options(request)
        named = [] if options.strange_documents else search.matching

        def answers(one: Json) -> bool:
            return all(any_fits(lambda held, v, n=n: known[n].fits(held, v, people), one, value) for n, value in named)

        return self._first_page(kind, [one["id"] for one in self._documents(kind) if answers(one)], search)

    async def _understood(self, request: Request, known: set[str]) -> Search:
        """Raises BadValue for a parameter that is not known, unless it may be left out."""
        options, search = _options(request), Search(page_size=_options(request).page_size)
        lenient = options.lenient or "handling=lenient" in request.headers.get("prefer", "")
        for name, value in await pairs(request):
            if name in RESULT_PARAMETERS:
                search.take(name, value, includes_of(self.shape))
            elif name in known - options.refuses_parameters:
                search.matching.append((name, value))
            elif not lenient:
                raise BadValue(f"search parameter {name} is not supported")
        return search

    def _first_page(self, kind: str, ids: list[str], search: Search) -> Response:
        used = [*search.matching, *(("_include", f"ImagingStudy:{name}") for name in search.include)]
        address = f"{self.url}/{kind}" + (f"?{urlencode(used)}" if used else "")
        if search.count_only:
            return self._json(
                {"resourceType": "Bundle", "type": "searchset", "total": len(ids), "link": [_link("self", address)]}
            )
        pages = Pages(kind, ids, search.count, tuple(search.include))
        token = secrets.token_urlsafe(16)
        self._pages[token] = pages
        while len(self._pages) > 1000:
            self._pages.popitem(last=False)
        return self._page(pages, token, 0, address)

    async def _next_page(self, request: Request) -> Response:
        token, at = request.query_params.get("_getpages", ""), request.query_params.get("_getpagesoffset", "")
        if token not in self._pages or not at.isdecimal():
            return self._outcome(410, "expired" if self.version == "STU3" else "not-found", "no such page")
        return self._page(self._pages[token], token, int(at), f"{self.url}?{request.url.query}")

    def _page(self, pages: Pages, token: str, at: int, address: str) -> Response:
        until = at + pages.count
        links = [_link("self", address)]
        if until < len(pages.ids):
            links.append(_link("next", f"{self.url}?_getpages={token}&_getpagesoffset={until}"))
        shown = [found for id_ in pages.ids[at:until] if (found := self._resource(pages.kind, id_))]
        entries = [self._entry(one, "match") for one in shown]
        entries += [self._entry(one, "include") for one in self._included(shown, pages.include)]
        bundle = {"resourceType": "Bundle", "type": "searchset", "total": len(pages.ids), "link": links}
        return self._json(bundle | ({"entry": entries} if entries else {}))

    def _included(self, shown: list[Json], include: tuple[str, ...]) -> list[Json]:
        """What the studies of the page refer to, each once."""
        addresses = {
            reference["reference"]: None
            for study in shown
            for name in include
            for holder in (study, *(study.get("series", []) if name == "endpoint" else ()))
            for reference in references(holder, name)
        }
        found = (self._resource(*address.split("/")) for address in addresses)
        return [one for one in found if one]

    def _entry(self, resource: Json, mode: str) -> Json:
        address = f"{self.url}/{resource['resourceType']}/{resource['id']}"
        return {"fullUrl": address, "resource": resource, "search": {"mode": mode}}

    async def _metadata(self, request: Request) -> Response:
        return self._json(capability_statement(self.shape, self.url))

    def _outcome(self, status: int, code: str, text: str) -> Response:
        issue = {"severity": "error", "code": code, "diagnostics": text}
        return self._json({"resourceType": "OperationOutcome", "issue": [issue]}, status)

    def _json(self, body: Json, status: int = 200) -> Response:
        version = ".".join(FHIR_VERSIONS[self.version].split(".")[:2])
        return Response(json.dumps(body, ensure_ascii=False), status, media_type=f"{FHIR_JSON}; fhirVersion={version}")


def _options(request: Request) -> FhirOptions:
    return cast(FhirOptions, request.state.options)


def _link(relation: str, address: str) -> Json:
    return {"relation": relation, "url": address}
