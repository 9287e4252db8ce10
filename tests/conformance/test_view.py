"""A view that renames UIDs and patient names: no original leaves by any route, and what the view gave out works everywhere."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pydicom
import pytest
from national_nodes import Demo, attribute, read
from pydicom.encaps import generate_frames

from gateway.errors import InvalidQuery
from gateway.model.dataset import Dataset
from gateway.model.query import Match, Query
from gateway.model.vocabulary import PATIENT_NAME
from gateway.security.caller import Caller
from gateway.simulators.corpus import HeldInstance, HeldStudy
from gateway.simulators.hospitals import EXAMINATIONS
from tests.running import Gateway

PSEUDONYM = "Renamed^Patient"
STANDARD = "1.2.840.10008."
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


@dataclass
class RenamingView:
    """Every instance UID becomes another, both ways; the patient has one name for all."""

    digest: str = "renaming"
    is_plain: bool = False
    originals: dict[str, str] = field(default_factory=dict)

    def query(self, query: Query) -> Query:
        if query.match_on(PATIENT_NAME):
            raise InvalidQuery("names are not shown, and so not searched by", parameter="PatientName")
        study, series = query.study and self.uid_inbound(query.study), query.series and self.uid_inbound(query.series)
        return replace(query, matches=tuple(map(self._match, query.matches)), study=study, series=series)

    def _match(self, match: Match) -> Match:
        return replace(match, values=tuple(map(self.uid_inbound, match.values))) if match.vr == "UI" else match

    def uid_inbound(self, uid: str) -> str:
        return self.originals.get(uid, uid if uid.startswith(STANDARD) else "2.25.0")

    def uid(self, uid: str) -> str:
        if uid.startswith(STANDARD) or uid in self.originals:
            return uid
        renamed = "2.25." + str(int(hashlib.sha256(uid.encode()).hexdigest()[:30], 16))
        self.originals[renamed] = uid
        return renamed

    def dataset(self, dataset: Dataset) -> Dataset:
        return {tag: self._attribute(tag, given) for tag, given in dataset.items()}

    def _attribute(self, tag: str, given: dict[str, Any]) -> dict[str, Any]:
        if tag == PATIENT_NAME:
            return {"vr": "PN", "Value": [{"Alphabetic": PSEUDONYM}]}
        if given["vr"] == "UI" and "Value" in given:
            return {"vr": "UI", "Value": [self.uid(value) if value else value for value in given["Value"]]}
        if given["vr"] == "SQ" and "Value" in given:
            return {"vr": "SQ", "Value": [self.dataset(item) for item in given["Value"]]}
        return given

    def instance(self, dataset: pydicom.Dataset) -> pydicom.Dataset:
        for element in dataset.iterall():
            if element.VR == "UI" and not element.is_empty:
                values = element.value if element.VM > 1 else [element.value]
                renamed = [self.uid(str(value)) for value in values]
                element.value = renamed if element.VM > 1 else renamed[0]
            elif element.tag == int(PATIENT_NAME, 16):
                element.value = PSEUDONYM
        return dataset

    def error(self, text: str) -> str:
        return re.sub(r"\d+(\.\d+){2,}", lambda found: self._shown(found[0]), text)

    def _shown(self, uid: str) -> str:
        return uid if uid in self.originals else self.uid(uid)


@dataclass
class OneView:
    view: RenamingView

    def of(self, caller: Caller) -> RenamingView:
        return self.view


@dataclass
class Veiled:
    """A gateway behind the view; every answer that is got is searched for originals."""

    gateway: Gateway
    demo: Demo
    view: RenamingView
    seen: int = 0

    def __post_init__(self) -> None:
        holdings = list(self.demo.corpus.studies())
        self.uids = {study.study_uid for study in holdings}
        self.uids |= {series.series_uid for study in holdings for series in study.series}
        self.uids |= {instance.sop_instance_uid for study in holdings for instance in study.instances}
        physicians = " ".join(examination.referring for examination in EXAMINATIONS)
        families = {study.patient_name.partition("^")[0] for study in holdings if study.is_generated}
        self.names = {family for family in families if family not in physicians}

    def get(self, url: str, status: int = 200, **headers: str) -> httpx.Response:
        path = url.removeprefix(self.gateway.url)
        answer = self.gateway.get(path, headers=headers)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:300]}"
        self.search(answer, path)
        return answer

    def search(self, answer: httpx.Response, path: str) -> None:
        """No original UID is in the bytes, none of the patients' names in what is text."""
        self.seen += 1
        whole = answer.content + repr(answer.headers.multi_items()).encode()
        found = set(re.findall(rb"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.])", whole))
        assert not {uid.decode() for uid in found} & self.uids, path
        if "json" in answer.headers.get("content-type", ""):
            assert not [name for name in self.names if name in answer.text], path

    def uid(self, original: str) -> str:
        return self.view.uid(original)


@pytest.fixture(scope="module")
def veiled(demo: Demo) -> Iterator[Veiled]:
    view = RenamingView()
    with Gateway(demo.tables, views=OneView(view)) as gateway:
        yield Veiled(gateway, demo, view)


def studies(veiled: Veiled) -> list[HeldStudy]:
    """Two studies of every node, not of two patients each, and the shared and the split one."""
    chosen = []
    for node in veiled.demo.corpus.nodes:
        mine = [study for study in veiled.demo.holdings() if study.node == node]
        chosen += mine[:1] + mine[-1:]
    return chosen


def parts(answer: httpx.Response) -> list[bytes]:
    boundary = re.search(r'boundary="?([^";]+)', answer.headers["content-type"])
    assert boundary
    pieces = answer.content.split(b"--" + boundary[1].encode())[1:-1]
    return [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces]


def test_searches_show_no_original(veiled: Veiled) -> None:
    for path in ("/studies", "/studies?includefield=all", "/series?Modality=MG", "/instances?StudyDate=20250226"):
        rows = veiled.get(f"/dicom-web{path}").json()
        assert rows
        assert {name["Alphabetic"] for row in rows for name in attribute(row, PATIENT_NAME)} == {PSEUDONYM}


def test_what_a_search_gave_can_be_searched_by(veiled: Veiled) -> None:
    for study in studies(veiled):
        uid, series = veiled.uid(study.study_uid), veiled.uid(study.series[0].series_uid)
        (row,) = veiled.get(f"/dicom-web/studies?StudyInstanceUID={uid}").json()
        assert attribute(row, STUDY) == [uid]
        veiled.get(attribute(row, "00081190")[0])
        found = veiled.get(f"/dicom-web/studies/{uid}/series?SeriesInstanceUID={series}").json()
        assert [attribute(one, SERIES) for one in found] == [[series]]
        found = veiled.get(f"/dicom-web/studies/{uid}/series/{series}/instances").json()
        assert {attribute(one, INSTANCE)[0] for one in found} == {
            veiled.uid(instance.sop_instance_uid) for instance in study.series[0].instances
        }
        assert len(veiled.get(f"/dicom-web/studies/{uid}/instances").json()) >= len(study.instances)
        assert veiled.get(f"/dicom-web/studies?StudyInstanceUID={study.study_uid}").json() == []


def paths_of(veiled: Veiled, study: HeldStudy) -> tuple[str, str, str, HeldInstance]:
    series, instance = study.series[0], study.series[0].instances[0]
    whole = f"/dicom-web/studies/{veiled.uid(study.study_uid)}"
    of_series = f"{whole}/series/{veiled.uid(series.series_uid)}"
    return whole, of_series, f"{of_series}/instances/{veiled.uid(instance.sop_instance_uid)}", instance


def test_instances_are_rewritten_and_their_pixels_are_not(veiled: Veiled) -> None:
    for study in studies(veiled):
        whole, of_series, of_instance, instance = paths_of(veiled, study)
        for path in (whole, of_series, of_instance):
            for part in parts(veiled.get(path)):
                check_rewritten(veiled, pydicom.dcmread(io.BytesIO(part)))
        alone = veiled.get(of_instance, accept="application/dicom; transfer-syntax=*")
        received, original = pydicom.dcmread(io.BytesIO(alone.content)), read(instance)
        check_rewritten(veiled, received)
        assert received.SOPInstanceUID == veiled.uid(original.SOPInstanceUID)
        assert received.get("StudyDescription") == original.get("StudyDescription")
        if "PixelData" in original:
            assert frames_of(received) == frames_of(original) or (received.pixel_array == original.pixel_array).all()


def check_rewritten(veiled: Veiled, received: pydicom.Dataset) -> None:
    """The header (File Meta Information, preamble) and the data set agree, and are the view's."""
    assert received.file_meta.MediaStorageSOPInstanceUID == received.SOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert received[keyword].value in veiled.view.originals
    assert str(received.get("PatientName", PSEUDONYM)) == PSEUDONYM


def frames_of(dataset: pydicom.Dataset) -> list[bytes]:
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        return [bytes(dataset.PixelData)]
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))


def test_metadata_frames_and_bulk_data_go_by_the_names_of_the_view(veiled: Veiled) -> None:
    for study in studies(veiled):
        whole, of_series, of_instance, instance = paths_of(veiled, study)
        for path in (whole, of_series, of_instance):
            for described in veiled.get(f"{path}/metadata").json():
                assert attribute(described, STUDY) == [veiled.uid(study.study_uid)]
                assert described.get(PATIENT_NAME, {"Value": [{"Alphabetic": PSEUDONYM}]})["Value"] == [
                    {"Alphabetic": PSEUDONYM}
                ]
        original = read(instance)
        if "PixelData" in original:
            (described,) = veiled.get(f"{of_instance}/metadata").json()
            (bulk,) = parts(veiled.get(described["7FE00010"]["BulkDataURI"]))[:1]
            (frame,) = parts(veiled.get(f"{of_instance}/frames/1"))
            assert bulk
            if original.file_meta.TransferSyntaxUID.is_compressed:
                assert frame == frames_of(original)[0]
            elif original.file_meta.TransferSyntaxUID.is_little_endian:
                assert original.PixelData.startswith(frame)
                assert bulk == original.PixelData


def test_fhir_goes_by_the_names_of_the_view(veiled: Veiled) -> None:
    for root in ("/fhir/r4", "/fhir/r5"):
        url: str | None = f"{root}/ImagingStudy?_count=9&_include=ImagingStudy:patient&_include=ImagingStudy:endpoint"
        ids = []
        while url:
            page = veiled.get(url).json()
            for entry in page["entry"]:
                resource = entry["resource"]
                if resource["resourceType"] == "Patient":
                    assert resource["name"][0]["text"] == "Patient Renamed"
                if resource["resourceType"] == "ImagingStudy":
                    ids.append(resource["id"])
            url = next((link["url"] for link in page["link"] if link["relation"] == "next"), None)
        assert len(set(ids)) == len({(s.study_uid, s.patient_id) for s in veiled.demo.corpus.studies()})
        for identifier in ids[:: 1 if root == "/fhir/r4" else 7]:
            read_one = veiled.get(f"{root}/ImagingStudy/{identifier}").json()
            assert read_one["id"] == identifier
            uid = read_one["identifier"][0]["value"]
            assert len(veiled.get(f"{root}/ImagingStudy?identifier=urn:dicom:uid|{uid}").json()["entry"]) >= 2
            if "reference" in read_one["subject"]:
                veiled.get(f"{root}/{read_one['subject']['reference']}")


def test_fhir_is_searched_by_the_names_of_the_view(veiled: Veiled) -> None:
    study = next(study for study in studies(veiled) if study.node == "ee-tartu")
    series, instance = study.series[0], study.series[0].instances[0]
    for query in (
        f"identifier=urn:oid:{veiled.uid(study.study_uid)}",
        f"_id={veiled.uid(study.study_uid)}",
        f"series={veiled.uid(series.series_uid)}",
        f"instance={veiled.uid(instance.sop_instance_uid)}",
    ):
        bundle = veiled.get(f"/fhir/ImagingStudy?node=ee-tartu&{query}").json()
        assert [entry["resource"]["id"] for entry in bundle["entry"]] == [veiled.uid(study.study_uid)], query
    bundle = veiled.get(f"/fhir/ImagingStudy?node=ee-tartu&dicom-class={instance.sop_class_uid}").json()
    assert veiled.uid(study.study_uid) in [entry["resource"]["id"] for entry in bundle["entry"]]


def test_errors_go_by_the_names_of_the_view(veiled: Veiled) -> None:
    clash = veiled.uid(veiled.demo.corpus.case("uid-clash").study_uid)
    study = studies(veiled)[0]
    known = veiled.uid(study.study_uid)
    for path, status in (
        (f"/dicom-web/studies/{clash}", 409),
        (f"/dicom-web/studies/{clash}/metadata", 409),
        (f"/fhir/ImagingStudy/{clash}", 409),
        (f"/nodes/gr-athens/dicom-web/studies/{known}", 404),
        (f"/nodes/gr-athens/dicom-web/studies/{known}/metadata", 404),
        (f"/fhir/ImagingStudy/{known}?node=gr-athens", 404),
        (f"/nodes/it-roma/dicom-web/studies/{known}", 503),
        (f"/dicom-web/studies/{known}/series/{clash}/metadata", 503),
        (f"/dicom-web/studies/{known}/series/{clash}/metadata?node={study.node}", 404),
        (f"/dicom-web/studies/{study.study_uid[:-1]}", 503),
        ("/dicom-web/studies?PatientName=M*", 400),
        ("/dicom-web/studies?PatientID=12345", 409),
        ("/fhir/ImagingStudy?patient.identifier=12345", 409),
    ):
        veiled.get(path, status)


def test_a_name_that_is_not_shown_is_not_searched_by(veiled: Veiled) -> None:
    """Refused where nodes would be asked for it; alternatives, which they are not asked for, are held against what is shown."""
    for path in ("ImagingStudy?patient.name=M", "ImagingStudy?subject.family:exact=M", "Patient?name:contains=m"):
        veiled.get(f"/fhir/{path}", 400)
    names = ",".join(sorted(veiled.names))
    named = "/fhir/ImagingStudy?node=ee-tartu&_total=accurate&_count=1&patient.name:missing=false"
    everyone = veiled.get(named).json()["total"]
    # Not by `veiled.get`: the self link repeats what the caller itself wrote.
    assert veiled.gateway.get(f"/fhir/Patient?name={names}&node=ee-tartu").json()["total"] == 0
    asked = f"/fhir/ImagingStudy?node=ee-tartu&_total=accurate&patient.name={names}"
    assert "entry" not in veiled.gateway.get(asked).json()
    renamed = veiled.get(
        "/fhir/ImagingStudy?node=ee-tartu&_total=accurate&_count=1&patient.name:contains=renamed,nobody"
    )
    assert renamed.json()["total"] == everyone


def test_xml_and_what_is_left_out_show_no_original(veiled: Veiled) -> None:
    accept = "application/fhir+xml"
    for query in ("_include=*&_count=100", "modality:not=CT&_count=100", "bodysite:missing=true&_count=100"):
        bundle = veiled.get(f"/fhir/ImagingStudy?{query}", accept=accept)
        assert bundle.text.startswith("<?xml")
        assert not [name for name in veiled.names if name in bundle.text]
    uid = veiled.get("/fhir/ImagingStudy?node=ee-tartu&_count=1").json()["entry"][0]["resource"]["id"]
    alone = f"/fhir/ImagingStudy?node=ee-tartu&_count=100&identifier:not=urn:oid:{uid}"
    assert uid not in [e["resource"]["id"] for e in veiled.get(alone).json()["entry"]]


def test_an_original_uid_opens_nothing(veiled: Veiled) -> None:
    for study in studies(veiled)[:4]:
        series, instance = study.series[0], study.series[0].instances[0]
        whole = f"/nodes/{study.node}/dicom-web/studies/{study.study_uid}"
        alone = f"{whole}/series/{series.series_uid}/instances/{instance.sop_instance_uid}"
        for path in (whole, f"{whole}/metadata", alone, f"{alone}/frames/1", f"{alone}/bulkdata/7FE00010"):
            assert veiled.gateway.get(path).status_code == 404
        assert veiled.gateway.get(f"/fhir/ImagingStudy/{study.study_uid}?node={study.node}").status_code == 404


def test_a_clash_is_read_by_the_ids_of_the_view(veiled: Veiled) -> None:
    planted = veiled.demo.corpus.case("uid-clash")
    uid = veiled.uid(planted.study_uid)
    for study in planted.studies:
        url = f"/nodes/{study.node}/dicom-web/studies/{uid}"
        assert len(parts(veiled.get(url))) == len(study.instances)


def test_the_search_for_originals_would_find_one(veiled: Veiled, demo: Demo) -> None:
    plain = demo.get("/dicom-web/studies?node=ee-tartu&StudyDate=20250507")
    assert veiled.seen > 100
    with pytest.raises(AssertionError):
        veiled.search(plain, "planted")


def test_rendered_images_and_transcoded_instances_go_by_the_names_of_the_view(veiled: Veiled) -> None:
    rendered = 0
    for study in studies(veiled):
        whole, _, of_instance, instance = paths_of(veiled, study)
        original = read(instance)
        if "PixelData" not in original:
            continue
        for where in (whole, of_instance):
            veiled.get(f"{where}/thumbnail")
        image = veiled.get(f"{of_instance}/rendered?annotation=patient", accept="image/png").content
        veiled.get(f"{of_instance}/rendered", accept='multipart/related; type="image/png"')
        assert image != veiled.get(f"{of_instance}/rendered", accept="image/png").content
        plain = f"/dicom-web/studies/{study.study_uid}/series/{study.series[0].series_uid}/instances/{instance.sop_instance_uid}"
        shown = veiled.demo.get(f"{plain}/rendered?annotation=patient", headers={"accept": "image/png"})
        assert shown.status_code == 200
        assert shown.content != image  # another name is written into it
        alone = veiled.get(of_instance, accept="application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90")
        received = pydicom.dcmread(io.BytesIO(alone.content))
        check_rewritten(veiled, received)
        assert (received.pixel_array == original.pixel_array).all()
        rendered += 1
    assert rendered > 1
