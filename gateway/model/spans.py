"""The span of time that a date, time or datetime names, and whether a moment lies in it (PS3.4 C.2.2.2.5).

A value of less precision is the whole span it names: the TM '10' is 10:00:00 to 10:59:59.999999.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, datetime, time
from functools import lru_cache

from gateway.model.moments import parse_date, parse_offset, parse_time

Span = tuple[datetime, datetime]

_NO_DAY = date(2000, 1, 1)  # times alone are compared on one arbitrary day
_DT = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:\.(\d{1,6}))?([+-]\d{4})?")


@lru_cache(maxsize=16384)
def span(vr: str, value: str) -> Span | None:
    """The first and the last moment that a DA, TM or DT value names; None for what is none."""
    if vr == "DA":
        day = parse_date(value)
        return (datetime.combine(day, time.min), datetime.combine(day, time.max)) if day else None
    return _time_span(value) if vr == "TM" else _datetime_span(value)


def lies_within(moment: datetime, low: Span | None, high: Span | None) -> bool:
    """Whether a moment is not before the span `low` begins and not after `high` ends; None is an open end."""
    return (low is None or _compare(moment, low[0]) >= 0) and (high is None or _compare(moment, high[1]) <= 0)


def _compare(one: datetime, other: datetime) -> int:
    """By the offsets where both have one, else by the clocks."""
    if (one.tzinfo is None) is not (other.tzinfo is None):
        one, other = one.replace(tzinfo=None), other.replace(tzinfo=None)
    return (one > other) - (one < other)


def _time_span(value: str) -> Span | None:
    clock = parse_time(value)
    if clock is None:
        return None
    digits = value.strip().replace(":", "").replace(".", "")
    last = parse_time(digits[:6].ljust(6, "x").replace("xx", "59") + "." + digits[6:].ljust(6, "9"))
    return datetime.combine(_NO_DAY, clock), datetime.combine(_NO_DAY, last or clock)


def _datetime_span(value: str) -> Span | None:
    found = _DT.fullmatch(value.strip())
    if not found:
        return None
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    zone = parse_offset(offset) if offset else None
    try:
        first_day = date(int(year), int(month or 1), int(day or 1))
        last_month = int(month or 12)
        last_day = first_day.replace(month=last_month, day=int(day or monthrange(first_day.year, last_month)[1]))
    except ValueError:
        return None
    clock = f"{hour or ''}{minute or ''}{second or ''}{'.' + fraction if fraction else ''}"
    times = _time_span(clock) if clock else (datetime.min, datetime.max)
    if times is None:
        return None
    return datetime.combine(first_day, times[0].time(), zone), datetime.combine(last_day, times[1].time(), zone)
