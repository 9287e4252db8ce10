"""An ImagingStudy search: its criteria, and how its results are to be given (FHIR R4 search 3.1.1.5, the same in R5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.edge import negotiation
from gateway.edge.fhir import profiles, shown, studykeys
from gateway.edge.fhir.criteria import Criteria, Key, add
from gateway.edge.fhir.imagingstudy import Renderer
from gateway.edge.fhir.profiles import Profile
from gateway.edge.fhir.searchgrammar import Name, NotSupported, alternatives, name_of, plain, single
from gateway.edge.fhir.shown import Shown
from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery
from gateway.federation.page import Sort

TOTALS = ("none", "estimate", "accurate")
_TOTAL_METHODS = {"count": "accurate", "countEstimate": "estimate"}
# What a match refers to, and what that refers to in turn: by `_include`, or by `_include:iterate`.
INCLUDES = {
    "ImagingStudy:endpoint": "Endpoint",
    "ImagingStudy:patient": "Patient",
    "ImagingStudy:subject": "Patient",
}
ITERATED = {"Endpoint:organization": "Organization"}
KEYS: dict[str, Key] = {**studykeys.KEYS, **studykeys.CHAINED}


@dataclass(slots=True)
class StudySearch(Criteria):
    """One parsed search. `used` are the pairs that the self link repeats, `ignored` the names that a lenient caller gave."""

    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    includes: set[str] = field(default_factory=set)
    sort: Sort = Sort.NEWEST
    count: int | None = None
    shown: Shown = field(default_factory=Shown)
    cursor: str = ""
    total: str = ""
    profile: Profile | None = None

    @property
    def summary(self) -> str:
        return self.shown.summary


async def parse(
    pairs: Iterable[tuple[str, str]],
    renderer: Renderer,
    *,
    lenient: bool,
    lacks: Mapping[str, str] = studykeys.SEARCHES_ONLY,
) -> StudySearch:
    """A search from its parameters; repetition is AND, comma is OR. Raises InvalidQuery naming the parameter.

    What is not supported is refused, or with `lenient` left out and listed in `ignored`; so is what this search `lacks`, by
    name, with the reason.
    """
    search = StudySearch(renderer)
    for text, raw in pairs:
        name = name_of(text)
        try:
            if name.base in lacks:
                raise NotSupported(f"{name.base} is not supported: {lacks[name.base]}", parameter=text)
            add_to = _adder(name, text)
            if raw:
                _check_given_once(search, name)
                await add_to(search, alternatives(raw, text))
                search.used.append((text, raw))
        except NotSupported:
            if not lenient:
                raise
            search.ignored.append(text)
    search.used = [(name, raw) for name, raw in search.used if name != "_cursor"]
    if "Endpoint" not in search.includes:  # nothing that is there refers to what they refer to
        search.includes -= set(ITERATED.values())
    search.shown.check()
    search.check_repeated(studykeys.BELOW)
    return search


def _check_given_once(search: StudySearch, name: Name) -> None:
    if name.base in _ONCE and any(used == name.base for used, _ in search.used):
        raise InvalidQuery(f"{name.base} is given twice", parameter=name.base)


Adder = Callable[[StudySearch, list[str]], Awaitable[None]]


def _adder(name: Name, text: str) -> Adder:
    """What takes the values of a parameter. Raises NotSupported, with the reason where there is one."""
    if name.modifier == "identifier" and f"{name.key}.identifier" in KEYS:
        name = Name(name.base, name.type, "identifier")
    if text in RESULTS:
        return RESULTS[text]
    key = KEYS.get(name.key)
    if key is None:
        raise NotSupported(_why_not(name, text), parameter=text)
    target = KEYS[name.base].target
    if name.type and name.type != target:
        raise NotSupported(f"{name.base} refers to a {target or 'value'} here", parameter=text)

    async def add_key(search: StudySearch, values: list[str]) -> None:
        await add(search, key, name, values)

    return add_key


def _why_not(name: Name, text: str) -> str:
    reason = studykeys.REFUSED.get(name.base)
    if reason:
        return f"{name.base} is not supported: {reason}"
    return f"'{text}' is not a supported search parameter of ImagingStudy; /fhir/metadata lists them"


async def _count(search: StudySearch, values: list[str]) -> None:
    search.count = negotiation.count(single(values, "_count"), "_count", most=10_000)


async def _sort(search: StudySearch, values: list[str]) -> None:
    search.sort = Sort(one_of(",".join(values), [*Sort], "_sort"))


async def _summary(search: StudySearch, values: list[str]) -> None:
    search.shown.summary = one_of(single(values, "_summary"), shown.SUMMARIES, "_summary")


async def _elements(search: StudySearch, values: list[str]) -> None:
    search.shown.elements = shown.elements(values, "ImagingStudy", is_r5=search.renderer.is_r5)


async def _total(search: StudySearch, values: list[str]) -> None:
    search.total = one_of(single(values, "_total"), TOTALS, "_total")


async def _total_method(search: StudySearch, values: list[str]) -> None:
    """_total as Aidbox and its client fhirpy say it."""
    method = one_of(single(values, "_totalMethod"), tuple(_TOTAL_METHODS), "_totalMethod")
    search.total = _TOTAL_METHODS[method]


async def _profile(search: StudySearch, values: list[str]) -> None:
    """The form of the results; it selects none of them."""
    search.profile = profiles.named(plain(single(values, "_profile")), "5.0" if search.renderer.is_r5 else "4.0")


async def _include(search: StudySearch, values: list[str]) -> None:
    _add_includes(search, values, INCLUDES, "_include")


async def _iterate(search: StudySearch, values: list[str]) -> None:
    _add_includes(search, values, {**INCLUDES, **ITERATED}, "_include:iterate")


def _add_includes(search: StudySearch, values: list[str], known: dict[str, str], parameter: str) -> None:
    """'ImagingStudy:patient', also with the type that is referred to; 'ImagingStudy:*' and '*' for all."""
    for value in map(plain, values):
        if value in ("*", "ImagingStudy:*"):
            search.includes |= set(INCLUDES.values())
            continue
        path, _, target = value.rpartition(":")
        included = known.get(value) or (target if known.get(path) == target else None)
        if included is None:
            raise InvalidQuery(f"{parameter} is one of {', '.join(known)}", parameter="_include")
        search.includes.add(included)


async def _cursor(search: StudySearch, values: list[str]) -> None:
    search.cursor = ",".join(values)


async def _nothing(search: StudySearch, values: list[str]) -> None:
    """_format and _pretty were negotiated already; node was taken as the selection of nodes."""


RESULTS: dict[str, Adder] = {
    "_count": _count,
    "_sort": _sort,
    "_summary": _summary,
    "_elements": _elements,
    "_total": _total,
    "_totalMethod": _total_method,
    "_include": _include,
    "_include:iterate": _iterate,
    "_profile": _profile,
    "_cursor": _cursor,
    "_format": _nothing,
    "_pretty": _nothing,
    "node": _nothing,
}
"""How results are given: by the parameter's name."""
_ONCE = frozenset({"_count", "_sort", "_summary", "_elements", "_cursor", "_total", "_profile"})

PARAMETERS: Sequence[str] = (*KEYS, *RESULTS)
"""The names that a search may have, but for modifiers."""
