"""What a FHIR search asks of studies: keys for the nodes, conditions checked here, and what is to be left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.edge.fhir.imagingstudy import Renderer
from gateway.edge.fhir.searchgrammar import Name, NotSupported, is_true
from gateway.errors import InvalidQuery
from gateway.model.answer import Found, Issue
from gateway.model.matching import matches
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.vocabulary import ISSUER, MODALITIES_IN_STUDY, PATIENT_ID, Level, level_of

Condition = Callable[[Found], bool]


_ASKED_EACH = frozenset({(MODALITIES_IN_STUDY,)})


@dataclass(slots=True)
class Criteria:
    """The keys of one search, all of which a study has to answer. `matches` are asked of the nodes, `conditions` here.

    What answers one of `excluded` is left out. `updated` are put to the moment (ms since the epoch) at which the gateway first
    saw the study, or saw it change. `impossible` says that nothing can answer; `unknown` tells why. `refining` counts the
    conditions that only look closer at what the nodes were asked. `named` are the patients that are spoken of.
    """

    renderer: Renderer
    matches: list[Match] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    refining: int = 0
    excluded: list[Criteria] = field(default_factory=list)
    impossible: bool = False
    unknown: list[str] = field(default_factory=list)
    updated: list[Callable[[int], bool]] = field(default_factory=list)
    named: list[PatientKey] = field(default_factory=list)

    @property
    def query(self) -> Query:
        """What the nodes are asked: one Match per attribute; a second on the same one is checked here, unless each is a question
        of its own, as those of which holders have their parts are."""
        kept: dict[object, Match] = {}
        for match in self.matches:
            kept.setdefault((match.path, match.values) if match.path in _ASKED_EACH else match.path, match)
        is_of_patients = (ISSUER,) in kept
        return Query(Level.STUDY, tuple(kept.values()), by_any_identifier=is_of_patients)

    def accepts(self, found: Found) -> bool:
        """Whether a result answers every condition that the nodes were not, or could not be, asked."""
        return all(condition(found) for condition in self.conditions)

    @property
    def takes_most(self) -> bool:
        """Whether most of what the nodes give meets the conditions."""
        return len(self.conditions) == self.refining

    def refine(self, condition: Condition) -> None:
        """A condition on what the nodes are asked as well, if not so closely."""
        self.conditions.append(condition)
        self.refining += 1

    def accepts_update(self, moment: int) -> bool:
        """Whether a study that was first seen or last changed at that moment (ms since the epoch) is wanted."""
        return all(condition(moment) for condition in self.updated)

    def exclude(self, other: Criteria) -> None:
        """Leaves out what answers `other`: decided here by the study's own attributes, else by a search for what answers."""
        self.named += other.named
        if other.impossible:
            return
        if any(_lies_below(match) for match in other.matches):
            self.excluded.append(other)
        else:
            self.conditions.append(lambda found: not other.is_answered_by(found))

    def is_answered_by(self, found: Found) -> bool:
        """Whether the study's own attributes answer everything."""
        return all(matches(match, found.attributes) is True for match in self.matches) and self.accepts(found)

    def question_of(self, excluded: Criteria) -> Query:
        """The search for what is to be left out, no wider than this one where both say something."""
        own = {match.path for match in excluded.matches}
        shared = [match for match in self.matches if not _lies_below(match) and match.path not in own]
        return replace(excluded, matches=[*excluded.matches, *shared]).query

    def leave_out(self, excluded: Criteria, answering: Iterable[Found], issues: Sequence[Issue]) -> None:
        """Drops what was found to answer; and whatever a node holds that could not say what answers."""
        self.conditions.append(self.left_of(excluded, answering, issues))

    def left_of(self, excluded: Criteria, answering: Iterable[Found], issues: Sequence[Issue]) -> Condition:
        """Whether a result is left once all is dropped that `leave_out` drops."""
        hits = {(one.study, key) for one in answering if excluded.accepts(one) for key in one.patients}
        silent = {issue.node for issue in issues if issue.node}

        def is_left(found: Found) -> bool:
            hit = any((found.study, key) in hits for key in found.patients)
            return not hit and not silent.intersection(found.holders)

        return is_left

    def check_repeated(self, names: Mapping[str, str]) -> None:
        """A second key on one attribute cannot be in one Query: it is asked of the rows found. Raises InvalidQuery where
        those do not say, with the parameter's name from `names`, by tag."""
        first: set[tuple[str, ...]] = set()
        for match in self.matches:
            if match.path in first and match.path not in _ASKED_EACH:
                if level_of(match.path) is not Level.STUDY:
                    name = names.get(match.path[0], match.name)
                    raise InvalidQuery(f"{name} may be given once; alternatives go with a comma", parameter=name)
                self.conditions.append(lambda found, match=match: matches(match, found.attributes) is True)  # type: ignore[misc]
            first.add(match.path)

    def add_patients(self, keys: Sequence[PatientKey]) -> None:
        """Only studies of one of these patients; none at all when there is none."""
        if not keys:
            self.impossible = True
            return
        self.named += keys
        # A second key is a condition alone: he need not be named by it in the same row.
        if all(match.path != (ISSUER,) for match in self.matches):
            self.matches.append(any_of((PATIENT_ID,), [key.id for key in keys]))
            self.matches.append(any_of((ISSUER,), [key.issuer for key in keys]))
        wanted = frozenset(keys)
        self.conditions.append(lambda found: bool(found.known_as & wanted))


def _lies_below(match: Match) -> bool:
    """Whether the study's own row may leave it open."""
    return match.path[0] == MODALITIES_IN_STUDY or level_of(match.path) is not Level.STUDY


def any_of(path: tuple[str, ...], texts: Sequence[str]) -> Match:
    """One of the texts."""
    unique = tuple(dict.fromkeys(texts))
    return Match(path, Operator.LIST if len(unique) > 1 else Operator.EXACT, unique)


Parser = Callable[[Criteria, list[str], str], Awaitable[None]]
Presence = Callable[[Renderer, Found], bool]


def always(renderer: Renderer, found: Found) -> bool:
    """Every study has it."""
    return True


def refuses(name: str, reason: str) -> Parser:
    """For a parameter that is served with a modifier only."""

    async def parse(criteria: Criteria, values: list[str], modifier: str) -> None:
        raise NotSupported(reason, parameter=name)

    return parse


@dataclass(frozen=True, slots=True)
class Key:
    """One search parameter: its FHIR type, how its values (escapes kept) and modifier become criteria, and what it refers to.

    `modifiers` are those that `parse` knows; `:not` is answered by leaving out what answers. `present` decides `:missing`:
    by the result, or by a key that every study which has the element answers; None offers no `:missing`.
    """

    type: str
    parse: Parser
    modifiers: frozenset[str] = frozenset()
    negatable: bool = False
    present: Presence | Match | None = None
    target: str = ""
    documentation: str = ""

    @property
    def all_modifiers(self) -> list[str]:
        """For the CapabilityStatement."""
        more = {"missing"} if self.present else set()
        return sorted({*self.modifiers, *more, *({"not"} if self.negatable else ())})


async def add(criteria: Criteria, key: Key, name: Name, values: list[str]) -> None:
    """One parameter with its modifier. Raises InvalidQuery naming it, NotSupported for a modifier that it has not."""
    shown = f"{name.key}:{name.modifier}" if name.modifier else name.key
    if name.modifier == "missing" and key.present:
        _add_missing(criteria, key.present, is_missing=is_true(values, shown))
    elif name.modifier == "not" and key.negatable:
        other = Criteria(criteria.renderer)
        await key.parse(other, values, "")
        criteria.exclude(other)
    elif name.modifier and name.modifier not in key.modifiers:
        offered = ", ".join(f":{each}" for each in key.all_modifiers) or "none"
        raise NotSupported(f"the modifiers of {name.key} here are: {offered}", parameter=shown)
    else:
        await key.parse(criteria, values, name.modifier)


def _add_missing(criteria: Criteria, present: Presence | Match, *, is_missing: bool) -> None:
    if not isinstance(present, Match):
        criteria.conditions.append(lambda found: present(criteria.renderer, found) is not is_missing)
    elif is_missing:
        criteria.exclude(Criteria(criteria.renderer, [present]))
    else:
        criteria.matches.append(present)
