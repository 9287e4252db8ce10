"""What DICOMweb servers do to those who retrieve: frames in their own order, types that are none, instances that are broken."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from struct import pack
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from gateway.model.vocabulary import tag
from gateway.privacy.view import PlainView
from tests.handmade import (
    FHIR_JSON,
    INSTANCE,
    SERIES,
    STUDY,
    Given,
    Respond,
    archive,
    capabilities,
    dicomweb_node,
    fhir_node,
    given,
    imaging_study,
    patient,
    searchset,
    server,
)
from tests.running import Gateway, files_node
from tests.specimens import specimen

PLACE = "/dicom-web/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5"
ANY_FRAMES = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
OCTETS = "Content-Type: application/octet-stream"


def parts(kind: str, *told: tuple[str, bytes]) -> Given:
    """A multipart answer of (header lines, body) each."""
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in told)
    return 200, {"Content-Type": f'multipart/related; type="{kind}"; boundary=b'}, body + b"--b--\r\n"


def one_instance(answers: Mapping[str, Given], **attributes: int) -> Respond:
    """An archive of one instance, of these attributes, that answers paths with these ends so."""
    of_it = archive()
    described = {tag(keyword): {"vr": "US", "Value": [number]} for keyword, number in attributes.items()}
    answers = {"/metadata": given([{**INSTANCE, **described}]), **answers} if attributes else answers

    def respond(method: str, path: str, *rest: object) -> Given:
        return next((answer for end, answer in answers.items() if path.endswith(end)), None) or of_it(method, path)

    return respond


# --- frames


def in_its_own_order(*, says_which: bool) -> Respond:
    """A server that takes a list of frames for a set, as one does that reads a file from its beginning to its end."""
    of_it = archive()

    def respond(method: str, path: str, *rest: object) -> Given:
        if "/frames/" not in path:
            return of_it(method, path)
        numbers = sorted({int(number) for number in path.rpartition("/")[2].split(",")})
        return parts(
            "application/octet-stream", *((_headed(number, says_which), b"F%d" % number) for number in numbers)
        )

    return respond


def _headed(number: int, says_which: bool) -> str:
    return f"{OCTETS}\r\nContent-Location: /frames/{number}" if says_which else OCTETS


def frames(body: bytes) -> list[tuple[bytes, bytes]]:
    return re.findall(rb"frames/(\d+)\r\n\r\n(F\d+)", body)


def test_each_frame_is_the_one_that_it_is_called_though_the_node_sends_them_in_its_own_order():
    for says_which in (True, False):
        with server(in_its_own_order(says_which=says_which)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
            for listed in ("3,1", "1,1", "1,3", "2,3,3,1,2"):
                answer = gateway.get(f"{PLACE}/frames/{listed}", headers=ANY_FRAMES)
                assert frames(answer.content) == [(n.encode(), b"F" + n.encode()) for n in listed.split(",")]


def test_a_frame_that_the_node_itself_calls_another_one_is_not_passed_on():
    other = parts("application/octet-stream", (f"{OCTETS}\r\nContent-Location: /frames/7?x=1", b"F7"))
    with server(one_instance({"/frames/1": other})) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/frames/1", headers=ANY_FRAMES)
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


@pytest.mark.parametrize(
    "kind",
    [
        "application/octet-stream; transfer-syntax=€",
        'application/octet-stream; transfer-syntax="1.2; a=b"',
        "€/x",
        'image/jpeg"; boundary=another; x="; transfer-syntax=1.2.840.10008.1.2.4.50',
        "text/html",
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_a_frame_in_a_type_that_is_none_is_the_nodes_fault(kind, single):
    odd = parts("application/octet-stream", (f"Content-Type: {kind}", b"abcd"))
    accept = {"Accept": "application/octet-stream; transfer-syntax=*"} if single else ANY_FRAMES
    with server(one_instance({"/frames/1": odd})) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/frames/1", headers=accept)
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


def test_a_value_that_the_node_calls_a_page_is_not_one_here():
    page = 200, {"Content-Type": "text/html"}, b"<script>alert(1)</script>"
    with server(archive(bulk=page)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/bulkdata/7FE00010?accept=application/octet-stream;transfer-syntax=*")
    assert answer.content == page[2]
    assert answer.headers["content-type"].startswith("application/octet-stream")


# --- pictures


def test_an_instance_that_says_it_has_millions_of_frames_is_no_animation():
    millions = one_instance({}, Rows=4, Columns=4, NumberOfFrames=3_000_000)
    with server(millions) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/rendered", headers={"Accept": "image/gif"})
    assert (answer.status_code, answer.json()["code"]) == (413, "GW108")


def test_no_more_of_a_frame_is_read_than_its_pixels_can_be_whatever_samples_and_bits_it_is_said_to_have():
    frame = parts("application/octet-stream", (OCTETS, b"x" * (2 << 20)))
    odd = one_instance({"/frames/1": frame}, Rows=4, Columns=4, SamplesPerPixel=65535, BitsAllocated=65535)
    with server(odd) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/rendered")
    assert (answer.status_code, answer.json()["code"]) == (413, "GW108")


def test_no_more_of_all_frames_of_an_animation_is_read_than_their_pixels_can_be():
    frames = parts("application/octet-stream", *[(OCTETS, b"x" * 900_000)] * 8)
    odd = one_instance({"/frames/1,2,3,4,5,6,7,8": frames}, Rows=4, Columns=4, NumberOfFrames=8)
    with server(odd) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"{PLACE}/rendered", headers={"Accept": "image/gif"})
    assert (answer.status_code, answer.json()["code"]) == (413, "GW108")


@pytest.mark.parametrize("odd", ["palette", "table"])
def test_an_image_that_cannot_be_shown_is_no_fault_of_a_viewport_that_was_not_asked_for(tmp_path, odd):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [0, 0, 99], b"\0\0"
    more = {"PhotometricInterpretation": "PALETTE COLOR"} if odd == "palette" else {"VOILUTSequence": Sequence([table])}
    stored(tmp_path, **more)
    with Gateway([files_node("n", tmp_path)]) as gateway:
        answer = gateway.get(f"{PLACE}/rendered")
    assert (answer.status_code, answer.json().get("parameter")) == (406, None)


# --- instances


def stored(directory: Path, **more: object) -> bytes:
    """An instance of the archive, in Implicit VR."""
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"}
    dataset = specimen(directory, "P", "s", **{**uids, **more})
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True, implicit_vr=True, little_endian=True)
    return file.getvalue()


def retrieved(gateway: Gateway, syntax: str = "", multipart: bool = False) -> httpx.Response:
    kind = 'multipart/related; type="application/dicom"' if multipart else "application/dicom"
    return gateway.get(PLACE, headers={"Accept": f"{kind}; transfer-syntax={syntax}" if syntax else kind})


@pytest.mark.parametrize("multipart", [False, True])
def test_an_instance_that_is_broken_before_its_pixels_is_the_nodes_fault_and_no_answer_begins(tmp_path, multipart):
    file = stored(tmp_path)
    rows = file.index(pack("<HHL", 0x28, 0x10, 2))
    broken = file[:rows] + pack("<HHL", 0x28, 0x10, 1 << 20) + b"12"
    answers = {"/instances/1.2.3.4.5": parts("application/dicom", ("Content-Type: application/dicom", broken))}
    with server(one_instance(answers)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = retrieved(gateway, multipart=multipart)
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


@pytest.mark.parametrize("syntax", [b"1.2\r\nX-Evil: 1", b'1.2"; x="y', b"1.2 \xe4", b"none"])
def test_an_instance_in_a_syntax_that_is_none_is_the_nodes_fault(tmp_path, syntax):
    file, own = stored(tmp_path), b"1.2.840.10008.1.2\0"
    odd = file.replace(pack("<H", len(own)) + own, pack("<H", len(own)) + syntax.ljust(len(own), b"\0"), 1)
    answers = {"/instances/1.2.3.4.5": parts("application/dicom", ("Content-Type: application/dicom", odd))}
    with server(one_instance(answers)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        for multipart in (False, True):
            answer = retrieved(gateway, multipart=multipart)
            assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


def test_an_identifier_that_cannot_be_read_is_the_nodes_fault(tmp_path):
    endless = pack("<HHL", 0xFFFE, 0xE000, 8) + pack("<HHL", 0x08, 0x1115, 0xFFFFFFFF)
    junk = pack("<HHL", 0x10, 0x24, len(endless)) + endless
    file = stored(tmp_path)
    behind = file.index(pack("<HHL", 0x20, 0x0D, 6))
    odd = file[:behind] + junk + file[behind:]
    answers = {"/instances/1.2.3.4.5": parts("application/dicom", ("Content-Type: application/dicom", odd))}
    with server(one_instance(answers)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = retrieved(gateway)
    assert (answer.status_code, answer.json()["code"]) == (502, "GW205")


# --- instances that are listed, and do not come


OTHER = {**INSTANCE, "00080018": {"vr": "UI", "Value": ["1.2.3.4.6"]}}
MULTIPART = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


def alone(file: bytes) -> Given:
    """A multipart answer of one instance."""
    return parts("application/dicom", ("Content-Type: application/dicom", file))


def skipping(file: bytes, listed: list[object], counted: int | None, asked: list[str] | None = None) -> Respond:
    """An archive that lists these instances, counts so many, and gives one of them as if it were all."""
    of_it = archive({**STUDY, "00201208": {"vr": "IS", "Value": [counted]}}) if counted is not None else archive()
    series = {**SERIES, "00201209": {"vr": "IS", "Value": [counted]}} if counted is not None else SERIES
    answers = {"/instances": given(listed), "/series": given([series])}
    answers |= dict.fromkeys(("/studies/1.2.3", "/series/1.2.3.4", "/instances/1.2.3.4.5"), alone(file))

    def respond(method: str, path: str, *rest: object) -> Given:
        if asked is not None:
            asked.append(path)
        return next((answer for end, answer in answers.items() if path.endswith(end)), None) or of_it(method, path)

    return respond


@pytest.mark.parametrize("counted", [None, 2])
@pytest.mark.parametrize("place", ["/studies/1.2.3", "/studies/1.2.3/series/1.2.3.4"])
def test_a_retrieve_that_brings_less_than_the_node_lists_breaks_off_though_the_node_ended_it(tmp_path, place, counted):
    archive_ = skipping(stored(tmp_path), [INSTANCE, OTHER], counted)
    with (
        server(archive_) as port,
        Gateway([dicomweb_node("n", port)]) as gateway,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        gateway.get(f"/dicom-web{place}", headers=MULTIPART)


@pytest.mark.parametrize(("listed", "counted"), [([INSTANCE], None), ([INSTANCE], 2), ([], None), ([INSTANCE], 1)])
@pytest.mark.parametrize("place", ["/studies/1.2.3", "/studies/1.2.3/series/1.2.3.4"])
def test_a_count_alone_breaks_no_retrieve_of_all_that_the_node_lists(tmp_path, place, listed, counted):
    archive_ = skipping(stored(tmp_path), listed, counted)
    with server(archive_) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"/dicom-web{place}", headers=MULTIPART)
    assert answer.status_code == 200
    assert answer.content.rstrip().endswith(b"--")


def test_a_study_of_as_many_instances_as_the_node_counts_is_not_listed_for_it(tmp_path):
    asked: list[str] = []
    with (
        server(skipping(stored(tmp_path), [INSTANCE], 1, asked)) as port,
        Gateway([dicomweb_node("n", port)]) as gateway,
    ):
        assert gateway.get("/dicom-web/studies/1.2.3", headers=MULTIPART).status_code == 200
        assert gateway.get(PLACE, headers=MULTIPART).status_code == 200
    assert not [path for path in asked if path.endswith(("/series", "/instances"))]


def test_metadata_of_less_than_the_node_lists_is_a_partial_answer_that_says_so_and_is_not_kept(tmp_path):
    listed: list[object] = [INSTANCE, OTHER]
    with server(skipping(stored(tmp_path), listed, None)) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4/metadata")
        assert (answer.status_code, len(answer.json())) == (206, 1)
        assert "did not give 1 of the instances that it lists" in answer.headers["warning"]
        assert answer.headers["cache-control"] == "no-store"
        lost = gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.6/metadata")
        assert (lost.status_code, lost.json()["code"]) == (502, "GW205")
        whole = gateway.get(f"{PLACE}/metadata")
        assert (whole.status_code, "warning" in whole.headers) == (200, False)


def test_metadata_that_one_holder_gives_in_part_comes_from_the_holder_that_gives_all(tmp_path):
    both = one_instance({"/metadata": given([INSTANCE, OTHER]), "/instances": given([INSTANCE, OTHER])})
    with server(skipping(stored(tmp_path), [INSTANCE, OTHER], None)) as skips, server(both) as port:
        nodes = [dicomweb_node("skips", skips, priority=1), dicomweb_node("whole", port, priority=2)]
        with Gateway(nodes) as gateway:
            answer = gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4/metadata")
    assert (answer.status_code, len(answer.json())) == (200, 2)


@pytest.mark.parametrize("place", ["/studies/1.2.3", "/studies/1.2.3/series/1.2.3.4"])
def test_an_instance_that_came_while_the_others_were_retrieved_is_asked_for_by_itself(tmp_path, place):
    as_it_was = skipping(stored(tmp_path), [INSTANCE, OTHER], None)
    newcomer = alone(stored(tmp_path, SOPInstanceUID="1.2.3.4.6"))

    def grows(method: str, path: str, *rest: object) -> Given:
        return newcomer if path.endswith("/instances/1.2.3.4.6") else as_it_was(method, path, *rest)

    with server(grows) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get(f"/dicom-web{place}", headers=MULTIPART)
    assert re.findall(rb"/instances/([\d.]+)", answer.content) == [b"1.2.3.4.5", b"1.2.3.4.6"]


def at_addresses(series: Mapping[str, int]) -> Respond:
    """A FHIR server of the study 1.2.3, whose series lie at DICOMweb services at these ports, each with its own Endpoint."""
    study = imaging_study(0, {"reference": "Patient/p0"})
    study["identifier"] = [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}]
    study["series"] = [
        {**study["series"][0], "uid": uid, "endpoint": [{"reference": f"Endpoint/{port}"}]}
        for uid, port in series.items()
    ]

    def respond(method: str, path: str, query: object, body: bytes, own: int) -> Given:
        if path == "/fhir/metadata":
            return given(capabilities("identifier", "started", includes=[]), FHIR_JSON)
        if path == "/fhir/ImagingStudy":
            return given(searchset((f"http://127.0.0.1:{own}/fhir/ImagingStudy/s0", study)), FHIR_JSON)
        if path == "/fhir/Patient/p0":
            return given(patient("p0", "P"), FHIR_JSON)
        kind = {"system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type", "code": "dicom-wado-rs"}
        port = path.rpartition("/")[2]
        address = {"status": "active", "address": f"http://127.0.0.1:{port}", "connectionType": kind}
        return given({"resourceType": "Endpoint", "id": port, **address}, FHIR_JSON)

    return respond


@pytest.mark.parametrize("comes", [0, 1])
def test_a_series_at_an_address_of_its_own_is_not_whole_by_what_came_from_another_address(tmp_path, comes):
    """Of two instances that are counted there one comes, or none."""
    series = {**STUDY, "0020000E": {"vr": "UI", "Value": ["1.2.3.5"]}}
    listed = [{**series, "00080018": {"vr": "UI", "Value": [f"1.2.3.5.{number}"]}} for number in (1, 2)]
    counted = {**series, "00201209": {"vr": "IS", "Value": [2]}}
    file = stored(tmp_path, SeriesInstanceUID="1.2.3.5", SOPInstanceUID="1.2.3.5.1")
    answers = {"/instances": given(listed), "/series": given([counted])} if comes else {}
    answers |= {"/series/1.2.3.5": alone(file)} if comes else {}

    def lacks(method: str, path: str, *rest: object) -> Given:
        return next((answer for end, answer in answers.items() if path.endswith(end)), given([], status=404))

    with server(skipping(stored(tmp_path), [INSTANCE], 1)) as whole, server(lacks) as less:
        allow = [f"http://127.0.0.1:{port}" for port in (whole, less)]
        with (
            server(at_addresses({"1.2.3.4": whole, "1.2.3.5": less})) as port,
            Gateway([fhir_node("n", port, allow=allow)]) as gateway,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            gateway.get("/dicom-web/studies/1.2.3", headers=MULTIPART)


def test_what_a_node_lists_of_other_series_than_the_one_asked_for_is_not_lacking_from_it(tmp_path):
    elsewhere = {**OTHER, "0020000E": {"vr": "UI", "Value": ["1.2.3.9"]}}
    ignores_the_series = skipping(stored(tmp_path), [INSTANCE, elsewhere], None)
    with server(ignores_the_series) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4", headers=MULTIPART)
    assert answer.content.rstrip().endswith(b"--")


def test_metadata_that_lack_something_are_kept_for_a_moment_so_that_each_frame_does_not_cost_the_series_anew(tmp_path):
    asked: list[str] = []
    lacks = skipping(stored(tmp_path), [INSTANCE, OTHER], None, asked)
    frame = parts("application/octet-stream", (OCTETS, b"abcd"))

    def respond(method: str, path: str, *rest: object) -> Given:
        return frame if "/frames/" in path else lacks(method, path, *rest)

    with server(respond) as port, Gateway([dicomweb_node("n", port)]) as gateway:
        for _ in range(3):
            assert gateway.get(f"{PLACE}/frames/1", headers=ANY_FRAMES).status_code == 200
        answer = gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4/metadata")
    assert [path.rpartition("/")[2] for path in asked].count("metadata") == 1
    assert (answer.status_code, answer.headers["cache-control"]) == (206, "no-store")


def test_whether_metadata_are_all_is_asked_within_the_nodes_permits(tmp_path):
    of_it = skipping(stored(tmp_path), [INSTANCE], None)
    under_way, at_once = Counter[str](), []

    def slow(method: str, path: str, *rest: object) -> Given:
        under_way["now"] += 1
        at_once.append(under_way["now"])
        time.sleep(0.1)
        under_way["now"] -= 1
        uid = path.split("/")[4] if path.endswith("/metadata") else "1.2.3.4"
        one = {**SERIES, "0020000E": {"vr": "UI", "Value": [uid]}, "00080018": {"vr": "UI", "Value": [f"{uid}.1"]}}
        return given([one]) if uid != "1.2.3.4" else of_it(method, path, *rest)

    places = [f"/dicom-web/studies/1.2.3/series/1.2.3.{number}/metadata" for number in range(5, 9)]
    with (
        server(slow) as port,
        Gateway([dicomweb_node("n", port, max_concurrent=1)]) as gateway,
        ThreadPoolExecutor(len(places)) as pool,
    ):
        assert [answer.status_code for answer in pool.map(gateway.get, places)] == [200] * len(places)
    assert max(at_once) == 1


def test_where_the_pixels_of_a_series_lie_is_asked_once_for_its_metadata(tmp_path):
    asked: list[str] = []
    with server(skipping(stored(tmp_path), [INSTANCE], None)) as pixels:
        addresses = at_addresses({"1.2.3.4": pixels})

        def respond(method: str, path: str, *rest: Any) -> Given:
            asked.append(path)
            return addresses(method, path, *rest)

        allow = [f"http://127.0.0.1:{pixels}"]
        with server(respond) as port, Gateway([fhir_node("n", port, allow=allow)]) as gateway:
            assert gateway.get("/dicom-web/studies/1.2.3/series/1.2.3.4/metadata").status_code == 200
    assert asked.count(f"/fhir/Endpoint/{pixels}") == 1


# --- values that a view takes away


class WithoutDocuments(PlainView):
    """Shows no encapsulated document, wherever it stands."""

    def dataset(self, dataset: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in dataset.items() if name != "00420011"}
        items = {name: value["Value"] for name, value in shown.items() if value["vr"] == "SQ"}
        return {**shown, **{name: {"vr": "SQ", "Value": list(map(self.dataset, each))} for name, each in items.items()}}


class ShowsNoDocuments:
    def of(self, caller: object) -> PlainView:
        return WithoutDocuments("no documents", is_plain=False)


@pytest.mark.parametrize("above", ["", "54000100.1."])
def test_bulk_data_that_the_view_takes_out_of_the_metadata_cannot_be_asked_for_by_its_address(above):
    values = {name: {"vr": "OB", "BulkDataURI": "/bulk"} for name in ("00420011", "54001010")}
    described = {**INSTANCE, **values, "54000100": {"vr": "SQ", "Value": [values]}}
    value = 200, {"Content-Type": "application/octet-stream"}, b"abcd"
    answers = one_instance({"/metadata": given([described]), "/bulk": value})
    with server(answers) as port:
        node = dicomweb_node("n", port)
        with Gateway([node]) as gateway:
            assert gateway.get(f"{PLACE}/bulkdata/{above}00420011").status_code == 200
        with Gateway([node], views=ShowsNoDocuments()) as gateway:
            assert gateway.get(f"{PLACE}/bulkdata/{above}00420011").status_code == 404
            assert gateway.get(f"{PLACE}/bulkdata/{above}54001010").status_code == 200
