"""A maximum that a node says nothing of (Orthanc's LimitFindResults): parts of what it gave, asked for alone, show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from gateway.model.dataset import Dataset, text
from gateway.model.moments import da, parse_date, parse_time
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import STUDY_DATE, STUDY_TIME, STUDY_UID, keyword

_FROM = 50


def smells(count: int) -> bool:
    """Whether so many rows may be a maximum: a round number, or one more (Orthanc gives one more than its own)."""
    return count >= _FROM and any(each % 50 == 0 or each & (each - 1) == 0 for each in (count, count - 1))


def names_as_many(query: NativeQuery, count: int) -> bool:
    """Whether the query asks for no more studies than were found."""
    uids = next((match.values for match in query.match if match.path == keyword(STUDY_UID)), ())
    return 0 < len(uids) <= count


def halves(query: NativeQuery, rows: Sequence[Dataset]) -> tuple[NativeQuery, ...]:
    """Two searches that share what was found by date, else by time; () where it cannot be shared by either."""
    return _shared(query, STUDY_DATE, rows) or _shared(query, STUDY_TIME, rows)


def _shared(query: NativeQuery, tag_: str, rows: Iterable[Dataset]) -> tuple[NativeQuery, ...]:
    name = keyword(tag_)
    asked = next((match for match in query.match if match.path == name), None)
    if asked is not None and asked.operator is not Operator.RANGE:
        return ()
    low, high = asked.values if asked else ("", "")
    shown = sorted({found for row in rows if (found := _value(tag_, text(row, tag_)))})
    if len(shown) < 2:
        return ()
    middle = len(shown) // 2
    kept = tuple(match for match in query.match if match is not asked)
    return tuple(
        replace(query, match=(*kept, NativeMatch(name, Operator.RANGE, ends)), limit=None, samples=False)
        for ends in ((low, shown[middle - 1]), (_next(tag_, shown[middle - 1]), high))
    )


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
