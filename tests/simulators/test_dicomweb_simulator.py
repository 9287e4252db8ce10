"""The DICOMweb simulator, judged over HTTP by httpx, by dicomweb-client and by the files it serves."""

import base64
import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from gateway.simulators._multipart import multipart, multipart_size
from gateway.simulators._qido import pattern
from gateway.simulators._values import Bytes
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from tests.running import TRUST

FILES = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "rtdose.dcm",
    "waveform_ecg.dcm",
    "test-SR.dcm",
]
CT = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
MR = "1.3.6.1.4.1.5962.1.2.4.20040826185059.5457"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("dicom")
    for name in FILES:
        if path := get_testdata_file(name, download=False):
            shutil.copy(path, root / name)
    (root / "notes.txt").write_text("no DICOM here")
    return root


@pytest.fixture(scope="module")
def simulator(files):
    with DicomwebSimulator(files) as running:
        yield running


@pytest.fixture
def peer(files):
    """Starts a simulator with options; every one of them is stopped."""
    started = []

    def start(**options):
        running = DicomwebSimulator(files, DicomwebOptions(**options))
        started.append(running)
        running.start()
        return running

    yield start
    for running in started:
        running.stop()


def get(simulator, path, accept=None, **kwargs):
    headers = {"Accept": accept} if accept else {}
    return httpx.get(
        simulator.url + path, headers=headers | kwargs.pop("headers", {}), timeout=5, verify=TRUST, **kwargs
    )


def uids(response, tag="0020000D"):
    return {row[tag]["Value"][0] for row in response.json()}


def parts(response):
    """(content type, bytes) of each part; the bodies of these files never hold the random boundary."""
    boundary = re.search(r"boundary=(\w+)", response.headers["content-type"])[1].encode()
    first, *between, last = response.content.split(b"--" + boundary)
    assert (first, last) == (b"", b"--\r\n")
    split = [part.removeprefix(b"\r\n").removesuffix(b"\r\n").split(b"\r\n\r\n", 1) for part in between]
    return [(head.decode().removeprefix("Content-Type: "), body) for head, body in split]


def on_disk(files):
    return {str(pydicom.dcmread(path).SOPInstanceUID): path for path in files.glob("*.dcm")}


def addresses(described):
    """Every BulkDataURI in a metadata object, those inside sequences too."""
    if isinstance(described, dict):
        yield from ([described["BulkDataURI"]] if "BulkDataURI" in described else [])
        described = list(described.values())
    for one in described if isinstance(described, list) else []:
        yield from addresses(one)


def test_every_readable_file_of_the_pydicom_wheel_is_served_whole():
    root = Path(pydicom.__file__).parent / "data/test_files"
    with DicomwebSimulator(root) as simulator, httpx.Client() as client:
        studies = client.get(f"{simulator.url}/studies").json()
        assert len(studies) > 20
        for study in {row["0020000D"]["Value"][0] for row in studies}:
            held = simulator.directory.instances(study)
            body = client.get(f"{simulator.url}/studies/{study}")
            assert sorted(content for _, content in parts(body)) == sorted(one.path.read_bytes() for one in held)
            described = client.get(f"{simulator.url}/studies/{study}/metadata").json()
            assert len(described) == len(held)
            for address in addresses(described):
                assert client.get(address).status_code == 200


# -- QIDO-RS


def test_every_study_of_the_directory_is_found_once(simulator, files):
    held = {str(pydicom.dcmread(path).StudyInstanceUID) for path in files.glob("*.dcm")}
    rows = get(simulator, "/studies").json()
    assert len(rows) == len(held)
    assert uids(get(simulator, "/studies")) == held


def test_the_six_search_resources_agree_with_each_other(simulator):
    client = DICOMwebClient(simulator.url)
    studies = client.search_for_studies()
    series = client.search_for_series()
    instances = client.search_for_instances()
    assert sum(row["00201206"]["Value"][0] for row in studies) == len(series)
    assert sum(row["00201208"]["Value"][0] for row in studies) == len(instances)
    below = [row for study in uids(get(simulator, "/studies")) for row in client.search_for_series(study)]
    assert {row["0020000E"]["Value"][0] for row in below} == {row["0020000E"]["Value"][0] for row in series}
    of_study = client.search_for_instances(MR)
    one = client.search_for_series(MR)[0]["0020000E"]["Value"][0]
    assert client.search_for_instances(MR, one)
    assert len(of_study) == len(client.search_for_instances(MR, one))


@pytest.mark.parametrize(
    ("key", "value", "studies"),
    [
        ("PatientName", "compressedsamples^ct*", {CT}),
        ("PatientName", "CompressedSamples^?R1", {MR}),
        ("00100010", "CompressedSamples^CT1", {CT}),
        ("PatientID", "1CT1", {CT}),
        ("PatientID", "1ct1", set()),
        ("PatientID", "?CT*", {CT}),
        ("StudyDate", "20040119", {CT}),
        ("StudyDate", "20040101-20040201", {CT}),
        ("StudyDate", "20040119-20040826", {CT, MR}),
        ("ModalitiesInStudy", "MR", {MR}),
        ("StudyInstanceUID", f"{CT},{MR}", {CT, MR}),
        ("StudyInstanceUID", f"{CT}\\{MR}", {CT, MR}),
        ("AccessionNumber", "no such number", set()),
    ],
)
def test_a_key_matches_as_ps3_4_asks(simulator, key, value, studies):
    assert uids(get(simulator, "/studies", params={key: value})) == studies


def fits(wanted, value):
    """Wildcard matching by its definition, one character at a time."""
    if not wanted:
        return not value
    if wanted[0] == "*":
        return fits(wanted[1:], value) or (bool(value) and fits(wanted, value[1:]))
    return bool(value) and wanted[0] in ("?", value[0]) and fits(wanted[1:], value[1:])


@given(st.text("ab^.*?\n", max_size=6), st.text("ab^.\n", max_size=6))
def test_a_wildcard_means_any_run_and_a_question_mark_one_character(wanted, value):
    assert bool(pattern(wanted).fullmatch(value)) == fits(wanted, value)


@given(st.lists(st.tuples(st.lists(st.text("abc:", max_size=9), max_size=2), st.binary(max_size=9))), st.booleans())
def test_the_length_of_a_body_is_known_before_it_is_written(content, closed):
    laid_out = [(headers, Bytes(len(body), held=body)) for headers, body in content]
    written = b"".join(multipart(laid_out, "b", "\r\n", closed=closed))
    assert multipart_size(laid_out, "b", "\r\n", closed=closed) == len(written)


def test_open_ranges_take_in_their_end(simulator):
    until = uids(get(simulator, "/studies", params={"StudyDate": "-20040119"}))
    since = uids(get(simulator, "/studies", params={"StudyDate": "20040119-"}))
    assert CT in until
    assert CT in since
    assert MR not in until
    assert MR in since


def test_a_date_and_a_time_range_are_one_span(simulator):
    span = {"StudyDate": "20040119-20040826", "StudyTime": "080000-060000"}
    assert uids(get(simulator, "/studies", params=span)) == set()
    assert uids(get(simulator, "/studies", params=span | {"StudyTime": "070000-190000"})) == {CT, MR}


def test_all_keys_must_match(simulator):
    assert uids(get(simulator, "/studies", params={"PatientID": "1CT1", "StudyDate": "20040826"})) == set()


def test_a_sequence_key_is_matched_inside_its_items(simulator, files):
    waveform = pydicom.dcmread(files / "waveform_ecg.dcm")
    name = waveform.AcquisitionContextSequence[0].ConceptNameCodeSequence[0].CodeValue
    params = {"AcquisitionContextSequence.ConceptNameCodeSequence.CodeValue": name}
    assert waveform.SOPInstanceUID in uids(get(simulator, "/instances", params=params), "00080018")
    assert not get(simulator, "/instances", params={next(iter(params)): "none"}).json()


def test_limit_and_offset_page_through_all_rows_in_one_order(simulator):
    everything = [row["0020000D"]["Value"][0] for row in get(simulator, "/studies").json()]
    pages = [get(simulator, f"/studies?limit=2&offset={at}").json() for at in range(0, len(everything) + 2, 2)]
    assert [row["0020000D"]["Value"][0] for page in pages for row in page] == everything
    assert pages[-1] == []


def test_includefield_adds_attributes_and_all_adds_all_of_the_level(simulator):
    plain = get(simulator, "/series", params={"Modality": "CT"}).json()[0]
    more = get(simulator, "/series", params={"Modality": "CT", "includefield": "Manufacturer,00080080"}).json()[0]
    assert "00080070" not in plain
    assert more["00080070"]["Value"] == ["GE MEDICAL SYSTEMS"]
    everything = get(simulator, "/studies", params={"StudyInstanceUID": CT, "includefield": "all"}).json()[0]
    assert "00101010" in everything
    assert "00180060" not in everything, "KVP belongs to the instance"


@pytest.mark.parametrize(
    "query", ["Nonsense=1", "limit=x", "offset=-1", "PatientID=1&PatientID=2", "includefield=Bogus"]
)
def test_a_query_that_cannot_be_understood_is_400(simulator, query):
    assert get(simulator, f"/studies?{query}").status_code == 400


def test_no_match_is_an_empty_list_with_200(simulator):
    answer = get(simulator, "/studies?PatientID=nobody")
    assert (answer.status_code, answer.json()) == (200, [])


# -- WADO-RS


@pytest.mark.parametrize("accept", ['multipart/related; type="application/dicom"; transfer-syntax=*', "*/*", None])
def test_every_study_comes_back_byte_for_byte_with_its_stored_syntax_declared(simulator, files, accept):
    disk = on_disk(files)
    for study in uids(get(simulator, "/studies")):
        answer = get(simulator, f"/studies/{study}", accept)
        assert answer.status_code == 200
        for content_type, body in parts(answer):
            path = files / f"{study}.got"
            path.write_bytes(body)
            got = pydicom.dcmread(path)
            path.unlink()
            assert body == disk.pop(str(got.SOPInstanceUID)).read_bytes()
            assert content_type == f"application/dicom; transfer-syntax={got.file_meta.TransferSyntaxUID}"
    assert not disk


def test_an_instance_is_single_part_when_the_caller_asks_for_it(simulator, files):
    client = DICOMwebClient(simulator.url)
    row = client.search_for_instances(CT)[0]
    series, instance = row["0020000E"]["Value"][0] if "0020000E" in row else None, row["00080018"]["Value"][0]
    series = series or client.search_for_series(CT)[0]["0020000E"]["Value"][0]
    answer = get(
        simulator, f"/studies/{CT}/series/{series}/instances/{instance}", "application/dicom; transfer-syntax=*"
    )
    assert answer.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert answer.content == (files / "CT_small.dcm").read_bytes()


def test_a_syntax_that_is_not_stored_is_not_acceptable(simulator):
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90'
    assert get(simulator, f"/studies/{CT}", accept).status_code == 406
    assert get(simulator, f"/studies/{CT}", "image/png").status_code == 406


def test_what_is_not_there_is_404(simulator):
    for path in ("/studies/1.2.3", f"/studies/{CT}/series/1.2", f"/studies/{CT}/metadata/x", "/studies/1.2.3/metadata"):
        assert get(simulator, path).status_code == 404


def test_metadata_equals_the_data_sets_of_the_files(simulator, files):
    client, disk = DICOMwebClient(simulator.url), on_disk(files)
    for study in uids(get(simulator, "/studies")):
        for described in client.retrieve_study_metadata(study):
            stored = pydicom.dcmread(disk.pop(described["00080018"]["Value"][0]))
            got = pydicom.Dataset.from_json(described, lambda *_: b"")
            for element in stored:
                if element.VR in ("SQ", "OB", "OW", "UN", "OF") or element.tag.is_private or element.tag == 0x00080005:
                    continue
                assert got[element.tag].value == element.value, element.keyword
    assert not disk


def test_bulk_data_is_what_the_address_leads_to(simulator, files):
    described = get(simulator, f"/studies/{CT}/metadata").json()[0]
    address = described["7FE00010"]["BulkDataURI"]
    stored = pydicom.dcmread(files / "CT_small.dcm").PixelData
    assert parts(httpx.get(address)) == [("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", stored)]
    single = httpx.get(address, headers={"Accept": "application/octet-stream"})
    assert (single.headers["content-type"], single.content) == ("application/octet-stream", stored)


def test_bulk_data_inside_a_sequence_has_an_address_of_its_own(simulator, files):
    stored = pydicom.dcmread(files / "waveform_ecg.dcm")
    described = get(simulator, f"/studies/{stored.StudyInstanceUID}/metadata").json()[0]
    address = described["54000100"]["Value"][0]["54001010"]["BulkDataURI"]
    body = httpx.get(address, headers={"Accept": "application/octet-stream"}).content
    assert body == stored.WaveformSequence[0].WaveformData


def test_frames_have_the_pixels_of_the_file(simulator, files):
    client = DICOMwebClient(simulator.url)
    for name in ("CT_small.dcm", "rtdose.dcm", "liver_1frame.dcm", "image_dfl.dcm", "SC_rgb_small_odd_big_endian.dcm"):
        if not (files / name).exists():
            continue
        stored = pydicom.dcmread(files / name)
        path = f"/studies/{stored.StudyInstanceUID}/series/{stored.SeriesInstanceUID}/instances/{stored.SOPInstanceUID}"
        count = int(stored.get("NumberOfFrames") or 1)
        numbers = list(range(count, 0, -1))
        got = parts(get(simulator, f"{path}/frames/{','.join(map(str, numbers))}"))
        assert len(got) == count
        pixels = stored.pixel_array
        for number, (kind, body) in zip(numbers, got, strict=True):
            assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
            wanted = pixels[number - 1] if count > 1 else pixels
            if stored.BitsAllocated == 1:
                assert [byte >> bit & 1 for byte in body for bit in range(8)] == wanted.flatten().tolist()
            else:
                assert body == wanted.astype(wanted.dtype.newbyteorder("<")).tobytes(), name
    assert client.retrieve_study_metadata(CT)


def test_an_encapsulated_frame_comes_as_it_is_stored(simulator, files):
    stored = pydicom.dcmread(files / "SC_rgb_rle_2frame.dcm")
    wanted = list(pydicom.encaps.generate_frames(stored.PixelData, number_of_frames=2))
    path = f"/studies/{stored.StudyInstanceUID}/series/{stored.SeriesInstanceUID}/instances/{stored.SOPInstanceUID}"
    got = parts(get(simulator, f"{path}/frames/2,1", 'multipart/related; type="image/dicom-rle"'))
    assert got == [("image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5", frame) for frame in reversed(wanted)]
    assert get(simulator, f"{path}/frames/3").status_code == 404
    assert get(simulator, f"{path}/frames/one").status_code == 400
    assert get(simulator, f"{path}/frames/1", "image/png").status_code == 406


def test_a_large_instance_is_streamed_and_not_collected(files, tmp_path):
    stored = pydicom.dcmread(files / "CT_small.dcm")
    stored.NumberOfFrames, stored.PixelData = 512, stored.PixelData * 512
    stored.save_as(tmp_path / "big.dcm")
    with DicomwebSimulator(tmp_path) as simulator, httpx.stream("GET", f"{simulator.url}/studies/{CT}") as answer:
        sizes = [len(chunk) for chunk in answer.iter_raw()]
    assert max(sizes) < 1 << 20
    assert sum(sizes) > (tmp_path / "big.dcm").stat().st_size > 16 << 20


# -- STOW-RS


@pytest.fixture
def empty(tmp_path):
    with DicomwebSimulator(tmp_path) as running:
        yield running


def test_a_stored_instance_is_found_and_comes_back_the_same(empty, files):
    client = DICOMwebClient(empty.url)
    answer = client.store_instances([pydicom.dcmread(files / "CT_small.dcm"), pydicom.dcmread(files / "MR_small.dcm")])
    assert len(answer.ReferencedSOPSequence) == 2
    assert uids(get(empty, "/studies")) == {CT, MR}
    assert client.retrieve_study(CT)[0].PixelData == pydicom.dcmread(files / "CT_small.dcm").PixelData
    assert empty.operations["store"] == 1


def multipart_body(*bodies):
    return (
        b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n" for body in bodies) + b"--b--\r\n"
    )


def store(simulator, body, path="/studies", kind='multipart/related; type="application/dicom"; boundary=b'):
    return httpx.post(simulator.url + path, content=body, headers={"Content-Type": kind}, verify=TRUST)


def test_a_store_says_what_failed(empty, files):
    ct, mr = (files / "CT_small.dcm").read_bytes(), (files / "MR_small.dcm").read_bytes()
    some = store(empty, multipart_body(ct, mr, b"no DICOM"), f"/studies/{CT}")
    assert some.status_code == 202
    assert len(some.json()["00081199"]["Value"]) == 1
    reasons = [item["00081197"]["Value"][0] for item in some.json()["00081198"]["Value"]]
    assert reasons == [0xA900, 0xC000]
    assert uids(get(empty, "/studies")) == {CT}
    assert store(empty, multipart_body(mr), f"/studies/{CT}").status_code == 409
    assert store(empty, b"", kind="application/dicom").status_code == 415


def test_a_body_without_its_last_boundary_stores_nothing_of_the_cut_part(empty, files):
    whole = multipart_body((files / "CT_small.dcm").read_bytes())
    assert store(empty, whole[:-10]).status_code == 400
    assert get(empty, "/studies").json() == []


# -- who may ask


def test_basic_and_bearer_are_asked_for(peer):
    basic, bearer = peer(basic=("user", "pässword")), peer(bearer="token")
    assert get(basic, "/studies").status_code == 401
    assert get(basic, "/studies").headers["www-authenticate"].startswith("Basic")
    encoded = base64.b64encode("user:pässword".encode()).decode()
    assert get(basic, "/studies", headers={"Authorization": f"Basic {encoded}"}).status_code == 200
    assert get(bearer, "/studies", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert get(bearer, "/studies", headers={"Authorization": "Bearer token"}).status_code == 200


# -- quirks


def test_without_percent_decoding_an_encoded_wildcard_matches_nothing(peer):
    simulator = peer(no_percent_decoding=True)
    raw, encoded = "/studies?PatientName=Compressed*^CT1", "/studies?PatientName=Compressed%2A%5ECT1"

    def ask(target):
        with socket.create_connection(("127.0.0.1", simulator.port)) as wire:
            wire.sendall(f"GET {simulator.path}{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: wire.recv(65536), b""))

    assert CT.encode() in ask(raw)
    assert CT.encode() not in ask(encoded)


def test_204_stands_for_no_match_when_asked_for(peer):
    answer = get(peer(status_204_for_none=True), "/studies?PatientID=nobody")
    assert (answer.status_code, answer.content) == (204, b"")


def test_an_ignored_key_lets_every_row_through(peer):
    simulator = peer(ignores_keys=frozenset({"PatientID"}))
    assert uids(get(simulator, "/studies?PatientID=nobody")) > {CT, MR}
    assert uids(get(simulator, "/studies?PatientID=nobody&StudyDate=20040119")) == {CT}


def test_an_ignored_offset_gives_the_first_page_again(peer):
    simulator = peer(ignores_offset=True)
    assert get(simulator, "/studies?limit=1&offset=1").json() == get(simulator, "/studies?limit=1").json()


def test_a_maximum_is_announced_unless_it_is_silent(peer):
    loud, silent = peer(max_results=2), peer(max_results=2, silent_maximum=True)
    total = len(loud.directory.studies)
    assert len(get(loud, "/studies").json()) == len(get(silent, "/studies").json()) == 2
    assert f"There are {total - 2} additional results" in get(loud, "/studies").headers["warning"]
    assert "warning" not in get(silent, "/studies").headers
    assert len(get(loud, "/studies?offset=2").json()) == 2


def test_metadata_and_frames_can_be_missing(peer):
    simulator = peer(no_metadata=True, no_frames=True)
    row = get(simulator, f"/studies/{CT}/series").json()[0]
    instance = get(simulator, f"/instances?StudyInstanceUID={CT}").json()[0]["00080018"]["Value"][0]
    assert get(simulator, f"/studies/{CT}/metadata").status_code == 404
    path = f"/studies/{CT}/series/{row['0020000E']['Value'][0]}/instances/{instance}/frames/1"
    assert get(simulator, path).status_code == 404


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"quirk_unquoted_type": True}, "multipart/related; type=application/dicom; boundary=b"),
        (
            {"parameters_inside_quotes": True},
            'multipart/related; type="application/dicom; transfer-syntax=1.2.840.10008.1.2.1"; boundary=b',
        ),
    ],
)
def test_the_content_type_can_be_written_as_some_servers_do(peer, options, start):
    answer = get(peer(boundary="b", **options), f"/studies/{CT}")
    assert answer.headers["content-type"] == start


def test_lines_can_end_in_a_bare_line_feed(peer, files):
    body = get(peer(lf_only=True, boundary="b"), f"/studies/{CT}").content
    stored = (files / "CT_small.dcm").read_bytes()
    head = b"--b\nContent-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\n\n"
    assert body == head + stored + b"\n--b--\n"


def test_bulk_data_addresses_can_name_a_host_that_is_not_this_one(peer):
    described = get(peer(absolute_bulk_host="http://localhost:9/"), f"/studies/{CT}/metadata").json()[0]
    assert described["7FE00010"]["BulkDataURI"].startswith("http://localhost:9/dicom-web/studies/")


def test_empty_attributes_can_be_sent_with_a_vr_alone(peer, simulator):
    assert all("Value" in held for row in get(simulator, "/studies").json() for held in row.values())
    row = get(peer(da_without_value=True), f"/studies?StudyInstanceUID={CT}").json()[0]
    assert row["00100030"] == {"vr": "DA"}


# -- faults


def broken_off(error, url, read=5.0):
    """The headers and the bytes that came before the error; it is a failure when the body ends neatly."""
    got = b""
    with httpx.stream("GET", url, timeout=httpx.Timeout(5, read=read)) as answer:
        try:
            for chunk in answer.iter_raw():
                got += chunk
        except error:
            return answer.headers, got
    return pytest.fail("the body ended neatly")


def test_a_short_content_length_body_breaks_the_connection(peer):
    simulator = peer(framing="content-length", truncate_after=1000)
    headers, got = broken_off(httpx.RemoteProtocolError, f"{simulator.url}/studies/{CT}")
    assert int(headers["content-length"]) > 39000
    assert len(got) == 1000


def test_a_cut_chunked_body_breaks_the_connection_after_just_so_many_bytes(peer):
    headers, got = broken_off(httpx.RemoteProtocolError, f"{peer(truncate_after=1000).url}/studies/{CT}")
    assert "content-length" not in headers
    assert len(got) == 1000


def test_a_missing_last_boundary_is_the_only_thing_missing(peer, simulator):
    whole = get(peer(boundary="b"), f"/studies/{CT}").content
    assert get(peer(boundary="b", no_closing_boundary=True), f"/studies/{CT}").content == whole.removesuffix(
        b"--b--\r\n"
    )
    cut = get(peer(boundary="b", no_closing_boundary=True, truncate_after=1000), f"/studies/{CT}")
    assert cut.content == whole[:1000]


def test_the_declared_length_is_the_length_of_the_body(peer, simulator):
    answer = get(peer(framing="content-length"), f"/studies/{MR}")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(parts(answer)) == len(parts(get(simulator, f"/studies/{MR}")))


def test_a_stalled_body_stays_open_and_says_no_more(peer):
    _, got = broken_off(httpx.ReadTimeout, f"{peer(stall_after=1000).url}/studies/{CT}", read=0.5)
    assert len(got) == 1000


def test_garbage_is_no_json(peer):
    answer = get(peer(garbage_json=True), "/studies")
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        answer.json()


def test_wrong_vrs_are_sent_when_asked_for(peer):
    row = get(peer(wrong_vr=True), "/studies?PatientID=1CT1").json()[0]
    assert row["00100020"] == {"vr": "PN", "Value": [{"Alphabetic": "1CT1"}]}
    assert row["00080020"] == {"vr": "IS", "Value": [20040119]}


def test_a_foreign_study_is_given_for_the_one_asked(peer):
    simulator = peer(foreign_study=True)
    assert CT not in uids(get(simulator, f"/studies?StudyInstanceUID={CT}"))
    assert {row["0020000D"]["Value"][0] for row in get(simulator, f"/studies/{CT}/metadata").json()} != {CT}
    assert len(uids(get(simulator, "/studies"))) == len(simulator.directory.studies), "a search without UID is whole"


def test_a_500_and_a_redirect_come_for_every_request(peer, simulator):
    assert get(peer(status_500=True), "/studies").status_code == 500
    answer = get(peer(redirect_to=simulator.url), "/studies?limit=1")
    assert answer.status_code == 302
    assert answer.headers["location"] == f"{simulator.url}/studies?limit=1"


def test_a_delay_is_kept(peer):
    began = time.monotonic()
    assert get(peer(delay=0.3), "/studies?limit=1").status_code == 200
    assert time.monotonic() - began >= 0.3


def test_faults_can_be_kept_to_some_operations(peer):
    simulator = peer(status_500=True, bearer="t", faulty_operations=frozenset({"retrieve_study"}))
    headers = {"Authorization": "Bearer t"}
    assert get(simulator, f"/studies/{CT}", headers=headers).status_code == 500
    assert get(simulator, "/studies", headers=headers).status_code == 200
    assert get(simulator, "/studies").status_code == 401


def test_a_black_hole_never_answers_and_still_stops_at_once(peer):
    simulator = peer(black_hole=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{simulator.url}/studies", timeout=0.3)
    hanging = threading.Thread(target=lambda: httpx.get(f"{simulator.url}/studies", timeout=10).status_code)
    hanging.start()
    while simulator.operations["search_studies"] < 2:
        time.sleep(0.01)
    began = time.monotonic()
    simulator.stop()
    hanging.join(timeout=4)
    assert time.monotonic() - began < 4
    assert not hanging.is_alive()


def test_a_simulator_falls_ill_and_recovers_while_it_runs(peer):
    simulator = peer()
    simulator.options = replace(simulator.options, status_500=True)
    assert get(simulator, "/studies").status_code == 500
    simulator.options = DicomwebOptions()
    assert get(simulator, "/studies").status_code == 200


def test_operations_are_counted_by_route_and_seen_as_they_came(peer):
    simulator = peer()
    get(simulator, "/studies?limit=1")
    get(simulator, f"/studies/{CT}", "multipart/related; type=x")
    assert simulator.operations == {"search_studies": 1, "retrieve_study": 1}
    assert simulator.seen[0].target == "/dicom-web/studies?limit=1"
    assert simulator.seen[1].headers["accept"] == "multipart/related; type=x"


def test_starting_and_stopping_leaves_no_thread_and_frees_the_port(files):
    before = threading.active_count()
    simulator = DicomwebSimulator(files)
    port = simulator.start()
    assert get(simulator, "/studies?limit=1").status_code == 200
    simulator.stop()
    simulator.stop()
    assert threading.active_count() <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/dicom-web/studies", timeout=1)
    assert simulator.start(port) == port
    simulator.stop()


def test_two_patients_under_one_study_uid_are_two_rows(files, tmp_path):
    first = pydicom.dcmread(files / "CT_small.dcm")
    first.save_as(tmp_path / "one.dcm")
    first.PatientID, first.SOPInstanceUID = "another", first.SOPInstanceUID + ".1"
    first.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    first.save_as(tmp_path / "two.dcm")
    with DicomwebSimulator(tmp_path) as simulator:
        rows = get(simulator, "/studies").json()
        assert sorted(row["00100020"]["Value"][0] for row in rows) == ["1CT1", "another"]
        assert uids(get(simulator, "/studies")) == {CT}
        assert len(parts(get(simulator, f"/studies/{CT}"))) == 2


def test_every_row_comes_twice_when_asked_for(peer, simulator):
    once, twice = (get(one, "/studies").json() for one in (simulator, peer(duplicates=True)))
    assert len(twice) == 2 * len(once)
