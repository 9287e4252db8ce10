"""Judge: dicomtrolley, which radiology departments fetch studies with. Its QIDO-RS searcher, its WADO-RS downloaders."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pydicom
import pytest
import requests
from dicomtrolley.core import InstanceReference, Query, QueryLevels
from dicomtrolley.exceptions import DICOMTrolleyError
from dicomtrolley.qido_rs import HierarchicalQuery, QidoRS, RelationalQuery
from dicomtrolley.trolley import Trolley
from dicomtrolley.wado_rs import WadoRS, WadoRSMetaData
from dicomtrolley.wado_uri import WadoURI

from tests.judges.conftest import Judged, operations_of

pytestmark = pytest.mark.interop

USED = {
    Trolley: {"find_studies", "find_study", "download", "fetch_all_datasets"},
    QidoRS: {"find_studies", "find_study", "find_study_by_id"},
    WadoRS: {"datasets"},
    WadoRSMetaData: {"datasets"},
    WadoURI: {"datasets", "datasets_async"},
}
NOT_USED = {
    "get_dataset": "of single instances, a step of datasets",
    "datasets_single_thread": "a step of datasets",
    "to_wado_parameters": "asks nobody",
    "parse_wado_response": "asks nobody",
    "obtain_references": "a step of fetch_all_datasets",
    "ensure_query_type": "asks nobody",
    "check_for_response_errors": "asks nobody",
    "parse_qido_response": "asks nobody",
    "download_iterator": "a step of datasets",
    "parse": "a step of datasets",
    "wado_rs_instance_uri": "asks nobody",
    "bulk_data_reader": "leaves bulk data where it is",
}


@pytest.mark.parametrize("client", USED, ids=lambda client: client.__name__)
def test_every_operation_of_the_client_is_used_or_left_out_with_a_reason(client: type) -> None:
    assert operations_of(client) - USED[client] - NOT_USED.keys() == set()
    assert operations_of(client) >= USED[client]


@pytest.fixture
def trolley(root: str) -> Trolley:
    session = requests.Session()
    return Trolley(downloader=WadoRS(session, root), searcher=QidoRS(session, root))


def test_studies_are_found_with_their_series_and_instances(judged: Judged, trolley: Trolley) -> None:
    # Of a patient without an id nobody can tell whether two nodes mean the same: two results, which this client does not take.
    days = {"min_study_date": datetime(1990, 1, 1), "max_study_date": datetime(2090, 1, 1)}
    found = trolley.find_studies(Query(PatientID="?*", **days))
    dated = [study.uid for study in judged.studies if study.text("StudyDate")]
    assert judged.named([one.uid for one in found]) == sorted(dated)
    for study in judged.few:
        query = HierarchicalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.SERIES)
        one = trolley.find_study(query)
        assert sorted(series.uid for series in one.series) == sorted(study.series)
        query = RelationalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.INSTANCE)
        one = trolley.find_study(query)
        assert sorted(each.uid for each in one.all_instances()) == sorted(file.uid for file in study.files)


def test_a_query_by_what_describes_a_study_finds_it(judged: Judged, trolley: Trolley) -> None:
    for study in judged.few:
        name = study.name.split("=")[0][:3] + "*"
        query = Query(PatientID=study.text("PatientID"), PatientName=name, include_fields=["StudyDescription"])
        assert study.uid in [one.uid for one in trolley.find_studies(query)]
        assert trolley.searcher.find_study_by_id(study.uid).uid == study.uid
        assert trolley.searcher.find_study(Query(StudyInstanceUID=study.uid)).uid == study.uid


def test_studies_are_downloaded_as_their_files(judged: Judged, trolley: Trolley, tmp_path: Path) -> None:
    for study in judged.few:
        query = HierarchicalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.SERIES)
        found = trolley.find_studies(query)
        received = list(trolley.fetch_all_datasets(found))
        assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(file.uid for file in study.files)
        trolley.download(found, tmp_path / study.uid)
        written = [pydicom.dcmread(path) for path in (tmp_path / study.uid).rglob("*") if path.is_file()]
        held = {file.uid: file.dataset for file in study.files}
        assert sorted(str(one.SOPInstanceUID) for one in written) == sorted(held)
        assert all(one.PatientID == held[str(one.SOPInstanceUID)].PatientID for one in written)


def test_a_study_is_downloaded_in_one_request_too(judged: Judged, root: str) -> None:
    study = judged.studies[0]
    downloader = WadoRS(requests.Session(), root, request_per_series=False)
    searcher = QidoRS(requests.Session(), root)
    received = list(downloader.datasets([searcher.find_study(Query(StudyInstanceUID=study.uid))]))
    assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(file.uid for file in study.files)
    query = RelationalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.INSTANCE)
    one = searcher.find_study(query).all_instances()[0]
    assert [each.SOPInstanceUID for each in downloader.datasets(one)] == [one.uid]


def test_metadata_is_downloaded_without_pixels(judged: Judged, root: str) -> None:
    study = judged.studies[0]
    query = RelationalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.INSTANCE)
    found = QidoRS(requests.Session(), root).find_study(query)
    downloader = WadoRSMetaData(requests.Session(), root)
    received = list(downloader.datasets([found]))
    assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(file.uid for file in study.files)
    assert all(one.PatientID == study.text("PatientID") for one in received)
    one = found.all_instances()[0]
    assert [each.SOPInstanceUID for each in downloader.datasets(one)] == [one.uid]


@pytest.mark.parametrize("use_async", [False, True], ids=["one by one", "at once"])
def test_instances_are_downloaded_by_wado_uri(judged: Judged, root: str, use_async: bool) -> None:
    study = judged.studies[0]
    query = RelationalQuery(StudyInstanceUID=study.uid, query_level=QueryLevels.INSTANCE)
    found = QidoRS(requests.Session(), root).find_study(query).all_instances()
    references = [
        InstanceReference(study_uid=study.uid, series_uid=one.parent.uid, instance_uid=one.uid) for one in found
    ]
    downloader = WadoURI(requests.Session(), f"{root}/wado", use_async=use_async)
    received = list(downloader.datasets(references))
    held = {file.uid: file.dataset for file in study.files}
    assert sorted(str(one.SOPInstanceUID) for one in received) == sorted(held)
    assert all(one.PatientID == held[str(one.SOPInstanceUID)].PatientID for one in received)
    with pytest.raises(DICOMTrolleyError, match="404"):
        list(downloader.datasets([InstanceReference(study_uid=study.uid, series_uid="1.2", instance_uid="1.2.3")]))
