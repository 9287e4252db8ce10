"""Judge: dicomweb-client for Python. What it finds and retrieves over every kind of real peer is what the files hold."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, ExplicitVRBigEndian

from tests import sending
from tests.judges.conftest import Judged, operations_of
from tests.running import Gateway, files_node
from tests.shelf import HeldFile, HeldStudy

pytestmark = pytest.mark.interop

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
USED = {
    "search_for_studies", "search_for_series", "search_for_instances",
    "retrieve_study", "iter_study", "retrieve_series", "iter_series", "retrieve_instance",
    "retrieve_instance_frames", "iter_instance_frames", "retrieve_bulkdata", "iter_bulkdata",
    "retrieve_study_metadata", "retrieve_series_metadata", "retrieve_instance_metadata",
    "retrieve_instance_rendered", "retrieve_instance_frames_rendered", "retrieve_series_rendered", "store_instances",
}  # fmt: skip
NOT_USED = {
    "delete_instance": "no part of PS3.18: the gateway deletes nothing",
    "delete_series": "no part of PS3.18: the gateway deletes nothing",
    "delete_study": "no part of PS3.18: the gateway deletes nothing",
    "lookup_keyword": "asks nobody",
    "lookup_tag": "asks nobody",
    "set_chunk_size": "asks nobody",
    "set_http_retry_params": "asks nobody",
}


def test_every_operation_of_the_client_is_used_or_left_out_with_a_reason() -> None:
    assert operations_of(DICOMwebClient) == USED | NOT_USED.keys()
    assert not USED & NOT_USED.keys()


@pytest.fixture
def client(root: str) -> DICOMwebClient:
    return DICOMwebClient(root, permissive_uid=True)


@pytest.fixture
def federation(judged: Judged) -> DICOMwebClient:
    """Over all nodes at once."""
    return DICOMwebClient(judged.dicomweb, permissive_uid=True)


def values(rows: list[dict[str, Any]], tag: str) -> list[Any]:
    """The first value of an attribute of every row, in order."""
    return sorted(row[tag]["Value"][0] for row in rows)


def are_the_files(received: list[Dataset], files: list[HeldFile]) -> None:
    assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(file.uid for file in files)
    held = {file.uid: file for file in files}
    for one in received:
        original = held[str(one.SOPInstanceUID)].dataset
        without = [element.tag for element in original if element.tag.element == 0]
        assert all(
            one[element.tag] == element
            for element in original
            if element.tag not in without and not is_recoded(element, original)
        ), held[str(one.SOPInstanceUID)].path


def is_recoded(element: Any, original: Dataset) -> bool:
    """Big-endian words are swapped for the web (PS3.18 8.7.3.5.2)."""
    return element.keyword == "PixelData" and original.file_meta.TransferSyntaxUID == ExplicitVRBigEndian


def test_every_study_is_found_once_at_every_kind_of_node(judged: Judged, client: DICOMwebClient) -> None:
    rows = client.search_for_studies(fields=["StudyDescription"])
    assert judged.named(values(rows, STUDY)) == sorted(study.uid for study in judged.studies)
    counts = {row[STUDY]["Value"][0]: row["00201208"]["Value"][0] for row in rows if "00201208" in row}
    for study in judged.studies:
        # dcmqrscp does not count, and a node by itself is not gone through for it.
        assert counts.get(study.uid, len(study.files) if "/qr/" in str(client.base_url) else 0) == len(study.files)


def test_pages_make_up_the_whole(federation: DICOMwebClient) -> None:
    whole = federation.search_for_studies()
    assert len(whole) > 8
    pages = [federation.search_for_studies(limit=3, offset=start) for start in range(0, len(whole) + 3, 3)]
    assert [row for page in pages for row in page] == whole
    assert federation.search_for_studies(limit=3, get_remaining=True) == whole


Filters = Callable[[HeldStudy], dict[str, str]]
BY: dict[str, Filters] = {
    "study": lambda study: {"StudyInstanceUID": study.uid},
    "patient": lambda study: {"PatientID": study.text("PatientID"), "StudyInstanceUID": study.uid},
    "tag": lambda study: {"00100020": study.text("PatientID"), "0020000D": study.uid},
    "day": lambda study: {"StudyDate": study.text("StudyDate"), "StudyInstanceUID": study.uid},
    "days": lambda study: {"StudyDate": "19000101-20991231", "StudyInstanceUID": study.uid},
    "modality": lambda study: {"ModalitiesInStudy": sorted(study.modalities)[0], "StudyInstanceUID": study.uid},
    "name": lambda study: {"PatientName": study.name.split("=")[0][:3] + "*", "StudyInstanceUID": study.uid},
}


@pytest.mark.parametrize("filters", BY.values(), ids=BY)
def test_a_study_is_found_by_what_describes_it(judged: Judged, client: DICOMwebClient, filters: Filters) -> None:
    dated = [study for study in judged.studies if study.text("StudyDate")][:4]
    for study in dated:
        rows = client.search_for_studies(search_filters=filters(study))
        assert values(rows, STUDY) == [study.uid], filters(study)


def test_a_filter_that_nothing_answers_finds_nothing(client: DICOMwebClient) -> None:
    assert client.search_for_studies(search_filters={"PatientID": "nobody at all"}) == []


def test_series_and_instances_are_found_below_their_study(judged: Judged, client: DICOMwebClient) -> None:
    for study in judged.studies:
        assert values(client.search_for_series(study.uid), SERIES) == sorted(study.series)
        wanted = sorted(file.uid for file in study.files)
        assert values(client.search_for_instances(study.uid), INSTANCE) == wanted
        for uid, files in study.series.items():
            rows = client.search_for_instances(study.uid, uid)
            assert values(rows, INSTANCE) == sorted(file.uid for file in files)


def test_series_and_instances_are_found_over_all_studies(judged: Judged, federation: DICOMwebClient) -> None:
    study = judged.studies[0]
    rows = federation.search_for_series(search_filters={"StudyInstanceUID": study.uid})
    assert values(rows, SERIES) == sorted(study.series)
    rows = federation.search_for_instances(search_filters={"SOPInstanceUID": study.files[0].uid})
    assert values(rows, INSTANCE) == [study.files[0].uid]


def test_studies_and_series_come_back_as_their_files(judged: Judged, client: DICOMwebClient) -> None:
    for study in judged.few:
        are_the_files(client.retrieve_study(study.uid), list(study.files))
        for uid, files in study.series.items():
            are_the_files(client.retrieve_series(study.uid, uid), list(files))
    uid, files = next(iter(study.series.items()))
    are_the_files(list(client.iter_study(study.uid)), list(study.files))
    are_the_files(list(client.iter_series(study.uid, uid)), list(files))


def test_every_instance_comes_back_as_its_file(judged: Judged, federation: DICOMwebClient) -> None:
    for file in judged.files:
        received = federation.retrieve_instance(file.study, file.series, file.uid)
        assert received == file.dataset
        assert received.file_meta.TransferSyntaxUID == file.transfer_syntax


def test_metadata_describes_each_instance_at_every_level(judged: Judged, client: DICOMwebClient) -> None:
    for study in judged.few:
        whole = client.retrieve_study_metadata(study.uid)
        assert values(whole, INSTANCE) == sorted(file.uid for file in study.files)
        for uid, files in study.series.items():
            below = client.retrieve_series_metadata(study.uid, uid)
            assert values(below, INSTANCE) == sorted(file.uid for file in files)
            one = client.retrieve_instance_metadata(study.uid, uid, files[0].uid)
            one = one[0] if isinstance(one, list) else one
            assert one == next(each for each in whole if each[INSTANCE]["Value"] == [files[0].uid])
            original = files[0].dataset
            assert one["00280010"]["Value"] == [original.Rows] if "Rows" in original else "00280010" not in one


def frames_of(file: HeldFile) -> list[bytes]:
    original = file.dataset
    count = int(original.get("NumberOfFrames") or 1)
    if UID(file.transfer_syntax).is_encapsulated:
        return list(generate_frames(original.PixelData, number_of_frames=count))
    size = original.Rows * original.Columns * original.SamplesPerPixel * original.BitsAllocated // 8
    return [original.PixelData[start : start + size] for start in range(0, count * size, size)]


def with_pixels(judged: Judged, client: DICOMwebClient) -> list[HeldFile]:
    """One file of each study that has pixels of little-endian or encapsulated samples.

    dcmqrscp sends no compressed syntax but the one it was started with, so that it cannot send those at all."""
    firsts = [next((file for file in study.files if "PixelData" in file.dataset), None) for study in judged.studies]
    left_out = [ExplicitVRBigEndian]
    if "/qr/" in str(client.base_url):
        left_out += [file.transfer_syntax for file in firsts if file and UID(file.transfer_syntax).is_encapsulated]
    return [file for file in firsts if file and file.transfer_syntax not in left_out]


def test_frames_are_those_of_the_file(judged: Judged, client: DICOMwebClient) -> None:
    for file in with_pixels(judged, client):
        wanted = frames_of(file)
        numbers = list(range(1, len(wanted) + 1))
        uids = (file.study, file.series, file.uid)
        assert client.retrieve_instance_frames(*uids, numbers) == wanted, file.path
        assert list(client.iter_instance_frames(*uids, numbers[::-1])) == wanted[::-1]


def test_bulk_data_is_where_the_metadata_says(judged: Judged, client: DICOMwebClient) -> None:
    for file in with_pixels(judged, client):
        if UID(file.transfer_syntax).is_encapsulated:
            continue  # the value of an encapsulated attribute is its frames
        one = client.retrieve_instance_metadata(file.study, file.series, file.uid)
        one = one[0] if isinstance(one, list) else one
        address = one["7FE00010"]["BulkDataURI"]
        wanted = file.dataset.PixelData
        assert client.retrieve_bulkdata(address) == [wanted]
        assert list(client.iter_bulkdata(address)) == [wanted]


def image_of(rendered: bytes) -> Image.Image:
    image = Image.open(BytesIO(rendered))
    image.load()
    return image


def test_an_instance_is_rendered_as_an_image_of_its_size(judged: Judged, client: DICOMwebClient) -> None:
    for file in with_pixels(judged, client)[:5]:
        uids, original = (file.study, file.series, file.uid), file.dataset
        for media_type, kind in (("image/png", "PNG"), ("image/jpeg", "JPEG")):
            rendered = client.retrieve_instance_frames_rendered(*uids, [1], media_types=(media_type,))
            image = image_of(rendered)
            assert (image.format, image.size) == (kind, (original.Columns, original.Rows)), file.path
            if int(original.get("NumberOfFrames") or 1) == 1:
                assert client.retrieve_instance_rendered(*uids, media_types=(media_type,)) == rendered
        small = client.retrieve_instance_frames_rendered(
            *uids, [1], media_types=("image/png",), params={"viewport": "16,16"}
        )
        assert max(image_of(small).size) == 16


def test_a_multi_frame_moves_as_a_gif_and_two_of_its_frames_come_as_parts(
    judged: Judged, federation: DICOMwebClient
) -> None:
    found = (file for file in judged.files if 1 < int(file.dataset.get("NumberOfFrames") or 1) < 60)
    file = next(file for file in found if "PixelData" in file.dataset)
    uids, count = (file.study, file.series, file.uid), int(file.dataset.NumberOfFrames)
    moving = image_of(federation.retrieve_instance_rendered(*uids, media_types=("image/gif",)))
    assert (moving.format, moving.n_frames) == ("GIF", count)  # type: ignore[attr-defined]
    together = federation.retrieve_instance_frames_rendered(*uids, [1, 2], media_types=("image/png",))
    assert together.count(b"\x89PNG") == 2


def test_every_image_of_a_series_is_rendered(judged: Judged, client: DICOMwebClient) -> None:
    file = with_pixels(judged, client)[0]
    rendered = client.retrieve_series_rendered(file.study, file.series, media_types=("image/png",))
    (study,) = (study for study in judged.studies if study.uid == file.study)
    frames = [int(one.dataset.get("NumberOfFrames") or 1) for one in study.series[file.series]]
    assert rendered.count(b"\x89PNG") == sum(frames)


def test_instances_that_are_stored_come_back(tmp_path: Path) -> None:
    """At a gateway of its own: the peers of the others keep the shelf as it is."""
    made = [sending.instance("1.2.61", SeriesInstanceUID="1.2.61.1") for _ in range(3)]
    with Gateway([files_node("archive", tmp_path, store=True)]) as gateway:
        client = DICOMwebClient(gateway.dicomweb)
        told = client.store_instances(made)
        stored = {item.ReferencedSOPInstanceUID: item.RetrieveURL for item in told.ReferencedSOPSequence}
        assert list(stored) == sending.uids(made)
        assert stored[made[0].SOPInstanceUID].endswith(
            f"/studies/1.2.61/series/1.2.61.1/instances/{made[0].SOPInstanceUID}"
        )
        received = {one.SOPInstanceUID: one for one in client.retrieve_study("1.2.61")}
        assert all(received[one.SOPInstanceUID] == one for one in made)
        told = client.store_instances([made[0], sending.instance("1.2.62")], study_instance_uid="1.2.61")
        assert [item.FailureReason for item in told.FailedSOPSequence] == [0xA900]


def test_what_is_not_there_is_an_error_to_the_client(judged: Judged, federation: DICOMwebClient) -> None:
    study = judged.studies[0]
    for ask in (
        lambda: federation.retrieve_study("1.2.3.4"),
        lambda: federation.retrieve_instance(study.uid, "1.2.3", "1.2.3.4"),
        lambda: federation.retrieve_series_metadata(study.uid, "1.2.3"),
    ):
        with pytest.raises(Exception, match="404"):
            ask()
