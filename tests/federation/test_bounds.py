"""A search has one end; one node's odd data are that node's failure; what a node can make us hold has a ceiling."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import time
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from running import Gateway, files_node
from specimens import specimen, uid

from gateway.assembly import Builder
from gateway.errors import NodeRefused
from gateway.federation.fanout import ask_all
from gateway.federation.node import Node
from gateway.federation.nodes import NodeConfig
from gateway.model.patient import PatientKey
from gateway.model.query import Ref
from gateway.model.seam import Location
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.store.patients import PatientIds


def dicomweb_node(identifier: str, url: str, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "name": identifier, "adapter": "dicomweb", "connection": {"url": url}, **more}


def test_counting_what_several_nodes_hold_ends_with_the_search(tmp_path: Path) -> None:
    """The other holder gives its studies and then falls silent, study after study."""
    for number in range(12):
        for node in ("a", "b"):
            specimen(tmp_path / node, "P", f"s{number}", node, number)
    hangs = DicomwebOptions(black_hole=True, faulty_operations=frozenset({"search_study_series"}))
    with DicomwebSimulator(tmp_path / "b", hangs) as web:
        nodes = [
            files_node("a", tmp_path / "a", patient_id_issuer="I"),
            dicomweb_node("b", web.url, patient_id_issuer="I", search_deadline=0.8, quirks=[]),
        ]
        with Gateway(nodes, search_deadline=2.0) as gateway:
            began = time.monotonic()
            response = gateway.get("/dicom-web/studies")
            took = time.monotonic() - began
    assert took < 7, f"12 studies took {took:.1f} s"
    assert len(response.json()) == 12
    assert "node b" in response.headers["warning"]
    assert all("00201208" not in row for row in response.json()), "what was not counted is not claimed"


class NamedNode:
    """As much of a Node as a fan-out needs."""

    def __init__(self, identifier: str) -> None:
        self.id = identifier


async def answer(node: Node) -> str:
    if node.id.startswith("odd"):
        raise KeyError("a value that nobody has thought of")
    return node.id


async def test_a_fault_over_one_nodes_answer_leaves_the_other_answers_standing() -> None:
    nodes = [cast(Node, NamedNode(name)) for name in ("odd", "even")]
    odd, even = await ask_all(nodes, answer, deadline=1.0)
    assert even.value == "even"
    assert odd.error is not None
    assert odd.error.code == "GW205"
    assert "nobody has thought" not in odd.error.detail


async def test_a_fault_over_every_answer_is_a_fault_of_ours() -> None:
    with pytest.raises(KeyError):
        await ask_all([cast(Node, NamedNode("odd"))], answer, deadline=1.0)


async def test_what_failed_before_who_asked_has_left_is_told_to_nobody() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def fails_or_hangs(node: Node) -> str:
        return await asyncio.sleep(60, "late") if node.id == "slow" else await answer(node)

    nodes = [cast(Node, NamedNode(name)) for name in ("odd", "slow")]
    asking = asyncio.create_task(ask_all(nodes, fails_or_hangs, deadline=60.0))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    del asking
    gc.collect()
    assert told == []


@pytest.mark.parametrize("number", ["--5", "9" * 5000, "\u0664", "1e400", "-"])
def test_a_number_that_is_none_does_not_spoil_an_answer(tmp_path: Path, number: str) -> None:
    specimen(tmp_path, "P", "s")
    with DicomwebSimulator(tmp_path) as web, Gateway([dicomweb_node("w", web.url, quirks=[])]) as gateway:
        (study,) = web.directory.studies
        for instance in study.series[0].instances:
            instance.attributes["00200011"] = {"vr": "IS", "Value": [number]}
        for path in ("/dicom-web/series", f"/fhir/ImagingStudy/{uid('s')}"):
            assert gateway.get(path).status_code == 200, path


async def test_the_addresses_that_one_node_leads_to_are_counted() -> None:
    config = NodeConfig.model_validate(
        {"id": "f", "name": "f", "adapter": "fhir", "connection": {"url": "http://127.0.0.1:9/fhir"}}
    )
    builder = Builder()
    opened = builder.opener(config)
    places = [Location("dicomweb", f"http://127.0.0.1:9/{number}", Ref("1.2")) for number in range(300)]
    same = await asyncio.gather(*(opened(places[0]) for _ in range(5)))
    assert len({id(adapter) for adapter in same}) == 1, "one address is opened once"
    for place in places[:250]:
        await opened(place)
    with pytest.raises(NodeRefused):
        await opened(places[250])
    assert await opened(places[0]) is same[0]
    for adapter in builder.by_address.values():
        await adapter.close()


async def test_patient_ids_that_cannot_be_written_now_are_written_later(tmp_path: Path) -> None:
    file = tmp_path / "patients.sqlite"
    patients = PatientIds(b"secret", file)
    await patients.open()
    identifier = patients.id_of(PatientKey("I", "1"))
    with sqlite3.connect(file) as other:
        other.execute("ALTER TABLE patient RENAME TO elsewhere")
    await patients.flush()
    with sqlite3.connect(file) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO patient")
    await patients.flush()
    await patients.close()
    again = PatientIds(b"secret", file)
    await again.open()
    assert await again.key_of(identifier) == PatientKey("I", "1")
    await again.close()


def test_an_issuer_known_by_two_names_is_one_for_what_a_node_leaves_out(tmp_path: Path) -> None:
    """The node file gives the OID, the files the name; the PACS gives no issuer in its rows at all."""
    specimen(tmp_path, "P", "s", IssuerOfPatientID="LOCAL")
    options = DimseOptions(omitted_keys=frozenset({"IssuerOfPatientID"}))
    with DimseSimulator(tmp_path, ae_title="SIM", options=options) as pacs:
        node = {
            "id": "p",
            "name": "p",
            "adapter": "dimse",
            "connection": {"host": "127.0.0.1", "port": pacs.port, "called_ae_title": "SIM"},
            "patient_id_issuer": "1.2.3.4",
            "issuers": [{"issuer": "HOSPITAL", "oid": "1.2.3.4"}],
        }
        with Gateway([node]) as gateway:
            response = gateway.get(f"/dicom-web/studies/{uid('s')}")
    assert response.status_code == 200, response.text


def test_an_answer_that_its_caller_did_not_wait_for_is_not_audited_as_given(tmp_path: Path) -> None:
    specimen(tmp_path / "files", "P", "s", Rows=4000, Columns=4000, PixelData=bytes(16_000_000))
    audit = tmp_path / "audit"
    with Gateway([files_node("f", tmp_path / "files")], audit=audit) as gateway:
        path = f"/dicom-web/studies/{uid('s')}"
        gateway.get(path)
        with httpx.stream("GET", gateway.url + path) as response:
            next(response.iter_bytes())
        ends = time.monotonic() + 30
        while time.monotonic() < ends and audit.read_text().count("\n") < 4:
            time.sleep(0.05)
    outcomes = [json.loads(line)["outcome"] for line in audit.read_text().splitlines()]
    assert outcomes == ["begun", "success", "begun", "CallerLeft"]
