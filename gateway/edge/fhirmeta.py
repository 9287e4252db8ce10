"""The CapabilityStatement: made from the tables that the routes and the search itself use, so that it tells the truth."""

from __future__ import annotations

from typing import Any

from gateway import __version__
from gateway.edge.fhirsearch import TYPES

_CREATED = "2026-11-23"
_EXPORT = [{"name": "export", "definition": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export"}]
_DOCUMENTATION = {
    "identifier": "urn:dicom:uid|urn:oid:<StudyInstanceUID>, or an accession number with or without its issuer's system",
    "started": "prefixes eq ne gt lt ge le sa eb ap; compared with the study's own offset",
    "bodysite": "a SNOMED CT concept or a DICOM Body Part Examined term; R5 clients may say body-site",
    "endpoint": "Endpoint/<node id>",
    "patient": "Patient/<id>; patient.identifier=<system>|<value> finds by business identifier",
}


def capability_statement(*, is_r5: bool, root: str) -> dict[str, Any]:
    """What this root serves, in its own version."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": _CREATED,
        "publisher": "Imaging gateway",
        "kind": "instance",
        "software": {"name": "imaging-gateway", "version": __version__},
        "implementation": {"description": "Federated imaging look-ups", "url": root},
        "fhirVersion": "5.0.0" if is_r5 else "4.0.1",
        "format": ["json"],
        "rest": [{"mode": "server", "resource": [_imaging_study(is_r5), *_readable()], "operation": _EXPORT}],
    }


def _imaging_study(is_r5: bool) -> dict[str, Any]:
    parameters = [
        _parameter("body-site" if is_r5 and name == "bodysite" else name, type_) for name, type_ in TYPES.items()
    ]
    return {
        "type": "ImagingStudy",
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "no-version",
        "searchInclude": ["ImagingStudy:endpoint", "ImagingStudy:patient", "ImagingStudy:subject"],
        "searchParam": parameters,
    }


def _parameter(name: str, type_: str) -> dict[str, str]:
    documentation = _DOCUMENTATION.get("bodysite" if name == "body-site" else name)
    return {"name": name, "type": type_} | ({"documentation": documentation} if documentation else {})


def _readable() -> list[dict[str, Any]]:
    return [{"type": each, "interaction": [{"code": "read"}]} for each in ("Patient", "Endpoint", "Organization")]
