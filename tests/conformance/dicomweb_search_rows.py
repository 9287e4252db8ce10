"""The rows of PS3.18 about the services as a whole (W) and QIDO-RS (Q), each shown by a request."""

from __future__ import annotations

import tempfile
from pathlib import Path

from conformance_table import INSTANCE, INSTANCE_PATH, SERIES, SERIES_PATH, STUDY_PATH, XML, shows, status
from small_hospital import CT, LOPEZ, MULLER, YAMADA, Small, small

from gateway.model.vocabulary import RETURNED, Level, tag
from tests.specimens import uid


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


@shows("W8")
def wado_uri(hospital: Small) -> None:
    asked = f"wado?requestType=WADO&studyUID={uid(MULLER)}&seriesUID={SERIES}&objectUID={INSTANCE}"
    assert hospital.get(asked, Accept="*/*").headers["content-type"] == "image/jpeg"
    assert hospital.get(f"{asked}&contentType=application/dicom", Accept="*/*").content[128:132] == b"DICM"
