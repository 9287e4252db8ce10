"""A node whose rows are each small enough and together far too much, as tests/faults/test_flood.py has it of one document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.bench import processes
from tests.running import serving

ROWS, EACH = 120, 4_000_000


def growth(node: dict[str, Any]) -> float:
    """MB that a gateway grows by, at most, while it is asked for a few studies of this node."""
    with processes.gateway([node], cache="false", log_level="ERROR") as gateway:
        httpx.get(f"{gateway.url}/live", timeout=30)
        with processes.Memory(gateway.process) as memory:
            httpx.get(f"{gateway.url}/dicom-web/studies?limit=5", timeout=90)
    return memory.growth


def flood(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    for number in range(ROWS):
        row = Dataset()
        row.QueryRetrieveLevel = "STUDY"
        row.StudyInstanceUID = f"1.2.3.{number + 1}"
        row.PatientID = f"P{number}"
        row.StudyDate = "20240101"
        row.add_new(0x00324000, "UT", "x" * EACH)  # of a VR without a maximum
        yield 0xFF00, row
    yield 0x0000, None


def test_a_flood_of_rows_is_not_held() -> None:
    entity = AE("FLOOD")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, flood)])
    try:
        port = server.server_address[1]
        node = processes.node("pacs", "dimse", {"host": "127.0.0.1", "port": port, "called_ae_title": "FLOOD"})
        assert growth(node) < 450
    finally:
        server.shutdown()


def test_a_flood_of_pages_is_not_held() -> None:
    """Each page is below the ceiling of one document; all of them together are the answer."""

    def page(request: Request) -> Response:
        offset = int(request.query_params.get("offset", 0))
        if offset >= 150:
            return JSONResponse([])
        rows = [
            {
                "0020000D": {"vr": "UI", "Value": [f"1.2.3.{offset + n + 1}"]},
                "00100020": {"vr": "LO", "Value": [f"P{offset + n}"]},
                "00080020": {"vr": "DA", "Value": ["20240101"]},
                "00324000": {"vr": "UT", "Value": ["x" * EACH]},
            }
            for n in range(10)
        ]
        return JSONResponse(rows, headers={"Warning": '299 node "There are additional results that can be requested"'})

    app = Starlette(routes=[Route("/dicom-web/studies", page)])
    with serving(app) as port:
        node = processes.node("web", "dicomweb", {"url": f"http://127.0.0.1:{port}/dicom-web"}, quirks=[])
        assert growth(node) < 450
