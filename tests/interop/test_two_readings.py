"""Instances that are one thing to the gateway and another to an archive: none of them comes into another patient's study."""

from __future__ import annotations

from struct import pack

import pytest
from pydicom.uid import ImplicitVRLittleEndian

from tests.interop.test_storing_at_peers import KINDS
from tests.running import Gateway, files_node
from tests.sending import encoded, instance, send


def later(raw: bytes, group: int, element: int, vr: bytes, value: bytes) -> bytes:
    """The file with one element more, behind (0028,0002), where none of its group belongs."""
    value += b"\0" * (len(value) % 2) if vr == b"UI" else b" " * (len(value) % 2)
    at = raw.index(b"\x28\0\x04\0CS")
    return raw[:at] + pack("<HH2sH", group, element, vr, len(value)) + value + raw[at:]


def adjacent(raw: bytes, value: bytes) -> bytes:
    """The study's element once more in front of its own: of two that stand side by side the gateway takes the last."""
    value += b"\0" * (len(value) % 2)
    at = raw.index(b"\x20\0\x0d\0UI")
    return raw[:at] + pack("<HH2sH", 0x20, 0x0D, b"UI", len(value)) + value + raw[at:]


@pytest.mark.parametrize("way", ["later", "adjacent", "padding"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nothing_of_another_patient_comes_into_the_study(tmp_path, kind, way):
    with kind(tmp_path) as node, Gateway([node], find_ttl=0, location_ttl=0, metadata_ttl=1) as gateway:
        mine = instance("1.2.3", patient="VICTIM")
        assert send(gateway.client, mine).status == 200
        assert gateway.get("/dicom-web/studies/1.2.3/metadata").status_code == 200
        raw = encoded(instance("1.2.4", patient="OTHER"))
        twofold = adjacent(raw, b"1.2.3") if way == "adjacent" else later(raw, 0x20, 0x0D, b"UI", b"1.2.3")
        if way == "padding":  # eight zeros, behind which the walker looks at nothing any more
            at = twofold.rindex(b"\x20\0\x0d\0UI")
            twofold = twofold[:at] + bytes(8) + twofold[at:]
        answer = send(gateway.client, twofold, at="/dicom-web/studies/1.2.4")
        rows = gateway.get("/dicom-web/studies?StudyInstanceUID=1.2.3&includefield=PatientID").json()
    assert answer.status == 409
    assert {row["00100020"]["Value"][0] for row in rows} == {"VICTIM"}


LENGTH = int.from_bytes(b"LO", "little")  # 20300


def data_set(raw: bytes) -> bytes:
    return raw[raw.index(b"\x08\0\x16\0") :]


def twofold() -> bytes:
    shown = data_set(encoded(instance("1.2.4", patient="OTHER")))
    shown = shown[: shown.index(b"\x28\0\x02\0US")]
    filler = LENGTH - len(shown) - 12
    shown += pack("<HH2sHL", 0x29, 0x1001, b"OB", 0, filler) + bytes(filler)
    assert len(shown) == LENGTH
    real = encoded(instance("1.2.3", patient="OTHER", syntax=ImplicitVRLittleEndian))
    at = real.index(b"\x08\0\x16\0")
    return real[:at] + pack("<HHL", 8, 8, LENGTH) + shown + real[at:]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_checked_is_what_is_stored(tmp_path, kind):
    with kind(tmp_path) as node, Gateway([node], find_ttl=0, location_ttl=0, metadata_ttl=1) as gateway:
        assert send(gateway.client, instance("1.2.3", patient="VICTIM")).status == 200
        send(gateway.client, twofold(), at="/dicom-web/studies/1.2.4")
        rows = gateway.get("/dicom-web/studies?StudyInstanceUID=1.2.3&includefield=PatientID").json()
        held = sorted({row["00100020"]["Value"][0] for row in rows})
    assert held == ["VICTIM"]


@pytest.fixture
def disk(tmp_path):
    """A node that takes what is stored, and holds one study of VICTIM."""
    node = files_node("disk", tmp_path, store=True, patient_id_issuer="HOSPITAL")
    with Gateway([node], find_ttl=0, location_ttl=0) as gateway:
        assert send(gateway.client, instance("1.2.3", patient="VICTIM")).status == 200
        yield gateway


def test_an_instance_that_names_two_patients_is_not_stored(disk):
    twofold = later(encoded(instance("1.2.3", patient="VICTIM")), 0x10, 0x20, b"LO", b"OTHER")
    assert list(send(disk.client, twofold).failed.values()) == [0xC000]


def test_an_id_of_two_values_is_not_taken_for_its_first(disk):
    raw = encoded(instance("1.2.3", patient="VICTIM_OTHER")).replace(b"VICTIM_OTHER", b"VICTIM\\OTHER")
    answer = send(disk.client, raw)
    assert answer.status == 409


def test_an_id_that_cannot_be_read_is_nobodys(disk):
    raw = encoded(instance("1.2.4", patient="XXXX", SpecificCharacterSet="ISO_IR 192")).replace(b"XXXX", b"AN\xff1")
    answer = send(disk.client, raw)
    assert answer.status == 409


def test_zeros_behind_the_last_element_are_no_reason_to_refuse_it(disk):
    assert send(disk.client, encoded(instance("1.2.3", patient="VICTIM")) + bytes(64)).status == 200
