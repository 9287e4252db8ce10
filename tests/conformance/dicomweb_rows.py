"""The rows of PS3.18 about WADO-RS (R), STOW-RS (S), DICOM JSON (J) and HTTP (H), each shown by a request."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from conformance_table import INSTANCE_PATH, OCTETS, SERIES_PATH, STUDY_PATH, shows, status
from pydicom import dcmread
from small_hospital import Small
from starlette.datastructures import Headers
from starlette.routing import Route

from gateway.edge import routes
from gateway.edge.proxies import forwarded
from gateway.model.vocabulary import tag
from tests import sending
from tests.running import Gateway, files_node


@shows("R1a")
def resources(hospital: Small) -> None:
    for path in (STUDY_PATH, SERIES_PATH, INSTANCE_PATH):
        assert (status(hospital, path), status(hospital, f"{path}/metadata")) == (200, 200)
    for path in (f"{INSTANCE_PATH}/frames/1", f"{INSTANCE_PATH}/bulkdata/7FE00010"):
        assert status(hospital, path) == 200


@shows("R2")
def bulk_data_by_address(hospital: Small) -> None:
    (described,) = hospital.get(f"{INSTANCE_PATH}/metadata").json()
    address = described["7FE00010"]["BulkDataURI"].removeprefix(hospital.gateway.url)
    assert hospital.gateway.get(address, headers=OCTETS).content == bytes(16)
    assert described[tag("BodyPartExamined")]["Value"] == ["CHEST"]


@shows("R4a")
def not_found(hospital: Small) -> None:
    assert status(hospital, "studies/1.2.3") == 404
    assert status(hospital, "studies/1.2.3/metadata") == 404


@shows("R5")
def single_part(hospital: Small) -> None:
    assert hospital.get(INSTANCE_PATH).headers["content-type"].startswith('multipart/related; type="application/dicom"')
    assert hospital.get(INSTANCE_PATH, Accept="application/dicom").content[128:132] == b"DICM"
    assert status(hospital, STUDY_PATH, Accept="application/dicom") == 406


@shows("R6a")
def octets(hospital: Small) -> None:
    answer = hospital.get(f"{INSTANCE_PATH}/bulkdata/7FE00010", **OCTETS)
    assert answer.headers["content-type"].startswith("application/octet-stream")
    assert answer.content == bytes(16)


@shows("R6b")
def ranges(hospital: Small) -> None:
    path = f"{INSTANCE_PATH}/bulkdata/7FE00010"
    part = hospital.get(path, Range="bytes=2-5", **OCTETS)
    assert (part.status_code, part.headers["content-range"], len(part.content)) == (206, "bytes 2-5/16", 4)
    assert status(hospital, path, Range="bytes=16-", **OCTETS) == 416
    assert status(hospital, path, Range="bytes=2-5", **{"If-Range": '"x"'}, **OCTETS) == 200


@shows("J1")
def empty_attributes(hospital: Small) -> None:
    (row,) = hospital.rows("studies?PatientID=P3")
    assert tag("AccessionNumber") not in row
    assert all("Value" in attribute for attribute in row.values())


@shows("J2")
def component_groups(hospital: Small) -> None:
    (row,) = hospital.rows("studies?PatientID=P3")
    assert row[tag("PatientName")]["Value"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]


@shows("J3")
def numbers(hospital: Small) -> None:
    (described,) = hospital.get(f"{INSTANCE_PATH}/metadata").json()
    assert described[tag("SeriesNumber")] == {"vr": "IS", "Value": [7]}
    assert described[tag("FrameIncrementPointer")] == {"vr": "AT", "Value": ["00181063"]}


@shows("J4")
def binary_values(hospital: Small) -> None:
    (described,) = hospital.get(f"{INSTANCE_PATH}/metadata").json()
    assert set(described["7FE00010"]) == {"vr", "BulkDataURI"}
    assert described[tag("RedPaletteColorLookupTableData")]["InlineBinary"] == "AAECAw=="


@shows("J5")
def character_set(hospital: Small) -> None:
    for path in ("studies", f"{INSTANCE_PATH}/metadata"):
        for each in hospital.get(path).json():
            assert each["00080005"]["Value"] == ["ISO_IR 192"]
            assert not [tag_ for tag_ in each if tag_.endswith("0000")]


@shows("H1")
def head(hospital: Small) -> None:
    assert all(
        "HEAD" in (one.methods or ()) for one in routes.dicomweb() if isinstance(one, Route) and "GET" in one.methods
    )  # type: ignore[operator]
    assert hospital.gateway.client.head("/nodes/files/dicom-web/studies").status_code == 200


@shows("H2")
def compression(hospital: Small) -> None:
    for coding in ("gzip", "zstd"):
        with hospital.gateway.client.stream("GET", "/dicom-web/studies", headers={"Accept-Encoding": coding}) as answer:
            assert answer.headers["content-encoding"] == coding
    assert "content-encoding" not in hospital.get(INSTANCE_PATH).headers


@shows("H3")
def validators(hospital: Small) -> None:
    for path in ("studies", f"{STUDY_PATH}/metadata"):
        etag = hospital.get(path).headers["etag"]
        assert status(hospital, path, **{"If-None-Match": etag}) == 304


@shows("H4")
def other_origins(hospital: Small) -> None:
    with Gateway([], cors_origins=("https://v.eu",), cross_origin_resource_policy="cross-origin") as gateway:
        headers = gateway.get("/dicom-web/studies", headers={"Origin": "https://v.eu"}).headers
    assert headers["access-control-allow-origin"] == "https://v.eu"
    assert headers["cross-origin-resource-policy"] == "cross-origin"


@shows("H5")
def behind_a_proxy(hospital: Small) -> None:
    said = {
        "x-forwarded-proto": "https",
        "x-forwarded-host": "a.eu",
        "x-forwarded-port": "8443",
        "x-forwarded-prefix": "/g",
    }
    assert forwarded(Headers(said)) == {"proto": "https", "host": "a.eu:8443", "prefix": "/g"}
    assert forwarded(Headers({"forwarded": "proto=https;host=b.eu"})) == {"proto": "https", "host": "b.eu"}
    del said["x-forwarded-proto"]  # the tests' own server believes it
    (row,) = hospital.get("studies?StudyID=S1", **said).json()  # nobody whom the gateway trusts
    assert row["00081190"]["Value"][0].startswith(hospital.gateway.url)


@shows("R1b")
def rendered(hospital: Small) -> None:
    for path in (STUDY_PATH, SERIES_PATH, INSTANCE_PATH, f"{INSTANCE_PATH}/frames/1"):
        assert hospital.get(f"{path}/thumbnail", Accept="image/png").headers["content-type"] == "image/png"
    for path in (INSTANCE_PATH, f"{INSTANCE_PATH}/frames/1"):
        assert hospital.get(f"{path}/rendered", Accept="image/jpeg").content[:2] == b"\xff\xd8"
    assert hospital.get(f"{SERIES_PATH}/rendered", Accept="image/png").content.count(b"\x89PNG") == 2


@shows("R3")
def rendering_parameters(hospital: Small) -> None:
    path = f"{INSTANCE_PATH}/rendered"
    shown = hospital.get(f"{path}?viewport=3,2&window=40,400,linear&annotation=technique", Accept="image/png")
    width, height = struct.unpack(">II", shown.content[16:24])
    assert (shown.status_code, width, height) == (200, 2, 2)
    coarse, fine = (hospital.get(f"{path}?quality={each}", Accept="image/jpeg").content for each in (5, 100))
    assert coarse != fine
    for wrong in ("viewport=big", "window=1", "quality=0"):
        assert status(hospital, f"{path}?{wrong}", Accept="image/png") == 400, wrong


@contextlib.contextmanager
def storing(**more: Any) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of a gateway over an empty directory, which takes what is stored."""
    with tempfile.TemporaryDirectory() as directory:
        node = files_node("disk", Path(directory), patient_id_issuer="HOSPITAL", **{"store": True, **more})
        with Gateway([node]) as gateway:
            yield gateway.client, Path(directory)


@shows("S1")
def stored(_: Small) -> None:
    with storing() as (client, directory):
        one, other = sending.instance("1.2.3"), sending.instance("1.2.4")
        assert sending.send(client, one).status == 200
        assert sending.send(client, other, at="/nodes/disk/dicom-web/studies/1.2.4").status == 200
        files = {path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        assert files == {sending.encoded(one), sending.encoded(other)}


@shows("S2")
def codes_of_storing(_: Small) -> None:
    with storing() as (client, _directory):
        good, bad = sending.encoded(sending.instance("1.2.3")), b"no DICOM"
        assert [sending.send(client, *some).status for some in ([good], [good, bad], [bad])] == [200, 202, 409]
        for kind, body in ((sending.DICOM, b"no part"), ("application/dicom", good)):
            answer = client.post("/dicom-web/studies", content=body, headers={"Content-Type": kind})
            assert answer.status_code == (400 if body == b"no part" else 415)


@shows("S3")
def outcomes(_: Small) -> None:
    with storing() as (client, _directory):
        one = sending.instance("1.2.3")
        answer = sending.send(client, one, b"no DICOM").body
        (kept,) = answer[sending.STORED]["Value"]
        assert kept["00081155"]["Value"] == [one.SOPInstanceUID]
        assert kept["00081190"]["Value"][0].endswith(f"/instances/{one.SOPInstanceUID}")
        assert answer["00081190"]["Value"][0].endswith("/studies/1.2.3")
        (other,) = answer[sending.OTHERS]["Value"]
        assert other["00081197"]["Value"]


@shows("S4")
def coerced(_: Small) -> None:
    with storing(store={"default": True, "set_issuer": True}) as (client, directory):
        sending.send(client, sending.instance("1.2.3"))
        (file,) = (path for path in directory.rglob("*") if path.is_file())
        kept = dcmread(file)
        assert kept.IssuerOfPatientID == "HOSPITAL"
        assert kept.OriginalAttributesSequence[0].ReasonForTheAttributeModification == "COERCE"


@shows("S5")
def another_study(_: Small) -> None:
    with storing() as (client, _directory):
        answer = sending.send(client, sending.instance("1.2.3"), at="/dicom-web/studies/1.2.4")
        assert answer.status == 409
        assert answer.failed
