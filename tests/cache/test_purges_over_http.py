"""Review A: over HTTP, two gateways on one Redis."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path

import pytest
import redis

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.running import Gateway
from tests.specimens import specimen, uid

from .conftest import RealRedis

pytestmark = pytest.mark.interop


def test_a_whole_answer_begun_before_a_purge_that_was_not_heard_is_not_given_again(
    tmp_path: Path, redis_server: RealRedis
) -> None:
    specimen(tmp_path, "P", "one")
    plain = redis.Redis(unix_socket_path=str(redis_server.socket))
    with DicomwebSimulator(tmp_path) as web:
        node = {"id": "w", "name": "w", "adapter": "dicomweb", "connection": {"url": web.url}, "patient_id_issuer": "I"}
        with (
            Gateway([node], redis_url=redis_server.url, find_ttl=60) as a,
            Gateway([node], redis_url=redis_server.url, find_ttl=60) as b,
        ):
            for gateway in (a, b):
                gateway.get("/dicom-web/studies?PatientID=NOBODY&IssuerOfPatientID=I")
            cache_a, cache_b = (
                gateway.app.state.estate.pipeline.federation.answers._cache  # type: ignore[union-attr]
                for gateway in (a, b)
            )
            web.options = dataclasses.replace(web.options, delay=4)
            path = f"/dicom-web/studies?StudyInstanceUID={uid('one')}"
            plain.client_kill_filter(_type="pubsub", skipme=True)
            while cache_a.is_coherent:
                time.sleep(0.005)
            given = []
            first = threading.Thread(target=lambda: given.append(a.get(path)))
            first.start()
            time.sleep(0.2)
            asyncio.run_coroutine_threadsafe(cache_b.purge_study(uid("one")), b.loop).result(30)
            first.join()
            assert cache_a.is_coherent, "it hears purges again"
            assert given[0].status_code == 200
            time.sleep(0.5)
            web.options = dataclasses.replace(web.options, delay=0)
            before = web.operations["search_studies"]
            for gateway in (a, b):
                gateway.get(path)
            assert web.operations["search_studies"] > before, "nobody asked the hospital after the purge"
