"""FHIR date search: prefixes and precision as spans of time (FHIR R4 search 3.1.1.4.7)."""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone

from gateway.errors import InvalidQuery

_PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
_MOMENT = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?(Z|[+-]\d{2}:\d{2})?)?)?)?"
)
_DAY = timedelta(days=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# A date without an offset may be anywhere on earth: UTC-12 to UTC+14.
_EARLIEST, _LATEST = timedelta(hours=14), timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Span:
    """[low, high) in UTC. `floating` says that no offset was given: the span is then local, written as if in UTC."""

    low: datetime
    high: datetime
    floating: bool


@dataclass(frozen=True, slots=True)
class Period:
    """A prefix and the span it speaks of."""

    prefix: str
    span: Span

    @staticmethod
    def parse(raw: str, parameter: str) -> Period:
        """'ge2026-03-01', '2026-03', '2026-03-01T10:00:00+01:00'. Raises InvalidQuery naming the parameter."""
        prefix = raw[:2] if raw[:2] in _PREFIXES else "eq"
        text = raw[2:] if raw[:2] in _PREFIXES else raw
        span = span_of(text.replace(" ", "+"))
        if span is None:
            raise InvalidQuery(f"{parameter} is not a FHIR date or dateTime", parameter=parameter)
        return Period(prefix, span)

    def days(self) -> tuple[date | None, date | None]:
        """The first and last StudyDate that can hold a match, None for an open end; both None for `ne`.

        Without an offset the days are those of the study's own calendar; else a day more, so that no time zone loses one.
        """
        first, last = self._days()
        if self.span.floating:
            return first, last
        return first and _shifted(first, -1), last and _shifted(last, 1)

    def _days(self) -> tuple[date | None, date | None]:
        low, high = self.span.low.date(), _last_day(self.span.high)
        if self.prefix in ("gt", "sa"):
            return self.span.high.date(), None
        if self.prefix in ("lt", "eb"):
            return None, _last_day(self.span.low)
        if self.prefix == "ge":
            return low, None
        if self.prefix == "le":
            return None, high
        if self.prefix == "ne":
            return None, None
        if self.prefix == "ap":
            margin = _margin(self.span)
            return _shifted(low, -margin), _shifted(high, margin)
        return low, high


def span_of(text: str) -> Span | None:
    """The span that a FHIR date, dateTime or instant covers by its precision; None when it is none."""
    found = _MOMENT.fullmatch(text)
    if not found:
        return None
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    try:
        low = datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            59 if second == "60" else int(second or 0),
        )
        low = low.replace(microsecond=int((fraction or "0").ljust(6, "0")[:6]), tzinfo=_zone(zone))
        if day is None:
            days = monthrange(low.year, low.month)[1] if month else 366 if monthrange(low.year, 2)[1] == 29 else 365
            high = _moved(low, timedelta(days=days))
        else:
            high = _moved(low, _precision(hour, second, fraction))
        return Span(low.astimezone(UTC), high.astimezone(UTC), zone is None)
    except (ValueError, OverflowError):
        return None


def _zone(zone: str | None) -> timezone:
    if zone in (None, "Z"):
        return UTC
    assert zone is not None
    distance = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    return timezone(-distance if zone[0] == "-" else distance)


def _precision(hour: str | None, second: str | None, fraction: str | None) -> timedelta:
    if hour is None:
        return _DAY
    if second is None:
        return timedelta(minutes=1)
    return timedelta(microseconds=10 ** max(0, 6 - len(fraction))) if fraction else timedelta(seconds=1)


def instant(moment: int) -> str:
    """A FHIR instant from milliseconds since the epoch."""
    return f"{datetime.fromtimestamp(moment // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{moment % 1000:03d}Z"


def compare(moment: str, period: Period) -> bool:
    """Whether a resource's `started` (with an offset, or a date only) answers a searched period.

    A searched date without an offset is the resource's own local day; a resource with a date only may be at any offset, so
    that against an exact instant it matches when some offset would make it match.
    """
    value = _local(moment) if period.span.floating else span_of(moment)
    if value is None:
        return False
    if value.floating and not period.span.floating:
        value = Span(_moved(value.low, -_EARLIEST), _moved(value.high, _LATEST), False)
        return _overlapping(value, period)
    return _exactly(value, period)


def compare_span(start: str | None, end: str | None, period: Period) -> bool:
    """As `compare`, for a Period, which may be open at either end."""
    read = _local if period.span.floating else span_of
    first, last = (read(each) if each else None for each in (start, end))
    low = first.low if first else datetime.min.replace(tzinfo=UTC)
    high = last.high if last else datetime.max.replace(tzinfo=UTC)
    floating = [each.floating for each in (first, last) if each]
    if not floating:
        return False
    if any(floating) and not period.span.floating:
        early, late = first is not None and first.floating, last is not None and last.floating
        value = Span(_moved(low, -_EARLIEST) if early else low, _moved(high, _LATEST) if late else high, False)
        return _overlapping(value, period)
    return _exactly(Span(low, high, period.span.floating), period)


def _local(moment: str) -> Span | None:
    return span_of(re.sub(r"(Z|[+-]\d{2}:\d{2})$", "", moment) if "T" in moment else moment)


def _exactly(value: Span, period: Period) -> bool:
    wanted, prefix = period.span, period.prefix
    inside = wanted.low <= value.low and value.high <= wanted.high
    verdicts = {
        "eq": inside,
        "ne": not inside,
        "gt": value.high > wanted.high,
        "sa": value.low >= wanted.high,
        "lt": value.low < wanted.low,
        "eb": value.high <= wanted.low,
        "ge": value.high > wanted.high or inside,
        "le": value.low < wanted.low or inside,
    }
    return verdicts[prefix] if prefix in verdicts else _approximately(value, period)


def _overlapping(value: Span, period: Period) -> bool:
    wanted, prefix = period.span, period.prefix
    if prefix == "ne":
        return True
    if prefix == "ap":
        return _approximately(value, period)
    if prefix in ("gt", "ge", "sa"):
        return value.high > wanted.low
    if prefix in ("lt", "le", "eb"):
        return value.low < wanted.high
    return value.low < wanted.high and value.high > wanted.low


def _approximately(value: Span, period: Period) -> bool:
    margin = timedelta(days=_margin(period.span))
    return value.low < _moved(period.span.high, margin) and value.high > _moved(period.span.low, -margin)


def _moved(moment: datetime, distance: timedelta) -> datetime:
    """Kept within the calendar."""
    try:
        return moment + distance
    except OverflowError:
        return _LAST if distance > timedelta() else _FIRST


def _margin(span: Span) -> int:
    """Ten per cent of the distance to today, as FHIR suggests, in days; at least one."""
    return max(1, abs((datetime.now(UTC) - span.low).days) // 10)


def _last_day(end: datetime) -> date:
    """The day of the moment just before an end; the first day that there is has none before it."""
    return _moved(end, -timedelta(microseconds=1)).date()


def _shifted(day: date, days: int) -> date | None:
    try:
        return day + timedelta(days=days)
    except OverflowError:
        return None
