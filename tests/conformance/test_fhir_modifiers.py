"""Every search parameter with every modifier, in a table: served as the nodes' files call for, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from national_nodes import Demo
from pydicom import dcmread
from test_fhir_search import BAD, CT, DCM, MG, SCT, Truth, search, truth_of, uids

from gateway.edge.fhir import directory, documentsearch, patientkeys, studykeys, studyquery
from gateway.edge.fhir.searchgrammar import Name, alternatives, fields, name_of, plain, token
from gateway.model.folding import fold_name
from gateway.simulators.corpus import HeldStudy
from tests.running import Gateway

Resource = dict[str, Any]
ACSN = "http://terminology.hl7.org/CodeSystem/v2-0203|ACSN"
STATUS = "http://hl7.org/fhir/imagingstudy-status"


@dataclass(frozen=True)
class Whole:
    """What the files say of one study of one patient."""

    truth: Truth
    names: tuple[str, ...]
    family: str
    given: tuple[str, ...]
    born: str
    sex: str
    referrer: str


@pytest.fixture(scope="session")
def wholes(demo: Demo) -> list[Whole]:
    """What a file of each study says."""
    held: dict[tuple[str, str], list[HeldStudy]] = {}
    for study in demo.corpus.studies():
        held.setdefault((study.study_uid, study.patient_id), []).append(study)
    return [whole_of(truth_of(demo, studies), studies[0]) for studies in held.values()]


def whole_of(truth: Truth, study: HeldStudy) -> Whole:
    head = dcmread(study.instances[0].path, stop_before_pixels=True)
    groups = [group.split("^") for group in str(head.get("PatientName") or "").split("=")]
    return Whole(
        truth,
        tuple(part.strip() for group in groups for part in group if part.strip()),
        groups[0][0].strip(),
        tuple(part.strip() for part in groups[0][1:3] if part.strip()),
        str(head.get("PatientBirthDate") or ""),
        str(head.get("PatientSex") or ""),
        # the FHIR node tells nobody's referrer
        "" if study.node == "de-berlin" else str(head.get("ReferringPhysicianName") or "").strip("^ "),
    )


def begins(text: str) -> Callable[[Whole], bool]:
    return lambda w: any(fold_name(part).startswith(fold_name(text)) for part in w.names)


def of_truth(pick: Callable[[Truth], bool]) -> Callable[[Whole], bool]:
    return lambda whole: pick(whole.truth)


def everything(whole: Whole) -> bool:
    return True


def nothing(whole: Whole) -> bool:
    return False


SERVED: list[Any] = [
    # identifier
    ("identifier:missing=false", everything),
    ("identifier:missing=true", nothing),
    ("identifier:not=BE25-004711", of_truth(lambda t: t.accession != "BE25-004711")),
    (f"identifier:of-type={ACSN}|BE25-004711", of_truth(lambda t: t.accession == "BE25-004711")),
    (f"identifier:of-type={ACSN}|BE25-004711,{ACSN}|KR/25/0117", of_truth(lambda t: t.accession in ("BE25-004711", "KR/25/0117"))),
    (f"identifier:of-type={DCM}|110180|urn:oid:1.2.3.4.5", nothing),
    # the order, known by its accession number
    ("basedon:identifier=BE25-004711", of_truth(lambda t: t.accession == "BE25-004711")),
    ("based-on:identifier=BE25-004711", of_truth(lambda t: t.accession == "BE25-004711")),
    ("basedon.identifier=BE25-004711", of_truth(lambda t: t.accession == "BE25-004711")),
    ("basedon:missing=true", of_truth(lambda t: not t.accession)),
    ("based-on:missing=false", of_truth(lambda t: bool(t.accession))),
    # modality
    ("modality:not=CT", of_truth(lambda t: "CT" not in t.modalities)),
    ("modality:not=CT,MR", of_truth(lambda t: not {"CT", "MR"} & t.modalities)),
    (f"modality:not={DCM}|MG&modality:not=CT", of_truth(lambda t: not {"CT", "MG"} & t.modalities)),
    ("modality=RTSTRUCT&modality:not=MR", of_truth(lambda t: "RTSTRUCT" in t.modalities and "MR" not in t.modalities)),
    ("modality:missing=false", everything),
    ("modality:missing=true", nothing),
    # body site
    ("bodysite:not=BREAST", of_truth(lambda t: "BREAST" not in t.body_parts)),
    (f"body-site:not={SCT}|76752008", of_truth(lambda t: "BREAST" not in t.body_parts)),
    ("bodysite:missing=true", of_truth(lambda t: not t.body_parts)),
    ("body-site:missing=false", of_truth(lambda t: bool(t.body_parts))),
    # status
    ("status:not=available", nothing),
    ("status:not=cancelled", everything),
    (f"status={STATUS}|available", everything),
    ("status:missing=false", everything),
    # UIDs
    (f"dicom-class:not={CT}", of_truth(lambda t: CT not in t.sop_classes)),
    (f"dicom-class:not=urn:oid:{CT},{MG}", of_truth(lambda t: not {CT, MG} & t.sop_classes)),
    ("dicom-class:missing=true", nothing),
    ("series:not=1.2.3", everything),
    ("series:missing=true", nothing),
    ("instance:not=urn:oid:1.2.3", everything),
    ("instance:missing=false", everything),
    # started
    ("started:missing=true", of_truth(lambda t: t.day is None)),
    ("started:missing=false", of_truth(lambda t: t.day is not None)),
    # endpoint, referrer
    ("endpoint:Endpoint=es-madrid", of_truth(lambda t: "es-madrid" in t.nodes)),
    ("endpoint:missing=true", nothing),
    ("referrer:missing=true", lambda w: not w.referrer),
    ("referrer:missing=false", lambda w: bool(w.referrer)),
    # the patient
    ("patient:missing=false", everything),
    ("subject:missing=true", nothing),
    ("patient.identifier:missing=true", of_truth(lambda t: not t.patient_id)),
    ("patient.name=a", begins("a")),
    ("patient.name=muller,MULLER", begins("Müller")),
    ("patient.name=M%C3%BCller", begins("muller")),
    ("subject.name:contains=ova", lambda w: any("ova" in fold_name(part) for part in w.names)),
    ("patient.family:exact=Anna", lambda w: w.family == "Anna"),
    ("patient.given=an", lambda w: any(fold_name(part).startswith("an") for part in w.given)),
    ("subject:Patient.family=k", lambda w: fold_name(w.family).startswith("k")),
    ("patient.name:missing=true", lambda w: not w.names),
    ("patient.birthdate=ge1960", lambda w: w.born >= "1960"),
    ("patient.birthdate=1950,1951", lambda w: w.born[:4] in ("1950", "1951")),
    ("patient.birthdate=lt1960&patient.birthdate=gt1940", lambda w: "1941" <= w.born < "1960"),
    ("patient.birthdate:missing=true", lambda w: not w.born),
    ("patient:Patient.gender=female", lambda w: w.sex == "F"),
    ("subject.gender=male,other", lambda w: w.sex in ("M", "O")),
    # together, and with what the results are asked to look like
    ("modality:not=CT&bodysite:missing=false&started=ge2025", of_truth(lambda t: "CT" not in t.modalities and bool(t.body_parts) and bool(t.day) and t.day.year >= 2025)),  # type: ignore[union-attr]
    ("identifier:not=A%5C,B", everything),
    ("patient.name=a&modality:not=CT&_elements=identifier", lambda w: begins("a")(w) and "CT" not in w.truth.modalities),
]  # fmt: skip


@pytest.mark.parametrize(("query", "pick"), SERVED, ids=[query[:70] for query, _ in SERVED])
def test_a_modifier_finds_what_the_files_say(
    demo: Demo, wholes: list[Whole], query: str, pick: Callable[[Whole], bool]
) -> None:
    """On both roots; studies of several holders are left out, since each file would say its own."""
    alone = [whole for whole in wholes if len(whole.truth.nodes) == 1]
    shared = {whole.truth.uid for whole in wholes} - {whole.truth.uid for whole in alone}
    wanted = sorted(whole.truth.uid for whole in alone if pick(whole))
    for root in ("/fhir/r4", "/fhir/r5"):
        answer = demo.get(f"{root}/ImagingStudy?{query}&_count=1000")
        assert answer.status_code == 200, answer.text[:300]
        assert [uid for uid in uids(answer.json()) if uid not in shared] == wanted, root


REFUSED = [
    *((f"{name}{modifier}=x", f"{name}{modifier}")
      for name in ("encounter", "reason", "performer", "interpreter", "body-structure", "_lastUpdated")
      for modifier in ("", ":missing", ":not", ":identifier")),
    ("_revinclude=ImagingStudy:patient", "_revinclude"),
    ("_revinclude:iterate=Observation:subject", "_revinclude:iterate"),
    ("referrer=Practitioner/1", "referrer"),
    ("basedon=ServiceRequest/1", "basedon"),
    ("based-on=ServiceRequest/1", "based-on"),
    ("_has:Observation:patient:code=x", "_has:Observation:patient:code"),
    ("patient:Device=1", "patient:Device"),
    ("patient:Group.name=x", "patient:Group.name"),
    ("patient.organization.name=x", "patient.organization.name"),
    ("encounter.patient.name=x", "encounter.patient.name"),
    *((f"{name}:{modifier}=x", f"{name}:{modifier}")
      for name in ("identifier", "started", "modality", "status", "series", "patient", "endpoint", "dicom-class", "bodysite")
      for modifier in ("above", "below", "in", "text", "contains", "exact", "nonsense")),
    ("started:not=2025", "started:not"),
    ("patient:not=1", "patient:not"),
    ("endpoint:identifier=x", "endpoint:identifier"),
    ("patient.identifier:of-type=a|b|c", "patient.identifier:of-type"),
    ("patient.name:not=x", "patient.name:not"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "parameter"), REFUSED, ids=[query for query, _ in REFUSED])
def test_what_is_not_served_is_refused_by_name_or_left_out_and_named(demo: Demo, query: str, parameter: str) -> None:
    refused = search(demo, f"{query}&node=ee-tartu", 400)
    assert refused["issue"][0]["expression"] == [f"http.{parameter}"]
    lenient = search(demo, f"{query}&node=ee-tartu&_count=1", headers={"prefer": 'return=minimal, handling="lenient"'})
    (outcome,) = [entry["resource"] for entry in lenient["entry"] if entry["search"]["mode"] == "outcome"]
    assert outcome["issue"][0]["expression"] == [f"http.{parameter}"]
    (own,) = [link["url"] for link in lenient["link"] if link["relation"] == "self"]
    assert own == f"{demo.url}/fhir/ImagingStudy?node=ee-tartu&_count=1"


def test_a_lenient_caller_s_bad_value_is_an_error_all_the_same(demo: Demo) -> None:
    for query, _ in BAD:
        if not query.startswith(("_revinclude", "modality:above", "patient.telecom")):
            search(demo, query, 400, headers={"prefer": "handling=lenient"})


BAD_VALUES = [
    ("identifier:missing=perhaps", "identifier:missing"),
    ("modality:missing=true,false", "modality:missing"),
    ("identifier:of-type=ACSN|1", "identifier:of-type"),
    (f"identifier:of-type={ACSN}|", "identifier"),
    ("identifier:of-type=http://terminology.hl7.org/CodeSystem/v2-0203|MR|1", "identifier:of-type"),
    ("modality:not=http://other|CT", "modality"),
    ("status:not=done", "status"),
    ("status=http://other|available", "status"),
    ("patient.birthdate=yesterday", "birthdate"),
    ("patient.gender=unknown", "gender"),
    ("endpoint=Organization/es-madrid", "endpoint"),
    ("patient=http://elsewhere.example/Patient/1", "patient"),
    ("basedon:identifier=urn:oid:1.2.3", "basedon:identifier"),
    ("based-on:identifier=urn:oid:1.2.3", "based-on:identifier"),
    ("body-site=http://other|CHEST", "body-site"),
    ("_summary=true&_elements=status", "_elements"),
    ("_elements=status&_elements=series", "_elements"),
    ("_include=Patient:organization", "_include"),
    ("_include=Endpoint:organization", "_include"),
]


@pytest.mark.parametrize(("query", "parameter"), BAD_VALUES, ids=[query[:60] for query, _ in BAD_VALUES])
def test_a_bad_value_names_its_parameter(demo: Demo, query: str, parameter: str) -> None:
    assert search(demo, query, 400)["issue"][0]["expression"] == [f"http.{parameter}"]


def test_every_parameter_and_every_modifier_of_it_is_in_a_table_here() -> None:
    from test_fhir_search import SEARCHES

    asked = {name_of(pair.partition("=")[0]) for query, _ in [*SERVED, *SEARCHES] for pair in query.split("&")}
    tried = {(name.key, name.modifier) for name in asked}
    tried |= {(f"{name.base}.identifier", "") for name in asked if name.modifier == "identifier"}
    renamed = {"body-site": "bodysite", "based-on": "basedon"}
    tried |= {(renamed.get(name, name).replace("subject", "patient"), modifier) for name, modifier in tried}
    elsewhere = {"_id", "patient", "patient._id", "series", "instance"}  # need ids that only a test knows
    elsewhere.add("_lastUpdated")  # needs a Redis: tests/edge/test_last_updated.py
    for name, key in studyquery.KEYS.items():
        name = renamed.get(name, name).replace("subject", "patient").replace("based-on", "basedon")
        for modifier in ("", *key.all_modifiers):
            is_refused = name in ("basedon", "referrer") and not modifier
            is_tried = (name, modifier) in tried or name in elsewhere or is_refused
            assert is_tried or modifier in ("exact", "contains"), f"{name}:{modifier}"


def test_two_hospitals_with_one_patient_id_are_never_one(demo: Demo) -> None:
    refused = search(demo, "patient.identifier=12345", 409)
    assert refused["resourceType"] == "OperationOutcome"
    systems = []
    for node in ("es-madrid", "pl-krakow"):
        bundle = search(demo, f"patient.identifier=12345&node={node}&_count=100&_include=ImagingStudy:patient")
        subjects = {
            (each["identifier"]["system"], each["identifier"]["value"])
            for each in (
                entry["resource"]["subject"] for entry in bundle["entry"] if entry["search"]["mode"] == "match"
            )
        }
        ((system, value),) = subjects
        assert value == "12345"
        systems.append(system)
        found = search(demo, f"patient.identifier={system}|12345&modality:not=ZZ&_count=100")
        assert uids(found) == uids(bundle)
        (patient,) = demo.get(f"/fhir/Patient?identifier={system}|12345").json()["entry"][:1]
        assert {"system": system, "value": "12345"} in patient["resource"]["identifier"]
    assert systems[0] != systems[1]
    assert demo.get("/fhir/Patient?identifier=12345").status_code == 409
    one, other = (
        {entry["resource"]["id"] for entry in demo.get(f"/fhir/Patient?identifier={system}|12345").json()["entry"]
         if entry["search"]["mode"] == "match"}
        for system in systems
    )  # fmt: skip
    assert len(one) == len(other) == 1
    assert one != other


@pytest.mark.parametrize("query", ["bodysite:missing=true", "bodysite:not=BREAST", "dicom-class:not=1.2.3"])
def test_a_node_that_cannot_say_what_is_to_be_left_out_shows_nothing_and_is_named(demo: Demo, query: str) -> None:
    """fr-lyon may look below one study only, which is too few to know; the other node answers as it does alone."""
    tables = [table for table in demo.tables if table["id"] in ("fr-lyon", "ee-tartu")]
    tables = [{**table, "descent_parents": 1} if table["id"] == "fr-lyon" else table for table in tables]
    with Gateway(tables) as gateway:
        bundle = gateway.get(f"/fhir/ImagingStudy?{query}&_count=1000").json()
    told = [
        i["diagnostics"] for e in bundle["entry"] if e["search"]["mode"] == "outcome" for i in e["resource"]["issue"]
    ]
    assert any("fr-lyon" in text for text in told)
    assert "total" not in bundle
    matches = [e["resource"] for e in bundle["entry"] if e["search"]["mode"] == "match"]
    assert not [one for one in matches if {"reference": "Endpoint/fr-lyon"} in one["endpoint"]]
    alone = uids(search(demo, f"{query}&node=ee-tartu&_count=1000"))
    assert set(uids(bundle)) <= set(alone)
    assert len(uids(bundle)) > 0


def test_posting_a_search_is_getting_it(demo: Demo) -> None:
    got = search(demo, "modality=CT&node=ee-tartu&_count=1")
    assert uids(got)
    for query, form in (
        ("", {"modality": "CT", "node": "ee-tartu", "_count": "1"}),
        ("?modality=CT", {"node": "ee-tartu", "_count": "1"}),
        ("?modality=CT&node=ee-tartu&_count=1", {}),
    ):
        posted = demo.gateway.client.post(f"/fhir/ImagingStudy/_search{query}", data=form)
        assert posted.status_code == 200, posted.text[:300]
        assert posted.json() == got
    assert demo.gateway.client.post("/fhir/ImagingStudy/_search", json={"modality": "MG"}).status_code == 415
    assert demo.gateway.client.post("/fhir/ImagingStudy/_search", data={"modality:x": "MG"}).status_code == 400
    huge = demo.gateway.client.post("/fhir/ImagingStudy/_search", data={"modality": "M" * 70_000})
    assert huge.status_code == 413
    twice = demo.gateway.client.post("/fhir/ImagingStudy/_search?modality=CT", data={"modality": "RTSTRUCT"})
    assert uids(twice.json()) == uids(search(demo, "modality=CT&modality=RTSTRUCT"))


def test_pretty_json_is_the_same_json(demo: Demo) -> None:
    for path in ("ImagingStudy?node=ee-tartu&_count=1", "Endpoint?_id=ee-tartu", "Organization/ee-tartu"):
        separator = "&" if "?" in path else "?"
        pretty = demo.get(f"/fhir/{path}{separator}_pretty=true").text
        assert pretty.startswith('{\n  "resourceType"')
        assert demo.get(f"/fhir/{path}{separator}_pretty=false").text.startswith('{"resourceType"')


def test_included_resources_go_on_to_what_they_refer_to(demo: Demo) -> None:
    def included(query: str) -> set[str]:
        bundle = search(demo, f"node=ee-tartu&_count=2&{query}")
        return {e["resource"]["resourceType"] for e in bundle["entry"] if e["search"]["mode"] == "include"}

    assert included("_include=ImagingStudy:endpoint:Endpoint") == {"Endpoint"}
    assert included("_include=ImagingStudy:*") == {"Endpoint", "Patient"}
    assert included("_include=*") == {"Endpoint", "Patient"}
    onward = "_include=ImagingStudy:endpoint&_include:iterate=Endpoint:organization"
    assert included(onward) == {"Endpoint", "Organization"}


def test_an_organization_keeps_its_name_whatever_is_asked_of_it(demo: Demo) -> None:
    """Without a name or an identifier it is no Organization (org-1)."""
    for asked in ("_elements=active", "_summary=text"):
        for entry in demo.get(f"/fhir/Organization?{asked}").json()["entry"]:
            assert entry["resource"]["name"]


def test_elements_are_those_asked_for_and_the_mandatory_ones(demo: Demo) -> None:
    (entry,) = search(demo, "node=ee-tartu&_count=1&_elements=identifier,ImagingStudy.description")["entry"]
    resource = entry["resource"]
    assert {"resourceType", "id", "meta", "identifier", "status", "subject"} <= set(resource)
    assert set(resource) <= {"resourceType", "id", "meta", "identifier", "status", "subject", "description"}
    assert resource["meta"]["tag"][0]["code"] == "SUBSETTED"
    read = demo.get(f"/fhir/ImagingStudy/{resource['id']}?_elements=identifier,description&node=ee-tartu").json()
    assert read == resource
    summary = demo.get(f"/fhir/ImagingStudy/{resource['id']}?_summary=true&node=ee-tartu").json()
    assert summary["series"]
    assert not any("instance" in series for series in summary["series"])
    for wrong in ("_summary=count", "_elements=nonsense", "_summary=some", "_summary=true&_elements=status"):
        assert demo.get(f"/fhir/ImagingStudy/{resource['id']}?{wrong}").status_code == 400, wrong


def patients(demo: Demo, query: str, status: int = 200) -> list[Resource]:
    answer = demo.get(f"/fhir/Patient?{query}")
    assert answer.status_code == status, answer.text[:300]
    return [e["resource"] for e in answer.json().get("entry", []) if e["search"]["mode"] == "match"]


def test_a_patient_is_found_by_identifier_name_birth_date_and_id(demo: Demo) -> None:
    everyone = patients(demo, "birthdate=ge1900&_count=1000")
    assert len(everyone) == len({one["id"] for one in everyone}) > 5
    for one in everyone:
        assert one in patients(demo, f"_id={one['id']}")
        first = one["identifier"][0]
        assert one["id"] in {p["id"] for p in patients(demo, f"identifier={first['system']}|{first['value']}")}
        assert one["id"] in {p["id"] for p in patients(demo, f"birthdate={one['birthDate']}&_count=1000")}
        family = one["name"][0].get("family")
        if family:
            assert one["id"] in {p["id"] for p in patients(demo, f"family:exact={family}&_count=1000")}
    walked, url = [], "/fhir/Patient?birthdate=ge1900&_count=2"
    while url:
        page = demo.get(url).json()
        walked += [e["resource"]["id"] for e in page["entry"] if e["search"]["mode"] == "match"]
        url = next((link["url"] for link in page["link"] if link["relation"] == "next"), "")
    assert walked == [one["id"] for one in everyone]
    assert patients(demo, "_id=00000000000000000000000000000000") == []
    for bad in (
        "",
        "foo=bar",
        "name:text=x",
        "birthdate=x",
        "_sort=name",
        "_revinclude=ImagingStudy:patient",
        "birthdate=2000&_revinclude=Observation:subject",
        "_id=Device/1",
    ):
        assert demo.get(f"/fhir/Patient?{bad}").status_code == 400, bad


def test_a_patient_s_studies_come_with_it_and_nobody_else_s(demo: Demo) -> None:
    page = demo.get("/fhir/Patient?birthdate=ge1900&_count=3&_revinclude=ImagingStudy:patient").json()
    matched = {e["resource"]["id"] for e in page["entry"] if e["search"]["mode"] == "match"}
    studies = [e["resource"] for e in page["entry"] if e["search"]["mode"] == "include"]
    assert len(matched) == 3
    assert {one["subject"]["reference"].removeprefix("Patient/") for one in studies} == matched
    wanted = [uids(search(demo, f"patient={identifier}&_count=1000")) for identifier in matched]
    found = [one["identifier"][0]["value"].removeprefix("urn:oid:") for one in studies]
    assert sorted(found) == sorted(uid for each in wanted for uid in each)


@pytest.mark.parametrize(("query", "wanted"), [
    ("Endpoint?_id=es-madrid", {"es-madrid"}),
    ("Endpoint?_id=es-madrid,ee-tartu&status=active", {"es-madrid", "ee-tartu"}),
    ("Endpoint?organization=Organization/gr-athens", {"gr-athens"}),
    ("Endpoint?connection-type=http://terminology.hl7.org/CodeSystem/endpoint-connection-type|dicom-wado-rs&node=fr-lyon", {"fr-lyon"}),
    ("Endpoint?connection-type:not=dicom-wado-rs", set()),
    ("Endpoint?name:contains=berlin", {"de-berlin"}),
    ("Organization?address-country=DE,ES", {"de-berlin", "es-madrid"}),
    ("Organization?endpoint=Endpoint/de-berlin", {"de-berlin"}),
    ("Organization?active=false", set()),
    ("Organization?name:missing=true", set()),
    ("Organization?_id=nowhere", set()),
])  # fmt: skip
def test_nodes_are_found_as_endpoints_and_organizations(demo: Demo, query: str, wanted: set[str]) -> None:
    for root in ("/fhir/r4", "/fhir/r5"):
        answer = demo.get(f"{root}/{query}")
        assert answer.status_code == 200, answer.text[:300]
        assert {entry["resource"]["id"] for entry in answer.json().get("entry", [])} == wanted
        assert answer.json()["total"] == len(wanted)
    path, _, parameters = query.partition("?")
    pairs = dict(pair.split("=", 1) for pair in parameters.split("&"))
    assert demo.gateway.client.post(f"/fhir/{path}/_search", data=pairs).json().get("total") == len(wanted)


def test_what_a_directory_cannot_be_searched_by_is_refused(demo: Demo) -> None:
    for query in (
        "Endpoint?identifier=x",
        "Endpoint?name:text=x",
        "Organization?partof=1",
        "Endpoint?organization=Endpoint/x",
    ):
        assert demo.get(f"/fhir/{query}").status_code == 400, query


def test_the_capability_statement_is_true_line_by_line(demo: Demo) -> None:
    tables = {"ImagingStudy": studykeys.KEYS, "Patient": patientkeys.KEYS, "Endpoint": directory.ENDPOINT, "Organization": directory.ORGANIZATION, **documentsearch.KEYS}  # fmt: skip
    for root in ("/fhir/r4", "/fhir/r5"):
        statement = demo.get(f"{root}/metadata").json()
        assert statement["format"] == ["json", "xml"]
        for resource in statement["rest"][0]["resource"]:
            kind, served = resource["type"], {one["name"] for one in resource["searchParam"]}
            assert served <= set(tables[kind])
            assert {each["code"] for each in resource["interaction"]} == {"read", "search-type"}
            for one in resource["searchParam"]:
                assert tables[kind][one["name"]].type == one["type"]
                for modifier in tables[kind][one["name"]].all_modifiers:
                    assert f":{modifier}" in one["documentation"]
            for each in resource.get("searchRevInclude", ()):
                assert demo.get(f"{root}/{kind}?birthdate=ge1900&_revinclude={each}&_count=1").status_code == 200
            for each in resource.get("supportedProfile", ()):
                assert demo.get(f"{root}/{kind}?_profile={each}&_count=1").status_code == 200
            for each in resource.get("searchInclude", ()):
                assert demo.get(f"{root}/{kind}?_include={each}&_count=1").status_code == 200


@pytest.mark.parametrize("accept", ["application/fhir+json", "application/fhir+xml"])
def test_what_the_caller_has_already_is_not_sent_again(demo: Demo, accept: str) -> None:
    """Searches and reads; a partial answer (a node of the federation is down) is never one that may be had already."""
    (study,) = search(demo, "node=ee-tartu&_count=1")["entry"][:1]
    paths = (
        "/fhir/ImagingStudy?node=ee-tartu&_count=2",
        "/fhir/r5/ImagingStudy?node=ee-tartu&_count=2",
        f"/fhir/ImagingStudy/{study['resource']['id']}?node=ee-tartu",
        "/fhir/Patient?birthdate=ge1900&node=ee-tartu",
        "/fhir/Endpoint?_id=ee-tartu",
        "/fhir/Organization/ee-tartu",
        "/fhir/metadata",
    )
    seen = set()
    for path in paths:
        first = demo.get(path, headers={"accept": accept, "accept-encoding": "identity"})
        assert first.status_code == 200
        seen.add(first.headers["etag"])
        for tag in (first.headers["etag"], f'W/{first.headers["etag"]}, "other"'):
            again = demo.get(path, headers={"accept": accept, "accept-encoding": "identity", "if-none-match": tag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"]), path
        other = demo.get(path, headers={"accept": accept, "accept-encoding": "identity", "if-none-match": '"other"'})
        assert other.status_code == 200
    assert len(seen) == len(paths)
    assert "etag" not in demo.get("/fhir/ImagingStudy?_count=2", headers={"accept": accept}).headers


def test_names_are_taken_apart() -> None:
    assert name_of("subject:Patient.name:exact") == Name("subject", "Patient", "name", "exact")
    assert name_of("patient:identifier") == Name("patient", modifier="identifier")
    assert name_of("patient:Patient") == Name("patient", "Patient")
    assert name_of("_include:iterate") == Name("_include", modifier="iterate")
    assert name_of("patient.") == Name("patient", chain="-")


def test_escapes_keep_separators_from_separating() -> None:
    assert [plain(one) for one in alternatives(r"a\,b,c\\,d\$,,", "x")] == ["a,b", "c\\", "d$"]
    assert token(r"sys\|tem|va\|lue") == ("sys|tem", "va|lue")
    assert token(r"a\|b") == (None, "a|b")
    assert token("|x") == ("", "x")
    assert fields(r"a|b\|c|d") == ["a", "b|c", "d"]
    assert plain("a\\b") == "a\\b"
