"""Date parameters: the nodes are asked for the days around what is searched, the moment itself is compared here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from gateway.edge.fhir.criteria import Criteria
from gateway.edge.fhir.periods import Period, compare
from gateway.edge.fhir.searchgrammar import plain
from gateway.model.answer import Found
from gateway.model.moments import da
from gateway.model.query import Match, Operator


def add_dates(
    criteria: Criteria, values: list[str], parameter: str, tag: str, moment_of: Callable[[Found], str | None]
) -> None:
    """One of several dates or instants, each with its prefix. `moment_of` is the element's value, `tag` where its day is.

    Raises InvalidQuery naming the parameter.
    """
    periods = [Period.parse(plain(value), parameter) for value in values]
    days = [period.days() for period in periods]
    lows, highs = [low for low, _ in days], [high for _, high in days]
    low = min(low for low in lows if low) if all(lows) else None
    high = max(high for high in highs if high) if all(highs) else None

    def is_in_one(found: Found) -> bool:
        moment = moment_of(found)
        return moment is not None and any(compare(moment, period) for period in periods)

    if low or high:
        _ask_for(criteria, tag, low, high)
        criteria.refine(is_in_one)
    else:
        criteria.conditions.append(is_in_one)


def _ask_for(criteria: Criteria, tag: str, low: date | None, high: date | None) -> None:
    """A second key on the same day narrows the days already asked for."""
    ends = (_day(low), _day(high))
    for position, match in enumerate(criteria.matches):
        if match.path == (tag,) and match.operator is Operator.RANGE:
            lows, highs = zip(match.values, ends, strict=True)
            narrowed = max(filter(None, lows), default=""), min(filter(None, highs), default="")
            if all(narrowed) and narrowed[0] > narrowed[1]:
                criteria.impossible = True
            else:
                criteria.matches[position] = Match((tag,), Operator.RANGE, narrowed)
            return
    criteria.matches.append(Match((tag,), Operator.RANGE, ends))


def _day(day: date | None) -> str:
    """A DA; '' for an open end."""
    return da(day) if day else ""
