"""Asking a node in its own words: a query of the model as a native query, by a mapping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gateway.mapping.schema import Entry, Mapping
from gateway.mapping.transforms import TRANSFORMS, Asked
from gateway.model.dataset import as_text, attribute
from gateway.model.matching import combined, matches
from gateway.model.query import Match, Operator, Query
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import ISSUER, Level, level_of, path_name, tag
from gateway.model.vocabulary import path as path_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What one node is asked. `native` is None when no row of this node can answer: it need not be asked at all.

    `here` are the keys that are not sent. Those that are may be sent as less than they say (a name by its beginning):
    every row is to be matched here in any case.
    """

    native: NativeQuery | None
    here: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a DICOM path lies in the native format."""

    path: str
    entry: Entry


class Asker:
    """Translates queries for one node."""

    def __init__(self, mapping: Mapping, issuer: str, *, character_set: str = "") -> None:
        """`issuer` is the node's `patient_id_issuer`; `character_set` overrides the mapping's."""
        self.mapping = mapping
        self.issuer = mapping.canonical_issuer(issuer)
        self.character_set = character_set or mapping.character_set
        self.digest = mapping.digest
        self._sources = dict(_sources(mapping))
        self._words = _Words(mapping.digest or str(id(mapping)), self.character_set, "", self)

    def reads(self, path: tuple[str, ...]) -> bool:
        """Whether the mapping has an entry for a DICOM path."""
        return path in self._sources

    def canonical(self, query: Query) -> Query:
        """The query with every issuer under the name that this node's rows bear: the one to match its rows against."""
        if not self.mapping.issuers:
            return query
        return replace(query, matches=tuple(self._canonical(match) for match in query.matches))

    def ask(self, query: Query, limit: int | None = None, *, samples: bool = False) -> NativeQuery | None:
        """What the node is asked; None when no row of this node can answer."""
        return self.plan(query, limit, samples=samples).native

    def plan(self, query: Query, limit: int | None = None, *, samples: bool = False) -> Plan:
        """The native query with the keys it could not take. Nothing is dropped: every key is sent, or is in `here`."""
        names_issuer = any(match.path[-1] == ISSUER for match in query.matches)
        return _shared(replace(self._words, issuer=self.issuer) if names_issuer else self._words, query, limit, samples)

    def _plan(self, query: Query, limit: int | None, samples: bool) -> Plan:
        sent: dict[str, NativeMatch] = {}
        here: list[Match] = []
        query = self.canonical(query)
        # Nodes that take them for two ranges would lose what lies on the days between.
        clocks = [clock for _, clock in combined(query)]
        for match in query.matches:
            if match in clocks:
                here.append(match)
                continue
            source = self._sources.get(match.path)
            if source and source.entry.fixed is not None:
                if not _holds(match, source.entry.fixed):
                    return Plan(None)
                continue
            native = self._native(match, source)
            if native and native.path not in sent:
                sent[native.path] = native
            if native is None or sent[native.path] != native:
                here.append(match)
        wanted = [*query.return_, *(match.path for match in here)]
        question = self._query(query, tuple(sent.values()), wanted)
        return Plan(replace(question, limit=limit, samples=samples), tuple(here))

    def _query(self, query: Query, sent: tuple[NativeMatch, ...], wanted: Iterable[tuple[str, ...]]) -> NativeQuery:
        return NativeQuery(
            level=query.level,
            match=sent,
            study=query.study,
            series=query.series,
            return_=self._returned(query.level, wanted),
            all_attributes=query.all_attributes,
            character_set=self.character_set,
            fuzzy=query.fuzzy,
        )

    def _returned(self, level: Level, wanted: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        """Native paths: those wanted, and for DICOM those that entries take the place of others with."""
        if self.mapping.protocol == "fhir":
            return ()
        order = list(Level)
        moved = {
            source.path: None
            for source in self._sources.values()
            if source.entry.path and order.index(level_of(path_of(source.path))) <= order.index(level)
        }
        asked = {self._sources[path].path if path in self._sources else path_name(path): None for path in wanted}
        return tuple(asked | moved)

    def _canonical(self, match: Match) -> Match:
        if match.path[-1] != ISSUER or match.operator not in (Operator.EXACT, Operator.LIST):
            return match
        return replace(match, values=tuple(self.mapping.canonical_issuer(value) for value in match.values))

    def _native(self, match: Match, source: _Source | None) -> NativeMatch | None:
        """The key in the node's words; None where it has none for it. That there is no value is asked of nobody: nodes take
        the key of PS3.4 C.2.2.2.7 for a text, or for nothing."""
        if match.operator is Operator.EMPTY or (match.operator is Operator.FUZZY and not self._is_plain(source)):
            return None
        if match.path[-1] == ISSUER:
            asked = self._issuer(match) if source else None
        elif source is None:
            asked = (match.operator, match.values) if self._is_as_sent(match.path) else None
        else:
            asked = self._through(match, source.entry)
        if asked is None:
            return None
        return NativeMatch(source.path if source else match.name, *asked, of=match.path)

    def _is_as_sent(self, path: tuple[str, ...]) -> bool:
        """Whether the node itself has what no entry is for: not within a sequence that the mapping makes of something else."""
        made = any(path[:depth] in self._sources for depth in range(1, len(path)))
        return self.mapping.protocol == "dicom" and not made

    def _is_plain(self, source: _Source | None) -> bool:
        """Whether a name is what DICOM says, so that its words can be looked for anywhere in it: FHIR's search strings are
        beginnings, and a transform's inverse is made for whole names."""
        return self.mapping.protocol == "dicom" and not (source and (source.entry.using or source.entry.codes))

    def _issuer(self, match: Match) -> Asked | None:
        """The issuer as FHIR identifier systems.

        The node's own issuer may stand for identifiers without a system, and DICOM nodes seldom hold (0010,0021): both
        are decided on the rows, which always carry it.
        """
        if self.mapping.protocol == "dicom" or match.operator not in (Operator.EXACT, Operator.LIST):
            return None
        if len(match.path) == 1 and self.issuer in match.values:
            return None
        systems = tuple(system for value in match.values for system in self._systems(value))
        return (Operator.EXACT if len(systems) == 1 else Operator.LIST, systems)

    def _systems(self, issuer: str) -> tuple[str, ...]:
        known = self.mapping.names_of_issuers.get(issuer)
        if known and known.systems:
            return known.systems
        return (f"urn:oid:{issuer}" if issuer[:1].isdigit() and "." in issuer else issuer,)

    def _through(self, match: Match, entry: Entry) -> Asked | None:
        """The key taken back through codes and transform, in the reverse of the order of reading."""
        if entry.default is not None and _holds(match, entry.default):
            return None  # rows without the attribute answer too, and no key finds those
        asked: Asked | None = (match.operator, match.values)
        if entry.codes and asked:
            asked = self._uncoded(entry, *asked)
        if entry.using and asked:
            ask = TRANSFORMS[entry.using].ask
            asked = ask(*asked) if ask else None
        return asked

    def _uncoded(self, entry: Entry, operator: Operator, values: tuple[str, ...]) -> Asked | None:
        """Every local code that is read as one of the values; a value that is no local code may also stand as it is."""
        if operator not in (Operator.EXACT, Operator.LIST):
            return None
        table = self.mapping.codes[entry.codes or ""]
        locals_ = {code: None for value in values for code, term in table.items() if term == value}
        if entry.default is None:
            locals_ |= {value: None for value in values if value not in table}
        return (Operator.EXACT if len(locals_) == 1 else Operator.LIST, tuple(locals_)) if locals_ else None


@dataclass(frozen=True, slots=True)
class _Words:
    """What shapes how a node is asked: its mapping by digest, `issuer` only where a key names one. Nodes that are alike in it share
    their plans, since a search asks many the same."""

    mapping: str
    character_set: str
    issuer: str
    asker: Asker = field(compare=False)


@lru_cache(512)
def _shared(words: _Words, query: Query, limit: int | None, samples: bool) -> Plan:
    return words.asker._plan(query, limit, samples)


def _holds(match: Match, value: object) -> bool:
    """Whether the key matches a value that the mapping itself gives."""
    listed = value if isinstance(value, list) else [value]
    last = match.path[-1]
    found = matches(replace(match, path=(last,)), {last: attribute(last, [as_text(one) for one in listed])})
    return found is True


def _sources(mapping: Mapping) -> Iterable[tuple[tuple[str, ...], _Source]]:
    prefixes = {Level.STUDY: ""}
    if mapping.children:
        prefixes[Level.SERIES] = f"{mapping.children.series}."
        prefixes[Level.IMAGE] = f"{mapping.children.series}.{mapping.children.instance}."
    for level in Level:
        for name, entry in mapping.entries(level).items():
            yield from _sources_of((tag(name),), prefixes.get(level, ""), name, entry)


def _sources_of(
    path: tuple[str, ...], prefix: str, name: str, entry: Entry
) -> Iterable[tuple[tuple[str, ...], _Source]]:
    native = prefix + (entry.path or name)
    yield path, _Source(native, entry)
    for inner, below in (entry.item or {}).items():
        yield from _sources_of((*path, tag(inner)), f"{native}.", inner, below)
