"""Who bears a PatientID: whether a search by a bare one means one person, or several whom only their issuers tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.federation.merge import Domains
from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.vocabulary import ISSUER, ISSUER_QUALIFIERS, PATIENT_ID


@dataclass(frozen=True, slots=True)
class _Person:
    """`own` are the identifiers that results were found under, `known_as` those and the ones linked to them."""

    own: frozenset[PatientKey]
    known_as: frozenset[PatientKey]


def issuers_in_doubt(query: Query, found: Sequence[Found], domains: Domains) -> tuple[str, ...]:
    """The issuers between whose patients a search by PatientID does not choose; () when it does, or is no such search.

    A wildcard is a search among many people; where all that it finds bear one id, it is that id.
    """
    for match in query.matches:
        if match.path[-1] == PATIENT_ID and not names_issuer(query, match):
            for bearers in _by_id(match, found):
                persons = _persons(bearers, domains)
                if len(persons) > 1:
                    return tuple(sorted({key.issuer for one in bearers for key in one.patients if key.is_named}))
    return ()


def names_issuer(query: Query, of: Match) -> bool:
    """Whether the search says, beside a PatientID key, whose it is: a pattern of issuers says nothing."""
    around = of.path[:-1]
    places = (ISSUER, ISSUER_QUALIFIERS)
    return any(
        match.operator in (Operator.EXACT, Operator.LIST)
        and match.path[: len(around)] == around
        and match.path[len(around)] in places
        for match in query.matches
        if len(match.path) > len(around)
    )


def _by_id(match: Match, found: Sequence[Found]) -> Iterable[list[Found]]:
    """The results that the key finds for each id that it names."""
    if len(match.path) > 1:  # an id among other ids: each result has the one asked for
        yield list(found)
        return
    groups: dict[str, list[Found]] = {}
    for one in found:
        for identifier in {key.id for key in one.patients if key.is_named}:
            groups.setdefault(identifier, []).append(one)
    if match.operator is Operator.WILDCARD and len(groups) > 1:
        return
    yield from groups.values()


def _persons(found: Iterable[Found], domains: Domains) -> list[_Person]:
    """The people found, joined where one identifier or a link says so. Links that would give one person two ids of one
    issuer contradict each other and join nobody."""
    persons: list[_Person] = []
    for one in found:
        mine = _Person(one.patients, one.known_as)
        near = [person for person in persons if _is_same(mine, person, domains)]
        joined = _Person(
            mine.own.union(*(person.own for person in near)), mine.known_as.union(*(person.known_as for person in near))
        )
        persons = [person for person in persons if person not in near] + [joined]
    return persons


def _is_same(one: _Person, other: _Person, domains: Domains) -> bool:
    if one.own & other.own:
        return True
    linked = one.known_as & other.known_as or any(
        a.id == b.id and domains.same(a.issuer, b.issuer) for a in one.known_as for b in other.known_as
    )
    everything = one.known_as | other.known_as
    return bool(linked) and len({key.issuer for key in everything}) == len(everything)
