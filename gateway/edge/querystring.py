"""The query string as the edges read it: pairs in order, repeated names kept apart, decoded strictly."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_plus

from starlette.requests import Request

from gateway.errors import InvalidQuery

NAME = re.compile(r"[A-Za-z0-9.:_-]{1,128}")
"""What the name of a parameter or attribute looks like; anything else may be a patient's and is not repeated."""
_LONGEST = 1024
_BETWEEN_VALUES = re.compile(r"[,\\|$]")


def query_pairs(request: Request) -> list[tuple[str, str]]:
    """The query string as pairs in order, '+' and percent-encoding decoded as UTF-8. Raises InvalidQuery for broken UTF-8,
    and for a value to match that is longer than any that an archive is searched for: what is made of it is kept in many places.

    A name that no parameter could have is refused here, since errors repeat names and such a one may be a patient's.
    """
    return pairs_of(request.url.query)


def pairs_of(query: str) -> list[tuple[str, str]]:
    """As `query_pairs`, of a query string that is itself the value of a parameter."""
    pairs = []
    for piece in filter(None, query.split("&")):
        raw_name, _, value = piece.partition("=")
        name = unquote_plus(raw_name)
        if not NAME.fullmatch(name):
            raise InvalidQuery("the name of a parameter is at most 128 letters, digits and any of . : _ -")
        try:
            pairs.append((name, unquote_plus(value, errors="strict")))
        except UnicodeDecodeError:
            raise InvalidQuery("the query string is not UTF-8", parameter=name) from None
        _check_length(*pairs[-1])
    return pairs


def _check_length(name: str, value: str) -> None:
    """Of each value of a list; what selects nothing (a cursor) is as long as it is."""
    if len(value) <= _LONGEST or name.startswith("_"):
        return
    if max(map(len, _BETWEEN_VALUES.split(value))) > _LONGEST:
        raise InvalidQuery(f"{name}: a value has at most {_LONGEST} characters", parameter=name)


def one_of(value: str, allowed: Collection[str], parameter: str) -> str:
    """The value itself. Raises InvalidQuery, naming what is allowed, when it is not among it."""
    if value not in allowed:
        raise InvalidQuery(f"{parameter} is one of {', '.join(allowed)}", parameter=parameter)
    return value
