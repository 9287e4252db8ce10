"""A maximum that a node says nothing of (Orthanc's LimitFindResults): parts of what it gave, asked for alone, show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from gateway.model.dataset import Dataset, text
from gateway.model.moments import da, parse_date, parse_time
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import PATIENT_ID, STUDY_DATE, STUDY_TIME, STUDY_UID, keyword
from gateway.wire.widen import without_oddities

_FROM, _LETTERS = 50, 40


def smells(count: int) -> bool:
    """Whether so many rows may be a maximum: a round number, or one more (Orthanc gives one more than its own)."""
    return count >= _FROM and any(each % 50 == 0 or each & (each - 1) == 0 for each in (count, count - 1))


def names_as_many(query: NativeQuery, count: int) -> bool:
    """Whether the query asks for no more studies than were found."""
    uids = next((match.values for match in query.match if match.path == keyword(STUDY_UID)), ())
    return 0 < len(uids) <= count


def parts(query: NativeQuery, rows: Sequence[Dataset]) -> tuple[NativeQuery, ...]:
    """Searches that share what was found: two by date, else by time, else as many as there are letters in which the PatientIDs
    begin to differ; () where it cannot be shared."""
    return _shared(query, STUDY_DATE, rows) or _shared(query, STUDY_TIME, rows) or _by_patients(query, rows)


def _by_patients(query: NativeQuery, rows: Iterable[Dataset]) -> tuple[NativeQuery, ...]:
    name = keyword(PATIENT_ID)
    ids = sorted({text(row, PATIENT_ID) for row in rows})
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[0], ids[-1], strict=False)))
    prefix, letters = ids[0][:alike], {each[alike : alike + 1] for each in ids}
    if any(match.path == name for match in query.match) or not 1 < len(letters) <= _LETTERS or "" in letters:
        return ()
    starts = [prefix + letter for letter in sorted(letters)]
    if any(without_oddities(start) != start or not start.isascii() for start in starts):
        return ()
    return tuple(_part(query, NativeMatch(name, Operator.WILDCARD, (f"{start}*",))) for start in starts)


def _part(query: NativeQuery, match: NativeMatch) -> NativeQuery:
    kept = tuple(one for one in query.match if one.path != match.path)
    return replace(query, match=(*kept, match), limit=None, samples=False)


def _shared(query: NativeQuery, tag_: str, rows: Iterable[Dataset]) -> tuple[NativeQuery, ...]:
    name = keyword(tag_)
    asked = next((match for match in query.match if match.path == name), None)
    if asked is not None and asked.operator is not Operator.RANGE:
        return ()
    low, high = asked.values if asked else ("", "")
    shown = sorted({found for row in rows if (found := _value(tag_, text(row, tag_)))})
    if len(shown) < 2:
        return ()
    middle = shown[len(shown) // 2 - 1]
    halves = (low, middle), (_next(tag_, middle), high)
    return tuple(_part(query, NativeMatch(name, Operator.RANGE, ends)) for ends in halves)


def _value(tag_: str, shown: str) -> str:
    """A day, or a whole second; '' for what is none."""
    if tag_ == STUDY_DATE:
        day = parse_date(shown)
        return da(day) if day else ""
    clock = parse_time(shown)
    return f"{clock:%H%M%S}" if clock else ""


def _next(tag_: str, value: str) -> str:
    if tag_ == STUDY_DATE:
        day = parse_date(value)
        return da(day + timedelta(days=1)) if day else value
    return f"{datetime.strptime(value, '%H%M%S') + timedelta(seconds=1):%H%M%S}"
