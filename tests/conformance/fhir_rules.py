"""Rules of FHIR that fhir.resources does not hold R5 bodies to: bindings, ids, reference targets, emptiness, primitive types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_KINDS = re.compile(r"[A-Z][A-Za-z]+")
# Required bindings (http://hl7.org/fhir/R5): by the element's path, with '*' for whatever holds it.
_BINDINGS = {
    ("ImagingStudy", "status"): {"registered", "available", "cancelled", "entered-in-error", "unknown", "inactive"},
    ("Endpoint", "status"): {"active", "limited", "suspended", "error", "off", "entered-in-error"},
    ("Patient", "gender"): {"male", "female", "other", "unknown"},
    ("Bundle", "type"): {"searchset"},
    ("*", "use"): {"usual", "official", "temp", "secondary", "old", "nickname", "anonymous", "maiden"},
    ("search", "mode"): {"match", "include", "outcome"},
    ("issue", "severity"): {"fatal", "error", "warning", "information", "success"},
}
_TARGETS = {
    ("ImagingStudy", "subject"): {"Patient", "Device", "Group"},
    ("ImagingStudy", "referrer"): {"Practitioner", "PractitionerRole"},
    ("ImagingStudy", "basedOn"): {"CarePlan", "ServiceRequest", "Appointment", "AppointmentResponse", "Task"},
    ("ImagingStudy", "endpoint"): {"Endpoint"},
    ("ImagingStudy", "location"): {"Location"},
    ("Endpoint", "managingOrganization"): {"Organization"},
    ("Organization", "endpoint"): {"Endpoint"},
}
_WHOLE_NUMBERS = frozenset({"numberOfSeries", "numberOfInstances", "number", "total"})
_URIS = frozenset({"system", "url", "fullUrl"})


def faults(resource: Any, holder: str = "") -> list[str]:
    """What is wrong, each as 'path: rule'; [] for nothing."""
    return list(_resource(resource, ""))


def _resource(resource: Any, path: str) -> Iterator[str]:
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    if not isinstance(kind, str) or not _KINDS.fullmatch(kind):
        yield f"{path}: no resource without its type"
        return
    yield from _element(resource, path or kind, kind)


def _element(element: dict[str, Any], path: str, holder: str) -> Iterator[str]:
    if not element:
        yield f"{path}: an element has a value or children"
    for name, value in element.items():
        yield from _member(name, value, f"{path}.{name}", holder)
    if "url" in element and "system" not in element and path.rpartition(".")[2].startswith("extension"):
        has_value = any(name.startswith("value") for name in element)
        if has_value == ("extension" in element):
            yield f"{path}: an extension has a value or extensions, not both"


def _member(name: str, value: Any, path: str, holder: str) -> Iterator[str]:
    if value is None or value in ("", [], {}):
        yield f"{path}: what is empty is left out"
        return
    for one in value if isinstance(value, list) else [value]:
        if name == "contained" or (name in ("resource", "outcome") and holder in ("entry", "response")):
            yield from _resource(one, path)
        elif isinstance(one, dict):
            yield from _target(name, one, path, holder)
            yield from _element(one, path, name)
        elif one is None and not name.startswith("_"):
            yield f"{path}: null stands only beside an extension"
        else:
            yield from _primitive(name, one, path, holder)


def _target(name: str, reference: dict[str, Any], path: str, holder: str) -> Iterator[str]:
    allowed = _TARGETS.get((holder, name))
    named = [str(reference.get("reference", "")).rpartition("/")[0].rpartition("/")[2], str(reference.get("type", ""))]
    if allowed and not {each for each in named if each} <= allowed:
        yield f"{path}: not a reference to {' or '.join(sorted(allowed))}"


def _primitive(name: str, value: Any, path: str, holder: str) -> Iterator[str]:
    allowed = _BINDINGS.get((holder, name)) or _BINDINGS.get(("*", name))
    if allowed and value not in allowed:
        yield f"{path}: a code of the required binding"
    if name == "id" and not (isinstance(value, str) and _ID.fullmatch(value)):
        yield f"{path}: an id has 1 to 64 letters, digits, '-' and '.'"
    if name in _WHOLE_NUMBERS and (isinstance(value, bool) or not isinstance(value, int)):
        yield f"{path}: a whole number"
    if name in _URIS and re.search(r"\s", str(value)):
        yield f"{path}: a URI has no white space"
    if name == "language" and not re.fullmatch(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*", str(value)):
        yield f"{path}: a language tag"
