"""When something happened: DICOM date, time and offset as one moment, or as a date only (PS3.5 6.2)."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.model.dataset import Dataset, text
from gateway.model.vocabulary import STUDY_DATE, STUDY_TIME, TIMEZONE_OFFSET, tag

SERIES_DATE, SERIES_TIME = tag("SeriesDate"), tag("SeriesTime")

_DA = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA files still in archives (PS3.5 6.2 note)
_TM = re.compile(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(?:\.(\d{1,6}))?)?)?")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")


def started(
    attributes: Dataset, time_zone: str | None = None, *, date_tag: str = STUDY_DATE, time_tag: str = STUDY_TIME
) -> str | None:
    """FHIR `started`: '2026-03-01T10:15:00+01:00', a date where no offset or no time is known, None without a date.

    The offset is (0008,0201), else that of the node's IANA `time_zone` on that very date. A malformed value counts as
    absent.
    """
    day = parse_date(text(attributes, date_tag))
    if day is None:
        return None
    clock, zone = parse_time(text(attributes, time_tag)), zone_of(attributes, time_zone)
    if clock is None or zone is None:
        return day.isoformat()
    moment = datetime.combine(day, clock, zone)
    offset = moment.utcoffset() or timedelta()
    # Local mean time, from before there was a standard, has seconds in its offset: FHIR has no words for it.
    return day.isoformat() if offset.seconds % 60 else moment.isoformat()


def series_started(attributes: Dataset, time_zone: str | None = None) -> str | None:
    """The same from (0008,0021) and (0008,0031)."""
    return started(attributes, time_zone, date_tag=SERIES_DATE, time_tag=SERIES_TIME)


def zone_of(attributes: Dataset, time_zone: str | None) -> tzinfo | None:
    """The offset of (0008,0201), else the named time zone; None when neither says."""
    fixed = parse_offset(text(attributes, TIMEZONE_OFFSET))
    if fixed is not None:
        return fixed
    return named_zone(time_zone) if time_zone else None


@cache
def named_zone(name: str) -> ZoneInfo | None:
    """An IANA time zone; None for a name that there is not."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def parse_date(value: str) -> date | None:
    """A DA value ('20260301', or '2026.03.01' of old); None when it is none."""
    found = _DA.fullmatch(value.strip())
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def da(day: date) -> str:
    """A date as a DA value; a year has four digits, also an early one."""
    return f"{day:%Y%m%d}".zfill(8)


def parse_time(value: str) -> time | None:
    """A TM value; components left out are zero and a leap second counts as 59. None when it is none."""
    found = _TM.fullmatch(value.strip())
    if not found:
        return None
    hour, minute, second, fraction = found.groups()
    try:
        return time(int(hour), int(minute or 0), min(int(second or 0), 59), int((fraction or "0").ljust(6, "0")))
    except ValueError:
        return None


def parse_offset(value: str) -> timezone | None:
    """'+0130' as a time zone; None when it is no offset between -1200 and +1400 (PS3.3 C.12.1.1)."""
    found = _OFFSET.fullmatch(value.strip())
    if not found:
        return None
    sign, hours, minutes = found.groups()
    distance = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    if int(minutes) > 59 or not timedelta(hours=-12) <= distance <= timedelta(hours=14):
        return None
    return timezone(distance)
