"""A search on the FHIR simulator, around its matching: the request taken apart, the pages, what the server can do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl

from starlette.requests import Request

from gateway.simulators import _documents as documents
from gateway.simulators._directory import Json
from gateway.simulators._fhirsearch import PATIENT, BadValue, parameters
from gateway.simulators._imagingstudy import FHIR_VERSIONS, Shape
from gateway.simulators._mii import MII

FHIR_JSON = "application/fhir+json"
RESULT_PARAMETERS = frozenset({"_count", "_include", "_format", "_summary", "_total"})


@dataclass
class Search:
    """A search taken apart: what is to be matched, how many at a time, what else to give."""

    page_size: int
    matching: list[tuple[str, str]] = field(default_factory=list)
    include: list[str] = field(default_factory=list)
    count: int = 0
    count_only: bool = False

    def __post_init__(self) -> None:
        self.count = self.page_size

    def take(self, name: str, value: str, includes: set[str]) -> None:
        """One of the parameters that say how to answer. A server may give fewer than _count, never more."""
        if name == "_count":
            if not value.isdecimal():
                raise BadValue("_count is not a number")
            self.count, self.count_only = min(int(value), self.page_size) or 1, value == "0"
        elif name == "_include":
            source, _, target = value.partition(":")
            if source != "ImagingStudy" or target.split(":")[0] not in includes:
                raise BadValue("this _include is not supported")
            self.include.append(target.split(":")[0])
        elif name == "_summary":
            self.count_only |= value == "count"


@dataclass(frozen=True)
class Pages:
    """The result of a search, kept for its next links."""

    kind: str
    ids: list[str]
    count: int
    include: tuple[str, ...]


async def pairs(request: Request) -> list[tuple[str, str]]:
    """The parameters of the address, and of the form of a POST (FHIR http, _search)."""
    pairs = parse_qsl(request.url.query, keep_blank_values=False)
    if request.method == "POST":
        pairs += parse_qsl((await request.body()).decode(), keep_blank_values=False)
    return pairs


def any_fits(fits: Any, holder: Any, value: str) -> bool:
    """A comma is OR; a backslash keeps one that is not (FHIR search, escaping)."""
    return any(fits(holder, re.sub(r"\\([,|$\\])", r"\1", one)) for one in re.split(r"(?<!\\),", value))


def includes_of(shape: Shape) -> set[str]:
    orders = {"based-on" if shape.version == "R5" else "basedon"} if shape.orders else set()
    return {"endpoint", "patient", *(() if shape.version == "STU3" else ("subject",)), *orders}


def references(holder: Json, name: str) -> list[Json]:
    """The references that an _include name stands for."""
    if name in ("patient", "subject"):
        return [held for held in (holder.get("subject"), holder.get("patient")) if held]
    element = "endpoint" if name == "endpoint" else "basedOn"
    return cast(list[Json], holder.get(element, []))


def acceptable(accept: str, version: str) -> bool:
    """Whether JSON of this FHIR version is among what the caller takes."""
    wanted = ".".join(FHIR_VERSIONS[version].split(".")[:2])
    for media_range in accept.split(","):
        name, *given = [part.strip().lower() for part in media_range.split(";")]
        versions = [part.partition("=")[2] for part in given if part.startswith("fhirversion=")]
        if name in ("*/*", "application/*", "application/json", FHIR_JSON) and versions in ([], [wanted]):
            return True
    return False


def capability_statement(shape: Shape, url: str) -> Json:
    """What the server can do, in the words of its version."""
    study = {name: each.kind for name, each in parameters(shape).items() if "." not in name and ":" not in name}
    imaging_study = _capability("ImagingStudy", study)
    imaging_study["searchInclude"] = sorted(f"ImagingStudy:{name}" for name in includes_of(shape))
    if shape.mii:
        imaging_study["supportedProfile"] = [MII + "pr-bildgebung-bildgebungsstudie"]
    people = _capability("Patient", {name: each.kind for name, each in PATIENT.items()})
    resources = [imaging_study, people, *(_capability(kind, {}) for kind in ("Endpoint", "Organization"))]
    kinds = [*(["DiagnosticReport"] if shape.reports else []), *(["ServiceRequest"] if shape.orders else [])]
    for kind in kinds:
        resources.append(
            _capability(kind, {name: each.kind for name, each in documents.parameters(kind, shape).items()})
        )
    statement = {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "software": {"name": "FHIR simulator"},
        "implementation": {"description": "Imaging studies of a directory", "url": url},
        "fhirVersion": FHIR_VERSIONS[shape.version],
        "format": ["json"],
        "rest": [{"mode": "server", "resource": resources}],
    }
    return statement | ({"acceptUnknown": "no"} if shape.version == "STU3" else {})


def _capability(kind: str, searchable: dict[str, str]) -> Json:
    interactions = ["read", "search-type"] if searchable else ["read"]
    found: Json = {"type": kind, "interaction": [{"code": code} for code in interactions]}
    if searchable:
        found["searchParam"] = [{"name": name, "type": kind_} for name, kind_ in sorted(searchable.items())]
    return found
