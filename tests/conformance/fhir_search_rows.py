"""The rows of the search parameters of ImagingStudy, R4 and R5 (P), each shown by what it finds and what it leaves out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from conformance_table import shows
from fhir_rows import OF_FILES, ROOTS, found, matches, read, refused
from small_hospital import ACCESSION_ISSUER, CT, LOPEZ, MR, MULLER, YAMADA, Small

from tests.running import Gateway, files_node
from tests.specimens import SECONDARY_CAPTURE, specimen, uid

EVERYBODY = {MULLER, LOPEZ, YAMADA}
DCM, SCT = "http://dicom.nema.org/resources/ontology/DCM", "http://snomed.info/sct"
ACSN = "http://terminology.hl7.org/CodeSystem/v2-0203|ACSN"


def finds(hospital: Small, **by_query: set[str]) -> None:
    for query, wanted in by_query.items():
        assert found(hospital, query) == wanted, query


def misses(hospital: Small, parameter: str, *present: str) -> None:
    """`:missing` of a parameter that only these studies have."""
    finds(hospital, **{f"{parameter}:missing=true": EVERYBODY - {*present}, f"{parameter}:missing=false": {*present}})


@shows("P1")
def identifier(hospital: Small) -> None:
    finds(hospital, **{
        f"identifier=urn:dicom:uid|urn:oid:{uid(MULLER)}": {MULLER},
        f"identifier=urn:oid:{uid(MULLER)}": {MULLER},
        "identifier=ACC-1,ACC-2": {MULLER, LOPEZ},
        f"identifier=urn:oid:{ACCESSION_ISSUER}|ACC-1": {MULLER},
        "identifier=urn:oid:1.2.3|ACC-1": set(),
        "identifier:not=ACC-1": {LOPEZ, YAMADA},
        f"identifier:of-type={ACSN}|ACC-2": {LOPEZ},
    })  # fmt: skip
    misses(hospital, "identifier", *EVERYBODY)


@shows("P2")
def patient(hospital: Small) -> None:
    (one,) = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1"))
    reference = one["subject"]["reference"]
    for name in ("patient", "subject", "patient:Patient"):
        finds(hospital, **{f"{name}={reference}": {MULLER}, f"{name}={reference.removeprefix('Patient/')}": {MULLER}})
    misses(hospital, "patient", *EVERYBODY)


@shows("P3")
def chains(hospital: Small) -> None:
    (one,) = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1"))
    system = one["subject"]["identifier"]["system"]
    finds(hospital, **{
        f"patient.identifier={system}|P1": {MULLER},
        f"patient:identifier={system}|P1": {MULLER},
        "subject.identifier=P2": {LOPEZ},
        "patient.name=mull": {MULLER},
        "patient.name:contains=opez": {LOPEZ},
        "patient.family:exact=Yamada": {YAMADA},
        "subject:Patient.given=maria": {LOPEZ},
        "patient.birthdate=1960-02-29": {MULLER},
        "patient.birthdate=lt1960": set(),
        "patient.gender=male": {MULLER},
    })  # fmt: skip


@shows("P4a")
def started(hospital: Small) -> None:
    finds(hospital, **{
        "started=2026-03-01": {MULLER},
        "started=2026-03": {MULLER, LOPEZ},
        "started=eq2026-03-02T00:30:00%2B01:00": {LOPEZ},
        "started=ne2026-03-01": {LOPEZ, YAMADA},
        "started=gt2026-03-02": {YAMADA},
        "started=lt2026-03-02": {MULLER},
        "started=ge2026-03-02&started=le2026-03-31": {LOPEZ},
        "started=sa2026-03-31": {YAMADA},
        "started=eb2026-03-02": {MULLER},
    })  # fmt: skip
    assert MULLER in found(hospital, "started=ap2026-03-01")
    misses(hospital, "started", *EVERYBODY)


@shows("P5")
def modality(hospital: Small) -> None:
    finds(hospital, **{
        "modality=MR": {LOPEZ},
        f"modality={DCM}|CT": {MULLER, LOPEZ},
        "modality=MR,OT": {LOPEZ, YAMADA},
        "modality=CT&modality=MR": {LOPEZ},
        "modality:not=CT": {YAMADA},
    })  # fmt: skip
    misses(hospital, "modality", *EVERYBODY)


@shows("P6")
def body_site(hospital: Small) -> None:
    for name in ("bodysite", "body-site"):
        finds(
            hospital,
            **{f"{name}={SCT}|51185008": {MULLER}, f"{name}=CHEST": {MULLER}, f"{name}:not=CHEST": {LOPEZ, YAMADA}},
        )
        misses(hospital, name, MULLER)


@shows("P7")
def status(hospital: Small) -> None:
    finds(hospital, **{"status=available": EVERYBODY, "status=cancelled": set(), "status:not=available": set()})
    misses(hospital, "status", *EVERYBODY)


@shows("P8")
def series(hospital: Small) -> None:
    finds(hospital, **{
        f"series=urn:oid:{uid(LOPEZ, 'mr')}": {LOPEZ},
        f"series={uid(MULLER, '1')},{uid(LOPEZ, 'ct')}": {MULLER, LOPEZ},
        f"series:not={uid(MULLER, '1')}": {LOPEZ, YAMADA},
    })  # fmt: skip
    misses(hospital, "series", *EVERYBODY)


@shows("P9")
def instance(hospital: Small) -> None:
    one = uid(MULLER, "1", 2)
    finds(hospital, **{f"instance=urn:oid:{one}": {MULLER}, f"instance:not={one}": {LOPEZ, YAMADA}})
    misses(hospital, "instance", *EVERYBODY)


@shows("P10")
def sop_class(hospital: Small) -> None:
    finds(hospital, **{
        f"dicom-class=urn:oid:{MR}": {LOPEZ},
        f"dicom-class=urn:ietf:rfc:3986|urn:oid:{SECONDARY_CAPTURE}": {YAMADA},
        f"dicom-class:not={CT}": {YAMADA},
    })  # fmt: skip
    misses(hospital, "dicom-class", *EVERYBODY)


@shows("P11")
def endpoint(hospital: Small) -> None:
    finds(hospital, **{"endpoint=Endpoint/files": EVERYBODY, "endpoint=Endpoint/nowhere": set()})
    misses(hospital, "endpoint", *EVERYBODY)


@shows("P12a")
def order(hospital: Small) -> None:
    for name in ("basedon", "based-on"):
        finds(hospital, **{
            f"{name}:identifier=ACC-1": {MULLER},
            f"{name}.identifier=urn:oid:{ACCESSION_ISSUER}|ACC-1": {MULLER},
        })  # fmt: skip
        misses(hospital, name, MULLER, LOPEZ)


@shows("P13a")
def referrer(hospital: Small) -> None:
    misses(hospital, "referrer", MULLER)


@shows("P19")
def logical_id(hospital: Small) -> None:
    (one,) = matches(read(hospital, f"{OF_FILES}&identifier=ACC-1"))
    finds(hospital, **{f"_id={one['id']}": {MULLER}, "_id=nothing": set()})


@shows("P20")
def together(hospital: Small) -> None:
    finds(hospital, **{
        "modality=CT&started=2026-03-01&patient.name=m&bodysite=CHEST": {MULLER},
        "modality=CT&patient.name=yamada": set(),
        "identifier=ACC%5C,1,ACC-2": {LOPEZ},
    })  # fmt: skip
    for bad in ("started=yesterday", "status=done", "modality=http://other|CT", "identifier:missing=perhaps"):
        assert bad.partition("=")[0].partition(":")[0] in refused(hospital, f"{OF_FILES}&{bad}"), bad


@shows("P21")
def a_number_of_two_people(hospital: Small) -> None:
    assert found(hospital, "patient.identifier=P3") == {YAMADA}
    with tempfile.TemporaryDirectory() as directory:
        nodes = []
        for issuer in ("urn:one", "urn:other"):
            home = Path(directory) / issuer[4:]
            specimen(home, "12345", issuer)
            nodes.append(files_node(issuer[4:], home, patient_id_issuer=issuer))
        with Gateway(nodes) as gateway:
            for root in ROOTS:
                asked = f"{root}/ImagingStudy?patient.identifier="
                assert gateway.get(f"{asked}12345").status_code == 409
                (one,) = matches(gateway.get(f"{asked}urn:one|12345").json())
                assert one["identifier"][0]["value"] == f"urn:oid:{uid('urn:one')}"
