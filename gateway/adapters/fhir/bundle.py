"""What a FHIR server answers: searchset Bundles taken apart, and the resources that a study refers to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urljoin

from gateway.errors import NodeProtocolError
from gateway.model.query import Ref
from gateway.wire.fhirjson import Resource

_DICOM_UID = "urn:dicom:uid"
_WADO_RS = "dicom-wado-rs"
_USABLE = frozenset({None, "active", "test"})
_RELATIVE = re.compile(r"[A-Z][A-Za-z]{1,63}/[A-Za-z0-9.-]{1,64}")
_SERVED = re.compile(r"(https?://.+/)[A-Z][A-Za-z]{1,63}/[A-Za-z0-9.-]{1,64}(?:/_history/[^/]+)?")
_ERRORS = frozenset({"fatal", "error"})
_PASSING = frozenset({"transient", "timeout", "throttled", "lock-error", "no-store", "exception", "incomplete"})
_OF_GAPS = _PASSING | {"too-costly", "too-long", "forbidden", "security", "suppressed"}
_HISTORY = re.compile(r"/_history/[^/]*$")


class Bundle:
    """One page of a search of the server at `base_url`. Raises NodeProtocolError for anything but a searchset of resources.

    A server may know itself by another address, and may pass on what others have: a relative reference in a resource of those
    is made absolute, so that it names theirs (FHIR R4, 2.36.4.1). `says_partial`: it tells itself that something is missing.
    `own_base` is the address that it has by its own word, '' without that;
    `total` is how many matches it says that the whole search has, 0 where it does not.
    """

    def __init__(self, node: str, document: Any, base_url: str) -> None:
        if not _is_resource(document, "Bundle") or document.get("type") != "searchset":
            raise NodeProtocolError(node, "answered a search with something else than a searchset Bundle")
        entries, links = document.get("entry") or [], document.get("link") or []
        if not _are_objects(entries) or not _are_objects(links):
            raise NodeProtocolError(node, "answered a search with a malformed Bundle")
        self._links = {str(link.get("relation")): link.get("url") for link in links}
        self.studies: list[Resource] = []
        self.others: list[tuple[str, Resource]] = []
        self.says_partial = "next" in self._links and not self.link("next")  # a page that nobody can ask for
        total = document.get("total")
        self.total = total if isinstance(total, int) else 0
        full_urls = [str(entry.get("fullUrl") or "") for entry in entries]
        bases = list(map(_base_of, full_urls))
        own = _own_base(bases, base_url.rstrip("/") + "/", self.link("self"))
        self.own_base = own if _lies_below(self.link("self"), own) else ""
        self._foreign: dict[int, str] = {}
        for entry, full_url, base in zip(entries, full_urls, bases, strict=True):
            resource = entry.get("resource")
            if not _is_resource(resource):
                raise NodeProtocolError(node, "answered a search with an entry that is no resource")
            if base not in ("", own):
                _make_absolute(resource, base)
                self._foreign[id(resource)] = full_url
            if resource["resourceType"] == "ImagingStudy":
                self.studies.append(resource)
            elif resource["resourceType"] == "OperationOutcome":
                self.says_partial = self.says_partial or _tells_of_a_gap(resource)
            else:
                self.others.append((full_url, resource))

    def is_own(self, resource: Resource) -> bool:
        """Whether it is the server's, as far as the address in its entry says."""
        return not self.address_of(resource)

    def address_of(self, resource: Resource) -> str:
        """Where another server has it; '' for the server's own."""
        return self._foreign.get(id(resource), "")

    def name_of(self, resource: Resource) -> str:
        """What it is told apart by: its id, its address where another server has it; '' where it has no id."""
        name = str(resource.get("id") or "")
        return (self.address_of(resource) or name) if name else ""

    def count_of(self, kind: str) -> int:
        """How many resources of a type it holds."""
        if kind == "ImagingStudy":
            return len(self.studies)
        return sum(resource["resourceType"] == kind for _, resource in self.others)

    def link(self, relation: str) -> str:
        found = self._links.get(relation)
        return found if isinstance(found, str) else ""


def _own_base(bases: Sequence[str], configured: str, itself: str) -> str:
    """The address that the server has in its own entries: the one that it was asked at, or that its self link lies below. Without
    such a link, that of the first entry."""
    if configured in bases:
        return configured
    others = [base for base in bases if base]
    if itself.startswith(("http://", "https://")):
        others = [base for base in others if _lies_below(itself, base)]
    return others[0] if others else configured


def _lies_below(url: str, base: str) -> bool:
    """Whatever their schemes: a proxy may have taken TLS away."""
    place, below = (one.partition("?")[0].partition("://")[2] for one in (url, base))
    return bool(below) and f"{place}/".startswith(below)


def _base_of(full_url: str) -> str:
    served = _SERVED.fullmatch(full_url)
    return served[1] if served else ""


def _make_absolute(held: Any, base: str) -> None:
    """In place, wherever a reference stands, however deep."""
    open_ = [held]
    while open_:
        one = open_.pop()
        if isinstance(one, list):
            open_ += one
        elif isinstance(one, dict):
            reference = one.get("reference")
            if isinstance(reference, str) and _RELATIVE.fullmatch(_HISTORY.sub("", reference)):
                one["reference"] = base + reference
            open_ += one.values()


def _tells_of_a_gap(outcome: Resource) -> bool:
    """An error beside results, or a warning of those that mean that some are missing; not that of a parameter passed over."""
    issues = outcome.get("issue")
    told = [one for one in issues if isinstance(one, dict)] if isinstance(issues, list) else []
    return any(
        one.get("severity") in _ERRORS or (one.get("severity") == "warning" and one.get("code") in _OF_GAPS)
        for one in told
    )


def _is_resource(document: Any, kind: str = "") -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("resourceType"), str):
        return False
    return not kind or document["resourceType"] == kind


def _are_objects(listed: Any) -> bool:
    return isinstance(listed, list) and all(isinstance(one, dict) for one in listed)


class References:
    """The resources that are known by the references to them: 'Patient/1', or their absolute address."""

    def __init__(self, base_url: str) -> None:
        self._base = base_url.rstrip("/") + "/"
        self._also = self._base
        self._known: dict[str, Resource | None] = {}

    def lies_also_at(self, base: str) -> None:
        """The server knows itself by another address, too: its resources are the same."""
        self._also = base or self._also

    def add(self, resource: Resource, full_url: str = "", *, is_own: bool = True) -> None:
        """By its id where it `is_own` of the server, and by its address: another server may have another one of that id."""
        if is_own:
            self._known[f"{resource['resourceType']}/{resource.get('id')}"] = resource
        if full_url:
            self._known[self._plain(full_url)] = resource

    def settle(self, reference: str, resource: Resource | None) -> None:
        """What reading a reference gave; None is remembered as well."""
        self._known[self._plain(reference)] = resource

    def resolve(self, reference: str) -> Resource | None:
        return self._known.get(self._plain(reference))

    def is_open(self, reference: str) -> bool:
        """Whether it names a resource of its own that has not been looked for yet."""
        plain = self._plain(reference)
        is_address = plain.startswith(("http://", "https://")) or _RELATIVE.fullmatch(plain)
        return bool(is_address) and plain not in self._known

    def address(self, reference: str) -> str:
        return urljoin(self._base, self._plain(reference))

    def _plain(self, reference: str) -> str:
        plain = _HISTORY.sub("", reference).removeprefix(self._base)
        return plain.removeprefix(self._also)


def is_named(document: Any, reference: str) -> bool:
    """Whether it is the resource that a reference names by its type and id."""
    kind, _, identifier = _HISTORY.sub("", reference).rpartition("/")
    return _is_resource(document, kind.rpartition("/")[2]) and document.get("id") == identifier


def references_to(holder: Resource, element: str) -> Iterator[str]:
    """The texts of the References at an element, one or a list."""
    held = holder.get(element)
    for one in held if isinstance(held, list) else [held]:
        if isinstance(one, dict) and isinstance(one.get("reference"), str):
            yield one["reference"]


def contained(study: Resource, reference: str) -> Resource | None:
    inside = study.get("contained")
    held = inside if isinstance(inside, list) else []
    return next((one for one in held if isinstance(one, dict) and one.get("id") == reference[1:]), None)


def study_uid(study: Resource) -> str:
    """The StudyInstanceUID: an identifier since R4, an element of its own in STU3."""
    identifiers = study.get("identifier")
    for one in identifiers if isinstance(identifiers, list) else []:
        if isinstance(one, dict) and one.get("system") == _DICOM_UID:
            return str(one.get("value") or "").removeprefix("urn:oid:")
    return str(study.get("uid") or "").removeprefix("urn:oid:")


def wado_address(endpoint: Resource) -> str:
    """The DICOMweb service root of an Endpoint in use; '' for other kinds. Some name a study or series below it."""
    kinds = endpoint.get("connectionType")
    codings = [coding for kind in (kinds if isinstance(kinds, list) else [kinds]) for coding in _codings(kind)]
    address = endpoint.get("address")
    if _WADO_RS not in codings or not isinstance(address, str) or endpoint.get("status") not in _USABLE:
        return ""
    return address.partition("/studies/")[0].rstrip("/")


def _codings(kind: Any) -> Iterable[Any]:
    """The codes of a Coding (STU3, R4), or of a CodeableConcept (R5)."""
    if not isinstance(kind, dict):
        return []
    coding = kind.get("coding")
    listed = coding if isinstance(coding, list) and coding else [kind]
    return [one.get("code") for one in listed if isinstance(one, dict)]


def holders(study: Resource, ref: Ref) -> Iterator[tuple[Ref, Resource]]:
    """What may carry endpoints for `ref`: its study, else each series with the part of `ref` that lies in it."""
    yield ref, study
    series = study.get("series")
    for one in series if isinstance(series, list) else []:
        uid = str(one.get("uid") or "").removeprefix("urn:oid:") if isinstance(one, dict) else ""
        if uid and ref.series in (None, uid):
            yield Ref(ref.study, uid, ref.instance), one


def says_modality_above(study: Resource) -> bool:
    """Whether a study says a modality, under the name of its version, that none of its series says."""
    above = _modalities(study.get("modality")) | _modalities(study.get("modalityList"))
    series = study.get("series")
    listed = [one.get("modality") for one in series if isinstance(one, dict)] if isinstance(series, list) else []
    return bool(above) and not above.issubset(code for one in listed for code in _modalities(one))


def _modalities(held: Any) -> set[str]:
    kinds = held if isinstance(held, list) else [held]
    return {code for kind in kinds for code in _codings(kind) if isinstance(code, str)}
