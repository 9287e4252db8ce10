"""One ImagingStudy of 3 series of 200 instances as JSON: as the edge writes it, and through the models of fhir.resources."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import orjson

from gateway.edge.fhir.identifiers import Issuers
from gateway.edge.fhir.imagingstudy import Renderer
from gateway.model.answer import Found
from gateway.model.dataset import Dataset, attribute, text
from gateway.model.study import row_of
from gateway.model.vocabulary import Level, tag, uid_name
from gateway.outgoing import StudyTree
from gateway.store.patients import PatientIds
from tests.bench.measuring import Bar, Bench, Side, say

SERIES, INSTANCES = 3, 200
STUDY, CT = "1.2.826.0.1.3680043.8.498.1", "1.2.840.10008.5.1.4.1.1.2"
PACKAGES = {"R4": "fhir.resources.R4B", "R5": "fhir.resources"}
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"
SECRET = b"a secret for the patients' ids"


def run(bench: Bench) -> None:
    say("rendering an ImagingStudy")
    held = tree()
    for version in PACKAGES:
        with bench.attempting(f"rendering {version}"):
            ours = Side("plain dicts", partial(_rate, partial(plain, version, held)))
            theirs = Side("fhir.resources", partial(_rate, partial(modelled, version, held)), bar=Bar("at least", 20))
            bench.run(f"ImagingStudy of {SERIES} x {INSTANCES}, {version}", "bodies/s", [ours], [theirs])


def _rate(make: Callable[[], bytes]) -> float:
    made, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < 1.0:
        make()
        made += 1
    return made / spent


def _dataset(**values: Any) -> Dataset:
    return {tag(name): attribute(tag(name), [value]) for name, value in values.items()}


def _found(level: Level, attributes: Dataset) -> Found:
    row = row_of(level, "one", attributes, "HOSPITAL", study=STUDY, series=text(attributes, tag("SeriesInstanceUID")))
    return Found(level, row.patient, row.study, row.series, row.instance, row.attributes, (row,))


def tree() -> StudyTree:
    """The study as the pipeline gives it."""
    study = _found(Level.STUDY, _dataset(
        StudyInstanceUID=STUDY, PatientID="12345", StudyDate="20250101", StudyTime="101500", TimezoneOffsetFromUTC="+0100",
        AccessionNumber="A1", ModalitiesInStudy="CT", StudyDescription="Chest", ReferringPhysicianName="Roe^Jane",
    ))  # fmt: skip
    series = []
    for number in range(1, SERIES + 1):
        uid = f"{STUDY}.{number}"
        one = _dataset(SeriesInstanceUID=uid, SeriesNumber=number, Modality="CT", SeriesDescription=f"Axial {number}", BodyPartExamined="CHEST", Laterality="L")  # fmt: skip
        below = [
            _dataset(SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.{each}", SOPClassUID=CT, InstanceNumber=each)
            for each in range(1, INSTANCES + 1)
        ]
        series.append((_found(Level.SERIES, one), tuple(_found(Level.IMAGE, each) for each in below)))
    return StudyTree(study, tuple(series))


def renderer(version: str) -> Renderer:
    return Renderer(version == "R5", "http://gateway", Issuers({}), PatientIds(SECRET), {})


def plain(version: str, held: StudyTree) -> bytes:
    """What leaves the edge."""
    return orjson.dumps(renderer(version).tree(held))


def modelled(version: str, held: StudyTree) -> bytes:
    """The same study through the published models: each element an object that is validated, then dumped as JSON."""
    make = _Makers(version)
    study = held.study
    series = [_series(make, one, instances) for one, instances in held.series]
    patient = make.Reference(
        reference=f"Patient/{PatientIds(SECRET).id_of(study.patient)}",
        type="Patient",
        identifier=make.Identifier(system="urn:imaging-gateway:issuer:HOSPITAL", value="12345"),
    )
    accession = make.CodeableConcept(
        coding=[make.Coding(system="http://terminology.hl7.org/CodeSystem/v2-0203", code="ACSN")]
    )
    resource = make.ImagingStudy(
        id=STUDY,
        identifier=[
            make.Identifier(system="urn:dicom:uid", value=f"urn:oid:{STUDY}"),
            make.Identifier(type=accession, value="A1"),
        ],
        status="available",
        modality=[make.coded(DCM, "CT")],
        subject=patient,
        started="2025-01-01T10:15:00+01:00",
        basedOn=[make.Reference(type="ServiceRequest", identifier=make.Identifier(type=accession, value="A1"))],
        referrer=make.Reference(display="Jane Roe"),
        endpoint=[make.Reference(reference="Endpoint/one")],
        numberOfSeries=SERIES,
        numberOfInstances=SERIES * INSTANCES,
        description="Chest",
        series=series,
    )
    return bytes(resource.model_dump_json().encode())


class _Makers:
    """The classes of one version, by name."""

    def __init__(self, version: str) -> None:
        self.is_r5 = version == "R5"
        self._find = import_module(PACKAGES[version]).get_fhir_model_class

    def __getattr__(self, name: str) -> Any:
        found = self._find(name)
        setattr(self, name, found)
        return found

    def coded(self, system: str, code: str) -> Any:
        coding = self.Coding(system=system, code=code)
        return self.CodeableConcept(coding=[coding]) if self.is_r5 else coding


def _series(make: _Makers, series: Found, instances: tuple[Found, ...]) -> Any:
    given = series.attributes
    chest = make.Coding(system=SCT, code="51185008", display="CHEST")
    concept = make.CodeableConcept(coding=[chest], text="CHEST") if make.is_r5 else None
    return make.ImagingStudySeries(
        uid=series.series,
        number=int(text(given, tag("SeriesNumber"))),
        modality=make.coded(DCM, "CT"),
        description=text(given, tag("SeriesDescription")),
        numberOfInstances=len(instances),
        bodySite=make.CodeableReference(concept=concept) if make.is_r5 else chest,
        laterality=make.coded(SCT, "7771000"),
        instance=[
            make.ImagingStudySeriesInstance(
                uid=each.instance,
                sopClass=make.Coding(system="urn:ietf:rfc:3986", code=f"urn:oid:{CT}", display=uid_name(CT)),
                number=int(text(each.attributes, tag("InstanceNumber"))),
            )
            for each in instances
        ],
    )
