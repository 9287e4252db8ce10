"""DiagnosticReport and ServiceRequest: search and read, at the nodes that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from gateway.edge.fhir import listing, patientkeys, shown
from gateway.edge.fhir.criteria import Criteria
from gateway.edge.fhir.documents import original_id, rendered
from gateway.edge.fhir.identifiers import uid_of_id
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.periods import Period, compare, compare_span
from gateway.edge.fhir.request import Answer, FhirRequest
from gateway.edge.fhir.searchgrammar import Name, NotSupported, plain, reference, token
from gateway.errors import InvalidQuery, NotFound, Unmappable
from gateway.model.answer import Answer as Given
from gateway.model.answer import Found, Issue
from gateway.model.documents import Document, DocumentSearch
from gateway.model.vocabulary import ISSUER, PATIENT_ID

Test = Callable[[Resource], bool]


@dataclass(frozen=True, slots=True)
class Key:
    """One search parameter: its FHIR type, the elements that it looks at, and what is said of it."""

    type: str
    elements: tuple[str, ...] = ()
    documentation: str = ""
    modifiers: tuple[str, ...] = ()

    @property
    def all_modifiers(self) -> list[str]:
        """For the CapabilityStatement."""
        return list(self.modifiers)


_PATIENT = Key("reference", documentation="an id that was given out here", modifiers=("identifier",))
_PATIENT_IDENTIFIER = Key("token", documentation="system|value; a bare value that two issuers use is refused with 409")
_COMMON = {
    "_id": Key("token", ("id",)),
    "identifier": Key("token", ("identifier",)),
    "patient": _PATIENT,
    "subject": _PATIENT,
    "patient.identifier": _PATIENT_IDENTIFIER,
    "subject.identifier": _PATIENT_IDENTIFIER,
    "status": Key("token", ("status",)),
    "category": Key("token", ("category",)),
    "code": Key("token", ("code",)),
}
KEYS = {
    "DiagnosticReport": {
        **_COMMON,
        "date": Key("date", ("effectiveDateTime", "effectivePeriod")),
        "issued": Key("date", ("issued",)),
        "study": Key("reference", ("imagingStudy", "study"), "ImagingStudy/<StudyInstanceUID>; in R4 as well"),
    },
    "ServiceRequest": {
        **_COMMON,
        "authored": Key("date", ("authoredOn",)),
        "intent": Key("token", ("intent",)),
        "priority": Key("token", ("priority",)),
    },
}
DOCUMENTATION = (
    "Asked of FHIR nodes only. A search names a patient, an identifier, an _id or a study. What is not surely of one patient is "
    "left out, and named; so are narrative, extensions and the nodes' own references: the result is then tagged SUBSETTED."
)


@dataclass(slots=True)
class _Asked:
    """What one search asks: whose, by what the nodes find it, and what is decided on the results."""

    criteria: Criteria
    tests: list[Test] = field(default_factory=list)
    identifiers: tuple[str, ...] = ()
    study: str = ""
    ids: frozenset[str] | None = None

    def is_theirs(self, found: Found) -> bool:
        """Whether a patient is the one asked for: by (issuer, id), or by a bare id, which the federation sees to."""
        matches = self.criteria.matches
        if not any(match.path == (ISSUER,) for match in matches):
            wanted = next((match.values for match in matches if match.path == (PATIENT_ID,)), ())
            if wanted and not any(key.id in wanted for key in found.known_as):
                return False
        return self.criteria.accepts(found)


def search(kind: str) -> Answer:
    """By patient, identifier, study or id; without any of them it is refused, since it would list everybody's."""

    async def answer(asked: FhirRequest) -> Response:
        context = asked.context
        context.pipeline.require("search", context.caller, context.nodes, kind, "s")
        wanted = _Asked(Criteria(asked.renderer))

        async def add_key(name: Name, text: str, values: list[str]) -> None:
            key = KEYS[kind].get(name.key)
            if key is None or (name.type and name.type != "Patient"):
                raise listing.unsupported(kind, text)
            if values:
                await _add(wanted, key, name, text, values)

        asked_for = await listing.parse(asked, kind, add_key)
        is_of_patient = bool(wanted.criteria.matches or wanted.criteria.impossible)
        if not (is_of_patient or wanted.identifiers or wanted.study or wanted.ids is not None):
            names = "patient, patient.identifier, identifier, _id" + (", study" if "study" in KEYS[kind] else "")
            raise InvalidQuery(f"a {kind} search needs one of {names}", parameter="patient")
        wanted.criteria.check_repeated({})
        given: Given[Document] = Given()
        if not wanted.criteria.impossible:
            given = await _ask(asked, kind, wanted, is_of_patient=is_of_patient)
        issues = [*given.issues, *(Issue("", NotFound.code, text) for text in wanted.criteria.unknown)]
        resources = [one for one in _rendered(asked, given, issues) if all(test(one) for test in wanted.tests)]
        response = listing.respond(asked, asked_for, listing.paged(asked, asked_for, resources), issues)
        await asked.renderer.patients.flush()
        return response

    return answer


async def _ask(asked: FhirRequest, kind: str, wanted: _Asked, *, is_of_patient: bool) -> Given[Document]:
    context = asked.context
    ids: dict[str, tuple[str, ...]] = {}
    if wanted.ids is not None:
        ids = _by_node(asked, wanted.ids)
        if not ids:  # none that was given out here
            return Given()
    is_theirs = wanted.is_theirs if is_of_patient else None
    search_ = DocumentSearch(kind, wanted.criteria.query, is_theirs, wanted.identifiers, wanted.study, ids)
    return await context.pipeline.documents(context.caller, search_, context.nodes, permission="s")


def _by_node(asked: FhirRequest, ids: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """The nodes' own ids behind ids of ours, by node."""
    context = asked.context
    found = {
        node: tuple(original for one in sorted(ids) if (original := original_id(node, one)))
        for node in context.pipeline.nodes_of(context.caller, context.nodes)
    }
    return {node: originals for node, originals in found.items() if originals}


def _rendered(asked: FhirRequest, given: Given[Document], issues: list[Issue]) -> Iterator[Resource]:
    """The documents as resources; one that cannot be is named."""
    unfit: dict[str, int] = {}
    for document in given.items:
        try:
            yield rendered(document, asked.renderer)
        except Unmappable:
            unfit[document.node] = unfit.get(document.node, 0) + 1
    for node, count in unfit.items():
        issues.append(
            Issue(node, Unmappable.code, f"node {node}: gave {count} resources that cannot be passed on, left out")
        )


def read(kind: str) -> Answer:
    """By an id that was given out here. Raises NotFound, the node's error, Unmappable for one that is not surely a patient's."""

    async def answer(asked: FhirRequest) -> Response:
        context, identifier = asked.context, asked.request.path_params["id"]
        context.pipeline.require("read", context.caller, context.nodes, kind, "r")
        wanted = shown.of_query(asked.query, kind, is_r5=asked.renderer.is_r5)
        ids = _by_node(asked, frozenset({identifier}))
        if not ids:
            raise NotFound(f"there is no {kind} of that id; ids are given out by searches")
        given = await context.pipeline.documents(
            context.caller, DocumentSearch(kind, ids=ids), context.nodes, permission="r"
        )
        issues = list(given.issues)
        found = [one for one in _rendered(asked, given, issues) if one["id"] == identifier]
        if not found and issues:
            raise Unmappable(issues[0].text)
        if not found:
            raise NotFound(f"there is no {kind} of that id")
        response = asked.respond_with(wanted.of(found[0]), issues)
        await asked.renderer.patients.flush()
        return response

    return answer


# --- parameters


async def _add(wanted: _Asked, key: Key, name: Name, text: str, values: list[str]) -> None:
    """One parameter. Raises InvalidQuery naming it, NotSupported for a modifier that it has not."""
    if name.modifier and name.modifier not in key.modifiers:
        raise NotSupported(f"{name.key} has no modifier :{name.modifier} here", parameter=text)
    if name.chain or name.modifier == "identifier":
        await patientkeys.identifier(wanted.criteria, values, "")
    elif key is _PATIENT:
        await patientkeys.references(wanted.criteria, values, "", name.base)
    elif key.type == "date":
        wanted.tests.append(_date(key, [Period.parse(plain(value), name.base) for value in values]))
    elif name.base == "study":
        _add_study(wanted, values)
    else:
        tokens = [token(value) for value in values]
        if name.base == "_id":
            wanted.ids = frozenset(value for _, value in tokens)
        elif name.base == "identifier":
            if not all(value for _, value in tokens):
                raise InvalidQuery("identifier needs a value", parameter="identifier")
            wanted.identifiers = tuple(dict.fromkeys(values))
        wanted.tests.append(_tokens(key, tokens))


def _add_study(wanted: _Asked, values: list[str]) -> None:
    if len(values) != 1:
        raise InvalidQuery("study takes one ImagingStudy", parameter="study")
    identifier = reference(values[0], "ImagingStudy", wanted.criteria.renderer.base, "study")
    if uid_of_id(identifier) != identifier:
        raise InvalidQuery(
            "study takes a StudyInstanceUID: give the patient as well for one of a clash", parameter="study"
        )
    wanted.study = identifier
    named = f"ImagingStudy/{identifier}"
    wanted.tests.append(
        lambda found: any(
            one["reference"] == named for each in ("imagingStudy", "study") for one in found.get(each, [])
        )
    )


def _tokens(key: Key, wanted: list[tuple[str | None, str]]) -> Test:
    """A code without a system of its own is one of a fixed set where it is a code by type, which `system|` does not change."""

    def answers(found: Resource) -> bool:
        pairs = [pair for element in key.elements for pair in _pairs(found.get(element))]
        return any(
            (not value or value == own) and (system is None or own_system is None or system == own_system)
            for own_system, own in pairs
            for system, value in wanted
        )

    return answers


def _pairs(held: Any) -> Iterator[tuple[str | None, str]]:
    """(system, value) of codes (system None), of concepts, in R5 within a CodeableReference, and of identifiers."""
    for one in held if isinstance(held, list) else [held]:
        if isinstance(one, str):
            yield None, one
        elif isinstance(one, dict) and "value" in one:
            yield one.get("system", ""), one["value"]
        elif isinstance(one, dict):
            concept = one.get("concept", one)
            yield from ((coding.get("system", ""), coding.get("code", "")) for coding in concept.get("coding", []))


def _date(key: Key, wanted: list[Period]) -> Test:
    def answers(found: Resource) -> bool:
        held = next((found[element] for element in key.elements if element in found), None)
        if isinstance(held, str):
            return any(compare(held, period) for period in wanted)
        return held is not None and any(compare_span(held.get("start"), held.get("end"), one) for one in wanted)

    return answers
