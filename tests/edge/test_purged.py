"""After a purge, over HTTP: what is shown of a study is what its node says now."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.simulators._directory import Directory
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.running import Gateway
from tests.specimens import specimen, uid


@pytest.mark.parametrize("what", ["study", "patient"])
@pytest.mark.parametrize("adapter", ["dicomweb", "dimse", "fhir"])
def test_a_purge_has_series_and_instances_asked_anew(tmp_path: Path, adapter: str, what: str) -> None:
    specimen(tmp_path, "P", "one")
    if adapter == "dicomweb":
        sim = DicomwebSimulator(tmp_path)
    elif adapter == "dimse":
        sim = DimseSimulator(tmp_path, ae_title="SIM")
    else:
        sim = FhirSimulator(tmp_path, "R4", FhirOptions(patient_system="I"))
    with sim:
        if adapter == "dimse":
            connection = {"host": "127.0.0.1", "port": sim.port, "called_ae_title": "SIM", "calling_ae_title": "GW"}
        elif adapter == "fhir":
            connection = {"url": sim.url, "version": "R4"}
        else:
            connection = {"url": sim.url}
        node = {"id": "n", "name": "n", "adapter": adapter, "patient_id_issuer": "I", "connection": connection}
        if adapter == "fhir":
            node["mapping"] = "fhir-r4"
        with Gateway([node], find_ttl=60, kept_bytes=0) as gateway:
            result = {}
            for path in (
                f"/dicom-web/studies/{uid('one')}/series",
                f"/dicom-web/studies/{uid('one')}/instances",
                "/dicom-web/series?Modality=CT&PatientID=P",
                f"/fhir/ImagingStudy/{uid('one')}",
            ):
                first = gateway.get(path)
                assert first.status_code == 200, first.text
                time.sleep(0.3)
                cache = gateway.app.state.estate.pipeline.federation.answers._cache
                purge = cache.purge_study(uid("one")) if what == "study" else cache.purge_patient("I", "P")
                asyncio.run_coroutine_threadsafe(purge, gateway.loop).result(30)
                time.sleep(1.1)
                again = gateway.get(path)
                result[path] = (first.headers.get("age"), again.headers.get("age"))
            assert all(age == "0" for _, age in result.values()), result


@pytest.mark.parametrize("what", ["study", "patient"])
@pytest.mark.parametrize("adapter", ["dicomweb", "dimse"])
def test_after_a_purge_a_study_is_shown_as_it_is_now(tmp_path: Path, adapter: str, what: str) -> None:
    specimen(tmp_path, "P", "one", "1", SeriesDescription="before")
    sim = DicomwebSimulator(tmp_path) if adapter == "dicomweb" else DimseSimulator(tmp_path, ae_title="SIM")
    with sim:
        connection = {"host": "127.0.0.1", "port": sim.port, "called_ae_title": "SIM", "calling_ae_title": "GW"}
        connection = {"url": sim.url} if adapter == "dicomweb" else connection
        node = {"id": "n", "name": "n", "adapter": adapter, "patient_id_issuer": "I", "connection": connection}
        with Gateway([node], find_ttl=60) as gateway:
            path = f"/fhir/ImagingStudy/{uid('one')}"
            assert gateway.get(path).json()["numberOfSeries"] == 1
            time.sleep(0.3)
            specimen(tmp_path, "P", "one", "1", SeriesDescription="after")
            specimen(tmp_path, "P", "one", "2", SeriesDescription="after")
            if adapter == "dimse":
                sim.archive.scan()
            else:
                sim.directory = Directory(tmp_path)
            cache = gateway.app.state.estate.pipeline.federation.answers._cache
            purge = cache.purge_study(uid("one")) if what == "study" else cache.purge_patient("I", "P")
            asyncio.run_coroutine_threadsafe(purge, gateway.loop).result(30)
            time.sleep(0.3)
            again = gateway.get(path)
            study = again.json()
            shown = [one.get("description") for one in study["series"]]
            assert (study["numberOfSeries"], shown) == (2, ["after", "after"])


def test_a_purge_of_a_study_drops_the_reports_that_are_about_it(tmp_path: Path) -> None:
    """`Cache.purge_study`: "all that mentions a study, or was asked for it and found nothing"."""
    specimen(tmp_path, "12345", "ct", AccessionNumber="A1")
    options = FhirOptions(patient_system="urn:north", reports=True)
    with FhirSimulator(tmp_path, "R4", options) as north:
        node = {
            "id": "north", "name": "north", "adapter": "fhir", "mapping": "fhir-r4", "patient_id_issuer": "urn:north",
            "connection": {"url": north.url, "version": "R4"},
        }  # fmt: skip
        left = {}
        for kept_bytes in (0, 2**24):
            with Gateway([node], find_ttl=60, kept_bytes=kept_bytes) as gateway:
                for path in (
                    f"/fhir/DiagnosticReport?study=ImagingStudy/{uid('ct')}",
                    "/fhir/DiagnosticReport?patient.identifier=urn:north|12345",
                    "/fhir/DiagnosticReport?study=ImagingStudy/1.2.3",
                ):
                    first = gateway.get(path)
                    assert first.status_code == 200, first.text
                    time.sleep(0.3)
                    answers = gateway.app.state.estate.pipeline.federation.answers  # type: ignore[union-attr]
                    study = uid("ct") if "1.2.3" not in path else "1.2.3"
                    asyncio.run_coroutine_threadsafe(answers._cache.purge_study(study), gateway.loop).result(30)
                    before = dict(north.operations)
                    again = gateway.get(path)
                    asked = {k: v - before.get(k, 0) for k, v in north.operations.items() if v != before.get(k, 0)}
                    left[kept_bytes, path] = (len(first.json().get("entry", [])), again.headers.get("age"), asked)
        for (_, path), (_, _, asked) in left.items():
            # Of a study that it does not know the simulator's reports are not asked for, the study is.
            wanted = "search_ImagingStudy" if "1.2.3" in path else "search_DiagnosticReport"
            assert wanted in asked, left
