"""In which FHIR version and format an answer goes out: by the path, `_format` and Accept (FHIR R4 http 3.1.0.1.10, 3.1.0.1.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request

from gateway.edge.negotiation import accepted
from gateway.errors import NotAcceptable
from gateway.wire import fhirxml
from gateway.wire.media import MediaType, parse_media_type

_JSON = frozenset({"json", "application/fhir+json", "application/json", "application/json+fhir", "text/json"})
_XML = frozenset({"xml", "application/fhir+xml", "application/xml", "application/xml+fhir", "text/xml"})
_ANY = frozenset({"*/*", "application/*"})
FORMATS = ("json", "xml")
"""What `_format` takes, as the CapabilityStatement says it."""


@dataclass(frozen=True, slots=True)
class FhirFormat:
    """The version, '4.0' or '5.0', and whether XML is wanted rather than JSON. `is_pretty` indents JSON."""

    version: str = "4.0"
    is_xml: bool = False
    is_pretty: bool = False

    @property
    def is_r5(self) -> bool:
        return self.version == "5.0"

    @property
    def essence(self) -> str:
        return "application/fhir+xml" if self.is_xml else "application/fhir+json"

    @property
    def media_type(self) -> str:
        return f"{self.essence}; fhirVersion={self.version}"

    def encode(self, resource: dict[str, Any]) -> bytes:
        if self.is_xml:
            return fhirxml.encode(resource, is_r5=self.is_r5)
        return orjson.dumps(resource, option=orjson.OPT_INDENT_2 if self.is_pretty else None)


def negotiated(request: Request, path_version: str | None) -> FhirFormat:
    """The path's own version, else fhirVersion in `_format` or Accept, else 4.0; JSON where either may be. `_format` wins over
    Accept. Raises NotAcceptable for another version or format."""
    asked = request.query_params.get("_format", "").replace(" ", "+")  # a '+' that was not percent-encoded
    ranges = [parse_media_type(asked)] if asked else accepted(request, strict=False)
    for range_ in ranges:
        is_xml = _is_xml(range_)
        if is_xml is not None:
            return FhirFormat(_version(range_, path_version), is_xml, request.query_params.get("_pretty") == "true")
    raise NotAcceptable(
        "FHIR resources are available as application/fhir+json and application/fhir+xml",
        parameter="_format" if asked else "Accept",
    )


def _is_xml(range_: MediaType) -> bool | None:
    name = range_.essence.rstrip("/")
    if name in _JSON or name in _ANY:
        return False
    return True if name in _XML else None


def _version(range_: MediaType, path_version: str | None) -> str:
    asked = range_.parameters.get("fhirversion", "")[:3]
    if not asked:
        return path_version or "4.0"
    if asked not in ("4.0", "5.0") or (path_version and asked != path_version):
        raise NotAcceptable("fhirVersion 4.0 and 5.0 are served, each under its own path too", parameter="Accept")
    return asked


def of_error(request: Request) -> FhirFormat:
    """The format of an OperationOutcome: what was asked for, JSON where that cannot be had."""
    try:
        return negotiated(request, None)
    except NotAcceptable:
        return FhirFormat()
