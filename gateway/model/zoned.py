"""Dates and times as a request means them, at an offset of its own: what nodes are asked instead, and which results answer.

PS3.4 C.2.2.2.5.4: with (0008,0201) in the request its dates and times are those of that offset, not the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from gateway.model.answer import Found
from gateway.model.dataset import Dataset, attribute, text
from gateway.model.matching import DATE_TIME_PAIRS, decider
from gateway.model.moments import da, parse_date, parse_offset, parse_time, zone_of
from gateway.model.query import Match, Operator, Query
from gateway.model.vocabulary import tag

_BIRTH_DATE = tag("PatientBirthDate")
# A day of birth is nobody's moment: no offset applies to it (PS3.3 C.12.1.1.8).
_PAIRS = {day: clock for day, clock in DATE_TIME_PAIRS.items() if day != _BIRTH_DATE}
_DAYS_OF = {clock: day for day, clock in _PAIRS.items()}
_DAY = timedelta(days=1)


def at_offset(query: Query, offset: str) -> Query:
    """The query whose dates and times are at `offset` ('+0200'), as nodes are to be asked: a day wider either way, without
    times of day, which come back with the rows instead. DT values without an offset get this one."""
    own = [match for match in query.matches if _is_moved(match)]
    dates = [_wider(match) for match in own if match.path[0] in _PAIRS]
    others = [_with_offset(match, offset) for match in query.matches if match not in own]
    pairs = {(tag_,) for match in own for tag_ in _pair(match)}
    return replace(
        query,
        matches=(*others, *dates),
        return_=tuple(dict.fromkeys((*query.return_, *sorted(pairs)))),
        zoned=tuple(own),
        zone=offset if own else "",
    )


def condition(query: Query, time_zones: Mapping[str, str]) -> Callable[[Found], bool] | None:
    """Whether a result answers the keys that are meant at the query's offset; None where there are none.

    Its own offset is (0008,0201), else its node's time zone. Where neither is known, or no time of day, it may be at any
    offset: what the wider keys found then stays.
    """
    zone = parse_offset(query.zone)
    if not query.zoned or zone is None:
        return None

    def answers(found: Found) -> bool:
        row = found.rows[0]
        there = moved(found.attributes, zone, time_zones.get(found.origin))
        known = tuple(match for match in query.zoned if _pair(match)[0] in there)
        asked = Query(query.level, known, combined_datetime=query.combined_datetime)
        return decider(asked)(replace(row, attributes={**found.attributes, **there}))[0] is not False

    return answers


def _is_moved(match: Match) -> bool:
    is_moment = len(match.path) == 1 and (match.path[0] in _PAIRS or match.path[0] in _DAYS_OF)
    return is_moment and match.operator in (Operator.EXACT, Operator.RANGE)


def _pair(match: Match) -> tuple[str, str]:
    """The date and the time that the key is about."""
    day = _DAYS_OF.get(match.path[0], match.path[0])
    return day, _PAIRS[day]


def _wider(match: Match) -> Match:
    low, high = match.values[0], match.values[-1]
    return replace(match, operator=Operator.RANGE, values=(_shifted(low, -_DAY), _shifted(high, _DAY)))


def _shifted(value: str, by: timedelta) -> str:
    day = parse_date(value)
    try:
        return da(day + by) if day else ""
    except OverflowError:
        return ""


def _with_offset(match: Match, offset: str) -> Match:
    if match.vr != "DT" or match.operator not in (Operator.EXACT, Operator.RANGE):
        return match
    return replace(match, values=tuple(v if not v or v[-5:-4] in ("+", "-") else v + offset for v in match.values))


def moved(attributes: Dataset, zone: timezone, time_zone: str | None) -> Dataset:
    """The dates and times at `zone`, of each pair of which both and the offset are known."""
    own = zone_of(attributes, time_zone)
    found: Dataset = {}
    for day_tag, clock_tag in _PAIRS.items() if own else ():
        day, clock = parse_date(text(attributes, day_tag)), parse_time(text(attributes, clock_tag))
        if day and clock:
            found |= _at(day_tag, clock_tag, datetime.combine(day, clock, own), zone)
    return found


def _at(day_tag: str, clock_tag: str, moment: datetime, zone: timezone) -> Dataset:
    try:
        there = moment.astimezone(zone)
    except OverflowError:
        return {}
    clock = f"{there:%H%M%S.%f}"
    return {day_tag: attribute(day_tag, [da(there.date())]), clock_tag: attribute(clock_tag, [clock])}


def offset_of(raw: str) -> str:
    """'+0200' as a request gives it; a plus sign that was not encoded has become a space. '' for what is no offset."""
    offset = "+" + raw[1:] if raw.startswith(" ") else raw
    return offset if parse_offset(offset) and offset == offset.strip() else ""
