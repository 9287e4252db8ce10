"""The records that national projects publish are read by the shipped mappings; they lie outside the project."""

import json
from pathlib import Path

import pytest

from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.dataset import text, texts
from gateway.model.moments import series_started
from gateway.model.vocabulary import Level, tag
from gateway.wire.fhirjson import FhirRecord

MII = Path(__file__).parents[3] / "shared" / "data" / "mii-bildgebung"


@pytest.fixture(params=["cr", "ct", "mr"])
def published(request) -> dict:
    """An example study of the German profile, with UIDs put where the published text has words in their place."""
    file = MII / f"ImagingStudy-mii-exa-bildgebung-bildgebungsstudie-{request.param}.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    study = json.loads(file.read_text("utf-8"))
    study["identifier"] = [{"system": "urn:dicom:uid", "value": "urn:oid:2.25.1"}]
    for number, series in enumerate(study["series"]):
        series["uid"] = f"2.25.1.{number}"
        for place, instance in enumerate(series.get("instance", [])):
            instance["uid"] = f"2.25.1.{number}.{place}"
    return study


def test_the_german_examples_are_read_at_every_level(published: dict):
    reader = Reader(load_all()["mii-bildgebung"], "n", "KLINIK")
    record = FhirRecord(published)
    study = reader.row(record, Level.STUDY)
    series = reader.rows(record, Level.SERIES)
    instances = reader.rows(record, Level.IMAGE)
    assert study.patient.id == published["subject"]["identifier"]["value"]
    assert texts(study.attributes, tag("ModalitiesInStudy")) == [one["code"] for one in published["modality"]]
    assert [text(row.attributes, tag("SeriesDescription")) for row in series] == [
        one.get("description", "") for one in published["series"]
    ]
    assert [series_started(row.attributes, reader.time_zone) for row in series] == [
        one.get("started") for one in published["series"]
    ]
    assert len(instances) == sum(len(one.get("instance", [])) for one in published["series"])
    assert all(text(row.attributes, tag("SOPClassUID")).startswith("1.2.840.10008.") for row in instances)


def test_the_german_body_sites_and_sides_are_dicom_terms(published: dict):
    rows = Reader(load_all()["mii-bildgebung"], "n", "KLINIK").rows(FhirRecord(published), Level.SERIES)
    for row, given in zip(rows, published["series"], strict=True):
        assert text(row.attributes, tag("BodyPartExamined")) or "bodySite" not in given
        assert text(row.attributes, tag("Laterality")) in ("L", "R", "B", "U") or "laterality" not in given
