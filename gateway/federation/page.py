"""The order of results and the slice of them that one answer carries: newest first, stable, the same on every replica."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import time
from enum import StrEnum
from functools import lru_cache

import orjson

from gateway.errors import InvalidQuery
from gateway.model.answer import Found
from gateway.model.dataset import Dataset, text, whole_number
from gateway.model.moments import parse_date, parse_time
from gateway.model.study import Row
from gateway.model.vocabulary import STUDY_DATE, STUDY_TIME, Level, tag

SERIES_NUMBER, INSTANCE_NUMBER = tag("SeriesNumber"), tag("InstanceNumber")
_LAST_NUMBER = 2**62
_DESCENDING = str.maketrans("0123456789", "9876543210")
Key = tuple[str, ...]


class Sort(StrEnum):
    """The sorts that can be asked for; undated studies come last in both directions of `started`."""

    NEWEST = "-started"
    OLDEST = "started"
    ID = "_id"


def sort_key(found: Found, sort: Sort = Sort.NEWEST) -> Key:
    """A key of texts that orders ascending and is unique: it ends with the UIDs, the patient and the origin."""
    last = (
        found.study,
        *_number(found),
        found.series,
        found.instance,
        found.patient.issuer,
        found.patient.id,
        found.origin,
    )
    if sort is Sort.ID:
        return last
    return (_moment(found.attributes, sort), *last)


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """Study rows by date and time, newest first, undated ones last; then by UID."""
    return sorted(rows, key=lambda row: (_moment(row.attributes, Sort.NEWEST), row.study, row.node))


def _moment(attributes: Dataset, sort: Sort) -> str:
    """Study date and time as a text that orders ascending; what has no date comes last either way."""
    return _moment_of(text(attributes, STUDY_DATE), text(attributes, STUDY_TIME), sort)


@lru_cache(10_000)
def _moment_of(date_: str, time_: str, sort: Sort) -> str:
    day, clock = parse_date(date_), parse_time(time_)
    if day is None:
        return "~"
    moment = f"{day:%Y%m%d}{clock or time.min:%H%M%S}".zfill(14)
    return moment if sort is Sort.OLDEST else moment.translate(_DESCENDING)


def _number(found: Found) -> tuple[str, ...]:
    """SeriesNumber or InstanceNumber, padded so that texts compare as numbers; what has none comes last."""
    if found.level is Level.STUDY:
        return ()
    number = whole_number(found.attributes, SERIES_NUMBER if found.level is Level.SERIES else INSTANCE_NUMBER)
    return (f"{_LAST_NUMBER + (_LAST_NUMBER if number is None else number):020d}",)


def ordered(found: Sequence[Found], sort: Sort = Sort.NEWEST) -> list[Found]:
    """All results in the order of `sort`."""
    return sorted(found, key=lambda one: sort_key(one, sort))


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page begins: after the result with this key, for the very query that this digest names.

    Signed, so that a caller cannot make one up, and kept nowhere: any replica with the same secret continues the walk. The
    key is a digest only, since sort keys hold patient ids.
    """

    secret: bytes

    def after(self, found: Found, sort: Sort, query_digest: str) -> str:
        """The cursor text for the page that follows `found`."""
        moment = sort_key(found, sort)[0] if sort is not Sort.ID else ""
        body = orjson.dumps([query_digest, moment, found.study, self._mark(found, sort)])
        return _text(body) + "." + _text(self._signature(body))

    def rest(self, cursor: str, results: Sequence[Found], sort: Sort, query_digest: str) -> list[Found]:
        """What follows the cursor among `results` (in order). Raises InvalidQuery for a cursor of another query or none of ours."""
        digest, moment, study, mark = self._open(cursor)
        if digest != query_digest:
            raise InvalidQuery(
                "the page cursor belongs to another search; follow the next link unchanged", parameter="_cursor"
            )
        for position, found in enumerate(results):
            if found.study == study and self._mark(found, sort) == mark:
                return list(results[position + 1 :])
        here = (study,) if sort is Sort.ID else (moment, study)
        return [found for found in results if sort_key(found, sort)[: len(here)] > here]

    def _mark(self, found: Found, sort: Sort) -> str:
        return _text(self._signature(orjson.dumps(sort_key(found, sort)))[:12])

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self.secret, b"cursor" + body, hashlib.sha256)

    def _open(self, cursor: str) -> list[str]:
        body_text, _, signature = cursor.partition(".")
        try:
            body, given = _bytes(body_text), _bytes(signature)
        except ValueError:
            body, given = b"", b""
        if not body or not hmac.compare_digest(given, self._signature(body)):
            raise InvalidQuery("the page cursor is not one of ours; start the search again", parameter="_cursor")
        opened: list[str] = orjson.loads(body)
        return opened


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text_: str) -> bytes:
    return base64.urlsafe_b64decode(text_ + "=" * (-len(text_) % 4))
