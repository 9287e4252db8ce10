"""A series on its way into the spool: what becomes of it when those who asked have gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.cache.spool import Spool
from gateway.errors import NodeProtocolError
from gateway.federation.node import aclosing_iterator
from gateway.federation.opened import OpenedInstance
from gateway.federation.spooled import Fetch, Sink, SpooledSeries, tee
from gateway.model.query import Ref
from gateway.simulators.dimse import DimseSimulator
from gateway.wire.instance import metadata
from gateway.wire.part10 import AFTER_UIDS, open_part10
from tests.running import Gateway
from tests.specimens import specimen

DATA = Path(pydicom.__file__).parent / "data" / "test_files"


async def test_a_series_that_fails_after_everyone_has_left_is_no_fault_of_ours(tmp_path: Path) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    has_begun, may_fail, has_failed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def instances() -> AsyncIterator[Any]:
        has_begun.set()
        await may_fail.wait()
        has_failed.set()
        raise NodeProtocolError("pacs", "1 sub-operation of C-GET failed")
        yield

    @contextlib.asynccontextmanager
    async def fetch(_: Ref) -> AsyncIterator[AsyncIterator[Any]]:
        yield instances()

    spool = Spool(tmp_path)
    await spool.open()
    spooled = SpooledSeries(spool)
    frames = spooled.frames("pacs", Ref("1.2", "1.3", "1.4"), [1], fetch)
    caller = asyncio.ensure_future(anext(frames))
    await has_begun.wait()
    caller.cancel()
    await asyncio.wait([caller])
    may_fail.set()
    await has_failed.wait()
    await asyncio.sleep(0)
    await spooled.close()
    del caller, frames
    gc.collect()
    await asyncio.sleep(0)
    assert unhandled == []
    await spool.close()


REF = Ref("1.2", "1.3", "1.4")


async def _kept(data: bytes, spool: Spool) -> AsyncIterator[OpenedInstance]:
    """One instance as it comes from a node, through the spool as `Pixels` has it."""

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    sink = Sink()
    stream = await open_part10(tee(chunks(), sink), until=AFTER_UIDS)
    await sink.attach(spool.begin("pacs", REF.study, "1.3", "1.4"))
    yield OpenedInstance("pacs", REF, stream)


def _one_at_a_time(data: bytes, spool: Spool) -> Fetch:
    turns = asyncio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def fetch(_: Ref) -> AsyncIterator[AsyncIterator[OpenedInstance]]:
        async with turns, aclosing_iterator(_kept(data, spool)) as instances:
            yield instances

    return fetch


async def test_an_instance_too_large_for_the_spool_is_described_though_the_node_has_one_turn_only(
    tmp_path: Path,
) -> None:
    deflated = DATA / "image_dfl.dcm"  # of such a one only the file tells
    spool = Spool(tmp_path, max_bytes=4000)
    await spool.open()
    fetch = _one_at_a_time(deflated.read_bytes(), spool)
    async with asyncio.timeout(10):
        described = [one async for one in SpooledSeries(spool).metadata("pacs", Ref("1.2", "1.3"), fetch)]
    assert described == [metadata(deflated, str)]
    await spool.close()


async def test_who_asks_a_node_that_is_another_now_does_not_wait_for_the_one_before(tmp_path: Path) -> None:
    spool, data = Spool(tmp_path), (DATA / "CT_small.dcm").read_bytes()
    await spool.open()
    spooled, is_asked = SpooledSeries(spool), asyncio.Event()

    @contextlib.asynccontextmanager
    async def hanging(_: Ref) -> AsyncIterator[AsyncIterator[OpenedInstance]]:
        is_asked.set()
        await asyncio.Event().wait()
        yield _kept(data, spool)

    before = asyncio.ensure_future(anext(spooled.frames("pacs", REF, [1], hanging)))
    await is_asked.wait()
    spooled.forget("pacs")
    async with asyncio.timeout(5):
        assert (await anext(spooled.frames("pacs", REF, [1], _one_at_a_time(data, spool)))).number == 1
    await spooled.close()
    await asyncio.wait([before], timeout=5)
    assert before.done()
    await spool.close()


async def test_frames_of_a_truncated_instance_without_a_spool_are_the_nodes_fault(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=None)
    fetch = _one_at_a_time((DATA / "CT_small.dcm").read_bytes()[:-100], spool)
    with pytest.raises(NodeProtocolError, match="truncated"):
        await anext(SpooledSeries(spool).frames("pacs", REF, [1], fetch))


def test_a_frame_is_of_the_patient_whose_the_study_is_now_though_the_spool_has_it_of_another(tmp_path: Path) -> None:
    uids = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}
    specimen(tmp_path, "P", "s", PixelData=b"P" * 16, **uids)
    with DimseSimulator(tmp_path) as pacs:
        connection = {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": "SIMULATOR"}
        anew = {"find": 0, "location": 0, "metadata": 0}
        node = {"id": "n", "name": "n", "adapter": "dimse", "connection": connection, "ttl": anew}
        with Gateway([node]) as gateway:
            for patient in "PQ":
                next(tmp_path.glob("*")).unlink()
                specimen(tmp_path, patient, "s", PixelData=patient.encode() * 16, **uids)
                pacs.archive.scan()
                frame = gateway.get(
                    "/dicom-web/studies/1.2/series/1.3/instances/1.4/frames/1",
                    headers={"Accept": "application/octet-stream"},
                )
                assert frame.content == patient.encode() * 16
