"""DiagnosticReport and ServiceRequest over FHIR hospitals of three versions: whose they are decides, and what is left out is named."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fhirkit
import pytest
from fhir.resources import get_fhir_model_class as r5_class
from fhir_rules import faults
from pyfhircheck import Validator
from pyfhircheck.config import ValidatorConfig

from gateway.simulators.fhir import FhirOptions, FhirSimulator
from gateway.wire import fhirxml
from tests import peers
from tests.running import Gateway, files_node
from tests.specimens import specimen, uid

Resource = dict[str, Any]
SYSTEMS = {"north": "urn:north", "south": "urn:south", "old": "urn:old"}
VERSIONS = {"north": "R4", "south": "R5", "old": "STU3"}
ROOTS = {"/fhir/r4": False, "/fhir/r5": True}
CODE = {"coding": [{"system": "http://loinc.org", "code": "18748-4"}]}
PDF = base64.b64encode(b"%PDF-1.4 small").decode()


def node(name: str, simulator: FhirSimulator, version: str) -> dict[str, Any]:
    mapping = {"R4": "fhir-r4", "R5": "fhir-r5", "STU3": "fhir-stu3"}[version]
    connection = {"url": simulator.url, "version": version}
    issuer = SYSTEMS.get(name, f"urn:{name}")
    more = {"mapping": mapping, "patient_id_issuer": issuer, "connection": connection, "connect_deadline": 2}
    return {"id": name, "name": name, "adapter": "fhir", **more}


def write(directory: Path, name: str) -> None:
    """Each hospital has a patient 12345 of its own and another one; one has an order for each study."""
    specimen(directory, "12345", f"{name}-ct", AccessionNumber="A1", StudyDescription=f"of {name}")
    specimen(directory, f"only-{name}", f"{name}-mr", AccessionNumber=f"A2-{name}")


@contextlib.contextmanager
def hospitals(root: Path, **nodes: dict[str, Any]) -> Iterator[tuple[Gateway, dict[str, FhirSimulator]]]:
    """Hospitals by name, each with the options of its server."""
    with contextlib.ExitStack() as stack:
        simulators, tables = {}, []
        for name, options in nodes.items():
            write(root / name, name)
            version = options.pop("version", VERSIONS.get(name, "R4"))
            own = {
                "patient_system": SYSTEMS.get(name, f"urn:{name}"),
                "service_requests": True,
                "time_zone": "Europe/Oslo",
            }
            simulator = FhirSimulator(root / name, version, FhirOptions(**{**own, **options}))
            simulators[name] = stack.enter_context(simulator)
            tables.append(node(name, simulator, version))
        files = root / "files"
        specimen(files, "12345", "files-ct", IssuerOfPatientID="urn:files")
        specimen(files, "lone", "files-mr", IssuerOfPatientID="urn:files")
        tables.append(files_node("files", files, patient_id_issuer="urn:files"))
        yield stack.enter_context(Gateway(tables)), simulators


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    options = {name: {"reports": True} for name in SYSTEMS}
    with hospitals(tmp_path_factory.mktemp("three"), **options) as (gateway, _):
        yield gateway


def found(bundle: Resource, mode: str = "match") -> list[Resource]:
    return [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == mode]


def diagnostics(bundle: Resource) -> str:
    return " ".join(issue["diagnostics"] for one in found(bundle, "outcome") for issue in one["issue"])


def searched(gateway: Gateway, path: str) -> Resource:
    answer = gateway.get(path)
    assert answer.status_code == 200, answer.text
    body: Resource = answer.json()
    return body


def report(name: str = "1", **more: Any) -> Resource:
    """A report in R4, its subject to be added."""
    return {"resourceType": "DiagnosticReport", "id": name, "status": "final", "code": CODE, **more}


def about(directory: Path, patient: str, system: str, version: str = "R4") -> Resource:
    """The reference to a patient of a hospital, as its server writes it."""
    simulator = FhirSimulator(directory, version, FhirOptions(patient_system=system))
    (one,) = {facts.patient.id for facts in simulator.facts if facts.patient.value == patient}
    return {"reference": f"Patient/{one}"}


def test_reports_of_a_patient_are_those_of_its_issuer(three: Gateway) -> None:
    for root, is_r5 in ROOTS.items():
        for name, system in SYSTEMS.items():
            bundle = searched(three, f"{root}/DiagnosticReport?patient.identifier={system}|12345")
            (one,) = found(bundle)
            assert not diagnostics(bundle)
            assert one["subject"]["identifier"] == {"system": system, "value": "12345"}
            assert one["conclusion"] == f"Nothing remarkable: of {name}."
            studies = one["study" if is_r5 else "imagingStudy"]
            assert [each["reference"] for each in studies] == [f"ImagingStudy/{uid(f'{name}-ct')}"]
            assert one["performer"] == [{"display": "Dr. Reader"}]
            assert "text" not in one
            assert one["meta"]["tag"][0]["code"] == "SUBSETTED"
            patient = searched(three, f"{root}/{one['subject']['reference']}")
            assert patient["identifier"][0] == {"system": system, "value": "12345"}
            assert found(searched(three, f"{root}/DiagnosticReport?subject={one['subject']['reference']}")) == [one]
            assert searched(three, f"{root}/DiagnosticReport/{one['id']}") == one


def test_a_bare_identifier_of_several_issuers_is_refused(three: Gateway) -> None:
    for kind in ("DiagnosticReport", "ServiceRequest"):
        for name in ("patient.identifier", "subject:identifier", "subject:Patient.identifier"):
            answer = three.get(f"/fhir/{kind}?{name}=12345")
            assert answer.status_code == 409, answer.text
            assert "urn:north" in answer.text
            assert "urn:files" in answer.text  # knows the patient by studies alone
    assert len(found(searched(three, "/fhir/DiagnosticReport?patient.identifier=only-north"))) == 1
    assert len(found(searched(three, "/fhir/DiagnosticReport?patient.identifier=12345&node=north"))) == 1


def test_a_hospital_that_knows_the_patient_by_studies_alone_bears_the_identifier_too(tmp_path: Path) -> None:
    with hospitals(tmp_path, north={"reports": True}) as (gateway, _):
        assert gateway.get("/fhir/DiagnosticReport?patient.identifier=12345").status_code == 409


def test_reports_are_found_by_study_accession_and_id(three: Gateway) -> None:
    for root in ROOTS:
        for name in SYSTEMS:
            of_study = found(searched(three, f"{root}/DiagnosticReport?study=ImagingStudy/{uid(f'{name}-mr')}"))
            assert [one["subject"]["identifier"]["value"] for one in of_study] == [f"only-{name}"]
            assert found(searched(three, f"{root}/DiagnosticReport?identifier=A2-{name}")) == of_study
            assert found(searched(three, f"{root}/DiagnosticReport?_id={of_study[0]['id']}")) == of_study
        # one accession number of three hospitals: three reports, each of its own patient
        same = found(searched(three, f"{root}/DiagnosticReport?identifier=A1"))
        assert {one["subject"]["identifier"]["system"] for one in same} == set(SYSTEMS.values())
        assert len({one["id"] for one in same}) == 3


FILTERS = [
    ("status=final", True), ("status=preliminary,final", True), ("status=preliminary", False),
    ("status=http://hl7.org/fhir/diagnostic-report-status|final", True),
    ("code=18748-4", True), ("code=http://loinc.org|18748-4", True), ("code=http://snomed.info/sct|18748-4", False),
    ("category=RAD", True), ("category=LAB", False), ("date=2026-03-01", True), ("date=lt2026-03-01", False),
    ("issued=ge2026-02-01", True), ("issued=2026-02", False), ("identifier=A1", True), ("identifier=B1", False),
    ("_id=nothing", False), (f"study=ImagingStudy/{uid('north-mr')}", False), ("status=final&status=amended", False),
]  # fmt: skip


@pytest.mark.parametrize(("filter_", "answers"), FILTERS)
def test_filters_are_decided_here(three: Gateway, filter_: str, answers: bool) -> None:
    for root in ROOTS:
        bundle = searched(three, f"{root}/DiagnosticReport?patient.identifier=urn:north|12345&{filter_}")
        assert len(found(bundle)) == answers
        assert not diagnostics(bundle)


@pytest.mark.parametrize(
    "query",
    ["", "?status=final", "?performer=Practitioner/1&patient=1", "?patient.name=x", "?patient.identifier=a&status:not=final",
     "?patient=1&_lastUpdated=gt2020", "?patient=1&_revinclude=x:y", "?study=ImagingStudy/x", "?patient=Group/1",
     "?patient.identifier=urn:north|12345&date=yesterday", "?identifier=x|", "?patient.identifier=urn:north|"],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(three: Gateway, query: str) -> None:
    answer = three.get(f"/fhir/DiagnosticReport{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["issue"][0]["diagnostics"]


def test_a_filter_of_the_other_kind_is_not_taken(three: Gateway) -> None:
    assert three.get("/fhir/ServiceRequest?patient=1&issued=2026").status_code == 400
    assert three.get("/fhir/DiagnosticReport?patient=1&authored=2026").status_code == 400


def test_orders_are_found_by_patient_and_accession(three: Gateway) -> None:
    for root, is_r5 in ROOTS.items():
        for name in ("north", "south"):
            (one,) = found(searched(three, f"{root}/ServiceRequest?identifier=A2-{name}&intent=order&status=completed"))
            assert one["subject"]["identifier"] == {"system": SYSTEMS[name], "value": f"only-{name}"}
            assert ("concept" in one["code"]) is is_r5
            assert searched(three, f"{root}/ServiceRequest/{one['id']}") == one
            assert found(searched(three, f"{root}/ServiceRequest?patient.identifier={SYSTEMS[name]}|only-{name}")) == [
                one
            ]
        assert not found(searched(three, f"{root}/ServiceRequest?patient.identifier=urn:files|12345"))


def test_unknown_ids_are_not_found(three: Gateway) -> None:
    (one,) = found(searched(three, "/fhir/DiagnosticReport?patient.identifier=urn:north|12345"))
    for identifier in ("1", "x" * 64, "12345678-1", one["id"] + "x", one["id"].partition("-")[2]):
        answer = three.get(f"/fhir/DiagnosticReport/{identifier}")
        assert answer.status_code == 404, identifier
    assert three.get(f"/fhir/DiagnosticReport?_id={one['id']}").json()["total"] == 1
    assert three.get("/fhir/DiagnosticReport?_id=1").json()["total"] == 0
    assert three.get("/fhir/DiagnosticReport?patient=0123").json().get("total") is None


def test_pages_add_up(three: Gateway) -> None:
    url: str | None = "/fhir/DiagnosticReport?identifier=A1&_count=1"
    seen = []
    while url:
        page = searched(three, url)
        assert page["total"] == 3
        seen += [one["id"] for one in found(page)]
        url = next((each["url"].removeprefix(three.url) for each in page["link"] if each["relation"] == "next"), None)
    assert len(seen) == len(set(seen)) == 3


def test_nodes_that_have_no_such_resource_take_no_part(three: Gateway) -> None:
    answer = three.get("/fhir/DiagnosticReport?patient.identifier=urn:files|12345&node=files")
    assert answer.status_code == 404
    assert "only FHIR nodes" in answer.text


def test_the_capability_statement_says_what_is_searched(three: Gateway) -> None:
    for root in ROOTS:
        statement = searched(three, f"{root}/metadata")
        listed = {
            one["type"]: {each["name"] for each in one["searchParam"]} for one in statement["rest"][0]["resource"]
        }
        assert {"patient", "identifier", "issued", "study"} <= listed["DiagnosticReport"]
        assert {"patient", "identifier", "authored", "intent"} <= listed["ServiceRequest"]


def test_a_search_may_be_posted_and_counted(three: Gateway) -> None:
    form = {"patient.identifier": "urn:north|12345", "_elements": "status,subject"}
    answer = three.client.post("/fhir/DiagnosticReport/_search", data=form)
    (one,) = found(answer.json())
    assert {"resourceType", "id", "meta", "status", "code", "subject"} == set(one)
    counted = searched(three, "/fhir/DiagnosticReport?identifier=A1&_summary=count")
    assert (counted["total"], found(counted)) == (3, [])
    answer = three.get("/fhir/DiagnosticReport?identifier=A1&encounter=1", headers={"Prefer": "handling=lenient"})
    assert len(found(answer.json())) == 3
    assert "'encounter' is not supported" in diagnostics(answer.json())


def test_a_server_without_reports_has_none(tmp_path: Path) -> None:
    with hospitals(tmp_path, north={"service_requests": False}) as (gateway, _):
        bundle = searched(gateway, "/fhir/DiagnosticReport?patient.identifier=urn:north|12345")
        assert (bundle["total"], diagnostics(bundle)) == (0, "")


def test_each_report_of_many_names_its_own_study(tmp_path: Path) -> None:
    """More than are read one by one."""
    for number in range(70):
        specimen(tmp_path / "north", "many", f"study-{number}")
    with hospitals(tmp_path, north={"reports": True, "page_size": 100}) as (gateway, simulators):
        reports = found(searched(gateway, "/fhir/DiagnosticReport?patient.identifier=urn:north|many&_count=100"))
        assert {one["imagingStudy"][0]["reference"] for one in reports} == {
            f"ImagingStudy/{uid(f'study-{number}')}" for number in range(70)
        }
        assert simulators["north"].operations["read_ImagingStudy"] == 0
        bundle = searched(gateway, f"/fhir/DiagnosticReport?study={uid('study-7')}")
        assert len(found(bundle)) == 1


def test_a_study_of_two_patients_needs_the_patient_as_well(tmp_path: Path) -> None:
    for name in ("north", "west"):
        specimen(tmp_path / name, f"mine-{name}", "shared")
    with hospitals(tmp_path, north={"reports": True}, west={"reports": True}) as (gateway, _):
        answer = gateway.get(f"/fhir/DiagnosticReport?study={uid('shared')}")
        assert answer.status_code == 409
        assert "give the patient as well" in answer.text
        for name, system in (("north", "urn:north"), ("west", "urn:west")):
            query = f"study={uid('shared')}&patient.identifier={system}|mine-{name}"
            bundle = searched(gateway, f"/fhir/DiagnosticReport?{query}")
            assert [one["subject"]["identifier"]["system"] for one in found(bundle)] == [system]
            assert not diagnostics(bundle)


def test_a_report_of_another_patient_than_its_studys_is_left_out(tmp_path: Path) -> None:
    """By reference, by identifier, and as contained: the node contradicts itself, whatever it is asked by."""
    write(tmp_path / "south", "south")
    (study,) = {f.id for f in FhirSimulator(tmp_path / "south", "R5").facts if f.study.uid == uid("south-ct")}
    other = {"system": "urn:south", "value": "only-south"}
    contained = [{"resourceType": "Patient", "id": "p", "identifier": [other]}]
    more = {"identifier": [{"value": "X"}], "study": [{"reference": f"ImagingStudy/{study}"}]}
    wrong = [
        report("1", subject=about(tmp_path / "south", "only-south", "urn:south", "R5"), **more),
        report("2", subject={"identifier": other}, **more),
        report("3", subject={"reference": "#p"}, contained=contained, **more),
    ]
    right = report("4", subject={"identifier": {**other, "value": "12345"}}, **more)
    with hospitals(tmp_path, south={"documents": [*wrong, right]}) as (gateway, _):
        for query in (f"study={uid('south-ct')}", "identifier=X"):
            bundle = searched(gateway, f"/fhir/r5/DiagnosticReport?{query}")
            assert [one["subject"]["identifier"]["value"] for one in found(bundle)] == ["12345"]
            assert "3 DiagnosticReport without saying for certain" in diagnostics(bundle)


def test_a_study_that_another_node_knows_better_decides_as_well(tmp_path: Path) -> None:
    """The report names the study by its UID alone, so that its own server cannot be seen to contradict itself."""
    write(tmp_path / "south", "south")
    named = [{"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{uid('south-ct')}"}}]
    subject = about(tmp_path / "south", "only-south", "urn:south", "R5")
    wrong = report("1", subject=subject, study=named)
    options = {"documents": [wrong], "strange_documents": True}
    with hospitals(tmp_path, south=options) as (gateway, _):
        bundle = searched(gateway, f"/fhir/r5/DiagnosticReport?study={uid('south-ct')}")
        assert found(bundle) == []
        assert "1 DiagnosticReport of another patient than the study's" in diagnostics(bundle)


def test_the_same_id_at_two_nodes_is_two_reports(tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {}
    for name in ("north", "west"):
        write(tmp_path / name, name)
        subject = about(tmp_path / name, "12345", SYSTEMS.get(name, f"urn:{name}"))
        options[name] = {"documents": [report("1", subject=subject, conclusion=name)]}
    with hospitals(tmp_path, **options) as (gateway, _):
        ids = {}
        for name, system in (("north", "urn:north"), ("west", "urn:west")):
            (one,) = found(searched(gateway, f"/fhir/DiagnosticReport?patient.identifier={system}|12345"))
            assert one["conclusion"] == name
            ids[name] = one["id"]
            assert searched(gateway, f"/fhir/DiagnosticReport/{one['id']}")["conclusion"] == name
        assert ids["north"] != ids["west"]


def test_whose_report_is_not_certain_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "north", "north")
    mine = about(tmp_path / "north", "12345", "urn:north")
    someone = {"system": "urn:north", "value": "only-north"}
    doubtful = [
        report("none", identifier=[{"value": "X"}]),
        report("gone", identifier=[{"value": "X"}], subject={"reference": "Patient/nobody"}),
        report("group", identifier=[{"value": "X"}], subject={"reference": "Group/1", "identifier": someone}),
        report("device", identifier=[{"value": "X"}], subject={"type": "Device", "identifier": someone}),
        report("two", identifier=[{"value": "X"}], subject={**mine, "identifier": someone}),
        report("nameless", identifier=[{"value": "X"}], subject={"reference": "#p"}, contained=[{"resourceType": "Patient", "id": "p"}]),
    ]  # fmt: skip
    contained = [{"resourceType": "Patient", "id": "p", "identifier": [someone]}]
    certain = [
        report("read", identifier=[{"value": "X"}], subject=mine),
        report("named", identifier=[{"value": "X"}], subject={"identifier": someone}),
        report("inside", identifier=[{"value": "X"}], subject={"reference": "#p"}, contained=contained),
    ]
    with hospitals(tmp_path, north={"documents": [*doubtful, *certain]}) as (gateway, _):
        bundle = searched(gateway, "/fhir/DiagnosticReport?identifier=X")
        shown = {one["id"].partition("-")[2]: one["subject"]["identifier"]["value"] for one in found(bundle)}
        assert shown == {"read": "12345", "named": "only-north", "inside": "only-north"}
        assert "north" in diagnostics(bundle)
        assert "6 DiagnosticReport without saying for certain whose they are" in diagnostics(bundle)
        assert "total" not in bundle
        mark = found(bundle)[0]["id"].partition("-")[0]
        assert gateway.get(f"/fhir/DiagnosticReport/{mark}-two").status_code == 502


def test_another_patients_report_is_left_out_and_named(tmp_path: Path) -> None:
    with hospitals(tmp_path, north={"reports": True, "strange_documents": True}) as (gateway, _):
        bundle = searched(gateway, "/fhir/DiagnosticReport?patient.identifier=urn:north|12345")
        assert [one["subject"]["identifier"]["value"] for one in found(bundle)] == ["12345"]
        assert "1 DiagnosticReport of other patients" in diagnostics(bundle)
        # an accession number is asked of all: what does not bear it is none of the answer
        bundle = searched(gateway, "/fhir/DiagnosticReport?identifier=A2-north")
        assert [one["subject"]["identifier"]["value"] for one in found(bundle)] == ["only-north"]


def test_a_server_that_does_not_chain_is_asked_for_the_patient_first(tmp_path: Path) -> None:
    refused = frozenset({"patient.identifier", "patient:identifier"})
    with hospitals(tmp_path, north={"reports": True, "refuses_parameters": refused}) as (gateway, _):
        bundle = searched(gateway, "/fhir/DiagnosticReport?patient.identifier=urn:north|12345")
        assert [one["subject"]["identifier"]["value"] for one in found(bundle)] == ["12345"]
        assert not diagnostics(bundle)


def test_a_search_that_a_server_refuses_is_an_issue(tmp_path: Path) -> None:
    options = {"north": {"reports": True, "refuses_parameters": frozenset({"identifier"})}, "south": {"reports": True}}
    with hospitals(tmp_path, **options) as (gateway, _):
        bundle = searched(gateway, "/fhir/DiagnosticReport?identifier=A1")
        assert [one["subject"]["identifier"]["system"] for one in found(bundle)] == ["urn:south"]
        assert "north" in diagnostics(bundle)


def test_reports_and_orders_of_a_real_server(tmp_path: Path) -> None:
    """sekmet-fhir, two of them, with a patient 12345 each and the same ids."""
    with contextlib.ExitStack() as stack:
        tables = []
        for name in ("north", "west"):
            write(tmp_path / name, name)
            system = SYSTEMS.get(name, f"urn:{name}")
            given = peers.as_fhir(tmp_path / name, patient_system=system, time_zone="Europe/Oslo")
            subject = about(tmp_path / name, "12345", system)
            study = next(one for one in given if one["resourceType"] == "ImagingStudy" and one["subject"] == subject)
            own = {"imagingStudy": [{"reference": f"ImagingStudy/{study['id']}"}], "identifier": [{"value": "R1"}]}
            given.append(report("1", subject=subject, conclusion=f"of {name}", **own))
            url = stack.enter_context(peers.sekmet(given))
            connection = {"url": url, "version": "R4"}
            more = {"adapter": "fhir", "mapping": "fhir-r4", "patient_id_issuer": system, "connection": connection}
            tables.append({"id": name, "name": name, **more})
        gateway = stack.enter_context(Gateway(tables))
        assert gateway.get("/fhir/DiagnosticReport?patient.identifier=12345").status_code == 409
        for name in ("north", "west"):
            system = SYSTEMS.get(name, f"urn:{name}")
            for query in (f"patient.identifier={system}|12345", f"study={uid(f'{name}-ct')}"):
                bundle = searched(gateway, f"/fhir/DiagnosticReport?{query}")
                assert not diagnostics(bundle)
                (one,) = found(bundle)
                assert one["conclusion"] == f"of {name}"
                assert one["imagingStudy"][0]["reference"] == f"ImagingStudy/{uid(f'{name}-ct')}"
                assert searched(gateway, f"/fhir/r4/DiagnosticReport/{one['id']}")["id"] == one["id"]
            (order,) = found(searched(gateway, f"/fhir/ServiceRequest?identifier=A2-{name}"))
            assert order["subject"]["identifier"] == {"system": system, "value": f"only-{name}"}
        assert len(found(searched(gateway, "/fhir/DiagnosticReport?identifier=R1"))) == 2


def test_a_node_that_stops_at_its_ceiling_is_named(tmp_path: Path) -> None:
    write(tmp_path / "north", "north")
    mine = about(tmp_path / "north", "12345", "urn:north")
    documents = [report(f"r{number}", subject=mine, identifier=[{"value": "X"}]) for number in range(7)]
    options = FhirOptions(patient_system="urn:north", documents=documents, page_size=2)
    with FhirSimulator(tmp_path / "north", "R4", options) as simulator:
        for most, is_whole in ((5, False), (20, True)):
            with Gateway([{**node("north", simulator, "R4"), "max_results": most}]) as gateway:
                bundle = searched(gateway, "/fhir/DiagnosticReport?identifier=X")
                assert len(found(bundle)) == min(most, 7)
                assert bool(diagnostics(bundle)) is not is_whole
                assert ("total" in bundle) is is_whole


def test_a_node_that_is_down_is_named_and_all_down_is_an_error(tmp_path: Path) -> None:
    with hospitals(tmp_path, north={"reports": True}, south={"reports": True}) as (gateway, simulators):
        simulators["south"].stop()
        bundle = searched(gateway, "/fhir/DiagnosticReport?identifier=A1")
        assert [one["subject"]["identifier"]["system"] for one in found(bundle)] == ["urn:north"]
        assert "south" in diagnostics(bundle)
        assert gateway.get("/fhir/DiagnosticReport?identifier=A1").headers["cache-control"] == "no-store"
        simulators["north"].stop()
        assert gateway.get("/fhir/DiagnosticReport?identifier=A2-north").status_code == 503


HOSTILE: Resource = {
    "text": {"status": "generated", "div": "<div><script>alert(1)</script></div>"},
    "extension": [{"url": "http://evil.example", "valueString": "<script>"}],
    "conclusion": "plain\x00 text",
    "result": [{"reference": "Observation/1"}],
    "performer": [{"reference": "javascript:alert(1)", "display": "Dr. X"}, {"reference": "Practitioner/2"}],
    "category": [{"coding": [{"system": "java script:x", "code": "RAD"}]}, "no concept", {"coding": [None]}],
    "imagingStudy": [{"reference": "ImagingStudy/nothing"}, {"reference": "http://evil.example/ImagingStudy/1"}],
    "issued": "yesterday",
    "presentedForm": [
        {"contentType": "application/pdf", "data": PDF, "title": "Report"},
        {"contentType": "text/html", "data": PDF, "url": "data:text/html,<script>alert(1)</script>", "title": "Page"},
        {"contentType": "application/pdf", "url": "http://evil.example/report.pdf"},
        {"contentType": "application/pdf", "data": "no base64!"},
    ],
    "meta": {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]},
}


def test_hostile_content_is_not_passed_on(tmp_path: Path) -> None:
    write(tmp_path / "north", "north")
    mine = about(tmp_path / "north", "12345", "urn:north")
    large = base64.b64encode(bytes(9 * 1024 * 1024)).decode()
    form = [{"contentType": "application/pdf", "data": large, "title": "Large"}]
    documents = [
        report("hostile", subject=mine, **HOSTILE),
        report("large", subject=mine, presentedForm=form),
        report("x/../y", subject=mine),
        report("status", subject=mine) | {"status": "final; drop"},
        report("modified", subject=mine, modifierExtension=[{"url": "urn:not", "valueBoolean": True}]),
        report("long-" + "x" * 59, subject=mine),
    ]
    with hospitals(tmp_path, north={"documents": documents}) as (gateway, _):
        for root in ROOTS:
            answer = gateway.get(f"{root}/DiagnosticReport?patient.identifier=urn:north|12345")
            assert answer.status_code == 200, answer.text
            for word in ("script", "evil", "Observation/", "Practitioner/", "yesterday", "\\u0000", "drop"):
                assert word not in answer.text, word
            bundle = answer.json()
            shown = {one["id"].partition("-")[2] or "long": one for one in found(bundle)}
            assert set(shown) == {"hostile", "large", "long"}
            hostile = shown["hostile"]
            assert hostile["conclusion"] == "plain text"
            assert hostile["performer"] == [{"display": "Dr. X"}]
            assert hostile["category"] == [{"coding": [{"code": "RAD"}]}]
            assert [each.get("data") for each in hostile["presentedForm"]] == [PDF, None, None, None]
            assert hostile["meta"]["security"][0]["code"] == "R"
            assert not hostile.keys() & {"imagingStudy", "study"}
            assert shown["large"]["presentedForm"] == [{"contentType": "application/pdf", "title": "Large"}]
            assert all(one["meta"]["tag"][0]["code"] == "SUBSETTED" for name, one in shown.items() if name != "long")
            assert "3 resources that cannot be passed on" in diagnostics(bundle)
            assert judged(bundle, is_r5=ROOTS[root]) == []


def judged(body: Resource, *, is_r5: bool) -> list[str]:
    """What independent validators find wrong with a body."""
    if is_r5:
        r5_class(body["resourceType"]).model_validate(body)
        return faults(body)
    errors = Validator(ValidatorConfig.load_dict({"fhirVersion": "4.0.1"})).validate_resource(body).errors
    return [str(issue) for issue in fhirkit.validate(body)] + [f"{one.path} {one.message}" for one in errors]


def test_validators_find_no_fault_and_xml_carries_the_same(three: Gateway) -> None:
    for root, is_r5 in ROOTS.items():
        for path in ("DiagnosticReport?identifier=A1", "ServiceRequest?identifier=A1"):
            bundle = searched(three, f"{root}/{path}")
            assert found(bundle)
            for body in (bundle, *found(bundle)):
                assert judged(body, is_r5=is_r5) == []
            xml = three.get(f"{root}/{path}&_format=xml")
            assert xml.status_code == 200
            repeated = json.loads(json.dumps(bundle).replace(f"{path}", f"{path}&_format=xml"))
            assert xml.content in (fhirxml.encode(bundle, is_r5=is_r5), fhirxml.encode(repeated, is_r5=is_r5))
