"""STOW-RS at the edge, over a directory: what is stored, what is refused, and what the answer says of each instance."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests import sending
from tests.running import Gateway, files_node
from tests.sending import BOUNDARY, DICOM, body, encoded, instance, send, uids

PROBLEM = "application/problem+json"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def gateway(directory, tmp_path):
    nodes = [files_node("disk", directory, store=True, patient_id_issuer="HOSPITAL")]
    with Gateway(nodes, audit=tmp_path / "audit", spool=tmp_path / "spool") as running:
        yield running


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def audited(gateway: Gateway, tmp_path: Path) -> dict[str, Any]:
    """The one record of the end, once it is written."""
    for _ in range(1000):
        records = map(json.loads, (tmp_path / "audit").read_text().splitlines())
        ends = [record for record in records if record["outcome"] != "begun"]
        if ends:
            [record] = ends
            return record
        gateway.get("/live")
    raise AssertionError("no audit record")


def nothing_is_left(tmp_path: Path) -> bool:
    return not list((tmp_path / "spool").rglob(".store-*"))


# --- what is stored


@pytest.mark.parametrize("at", ["/dicom-web/studies", "/nodes/disk/dicom-web/studies"])
def test_instances_are_stored_to_the_byte_and_named_in_order(gateway, directory, tmp_path, at):
    made = [instance("1.2.3") for _ in range(3)]
    answer = send(gateway.client, *made, at=at)
    assert (answer.status, answer.stored, answer.failed, answer.warned) == (200, uids(made), {}, {})
    assert answer.headers["content-type"] == "application/dicom+json"
    assert sorted(path.read_bytes() for path in files_in(directory)) == sorted(map(encoded, made))
    root = f"{gateway.url}{at.removesuffix('/studies')}"
    assert answer.body["00081190"]["Value"] == [f"{root}/studies/1.2.3"]
    url = answer.body[sending.STORED]["Value"][0]["00081190"]["Value"][0]
    got = gateway.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert got.content == encoded(made[0])
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_syntax_is_stored_as_it_came(gateway, directory, syntax):
    one = encoded(instance(syntax=syntax))
    assert send(gateway.client, one).status == 200
    assert [path.read_bytes() for path in files_in(directory)] == [one]


def test_the_next_search_sees_what_was_stored(gateway):
    search = {"PatientID": "12345"}
    assert gateway.get("/dicom-web/studies", params=search).json() == []
    assert gateway.get("/dicom-web/studies").json() == []
    assert gateway.get("/dicom-web/studies/1.2.3/metadata").status_code == 404
    send(gateway.client, instance("1.2.3"))
    assert len(gateway.get("/dicom-web/studies", params=search).json()) == 1
    assert len(gateway.get("/dicom-web/studies").json()) == 1
    assert len(gateway.get("/dicom-web/studies/1.2.3/metadata").json()) == 1
    send(gateway.client, instance("1.2.3"))
    assert len(gateway.get("/dicom-web/studies/1.2.3/metadata").json()) == 2
    assert len(gateway.get("/fhir/ImagingStudy").json()["entry"]) == 1


def test_storing_twice_is_harmless_and_other_bytes_under_one_uid_are_refused(gateway, directory):
    one = instance()
    assert send(gateway.client, one).status == 200
    assert send(gateway.client, one).status == 200
    before = encoded(one)
    one.Modality = "MR"
    answer = send(gateway.client, one)
    assert (answer.status, answer.failed) == (409, {one.SOPInstanceUID: 0x0111})
    assert [path.read_bytes() for path in files_in(directory)] == [before]


def test_the_audit_names_the_studies_and_nothing_else_of_the_patient(gateway, tmp_path):
    send(gateway.client, instance("1.2.3"), instance("1.2.4"))
    record = audited(gateway, tmp_path)
    assert record["action"] == "store"
    assert record["studies"] == ["1.2.3", "1.2.4"]
    assert (record["nodes"], record["count"], record["outcome"]) == (["disk"], 2, "success")
    assert "12345" not in json.dumps(record)


# --- what is not


def test_a_bad_part_among_good_ones_fails_alone(gateway, directory):
    good = [instance("1.2.3"), instance("1.2.3")]
    cut = encoded(instance("1.2.3"))[:-7]
    no_uid = instance("1.2.3")
    del no_uid.SeriesInstanceUID
    answer = send(gateway.client, good[0], b"no DICOM" * 100, cut, no_uid, good[1])
    assert (answer.status, answer.stored) == (202, uids(good))
    assert list(answer.failed.values()) == [0xC000]
    assert answer.others == [0xC000, 0xC000]
    assert len(files_in(directory)) == 2


def test_a_part_of_another_type_is_no_dicom(gateway):
    made = encoded(instance())
    response = gateway.client.post(
        "/dicom-web/studies", content=body(made, kind="image/jpeg"), headers={"Content-Type": DICOM}
    )
    assert response.status_code == 409
    assert sending.read(response).others == [0xC000]


def test_another_study_than_the_addressed_one_fails(gateway, directory):
    right, wrong = instance("1.2.3"), instance("1.2.4")
    answer = send(gateway.client, wrong, right, at="/dicom-web/studies/1.2.3")
    assert (answer.status, answer.stored, answer.failed) == (202, uids([right]), {wrong.SOPInstanceUID: 0xA900})
    assert answer.body["00081190"]["Value"] == [f"{gateway.url}/dicom-web/studies/1.2.3"]
    assert send(gateway.client, wrong, at="/dicom-web/studies/1.2.3").status == 409
    assert len(files_in(directory)) == 1


def test_a_file_without_preamble_gets_one_before_the_same_data_set(gateway, directory):
    """dicomweb-client writes data sets that were never read from a file so."""
    whole = encoded(instance())
    assert send(gateway.client, whole[132:]).status == 200
    [path] = files_in(directory)
    at = whole.index(b"\x08\0\x16\0")
    assert path.read_bytes().endswith(whole[at:])
    assert dcmread(path).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert list(send(gateway.client, whole[at:]).failed.values()) == [0xC000], "nothing says which syntax it is in"


def test_an_instance_beyond_its_ceiling_fails_and_the_rest_is_stored(directory):
    nodes = [files_node("disk", directory, store=True)]
    large, small = instance(PixelData=bytes(100_000)), instance()
    with Gateway(nodes, store_instance_bytes=50_000) as gateway:
        answer = send(gateway.client, large, small)
    assert (answer.status, answer.failed, answer.stored) == (202, {large.SOPInstanceUID: 0xA700}, uids([small]))


def test_an_instance_that_inflates_beyond_its_ceiling_fails_and_the_rest_is_stored(directory, tmp_path):
    nodes = [files_node("disk", directory, store=True, patient_id_issuer="HOSPITAL")]
    bomb, small = (instance(syntax=DeflatedExplicitVRLittleEndian, PixelData=bytes(size)) for size in (9_000_000, 90))
    assert len(encoded(bomb)) < 50_000
    with Gateway(nodes, store_instance_bytes=1_000_000, spool=tmp_path / "spool") as gateway:
        answer = send(gateway.client, bomb, small)
        assert nothing_is_left(tmp_path)
    assert (answer.status, answer.failed, answer.stored) == (202, {bomb.SOPInstanceUID: 0xA700}, uids([small]))
    assert len(files_in(directory)) == 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_an_instance_with_very_much_before_its_identifiers_fails_and_the_rest_is_stored(gateway, syntax):
    odd, small = instance(syntax=syntax), instance()
    odd.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "OB", bytes(17 << 20))
    answer = send(gateway.client, odd, small)
    assert (answer.status, answer.others, answer.stored) == (202, [0xA700], uids([small]))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_beyond_its_ceiling_is_too_large(directory, chunked):
    content = body(*(encoded(instance(PixelData=bytes(600_000))) for _ in range(3)))
    with Gateway([files_node("disk", directory, store=True)], store_request_bytes=1_700_000) as gateway:
        sent = (content[start : start + 1000] for start in range(0, len(content), 1000)) if chunked else content
        response = gateway.client.post("/dicom-web/studies", content=sent, headers={"Content-Type": DICOM})
    assert response.status_code == 413
    assert response.headers["content-type"] == PROBLEM
    assert len(files_in(directory)) == (2 if chunked else 0)


def test_what_is_not_stored_is_in_the_audit(gateway, tmp_path):
    send(gateway.client, instance("1.2.3"), b"no DICOM" * 100)
    record = audited(gateway, tmp_path)
    assert (record["outcome"], record["count"]) == ("partial", 1)
    assert record["issues"] == [{"node": "disk", "code": "GW211"}]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_not_taken(gateway, method):
    assert gateway.client.request(method, "/dicom-web/studies").status_code == 405


# --- bodies and types


@pytest.mark.parametrize("length", [5, 300, -40])
def test_a_truncated_body_is_refused_and_the_half_instance_is_not_stored(gateway, directory, tmp_path, length):
    whole, half = instance(), encoded(instance())
    sent = body(encoded(whole), half)
    cut = sent[: sent.index(half) + length if length > 0 else length]
    response = gateway.client.post("/dicom-web/studies", content=cut, headers={"Content-Type": DICOM})
    assert response.status_code == 400
    assert response.headers["content-type"] == PROBLEM
    assert "before that which are stored: 1" in response.json()["detail"]
    assert [path.read_bytes() for path in files_in(directory)] == [encoded(whole)]
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        "application/dicom",
        "multipart/form-data; boundary=x",
        'multipart/related; type="application/dicom+json"; boundary=x',
        'multipart/related; type="application/dicom+xml"; boundary=x',
        "",
    ],
)
def test_another_media_type_is_refused_before_anything_is_read(gateway, kind):
    response = gateway.client.post("/dicom-web/studies", content=encoded(instance()), headers={"Content-Type": kind})
    assert response.status_code == 415
    assert 'type="application/dicom"' in response.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ('multipart/related; type="application/dicom"', body(encoded(instance()))),
        (DICOM, b""),
        (DICOM, b"nothing of the kind"),
        (DICOM, b"--%b--\r\n" % BOUNDARY.encode()),
    ],
)
def test_a_body_without_parts_is_a_bad_request(gateway, kind, content):
    assert gateway.client.post("/dicom-web/studies", content=content, headers={"Content-Type": kind}).status_code == 400


@pytest.mark.parametrize(
    "kind",
    [
        f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
        f"multipart/related; boundary={BOUNDARY}",
        f'Multipart/Related;boundary="{BOUNDARY}";type="Application/DICOM; transfer-syntax=*"',
    ],
)
def test_types_are_read_as_clients_write_them(gateway, kind):
    response = gateway.client.post(
        "/dicom-web/studies", content=body(encoded(instance())), headers={"Content-Type": kind}
    )
    assert response.status_code == 200


def test_an_answer_that_the_client_does_not_take_is_406_and_nothing_is_stored(gateway, directory):
    headers = {"Content-Type": DICOM, "Accept": "text/html"}
    response = gateway.client.post("/dicom-web/studies", content=body(encoded(instance())), headers=headers)
    assert response.status_code == 406
    assert files_in(directory) == []


def test_a_study_in_the_address_that_is_no_uid_is_a_bad_request(gateway):
    response = gateway.client.post("/dicom-web/studies/abc", content=b"", headers={"Content-Type": DICOM})
    assert response.status_code == 400


# --- on the wire


def _head(gateway: Gateway, length: int, *more: str) -> bytes:
    lines = [
        "POST /dicom-web/studies HTTP/1.1",
        f"Host: 127.0.0.1:{gateway.port}",
        f"Content-Type: {DICOM}",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_who_expects_100_continue_is_told_to_go_on(gateway):
    content = body(encoded(instance()))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(_head(gateway, len(content), "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(content)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_expects_100_continue_is_refused_before_the_body_is_sent(directory):
    with (
        Gateway([files_node("disk", directory)]) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
    ):
        connection.sendall(_head(gateway, 1 << 30, "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 501")


def test_a_sender_that_leaves_in_the_middle_leaves_nothing_behind(gateway, directory, tmp_path):
    content = body(encoded(instance(PixelData=bytes(200_000))))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(_head(gateway, len(content)) + content[:100_000])
    record = audited(gateway, tmp_path)
    assert (record["outcome"], record["count"]) == ("ClientDisconnect", 0)
    assert files_in(directory) == []
    assert nothing_is_left(tmp_path)


def test_a_sender_that_falls_silent_is_not_waited_for(directory):
    content = body(encoded(instance(PixelData=bytes(200_000))))
    with (
        Gateway([files_node("disk", directory, store=True)], store_idle=0.3) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
    ):
        connection.sendall(_head(gateway, len(content)) + content[:100_000])
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert files_in(directory) == []


def test_what_was_stored_can_be_read_by_pydicom(gateway, directory):
    one = instance(issuer="ELSEWHERE")
    send(gateway.client, one)
    [path] = files_in(directory)
    assert "OriginalAttributesSequence" not in dcmread(path), "nothing had to be changed"


def test_the_service_says_that_it_stores(gateway):
    answer = gateway.client.options("/dicom-web/studies")
    resources = answer.json()["application"]["resources"]["resource"]
    stores = {resource["@path"] for resource in resources for method in resource["method"] if method["@name"] == "POST"}
    assert stores == {"studies", "studies/{study}"}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The body with a few bytes lost, doubled or changed somewhere, above all where its structure is."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        marks = [at for mark in (b"--" + BOUNDARY.encode(), b"\r\n\r\n", b"DICM") if (at := made.find(mark)) >= 0]
        at = min(len(made), max(0, chance.choice([*marks, chance.randrange(len(made) + 1)]) + chance.randint(-4, 8)))
        match chance.randrange(4):
            case 0:
                del made[at : at + chance.randint(1, 200)]
            case 1:
                made[at:at] = made[at : at + chance.randint(1, 200)]
            case 2:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case _:
                del made[at:]
    return bytes(made)


def test_no_damage_to_a_body_is_a_fault_of_ours(gateway, directory, tmp_path):
    chance = random.Random(4)
    whole = body(*(encoded(instance("1.2.3", SeriesInstanceUID="1.2.3.1")) for _ in range(3)))
    given = Counter()
    for _ in range(150):
        content = damaged(whole, chance)
        response = gateway.client.post("/dicom-web/studies", content=content, headers={"Content-Type": DICOM})
        given[response.status_code] += 1
    assert set(given) <= {200, 202, 400, 409}, given
    assert given[400] > 10
    assert given[202] > 10
    assert nothing_is_left(tmp_path)
    for path in files_in(directory):
        dcmread(path)
