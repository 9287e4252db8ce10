"""A search in DICOM terms: what is matched, at which level, under which parents, and what is asked back (PS3.4 C.2.2.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gateway.errors import InvalidQuery
from gateway.model.folding import name_words
from gateway.model.moments import parse_offset
from gateway.model.spans import span
from gateway.model.vocabulary import INSTANCE_UID, SERIES_UID, STUDY_UID, Level, has_several_values, path_name, vr

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_RIGHT_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LONGEST_UID = 64
# IS and DS (PS3.5 6.2), where Python would take 'nan', '1_000' and the digits of every script.
_NUMBER = re.compile(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)? *")
_SECONDS = r"([0-5][0-9]|60)(\.[0-9]{1,6})?"  # 60 is a leap second
_FORMS = {
    "DA": re.compile(r"[0-9]{8}"),
    "TM": re.compile(rf"[0-9]{{2}}([0-9]{{2}}({_SECONDS})?)?"),
    "DT": re.compile(rf"[0-9]{{4}}([0-9]{{2}}){{0,4}}([+-][0-9]{{4}})?|[0-9]{{12}}{_SECONDS}([+-][0-9]{{4}})?"),
}
EMPTY_VALUE = '""'
"""The key that means an attribute without a value, where that is asked for (PS3.4 C.2.2.2.7)."""
_DASH = re.compile(r"-([0-9]{4}(?=-|$))?")
_ROW_OF_STARS = re.compile(r"\*{2,}")
_MULTIPLE_VRS = frozenset({"AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"})  # PS3.4 C.2.2.2.8
_WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})


class Operator(StrEnum):
    """The kinds of matching of PS3.4 C.2.2.2 (universal matching is the absence of a Match)."""

    EXACT = "exact"
    WILDCARD = "wildcard"
    RANGE = "range"
    LIST = "list"
    FUZZY = "fuzzy"
    EMPTY = "empty"
    __hash__ = str.__hash__  # as Level


@dataclass(frozen=True, slots=True)
class Match:
    """One key. `path` is tags from the root (sequence matching has more than one); `values` by operator:

    EXACT one text; WILDCARD one text with * or ?; RANGE (low, high), either end '' for open; LIST one or more texts, any fits;
    FUZZY one person's name, which is found literally too; EMPTY (''), an attribute without a value.
    """

    path: tuple[str, ...]
    operator: Operator
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        return path_name(self.path)

    @property
    def vr(self) -> str:
        return vr(self.path[-1])


@dataclass(frozen=True, slots=True)
class Query:
    """A search. `matches` are ANDed, also several on one path, each of which some value then answers (PS3.4 C.2.2.2.8).
    `study` and `series` restrict by the UIDs above; `return_` are extra attribute paths to give back.

    `zoned` are keys on dates and times as they are at the offset `zone`, which no node is asked and no row can be matched
    on without its node's own time zone: whoever asks puts them to the results, and `matches` has wider ones.
    `combined_datetime` says that StudyDate and StudyTime ranges mean one span of time (PS3.4 C.2.2.2.5.4).
    `all_attributes` is `includefield=all`. `undated` wants only what has no StudyDate that can be read, which no node can be
    asked for. `by_any_identifier`: its keys on PatientID and IssuerOfPatientID mean whoever bears such an identifier, also beside
    the one that a row names him by. Paging and sorting are not part of what nodes are asked.
    """

    level: Level
    matches: tuple[Match, ...] = ()
    study: str | None = None
    series: str | None = None
    return_: tuple[tuple[str, ...], ...] = ()
    all_attributes: bool = False
    fuzzy: bool = False
    nodes: tuple[str, ...] = field(default=())
    combined_datetime: bool = False
    zoned: tuple[Match, ...] = ()
    zone: str = ""
    undated: bool = False
    by_any_identifier: bool = False

    @property
    def asked(self) -> tuple[Match, ...]:
        """The keys as the request gave them: those on dates and times at its own offset in place of the wider ones."""
        own = {match.path for match in self.zoned}
        return (*(match for match in self.matches if match.path not in own), *self.zoned)

    def match_on(self, *path: str) -> Match | None:
        """The key on exactly this path, if the query has one."""
        return next((m for m in self.matches if m.path == path), None)


@dataclass(frozen=True, slots=True)
class Ref:
    """What a retrieve asks for: a study, one of its series, or one instance; frames are 1-based."""

    study: str
    series: str | None = None
    instance: str | None = None

    @property
    def level(self) -> Level:
        if self.instance:
            return Level.IMAGE
        return Level.SERIES if self.series else Level.STUDY

    @property
    def path(self) -> str:
        """The WADO-RS path below the service root: 'studies/1.2/series/3.4'."""
        series = f"/series/{self.series}" if self.series else ""
        return f"studies/{self.study}{series}" + (f"/instances/{self.instance}" if self.instance else "")


def check_uid(uid: str, parameter: str) -> str:
    """The UID itself; zeros at the beginning of a component are wrong (PS3.5 9.1), and in the archives. Raises InvalidQuery for
    what is none."""
    return _checked(uid, parameter, _UID)


def check_right_uid(uid: str, parameter: str) -> str:
    """The UID itself, for what is to be stored. Raises InvalidQuery unless it is as PS3.5 9.1 has it."""
    return _checked(uid, parameter, _RIGHT_UID)


def _checked(uid: str, parameter: str, form: re.Pattern[str]) -> str:
    if len(uid) > _LONGEST_UID or not form.fullmatch(uid):
        raise InvalidQuery(f"{parameter} is not a DICOM UID", parameter=parameter)
    return uid


def parse_match(path: tuple[str, ...], raw: str) -> Match | None:
    """A key from its QIDO-RS text (PS3.18 8.3.4.1). None is universal matching (an empty value, or '*' alone).

    Raises InvalidQuery for a malformed UID, date, time or number.
    """
    name = path_name(path)
    vr_ = vr(path[-1])
    if vr_ == "SQ":
        raise InvalidQuery(
            f"{name} is a sequence: match one of its attributes, as in {name}.<attribute>", parameter=name
        )
    if raw in ("", "*", EMPTY_VALUE):
        return None
    if vr_ == "UI":
        uids = tuple(check_uid(uid.strip(), name) for uid in re.split(r"[,\\]", raw))
        return Match(path, Operator.LIST if len(uids) > 1 else Operator.EXACT, uids)
    if vr_ in ("DA", "TM", "DT"):
        return _temporal(path, name, vr_, raw)
    if vr_ in ("IS", "DS"):
        return Match(path, Operator.EXACT, (_checked_number(raw, name),))
    if vr_ in _WILDCARD_VRS and ("*" in raw or "?" in raw):
        # A node that tries every way to share a value out among a row of them may not come back.
        key = _ROW_OF_STARS.sub("*", raw)
        return None if key == "*" else Match(path, Operator.WILDCARD, (key,))
    return Match(path, Operator.EXACT, (raw,))


@dataclass(frozen=True, slots=True)
class Matching:
    """The kinds of matching that a request asks for besides the usual ones (PS3.18 8.3.4.2, 8.3.4.5, 8.3.4.6)."""

    fuzzy: bool = False
    empty: bool = False
    multiple: bool = False

    def parse(self, path: tuple[str, ...], raw: str) -> tuple[Match, ...]:
        """The keys that one parameter means; none is universal matching. Raises InvalidQuery as `parse_match` does."""
        last, name = path[-1], path_name(path)
        if self.empty and raw == EMPTY_VALUE:
            return (Match(path, Operator.EMPTY, ("",)),)
        if self.multiple and "\\" in raw and vr(last) in _MULTIPLE_VRS and has_several_values(last):
            if "*" in raw or "?" in raw:
                raise InvalidQuery(f"{name}: several values to match take no wildcards", parameter=name)
            found = (parse_match(path, value) for value in dict.fromkeys(raw.split("\\")))
            return tuple(match for match in found if match)
        match = parse_match(path, raw)
        if match and self.fuzzy and match.vr == "PN" and name_words(match.values[0]):
            return (replace(match, operator=Operator.FUZZY),)
        return (match,) if match else ()


def _temporal(path: tuple[str, ...], name: str, vr_: str, raw: str) -> Match:
    low, dash, high = _split_range(vr_, raw)
    for end in filter(None, (low, high)):
        _check_moment(vr_, end, name)
    if not dash:
        return Match(path, Operator.EXACT, (low,))
    if not (low or high):
        raise InvalidQuery(f"{name}: a range needs at least one end", parameter=name)
    if low and high and low > high and vr_ == "DA":
        raise InvalidQuery(f"{name}: the range ends before it begins", parameter=name)
    if vr_ == "DT" and len(high) == 4:
        high += "1231"  # a node may take '-2025' for an offset
    return Match(path, Operator.RANGE, (low, high))


def _split_range(vr_: str, raw: str) -> tuple[str, str, str]:
    """(low, '-' or '', high). A DT may carry a negative offset, so only a dash that is not an offset separates: '-0500' is one,
    '-2025' is the year that a range ends with."""
    if vr_ != "DT":
        return raw.partition("-")
    separators = [found.start() for found in _DASH.finditer(raw) if not found[1] or not parse_offset(f"-{found[1]}")]
    if not separators:
        return raw, "", ""
    return raw[: separators[0]], "-", raw[separators[0] + 1 :]


def _check_moment(vr_: str, value: str, name: str) -> None:
    """Refuses what has not the form of the VR, and a day, a time or an offset that there is not: it would match nothing at all."""
    has_offset = vr_ == "DT" and value[-5:-4] in ("+", "-")
    if (
        not _FORMS[vr_].fullmatch(value)
        or span(vr_, value) is None
        or (has_offset and parse_offset(value[-5:]) is None)
    ):
        form = {"DA": "YYYYMMDD", "TM": "HHMMSS", "DT": "YYYYMMDDHHMMSS"}[vr_]
        raise InvalidQuery(f"{name} is not a {form} value or range", parameter=name)


def _checked_number(raw: str, name: str) -> str:
    if not _NUMBER.fullmatch(raw):
        raise InvalidQuery(f"{name} is not a number", parameter=name)
    return raw


__all__ = [
    "INSTANCE_UID",
    "SERIES_UID",
    "STUDY_UID",
    "Match",
    "Operator",
    "Query",
    "Ref",
    "check_right_uid",
    "check_uid",
    "parse_match",
]
