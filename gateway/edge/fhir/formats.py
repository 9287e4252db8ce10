"""In which FHIR version and format an answer goes out: by the path, `_format` and Accept (FHIR R4 http 3.1.0.1.10, 3.1.0.1.11)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request

from gateway.edge.negotiation import is_refused, ranges, with_plus
from gateway.errors import NotAcceptable
from gateway.wire import fhirxml
from gateway.wire.media import MediaType, parse_media_type

_JSON = frozenset({"json", "application/fhir+json", "application/json", "application/json+fhir", "text/json"})
_XML = frozenset({"xml", "application/fhir+xml", "application/xml", "application/xml+fhir", "text/xml"})
_WILDCARDS = {"*/*": 1, "application/*": 2}
VERSIONS = ("4.0", "5.0")
"""Of FHIR, the one that is given where none is asked for first."""
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
    Accept. Raises NotAcceptable where nothing is left that is served and not refused (q=0)."""
    asked = with_plus(request.query_params.get("_format", ""))
    listed = [parse_media_type(asked)] if asked else ranges(request, strict=False)
    versions = (path_version,) if path_version else VERSIONS
    offers = [(version, is_xml) for version in versions for is_xml in (False, True)]
    for range_ in (one for one in listed if one.quality > 0):
        for version, is_xml in offers:
            closeness = partial(_closeness, version=version, is_xml=is_xml)
            if closeness(range_) and not is_refused(listed, range_, closeness):
                return FhirFormat(version, is_xml, request.query_params.get("_pretty") == "true")
    raise NotAcceptable(
        "FHIR resources are available as application/fhir+json and application/fhir+xml, in fhirVersion 4.0 and 5.0, each of "
        "which has a path of its own too",
        parameter="_format" if asked else "Accept",
    )


def _closeness(range_: MediaType, version: str, is_xml: bool) -> int:
    """How closely a range describes a format: 0 not at all, more for its own name than for another of its names or a wildcard,
    and more with a version than without."""
    asked, name = range_.parameters.get("fhirversion", ""), range_.essence.rstrip("/")
    if asked and asked != version and not asked.startswith(f"{version}."):
        return 0
    if name == FhirFormat(version, is_xml).essence:
        level = 4
    else:
        level = 3 if name in (_XML if is_xml else _JSON) else _WILDCARDS.get(name, 0)
    return level and 2 * level + bool(asked)


def of_error(request: Request) -> FhirFormat:
    """The format of an OperationOutcome: what was asked for, JSON where that cannot be had."""
    try:
        return negotiated(request, None)
    except NotAcceptable:
        return FhirFormat()
