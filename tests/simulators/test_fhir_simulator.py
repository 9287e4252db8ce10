"""The FHIR simulator, judged over HTTP: bodies by fhir.resources, matches by the files that it serves."""

import base64
import importlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file

from gateway.simulators.fhir import FhirOptions, FhirSimulator
from tests.running import TRUST

FILES = ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "examples_overlay.dcm", "waveform_ecg.dcm", "test-SR.dcm"]
CT = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
MR = "1.3.6.1.4.1.5962.1.2.4.20040826185059.5457"
ABDOMEN = "1.2.124.113532.10.122.1.203.20051130.122937.2950157"
PACKAGES = {
    "STU3": "fhir.resources.STU3",
    "R4": "fhir.resources.R4B",
    "R4B": "fhir.resources.R4B",
    "R5": "fhir.resources",
}
VERSIONS = tuple(PACKAGES)
DCM = "http://dicom.nema.org/resources/ontology/DCM"
PATIENTS = "https://hospital.example/patients"
ACCESSIONS = "https://hospital.example/accession-numbers"
MII_DATA = Path(__file__).parents[3] / "shared/data/mii-bildgebung"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("dicom")
    for name in FILES:
        shutil.copy(get_testdata_file(name), root / name)
    breast = pydicom.dcmread(root / "CT_small.dcm")
    breast.StudyInstanceUID, breast.SeriesInstanceUID, breast.SOPInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    breast.file_meta.MediaStorageSOPInstanceUID = "1.2.3.3"
    breast.PatientID, breast.IssuerOfPatientID = "Z123456789", "1.2.276.0.76.4.8"
    breast.SpecificCharacterSet = "ISO_IR 192"
    breast.PatientName = "Müller^Änne=山田^花子"
    breast.Modality, breast.BodyPartExamined, breast.ImageLaterality = "MG", "BREAST", "L"
    breast.Laterality = "L"
    breast.StudyDate, breast.StudyTime, breast.AccessionNumber = "20240719", "120330.5", "A 77"
    breast.SeriesDate, breast.SeriesTime = "20240719", "1204"
    breast.ReasonForTheRequestedProcedure = "Verdacht auf Karzinom"
    del breast.TimezoneOffsetFromUTC
    breast.save_as(root / "breast.dcm")
    return root


@pytest.fixture(scope="module")
def servers(files):
    """One server per version, each with an endpoint and orders."""
    options = FhirOptions(dicomweb_url="http://127.0.0.1:9/dicom-web", service_requests=True)
    running = {version: FhirSimulator(files, version, options) for version in VERSIONS}
    for server in running.values():
        server.start()
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(scope="module")
def r4(servers):
    return servers["R4"]


@pytest.fixture
def peer(files):
    started = []

    def start(version="R4", **options):
        running = FhirSimulator(files, version, FhirOptions(**options))
        started.append(running)
        running.start()
        return running

    yield start
    for running in started:
        running.stop()


def get(server, path, **kwargs):
    return httpx.get(server.url + path, timeout=5, verify=TRUST, **kwargs)


def studies(answer):
    """The study UIDs of a searchset, whatever the version."""
    assert answer.status_code == 200, answer.text
    resources = [entry["resource"] for entry in answer.json().get("entry", []) if entry["search"]["mode"] == "match"]
    found = [one.get("uid") or one["identifier"][0]["value"] for one in resources]
    return {uid.removeprefix("urn:oid:") for uid in found}


def search(server, **params):
    return get(
        server, "/ImagingStudy", params={name.replace("__", ":").replace("_dot_", "."): v for name, v in params.items()}
    )


def validate(version, resource):
    """By the model of the version; raises when the resource is not valid."""
    module = importlib.import_module(f"{PACKAGES[version]}.{resource['resourceType'].lower()}")
    return getattr(module, resource["resourceType"]).model_validate(resource)


# -- the resources


@pytest.mark.parametrize("version", VERSIONS)
def test_every_body_is_valid_in_its_version(servers, version):
    server = servers[version]
    includes = ["ImagingStudy:endpoint", "ImagingStudy:patient"]
    bundle = get(server, "/ImagingStudy", params={"_include": includes}).json()
    validate(version, bundle)
    kinds = set()
    for entry in bundle["entry"]:
        validate(version, entry["resource"])
        kinds.add(entry["resource"]["resourceType"])
        read = httpx.get(entry["fullUrl"], verify=TRUST)
        assert read.json() == entry["resource"]
        assert read.headers["content-type"].startswith("application/fhir+json")
    assert kinds == {"ImagingStudy", "Endpoint", "Patient"}
    for path in ("/metadata", "/Organization/hospital", "/Patient?name=m", "/ImagingStudy/none", "/ImagingStudy?x=y"):
        validate(version, get(server, path).json())
    orders = [order for facts in server.facts if (order := facts.request_id)]
    if version != "STU3":
        for order in orders:
            validate(version, get(server, f"/ServiceRequest/{order}").json())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_counts_and_uids_are_those_of_the_files(servers, files, version):
    held = [pydicom.dcmread(path) for path in files.glob("*.dcm")]
    bundle = search(servers[version]).json()
    assert bundle["total"] == len({each.StudyInstanceUID for each in held})
    resources = [entry["resource"] for entry in bundle["entry"]]
    plain = {
        uid.removeprefix("urn:oid:")
        for one in resources
        for s in one["series"]
        for uid in [i["uid"] for i in s["instance"]]
    }
    assert plain == {each.SOPInstanceUID for each in held}
    for one in resources:
        assert one["numberOfSeries"] == len(one["series"])
        assert one["numberOfInstances"] == sum(series["numberOfInstances"] for series in one["series"])


@pytest.mark.parametrize(("version", "profile"), [("R4", "mii"), ("STU3", ""), ("R5", "")])
def test_every_study_of_the_pydicom_wheel_makes_a_valid_resource(version, profile):
    root = Path(pydicom.__file__).parent / "data/test_files"
    options = FhirOptions(profile=profile, time_zone="Europe/Madrid", service_requests=True, page_size=100)
    with FhirSimulator(root, version, options) as server:
        entries = search(server, _include="ImagingStudy:patient").json()["entry"]
    assert sum(entry["search"]["mode"] == "match" for entry in entries) == len(server.facts) > 20
    for entry in entries:
        validate(version, entry["resource"])


def breast(server):
    version = server.version
    params = {"study": "urn:oid:1.2.3.1"} if version == "STU3" else {"identifier": "urn:dicom:uid|urn:oid:1.2.3.1"}
    return search(server, **params).json()["entry"][0]["resource"]


def test_stu3_writes_in_its_own_words(servers):
    study = breast(servers["STU3"])
    assert study["uid"] == "urn:oid:1.2.3.1"
    assert study["availability"] == "ONLINE"
    assert study["accession"]["value"] == "A 77"
    assert study["modalityList"] == [{"system": DCM, "code": "MG", "display": "Mammography"}]
    assert study["patient"]["reference"].startswith("Patient/")
    series = study["series"][0]
    assert (series["uid"], series["instance"][0]["uid"]) == ("urn:oid:1.2.3.2", "urn:oid:1.2.3.3")
    assert series["instance"][0]["sopClass"] == "urn:oid:1.2.840.10008.5.1.4.1.1.2"
    assert not {"identifier", "status", "subject", "modality"} & set(study)


def test_r4_writes_codings_and_r5_concepts(servers):
    old, new = breast(servers["R4"]), breast(servers["R5"])
    modality = {"system": DCM, "code": "MG", "display": "Mammography"}
    region = {"system": "http://snomed.info/sct", "code": "76752008", "display": "Breast"}
    assert (old["modality"], new["modality"]) == ([modality], [{"coding": [modality]}])
    assert (old["series"][0]["bodySite"], new["series"][0]["bodySite"]) == (region, {"concept": {"coding": [region]}})
    assert old["series"][0]["laterality"]["code"] == new["series"][0]["laterality"]["coding"][0]["code"] == "7771000"
    assert old["series"][0]["uid"] == "1.2.3.2"
    assert old["identifier"][0] == {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.2.3.1"}
    assert (old["identifier"][1]["system"], old["identifier"][1]["value"]) == (ACCESSIONS, "A 77")


def test_the_patient_has_the_name_and_the_issuer_of_the_file(r4):
    who = get(r4, "/Patient", params={"identifier": "urn:oid:1.2.276.0.76.4.8|Z123456789"}).json()["entry"][0][
        "resource"
    ]
    assert [(name["family"], name["given"]) for name in who["name"]] == [("Müller", ["Änne"]), ("山田", ["花子"])]
    assert who["name"][1]["extension"][0]["valueCode"] == "IDE"


def test_a_patient_without_an_identifier_has_none_and_is_shared_with_no_other(files, tmp_path):
    for number in "12":
        stored = pydicom.dcmread(files / "CT_small.dcm")
        stored.PatientID, stored.StudyInstanceUID, stored.SOPInstanceUID = "", f"1.2.{number}", f"1.2.3.{number}"
        stored.file_meta.MediaStorageSOPInstanceUID = stored.SOPInstanceUID
        stored.save_as(tmp_path / f"{number}.dcm")
    with FhirSimulator(tmp_path) as server:
        bundle = search(server, _include="ImagingStudy:patient").json()
        people = [e["resource"] for e in bundle["entry"] if e["search"]["mode"] == "include"]
        assert len(people) == 2
        assert not any("identifier" in who for who in people)


@pytest.mark.parametrize(
    ("options", "study", "started"),
    [
        ({}, CT, "2004-01-19T07:27:30-05:00"),
        ({}, "1.2.3.1", "2024-07-19"),
        ({"time_zone": "Europe/Vilnius"}, "1.2.3.1", "2024-07-19T12:03:30.500+03:00"),
        ({"time_zone": "Europe/Vilnius"}, CT, "2004-01-19T07:27:30-05:00"),
        ({"time_zone": "Europe/Vilnius"}, ABDOMEN, "2005-11-30T13:26:45.921+02:00"),
    ],
)
def test_started_has_an_offset_or_is_a_date(peer, options, study, started):
    server = peer(**options)
    found = search(server, identifier=f"urn:dicom:uid|urn:oid:{study}").json()["entry"][0]["resource"]
    assert found["started"] == started


def test_the_endpoint_is_where_the_pixels_are(servers, peer):
    for version in VERSIONS:
        bundle = search(servers[version], _include="ImagingStudy:endpoint").json()
        pacs = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "include"]
        assert [one["address"] for one in pacs] == ["http://127.0.0.1:9/dicom-web"]
    assert "endpoint" not in search(peer()).json()["entry"][0]["resource"]
    on_series = search(peer(dicomweb_url="http://x/y", endpoint_at="series"), _include="ImagingStudy:endpoint").json()
    assert "endpoint" not in on_series["entry"][0]["resource"]
    assert on_series["entry"][0]["resource"]["series"][0]["endpoint"] == [{"reference": "Endpoint/pacs"}]
    assert on_series["entry"][-1]["resource"]["address"] == "http://x/y"


# -- search


R4_SEARCHES = [
    ({"identifier": f"urn:dicom:uid|urn:oid:{CT}"}, {CT}),
    ({"identifier": f"urn:oid:{CT}"}, {CT}),
    ({"identifier": CT}, set()),
    ({"identifier": f"{ACCESSIONS}|A 77"}, {"1.2.3.1"}),
    ({"identifier": "other|A 77"}, set()),
    ({"patient.identifier": f"{PATIENTS}|1CT1"}, {CT}),
    ({"patient.identifier": "1CT1,4MR1"}, {CT, MR}),
    ({"patient:Patient.identifier": "Z123456789"}, {"1.2.3.1"}),
    ({"subject.identifier": "|1CT1"}, set()),
    ({"patient.identifier": "urn:oid:1.2.276.0.76.4.8|"}, {"1.2.3.1"}),
    ({"patient.family": "müll"}, {"1.2.3.1"}),
    ({"patient.name": "compressedsamples"}, {CT, MR}),
    ({"modality": f"{DCM}|CT"}, {CT}),
    ({"modality": "CT,MG"}, {CT, "1.2.3.1"}),
    ({"modality": "ct"}, set()),
    ({"bodysite": "http://snomed.info/sct|76752008"}, {"1.2.3.1"}),
    ({"series": "1.2.3.2"}, {"1.2.3.1"}),
    ({"instance": "1.2.3.3"}, {"1.2.3.1"}),
    ({"instance": "urn:oid:1.2.3.3"}, set()),
    ({"dicom-class": "urn:ietf:rfc:3986|urn:oid:1.2.840.10008.5.1.4.1.1.4", "started": "2004"}, {MR}),
    ({"status": "available", "instance": "1.2.3.3"}, {"1.2.3.1"}),
    ({"status": "cancelled"}, set()),
    ({"endpoint": "Endpoint/pacs", "instance": "1.2.3.3"}, {"1.2.3.1"}),
    ({"endpoint": "Endpoint/other"}, set()),
    ({"basedon.identifier": "A 77"}, {"1.2.3.1"}),
    ({"started": "2004-01-19"}, {CT}),
    ({"started": "eq2004"}, {CT, MR}),
    ({"started": ["ge2004-01-20", "lt2005"]}, {MR}),
    ({"started": "2004-01-19T12:27:30Z"}, {CT}),
    ({"started": "2004-01-19T07:27:30Z"}, set()),
    ({"started": ["gt2004-01-19T07:27:29-05:00", "le2004-01-19T07:27:30-05:00"]}, {CT}),
    ({"started": "sa2024-07-18"}, {"1.2.3.1"}),
    ({"started": ["eb2004-08-26", "sa2003"]}, {CT}),
    ({"modality": "CT", "started": "2024"}, set()),
]


@pytest.mark.parametrize(("params", "found"), R4_SEARCHES)
def test_r4_search(r4, params, found):
    assert studies(get(r4, "/ImagingStudy", params=params)) == found


def test_a_study_is_found_by_its_patient_however_the_reference_is_written(r4):
    study = search(r4, identifier=f"urn:oid:{CT}").json()["entry"][0]["resource"]
    reference = study["subject"]["reference"]
    for written in (reference, reference.split("/")[1], f"{r4.url}/{reference}"):
        assert studies(search(r4, patient=written)) == {CT}
        assert studies(search(r4, subject=written)) == {CT}
    assert studies(search(r4, patient=f"Group/{reference.split('/')[1]}")) == set()
    assert studies(search(r4, _id=study["id"])) == {CT}


@pytest.mark.parametrize(
    ("version", "params", "found"),
    [
        ("STU3", {"study": f"urn:oid:{CT}"}, {CT}),
        ("STU3", {"series": "urn:oid:1.2.3.2"}, {"1.2.3.1"}),
        ("STU3", {"uid": "urn:oid:1.2.3.3"}, {"1.2.3.1"}),
        ("STU3", {"accession": "A 77"}, {"1.2.3.1"}),
        ("STU3", {"patient.identifier": "1CT1"}, {CT}),
        ("STU3", {"modality": "MG"}, {"1.2.3.1"}),
        ("STU3", {"bodysite": "76752008"}, {"1.2.3.1"}),
        ("STU3", {"started": "2004-01"}, {CT}),
        ("R5", {"body-site": "76752008"}, {"1.2.3.1"}),
        ("R5", {"based-on.identifier": "A 77"}, {"1.2.3.1"}),
        ("R5", {"identifier": f"urn:dicom:uid|urn:oid:{MR}"}, {MR}),
        ("R4B", {"bodysite": "76752008"}, {"1.2.3.1"}),
    ],
)
def test_the_other_versions_search_by_their_own_names(servers, version, params, found):
    assert studies(get(servers[version], "/ImagingStudy", params=params)) == found


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("STU3", "identifier"),
        ("STU3", "status"),
        ("STU3", "subject"),
        ("R4", "body-site"),
        ("R5", "bodysite"),
        ("R4", "x"),
    ],
)
def test_a_parameter_of_another_version_is_unknown(servers, version, name):
    answer = get(servers[version], "/ImagingStudy", params={name: "a"})
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"


def test_an_unknown_parameter_is_left_out_when_the_caller_is_lenient(r4):
    params = {"shoe-size": "43", "modality": "CT"}
    answer = get(r4, "/ImagingStudy", params=params, headers={"Prefer": "handling=lenient"})
    assert studies(answer) == {CT}
    assert "shoe-size" not in answer.json()["link"][0]["url"]
    assert "modality=CT" in answer.json()["link"][0]["url"]


@pytest.mark.parametrize(
    "params", [{"started": "yesterday"}, {"started": "2004-13"}, {"_count": "x"}, {"_include": "Patient:x"}]
)
def test_a_value_that_cannot_be_understood_is_400(r4, params):
    assert get(r4, "/ImagingStudy", params=params).status_code == 400


def test_next_links_lead_through_every_study_once(servers):
    for server in servers.values():
        seen, address = [], f"{server.url}/ImagingStudy?_count=2&_include=ImagingStudy:endpoint"
        while address:
            bundle = httpx.get(address, verify=TRUST).json()
            validate(server.version, bundle)
            page = [entry["resource"]["id"] for entry in bundle["entry"] if entry["search"]["mode"] == "match"]
            assert len(page) <= 2
            assert sum(entry["search"]["mode"] == "include" for entry in bundle["entry"]) == 1
            seen += page
            address = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
            assert address is None or "ImagingStudy" not in address, "the link is opaque"
        assert sorted(seen) == sorted(facts.id for facts in server.facts)


def test_the_server_gives_no_more_than_its_own_page_size(peer):
    bundle = search(peer(page_size=1), _count="100").json()
    assert len(bundle["entry"]) == 1
    assert [link["relation"] for link in bundle["link"]] == ["self", "next"]


def test_a_page_that_never_was_is_gone(r4):
    assert get(r4, "?_getpages=nonsense&_getpagesoffset=2").status_code == 410


def test_a_count_of_zero_gives_the_total_alone(r4):
    for params in ({"_count": "0"}, {"_summary": "count"}):
        bundle = search(r4, **params).json()
        assert "entry" not in bundle
        assert bundle["total"] == len(r4.facts)


def test_a_search_may_be_posted_as_a_form(r4):
    answer = httpx.post(f"{r4.url}/ImagingStudy/_search", data={"patient.identifier": "1CT1"})
    assert studies(answer) == {CT}
    assert r4.seen[-1].target == "/fhir/ImagingStudy/_search", "no identifier in the address"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_capability_statement_names_the_version_and_what_can_be_searched(servers, version):
    server = servers[version]
    statement = get(server, "/metadata").json()
    assert statement["fhirVersion"] == {"STU3": "3.0.2", "R4": "4.0.1", "R4B": "4.3.0", "R5": "5.0.0"}[version]
    study = next(one for one in statement["rest"][0]["resource"] if one["type"] == "ImagingStudy")
    for parameter in study["searchParam"]:
        value = "2020" if parameter["type"] == "date" else "a"
        assert get(server, "/ImagingStudy", params={parameter["name"]: value}).status_code == 200
    for include in study["searchInclude"]:
        assert get(server, "/ImagingStudy", params={"_include": include}).status_code == 200


def test_only_json_of_its_own_version_is_written(r4):
    for accept, status in [
        ("application/fhir+json; fhirVersion=4.0", 200),
        ("application/fhir+json; fhirVersion=5.0", 406),
        ("application/fhir+xml", 406),
        ("application/fhir+xml, */*", 200),
    ]:
        assert get(r4, "/ImagingStudy", headers={"Accept": accept}).status_code == status


# -- the German profile


@pytest.fixture
def mii(peer):
    return peer(
        profile="mii",
        dicomweb_url="http://x/dicom-web",
        issuer_systems={"1.2.276.0.76.4.8": "http://fhir.de/sid/gkv/kvid-10"},
    )


def test_an_mii_study_is_written_as_the_national_profile_asks(mii):
    study = breast(mii)
    profiles = "https://www.medizininformatik-initiative.de/fhir/ext/modul-bildgebung/StructureDefinition/"
    validate("R4", study)
    assert study["meta"]["profile"] == [profiles + "mii-pr-bildgebung-bildgebungsstudie"]
    assert study["extension"] == [
        {"url": profiles + "mii-ex-bildgebung-bildgebungsgrund", "valueString": "Verdacht auf Karzinom"}
    ]
    assert study["subject"]["identifier"]["system"] == "http://fhir.de/sid/gkv/kvid-10"
    assert study["subject"]["identifier"]["value"] == "Z123456789"
    assert study["started"] == "2024-07-19T12:03:30.500+02:00"
    assert study["series"][0]["started"] == "2024-07-19T12:04:00+02:00"
    assert study["series"][0]["bodySite"]["system"] == "http://snomed.info/sct"
    assert [one["system"] for one in study["identifier"]] == ["urn:dicom:uid"], "no slice for the accession number"


def test_the_mii_accession_number_is_in_the_order(mii):
    study = breast(mii)
    order = study["basedOn"][0]
    assert (order["identifier"]["system"], order["identifier"]["value"]) == (ACCESSIONS, "A 77")
    request = get(mii, "/" + order["reference"]).json()
    validate("R4", request)
    assert request["identifier"] == [order["identifier"]]
    assert request["subject"] == study["subject"]
    assert studies(search(mii, basedon__identifier="A 77")) == {"1.2.3.1"}
    assert studies(search(mii, basedon_dot_identifier=f"{ACCESSIONS}|A 77")) == {"1.2.3.1"}
    assert studies(search(mii, identifier="A 77")) == set()
    assert studies(search(mii, patient__identifier="http://fhir.de/sid/gkv/kvid-10|Z123456789")) == {"1.2.3.1"}


def test_an_mii_study_uses_the_extensions_of_the_published_examples(mii):
    examples = sorted(MII_DATA.glob("ImagingStudy-*.json"))
    if not examples:
        pytest.skip(f"the MII examples are not at {MII_DATA}")

    def urls(value):
        if isinstance(value, dict):
            yield from ([value["url"]] if "url" in value else [])
            value = list(value.values())
        for one in value if isinstance(value, list) else []:
            yield from urls(one)

    published = {url for path in examples for url in urls(json.loads(path.read_text()))}
    written = {url for entry in search(mii).json()["entry"] for url in urls(entry["resource"])}
    assert written <= published
    assert any("modalitaet-ct" in url for url in written)


# -- who may ask, and faults


def test_basic_and_bearer_are_asked_for_but_not_by_the_capability_statement(peer):
    basic, bearer = peer(basic=("u", "p")), peer(bearer="t")
    assert get(basic, "/ImagingStudy").status_code == get(bearer, "/ImagingStudy").status_code == 401
    assert get(basic, "/metadata").status_code == 200
    encoded = base64.b64encode(b"u:p").decode()
    assert get(basic, "/ImagingStudy", headers={"Authorization": f"Basic {encoded}"}).status_code == 200
    assert get(bearer, "/ImagingStudy", headers={"Authorization": "Bearer t"}).status_code == 200


def test_an_ignored_parameter_lets_every_study_through_and_the_server_says_nothing(peer):
    answer = search(peer(ignores_parameters=frozenset({"modality"})), modality="CT", started="2004")
    assert studies(answer) == {CT, MR}
    assert "modality=CT" in answer.json()["link"][0]["url"]


def test_a_foreign_study_is_given_for_the_one_named(peer):
    server = peer(foreign_study=True)
    assert CT not in studies(search(server, identifier=f"urn:dicom:uid|urn:oid:{CT}"))
    id_ = server.facts[0].id
    assert get(server, f"/ImagingStudy/{id_}").json()["id"] != id_
    assert len(studies(search(server))) == len(server.facts)


def test_garbage_errors_and_delays(peer):
    with pytest.raises(ValueError):
        search(peer(garbage_json=True)).json()
    assert search(peer(status_500=True)).status_code == 500
    began = time.monotonic()
    assert search(peer(delay=0.3)).status_code == 200
    assert time.monotonic() - began >= 0.3


def test_a_black_hole_never_answers_and_still_stops_at_once(peer):
    server = peer(black_hole=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{server.url}/ImagingStudy", timeout=0.3)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 4


def test_a_fault_of_one_operation_leaves_the_server_as_it_is_otherwise(peer):
    server = peer(status_500=True, dicomweb_url="http://x/y", faulty_operations=frozenset({"read_Patient"}))
    study = search(server).json()["entry"][0]["resource"]
    assert study["endpoint"]
    assert get(server, "/" + study["subject"]["reference"]).status_code == 500
    server.options = replace(server.options, status_500=False)
    assert get(server, "/" + study["subject"]["reference"]).status_code == 200
    assert server.operations == {"search_ImagingStudy": 1, "read_Patient": 2}


def test_every_study_comes_twice_when_asked_for(peer):
    whole = search(peer()).json()["total"]
    assert search(peer(duplicates=True)).json()["total"] == 2 * whole
