"""What a node lists: whether a retrieve that ended well brought all of it.

A multipart body says that it is at its end, and nothing of how many parts there were to be (PS3.18 8.6.1.2): a server that
skips an instance which it cannot read ends it like any other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

from gateway.model.dataset import is_uid, text, whole_number
from gateway.model.query import Operator, Ref
from gateway.model.seam import NativeMatch, NativeQuery, Record, Report
from gateway.model.vocabulary import INSTANCE_UID, SERIES_INSTANCE_COUNT, SERIES_UID, Level, keyword
from gateway.wire.dicomjson import DicomRecord

Find = Callable[[NativeQuery], AsyncGenerator[Record | Report, None]]


async def lacking(find: Find, ref: Ref, given: Collection[str]) -> Sequence[Ref]:
    """The instances under `ref` (a study or a series) that are listed beside those `given` (SOP Instance UIDs).

    The instances are listed only where the counts of their series do not say that these are all. Raises NodeError.
    """
    if await _are_all(find, ref, len(given)):
        return ()
    instances = NativeQuery(Level.IMAGE, (), ref.study, ref.series, (keyword(SERIES_UID), keyword(INSTANCE_UID)))
    listed: dict[str, Ref] = {}
    async with aclosing(find(instances)) as rows:
        async for row in rows:
            if isinstance(row, DicomRecord):
                uid, series = text(row.dataset, INSTANCE_UID), text(row.dataset, SERIES_UID) or ref.series or ""
                if is_uid(uid) and is_uid(series) and ref.series in (None, series):
                    listed[uid] = Ref(ref.study, series, uid)
    return [one for uid, one in listed.items() if uid not in given]


async def _are_all(find: Find, ref: Ref, count: int) -> bool:
    """Whether the series under `ref` have no more instances than so many, as far as the node counts them."""
    of_one = (NativeMatch(keyword(SERIES_UID), Operator.EXACT, (ref.series,)),) if ref.series else ()
    series = NativeQuery(Level.SERIES, of_one, ref.study, None, (keyword(SERIES_UID), keyword(SERIES_INSTANCE_COUNT)))
    listed: dict[str, int] = {}
    async with aclosing(find(series)) as rows:
        async for row in rows:
            if not isinstance(row, DicomRecord) or ref.series not in (None, text(row.dataset, SERIES_UID)):
                continue
            number = whole_number(row.dataset, SERIES_INSTANCE_COUNT)
            if number is None:
                return False
            listed[text(row.dataset, SERIES_UID)] = number
    return bool(listed) and sum(listed.values()) <= count
