"""The conformance table of the README: every row that says yes is held to a request that shows it."""

from __future__ import annotations

import contextlib
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from small_hospital import CT, LOPEZ, MULLER, YAMADA, Small, small
from starlette.datastructures import Headers
from starlette.routing import Route

from gateway.edge import routes
from gateway.edge.proxies import forwarded
from gateway.model.vocabulary import RETURNED, Level, tag
from tests import sending
from tests.running import Gateway, files_node
from tests.specimens import uid

README = Path(__file__).parents[2] / "README.md"
_ROW = re.compile(r"^\| ([A-Z]\d{1,2}[a-z]?) \| ([^|]+) \| (yes|no) \|([^|]*)\|$", re.MULTILINE)
Check = Callable[[Small], None]
SHOWN: dict[str, Check] = {}

XML = 'multipart/related; type="application/dicom+xml"'
SERIES, INSTANCE = uid(MULLER, "1"), uid(MULLER, "1", 1)
STUDY_PATH, SERIES_PATH = f"studies/{uid(MULLER)}", f"studies/{uid(MULLER)}/series/{SERIES}"
INSTANCE_PATH = f"{SERIES_PATH}/instances/{INSTANCE}"
OCTETS = {"Accept": "application/octet-stream; transfer-syntax=*"}


def rows() -> dict[str, tuple[str, str, str]]:
    """What the table asks, yes or no, and how or why not, by row."""
    found = _ROW.findall(README.read_text())
    assert len({row for row, *_ in found}) == len(found), "a row is in the table twice"
    return {row: (asked, done, why) for row, asked, done, why in found}


def shows(row: str) -> Callable[[Check], Check]:
    """Registers the check of one row."""

    def register(check: Check) -> Check:
        assert row not in SHOWN, row
        SHOWN[row] = check
        return check

    return register


def test_every_yes_has_a_check_and_every_check_a_yes() -> None:
    table = rows()
    assert len(table) > 50
    assert {row for row, (_, done, _) in table.items() if done == "yes"} == set(SHOWN)


def test_every_no_says_why() -> None:
    assert [row for row, (_, done, why) in rows().items() if done == "no" and not why.strip()] == []


@pytest.mark.parametrize("row", sorted(row for row, (_, done, _) in rows().items() if done == "yes"))
def test_a_yes_is_shown_by_a_request(hospital: Small, row: str) -> None:
    SHOWN[row](hospital)


def status(hospital: Small, path: str, node: str = "files", **headers: str) -> int:
    return hospital.get(path, node, **headers).status_code


@shows("W1")
def six_resources(hospital: Small) -> None:
    for node in ("files", "web", "pacs"):
        for path in ("studies", "series", "instances", f"{STUDY_PATH}/series", f"{STUDY_PATH}/instances"):
            assert hospital.rows(path, node)
        assert hospital.rows(f"{SERIES_PATH}/instances", node)


@shows("W2a")
def accept_is_read_tolerantly(hospital: Small) -> None:
    assert hospital.get("studies", Accept="*/*").headers["content-type"] == "application/dicom+json"
    assert hospital.get("studies", Accept="no/such, application/json").headers["content-type"] == "application/json"
    for spelled in ("type=application/dicom+xml", 'type="application/dicom+xml; charset=utf-8"', 'type="*/*"'):
        answer = hospital.get("studies", Accept=f"multipart/related; {spelled}")
        assert answer.headers["content-type"].startswith(XML), spelled
    weighed = f"application/dicom+json;q=0.5, {XML};q=0.9"
    assert hospital.get("studies", Accept=weighed).headers["content-type"].startswith(XML)
    assert status(hospital, "studies", Accept="text/csv") == 406
    assert status(hospital, "studies", Accept="*/*;q=0") == 406


@shows("W2d")
def accept_in_the_query(hospital: Small) -> None:
    for accept in ("application/dicom%2Bjson", "application/dicom+json", "*/*,application/dicom%2Bjson"):
        answer = hospital.get(f"studies?accept={accept}", Accept="application/json")
        assert answer.headers["content-type"] == "application/dicom+json"
    assert hospital.get("studies?accept=*/*", Accept="application/json").headers["content-type"] == "application/json"
    assert status(hospital, "studies?accept=text/csv", Accept="*/*") == 406


@shows("W3a")
def forbidden_syntaxes_are_rewritten(hospital: Small) -> None:
    body = hospital.get(INSTANCE_PATH, Accept="application/dicom; transfer-syntax=*")
    assert body.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert status(hospital, INSTANCE_PATH, Accept="application/dicom; transfer-syntax=1.2.840.10008.1.2") == 406


@shows("W3c")
def any_syntax(hospital: Small) -> None:
    for path in (STUDY_PATH, SERIES_PATH, INSTANCE_PATH):
        assert status(hospital, path, Accept='multipart/related; type="application/dicom"; transfer-syntax=*') == 200


@shows("W4")
def capabilities(hospital: Small) -> None:
    for accept in ("application/json", "application/vnd.sun.wadl+xml"):
        answer = hospital.gateway.client.options("/dicom-web/", headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, accept)


@shows("W5")
def warnings_name_the_service(hospital: Small) -> None:
    warning = hospital.get("studies?limit=1").headers["warning"]
    assert warning.startswith(f'299 {hospital.gateway.url}/nodes/files/dicom-web "')


@shows("W6")
def types_and_locations(hospital: Small) -> None:
    body = hospital.get(STUDY_PATH).content
    assert body.count(b"Content-Type: application/dicom; transfer-syntax=") == 2
    assert f"Content-Location: {hospital.gateway.url}/nodes/files/dicom-web/{INSTANCE_PATH}".encode() in body
    assert f"/dicom-web/{INSTANCE_PATH}/metadata".encode() in hospital.get(f"{STUDY_PATH}/metadata", Accept=XML).content


@shows("W7")
def charset(hospital: Small) -> None:
    assert status(hospital, "studies?charset=utf-8") == 200
    assert status(hospital, "studies?charset=klingon") == 400


@shows("Q1")
def match_keys(hospital: Small) -> None:
    of_studies = ("StudyDate=20260301", "StudyTime=1015", "AccessionNumber=ACC-1", "ReferringPhysicianName=weiss*",
                  "PatientName=muller*", "PatientID=P1", f"StudyInstanceUID={uid(MULLER)}", "StudyID=S1")  # fmt: skip
    of_series = ("Modality=CT", f"SeriesInstanceUID={SERIES}", "SeriesNumber=7", "PerformedProcedureStepStartDate=20260301",
                 "PerformedProcedureStepStartTime=101400", "00400275.00400009=SPS-1", "00400275.00401001=RP-1")  # fmt: skip
    of_instances = (f"SOPClassUID={CT}", f"SOPInstanceUID={INSTANCE}", "InstanceNumber=1")
    for key in of_studies:
        assert hospital.found(f"studies?{key}") == {MULLER}, key
    assert hospital.found("studies?ModalitiesInStudy=MR") == {LOPEZ}
    for resource, keys in (("series", of_series), ("instances", of_instances)):
        for key in keys:
            assert hospital.found(f"{resource}?{key}&StudyID=S1") == {MULLER}, key


@shows("Q2a")
def names_of_attributes(hospital: Small) -> None:
    for key in ("PatientID=P1", "00100020=P1", "00400275.ScheduledProcedureStepID=SPS-1"):
        assert hospital.found(f"series?{key}") == {MULLER}
    assert status(hospital, "studies?PatientID=P1&00100020=P1") == 400
    assert hospital.found(f"studies?StudyInstanceUID={uid(MULLER)},{uid(LOPEZ)}") == {MULLER, LOPEZ}


@shows("Q3a")
def wildcards(hospital: Small) -> None:
    assert hospital.found("studies?StudyDescription=Tho*") == {MULLER}
    assert hospital.found("studies?StudyDescription=tho*") == set()
    assert hospital.found("studies?PatientName=MULLER?HANS") == {MULLER}


@shows("Q3b")
def spans(hospital: Small) -> None:
    assert hospital.found("studies?StudyDate=20260301-20260302&StudyTime=1000-0100") == {MULLER, LOPEZ}
    assert hospital.found("studies?StudyDate=20260302-") == {LOPEZ, YAMADA}


@shows("Q4")
def offset_of_the_request(hospital: Small) -> None:
    asked = "studies?StudyDate=20260301&TimezoneOffsetFromUTC="
    assert hospital.found(asked + "%2B0000") == {MULLER, LOPEZ}
    assert hospital.found(asked + "%2B0100") == {MULLER}


@shows("Q5a")
def includefield(hospital: Small) -> None:
    described = tag("StudyDescription")
    for field in ("StudyDescription,PatientSex", "PatientSex&includefield=00081030", "all"):
        assert hospital.rows(f"studies?StudyID=S1&includefield={field}")[0][described]["Value"] == ["Thorax"]


@shows("Q5b")
def fuzzymatching(hospital: Small) -> None:
    for node in ("files", "web", "pacs"):
        assert hospital.found("studies?PatientName=hans%20m%C3%BCl&fuzzymatching=true", node) == {MULLER}


@shows("Q5c")
def emptyvaluematching(hospital: Small) -> None:
    assert hospital.found("studies?AccessionNumber=%22%22&emptyvaluematching=true") == {YAMADA}


@shows("Q5d")
def multiplevaluematching(hospital: Small) -> None:
    assert hospital.found("studies?ModalitiesInStudy=CT%5CMR&multiplevaluematching=true") == {LOPEZ}


@shows("Q5e")
def limit_and_offset(hospital: Small) -> None:
    assert [len(hospital.rows(f"studies?limit={limit}&offset=1")) for limit in (0, 1, 5)] == [0, 1, 2]


def returned(hospital: Small, path: str, *levels: Level) -> None:
    """Conditional attributes have their condition met in this study."""
    given = {tag_ for level in levels for tag_ in RETURNED[level]}
    no_value = {tag("Laterality"), tag("SeriesDate"), tag("SeriesTime")}
    assert given - no_value <= set(hospital.rows(path)[0])


@shows("Q6")
def study_attributes(hospital: Small) -> None:
    returned(hospital, "studies?StudyID=S1", Level.STUDY)


@shows("Q7")
def series_attributes(hospital: Small) -> None:
    returned(hospital, f"{STUDY_PATH}/series", Level.SERIES)
    returned(hospital, "series?StudyID=S1", Level.STUDY, Level.SERIES)


@shows("Q8")
def instance_attributes(hospital: Small) -> None:
    returned(hospital, f"{SERIES_PATH}/instances", Level.IMAGE)
    returned(hospital, f"{STUDY_PATH}/instances", Level.SERIES, Level.IMAGE)
    returned(hospital, "instances?StudyID=S1", *Level)


@shows("Q9")
def nothing_of_a_lower_level(hospital: Small) -> None:
    assert tag("Modality") not in hospital.rows("studies?StudyID=S1&includefield=Modality")[0]


@shows("Q10")
def pages(hospital: Small) -> None:
    whole = hospital.rows("studies")
    assert [hospital.rows(f"studies?limit=1&offset={at}")[0] for at in range(3)] == whole
    assert "There are 2 additional results" in hospital.get("studies?limit=1").headers["warning"]


@shows("Q11")
def nothing_found(hospital: Small) -> None:
    answer = hospital.get("studies?PatientID=nobody")
    assert (answer.status_code, answer.json()) == (200, [])


@shows("Q12")
def media_types(hospital: Small) -> None:
    for accept in ("application/dicom+json", XML):
        assert hospital.get("studies", Accept=accept).headers["content-type"].startswith(accept)


@shows("Q13")
def codes(hospital: Small) -> None:
    assert status(hospital, "studies?StudyDate=yesterday") == 400
    with tempfile.TemporaryDirectory() as directory, small(Path(directory), pacs={"descent_parents": 1}) as other:
        answer = other.get("instances", "pacs")
    assert answer.status_code == 413
    assert "add StudyDate, PatientID" in answer.json()["detail"]


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


@shows("W8")
def wado_uri(hospital: Small) -> None:
    asked = f"wado?requestType=WADO&studyUID={uid(MULLER)}&seriesUID={SERIES}&objectUID={INSTANCE}"
    assert hospital.get(asked, Accept="*/*").headers["content-type"] == "image/jpeg"
    assert hospital.get(f"{asked}&contentType=application/dicom", Accept="*/*").content[128:132] == b"DICM"
