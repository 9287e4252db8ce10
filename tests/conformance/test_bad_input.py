"""What callers get wrong: refused with the parameter named, negotiated as PS3.18 says, and nothing leaks in the refusal."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from national_nodes import Demo, attribute

from gateway.edge.dicomweb.wado import OpenStream
from gateway.simulators.corpus import HeldStudy
from tests.running import Gateway


def tomosynthesis(demo: Demo) -> tuple[HeldStudy, str]:
    """The path of a multi-frame instance, and its study."""
    study = next(s for s in demo.holdings() if s.node == "es-madrid" and s.study_description == "Tomosíntesis mamaria")
    series = study.series[0]
    instance = series.instances[0]
    assert instance.number_of_frames == 6
    path = f"/dicom-web/studies/{study.study_uid}/series/{series.series_uid}/instances/{instance.sop_instance_uid}"
    return study, path


REFUSED = [
    ("studies?NoSuchKeyword=1", "NoSuchKeyword"),
    ("studies?0010002=1", "0010002"),
    ("studies?ZZZZ0020=1", "ZZZZ0020"),
    ("studies?PatientID=1&PatientID=2", "PatientID"),
    ("studies?PatientID=1&00100020=2", "00100020"),
    ("studies?PatientID=1&PatientID=1", "PatientID"),
    ("studies?limit=5&limit=6", "limit"),
    ("studies?limit=-1", "limit"),
    ("studies?limit=ten", "limit"),
    ("studies?limit=", "limit"),
    ("studies?limit=1.5", "limit"),
    ("studies?limit=٣", "limit"),
    ("studies?offset=-1", "offset"),
    ("studies?offset=x", "offset"),
    ("studies?StudyDate=2025-01-01", "StudyDate"),
    ("studies?StudyDate=20251301", "StudyDate"),
    ("studies?StudyDate=20250101-20240101", "StudyDate"),
    ("studies?StudyDate=-", "StudyDate"),
    ("studies?StudyDate=2025", "StudyDate"),
    ("studies?StudyDate=20250231", "StudyDate"),
    ("studies?StudyTime=2500", "StudyTime"),
    ("studies?StudyTime=101599", "StudyTime"),
    ("studies?StudyTime=100000-101561.5", "StudyTime"),
    ("instances?AcquisitionDateTime=20250101101599", "AcquisitionDateTime"),
    ("instances?AcquisitionDateTime=20250101%2B9900", "AcquisitionDateTime"),
    ("instances?AcquisitionDateTime=202501-202502-9900", "AcquisitionDateTime"),
    ("studies?StudyInstanceUID=1.2.x", "StudyInstanceUID"),
    ("studies?StudyInstanceUID=1..2", "StudyInstanceUID"),
    ("studies?StudyInstanceUID=" + "1." * 40 + "1", "StudyInstanceUID"),
    ("studies?StudyInstanceUID=1.2,", "StudyInstanceUID"),
    ("studies?StudyInstanceUID=1.2.*", "StudyInstanceUID"),
    ("studies?includefield=NoSuchKeyword", "NoSuchKeyword"),
    ("studies?includefield=FFFEE000", "FFFEE000"),
    ("studies?00000002=1.2", "00000002"),
    ("studies?includefield=all&includefield=PatientName", "includefield"),
    ("studies?fuzzymatching=perhaps", "fuzzymatching"),
    ("studies?emptyvaluematching=1", "emptyvaluematching"),
    ("studies?multiplevaluematching=true&ModalitiesInStudy=C*%5CMR", "ModalitiesInStudy"),
    ("studies?TimezoneOffsetFromUTC=%2B9900", "TimezoneOffsetFromUTC"),
    ("studies?TimezoneOffsetFromUTC=CET", "TimezoneOffsetFromUTC"),
    ("instances?00091002=x", "00091002"),
    ("instances?00091002=x&00090010=GEMS", "00091002"),
    ("studies?charset=iso-8859-2", "charset"),
    ("studies?OtherPatientIDsSequence=1", "OtherPatientIDsSequence"),
    ("studies?PatientID.StudyDescription=1", "PatientID.StudyDescription"),
    ("studies?includefield=PatientID.PatientName", "PatientID.PatientName"),
    ("studies?PixelData=1", "PixelData"),
    ("studies?PatientName=%FF%FE", "PatientName"),
    ("series?SeriesNumber=one", "SeriesNumber"),
    ("series?SeriesNumber=nan", "SeriesNumber"),
    ("series?SeriesNumber=1_0", "SeriesNumber"),
    ("series?SeriesNumber=%D9%A3", "SeriesNumber"),
    ("studies/1.2.3/series?StudyInstanceUID=1.2.4", "StudyInstanceUID"),
    ("studies/abc/series", "StudyInstanceUID"),
    ("studies/1.2.3/series/x/instances", "SeriesInstanceUID"),
    ("studies/not-a-uid", "StudyInstanceUID"),
    ("studies/1.2.3/series/..2", "SeriesInstanceUID"),
    ("studies/1.2.3/series/1.2/instances/.1", "SOPInstanceUID"),
    ("studies/1.2.3/series/1.2/instances/1.3/frames/0", "frames"),
    ("studies/1.2.3/series/1.2/instances/1.3/frames/1,,2", "frames"),
    ("studies/1.2.3/series/1.2/instances/1.3/frames/a", "frames"),
    ("studies/1.2.3/series/1.2/instances/1.3/bulkdata/nonsense", "bulkdata"),
]


@pytest.mark.parametrize(("path", "parameter"), REFUSED)
def test_what_is_malformed_is_refused_and_named(demo: Demo, path: str, parameter: str) -> None:
    for root in ("/dicom-web", "/nodes/ee-tartu/dicom-web"):
        answer = demo.get(f"{root}/{path}")
        assert answer.status_code == 400, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert body["parameter"] == parameter
        assert body["status"] == 400
        assert body["code"].startswith("GW1")


@pytest.mark.parametrize(
    "path", ["/nodes/no-such/dicom-web/studies", "/dicom-web/studies?node=no-such", "/fhir/ImagingStudy?node=no-such"]
)
def test_an_unknown_node_is_404_and_the_list_is_pointed_to(demo: Demo, path: str) -> None:
    answer = demo.get(path)
    assert answer.status_code == 404
    assert "/nodes" in answer.text


NOT_ACCEPTABLE = [
    ("/dicom-web/studies", "text/html"),
    ("/dicom-web/studies", "application/dicom+xml"),
    ("{study}", "application/json"),
    ("{study}", "image/jpeg"),
    ("{study}", "application/dicom"),
    ("{study}/metadata", "application/dicom"),
    ("{instance}", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.70'),
    ("{instance}/frames/1", "text/plain"),
    ("{instance}/frames/1", 'multipart/related; type="image/jpeg"'),
    ("{instance}/frames/1,2", "application/octet-stream"),
    ("/fhir/ImagingStudy", "application/fhir+turtle"),
    ("/fhir/ImagingStudy", "application/fhir+json; fhirVersion=3.0"),
    ("/fhir/r4/ImagingStudy", "application/fhir+json; fhirVersion=5.0"),
]


@pytest.mark.parametrize(("path", "accept"), NOT_ACCEPTABLE)
def test_an_accept_that_cannot_be_met_is_406(demo: Demo, path: str, accept: str) -> None:
    study, instance = tomosynthesis(demo)
    answer = demo.get(
        path.format(study=f"/dicom-web/studies/{study.study_uid}", instance=instance), headers={"accept": accept}
    )
    assert answer.status_code == 406, answer.text[:200]


ACCEPTABLE = [
    ("/dicom-web/studies?limit=1", "application/dicom+json", "application/dicom+json"),
    ("/dicom-web/studies?limit=1", "application/json", "application/json"),
    ("/dicom-web/studies?limit=1", "text/html, */*;q=0.1", "application/dicom+json"),
    ("/dicom-web/studies?limit=1&accept=application/dicom%2Bjson", "text/html", "application/dicom+json"),
    ("{instance}", "application/dicom", "application/dicom; transfer-syntax="),
    ("{instance}", "*/*", 'multipart/related; type="application/dicom"'),
    ("{instance}/frames/1", "*/*", "multipart/related"),
    ("{instance}/frames/1", "application/octet-stream; transfer-syntax=*", "application/octet-stream"),
    ("{instance}/metadata", "application/dicom+json", "application/dicom+json"),
    ("/fhir/ImagingStudy?_count=1", "application/fhir+json; fhirVersion=5.0", "application/fhir+json; fhirVersion=5.0"),
    ("/fhir/ImagingStudy?_count=1", "text/html", ""),
    ("/fhir/ImagingStudy?_count=1&_format=json", "text/html", "application/fhir+json; fhirVersion=4.0"),
]


@pytest.mark.parametrize(("path", "accept", "given"), [row for row in ACCEPTABLE if row[2]])
def test_an_accept_that_can_be_met_is(demo: Demo, path: str, accept: str, given: str) -> None:
    _, instance = tomosynthesis(demo)
    answer = demo.get(path.format(instance=instance), headers={"accept": accept})
    assert answer.status_code == 200, answer.text[:200]
    assert answer.headers["content-type"].startswith(given)


def test_no_accept_is_any_unless_the_standard_is_taken_at_its_word(demo: Demo) -> None:
    path = "/dicom-web/studies?node=ee-tartu&limit=1"
    request = demo.gateway.client.build_request("GET", path)
    del request.headers["accept"]
    assert demo.gateway.client.send(request).status_code == 200
    tartu = [table for table in demo.tables if table["id"] == "ee-tartu"]
    with Gateway(tartu, strict_accept=True) as strict:
        request = strict.client.build_request("GET", path)
        del request.headers["accept"]
        assert strict.client.send(request).status_code == 406
        assert strict.get(path).status_code == 200


def test_options_tells_what_the_service_does(demo: Demo) -> None:
    for path in ("/dicom-web", "/dicom-web/", "/dicom-web/studies", "/nodes/ee-tartu/dicom-web/"):
        answer = demo.gateway.client.options(path, follow_redirects=True)
        assert answer.status_code == 200, path
        assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
        described = answer.json()["application"]["resources"]
        assert described["@base"].startswith(demo.url + path.rstrip("/").removesuffix("/studies"))
        assert "studies/{study}/series" in {resource["@path"] for resource in described["resource"]}


def test_a_method_that_is_not_offered_is_405(demo: Demo) -> None:
    for path in ("/dicom-web/studies", "/fhir/ImagingStudy", "/fhir/ImagingStudy/1.2"):
        answer = demo.gateway.client.delete(path)
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]


def test_includefield_may_be_a_list_all_or_repeated(demo: Demo) -> None:
    root = "/dicom-web/studies?StudyDate=20250226&includefield="
    description, comments = "00081030", "00104000"

    def row(asked: str) -> dict[str, Any]:
        (found,) = demo.get(root + asked).json()
        return dict(found)

    listed = row("StudyDescription,00081080")
    repeated = row("StudyDescription&includefield=00081080")
    everything = row("all")
    assert listed == repeated
    assert attribute(listed, description) == ["Mamografía de cribado bilateral"]
    assert listed.keys() <= everything.keys() | {comments}


def test_frames_come_in_the_order_asked_for(demo: Demo) -> None:
    _, instance = tomosynthesis(demo)
    octets = {"accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
    answer = demo.get(f"{instance}/frames/1,3,2", headers=octets)
    assert answer.status_code == 200
    assert re.findall(rb"Content-Location: \S+/frames/(\d+)", answer.content) == [b"1", b"3", b"2"]


@pytest.mark.parametrize("frames", ["7", "1,7", "99999"])
def test_a_frame_that_the_instance_has_not_is_refused(demo: Demo, frames: str) -> None:
    study, instance = tomosynthesis(demo)
    for root in ("/dicom-web", f"/nodes/{study.node}/dicom-web"):
        answer = demo.get(f"{instance.replace('/dicom-web', root)}/frames/{frames}")
        assert (answer.status_code, answer.json()["parameter"]) == (400, "frames")


def test_an_instance_a_series_or_a_value_that_the_study_has_not_is_404(demo: Demo) -> None:
    for node in ("ee-tartu", "es-madrid", "fr-lyon", "de-berlin"):
        study = demo.corpus.nodes[node].studies[0]
        series = study.series[0]
        root = f"/nodes/{node}/dicom-web/studies/{study.study_uid}"
        instance = f"{root}/series/{series.series_uid}/instances/{series.instances[0].sop_instance_uid}"
        for path in (
            f"{root}/series/1.2.3",
            f"{root}/series/1.2.3/metadata",
            f"{root}/series/{series.series_uid}/instances/1.2.3",
            f"{root}/series/{series.series_uid}/instances/1.2.3/metadata",
            f"{root}/series/{series.series_uid}/instances/1.2.3/frames/1",
            f"{instance}/bulkdata/00420011",
        ):
            answer = demo.get(path)
            assert answer.status_code == 404, f"{path} {answer.text}"


def test_a_head_request_has_the_headers_and_no_body(demo: Demo) -> None:
    path = "/dicom-web/studies?node=ee-tartu"
    head, get = demo.gateway.client.head(path), demo.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == get.headers["etag"]


def test_a_head_request_for_pixels_costs_no_retrieve_of_the_rest(demo: Demo) -> None:
    study, instance = tomosynthesis(demo)
    for path in (f"/dicom-web/studies/{study.study_uid}", instance, f"{instance}/frames/1,2"):
        head, get = demo.gateway.client.head(path), demo.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert (
            head.headers["content-type"].partition("boundary")[0]
            == get.headers["content-type"].partition("boundary")[0]
        )


async def test_a_stream_is_not_read_for_a_head_request() -> None:
    taken: list[int] = []
    sent: list[dict[str, Any]] = []

    async def body() -> AsyncIterator[bytes]:
        taken.append(1)
        yield b"x"

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    response = OpenStream(AsyncExitStack(), body(), "application/dicom", {"Vary": "Accept"})
    await response({"type": "http", "method": "HEAD"}, receive, send)
    assert taken == []
    assert [message.get("body", b"") for message in sent] == [b"", b""]
    assert (b"content-type", b"application/dicom") in sent[0]["headers"]


def test_what_a_limit_holds_back_is_said(demo: Demo) -> None:
    answer = demo.get("/dicom-web/studies?node=ee-tartu&limit=3")
    remaining = len(demo.corpus.nodes["ee-tartu"].studies) - 3
    (warning,) = answer.headers.get_list("warning")
    assert warning == f'299 {demo.url}/dicom-web "There are {remaining} additional results that can be requested"'
    beyond = demo.get("/dicom-web/studies?node=ee-tartu&offset=1000")
    assert (beyond.status_code, beyond.json()) == (200, [])
    none = demo.get("/dicom-web/studies?node=ee-tartu&limit=0")
    assert (none.status_code, none.json()) == (200, [])


def test_a_complete_answer_is_revalidated(demo: Demo) -> None:
    study = demo.corpus.nodes["ee-tartu"].studies[0].study_uid
    for path in (
        "/nodes/ee-tartu/dicom-web/studies",
        f"/nodes/ee-tartu/dicom-web/studies/{study}/metadata",
        "/fhir/ImagingStudy?node=ee-tartu",
        f"/fhir/ImagingStudy/{study}?node=ee-tartu",
        "/fhir/metadata",
    ):
        first = demo.get(path)
        again = demo.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"].removeprefix("W/")}'})
        assert (again.status_code, again.content) == (304, b""), path
        assert again.headers["etag"].removeprefix("W/") == first.headers["etag"].removeprefix("W/")
        assert demo.get(path, headers={"if-none-match": '"other"'}).status_code == 200
        assert demo.get(path, headers={"if-none-match": "*"}).status_code == 304, path


def planted_texts(demo: Demo) -> set[str]:
    """What must never be in an error or a log line: names and ids of patients, paths of files, places in code."""
    patients = [study for study in demo.corpus.studies() if study.is_generated]
    names = {part for study in patients for part in re.split(r"[\^=\\ ]", study.patient_name) if len(part) > 3}
    ids = {study.patient_id for study in patients if len(study.patient_id) > 5}
    return names | ids | {str(demo.corpus.root), "Traceback", "site-packages", ".py", "object at 0x"}


def test_errors_and_logs_leak_nothing(
    demo: Demo, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    study = demo.corpus.case("uid-clash").study_uid
    person = demo.corpus.case("shared-study").studies[0]
    paths = [f"/dicom-web/{path}" for path, _ in REFUSED]
    paths += [
        f"/dicom-web/studies/{study}",
        f"/fhir/ImagingStudy/{study}",
        "/fhir/ImagingStudy/no-such-id",
        "/fhir/Patient/0123456789abcdef0123456789abcdef",
        f"/dicom-web/studies?PatientName={person.patient_name}&StudyDate=x",
        f"/dicom-web/studies?{person.patient_name}=1",
        f"/dicom-web/studies?PatientID={person.patient_id}&PatientID={person.patient_id}",
        f"/dicom-web/studies?PatientID={person.patient_id}&limit={person.patient_name}",
        f"/fhir/ImagingStudy?patient.identifier={person.patient_id}&started={person.patient_name}",
        f"/fhir/ImagingStudy?modality={person.patient_name}|x",
        f"/fhir/ImagingStudy?endpoint={person.patient_name}&_count={person.patient_id}",
        f"/dicom-web/studies?PatientName={person.patient_name}&node=it-roma",
        "/fhir/ImagingStudy?patient.identifier=12345",
        "/dicom-web/studies?PatientID=12345",
        "/nothing/here",
    ]
    bodies = "".join(answer.text for answer in map(demo.get, paths) if answer.status_code >= 400)
    written = capfd.readouterr()
    ours = "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    )
    assert len(bodies) > 5000
    for text in planted_texts(demo):
        for place in (bodies, written.out, written.err, ours):
            assert text not in place, text
