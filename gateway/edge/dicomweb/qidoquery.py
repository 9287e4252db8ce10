"""What a QIDO-RS request asks for, from its parameters: the query, its page, and what is shown of each result (PS3.18 8.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gateway.edge import negotiation
from gateway.edge.querystring import NAME
from gateway.errors import InvalidQuery
from gateway.model import zoned
from gateway.model.matching import combined
from gateway.model.query import Match, Matching, Operator, Query, check_uid
from gateway.model.vocabulary import (
    ISSUER,
    PATIENT_ID,
    RETURNED,
    SERIES_KEYS,
    SERIES_UID,
    STUDY_UID,
    TIMEZONE_OFFSET,
    Level,
    creator_tag,
    is_private,
    level_of,
    path,
    path_name,
    tag,
)

K = TypeVar("K")
Path = tuple[str, ...]
SWITCHES = {"fuzzymatching": "fuzzy", "emptyvaluematching": "empty", "multiplevaluematching": "multiple"}
"""The parameters that ask for kinds of matching besides the usual ones, and what `Matching` calls them."""
OPTIONS = frozenset({"limit", "offset", *SWITCHES})
_ZONE = (TIMEZONE_OFFSET,)
_ELSEWHERE = frozenset({"node", "accept", "charset"})
INSTANCE_KEYS = frozenset(
    map(
        tag,
        (
            "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
            "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "AcquisitionNumber",
            "ImageType", "ContentLabel", "ContentDescription", "PhotometricInterpretation", "SamplesPerPixel",
            "ViewPosition", "ImageLaterality", "CompletionFlag", "VerificationFlag",
        ),
    )
)  # fmt: skip
"""The attributes of an instance that can be searched by."""
_CONCEPT_NAME = (tag("ConceptNameCodeSequence"), tag("CodeValue"))
_OF_INSTANCES = (INSTANCE_KEYS | frozenset(RETURNED[Level.IMAGE])) - frozenset(RETURNED[Level.STUDY])
_OF_SERIES = (SERIES_KEYS | frozenset(RETURNED[Level.SERIES])) - frozenset(RETURNED[Level.STUDY])
_BELOW = {Level.STUDY: _OF_SERIES | _OF_INSTANCES, Level.SERIES: _OF_INSTANCES - _OF_SERIES, Level.IMAGE: frozenset()}


@dataclass(frozen=True, slots=True)
class Search:
    """One parsed request: the query and its page; `limit` None for no limit."""

    query: Query
    limit: int | None = None
    offset: int = 0


def parse(level: Level, pairs: Sequence[tuple[str, str]], study: str | None, series: str | None) -> Search:
    """A search from its parameters. Raises InvalidQuery naming the parameter for whatever is not understood."""
    keys: dict[Path, str] = {}
    options: dict[str, str] = {}
    included: list[str] = []
    for name, value in pairs:
        plain = name.lower()
        if plain == "includefield":
            included.append(value)
        elif plain in OPTIONS:
            _add(options, plain, value, plain, plain)
        elif name not in _ELSEWHERE:
            if plain in _ELSEWHERE:  # read elsewhere, and there by this very name
                raise InvalidQuery(f"{name} is written {plain}", parameter=name)
            path_ = path(name)
            _add(keys, path_, value, path_name(path_), name)
    returned, everything = _returned(included)
    offset = ""
    if keys.get(_ZONE, "*") not in ("", "*"):
        offset = zoned.offset_of(keys.pop(_ZONE))
        if not offset:
            raise InvalidQuery(
                "TimezoneOffsetFromUTC is not an offset such as +0100", parameter="TimezoneOffsetFromUTC"
            )
    matches = _matches(keys, Matching(**{SWITCHES[name]: _switch(options, name) for name in SWITCHES}))
    matched = {match.path for match in matches}
    universal = (path_ for path_ in keys if path_ not in matched)
    query = Query(
        level,
        _without_parents(matches, {(STUDY_UID,): study, (SERIES_UID,): series}),
        study=study and check_uid(study, "StudyInstanceUID"),
        series=series and check_uid(series, "SeriesInstanceUID"),
        return_=tuple(dict.fromkeys([*returned, *universal])),
        all_attributes=everything,
        combined_datetime=True,
    )
    _check_times(query)
    page = {name: negotiation.count(options[name], name) for name in ("limit", "offset") if name in options}
    return Search(zoned.at_offset(query, offset) if offset else query, page.get("limit"), page.get("offset", 0))


def _add(given: dict[K, str], key: K, value: str, name: str, parameter: str) -> None:
    if key in given:
        raise InvalidQuery(f"{name} is given twice", parameter=parameter)
    given[key] = value


def _switch(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "false").lower()
    if value not in ("true", "false"):
        raise InvalidQuery(f"{name} is true or false", parameter=name)
    return value == "true"


def _matches(keys: dict[Path, str], matching: Matching) -> tuple[Match, ...]:
    for path_ in keys:
        _check_key(path_, keys)
    return tuple(match for path_, value in keys.items() for match in matching.parse(path_, value))


def _check_key(path_: Path, keys: Iterable[Path]) -> None:
    """Refuses what cannot be searched by, and a private attribute whose creator is not said (PS3.18 8.3.4.1)."""
    name = path_name(path_)
    if is_private(path_[-1]):
        creator = (*path_[:-1], creator_tag(path_[-1]))
        if creator not in keys:
            raise InvalidQuery(f"{name} is private: give its creator too, as {path_name(creator)}", parameter=name)
        raise InvalidQuery(f"{name} is private, and such attributes are returned but not searched by", parameter=name)
    if level_of(path_) is Level.IMAGE and path_[0] not in INSTANCE_KEYS and path_ != _CONCEPT_NAME:
        raise InvalidQuery(f"{name} is not a key that can be searched by", parameter=name)


def _without_parents(matches: tuple[Match, ...], parents: Mapping[Path, str | None]) -> tuple[Match, ...]:
    """A key may say once more what the path says (dicomtrolley does). Raises InvalidQuery for another UID than that."""
    for match in matches:
        uid = parents.get(match.path)
        if uid and match.values != (uid,):
            raise InvalidQuery(f"the path names another {match.name}", parameter=match.name)
    return tuple(match for match in matches if not parents.get(match.path))


def _check_times(query: Query) -> None:
    """A range of times that ends before it begins has a meaning only where it ends on another day (PS3.4 C.2.2.2.5.4)."""
    spanning = {clock.path: day for day, clock in combined(query)}
    for match in query.matches:
        if match.vr == "TM" and match.operator is Operator.RANGE and match.values[0] > match.values[1] != "":
            day = spanning.get(match.path)
            if day is None or day.values[0] == day.values[1]:
                raise InvalidQuery(f"{match.name}: the range ends before it begins", parameter=match.name)


def _returned(included: Iterable[str]) -> tuple[tuple[Path, ...], bool]:
    """The attributes of every includefield, private ones with their creators (PS3.18 10.6.3.3), and whether it is 'all'."""
    names = [name.strip() for value in included for name in value.split(",") if name.strip()]
    everything = any(name.lower() == "all" for name in names)
    named = [name for name in names if name.lower() != "all"]
    if not all(map(NAME.fullmatch, named)):
        raise InvalidQuery("includefield takes keywords and tags", parameter="includefield")
    if everything and named:
        raise InvalidQuery("includefield is either 'all' or a list of attributes", parameter="includefield")
    paths = [path(name) for name in named]
    creators = [(*one[:-1], creator_tag(one[-1])) for one in paths if is_private(one[-1])]
    return tuple(dict.fromkeys([*paths, *creators])), everything


def shown(query: Query) -> Callable[[str], bool]:
    """Which attributes of a result go out: those of its level, of the levels above where the path does not name them
    (PS3.18 Table 10.6.3-2), and those asked for; never one of a level below (10.6.3.3)."""
    below = _BELOW[query.level]
    if query.all_attributes:
        return lambda tag_: tag_ not in below
    return (_wanted(query) - below).__contains__


def _wanted(query: Query) -> frozenset[str]:
    levels = [query.level]
    if query.level is not Level.STUDY and not query.study:
        levels.append(Level.STUDY)
    if query.level is Level.IMAGE and not query.series:
        levels.append(Level.SERIES)
    always = {STUDY_UID, PATIENT_ID, ISSUER}
    always |= {SERIES_UID} if query.level is not Level.STUDY else set()
    asked = {path_[0] for path_ in query.return_} | {match.path[0] for match in (*query.matches, *query.zoned)}
    return frozenset(always | asked | {tag_ for level in levels for tag_ in RETURNED[level]})
