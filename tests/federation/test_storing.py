"""Where instances go, who may send them, and what is said when the node fails before or in the middle of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.federation.nodes import NodeFile, parse
from gateway.federation.whose import Claims
from gateway.model.patient import PatientKey
from gateway.privacy.view import PlainView, View
from gateway.security.caller import Caller
from gateway.simulators._dimse_serving import shut_down
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from tests import peers
from tests.adapters.test_dimse_storing import archive
from tests.bench import processes
from tests.faults.proxy import Fault, FaultProxy
from tests.running import Gateway, files_node
from tests.security.conftest import TestIssuer, issuer_beside
from tests.sending import DICOM, STORED, body, encoded, instance, read, send, uids

AE_TITLE = "SIMULATOR"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "two"


def count(directory: Path) -> int:
    return len([path for path in directory.rglob("*") if path.is_file()])


# --- which node


def test_the_default_node_takes_what_is_stored_at_the_federated_root(places: tuple[Path, Path]) -> None:
    one, two = places
    with Gateway([files_node("one", one), files_node("two", two, store=True)]) as gateway:
        assert send(gateway.client, instance()).status == 200
        assert (count(one), count(two)) == (0, 1)
        assert send(gateway.client, instance(), at="/nodes/one/dicom-web/studies").status == 200
        assert send(gateway.client, instance(), at="/dicom-web/studies?node=one").status == 200
        assert (count(one), count(two)) == (2, 1)
        assert send(gateway.client, instance(), at="/nodes/three/dicom-web/studies").status == 404


@pytest.mark.parametrize("at", ["/dicom-web/studies", "/dicom-web/studies/1.2.3", "/dicom-web/studies?node=two"])
def test_what_is_stored_is_had_where_it_is_told_also_when_another_node_has_that_study_of_another_patient(
    places: tuple[Path, Path], at: str
) -> None:
    one, two = places
    (one / "there.dcm").write_bytes(encoded(instance("1.2.3", patient="another")))
    made = instance("1.2.3")
    accept = {"Accept": "application/dicom; transfer-syntax=*"}
    with Gateway([files_node("one", one), files_node("two", two, store=True)]) as gateway:
        answer = send(gateway.client, made, at=at)
        assert answer.status == 200
        (item,) = answer.body[STORED]["Value"]
        got = gateway.get(item["00081190"]["Value"][0], headers=accept)
        assert (got.status_code, got.content) == (200, encoded(made))
        assert gateway.get(answer.body["00081190"]["Value"][0]).status_code == 200


def test_what_a_node_only_takes_is_told_to_be_where_others_may_give_it(places: tuple[Path, Path]) -> None:
    one, two = places
    router = files_node("two", two, store=True, capabilities=["store"])
    with Gateway([files_node("one", one), router]) as gateway:
        answer = send(gateway.client, instance("1.2.3"))
        assert answer.body["00081190"]["Value"] == [f"{gateway.url}/dicom-web/studies/1.2.3"]


def test_without_a_default_the_answer_says_what_to_configure(places: tuple[Path, Path]) -> None:
    one, two = places
    with Gateway([files_node("one", one), files_node("two", two)]) as gateway:
        answer = send(gateway.client, instance())
        assert (answer.status, answer.body["code"]) == (501, "GW113")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "store = true" in answer.body["detail"]
        assert count(one) + count(two) == 0


@pytest.mark.parametrize(("purpose", "taken"), [("HRESCH", (1, 0)), ("TREAT", (0, 1)), ("", (0, 1))])
def test_a_purpose_of_use_has_a_node_of_its_own(
    places: tuple[Path, Path], purpose: str, taken: tuple[int, int]
) -> None:
    one, two = places
    nodes = [files_node("one", one, store={"purposes": ["HRESCH"]}), files_node("two", two, store=True)]
    with Gateway(nodes, open_purpose=purpose) as gateway:
        assert send(gateway.client, instance()).status == 200
    assert (count(one), count(two)) == taken


def test_a_node_that_is_not_to_store_does_not(places: tuple[Path, Path]) -> None:
    one, _ = places
    with Gateway([files_node("one", one, capabilities=["find", "retrieve"])]) as gateway:
        answer = send(gateway.client, instance(), at="/nodes/one/dicom-web/studies")
    assert (answer.status, answer.body["code"], count(one)) == (501, "GW206", 0)


def test_a_fhir_node_stores_at_its_dicomweb_service(tmp_path: Path) -> None:
    table = {"id": "f", "name": "f", "adapter": "fhir", "connection": {"url": "http://127.0.0.1:9/fhir"}}
    with DicomwebSimulator(tmp_path) as web:
        pixels = {"adapter": "dicomweb", "connection": {"url": web.url}}
        at = "/nodes/f/dicom-web/studies"
        with Gateway([{**table, "retrieve": pixels}]) as gateway:
            assert send(gateway.client, instance(), at=at).status == 200
        with Gateway([table]) as gateway:
            answer = send(gateway.client, instance(), at=at)
    assert (answer.status, answer.body["code"]) == (501, "GW206")
    assert "`retrieve`" in answer.body["detail"]
    assert count(tmp_path) == 1


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ({"store": True}, {"store": True}, "two nodes store what comes by default"),
        ({"store": {"purposes": ["A"]}}, {"store": {"purposes": ["B", "A"]}}, "for the purpose 'A'"),
        ({"store": True, "capabilities": ["find"]}, {}, "without 'store'"),
        ({"store": {"set_issuer": True}}, {}, "patient_id_issuer"),
        ({"store": {"set_issuer": True}, "patient_id_issuer": "Łódź"}, {}, "patient_id_issuer"),
        ({"store": {"else": True}}, {}, "store.else"),
    ],
)
def test_a_wrong_rule_stops_the_start(first: dict[str, Any], second: dict[str, Any], fault: str) -> None:
    nodes = [files_node("one", Path("/data"), **first), files_node("two", Path("/data"), **second)]
    file, faults = parse({"node": nodes}, {})
    assert file is None
    assert fault in faults[0]
    assert NodeFile.model_validate({"node": [files_node("one", Path("/data"), store=True)]}).node[0].store.default


# --- who may


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with issuer_beside() as running:
        yield running


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("system/ImagingStudy.c", 200),
        ("system/ImagingStudy.write", 200),
        ("user/*.cruds", 200),
        ("system/ImagingStudy.rs", 403),
        ("system/ImagingStudy.read system/Patient.write", 403),
        ("patient/ImagingStudy.c", 403),
    ],
)
def test_storing_needs_a_scope_to_write(places: tuple[Path, Path], issuer: TestIssuer, scope: str, status: int) -> None:
    with Gateway([files_node("one", places[0], store=True)], oidc_issuer=issuer.issuer) as gateway:
        headers = {"Authorization": issuer.bearer(scope=scope)}
        answer = send(gateway.client, instance(), headers=headers)
        assert answer.status == status
        assert send(gateway.client, instance()).status == 401
        told = gateway.get("/fhir/.well-known/smart-configuration").json()["scopes_supported"]
    assert "system/ImagingStudy.c" in told
    assert count(places[0]) == (status == 200)
    if status == 403:
        assert "system/ImagingStudy.c" in answer.body["detail"]


def test_who_sees_studies_changed_stores_nothing(places: tuple[Path, Path]) -> None:
    class Changed(PlainView):
        is_plain = False

    class Views:
        def of(self, caller: Caller) -> View:
            return Changed(is_plain=False)

    with Gateway([files_node("one", places[0], store=True)], views=Views()) as gateway:
        assert send(gateway.client, instance()).status == 403
    assert count(places[0]) == 0


# --- a node that fails


def dimse_table(port: int, title: str = AE_TITLE, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": port, "called_ae_title": title}
    return {"id": "pacs", "name": "pacs", "adapter": "dimse", "connection": connection, "store": True, **more}


def web_table(url: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "web", "name": "web", "adapter": "dicomweb", "connection": {"url": url}, "store": True, "quirks": [], **more,
    }  # fmt: skip


def test_a_node_that_is_down_is_named_and_nothing_is_stored() -> None:
    port = peers.free_port()
    for table in (dimse_table(port), web_table(f"http://127.0.0.1:{port}/dicom-web")):
        with Gateway([table]) as gateway:
            answer = send(gateway.client, instance(), instance())
        assert (answer.status, answer.body["code"]) == (503, "GW201")
        assert f"node {table['id']}" in answer.body["detail"]
        assert answer.headers["retry-after"]


def test_a_refused_association_is_the_nodes_refusal() -> None:
    with archive() as where:
        table = dimse_table(where.port, capabilities=["store"])
        table["connection"]["calling_ae_title"] = "UNKNOWN"
        with Gateway([table]) as gateway:
            answer = send(gateway.client, instance())
    assert (answer.status, answer.body["code"]) == (502, "GW204")


def test_a_pacs_that_aborts_in_the_middle_has_what_it_took_and_the_rest_failed() -> None:
    made = [instance("1.2.3") for _ in range(4)]
    with archive(statuses=[0, 0, None]) as where, Gateway([dimse_table(where.port, capabilities=["store"])]) as gateway:
        answer = send(gateway.client, *made)
    assert (answer.status, answer.stored) == (202, uids(made)[:2])
    assert answer.failed == dict.fromkeys(uids(made)[2:], 0x0110)
    assert "node pacs" in answer.headers["warning"]


def test_a_dicomweb_node_that_dies_in_the_middle_has_what_it_took_and_the_rest_failed(tmp_path: Path) -> None:
    made = [instance(f"1.2.3.{number}") for number in range(4)]
    with (
        DicomwebSimulator(tmp_path) as web,
        FaultProxy(web.port, "http") as proxy,
        Gateway([web_table(f"http://127.0.0.1:{proxy.port}/dicom-web")]) as gateway,
    ):
        content = body(*map(encoded, made))
        half = content.index(encoded(made[2]))

        def sending() -> Iterator[bytes]:
            yield content[:half]
            while web.operations["store"] < 2:
                threading.Event().wait(0.01)
            proxy.set(Fault("refuse"))
            yield content[half:]

        answer = read(gateway.client.post("/dicom-web/studies", content=sending(), headers={"Content-Type": DICOM}))
    # The answer to the second may have been on its way.
    assert (answer.status, answer.stored) in ((202, uids(made)[:1]), (202, uids(made)[:2]))
    assert answer.failed == dict.fromkeys([uid for uid in uids(made) if uid not in answer.stored], 0x0110)


def test_a_warning_of_the_pacs_is_passed_on() -> None:
    one, two = instance(), instance()
    with archive(statuses=[0xB000]) as where, Gateway([dimse_table(where.port, capabilities=["store"])]) as gateway:
        answer = send(gateway.client, one, two)
    assert (answer.status, answer.warned) == (202, {one.SOPInstanceUID: 0xB000})


@pytest.mark.parametrize(("status", "reason"), [(413, 0xA700), (415, 0xC122), (400, 0x0110), (409, 0x0110)])
def test_what_a_dicomweb_node_refuses_is_that_instances_failure(status: int, reason: int) -> None:
    one = instance()

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(status)

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        table = web_table(f"http://127.0.0.1:{server.server_port}", capabilities=["store"])
        with Gateway([table]) as gateway:
            answer = send(gateway.client, one)
        shut_down(server)
    assert (answer.status, answer.failed) == (409, {one.SOPInstanceUID: reason})


def test_a_node_of_one_association_is_asked_about_each_study_in_between(tmp_path: Path) -> None:
    """Who holds the only association must not wait for another."""
    made = [instance(f"1.2.3.{number}") for number in (1, 2, 1, 3)]
    with DimseSimulator(tmp_path) as pacs:
        table = dimse_table(pacs.port, pacs.ae_title)
        table["connection"]["max_associations"] = 1
        with Gateway([table]) as gateway:
            answer = send(gateway.client, *made)
    assert (answer.status, answer.stored) == (200, uids(made))


def test_a_slow_sender_does_not_hold_the_only_association(tmp_path: Path) -> None:
    made = [instance("1.2.3") for _ in range(2)]
    content = body(*map(encoded, made))
    half = content.index(encoded(made[1])) + 100
    with DimseSimulator(tmp_path) as pacs:
        table = dimse_table(pacs.port, pacs.ae_title)
        table["connection"]["max_associations"] = 1
        with Gateway([table], find_ttl=0, location_ttl=0) as gateway:

            def sending() -> Iterator[bytes]:
                yield content[:half]
                while pacs.operations["C-STORE"] < 1:
                    threading.Event().wait(0.01)
                assert len(gateway.get("/dicom-web/studies").json()) == 1, "searched in the middle of the upload"
                yield content[half:]

            answer = read(gateway.client.post("/dicom-web/studies", content=sending(), headers={"Content-Type": DICOM}))
    assert (answer.status, answer.stored) == (200, uids(made))


def test_a_sender_that_leaves_gives_the_only_association_back(tmp_path: Path) -> None:
    content = body(encoded(instance("1.2.3")), encoded(instance("1.2.3")))
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {DICOM}\r\nContent-Length: {len(content)}\r\n\r\n"
    with DimseSimulator(tmp_path) as pacs:
        table = dimse_table(pacs.port, pacs.ae_title)
        table["connection"]["max_associations"] = 1
        with Gateway([table]) as gateway:
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
                connection.sendall(head.encode() + content[:-200])
                while pacs.operations["C-STORE"] < 1:
                    threading.Event().wait(0.01)
            answer = send(gateway.client, instance("1.2.3"))
            assert answer.status == 200
            assert len(gateway.get("/dicom-web/studies/1.2.3/instances").json()) == 2


def test_a_node_that_cannot_be_searched_contradicts_nobody() -> None:
    with archive() as where, Gateway([dimse_table(where.port, "ARCHIVE")]) as gateway:
        assert send(gateway.client, instance()).status == 200
        both = [instance("1.2.3", patient="A"), instance("1.2.3", patient="B")]
        answer = send(gateway.client, *both)
    assert (answer.status, answer.failed) == (202, {both[1].SOPInstanceUID: 0xA901}), "one request is not two patients"


# --- whose


def test_a_study_is_claimed_for_one_patient_at_a_time() -> None:
    claims, one, other = Claims(), PatientKey("I", "1"), PatientKey("I", "2")
    assert claims.claim("n", "1.2", one)
    assert claims.claim("n", "1.2", one)
    assert not claims.claim("n", "1.2", other)
    assert claims.claim("m", "1.2", other)
    claims.release("n", "1.2")
    assert not claims.claim("n", "1.2", other)
    claims.release("n", "1.2")
    assert claims.claim("n", "1.2", other)


def test_two_requests_at_once_do_not_begin_one_study_for_two_patients(tmp_path: Path) -> None:
    with DicomwebSimulator(tmp_path) as web, Gateway([web_table(web.url)]) as gateway:
        web.options = replace(web.options, delay=0.5)
        with ThreadPoolExecutor(2) as both:
            answers = list(both.map(lambda who: send(gateway.client, instance("1.2.3", patient=who)), "AB"))
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert count(tmp_path) == 1


# --- what is outdated


@pytest.mark.interop
def test_every_replica_sees_what_was_stored_at_one(tmp_path: Path, redis_peer: peers.Redis) -> None:
    with DicomwebSimulator(tmp_path) as web:
        node = processes.node("w", "dicomweb", {"url": web.url}, quirks=[], store=True)
        shared = {"redis_url": redis_peer.url, "cache_timeout": 5, "probe": "false", "find_ttl": 600}
        with processes.gateway([node], **shared) as one, processes.gateway([node], **shared) as two:
            asked = "/dicom-web/studies?PatientID=12345"
            with httpx.Client(base_url=one.url) as sender, httpx.Client(base_url=two.url) as reader:
                for client in (sender, reader, reader):
                    assert client.get(asked).json() == []
                assert send(sender, instance("1.2.3")).status == 200
                for client in (sender, reader):
                    assert len(client.get(asked).json()) == 1
                    assert len(client.get("/dicom-web/studies/1.2.3/metadata").json()) == 1
                assert send(reader, instance("1.2.3")).status == 200
                for client in (sender, reader):
                    assert len(client.get("/dicom-web/studies/1.2.3/metadata").json()) == 2
