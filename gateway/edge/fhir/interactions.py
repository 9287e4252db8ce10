"""The FHIR edge's routes, R4 and R5: search and read of each resource that is served, and the CapabilityStatement."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.edge.fhir import directory, documentsearch, patientsearch, profiles, shown, studysearch
from gateway.edge.fhir.identifiers import uid_of_id
from gateway.edge.fhir.request import Answer, FhirRequest, handler, posted
from gateway.edge.fhir.statement import capability_statement
from gateway.errors import Conflict, InvalidQuery, NotFound
from gateway.model.answer import Found
from gateway.telemetry import stage

_SEARCHES: dict[str, tuple[Answer, str]] = {
    "/ImagingStudy": (studysearch.search, "fhir-search"),
    "/Patient": (patientsearch.search, "fhir-search-patient"),
    "/Endpoint": (directory.search_endpoints, "fhir-search-endpoint"),
    "/Organization": (directory.search_organizations, "fhir-search-organization"),
    "/DiagnosticReport": (documentsearch.search("DiagnosticReport"), "fhir-search-report"),
    "/ServiceRequest": (documentsearch.search("ServiceRequest"), "fhir-search-order"),
}


def routes(version: str | None) -> list[BaseRoute]:
    """The routes of one root; `version` None serves R4 unless the Accept header asks for 5.0."""
    reads: dict[str, tuple[Answer, str]] = {
        "/metadata": (_metadata, "fhir-metadata"),
        "/ImagingStudy/{id}": (_read_study, "fhir-read"),
        "/Patient/{id}": (patientsearch.read, "fhir-read-patient"),
        "/Endpoint/{id}": (directory.read_endpoint, "fhir-read-endpoint"),
        "/Organization/{id}": (directory.read_organization, "fhir-read-organization"),
        "/DiagnosticReport/{id}": (documentsearch.read("DiagnosticReport"), "fhir-read-report"),
        "/ServiceRequest/{id}": (documentsearch.read("ServiceRequest"), "fhir-read-order"),
    }
    found: list[BaseRoute] = []
    for path, (answer, name) in _SEARCHES.items():
        endpoint = handler(version, answer)
        found.append(Route(path, endpoint, methods=["GET"], name=name))
        found.append(Route(f"{path}/_search", posted(endpoint), methods=["POST"], name=name))
    found += [
        Route(path, handler(version, answer), methods=["GET"], name=name) for path, (answer, name) in reads.items()
    ]
    return found


async def _metadata(asked: FhirRequest) -> Response:
    lacks = studysearch.lacks(asked)
    exports = bool(asked.context.settings.export_bytes)
    return asked.respond(
        capability_statement(is_r5=asked.renderer.is_r5, root=asked.root, exports=exports, lacks=lacks)
    )


async def _read_study(asked: FhirRequest) -> Response:
    identifier, context, renderer = asked.request.path_params["id"], asked.context, asked.renderer
    wanted = shown.of_query(asked.query, "ImagingStudy", is_r5=renderer.is_r5)
    named = asked.query.get("_profile")
    profile = profiles.named(named, asked.format.version) if named else asked.profile
    try:
        uid = uid_of_id(identifier)
    except InvalidQuery:
        raise NotFound("there is no ImagingStudy of that id") from None

    def choose(found: Sequence[Found]) -> Found:
        named = next((one for one in found if renderer.names(identifier, one)), None)
        if named is not None:
            return named
        if uid == identifier:
            ids = {renderer.study_id(one) for one in found}
            choices = ", ".join(f"ImagingStudy/{each}" for each in sorted(ids))
            raise Conflict(
                f"the study {uid} is held for more than one patient; read one of: {choices}", choices=tuple(ids)
            )
        raise NotFound("there is no ImagingStudy of that id")

    answer = await context.pipeline.study(context.caller, uid, context.nodes, choose)
    with stage("render"):
        resource = wanted.of(profile.of(renderer.tree(answer.items[0]), is_r5=renderer.is_r5))
    if answer.issues:
        resource = shown.tagged(resource)
    await renderer.patients.flush()
    return asked.respond_with(resource, answer.issues)
