"""DiagnosticReport and ServiceRequest of the nodes as resources of this server, R4 and R5: built anew from what is understood.

The nodes speak STU3, R4 or R5 and are not trusted: ids, references and addresses are ours, narrative and extensions are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from gateway.edge.fhir.foreignvalues import Read, Values
from gateway.edge.fhir.identifiers import DICOM_UID, node_mark
from gateway.edge.fhir.imagingstudy import Renderer, Resource
from gateway.edge.fhir.shown import tagged
from gateway.errors import Unmappable
from gateway.model.dataset import is_uid
from gateway.model.documents import Document
from gateway.wire.fhirxml import element_names

_ID = re.compile(r"(?!\.+$)[A-Za-z0-9.-]{1,64}")  # not a step upwards in an address
_LONGEST = 55
_DEEPEST = 40
_HANDLED = frozenset({"resourceType", "id", "meta", "text", "language", "subject"})
_REPORT_STATUS = frozenset(
    {
        "registered", "partial", "preliminary", "final", "amended", "corrected", "appended", "cancelled", "entered-in-error",
        "unknown",
    }
)  # fmt: skip
_ORDER_STATUS = frozenset({"draft", "active", "on-hold", "revoked", "completed", "entered-in-error", "unknown"})
_INTENTS = frozenset(
    {
        "proposal", "plan", "directive", "order", "original-order", "reflex-order", "filler-order", "instance-order",
        "option",
    }
)  # fmt: skip
_PRIORITIES = frozenset({"routine", "urgent", "asap", "stat"})


def document_id(node: str, original: str) -> str:
    """The id here of a node's resource: 8 hex of the node id, '-' and the node's own id. One too long for that, and the address
    of one that another server has, are told by a digest, which has no way back: such a resource can be searched, not read."""
    if len(original) <= _LONGEST and "/" not in original:
        return f"{node_mark(node)}-{original}"
    return f"{node_mark(node)}.{hashlib.sha256(original.encode()).hexdigest()[:_LONGEST]}"


def original_id(node: str, identifier: str) -> str:
    """The inverse of `document_id`; '' for the id of another node's resource, or of none."""
    start = f"{node_mark(node)}-"
    original = identifier.removeprefix(start) if identifier.startswith(start) else ""
    return original if _ID.fullmatch(original) and len(original) <= _LONGEST else ""


def rendered(document: Document, renderer: Renderer) -> Resource:
    """The resource in the renderer's version, tagged SUBSETTED where anything of the original is missing.

    Raises Unmappable for one that cannot be passed on: without what its type must have, or with what changes its meaning.
    """
    given = document.resource
    if not _ID.fullmatch(document.id) or _changes_meaning(given):
        raise Unmappable(f"a {document.kind} cannot be passed on")
    values = Values()
    is_report = document.kind == "DiagnosticReport"
    found = _report(document, values, renderer) if is_report else _order(document, values, renderer)
    known = element_names(document.kind, is_r5=renderer.is_r5)
    if not found.keys() <= known:
        values.lose()
    identifier = document_id(document.node, document.address or document.id)
    resource: Resource = {"resourceType": document.kind, "id": identifier}
    labels = values.many(values.coding)(_member(given.get("meta"), "security"))
    if labels:
        resource["meta"] = {"security": labels}
    resource |= {name: value for name, value in found.items() if name in known}
    resource["subject"] = renderer.subject(document.bearer)
    return tagged(resource) if values.lost else resource


def _changes_meaning(given: Any, depth: int = 0) -> bool:
    """Whether it holds what may not be left out unread: modifier extensions, rules of its own."""
    if depth > _DEEPEST:
        return True
    if isinstance(given, list):
        return any(_changes_meaning(one, depth + 1) for one in given)
    if not isinstance(given, dict):
        return False
    if given.keys() & {"modifierExtension", "implicitRules"}:
        return True
    return any(_changes_meaning(one, depth + 1) for one in given.values())


def _read(document: Document, values: Values, reads: dict[str, Read]) -> Resource:
    """The elements that are read; whatever else the resource has is lost."""
    given = document.resource
    if not given.keys() <= reads.keys() | _HANDLED:
        values.lose()
    return {name: value for name, read in reads.items() if (value := read(given.get(name))) is not None}


def _report(document: Document, values: Values, renderer: Renderer) -> Resource:
    reads: dict[str, Read] = {
        "identifier": values.many(values.identifier),
        "basedOn": values.many(values.reference),
        "status": values.code,
        "category": values.many(values.concept),
        "code": values.concept,
        "effectiveDateTime": values.date_time,
        "effectivePeriod": values.period,
        "issued": values.instant,
        "performer": values.many(lambda one: values.reference(_actor(one))),
        "resultsInterpreter": values.many(values.reference),
        "note": values.many(values.annotation),
        "conclusion": values.text,
        "conclusionCode": values.many(values.concept),
        "codedDiagnosis": values.many(values.concept),
        "presentedForm": values.many(values.attachment),
        "imagingStudy": values.many(lambda one: _study(one, document, values)),
        "study": values.many(lambda one: _study(one, document, values)),
    }
    found = _read(document, values, reads)
    if "codedDiagnosis" in found:  # the name in STU3
        found["conclusionCode"] = found.pop("codedDiagnosis")
    studies = [*found.pop("imagingStudy", []), *found.pop("study", [])]
    if studies:
        found["study" if renderer.is_r5 else "imagingStudy"] = studies
    if found.get("status") == "modified":  # R5: a preliminary report that was changed
        found["status"] = "modified" if renderer.is_r5 else "preliminary"
        values.lost |= not renderer.is_r5
    elif found.get("status") not in _REPORT_STATUS:
        raise Unmappable("a DiagnosticReport without a status")
    if "code" not in found:
        raise Unmappable("a DiagnosticReport without a code")
    return found


def _order(document: Document, values: Values, renderer: Renderer) -> Resource:
    reads: dict[str, Read] = {
        "identifier": values.many(values.identifier),
        "basedOn": values.many(values.reference),
        "requisition": values.identifier,
        "status": values.code,
        "intent": values.code,
        "category": values.many(values.concept),
        "priority": values.code,
        "doNotPerform": values.boolean,
        "code": lambda one: values.concept(_concept(one)),
        "occurrenceDateTime": values.date_time,
        "occurrencePeriod": values.period,
        "authoredOn": values.date_time,
        "requester": values.reference,
        "performer": values.many(values.reference),
        "reasonCode": values.many(values.concept),
        "reasonReference": values.many(values.reference),
        "reason": values.many(lambda one: _reason(one, values)),
        "bodySite": values.many(values.concept),
        "note": values.many(values.annotation),
    }
    found = _read(document, values, reads)
    if found.get("status") not in _ORDER_STATUS or found.get("intent") not in _INTENTS:
        raise Unmappable("a ServiceRequest without a status or an intent")
    if document.resource.get("doNotPerform") is not None and "doNotPerform" not in found:
        raise Unmappable("a ServiceRequest that may mean its opposite")
    if found.get("priority", "routine") not in _PRIORITIES:
        del found["priority"]
        values.lose()
    _in_version(found, is_r5=renderer.is_r5)
    return found


def _in_version(order: Resource, *, is_r5: bool) -> None:
    """CodeableReferences in R5 are what CodeableConcepts and References are in R4."""
    reasons = [{"concept": one} for one in order.pop("reasonCode", [])]
    reasons += [{"reference": one} for one in order.pop("reasonReference", [])]
    reasons += order.pop("reason", [])
    if is_r5:
        order |= {"code": {"concept": order["code"]}} if "code" in order else {}
        order |= {"reason": reasons} if reasons else {}
        return
    for name, member in (("reasonCode", "concept"), ("reasonReference", "reference")):
        found = [one[member] for one in reasons if member in one]
        order |= {name: found} if found else {}


def _reason(given: Any, values: Values) -> Resource | None:
    return values.members(given, {"concept": values.concept, "reference": values.reference})


def _concept(code: Any) -> Any:
    """ServiceRequest.code as R4 has it; R5's reference to a definition is the node's own."""
    return code["concept"] if isinstance(code, dict) and "concept" in code else code


def _actor(performer: Any) -> Any:
    """DiagnosticReport.performer has been a Reference since R4."""
    return performer["actor"] if isinstance(performer, dict) and "actor" in performer else performer


def _study(given: Any, document: Document, values: Values) -> Resource | None:
    """A reference to our ImagingStudy; None where its UID is not known."""
    uid = next(_uids(given, document), "")
    if not is_uid(uid):
        values.lose()
        return None
    identifier = {"system": DICOM_UID, "value": f"urn:oid:{uid}"}
    return {"reference": f"ImagingStudy/{uid}", "type": "ImagingStudy", "identifier": identifier}


def _uids(given: Any, document: Document) -> Iterator[str]:
    resolved = document.studies.get(str(_member(given, "reference")))
    if resolved:
        yield resolved
    identifier = _member(given, "identifier")
    if _member(identifier, "system") == DICOM_UID:
        yield str(_member(identifier, "value")).removeprefix("urn:oid:")


def _member(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, dict) else None
