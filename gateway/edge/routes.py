"""Every path of the gateway in one table, with the scope each one needs."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import Scope

from gateway.edge import admin, capabilities, openapi
from gateway.edge.dicomweb import qido, rendered, stow, wado, wadouri
from gateway.edge.export import operation
from gateway.edge.fhir import interactions
from gateway.model.vocabulary import Level

_FHIR_ROOTS = ("", "/fhir", "/fhir/r4", "/fhir/r5")
_STUDY, _SERIES, _INSTANCE = "/studies/{study}", "/series/{series}", "/instances/{instance}"


def dicomweb() -> list[BaseRoute]:
    """The DICOMweb service, the same below /dicom-web and below each node's own root."""
    study, series, instance = _STUDY, _STUDY + _SERIES, _STUDY + _SERIES + _INSTANCE
    search = {
        "/studies": Level.STUDY,
        "/series": Level.SERIES,
        "/instances": Level.IMAGE,
        f"{study}/series": Level.SERIES,
        f"{study}/instances": Level.IMAGE,
        f"{series}/instances": Level.IMAGE,
    }
    routes: list[BaseRoute] = [
        Route(path, qido.endpoint(level), methods=["GET"], name="search") for path, level in search.items()
    ]
    routes += [Route(path, stow.store, methods=["POST"], name="store") for path in ("/studies", study)]
    for path in (study, series, instance):
        routes.append(Route(path, wado.retrieve, methods=["GET"], name="retrieve"))
        routes.append(Route(f"{path}/metadata", wado.metadata, methods=["GET"], name="metadata"))
    for path in (study, series, instance, f"{instance}/frames/{{frames}}"):
        routes.append(Route(f"{path}/rendered", rendered.rendered, methods=["GET"], name="rendered"))
        routes.append(Route(f"{path}/thumbnail", rendered.thumbnail, methods=["GET"], name="thumbnail"))
    routes.append(Route(f"{instance}/frames/{{frames}}", wado.frames, methods=["GET"], name="frames"))
    routes.append(Route(f"{instance}/bulkdata/{{path}}", wado.bulkdata, methods=["GET"], name="bulkdata"))
    routes.append(Route("/wado", wadouri.retrieve, methods=["GET"], name="wado-uri"))
    routes.append(Route("/", capabilities.dicomweb, methods=["OPTIONS"], name="capabilities"))
    routes.append(_Options("/{anything:path}", capabilities.dicomweb, methods=["OPTIONS"], name="capabilities"))
    return routes


class _Options(Route):
    """Takes OPTIONS of any path, and leaves it to the others to say what they do not know by other methods."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, inner = super().matches(scope)
        return (Match.NONE, {}) if match is Match.PARTIAL else (match, inner)


def _fhir(version: str | None) -> list[BaseRoute]:
    return [*operation.routes(version), *interactions.routes(version)]


def table() -> list[BaseRoute]:
    """All routes."""
    return [
        Route("/", admin.page, methods=["GET"], name="page"),
        Route("/live", admin.live, methods=["GET"], name="live"),
        Route("/ready", admin.ready, methods=["GET"], name="ready"),
        Route("/metrics", admin.metrics, methods=["GET"], name="metrics"),
        Route("/nodes", admin.nodes, methods=["GET"], name="nodes"),
        Route("/openapi.json", openapi.endpoint, methods=["GET"], name="openapi"),
        *(Route(f"{root}/.well-known/smart-configuration", capabilities.smart, name="smart") for root in _FHIR_ROOTS),
        Route("/.well-known/oauth-protected-resource", capabilities.resource, name="protected-resource"),
        Mount("/nodes/{node}/dicom-web", routes=dicomweb(), name="node-dicomweb"),
        Mount("/dicom-web", routes=dicomweb(), name="dicomweb"),
        Mount("/fhir/r4", routes=_fhir("4.0"), name="fhir-r4"),
        Mount("/fhir/r5", routes=_fhir("5.0"), name="fhir-r5"),
        Mount("/fhir", routes=_fhir(None), name="fhir"),
    ]
