"""What the gateway offers and where tokens come from; no token is needed to ask (PS3.18 8.9, SMART App Launch, RFC 9728)."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.edge.context import base_of
from gateway.edge.negotiation import DICOM, DICOM_JSON, FRAME_TYPES
from gateway.federation.pictures import RENDERED_TYPES
from gateway.security.discovery import protected_resource, smart_configuration

_SEARCH_LEVELS = ("/studies", "/series", "/instances", "/studies/{study}/series", "/studies/{study}/instances",
                  "/studies/{study}/series/{series}/instances")  # fmt: skip
_RETRIEVE = ("/studies/{study}", "/studies/{study}/series/{series}",
             "/studies/{study}/series/{series}/instances/{instance}")  # fmt: skip


def description(base: str) -> dict[str, object]:
    """Resources, methods and representations of the service at `base`, in the shape of a WADL application as JSON."""
    resources = [_resource(path, [_method("search", [DICOM_JSON])]) for path in _SEARCH_LEVELS]
    resources += [_resource(path, [_store()]) for path in ("/studies", "/studies/{study}")]
    for path in _RETRIEVE:
        whole = [f'multipart/related; type="{DICOM}"'] + ([DICOM] if path.endswith("{instance}") else [])
        resources.append(_resource(path, [_method("retrieve", whole)]))
        resources.append(_resource(f"{path}/metadata", [_method("retrieve-metadata", [DICOM_JSON])]))
    for path in (*_RETRIEVE, f"{_RETRIEVE[2]}/frames/{{frames}}"):
        resources.append(_resource(f"{path}/rendered", [_method("retrieve-rendered", list(RENDERED_TYPES))]))
        resources.append(_resource(f"{path}/thumbnail", [_method("retrieve-thumbnail", list(RENDERED_TYPES))]))
    frames = [f'multipart/related; type="{each}"' for each in FRAME_TYPES]
    resources.append(_resource(f"{_RETRIEVE[2]}/frames/{{frames}}", [_method("retrieve-frames", frames)]))
    resources.append(_resource(f"{_RETRIEVE[2]}/bulkdata/{{path}}", [_method("retrieve-bulkdata", frames[:1])]))
    return {"application": {"resources": {"@base": f"{base}/", "resource": resources}}}


def _resource(path: str, methods: list[dict[str, object]]) -> dict[str, object]:
    return {"@path": path.lstrip("/"), "method": methods}


def _method(identifier: str, types: list[str]) -> dict[str, object]:
    representations = [{"@mediaType": each} for each in types]
    return {"@name": "GET", "@id": identifier, "response": {"@status": "200", "representation": representations}}


def _store() -> dict[str, object]:
    taken, told = ([{"@mediaType": each}] for each in (f'multipart/related; type="{DICOM}"', DICOM_JSON))
    responses = [{"@status": status, "representation": told} for status in ("200", "202", "409")]
    return {"@name": "POST", "@id": "store-instances", "request": {"representation": taken}, "response": responses}


async def dicomweb(request: Request) -> Response:
    """The capabilities of the root that was asked."""
    node = request.path_params.get("node")
    root = f"{base_of(request)}/nodes/{node}/dicom-web" if node else f"{base_of(request)}/dicom-web"
    return Response(
        orjson.dumps(description(root)), headers={"Allow": "GET, POST, OPTIONS"}, media_type="application/json"
    )


async def smart(request: Request) -> Response:
    """`/.well-known/smart-configuration`: where tokens come from and which scopes there are. 404 on an open gateway."""
    issuer, metadata = request.app.state.settings.oidc_issuer, request.app.state.identity.metadata
    return Response(orjson.dumps(smart_configuration(issuer, metadata)), media_type="application/json")


async def resource(request: Request) -> Response:
    """`/.well-known/oauth-protected-resource`: which issuer guards this gateway. 404 on an open one."""
    issuer = request.app.state.settings.oidc_issuer
    return Response(orjson.dumps(protected_resource(base_of(request), issuer)), media_type="application/json")
