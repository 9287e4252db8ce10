"""Who leaves a PACS early, waits for it or gets more of it than it listed: nothing is left open, and nothing passes for whole."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from running import Gateway, files_node
from specimens import specimen, uid

from gateway.adapters.dimse import DimseAdapter
from gateway.errors import NodeBusy
from gateway.model.query import Operator, Ref
from gateway.model.seam import NativeMatch, NativeQuery
from gateway.model.vocabulary import Level
from gateway.simulators.bulk import ct_series
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.faults.leftovers import connections_to

STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
OF_P = NativeQuery(Level.STUDY, (NativeMatch("PatientID", Operator.EXACT, ("P",), ("00100020",)),), limit=5)


def connection(pacs, **more):
    return {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": pacs.ae_title, **more}


async def found(adapter):
    return [one async for one in adapter.find(OF_P)]


@pytest.fixture
def no_collector():
    """What only the collector would let go of is left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_who_leaves_at_once_leaves_no_association_behind(tmp_path, no_collector):
    specimen(tmp_path, "P", "s")
    with DimseSimulator(tmp_path) as pacs:
        adapter = DimseAdapter("n", **connection(pacs), max_associations=2)
        await adapter.open()
        try:
            for _ in range(150):
                await found(adapter)  # leaves one idle
                leaving = asyncio.create_task(found(adapter))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
            for _ in range(40):
                left = connections_to(pacs.port) - adapter.associations.idle - adapter.associations.in_use
                if left <= 0:
                    break
                await asyncio.sleep(0.1)
            assert left <= 0
        finally:
            await adapter.close()


async def test_nothing_is_asked_of_a_pacs_after_its_adapter_was_closed(tmp_path):
    specimen(tmp_path, "P", "s")
    with DimseSimulator(tmp_path, options=DimseOptions(delay=1.0)) as pacs:
        adapter = DimseAdapter("n", **connection(pacs), max_associations=1)
        await adapter.open()
        first, second = asyncio.create_task(found(adapter)), asyncio.create_task(found(adapter))
        await asyncio.sleep(0.3)
        await adapter.close()
        before = pacs.operations["association"]
        _, waited = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(waited, NodeBusy)
        assert pacs.operations["association"] == before


@pytest.mark.parametrize("where", ["connection", "retrieve"])
def test_who_waits_for_an_association_is_not_taken_for_the_nodes_silence(tmp_path, where):
    for number in range(10):
        specimen(tmp_path, "P", f"s{number}")
    with DimseSimulator(tmp_path, options=DimseOptions(delay=0.25)) as pacs:
        one = connection(pacs, max_associations=1)
        if where == "connection":
            node = {"id": "n", "name": "n", "adapter": "dimse", "connection": one}
        else:
            pixels = {"adapter": "dimse", "connection": one}
            node = files_node("n", tmp_path, capabilities=["find", "retrieve"], retrieve=pixels)
        node |= {"first_byte_deadline": 3, "nearline_first_byte_deadline": 3, "search_deadline": 20, "retries": 0}
        with Gateway([node | {"breaker": {"failures": 3, "open": 30}}]) as gateway:

            def status_of(number):
                url = f"{gateway.dicomweb}/studies/{uid(f's{number}')}"
                return httpx.get(url, headers=STORED, timeout=60).status_code

            assert gateway.get("/dicom-web/studies").status_code == 200
            with ThreadPoolExecutor(10) as callers:
                assert set(callers.map(status_of, range(10))) <= {200, 503}
            assert gateway.get("/dicom-web/studies?PatientID=P").status_code == 200


def test_a_retrieve_does_not_end_neatly_when_the_node_sent_more_than_it_had_listed(tmp_path):
    """A list that stops at a silent maximum, or a study that grew meanwhile."""
    for number in (1, 2, 3):
        specimen(tmp_path, "P", "s", "1", number)
    with DimseSimulator(tmp_path, options=DimseOptions(max_results=1, max_results_status=0)) as pacs:
        node = {"id": "n", "name": "n", "adapter": "dimse", "connection": connection(pacs)}
        with Gateway([node]) as gateway, pytest.raises(httpx.RemoteProtocolError):
            gateway.get(f"/dicom-web/studies/{uid('s')}", headers=STORED)


@pytest.mark.parametrize("wait", [0.0, 0.5])
async def test_a_retrieve_whose_adapter_is_closed_between_two_instances_has_not_come_to_its_end(tmp_path, wait):
    study = ct_series(tmp_path, 12, rows=512, columns=512)
    with DimseSimulator(tmp_path) as pacs:
        adapter = DimseAdapter("n", **connection(pacs))
        await adapter.open()
        parts = adapter.retrieve(Ref(study))
        for _ in range(3):
            part = await anext(parts)
            async for _ in part.body:
                pass
        await asyncio.sleep(wait)  # the node is held back meanwhile
        await adapter.close()
        with pytest.raises(NodeBusy, match="stopped"):
            await anext(parts)


async def test_a_probe_whose_adapter_is_closed_says_so(tmp_path):
    with DimseSimulator(tmp_path, options=DimseOptions(delay=1.0)) as pacs:
        adapter = DimseAdapter("n", **connection(pacs))
        await adapter.open()
        probing = asyncio.create_task(adapter.probe())
        await asyncio.sleep(0.3)
        await adapter.close()
        with pytest.raises(NodeBusy, match="stopped"):
            await probing
