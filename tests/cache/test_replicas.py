"""Two gateways on one Redis, as processes of their own: one question to the hospital for all their callers."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import httpx
import pytest

from gateway.simulators.dicomweb import DicomwebSimulator
from tests import peers
from tests.bench import processes
from tests.specimens import specimen

pytestmark = pytest.mark.interop
CALLERS = 100


async def ask(url: str, path: str, callers: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=callers)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        return await asyncio.gather(*(client.get(path) for _ in range(callers)))


async def test_two_hundred_identical_misses_over_two_gateways_are_one_question(
    tmp_path: Path, redis_peer: peers.Redis
) -> None:
    specimen(tmp_path, "P", "s", "1")
    with DicomwebSimulator(tmp_path) as web:
        node = processes.node("w", "dicomweb", {"url": web.url}, patient_id_issuer="I", quirks=[])
        shared = {"redis_url": redis_peer.url, "cache_timeout": 5, "probe": "false"}
        with processes.gateway([node], **shared) as one, processes.gateway([node], **shared) as two:
            # The first question of all also learns what the node can do.
            for gateway in (one, two):
                await ask(gateway.url, "/dicom-web/studies?PatientID=NOBODY&IssuerOfPatientID=I", 1)
            web.options = dataclasses.replace(web.options, delay=0.5)
            before = web.operations["search_studies"]
            path = "/dicom-web/studies?PatientID=P&IssuerOfPatientID=I"
            given = await asyncio.gather(*(ask(gateway.url, path, CALLERS) for gateway in (one, two)))
            answers = [answer for part in given for answer in part]
            assert [len(answer.json()) for answer in answers] == [1] * 2 * CALLERS
            assert web.operations["search_studies"] == before + 1
