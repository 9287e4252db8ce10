"""Requests that nobody has looked at fill no audit, and none of them is forgotten in it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.security.audit import AuditRecord
from gateway.security.caller import Caller
from gateway.security.turned_away import TurnedAway

ADDRESSES = st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]), max_size=60)


async def told(addresses: list[str], most: int = 10_000) -> list[AuditRecord]:
    written: list[AuditRecord] = []
    turned_away = TurnedAway(written.append, most=most)
    for address in addresses:
        turned_away.note("authenticate", "GW103", address)
    turned_away.close()
    return written


@given(ADDRESSES)
def test_each_one_is_counted_once_at_its_own_address_in_two_records_at_most(addresses: list[str]) -> None:
    written = asyncio.run(told(addresses))
    counted: Counter[str] = Counter()
    for record in written:
        counted[record.address] += record.count
    assert counted == Counter(addresses)
    assert max(Counter(record.address for record in written).values(), default=0) <= 2


@given(ADDRESSES)
def test_of_many_addresses_none_is_forgotten(addresses: list[str]) -> None:
    written = asyncio.run(told(addresses, most=2))
    assert sum(record.count for record in written) == len(addresses)
    assert len({record.address for record in written}) <= 3


@pytest.mark.parametrize("reason", ["GW103", "GW111"])
async def test_what_follows_is_told_when_the_time_is_over_and_then_it_begins_anew(reason: str) -> None:
    written: list[AuditRecord] = []
    turned_away = TurnedAway(written.append, seconds=0.05)
    for _ in range(3):
        turned_away.note("request", reason, "192.0.2.1", Caller("dr-a", "viewer"))
    async with asyncio.timeout(10):
        while len(written) < 2:
            await asyncio.sleep(0.01)
    turned_away.note("request", reason, "192.0.2.1", Caller("dr-a", "viewer"))
    assert [(one.outcome, one.count, one.caller.subject) for one in written] == [
        (reason, 1, "dr-a"),
        (reason, 2, "dr-a"),
        (reason, 1, "dr-a"),
    ]
    turned_away.close()


async def test_a_reason_or_a_caller_of_its_own_is_a_record_of_its_own() -> None:
    written: list[AuditRecord] = []
    turned_away = TurnedAway(written.append)
    for code, caller in (("GW103", "a"), ("GW111", "a"), ("GW111", "b")):
        turned_away.note("request", code, "192.0.2.1", Caller(caller))
    assert len(written) == 3
    turned_away.close()
