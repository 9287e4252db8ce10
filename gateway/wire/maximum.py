"""A maximum that a node says nothing of (Orthanc's LimitFindResults): a part of what it gave, asked for alone, shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from gateway.model.dataset import Dataset, text
from gateway.model.moments import da, parse_date, parse_time
from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import PATIENT_ID, STUDY_DATE, STUDY_TIME, STUDY_UID, keyword
from gateway.wire.widen import is_taken_alike

_FROM, _MOST_STARTS = 50, 10


def smells(count: int) -> bool:
    """Whether so many rows may be a maximum: a round number, or one more than people set (Orthanc gives that)."""
    is_round = count % 50 == 0 or count & (count - 1) == 0
    return count >= _FROM and (is_round or count == _FROM + 1 or count % 100 == 1)


def names_as_many(query: NativeQuery, count: int) -> bool:
    """Whether the query asks for no more studies than were found."""
    uids = next((match.values for match in query.match if match.path == keyword(STUDY_UID)), ())
    return 0 < len(uids) <= count


async def hides_some(
    query: NativeQuery, rows: Sequence[Dataset], ask: Callable[[NativeQuery], Awaitable[Sequence[str]]]
) -> bool:
    """Whether an archive that gave these rows holds others, as far as parts of them tell, whose studies `ask` gives: one has
    others, or is no less."""
    known = {text(row, STUDY_UID) for row in rows}
    for part in parts_that_tell(query, rows):
        found = await ask(part)
        if len(found) >= len(rows) or not known.issuperset(found):
            return True
    return False


def parts_that_tell(query: NativeQuery, rows: Sequence[Dataset]) -> tuple[NativeQuery, ...]:
    """Searches for a part of what was found each, where an archive that hides some has others too: a half of it by date, else by
    time; else one for each way in which PatientIDs begin, the rarest first. () where nothing differs."""
    half = _half(query, STUDY_DATE, rows) or _half(query, STUDY_TIME, rows)
    return (half,) if half else _by_patients(query, rows)


def _half(query: NativeQuery, tag_: str, rows: Iterable[Dataset]) -> NativeQuery | None:
    """The half on whose side rows are missing where they came in order."""
    name = keyword(tag_)
    asked = next((match for match in query.match if match.path == name), None)
    shown = [found for row in rows if (found := _value(tag_, text(row, tag_)))]
    if (asked is not None and asked.operator is not Operator.RANGE) or len(set(shown)) < 2:
        return None
    low, high = asked.values if asked else ("", "")
    known = sorted(set(shown))
    middle = known[len(known) // 2 - 1]
    ends = (low, middle) if shown[0] > shown[-1] else (_next(tag_, middle), high)
    return _narrowed(query, NativeMatch(name, Operator.RANGE, ends))


def _by_patients(query: NativeQuery, rows: Iterable[Dataset]) -> tuple[NativeQuery, ...]:
    ids = [text(row, PATIENT_ID) for row in rows]
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(ids), max(ids), strict=False)))
    counted = Counter(each[: alike + 1] for each in ids if len(each) > alike)
    told = [start for start in sorted(counted, key=lambda one: (counted[one], one)) if is_taken_alike(start)]
    name = keyword(PATIENT_ID)
    if len(ids) in counted.values() or any(match.path == name for match in query.match):
        return ()
    keys = (NativeMatch(name, Operator.WILDCARD, (f"{start}*",)) for start in told[:_MOST_STARTS])
    return tuple(_narrowed(query, key) for key in keys)


def _narrowed(query: NativeQuery, match: NativeMatch) -> NativeQuery:
    kept = tuple(one for one in query.match if one.path != match.path)
    return replace(query, match=(*kept, match), limit=None, samples=False)


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
