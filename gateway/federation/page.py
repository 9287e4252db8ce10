"""The order of results, and which slice of it an answer carries: newest first, stable, the same on every replica."""

from __future__ import annotations

import base64
import hashlib
import hmac
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import time
from enum import StrEnum
from functools import lru_cache

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from gateway.errors import InvalidQuery
from gateway.model.answer import Found, Issue
from gateway.model.dataset import Dataset, text, whole_number
from gateway.model.moments import da, parse_date, parse_time
from gateway.model.study import Row
from gateway.model.vocabulary import STUDY_DATE, STUDY_TIME, Level, tag

SERIES_NUMBER, INSTANCE_NUMBER = tag("SeriesNumber"), tag("InstanceNumber")
UNDATED = "~"
"""The moment of what has no date: after every other, in both directions."""
_LAST_NUMBER = 2**62
_FIRST_SECOND, _LAST_SECOND = "000000", "235959"
Key = tuple[str, ...]
Place = tuple[str, str]
"""A moment and a node: what lies there orders by it first."""


class Sort(StrEnum):
    """The sorts that can be asked for; undated studies come last in both directions of `started`."""

    NEWEST = "-started"
    OLDEST = "started"
    ID = "_id"
    __hash__ = str.__hash__  # as Level


def sort_key(found: Found, sort: Sort = Sort.NEWEST) -> Key:
    """A key of texts that orders ascending and is unique: it ends with the UIDs, the patient and the origin.

    By time it begins with the place of a study: of one moment, those of one node after those of another, so that a day of very
    many without a time can be told node by node.
    """
    if found.level is Level.STUDY and len(found.rows) == 1 and sort is not Sort.ID:  # as nearly all are
        node = found.rows[0].node
        return moment_of(found.attributes, sort), node, found.study, "", "", *found.patient, node
    numbers = () if found.level is Level.STUDY else _number(found)
    last = (found.study, *numbers, found.series, found.instance, *found.patient, found.origin)
    return last if sort is Sort.ID else (*place_of(found, sort), *last)


def place_of(found: Found, sort: Sort) -> Place:
    """Of a study the first place that a holder gives it: its moment, and the node. Below studies the moment alone."""
    if found.level is not Level.STUDY:
        return moment_of(found.attributes, sort), ""
    if len(found.rows) == 1:  # as nearly all have
        return moment_of(found.attributes, sort), found.origin
    return min((moment_of(row.attributes, sort), row.node) for row in found.rows)


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """Study rows by date and time, newest first, undated ones last; then by UID."""
    return sorted(rows, key=lambda row: (moment_of(row.attributes, Sort.NEWEST), row.study, row.node))


def moment_of(attributes: Dataset, sort: Sort) -> str:
    """Study date and time as a text that orders ascending; what has no date comes last either way."""
    return moment_at(text(attributes, STUDY_DATE), text(attributes, STUDY_TIME), sort)


@lru_cache(10_000)
def moment_at(date_: str, time_: str, sort: Sort) -> str:
    """As `moment_of`, of a date and a time as a node gives them."""
    day = _day(date_)
    return moment(day, _clock(time_), sort) if day else UNDATED


@lru_cache(20_000)
def _day(date_: str) -> str:
    day = parse_date(date_)
    return da(day) if day else ""


@lru_cache(20_000)
def _clock(time_: str) -> str:
    return f"{parse_time(time_) or time.min:%H%M%S}"


def moment(day: str, clock: str, sort: Sort) -> str:
    """A DA and a TM (whole seconds) as a text that orders ascending by `sort`; '' for Sort.ID, which knows no moments."""
    if sort is Sort.ID:
        return ""
    return day + clock if sort is Sort.OLDEST else (day + clock).translate(_COMPLEMENT)


def day_begins(day: str, sort: Sort) -> str:
    """The first moment of a DA, in the order of `sort`: where the newest come first, its last second."""
    return moment(day, _FIRST_SECOND if sort is Sort.OLDEST else _LAST_SECOND, sort)


def day_ends(day: str, sort: Sort) -> str:
    """The last moment of a DA, in the order of `sort`."""
    return moment(day, _LAST_SECOND if sort is Sort.OLDEST else _FIRST_SECOND, sort)


def timeless(day: str, sort: Sort) -> str:
    """The moment of what lies on a DA without a time."""
    return moment(day, _FIRST_SECOND, sort)


def day_of(moment_: str, sort: Sort) -> str:
    """The DA of a moment that has one; '' for any other."""
    if sort is Sort.ID or moment_ in ("", UNDATED):
        return ""
    return moment_[:8] if sort is Sort.OLDEST else moment_[:8].translate(_COMPLEMENT)


_COMPLEMENT = str.maketrans("0123456789", "9876543210")


def _number(found: Found) -> tuple[str, ...]:
    """SeriesNumber or InstanceNumber, padded so that texts compare as numbers; what has none comes last."""
    number = whole_number(found.attributes, SERIES_NUMBER if found.level is Level.SERIES else INSTANCE_NUMBER)
    return (f"{_LAST_NUMBER + (_LAST_NUMBER if number is None else number):020d}",)


def ordered(found: Iterable[Found], sort: Sort = Sort.NEWEST) -> list[Found]:
    """All results in the order of `sort`."""
    return sorted(found, key=lambda one: sort_key(one, sort))


@dataclass(frozen=True, slots=True)
class Position:
    """A place between results: behind the one with this moment, node and study, and, of a series or an instance, with what is
    `below`: number and UIDs. `mark` is a digest that tells two patients of one UID apart; it holds their ids, so that they are not
    kept as they are. `in_turn` says that what lies at this moment is being told node by node, and nodes before this one need not
    be asked for it again. `answering` is a digest of the nodes that told of what lies before: where a study has several holders,
    its place may be another one with others."""

    moment: str
    node: str
    study: str
    mark: str
    in_turn: bool = False
    below: str = ""
    answering: str = ""

    @property
    def ends_day(self) -> bool:
        """Whether it lies behind all of its day, and not behind one result."""
        return not self.study

    @staticmethod
    def behind(found: Found, sort: Sort) -> Position:
        moment_, node = ("", "") if sort is Sort.ID else place_of(found, sort)
        return Position(moment_, node, found.study, _mark(found), below=_below(found))

    def rest(self, results: Sequence[Found], sort: Sort) -> list[Found]:
        """What follows among `results`, which are in order. When the result itself is gone, all that shares its place follows:
        another patient's of the same UID may not have been told yet."""
        here: Key = (self.study,) if sort is Sort.ID else (self.moment, self.node, self.study, self.below)

        def place(found: Found) -> Key:
            key = sort_key(found, sort)
            return key[:1] if sort is Sort.ID else (*key[:3], _below(found))

        first, end = bisect_left(results, here, key=place), bisect_right(results, here, key=place)
        if not self.mark:  # of all that is of this id
            return list(results[end:])
        same = (position + 1 for position in range(first, end) if _mark(results[position]) == self.mark)
        return list(results[next(same, first) :])


def _below(found: Found) -> str:
    """What orders a series or an instance within its study, as one text that orders as they do; '' of a study."""
    return "" if found.level is Level.STUDY else "\0".join((*_number(found), found.series, found.instance))


def _mark(found: Found) -> str:
    """Whoever else holds it, or is the first to: it is the same result. One of a patient whom nobody names is its node's own."""
    named = [found.study, found.series, found.instance, *found.patient, "" if found.patient.is_named else found.origin]
    return _text(hashlib.sha256(orjson.dumps(named)).digest()[:12])


@dataclass(frozen=True, slots=True)
class Reach:
    """Which results are wanted, in which order: `size` of them (None for all) that `accepts` takes (as the caller sees
    them), behind `after`, less the first `skip`. `updated` takes the moments (ms since the epoch) at which a study may have
    been first seen, or seen to change.

    `takes_most` says that `accepts` takes most of what answers the query. With `ends_with_day` the page may have fewer, though
    more follow: none of days behind the one that it begins on.
    """

    sort: Sort = Sort.NEWEST
    size: int | None = None
    after: Position | None = None
    skip: int = 0
    accepts: Callable[[Found], bool] | None = None
    ends_with_day: bool = False
    updated: Callable[[int], bool] | None = None
    takes_most: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A slice of the ordered results. `issues` empty means that nothing is missing from it.

    `as_found` are the same results before other holders completed them: by those they were put in order.
    `more` says that results follow, or may; the next page is behind `last`. `beyond` of them are known already; `total`
    is the number of all results, None while not every one was looked at.
    """

    items: tuple[Found, ...] = ()
    issues: tuple[Issue, ...] = ()
    more: bool = False
    last: Position | None = None
    beyond: int = 0
    total: int | None = 0
    as_found: tuple[Found, ...] = ()

    def behind(self, count: int, sort: Sort) -> Position:
        """The place behind its first `count` results."""
        placed = self.as_found if len(self.as_found) == len(self.items) else self.items
        return replace(Position.behind(placed[count - 1], sort), answering=self.last.answering if self.last else "")

    @property
    def complete(self) -> bool:
        return not self.issues


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page begins, as a text that only this gateway can make or read: any replica with the same secret
    continues the walk, and nothing is kept. The same place has the same text (AES-SIV), so that ETags hold."""

    secret: bytes

    def seal(self, position: Position, query_digest: str) -> str:
        """The cursor for the page that follows `position` in the search of this digest."""
        return _text(self._cipher.encrypt(orjson.dumps(astuple(position)), [query_digest.encode()]))

    def open(self, cursor: str, query_digest: str) -> Position:
        """Raises InvalidQuery for a cursor of another search or none of ours."""
        try:
            return Position(*orjson.loads(self._cipher.decrypt(_bytes(cursor), [query_digest.encode()])))
        except (ValueError, TypeError, InvalidTag):
            raise InvalidQuery(
                "the page cursor is not one of ours, or belongs to another search; follow the next link unchanged, "
                "or start the search again",
                parameter="_cursor",
            ) from None

    @property
    def _cipher(self) -> AESSIV:
        return AESSIV(hmac.digest(self.secret, b"cursor", hashlib.sha512))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text_: str) -> bytes:
    return base64.urlsafe_b64decode(text_ + "=" * (-len(text_) % 4))
