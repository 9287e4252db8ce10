"""Parts of one node's answer that can be asked for by themselves: by StudyDate, then StudyTime, modality, PatientID prefix.

Pure: which parts a search falls into and how one that is too large is cut. What asks for them is federation/walk.py.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from gateway.federation.page import UNDATED, Sort, day_begins, day_ends, day_of, moment, moment_of, timeless
from gateway.model.dataset import text, texts
from gateway.model.matching import combined
from gateway.model.moments import da, parse_date
from gateway.model.query import Match, Operator, Query
from gateway.model.seam import Shown
from gateway.model.study import Row
from gateway.model.vocabulary import (
    MODALITIES_IN_STUDY,
    OTHER_PATIENT_IDS,
    PATIENT_ID,
    STUDY_DATE,
    STUDY_TIME,
    STUDY_UID,
    tag,
)
from gateway.wire.widen import is_taken_alike

END = "\x7f"
"""The frontier of what was looked at to its end: behind every moment, that of undated studies included."""
_SELECTIVE = frozenset({STUDY_UID, PATIENT_ID, OTHER_PATIENT_IDS, tag("AccessionNumber"), tag("StudyID")})
_LADDER_YEARS = (1, 4, 10, 25, 60)
_PARTS, _MOST_SAMPLES = 8, 2
LATER = "+"
"""Behind a moment, before the next second."""
_FIRST_DAY, _DAY = date(1800, 1, 1), timedelta(days=1)
_CLOCKS = (6 * 3600, 3600, 600, 60)
_ALL_DAY = ("000000", "235959")
_MOST_LETTERS = 4
_NEARLY_ALL = 0.9
_NEVER_ASKED = set("*?\\,%")  # a wildcard, or taken for more than itself
_PREFIXES = sorted(set(string.printable) - set(string.whitespace) - _NEVER_ASKED)
_TAKEN_ALIKE = set(filter(is_taken_alike, _PREFIXES))
# DICOM CID 29 and 33, which every sane archive keeps to; what a node shows beside them is added.
_MODALITIES = (
    "ANN", "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC", "DX", "ECG", "EEG",
    "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS",
    "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA", "PLAN",
    "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD",
    "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "TG", "US",
    "VA", "XA", "XAPROTOCOL", "XC",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """`low` and `high` are StudyDates, '' open, both included; neither and not `undated` is everything.

    `clock` is a range of StudyTime within one day. `prefix` is how its PatientIDs begin, as it was cut by `letters` of them, which
    others may lie between. `growth` counts how often a ceiling on its rows was too low. A
    `crowded` one holds so much that it is not asked for before it is needed. A day that is opened `in_turn`, node by node, holds
    what has no time; what has, and comes before that, is the `timed` part of it.
    """

    low: str = ""
    high: str = ""
    dated: bool = False
    undated: bool = False
    clock: tuple[str, str] | None = None
    modality: str = ""
    prefix: str = ""
    letters: int = 0
    growth: int = 0
    crowded: bool = False
    timed: bool = False
    in_turn: bool = False

    @property
    def is_day(self) -> bool:
        return self.dated and self.low == self.high != ""

    @property
    def is_deep(self) -> bool:
        """Whether it is a part of what its dates alone do not cut small enough."""
        return bool(self.clock or self.modality or self.prefix)

    @property
    def is_everything(self) -> bool:
        return not (self.dated or self.undated or self.is_deep)

    def start(self, sort: Sort) -> str:
        """The moment before which (in the order of `sort`) nothing of it lies; '' when that cannot be said."""
        if sort is Sort.ID or not (self.dated or self.undated):
            return ""
        if self.undated:
            return UNDATED
        day = self.high if sort is Sort.NEWEST else self.low
        if not day:
            return ""
        if self.in_turn:
            return timeless(day, sort)
        return moment(day, self.clock[1 if sort is Sort.NEWEST else 0], sort) if self.clock else day_begins(day, sort)

    def ends_before(self, position: str, sort: Sort) -> bool:
        """Whether all of it lies before a moment, in the order of `sort`."""
        day = self.low if sort is Sort.NEWEST else self.high
        if sort is Sort.ID or not self.dated or not day:
            return False
        return day_ends(day, sort) < position

    @property
    def is_range(self) -> bool:
        """Whether it is of more days than one, and of everything on them."""
        return self.is_everything or (self.dated and not self.is_day and not self.is_deep)

    def holds_day(self, day: str) -> bool:
        return self.dated and self.low <= day <= (self.high or day)

    def below(self, **own: Any) -> Segment:
        """The part of it that one more key cuts out."""
        return replace(self, growth=0, crowded=False, **own)

    def narrowed(self, query: Query) -> Query:
        """The query for just this part."""
        return _narrowed(self, query)

    def end(self, sort: Sort) -> str:
        """Of a day, the moment from which on nothing of it lies, in the order of `sort`."""
        return day_ends(self.low, sort) + LATER

    @property
    def name(self) -> str:
        """For people: 'StudyDate 20000101-20000131, Modality CT, PatientID A*'."""
        if self.undated:
            return "studies without a StudyDate"
        days = self.low if self.is_day else f"{self.low}-{self.high}"
        parts = [f"StudyDate {days}"] if self.dated else []
        clock = self.clock or (_ALL_DAY if self.timed else None)
        parts += [f"StudyTime {'-'.join(clock)}"] if clock else []
        parts += [f"Modality {self.modality}"] if self.modality else []
        parts += [f"PatientID {self.prefix}*"] if self.prefix else []
        return ", ".join(parts)


@lru_cache(256)
def _can_cut_range(cutter: Cutter, segment: Segment) -> bool:
    if segment.is_everything:
        return bool(cutter._by_ladder(*_asked_days(cutter.query.match_on(STUDY_DATE))))
    return bool(_equal_parts(segment, cutter.today))


@lru_cache(256)
def _split_once(
    cutter: Cutter, segment: Segment, day: str, is_crowded: bool, waits: bool, in_turn: bool, in_steps: bool
) -> tuple[Segment, ...]:
    return tuple(cutter._split(segment, day, is_crowded, waits, in_turn, in_steps))


@lru_cache(256)
def _narrowed(part: Segment, query: Query) -> Query:
    """Of one part mostly all nodes are asked."""
    own: dict[str, Match] = {}
    if part.dated:
        own[STUDY_DATE] = _range(STUDY_DATE, part.low, part.high)
    if part.clock or part.timed:
        own[STUDY_TIME] = _range(STUDY_TIME, *(part.clock or _ALL_DAY))
    if part.modality:
        own[MODALITIES_IN_STUDY] = Match((MODALITIES_IN_STUDY,), Operator.EXACT, (part.modality,))
    if part.prefix:
        own[PATIENT_ID] = Match((PATIENT_ID,), Operator.WILDCARD, (part.prefix + "*",))
    kept = tuple(match for match in query.matches if len(match.path) > 1 or match.path[0] not in own)
    # Of the days of a part and the query's own range of times nobody has made one span.
    spans = _has_spans(query)
    return replace(query, matches=(*kept, *own.values()), undated=part.undated, combined_datetime=spans)


def _range(tag_: str, low: str, high: str) -> Match:
    if low == high:
        return Match((tag_,), Operator.EXACT, (low,))
    return Match((tag_,), Operator.RANGE, (low, high))


def from_moment(start: str, sort: Sort, query: Query) -> list[Segment]:
    """The parts that hold what lies from a moment on ('' for all): its day first, which may be all that a page needs."""
    if start == UNDATED:
        return [Segment(undated=True)]
    day = day_of(start, sort)
    if day and start == day_ends(day, sort) + LATER:
        return _behind(day, sort, query)
    return [Segment(day, day, dated=True), Segment()] if day else [Segment()]


def _behind(day: str, sort: Sort, query: Query) -> list[Segment]:
    """The parts that hold what lies behind a day, of those that the query names; nothing of the day itself."""
    last = parse_date(day)
    if last in (None, date.min, date.max):
        return [Segment()]
    low, high = ("", da(last - _DAY)) if sort is Sort.NEWEST else (da(last + _DAY), "")
    asked = query.match_on(STUDY_DATE)
    rest = _clipped(Segment(low, high, dated=True), *_asked_days(asked))
    return [*([rest] if rest else []), *([] if asked else [Segment(undated=True)])]


def is_broad(query: Query) -> bool:
    """Whether a search may have so many results that only its first page is to be fetched: no key names few studies.

    A PatientID always does: whose it is can only be told from all its results.
    """
    if any(match.path[0] in _SELECTIVE for match in query.matches):
        return False
    day = query.match_on(STUDY_DATE)
    return not (day and day.operator is not Operator.RANGE) and not _means_one_span(query)


def lies_elsewhere(shown: Iterable[Shown], query: Query) -> bool:
    """Whether most of what a node showed lies on other days than those between which it was asked, by more than a time zone
    makes."""
    low, high = map(parse_date, _asked_days(query.match_on(STUDY_DATE)))
    if low is None or high is None:
        return False
    counted = Counter(day for day, _ in shown)  # of many rows there are few days
    elsewhere = 0
    for text_, count in counted.items():
        day = parse_date(text_)
        if day is None or not low - day <= _DAY >= day - high:
            elsewhere += count
    return 2 * elsewhere > counted.total()


def can_be_cut(query: Query) -> bool:
    """Whether parts can be asked for by StudyDate at all: not where date and time together mean one span, nor where what
    has no date is asked for."""
    day = query.match_on(STUDY_DATE)
    is_empty = day is not None and day.operator is Operator.EMPTY
    return not query.match_on(STUDY_UID) and not is_empty and not _means_one_span(query)


def _means_one_span(query: Query) -> bool:
    """Whether it has a range of times that goes with a date: then days that it does not name itself would go with it, too."""
    clock = query.match_on(STUDY_TIME)
    return bool(clock and clock.operator is Operator.RANGE and _has_spans(query))


def _has_spans(query: Query) -> bool:
    """Whether any date and time of it are meant as one."""
    return next(combined(query), None) is not None


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts what is too large, in the order of `sort`. `today` anchors the first cut: most searches want what is recent.

    `share` is how many results a first page takes from one node; 0 for a later page, and for all there are.
    """

    query: Query
    sort: Sort
    today: date
    share: int = 0

    def cut(self, segment: Segment, rows: Sequence[Row], *, takes_times: bool = True) -> list[Segment]:
        """The parts of a segment; [] when it cannot be cut further. `rows` is what the node gave of it, which is asked by time
        where it `takes_times`."""
        if segment.undated:
            return []
        if segment.is_everything or (segment.dated and not segment.is_day):
            parts = self.cut_range(segment, [moment_of(row.attributes, self.sort) for row in rows])
            if segment.is_everything or parts:
                return parts
        by_clock = self._by_clock(segment, rows) if takes_times else []
        if by_clock or set(segment.prefix) - _TAKEN_ALIKE:  # such a one was not asked of the node as it is
            return by_clock
        if _are_told_by_letters(segment, rows):
            return self._by_prefix(segment, rows) or self._by_modality(segment, rows)
        return self._by_modality(segment, rows) or self._by_prefix(segment, rows)

    def can_cut_range(self, segment: Segment) -> bool:
        """Whether there are days in a range to cut it by."""
        return _can_cut_range(self, segment)

    def cut_range(self, segment: Segment, moments: Sequence[str]) -> list[Segment]:
        """The parts of days of which the node showed studies of these moments; [] where there are none."""
        if segment.is_everything:
            asked = _asked_days(self.query.match_on(STUDY_DATE))
            return self._by_sample(segment, moments) or self._by_ladder(*asked)
        return self._by_sample(segment, moments) or self._in_order(_equal_parts(segment, self.today))

    def blindly(self, segment: Segment) -> list[Segment]:
        """As `cut_range`, where nothing shows where the page begins."""
        return self.cut_range(segment, ())

    def _by_sample(self, segment: Segment, shown: Sequence[str]) -> list[Segment]:
        """The part up to where moments show a page's `share` of one node, and the rest. [] where that is no cut.

        Of n rows out of N, in no order, the first j show where about j N / n lie: mostly what a page needs, in one question.
        A day that holds most of the rows is a part of its own.
        """
        day, is_crowded = self._end_of_share(shown)
        return self.split(segment, day, is_crowded, is_crowded) if day else []

    def split(
        self, segment: Segment, day: str, is_crowded: bool, waits: bool, in_turn: bool = False, in_steps: bool = False
    ) -> list[Segment]:
        """As `_split`, which is worked out once for the nodes that are cut alike: mostly all of them."""
        return list(_split_once(self, segment, day, is_crowded, waits, in_turn, in_steps))

    def _split(
        self, segment: Segment, day: str, is_crowded: bool, waits: bool, in_turn: bool, in_steps: bool
    ) -> list[Segment]:
        """The part of a range up to a day, in the order of `sort`, and the rest, with a crowded day as a part of its own, which
        may have to wait; what of it has a time comes first where it is opened `in_turn`, and what is before it is in several parts
        where that is done `in_steps`. [] where that is no cut, or where samples did not help."""
        at = parse_date(day)
        low, high = (segment.low, segment.high) if segment.dated else _asked_days(self.query.match_on(STUDY_DATE))
        if at in (None, date.min, date.max) or segment.growth > _MOST_SAMPLES:
            return []
        if (low and day < low) or (high and day > high):
            return []
        part = Segment(dated=True, growth=segment.growth + 1)
        older, newer = (low, da(at - _DAY)), (da(at + _DAY), high)
        if self.sort is Sort.NEWEST:
            near, rest = newer if is_crowded else (day, high), older
        else:
            near, rest = older if is_crowded else (low, day), newer
        own = [replace(part, low=day, high=day, crowded=waits)] if is_crowded else []
        if own and in_turn and not self.query.match_on(STUDY_TIME):
            timed = [replace(own[0], crowded=False, timed=True)] if self.sort is Sort.NEWEST else []
            own = [*timed, replace(own[0], in_turn=True)]
        behind = self._by_ladder(*rest) if segment.is_everything else _within(segment, *rest)
        before = self._rungs(*near, part.growth) if in_steps else _within(part, *near)
        parts = [*before, *own, *behind]
        return parts if len(parts) > 1 else []

    def _end_of_share(self, shown: Sequence[str]) -> tuple[str, bool]:
        """The day up to which a page's share of one node is shown, and whether most lies on it; '' for no such day."""
        moments = sorted(at for at in shown if at < UNDATED)
        if self.sort is Sort.ID or not moments or not self.share:
            return "", False
        at = moments[min(self.share, len(moments)) - 1]
        here = sum(1 for each in moments if each[:8] == at[:8])
        return day_of(at, self.sort), 2 * here > len(moments)

    def _by_ladder(self, low: str, high: str) -> list[Segment]:
        """The dated part in steps that grow into the past, within two dates, '' being open; undated studies last, where the
        search names no dates."""
        asked, ladder = self.query.match_on(STUDY_DATE), self._rungs(low, high)
        if asked:
            return ladder if len(ladder) > 1 else [part for each in ladder for part in self._days_of(each)]
        return [*ladder, Segment(undated=True)]

    def _rungs(self, low: str, high: str, growth: int = 1) -> list[Segment]:
        month = (self.today.replace(day=1) - timedelta(days=1)).replace(day=1)
        edges = [month, *(date(self.today.year - years, 1, 1) for years in _LADDER_YEARS)]
        starts = [*map(da, edges), ""]
        ends = ["", *(da(edge - _DAY) for edge in edges)]
        steps = [
            _clipped(Segment(start, end, dated=True, growth=growth), low, high)
            for start, end in zip(starts, ends, strict=True)
        ]
        return self._in_order(reversed([step for step in steps if step]))

    def _days_of(self, segment: Segment) -> list[Segment]:
        return [segment] if segment.is_day else self._in_order(_equal_parts(segment, self.today))

    def _in_order(self, oldest_first: Iterable[Segment]) -> list[Segment]:
        parts = list(oldest_first)
        return parts[::-1] if self.sort is Sort.NEWEST else parts

    def _by_clock(self, segment: Segment, rows: Sequence[Row]) -> list[Segment]:
        """Only where every row shows a time: a range of times never finds what has none."""
        seconds = _seconds(segment.clock)
        step = next((each for each in _CLOCKS if each < seconds), None)
        timed = all(text(row.attributes, STUDY_TIME) for row in rows)
        if step is None or segment.modality or segment.prefix or not timed or self.query.match_on(STUDY_TIME):
            return []
        first = _second(segment.clock[0]) if segment.clock else 0
        clocks = [(_clock(at), _clock(at + step - 1)) for at in range(first, first + seconds, step)]
        return self._in_order(segment.below(clock=clock) for clock in clocks)

    def _by_modality(self, segment: Segment, rows: Sequence[Row]) -> list[Segment]:
        shown = [set(texts(row.attributes, MODALITIES_IN_STUDY)) for row in rows]
        if segment.modality or not all(shown) or self.query.match_on(MODALITIES_IN_STUDY):
            return []
        codes = sorted({*_MODALITIES, *(code for codes in shown for code in codes)})
        return [segment.below(modality=code) for code in codes]

    def _by_prefix(self, segment: Segment, rows: Sequence[Row]) -> list[Segment]:
        """One letter more of the PatientID; where they all go on alike, the one behind that too."""
        ids = [row.patient.id for row in rows]
        known = len(segment.prefix)
        if segment.letters >= _MOST_LETTERS or not all(len(each) > known for each in ids) or self._names_patients():
            return []
        stem = _stem(segment.prefix, ids)
        begins = _begins(segment.prefix, ids)
        if len(stem) > known:
            begins = begins - {stem[: known + 1]} | _begins(stem, ids)
        return [segment.below(prefix=each, letters=segment.letters + 1) for each in sorted(begins)]

    def _names_patients(self) -> bool:
        return any(match.path[0] in (PATIENT_ID, OTHER_PATIENT_IDS) for match in self.query.matches)


def _are_told_by_letters(segment: Segment, rows: Sequence[Row]) -> bool:
    """Whether PatientIDs tell rows apart where modalities do not: nearly all show one and the same."""
    ids = [row.patient.id for row in rows]
    length = len(_stem(segment.prefix, ids))
    letters = [each[length : length + 1] for each in ids]
    codes = [code for row in rows for code in set(texts(row.attributes, MODALITIES_IN_STUDY))]
    return _most_alike(codes) >= _NEARLY_ALL * len(rows) > _most_alike(letters)


def _stem(prefix: str, ids: Sequence[str]) -> str:
    """How all of these begin that go on behind it; the prefix alone where they do not begin so, or not as every node takes it."""
    stem = commonprefix(ids)  # noqa: RUF071 - of letters, as is meant
    is_told = stem.startswith(prefix) and not set(stem) - _TAKEN_ALIKE and all(len(each) > len(stem) for each in ids)
    return stem if is_told else prefix


def _begins(prefix: str, ids: Sequence[str]) -> set[str]:
    """The prefix with each letter that may follow, those of `ids` included, which all go on behind it."""
    return {prefix + letter for letter in {*_PREFIXES, *(each[len(prefix)] for each in ids)} - _NEVER_ASKED}


def _most_alike(values: Iterable[str]) -> int:
    return max(Counter(values).values(), default=0)


def _asked_days(asked: Match | None) -> tuple[str, str]:
    if asked is None:
        return "", ""
    return (asked.values[0], asked.values[1]) if asked.operator is Operator.RANGE else (asked.values[0],) * 2


def _clipped(segment: Segment, low: str, high: str) -> Segment | None:
    """What of it lies between two dates, '' being open; None when nothing does."""
    first = max(segment.low, low)
    last = min(filter(None, (segment.high, high)), default="")
    return None if first and last and first > last else replace(segment, low=first, high=last)


def _within(segment: Segment, low: str, high: str) -> list[Segment]:
    """The segment between two dates; none where it would end before it begins."""
    return [] if low and high and low > high else [replace(segment, low=low, high=high)]


def _equal_parts(segment: Segment, today: date) -> list[Segment]:
    """Oldest first; [] for a range that ends before it begins. Open ends stay open at the outermost parts, until there is but the
    last day of the calendar, or the first."""
    low, high = parse_date(segment.low), parse_date(segment.high)
    first = low or (_FIRST_DAY if high is None or high > _FIRST_DAY else date.min)
    last = high or (today if first < today else date.max)
    if first >= last:
        return [replace(segment, low=da(first), high=da(last))] if first == last else []
    days = (last - first).days + 1
    edges = sorted({first + timedelta(days=days * part // _PARTS) for part in range(_PARTS)})
    ends = [*(edge - timedelta(days=1) for edge in edges[1:]), last]
    parts = [Segment(da(a), da(b), dated=True) for a, b in zip(edges, ends, strict=True)]
    parts[0] = replace(parts[0], low=segment.low)
    parts[-1] = replace(parts[-1], high=segment.high)
    return [replace(part, growth=segment.growth + 1) for part in parts]


def _seconds(clock: tuple[str, str] | None) -> int:
    return 86400 if clock is None else _second(clock[1]) - _second(clock[0]) + 1


def _second(clock: str) -> int:
    return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:6])


def _clock(second: int) -> str:
    return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"
