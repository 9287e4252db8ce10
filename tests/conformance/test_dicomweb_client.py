"""dicomweb-client judges the DICOMweb edge: what it finds and retrieves equals the nodes' files, whatever the node speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from national_nodes import DEAD, DIMSE_NODES, Demo, attribute, read
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.simulators.corpus import HeldInstance, HeldStudy

NODES = ("de-berlin", "fr-lyon", "pl-krakow", "gr-athens", "es-madrid", "ee-tartu")
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.840.10008.1.2.1.99")


@pytest.fixture(scope="session")
def client(demo: Demo) -> DICOMwebClient:
    return DICOMwebClient(demo.gateway.dicomweb, permissive_uid=True)


def values(dataset: Dataset) -> dict[Any, DataElement]:
    """The elements that the web gives back: group lengths have gone and padding is not content."""
    return {
        element.tag: element
        for element in dataset
        if element.tag.element != 0 and element.tag not in (0xFFFCFFFC, 0x7FE00010)
    }


def differences(received: Dataset, original: Dataset, *, empty_may_miss: bool = False) -> list[str]:
    """The tags at which two data sets differ; pixel data is compared by whoever asks."""
    got, wanted = values(received), values(original)
    found = []
    for tag in sorted(got.keys() | wanted.keys()):
        if tag in got and tag in wanted:
            if not same(got[tag], wanted[tag], empty_may_miss):
                found.append(f"{tag} {got[tag].repval} instead of {wanted[tag].repval}")
        elif tag in got or not (empty_may_miss and wanted[tag].is_empty):
            found.append(f"{tag} {'is extra' if tag in got else 'is missing'}")
    return found


def same(received: DataElement, original: DataElement, empty_may_miss: bool) -> bool:
    if original.VR == "SQ":
        pairs = zip(received.value, original.value, strict=True)
        return not any(differences(one, other, empty_may_miss=empty_may_miss) for one, other in pairs)
    return bool(received.value == original.value) or plain(received) == plain(original)


def plain(element: DataElement) -> Any:
    if isinstance(element.value, bytes):
        return element.value.rstrip(b"\0")
    if element.VR in ("DS", "FL", "FD") and not element.is_empty:
        return [float(value) for value in (element.value if element.VM > 1 else [element.value])]
    return [str(value).strip() for value in (element.value if element.VM > 1 else [element.value])]


def is_same_pixels(received: Dataset, original: Dataset) -> bool:
    if "PixelData" not in original:
        return "PixelData" not in received
    if original.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        return bool((received.pixel_array == original.pixel_array).all())
    return bool(received.PixelData == original.PixelData)


def held_by(demo: Demo, node: str) -> list[HeldStudy]:
    return [study for study in demo.holdings() if study.node == node]


def every_file(demo: Demo, study_uid: str) -> dict[str, HeldInstance]:
    """The instances of a study, whichever nodes hold them."""
    return {
        instance.sop_instance_uid: instance
        for study in demo.holdings()
        if study.study_uid == study_uid
        for instance in study.instances
    }


def check_instances(received: list[Dataset], files: dict[str, HeldInstance]) -> None:
    assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(files), "each instance comes once"
    for one in received:
        original = read(files[one.SOPInstanceUID])
        assert differences(one, original) == [], files[one.SOPInstanceUID].path.name
        assert is_same_pixels(one, original), files[one.SOPInstanceUID].path.name
        stored = original.file_meta.TransferSyntaxUID
        is_recoded = stored in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
        assert one.file_meta.TransferSyntaxUID == (ExplicitVRLittleEndian if is_recoded else stored)


@pytest.mark.parametrize("node", NODES)
def test_a_study_comes_back_as_its_files(demo: Demo, client: DICOMwebClient, node: str) -> None:
    for study in held_by(demo, node):
        check_instances(client.retrieve_study(study.study_uid), every_file(demo, study.study_uid))


@pytest.mark.parametrize("node", NODES)
def test_a_series_comes_back_as_its_files(demo: Demo, client: DICOMwebClient, node: str) -> None:
    for study in held_by(demo, node):
        for series in study.series:
            files = {instance.sop_instance_uid: instance for instance in series.instances}
            check_instances(list(client.iter_series(study.study_uid, series.series_uid)), files)


@pytest.mark.parametrize("node", NODES)
def test_an_instance_comes_back_in_its_stored_syntax(demo: Demo, client: DICOMwebClient, node: str) -> None:
    """The client asks for an instance with `transfer-syntax=*`: the stored bytes, whatever they are in."""
    for study in held_by(demo, node):
        for series in study.series:
            instance = series.instances[0]
            received = client.retrieve_instance(study.study_uid, series.series_uid, instance.sop_instance_uid)
            original = read(instance)
            assert differences(received, original) == [], instance.path.name
            assert received.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
            if "PixelData" in original:
                assert received.PixelData == original.PixelData


@pytest.mark.parametrize("node", NODES)
def test_metadata_with_its_bulk_data_is_the_whole_data_set(demo: Demo, client: DICOMwebClient, node: str) -> None:
    for study in held_by(demo, node):
        files = every_file(demo, study.study_uid)
        described = client.retrieve_study_metadata(study.study_uid)
        assert sorted(attribute(one, INSTANCE)[0] for one in described) == sorted(files)
        for one in described:
            check_metadata(client, one, files[attribute(one, INSTANCE)[0]])


def check_metadata(client: DICOMwebClient, described: dict[str, Any], file: HeldInstance) -> None:
    def fetch(_: str, vr: str, uri: str) -> Any:
        value = bytes(client.retrieve_bulkdata(uri)[0])
        return value if vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN") else value.decode().rstrip()

    retrieve_url = described.pop("00081190")["Value"][0]
    assert retrieve_url.endswith(f"/instances/{file.sop_instance_uid}")
    pixels = described.pop("7FE00010", None)
    assert attribute(described, "00080005") in ([], ["ISO_IR 192"]), "JSON is UTF-8 (PS3.18 F.2)"
    received, original = Dataset.from_json(described, fetch), read(file)
    received.pop("SpecificCharacterSet", None)
    original.pop("SpecificCharacterSet", None)
    assert differences(received, original, empty_may_miss=True) == [], file.path.name
    assert ("PixelData" in original) == (pixels is not None)
    if pixels and file.transfer_syntax_uid in UNCOMPRESSED:
        (value,) = client.retrieve_bulkdata(pixels["BulkDataURI"])
        assert value.rstrip(b"\0") == little_endian_pixels(original).rstrip(b"\0")


def little_endian_pixels(original: Dataset) -> bytes:
    if original.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and original.BitsAllocated == 16:
        return b"".join(bytes((b, a)) for a, b in zip(*[iter(original.PixelData)] * 2, strict=True))
    return bytes(original.PixelData)


def test_metadata_of_a_series_and_of_an_instance_is_that_of_the_study(demo: Demo, client: DICOMwebClient) -> None:
    for node in NODES:
        study = held_by(demo, node)[0]
        whole = {attribute(one, INSTANCE)[0]: one for one in client.retrieve_study_metadata(study.study_uid)}
        for series in study.series:
            of_series = client.retrieve_series_metadata(study.study_uid, series.series_uid)
            uid = series.instances[0].sop_instance_uid
            of_one = client.retrieve_instance_metadata(study.study_uid, series.series_uid, uid)
            assert {attribute(one, INSTANCE)[0] for one in of_series} == {i.sop_instance_uid for i in series.instances}
            assert all(one == whole[attribute(one, INSTANCE)[0]] for one in of_series)
            assert (of_one[0] if isinstance(of_one, list) else of_one) == whole[uid]


@pytest.mark.parametrize("node", NODES)
def test_frames_are_the_stored_ones(demo: Demo, client: DICOMwebClient, node: str) -> None:
    for study in held_by(demo, node):
        for series in study.series:
            instance, original = series.instances[0], read(series.instances[0])
            if "PixelData" in original:
                wanted = frames_of(original)
                numbers = list(range(1, len(wanted) + 1))
                uids = (study.study_uid, series.series_uid, instance.sop_instance_uid)
                assert client.retrieve_instance_frames(*uids, numbers) == wanted, instance.path.name
                if len(numbers) > 2:
                    some = list(client.iter_instance_frames(*uids, [3, 1, 2]))
                    assert some == [wanted[2], wanted[0], wanted[1]]


def frames_of(original: Dataset) -> list[bytes]:
    count = int(original.get("NumberOfFrames") or 1)
    if original.file_meta.TransferSyntaxUID not in UNCOMPRESSED:
        return list(generate_frames(original.PixelData, number_of_frames=count))
    pixels = little_endian_pixels(original)
    size = original.Rows * original.Columns * original.SamplesPerPixel * original.BitsAllocated // 8
    return [pixels[start : start + size] for start in range(0, size * count, size)]


Pick = Callable[[HeldStudy, Dataset], bool]


def is_between(low: str, high: str) -> Pick:
    return lambda study, _: bool(study.study_date) and low <= study.study_date.replace(".", "") <= high


def modality(*names: str) -> Pick:
    return lambda study, _: bool(set(names) & set(study.modalities))


STUDY_SEARCHES: list[tuple[dict[str, Any], Pick]] = [
    ({"StudyDate": "20250101-20250331"}, is_between("20250101", "20250331")),
    ({"StudyDate": "-20041231"}, is_between("0", "20041231")),
    ({"StudyDate": "20250801-"}, is_between("20250801", "9")),
    ({"StudyDate": "20250403"}, is_between("20250403", "20250403")),
    ({"00080020": "20250403"}, is_between("20250403", "20250403")),
    ({"ModalitiesInStudy": "MG"}, modality("MG")),
    ({"ModalitiesInStudy": "RTSTRUCT"}, modality("RTSTRUCT")),
    ({"AccessionNumber": "KR/25/*"}, lambda study, _: study.accession_number.startswith("KR/25/")),
    ({"AccessionNumber": "BE25-004711"}, lambda study, _: study.accession_number == "BE25-004711"),
    ({"PatientName": "M*"}, lambda _, head: str(head.get("PatientName", "")).upper().startswith("M")),
    ({"PatientName": "muszig*"}, lambda *_: False),
    ({"PatientName": "mussig^kathe"}, lambda _, head: str(head.get("PatientName", "")) == "Müßig^Käthe"),
    ({"PatientName": "Παπαδοπουλου*"}, lambda _, head: str(head.get("PatientName", "")).startswith("Παπαδοπούλου")),
    ({"PatientName": "ИВАНОВА*"}, lambda _, head: str(head.get("PatientName", "")).startswith("Иванова")),
    ({"PatientID": "12345", "IssuerOfPatientID": "HU-MADRID"}, lambda s, _: s.patient_id == "12345" and s.node == "es-madrid"),
    ({"PatientID": "12345", "IssuerOfPatientID": "SU-KRAKOW"}, lambda s, _: s.patient_id == "12345" and s.node == "pl-krakow"),
    ({"PatientID": "9999000*"}, lambda study, _: study.patient_id.startswith("9999000")),
    ({"PatientID": "nobody"}, lambda *_: False),
    ({"StudyDescription": "*pelv*"}, lambda study, _: "pelv" in study.study_description),
    ({"StudyDate": "20250101-20251231", "ModalitiesInStudy": "CT"},
     lambda study, head: is_between("20250101", "20251231")(study, head) and "CT" in study.modalities),
]  # fmt: skip


def expected(demo: Demo, pick: Pick) -> list[tuple[str, str]]:
    """(study UID, patient id) of every result that the files call for; a study that two nodes hold counts once."""
    found = {
        (study.study_uid, study.patient_id.strip())
        for study in demo.corpus.studies()
        if pick(study, read(study.instances[0]))
    }
    return sorted(found)


def results(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((attribute(row, STUDY)[0], "".join(attribute(row, "00100020")[:1])) for row in rows)


@pytest.mark.parametrize(("filters", "pick"), STUDY_SEARCHES, ids=[str(filters) for filters, _ in STUDY_SEARCHES])
def test_a_search_finds_what_the_files_say(
    demo: Demo, client: DICOMwebClient, filters: dict[str, str], pick: Pick
) -> None:
    assert results(client.search_for_studies(search_filters=filters)) == expected(demo, pick)


def test_every_study_is_found_once(demo: Demo, client: DICOMwebClient) -> None:
    assert results(client.search_for_studies()) == expected(demo, lambda *_: True)


def test_pages_by_limit_and_offset_make_up_the_whole(client: DICOMwebClient) -> None:
    whole = client.search_for_studies()
    pages = [row for start in range(0, len(whole) + 7, 7) for row in client.search_for_studies(limit=7, offset=start)]
    assert pages == whole
    assert client.search_for_studies(limit=7, get_remaining=True) == whole


def test_fields_asked_for_come_with_the_study(client: DICOMwebClient) -> None:
    filters = {"StudyDate": "20250226"}
    (plain_row,) = client.search_for_studies(search_filters=filters)
    (row,) = client.search_for_studies(search_filters=filters, fields=["StudyDescription", "00101002"])
    assert attribute(row, "00081030") == ["Mamografía de cribado bilateral"]
    assert plain_row.items() <= row.items()


def test_series_and_instances_are_found_at_every_level(demo: Demo, client: DICOMwebClient) -> None:
    for node in NODES:
        for study in held_by(demo, node)[:3]:
            files = every_file(demo, study.study_uid)
            found = client.search_for_series(study.study_uid)
            everywhere = {s.series_uid for s in demo.holdings() if s.study_uid == study.study_uid for s in s.series}
            assert sorted(attribute(row, SERIES)[0] for row in found) == sorted(everywhere)
            found = client.search_for_instances(study.study_uid)
            assert sorted(attribute(row, INSTANCE)[0] for row in found) == sorted(files)
            series = study.series[0]
            found = client.search_for_instances(study.study_uid, series.series_uid)
            assert sorted(attribute(row, INSTANCE)[0] for row in found) == sorted(
                instance.sop_instance_uid for instance in series.instances
            )


def test_series_are_found_without_naming_a_study(demo: Demo, client: DICOMwebClient) -> None:
    wanted = {
        (study.study_uid, series.series_uid)
        for study in demo.corpus.studies()
        for series in study.series
        if series.modality == "MG" and study.study_date.startswith("2025")
    }
    found = client.search_for_series(search_filters={"Modality": "MG", "StudyDate": "20250101-20251231"})
    assert sorted((attribute(row, STUDY)[0], attribute(row, SERIES)[0]) for row in found) == sorted(wanted)
    assert all(attribute(row, "00100020") for row in found), "study attributes come with it (PS3.18 Table 10.6.3-2)"


def test_instances_are_found_without_naming_a_study(demo: Demo, client: DICOMwebClient) -> None:
    mammography = "1.2.840.10008.5.1.4.1.1.1.2"
    wanted = {
        instance.sop_instance_uid
        for study in demo.corpus.studies()
        for instance in study.instances
        if instance.sop_class_uid == mammography and study.study_date.startswith("202502")
    }
    filters = {"SOPClassUID": mammography, "StudyDate": "20250201-20250228"}
    found = client.search_for_instances(search_filters=filters)
    assert wanted
    assert sorted(attribute(row, INSTANCE)[0] for row in found) == sorted(wanted)


@pytest.mark.parametrize("node", NODES)
def test_a_node_of_its_own_is_a_whole_service(demo: Demo, node: str) -> None:
    service = DICOMwebClient(f"{demo.url}/nodes/{node}/dicom-web", permissive_uid=True)
    mine = [study for study in demo.corpus.studies() if study.node == node]
    assert results(service.search_for_studies()) == sorted({(s.study_uid, s.patient_id.strip()) for s in mine})
    for study in mine[:2]:
        files = {instance.sop_instance_uid: instance for instance in study.instances}
        check_instances(service.retrieve_study(study.study_uid), files)
        assert len(service.retrieve_study_metadata(study.study_uid)) == len(files)


def test_the_dead_node_is_the_only_one_missing(demo: Demo) -> None:
    warnings = demo.get("/dicom-web/studies?limit=1000").headers.get_list("warning")
    assert [DEAD in warning for warning in warnings] == [True]


def iter_all(client: DICOMwebClient, study: HeldStudy) -> Iterator[Dataset]:
    return client.iter_study(study.study_uid, media_types=(("application/dicom", "*"),))


def test_a_study_can_be_taken_instance_by_instance(demo: Demo, client: DICOMwebClient) -> None:
    for node in NODES:
        study = held_by(demo, node)[0]
        received = [str(one.SOPInstanceUID) for one in iter_all(client, study)]
        assert sorted(received) == sorted(every_file(demo, study.study_uid))


@pytest.mark.parametrize("node", ["de-berlin", "es-madrid", "ee-tartu"])
def test_any_syntax_gives_the_exact_bytes_of_the_file(demo: Demo, node: str) -> None:
    for study in held_by(demo, node):
        for series in study.series:
            for instance in series.instances[:2]:
                path = f"/nodes/{node}/dicom-web/studies/{study.study_uid}/series/{series.series_uid}"
                accept = {"accept": "application/dicom; transfer-syntax=*"}
                answer = demo.get(f"{path}/instances/{instance.sop_instance_uid}", headers=accept)
                assert answer.content == instance.path.read_bytes(), instance.path.name


@pytest.mark.parametrize("node", DIMSE_NODES)
def test_any_syntax_gives_the_data_set_bytes_that_the_peer_sent(demo: Demo, node: str) -> None:
    """The simulated peers send the data sets of their files as they are; the header is the receiver's own (PS3.10 7.1)."""
    for study in held_by(demo, node):
        for series in study.series:
            instance = series.instances[0]
            path = f"/nodes/{node}/dicom-web/studies/{study.study_uid}/series/{series.series_uid}"
            accept = {"accept": "application/dicom; transfer-syntax=*"}
            answer = demo.get(f"{path}/instances/{instance.sop_instance_uid}", headers=accept)
            assert data_set(answer.content) == data_set(instance.path.read_bytes()), instance.path.name


def data_set(file: bytes) -> bytes:
    """What follows the File Meta Information, whose length (0002,0000) tells where that is."""
    assert file[128:132] == b"DICM"
    assert file[132:136] == b"\x02\x00\x00\x00"
    return file[144 + int.from_bytes(file[140:144], "little") :]


@pytest.mark.parametrize("node", NODES)
def test_rendered_images_come_to_the_client_from_every_kind_of_node(demo: Demo, node: str) -> None:
    service = DICOMwebClient(f"{demo.url}/nodes/{node}/dicom-web", permissive_uid=True)
    study, series, instance = next(
        (study, series, instance)
        for study in demo.corpus.studies()
        for series in study.series
        for instance in series.instances
        if study.node == node and "PixelData" in read(instance)
    )
    place = study.study_uid, series.series_uid, instance.sop_instance_uid
    for media_type, magic in (("image/png", b"\x89PNG"), ("image/jpeg", b"\xff\xd8")):
        assert service.retrieve_instance_rendered(*place, media_types=(media_type,)).startswith(magic)
    frame = service.retrieve_instance_frames_rendered(*place, frame_numbers=[1], media_types=("image/png",))
    assert frame.startswith(b"\x89PNG")
    small = service.retrieve_instance_rendered(*place, media_types=("image/png",), params={"viewport": "8,8"})
    assert len(small) < len(frame)
