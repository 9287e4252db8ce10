"""Deadlines towards an HTTP node, and what becomes of those who wait when it is taken out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.adapters.dicomweb import DicomwebAdapter
from gateway.adapters.fhir import FhirAdapter
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.errors import NodeBusy, NodeTimeout
from gateway.model.seam import NativeQuery, Part
from gateway.model.vocabulary import Level

QUICK = Timeouts(connect=1, first_byte=0.3, idle=0.3, total=0.6)


async def test_a_store_response_that_trickles_meets_a_deadline(scripted: Any) -> None:
    """As the answer to a search does: a document is no body of instances, that may be of any size."""

    async def script(exchange: Any) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 100000\r\n\r\n"
        )
        while True:
            await asyncio.sleep(0.1)
            await exchange.send(b" ")

    async def body() -> AsyncIterator[bytes]:
        yield b"DICM" * 100

    async def parts() -> AsyncIterator[Part]:
        yield Part("1.2.3", "1.2.840.10008.1.2.1", body())

    peer = await scripted(script)
    http = HttpClient("a", base_url=peer.url, timeouts=QUICK)
    adapter = DicomwebAdapter("a", http=http, quirks=frozenset())
    await adapter.open()
    try:
        async with asyncio.timeout(6):
            with pytest.raises(NodeTimeout):
                async for _ in adapter.store(parts()):
                    pass
    finally:
        await adapter.close()


@pytest.mark.parametrize("kind", ["dicomweb", "fhir"])
async def test_who_waits_for_what_is_learned_of_a_node_that_is_taken_out_is_told_so_and_not_cancelled(
    scripted: Any, kind: str
) -> None:
    """As who waits for a token of it."""
    asked = asyncio.Event()

    async def script(exchange: Any) -> None:
        asked.set()
        await asyncio.sleep(10)

    peer = await scripted(script)
    http = HttpClient("a", base_url=peer.url, timeouts=Timeouts(1, 8, 8, 8))
    adapter: Any = DicomwebAdapter("a", http=http) if kind == "dicomweb" else FhirAdapter("a", http=http, version="R4")
    await adapter.open()

    async def ask() -> None:
        async for _ in adapter.find(NativeQuery(Level.STUDY, ())):
            pass

    waits = asyncio.create_task(ask())
    await asyncio.wait_for(asked.wait(), 5)
    await adapter.close()
    await asyncio.wait({waits}, timeout=5)
    assert not waits.cancelled(), "cancelled, though nobody cancelled it"
    with pytest.raises(NodeBusy):
        waits.result()
