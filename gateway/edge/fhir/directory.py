"""Endpoint and Organization: read and search, over the nodes that the caller may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from gateway.edge.fhir import listing, shown
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.request import FhirRequest
from gateway.edge.fhir.searchgrammar import Name, NotSupported, is_true, plain, reference, token
from gateway.errors import InvalidQuery, NotFound
from gateway.model.folding import fold, fold_name
from gateway.pipeline import NodeState

_STRINGS = frozenset({"exact", "contains"})
Values = Callable[[Resource], Iterator[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Key:
    """A parameter over a resource that is at hand. `values` are its (system, value) pairs, system '' where it has none."""

    type: str
    values: Values
    target: str = ""

    @property
    def all_modifiers(self) -> list[str]:
        """For the CapabilityStatement."""
        return sorted({"missing"} | (set(_STRINGS) if self.type == "string" else set()) | self._negation)

    @property
    def _negation(self) -> set[str]:
        return {"not"} if self.type == "token" else set()


def _of(*path: str) -> Values:
    """The texts at a path of elements, through lists."""

    def values(resource: Resource) -> Iterator[tuple[str, str]]:
        found: list[Any] = [resource]
        for step in path:
            found = [one[step] for one in found if step in one]
            found = [each for one in found for each in (one if isinstance(one, list) else [one])]
        return (("", str(one).lower() if isinstance(one, bool) else str(one)) for one in found)

    return values


def _connection_type(resource: Resource) -> Iterator[tuple[str, str]]:
    """A Coding in R4, CodeableConcepts in R5."""
    given = resource["connectionType"]
    for concept in given if isinstance(given, list) else [{"coding": [given]}]:
        yield from ((coding["system"], coding["code"]) for coding in concept["coding"])


def _country(resource: Resource) -> Iterator[tuple[str, str]]:
    """In Organization.address in R4, in Organization.contact in R5."""
    yield from _of("address", "country")(resource)
    yield from _of("contact", "address", "country")(resource)


ENDPOINT = {
    "_id": Key("token", _of("id")),
    "name": Key("string", _of("name")),
    "status": Key("token", _of("status")),
    "connection-type": Key("token", _connection_type),
    "organization": Key("reference", _of("managingOrganization", "reference"), "Organization"),
}
ORGANIZATION = {
    "_id": Key("token", _of("id")),
    "name": Key("string", _of("name")),
    "active": Key("token", _of("active")),
    "address-country": Key("string", _country),
    "endpoint": Key("reference", _of("endpoint", "reference"), "Endpoint"),
}


async def search_endpoints(asked: FhirRequest) -> Response:
    return await _search(asked, "Endpoint", ENDPOINT, asked.renderer.endpoint)


async def search_organizations(asked: FhirRequest) -> Response:
    return await _search(asked, "Organization", ORGANIZATION, asked.renderer.organization)


async def _search(
    asked: FhirRequest, kind: str, keys: dict[str, Key], render: Callable[[NodeState], Resource]
) -> Response:
    context = asked.context
    context.pipeline.require("search", context.caller, context.nodes, kind, "s")
    tests: list[Callable[[Resource], bool]] = []

    async def add_key(name: Name, text: str, values: list[str]) -> None:
        if name.key not in keys or (name.type and name.type != keys[name.key].target):
            raise listing.unsupported(kind, text)
        if values:
            tests.append(_test(keys[name.key], name, text, values, asked.renderer.base))

    asked_for = await listing.parse(asked, kind, add_key)
    states = context.pipeline.node_states(context.caller)
    chosen = [state for state in states if not context.nodes or state.id in context.nodes]
    resources = [render(state) for state in chosen]
    found = [one for one in resources if all(test(one) for test in tests)]
    return listing.respond(asked, asked_for, listing.paged(asked, asked_for, found))


def _test(key: Key, name: Name, text: str, values: list[str], base: str) -> Callable[[Resource], bool]:
    """Whether a resource answers one parameter. Raises InvalidQuery, NotSupported for a modifier that it has not."""
    if name.modifier and name.modifier not in key.all_modifiers:
        offered = ", ".join(f":{each}" for each in key.all_modifiers)
        raise NotSupported(f"the modifiers of {name.key} here are: {offered}", parameter=text)
    if name.modifier == "missing":
        is_missing = is_true(values, text)
        return lambda resource: (next(key.values(resource), None) is None) is is_missing
    if key.type == "reference":
        wanted = {f"{key.target}/{reference(value, key.target, base, name.key)}" for value in values}
        return lambda resource: any(value in wanted for _, value in key.values(resource))
    if key.type == "string":
        texts = [plain(value) for value in values]
        return lambda resource: any(_answers(v, t, name.modifier) for _, v in key.values(resource) for t in texts)
    tokens = [token(value) for value in values]
    if not all(code for _, code in tokens):
        raise InvalidQuery(f"{name.key} needs a code, not a system alone", parameter=text)
    is_negated = name.modifier == "not"
    return lambda resource: any(_is(pair, one) for pair in key.values(resource) for one in tokens) is not is_negated


def _answers(value: str, wanted: str, modifier: str) -> bool:
    """The matching of a string parameter (FHIR R4 search 3.1.1.4.8)."""
    if modifier == "exact":
        return fold(value) == fold(wanted)
    value, wanted = fold_name(value), fold_name(wanted)
    return wanted in value if modifier == "contains" else value.startswith(wanted)


def _is(pair: tuple[str, str], wanted: tuple[str | None, str]) -> bool:
    """A code without a system of its own is one of a fixed set, whose system may be given and is not compared."""
    system, value = wanted
    return value == pair[1] and (not pair[0] or system in (None, pair[0]))


def _node(asked: FhirRequest, kind: str) -> NodeState:
    context, identifier = asked.context, asked.request.path_params["id"]
    context.pipeline.require("read", context.caller, context.nodes, kind, "r")
    states = {state.id: state for state in context.pipeline.node_states(context.caller)}
    if identifier not in states:
        raise NotFound(f"there is no such {kind}; /nodes lists the nodes")
    return states[identifier]


async def read_endpoint(asked: FhirRequest) -> Response:
    wanted = shown.of_query(asked.query, "Endpoint", is_r5=asked.renderer.is_r5)
    return asked.respond(wanted.of(asked.renderer.endpoint(_node(asked, "Endpoint"))))


async def read_organization(asked: FhirRequest) -> Response:
    wanted = shown.of_query(asked.query, "Organization", is_r5=asked.renderer.is_r5)
    return asked.respond(wanted.of(asked.renderer.organization(_node(asked, "Organization"))))
