"""One node's trouble is its own, and one caller's broad search nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.handmade import dicomweb_node
from tests.running import Gateway, files_node, serving
from tests.specimens import specimen


def key(path: Path) -> Path:
    made = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_a_key_file_of_one_node_that_is_gone_for_a_moment_does_not_fail_the_search_of_all(tmp_path: Path) -> None:
    """A secret that is rotated: the file is not there, or half written, when the token is renewed."""
    specimen(tmp_path / "good", "P", "s")
    private = key(tmp_path / "key.pem")
    auth = {
        "kind": "client_credentials",
        "token_url": "http://127.0.0.1:9/token",
        "client_id": "gw",
        "private_key": str(private),
    }
    other = dicomweb_node("other", 9, connection={"auth": auth})
    with Gateway([files_node("good", tmp_path / "good"), other], cache=False) as gateway:
        before = gateway.get("/dicom-web/studies")
        assert (before.status_code, len(before.json())) == (
            200,
            1,
        )  # the token endpoint does not answer: a partial answer
        assert "other" in before.headers["warning"]
        private.unlink()
        after = gateway.get("/dicom-web/studies")
        assert after.status_code == 200, after.text
        assert len(after.json()) == 1


def row(number: int, patient: str) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": [f"1.2.3.{number}"]},
        "00100020": {"vr": "LO", "Value": [patient]},
        "00080020": {"vr": "DA", "Value": ["20240101"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]},
    }


def test_a_node_that_gives_page_after_page_is_not_silent() -> None:
    """Each page comes at once, or nearly: one caller's broad searches do not take the node from everybody else."""

    async def studies(request: Request) -> Response:
        if "PatientID" in request.query_params or "00100020" in request.query_params:
            return JSONResponse([row(1, "NARROW")])
        await asyncio.sleep(0.1)
        offset = int(request.query_params.get("offset", 0))
        rows = [row(offset + n, f"P{offset + n}") for n in range(10)]
        return JSONResponse(rows, headers={"Warning": '299 node "There are additional results that can be requested"'})

    app = Starlette(routes=[Route("/studies", studies)])
    with serving(app) as port:
        node = dicomweb_node("a", port, search_deadline=1, breaker={"failures": 2, "open": 30})
        with Gateway([node], cache=False) as gateway:
            narrow = "/dicom-web/studies?PatientID=NARROW&IssuerOfPatientID=I"
            assert gateway.get(narrow).status_code == 200
            for _ in range(2):
                gateway.get("/dicom-web/studies")
            told = gateway.get(narrow)
            assert told.status_code == 200, told.text


def test_a_node_whose_second_page_never_comes_is_not_asked_for_ever():
    async def studies(request):
        if int(request.query_params.get("offset", 0)):
            await asyncio.sleep(30)
        await asyncio.sleep(0.6)
        rows = [row(n, f"P{n}") for n in range(10)]
        return JSONResponse(rows, headers={"Warning": '299 node "There are additional results that can be requested"'})

    with serving(Starlette(routes=[Route("/studies", studies)])) as port:
        node = dicomweb_node("a", port, search_deadline=1, breaker={"failures": 2, "open": 30})
        with Gateway([node], cache=False) as gateway:
            for _ in range(6):
                gateway.get("/dicom-web/studies")
            assert not gateway.app.state.estate.pipeline.federation.nodes["a"].guard.breaker.is_closed
