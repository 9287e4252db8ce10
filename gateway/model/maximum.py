"""Which numbers of rows may be a maximum that a node keeps to without a word."""

from __future__ import annotations

_FROM = 50


def smells(count: int) -> bool:
    """Whether so many rows may be one: a round number, or one more than people set (Orthanc gives that)."""
    is_round = count % 50 == 0 or count & (count - 1) == 0
    return count >= _FROM and (is_round or count == _FROM + 1 or count % 100 == 1)
