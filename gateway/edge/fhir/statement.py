"""The CapabilityStatement: made from the tables that the routes and the searches themselves use, so that it tells the truth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from gateway import __version__
from gateway.edge.fhir import directory, documentsearch, patientkeys, patientsearch, studykeys, studyquery
from gateway.edge.fhir.formats import FORMATS
from gateway.edge.fhir.profiles import BASE, PROFILES

_CREATED = "2026-11-26"
_DEFINED = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition"
_EXPORT = {"operation": [{"name": "export", "definition": f"{_DEFINED}/export"}]}
_PATIENT_EXPORT = {"operation": [{"name": "export", "definition": f"{_DEFINED}/patient-export"}]}
_RENAMED = {"bodysite": "body-site", "basedon": "based-on"}
"""R4 spellings of parameters that R5 writes otherwise; both are understood in both."""


class _Key(Protocol):
    @property
    def type(self) -> str: ...

    @property
    def all_modifiers(self) -> list[str]: ...


def capability_statement(
    *, is_r5: bool, root: str, exports: bool, lacks: Mapping[str, str] = studykeys.UNRECORDED
) -> dict[str, Any]:
    """What this root serves, in its own version; `exports` where that is turned on. `lacks` are parameters of ImagingStudy that it
    does not, with the reason."""
    of_patient = {"searchRevInclude": list(patientsearch.REVERSE_INCLUDES), **(_PATIENT_EXPORT if exports else {})}
    rest: dict[str, Any] = {"mode": "server", "documentation": _documentation(lacks)}
    resources = [
        _resource("ImagingStudy", _study_keys(is_r5, lacks), _study_extras(is_r5)),
        _resource("Patient", patientkeys.KEYS, of_patient),
        _resource("Endpoint", directory.ENDPOINT),
        _resource("Organization", directory.ORGANIZATION),
        *(
            _resource(kind, keys, {"documentation": documentsearch.DOCUMENTATION})
            for kind, keys in documentsearch.KEYS.items()
        ),
    ]
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": _CREATED,
        "publisher": "Imaging gateway",
        "kind": "instance",
        "software": {"name": "imaging-gateway", "version": __version__},
        "implementation": {"description": "Federated imaging look-ups", "url": root},
        "fhirVersion": "5.0.0" if is_r5 else "4.0.1",
        "format": list(FORMATS),
        "rest": [{**rest, "resource": resources, **(_EXPORT if exports else {})}],
    }


def _study_keys(is_r5: bool, lacks: Collection[str]) -> dict[str, _Key]:
    """Each parameter once, as this version spells it."""
    other = {*(_RENAMED if is_r5 else _RENAMED.values()), *lacks}
    return {name: key for name, key in studykeys.KEYS.items() if name not in other}


def _study_extras(is_r5: bool) -> dict[str, Any]:
    version = "5.0" if is_r5 else "4.0"
    served = [profile.url for profile in PROFILES if version in profile.versions and profile is not BASE]
    return {"supportedProfile": served, "searchInclude": [*studyquery.INCLUDES]}


def _resource(kind: str, keys: Mapping[str, _Key], extras: Mapping[str, Any] | None = None) -> dict[str, Any]:
    resource: dict[str, Any] = {"type": kind, "interaction": [{"code": "read"}, {"code": "search-type"}]}
    resource |= {"versioning": "no-version", **(extras or {})}
    resource["searchParam"] = [_parameter(name, key) for name, key in keys.items()]
    return resource


def _parameter(name: str, key: _Key) -> dict[str, str]:
    parts = [getattr(key, "documentation", "")]
    if key.all_modifiers:
        parts.append("modifiers " + " ".join(f":{each}" for each in key.all_modifiers))
    documentation = "; ".join(filter(None, parts))
    return {"name": name, "type": key.type} | ({"documentation": documentation} if documentation else {})


def _documentation(lacks: Mapping[str, str]) -> str:
    """What is not in the table of parameters: how results are given, and what is refused with its reason."""
    results = ", ".join(studyquery.RESULTS)
    refused = "; ".join(f"{name}: {reason}" for name, reason in {**studykeys.REFUSED, **lacks}.items())
    return (
        f"ImagingStudy searches take {results} as well; every search can be POSTed to _search. Prefer: handling=lenient leaves "
        f"out what is not supported and says so; else it is refused. Not supported: {refused}."
    )
