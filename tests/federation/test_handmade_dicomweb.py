"""What DICOMweb servers do that no product at hand does: two patients of one UID, answers that are not whole, odd values."""

import gzip
from io import BytesIO

import httpx
import pytest
from running import Gateway, files_node
from specimens import specimen

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.handmade import DICOM_JSON, INSTANCE, STUDY, archive, dicomweb_node, given, server
from tests.peers import free_port

OTHER = {**STUDY, "00100020": {"vr": "LO", "Value": ["Q"]}}
ADDITIONAL = DICOM_JSON | {"Warning": '299 node "There are 20 additional results that can be requested"'}
PIXELS = "/dicom-web/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5/bulkdata/7FE00010"


def patients(answer):
    return sorted(row["00100020"]["Value"][0] for row in answer.json())


# --- two patients of one UID


def test_two_patients_studies_of_one_uid_at_one_node_are_both_told():
    with server(archive(STUDY, OTHER)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        assert patients(gateway.get("/dicom-web/studies")) == ["P", "Q"]


def test_an_id_of_two_issuers_is_two_patients_of_one_node_too():
    mine = {**STUDY, "00100021": {"vr": "LO", "Value": ["A"]}}
    other = {**STUDY, "00100021": {"vr": "LO", "Value": ["B"]}}
    with server(archive(mine, other)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        rows = gateway.get("/dicom-web/studies").json()
        assert sorted(row["00100021"]["Value"][0] for row in rows) == ["A", "B"]


def test_a_study_that_a_node_gives_twice_is_told_once():
    with server(archive(STUDY, STUDY)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        assert patients(gateway.get("/dicom-web/studies")) == ["P"]


def test_two_patients_of_one_uid_are_both_found_in_an_archive_that_tells_both(tmp_path):
    specimen(tmp_path, "P", "s", "1", 1)
    specimen(tmp_path, "Q", "s", "2", 1)
    with DicomwebSimulator(tmp_path) as pacs:
        told = httpx.get(f"{pacs.url}/studies").json()
        assert len(told) == 2
        with Gateway([dicomweb_node("n", 0, connection={"url": pacs.url})]) as gateway:
            assert patients(gateway.get("/dicom-web/studies")) == ["P", "Q"]


@pytest.mark.parametrize("below", ["series", "metadata"])
def test_what_lies_below_a_uid_that_names_two_patients_is_nobodys(below):
    """Rows of series need not name the patient (PS3.18 Table 10.6.3-4)."""

    def series(number):
        return {"0020000D": STUDY["0020000D"], "0020000E": {"vr": "UI", "Value": [f"1.2.3.{number}"]}}

    def respond(method, path, *rest):
        return given([series(1), series(2)]) if path.endswith("/series") else archive(STUDY, OTHER)(method, path)

    with server(respond) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        assert gateway.get(f"/dicom-web/studies/1.2.3/{below}").status_code == 409


# --- answers that are not whole


def test_a_partial_answer_of_a_gateway_behind_this_one_is_partial_here_too(tmp_path):
    specimen(tmp_path, "P", "s")
    with Gateway([files_node("f", tmp_path), dicomweb_node("down", free_port())]) as inner:
        assert "down" in inner.get("/dicom-web/studies?PatientID=P").headers["warning"]
        with Gateway([dicomweb_node("inner", 0, connection={"url": inner.dicomweb})]) as outer:
            answer = outer.get("/dicom-web/studies?PatientID=P")
    assert len(answer.json()) == 1
    assert "node inner: says that its answer is not whole" in answer.headers["warning"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("status", "warning"),
    [
        (206, '299 node "The search was stopped"'),
        (206, ""),
        (200, '299 node "The number of results exceeded the maximum supported"'),
        (
            200,
            '299 a "The fuzzymatching parameter is not supported. Only literal matching has been performed.", 299 b "cut off"',
        ),
    ],
)
def test_what_a_node_itself_calls_partial_does_not_pass_for_whole(status, warning):
    headers = DICOM_JSON | ({"Warning": warning} if warning else {})
    with server(lambda *_: given([STUDY], headers, status)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies")
    assert patients(answer) == ["P"]
    assert "node n: says that its answer is not whole" in answer.headers["warning"]


@pytest.mark.parametrize(
    "warning",
    [
        '299 node "The fuzzymatching parameter is not supported. Only literal matching has been performed."',
        '299 - "Deprecated API, see https://node.example/docs"',
        '110 node "Response is Stale"',
    ],
)
def test_a_warning_that_says_nothing_of_what_is_missing_makes_no_answer_partial(warning):
    headers = DICOM_JSON | {"Warning": warning}
    with server(lambda *_: given([STUDY], headers)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        assert "warning" not in gateway.get("/dicom-web/studies").headers


def test_additional_results_that_a_node_announces_and_does_not_give_are_told():
    def respond(method, path, query, *rest):
        if path != "/studies" or "StudyDate" in query:
            return given([])
        if int(query.get("offset", ["0"])[0]):
            return given([], ADDITIONAL)
        return given([{**STUDY, "0020000D": {"vr": "UI", "Value": [f"1.2.3.{n}"]}} for n in range(10)], ADDITIONAL)

    with server(respond) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies?PatientID=P")
    assert len(answer.json()) == 10
    assert "maximum number of results" in answer.headers["warning"]


def test_metadata_that_the_node_calls_partial_are_not_given_as_whole():
    def respond(method, path, *rest):
        status, headers, body = archive()(method, path)
        return (206 if path.endswith("/metadata") else status), headers, body

    with server(respond) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies/1.2.3/metadata")
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


# --- odd values


@pytest.mark.parametrize(
    "value", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 -0000", "Mon, 01 Jan 0001 00:00:00 -0000", "inf"]
)
def test_a_busy_node_is_a_503_whatever_its_retry_after(value):
    with server(lambda *_: (503, {"Retry-After": value}, b"")) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies")
    assert (answer.status_code, answer.json()["code"]) == (503, "GW203")
    assert int(answer.headers.get("retry-after", 0)) <= 86400


def test_a_malformed_bulk_data_address_is_the_nodes_fault():
    with server(archive(address="//[x")) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies/1.2.3/metadata")
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


def test_a_malformed_address_of_one_holder_does_not_hide_the_others_equal_copy():
    with server(archive(address="//[x")) as a, server(archive()) as b:
        nodes = [dicomweb_node("a", a, priority=1), dicomweb_node("b", b, priority=2)]
        with Gateway(nodes) as gateway:
            assert gateway.get("/dicom-web/studies/1.2.3/metadata").status_code == 200


def test_a_range_of_a_value_that_came_compressed_is_of_the_value():
    value = bytes(range(256)) * 400
    bulk = 200, {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}, gzip.compress(value)
    octets = {"Accept": "application/octet-stream"}
    with server(archive(bulk=bulk)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        assert gateway.get(PIXELS, headers=octets).content == value
        last = gateway.get(PIXELS, headers=octets | {"Range": "bytes=-10"})
    assert last.content == (value[-10:] if last.status_code == 206 else value)


def test_the_length_of_a_part_that_is_no_number_is_no_fault_of_ours(tmp_path):
    dataset = specimen(tmp_path, "P", "s")
    dataset.StudyInstanceUID = "1.2.3"
    stored = BytesIO()
    dataset.save_as(stored, enforce_file_format=True)
    head = b"--b\r\nContent-Type: application/dicom\r\nContent-Length: " + b"1" * 4400 + b"\r\n\r\n"
    body = head + stored.getvalue() + b"\r\n--b--\r\n"

    def respond(method, path, *rest):
        kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
        return (200, kind, body) if path == "/studies/1.2.3" else given([STUDY])

    asked = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with server(respond) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies/1.2.3", headers=asked)
    assert answer.status_code == 200
    assert answer.content.count(b"DICM") == 1


def test_the_scope_of_the_node_file_is_asked_of_the_token_endpoint():
    forms = []

    def respond(method, path, query, body, port):
        if path != "/token":
            return given([])
        forms.append(body)
        return given({"access_token": "t", "expires_in": 300}, {"Content-Type": "application/json"})

    with server(respond) as port:
        token_url = f"http://127.0.0.1:{port}/token"
        auth = {
            "kind": "client_credentials",
            "token_url": token_url,
            "client_id": "me",
            "client_secret": "s",
            "scope": "system/*.rs",
        }
        with Gateway([dicomweb_node("n", port, connection={"auth": auth})]) as gateway:
            assert gateway.get("/dicom-web/studies").status_code in (200, 204)
    assert b"scope=system%2F%2A.rs" in forms[0]


def test_a_study_whose_uid_has_a_zero_too_many_is_opened_as_it_is_listed():
    uid = "1.02.3"
    study = {**STUDY, "0020000D": {"vr": "UI", "Value": [uid]}}
    instance = {**INSTANCE, **study, "00201208": {"vr": "IS", "Value": [1]}}

    with server(lambda *asked: given([instance])) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        (row,) = gateway.get("/dicom-web/studies").json()
        assert row["0020000D"]["Value"] == [uid]
        assert len(gateway.get(f"/dicom-web/studies?StudyInstanceUID={uid}").json()) == 1
        assert gateway.get(f"/dicom-web/studies/{uid}/metadata").status_code == 200
        (entry,) = gateway.get(f"/fhir/ImagingStudy?identifier=urn:dicom:uid|urn:oid:{uid}").json()["entry"]
        assert gateway.get(f"/fhir/ImagingStudy/{entry['resource']['id']}").status_code == 200
