"""QIDO-RS on the simulator's side (PS3.18 10.6): what a query asks, which rows match it, and what a row shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import unquote_plus

from gateway.model.vocabulary import RETURNED, STUDY_KEYS, Level, level_of, vr
from gateway.model.vocabulary import tag as tag_of
from gateway.simulators._directory import INSTANCE_UID, SERIES_UID, STUDY_UID, Json, Series, Study, texts, value_text

Path = tuple[str, ...]
Row = tuple[str, str, Json]
Derived = dict[str, tuple[str, list[Any]]]

STUDY_DATE, STUDY_TIME = "00080020", "00080030"
WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
WIDTH = {"DA": 8, "TM": 12, "DT": 20}
EMPTY = ("", "*", '""')


class BadQuery(Exception):
    """The query cannot be understood; the text is for the caller."""


@dataclass
class Search:
    """A query string taken apart. `keys` are the match keys in their order, `limit` None for no limit."""

    keys: dict[Path, str] = field(default_factory=dict)
    include: set[str] = field(default_factory=set)
    include_all: bool = False
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False


def parse(query: str, decode: Callable[[str], str] = unquote_plus) -> Search:
    """Raises BadQuery for an unknown or repeated attribute and for a number that is none."""
    search = Search()
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        _take(search, unquote_plus(name), decode(value))
    return search


def _take(search: Search, name: str, value: str) -> None:
    if name == "includefield":
        search.include_all |= value == "all"
        search.include |= {attribute_path(part)[0] for part in value.split(",") if part and part != "all"}
    elif name == "limit":
        search.limit = _count(name, value)
    elif name == "offset":
        search.offset = _count(name, value)
    elif name == "fuzzymatching":
        search.fuzzy = value == "true"
    else:
        path = attribute_path(name)
        if path in search.keys:
            raise BadQuery(f"{name} is given twice")
        search.keys[path] = value


def _count(name: str, value: str) -> int:
    if not value.isdecimal():
        raise BadQuery(f"{name} is not a number")
    return int(value)


def attribute_path(name: str) -> Path:
    """'00101002.00100020' or 'OtherPatientIDsSequence.PatientID' as tags."""
    try:
        return tuple(tag_of(step) for step in name.split("."))
    except KeyError:
        raise BadQuery(f"{name} is no attribute") from None


def study_row(study: Study, base: str, availability: str) -> Json:
    """The attributes of a study with those that count what is below it (PS3.18 Table 10.6.3-3)."""
    derived: Derived = {
        "00080056": ("CS", [availability]),
        "00080061": ("CS", study.distinct("00080060")),
        "00080062": ("UI", study.distinct("00080016")),
        "00081190": ("UR", [f"{base}/studies/{study.uid}"]),
        "00201206": ("IS", [len(study.series)]),
        "00201208": ("IS", [len(study.instances)]),
    }
    own = {tag: held for tag, held in study.attributes.items() if tag in STUDY_KEYS}
    return own | {STUDY_UID: study.attributes[STUDY_UID]} | _attributes(derived)


def series_row(study: Study, series: Series, base: str, availability: str) -> Json:
    derived: Derived = {
        "00081190": ("UR", [f"{base}/studies/{study.uid}/series/{series.uid}"]),
        "00201209": ("IS", [len(series.instances)]),
    }
    own = {tag: held for tag, held in series.attributes.items() if level_of((tag,)) is Level.SERIES}
    return (
        study_row(study, base, availability) | own | {SERIES_UID: series.attributes[SERIES_UID]} | _attributes(derived)
    )


def rows(studies: Iterable[Study], level: Level, base: str, availability: str = "ONLINE") -> Iterable[Row]:
    """(study UID, series UID, attributes of the level and those above it), in a stable order."""
    for study in studies:
        if level is Level.STUDY:
            yield study.uid, "", study_row(study, base, availability)
            continue
        for series in study.series:
            above = series_row(study, series, base, availability)
            if level is Level.SERIES:
                yield study.uid, series.uid, above
                continue
            for instance in series.instances:
                address = f"{base}/studies/{study.uid}/series/{series.uid}/instances/{instance.uid}"
                derived = _attributes({"00081190": ("UR", [address]), "00083002": ("UI", [instance.transfer_syntax])})
                yield study.uid, series.uid, instance.attributes | above | derived


def _attributes(derived: Derived) -> Json:
    return {tag: {"vr": vr_, "Value": content} for tag, (vr_, content) in derived.items() if content}


def shown(row: Json, search: Search, level: Level, levels: tuple[Level, ...], *, fill: bool) -> Json:
    """What is returned of a row (10.6.3.3): the tables of its level and `levels`, the match keys, what was asked for.

    `fill` adds the attributes without a value of the level's table as {"vr": ...}, as Orthanc does.
    """
    wanted = {tag for each in (level, *levels) for tag in RETURNED[each]}
    wanted |= {path[0] for path in search.keys} | search.include
    found = row if search.include_all else {tag: row[tag] for tag in wanted if tag in row}
    if fill:
        found = {tag: {"vr": vr(tag)} for tag in RETURNED[level]} | found
    return dict(sorted((tag, held) for tag, held in found.items() if fill or set(held) != {"vr"}))


def not_matchable(search: Search, level: Level) -> list[Path]:
    """The keys of a level below: a row of this level cannot have them."""
    order = list(Level)
    return [path for path in search.keys if order.index(_known_at(path)) > order.index(level)]


def _known_at(path: Path) -> Level:
    fixed = {STUDY_UID: Level.STUDY, SERIES_UID: Level.SERIES, INSTANCE_UID: Level.IMAGE}
    return fixed.get(path[0]) or level_of(path)


def matches(row: Json, keys: dict[Path, str]) -> bool:
    """Whether a row fits every key; a date range and a time range are one span of time (PS3.18 8.3.4.1)."""
    left = dict(keys)
    date, time = left.get((STUDY_DATE,), ""), left.get((STUDY_TIME,), "")
    if "-" in date and "-" in time:
        del left[(STUDY_DATE,)], left[(STUDY_TIME,)]
        if not _in_span(row, date, time):
            return False
    return all(_fits(row, path, wanted) for path, wanted in left.items())


def _in_span(row: Json, date: str, time: str) -> bool:
    (first_date, _, last_date), (first_time, _, last_time) = date.partition("-"), time.partition("-")
    dates, times = texts(row, STUDY_DATE), texts(row, STUDY_TIME)
    if not (dates and times):
        return False
    moment = dates[0] + _padded(times[0], "0", WIDTH["TM"])
    return (not first_date or first_date + _padded(first_time, "0", WIDTH["TM"]) <= moment) and (
        not last_date or moment <= last_date + _padded(last_time, "9", WIDTH["TM"])
    )


def _fits(holder: Json, path: Path, wanted: str) -> bool:
    if wanted in EMPTY:
        return True
    if len(path) > 1:
        items = holder.get(path[0], {}).get("Value", [])
        return any(_fits(item, path[1:], wanted) for item in items if isinstance(item, dict))
    held = [value_text(value) for value in holder.get(path[0], {}).get("Value", [])]
    return any(_value_fits(holder[path[0]]["vr"], value, wanted) for value in held if value)


def _value_fits(vr_: str, value: str, wanted: str) -> bool:
    if vr_ == "UI":
        return value in re.split(r"[,\\]", wanted)
    if vr_ in WIDTH:
        return _in_range(value, wanted, WIDTH[vr_])
    if vr_ in ("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"):
        return _same_number(value, wanted)
    if vr_ == "PN":
        return any(
            pattern(wanted.rstrip("^").casefold()).fullmatch(name.rstrip("^").casefold()) for name in _names(value)
        )
    return bool(pattern(wanted).fullmatch(value)) if vr_ in WILDCARD_VRS else value == wanted


def _names(value: str) -> list[str]:
    """A PN is matched as a whole and by each of its component groups."""
    return [value, *value.split("=")]


def _in_range(value: str, wanted: str, width: int) -> bool:
    """One moment, or a range whose end takes in all of its last unit: TM '-10' holds 10:59."""
    low, dash, high = wanted.partition("-")
    moment = _padded(value, "0", width)
    if not dash:
        return moment == _padded(low, "0", width)
    return (not low or _padded(low, "0", width) <= moment) and (not high or moment <= _padded(high, "9", width))


def _padded(moment: str, fill: str, width: int) -> str:
    """Digits alone, made comparable by filling up the units that are not given."""
    digits = "".join(char for char in moment if char.isdigit())
    return digits + fill * (width - len(digits))


def _same_number(value: str, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except ValueError:
        return False


@cache
def pattern(wanted: str) -> re.Pattern[str]:
    """A wildcard key: '*' any run of characters, '?' exactly one (PS3.4 C.2.2.2.4).

    A piece that was found stays where it is, so that no key takes long.
    """
    first, *rest = ["".join("." if char == "?" else re.escape(char) for char in piece) for piece in wanted.split("*")]
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1] if piece)
    return re.compile(first + middle + (f".*{rest[-1]}" if rest else ""), re.DOTALL)
