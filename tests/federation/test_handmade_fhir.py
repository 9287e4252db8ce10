"""What FHIR servers do that no product at hand does: patients that are not read, or of other servers, answers not whole."""

import pytest
from running import Gateway, files_node
from specimens import specimen

from tests.faults.leftovers import eventually
from tests.handmade import (
    FHIR_JSON,
    capabilities,
    dicomweb_node,
    facade,
    fhir_node,
    given,
    imaging_study,
    patient,
    searchset,
    server,
)
from tests.peers import free_port

ELSEWHERE = "https://regional.example/fhir"


def searched(*entries, base=None):
    """A server whose one search gives these entries; addresses begin with its own, or with `base`."""

    def respond(method, path, query, body, port):
        if path == "/fhir/metadata":
            return given(capabilities("identifier", "started"), FHIR_JSON)
        if path != "/fhir/ImagingStudy":
            return given({}, FHIR_JSON, 404)
        return given(addressed(entries, base or f"http://127.0.0.1:{port}/fhir"), FHIR_JSON)

    return respond


def addressed(entries, base):
    return searchset(*((url if "://" in url or not url else f"{base}/{url}", resource) for url, resource in entries))


def reporting(*entries):
    """A server that gives these entries to each search for reports; addresses begin with its own."""

    def respond(method, path, query, body, port):
        name = path.removeprefix("/fhir/")
        if name == "metadata":
            statement = capabilities("identifier", "started")
            searched = [{"name": "identifier", "type": "token"}, {"name": "patient", "type": "reference"}]
            statement["rest"][0]["resource"].append({"type": "DiagnosticReport", "searchParam": searched})
            return given(statement, FHIR_JSON)
        if name == "DiagnosticReport":
            return given(addressed(entries, f"http://127.0.0.1:{port}/fhir"), FHIR_JSON)
        own = dict(entries)
        return given(own[name], FHIR_JSON) if name in own else given({}, FHIR_JSON, 404)

    return respond


def report(name, patient_id):
    subject = {"type": "Patient", "identifier": {"value": patient_id}}
    more = {"status": "final", "code": {"text": "CT"}, "identifier": [{"value": "A1"}]}
    return {"resourceType": "DiagnosticReport", "id": name, "subject": subject, **more}


def patients_by_study(gateway):
    rows = gateway.get("/dicom-web/studies").json()
    return {row["0020000D"]["Value"][0]: row.get("00100020", {}).get("Value", [None])[0] for row in rows}


# --- patients that are not read


def test_a_study_is_found_by_a_patient_whom_the_server_gives_only_one_by_one():
    with server(facade(60)) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies", params={"PatientID": "ID57"})
        assert [row["0020000D"]["Value"] for row in answer.json()] == [["1.2.3.57"]]


def test_a_study_whose_patient_was_not_read_is_not_silently_missing_from_a_search_by_patient():
    with server(facade(220)) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert len(gateway.get("/dicom-web/studies", params={"PatientID": "ID3"}).json()) == 1
        last = gateway.get("/dicom-web/studies", params={"PatientID": "ID217"})
        assert "does not give PatientID" in last.headers["warning"]


def test_nor_where_the_server_fails_to_give_the_patient():
    with server(facade(3, broken={1})) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies", params={"PatientID": "ID1"})
        assert "does not give PatientID" in answer.headers["warning"]
        assert "no-store" in answer.headers["cache-control"]


def test_what_a_study_does_not_say_is_not_looked_for_in_its_series():
    asked = []
    archive = facade(100, broken=range(100))

    def respond(method, path, *rest):
        asked.append(path)
        return archive(method, path, *rest)

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies", params={"PatientID": "ID1"})
        assert "does not give PatientID" in answer.headers["warning"]
    assert asked.count("/fhir/ImagingStudy") == 1


def test_a_patient_that_was_not_asked_for_is_not_taken_for_the_one_that_was():
    with server(facade(2, p0=patient("somebody-else", "ELSE"))) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert patients_by_study(gateway) == {"1.2.3.0": None, "1.2.3.1": "ID1"}


# --- resources of other servers


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_a_study_is_of_the_patient_that_it_names_and_not_of_another_servers(order):
    entries = [
        ("ImagingStudy/s1", imaging_study(1, {"reference": "Patient/1"})),
        ("ImagingStudy/s2", imaging_study(2, {"reference": f"{ELSEWHERE}/Patient/1"})),
        ("Patient/1", patient("1", "AAA")),
        (f"{ELSEWHERE}/Patient/1", patient("1", "BBB")),
    ]
    with server(searched(*(entries[place] for place in order))) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert patients_by_study(gateway) == {"1.2.3.1": "AAA", "1.2.3.2": "BBB"}


def test_a_relative_reference_is_to_the_server_whose_study_it_is():
    entries = [
        ("ImagingStudy/s1", imaging_study(1, {"reference": "Patient/1"})),
        (f"{ELSEWHERE}/ImagingStudy/s1", imaging_study(2, {"reference": "Patient/1"})),
        (f"{ELSEWHERE}/Patient/1", patient("1", "BBB")),
        ("Patient/1", patient("1", "AAA")),
    ]
    with server(searched(*entries)) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert patients_by_study(gateway) == {"1.2.3.1": "AAA", "1.2.3.2": "BBB"}


def test_a_server_may_know_itself_by_another_address():
    entries = [("ImagingStudy/s1", imaging_study(1, {"reference": "Patient/1"})), ("Patient/1", patient("1", "AAA"))]
    behind_a_proxy = searched(*entries, base="http://internal.example:8080/fhir")
    with server(behind_a_proxy) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert patients_by_study(gateway) == {"1.2.3.1": "AAA"}


def passing_on(*entries, itself):
    """A server with a Patient/1 of its own, which gives entries of others; `itself` is the address in its self link."""

    def respond(method, path, query, body, port):
        if path == "/fhir/metadata":
            return given(capabilities("identifier", "started"), FHIR_JSON)
        if path == "/fhir/Patient/1":
            return given(patient("1", "OWN"), FHIR_JSON)
        if path != "/fhir/ImagingStudy":
            return given({}, FHIR_JSON, 404)
        base = f"http://127.0.0.1:{port}/fhir"
        link = {"relation": "self", "url": f"{itself or base}/ImagingStudy?started=ge2000"}
        return given({**searchset(*entries), "link": [link]}, FHIR_JSON)

    return respond


@pytest.mark.parametrize("reference", ["Patient/1", f"{ELSEWHERE}/Patient/1"])
@pytest.mark.parametrize(("itself", "whose"), [("", None), ("http://internal.example/fhir", None), (ELSEWHERE, "OWN")])
def test_whose_entries_they_are_is_told_by_the_self_link(reference, itself, whose):
    """A server that passes on what one other has answers as one that knows itself by another address, but for that link."""
    study = imaging_study(1, {"reference": reference})
    with (
        server(passing_on((f"{ELSEWHERE}/ImagingStudy/s1", study), itself=itself)) as port,
        Gateway([fhir_node("n", port)]) as gateway,
    ):
        assert patients_by_study(gateway) == {"1.2.3.1": whose}


def test_studies_without_an_id_are_not_taken_for_one():
    studies = [imaging_study(number, {"identifier": {"value": f"P{number}"}}) for number in range(3)]
    for study in studies:
        del study["id"]
    with server(searched(*(("", study) for study in studies))) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert len(patients_by_study(gateway)) == 3


def test_reports_of_one_id_at_two_servers_behind_one_node_are_two_and_an_id_reads_the_one_that_it_was_given_to():
    reports = [
        ("DiagnosticReport/1", report("1", "AAA")),
        (f"{ELSEWHERE}/DiagnosticReport/1", report("1", "BBB")),
        ("https://r.example/fhir/DiagnosticReport/2", report("2", "CCC")),
        ("DiagnosticReport/2", report("2", "DDD")),
    ]
    with server(reporting(*reports)) as port, Gateway([fhir_node("n", port)]) as gateway:
        for _ in range(2):  # as it came, and as it was kept
            entries = gateway.get("/fhir/DiagnosticReport?identifier=A1").json()["entry"]
            ids = {one["resource"]["subject"]["identifier"]["value"]: one["resource"]["id"] for one in entries}
            assert len({*ids.values()}) == len(ids) == 4
        for whose, identifier in ids.items():
            read = gateway.get(f"/fhir/DiagnosticReport/{identifier}")
            assert read.status_code == 404 or read.json()["subject"]["identifier"]["value"] == whose
        assert [gateway.get(f"/fhir/DiagnosticReport/{ids[one]}").status_code for one in ("AAA", "DDD")] == [200, 200]


def test_reports_of_a_study_are_found_where_the_server_writes_its_own_address_into_each_reference():
    itself = "http://internal.example/fhir"
    about = {
        "subject": {"reference": f"{itself}/Patient/p1"},
        "imagingStudy": [{"reference": f"{itself}/ImagingStudy/s1"}],
    }
    entries = {
        "ImagingStudy": imaging_study(1, {"reference": f"{itself}/Patient/p1"}),
        "DiagnosticReport": {**report("1", ""), **about},
    }
    whole = reporting(("Patient/p1", patient("p1", "AAA")))

    def respond(method, path, *rest):
        kind = path.removeprefix("/fhir/")
        if kind not in entries:
            return whole(method, path, *rest)
        bundle = searchset((f"{itself}/{kind}/{entries[kind]['id']}", entries[kind]))
        return given(
            {**bundle, "link": [{"relation": "self", "url": f"https://internal.example/fhir/{kind}?identifier=x"}]},
            FHIR_JSON,
        )

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        (entry,) = gateway.get("/fhir/DiagnosticReport?study=ImagingStudy/1.2.3.1").json()["entry"]
    assert entry["resource"]["subject"]["identifier"]["value"] == "AAA"


@pytest.mark.parametrize(("status", "is_named"), [(403, True), (500, True), (404, False), (410, False)])
def test_reports_of_studies_that_could_not_be_read_may_be_of_the_one_asked_for_and_are_named(status, is_named):
    """One that is gone is not the one asked for, which the server has."""
    own = imaging_study(1, {"reference": "Patient/p1"})
    reports = {
        name: {
            **report(name, ""),
            "subject": {"reference": "Patient/p1"},
            "imagingStudy": [{"reference": f"ImagingStudy/{study}"}],
        }
        for name, study in {"1": own["id"], "2": "hidden", "3": "hidden"}.items()
    }
    whole = reporting(
        *((f"DiagnosticReport/{name}", one) for name, one in reports.items()), ("Patient/p1", patient("p1", "AAA"))
    )

    def respond(method, path, query, body, port):
        if path == "/fhir/ImagingStudy":
            return given(addressed([(f"ImagingStudy/{own['id']}", own)], f"http://127.0.0.1:{port}/fhir"), FHIR_JSON)
        if path == "/fhir/ImagingStudy/hidden":
            return given({}, FHIR_JSON, status)
        return whole(method, path, query, body, port)

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        for _ in range(2):  # as it came, and as it was kept
            answer = gateway.get("/fhir/DiagnosticReport?study=ImagingStudy/1.2.3.1")
            found = [one["resource"] for one in answer.json()["entry"]]
            assert [one["id"][-2:] for one in found if one["resourceType"] == "DiagnosticReport"] == ["-1"]
            assert ("node n: could not read 1 study that its DiagnosticReport" in answer.text) is is_named
            assert ("total" not in answer.json()) is is_named


# --- nonsense

OWN = {"type": "ImagingStudy", "searchParam": [{"name": "identifier", "type": "token"}]}
DEEP = '{"resourceType": "ImagingStudy", "id": "1", "extension": ' + "[" * 990 + "]" * 990 + "}"


@pytest.mark.parametrize(
    "more",
    [
        '"link": [{"relation": ["next"], "url": "http://x/"}]',
        '"link": [{"relation": "self", "url": "http://[x/?identifier=1"}]',
        f'"link": [], "entry": [{{"fullUrl": "http://a/ImagingStudy/1", "resource": {DEEP}}}]',
        f"""
        "entry": [{{"fullUrl": "http://a/ImagingStudy/2", "resource": {{"resourceType": "ImagingStudy", "id": "2"}}}},
                  {{"fullUrl": "http://b/ImagingStudy/1", "resource": {DEEP}}}]
        """,
    ],
)
def test_a_bundle_of_nonsense_is_no_fault_of_the_gateways(more):
    def respond(method, path, *_):
        if path == "/fhir/metadata":
            return given(capabilities("identifier"), FHIR_JSON)
        return 200, FHIR_JSON, f'{{"resourceType": "Bundle", "type": "searchset", {more}}}'.encode()

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        for path in ("/fhir/ImagingStudy", "/fhir/ImagingStudy?identifier=A1"):
            assert "GW000" not in gateway.get(path).text


def test_a_report_too_deep_to_be_kept_is_named_and_takes_no_others_with_it():
    deep = {}
    for _ in range(300):
        deep = {"extension": [deep]}
    entries = [("DiagnosticReport/1", {**report("1", "P"), **deep}), ("DiagnosticReport/2", report("2", "P"))]
    with server(reporting(*entries)) as port, Gateway([fhir_node("n", port)]) as gateway:
        for _ in range(2):  # as it came, and as it was kept
            found, outcome = gateway.get("/fhir/DiagnosticReport?identifier=A1").json()["entry"]
            assert found["resource"]["id"].endswith("-2")
            assert "gave 1 resources that cannot be passed on" in outcome["resource"]["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    "resources",
    [
        7,
        None,
        [{"type": ["ImagingStudy"]}, OWN],
        [{"type": "ImagingStudy", "searchParam": 7}],
        [{**OWN, "searchInclude": 7}],
        [{**OWN, "searchInclude": [7, {}]}],
        [OWN, {"type": "Patient", "searchParam": {"name": "identifier"}}],
    ],
)
def test_nor_is_a_capability_statement_of_nonsense(resources):
    def respond(method, path, *_):
        if path == "/fhir/metadata":
            rest = [{"resource": resources}]
            return given({"resourceType": "CapabilityStatement", "fhirVersion": 4, "rest": rest}, FHIR_JSON)
        return given(searchset(), FHIR_JSON)

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert "GW000" not in gateway.get("/fhir/ImagingStudy").text


# --- answers that are not whole


def test_a_partial_answer_of_a_gateway_behind_this_one_is_partial_here_too(tmp_path):
    specimen(tmp_path, "P", "s")
    nodes = [files_node("f", tmp_path), dicomweb_node("down", free_port())]
    with Gateway(nodes) as inner, Gateway([fhir_node("inner", inner.port)]) as outer:
        answer = outer.get("/dicom-web/studies")
    assert len(answer.json()) == 1
    assert "node inner: says that its answer is not whole" in answer.headers["warning"]


@pytest.mark.parametrize(
    ("severity", "code", "is_partial"),
    [
        ("error", "processing", True),
        ("warning", "incomplete", True),
        ("warning", "not-supported", False),
        ("information", "informational", False),
    ],
)
def test_an_outcome_among_the_results_counts_where_it_tells_of_a_gap(severity, code, is_partial):
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": code}]}
    study = imaging_study(1, {"identifier": {"value": "P"}})
    with (
        server(searched(("ImagingStudy/s1", study), ("", outcome))) as port,
        Gateway([fhir_node("n", port)]) as gateway,
    ):
        assert ("warning" in gateway.get("/dicom-web/studies").headers) is is_partial


def test_reports_of_a_server_that_says_itself_that_some_are_missing_are_not_told_as_all():
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "processing"}]}
    with (
        server(reporting(("DiagnosticReport/1", report("1", "P")), ("", outcome))) as port,
        Gateway([fhir_node("n", port)]) as gateway,
    ):
        for _ in range(2):  # as it came, and as it was kept
            answer = gateway.get("/fhir/DiagnosticReport?identifier=A1")
            assert "node n: says that its answer is not whole" in answer.text
            assert "no-store" in answer.headers["cache-control"]
            assert "total" not in answer.json()


def paging(total, *pages, kind="ImagingStudy"):
    """A server that tells of `total` matches and gives those of each page, the next one linked."""

    def respond(method, path, query, *_):
        if path.endswith("metadata"):
            return given(capabilities("identifier"), FHIR_JSON)
        number = int(query.get("page", ["0"])[0])
        bundle = addressed([(f"{kind}/{one['id']}", one) for one in pages[number]], "http://internal.example/fhir")
        more = {"link": [{"relation": "next", "url": f"{kind}?page={number + 1}"}]} if number + 1 < len(pages) else {}
        return given({**bundle, "total": total, **more}, FHIR_JSON)

    return respond


STUDIES = [imaging_study(number, {"identifier": {"value": "P"}}) for number in range(5)]


@pytest.mark.parametrize(
    ("total", "pages", "is_cut"),
    [
        (5, [STUDIES[:3]], True),
        (3, [STUDIES[:3]], False),
        (9, [STUDIES[:2], STUDIES[2:4]], True),
        (4, [STUDIES[:2], STUDIES[2:4]], False),
        (9, [STUDIES[:3], STUDIES[3:]], False),  # an estimate
        (1, [STUDIES[:3]], False),
        ("many", [STUDIES[:3]], False),
    ],
)
def test_a_server_that_tells_of_more_studies_than_it_gives_says_that_its_answer_is_not_whole(total, pages, is_cut):
    with server(paging(total, *pages)) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies")
    assert len(answer.json()) == sum(map(len, pages))
    assert ("says that its answer is not whole" in answer.headers.get("warning", "")) is is_cut
    assert ("no-store" in answer.headers["cache-control"]) is is_cut


@pytest.mark.parametrize(
    "link", [{"relation": "next"}, {"relation": "next", "url": None}, {"relation": "next", "url": [""]}]
)
def test_nor_is_an_answer_whole_whose_next_page_has_no_address(link):
    def respond(method, path, *_):
        if path == "/fhir/metadata":
            return given(capabilities("identifier"), FHIR_JSON)
        return given({**searchset(("", STUDIES[0])), "link": [link]}, FHIR_JSON)

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/dicom-web/studies")
    assert len(answer.json()) == 1
    assert "says that its answer is not whole" in answer.headers["warning"]


def test_nor_is_it_where_a_server_tells_of_more_reports_than_it_gives():
    whole = reporting(("DiagnosticReport/1", report("1", "P")))

    def respond(method, path, *rest):
        status, headers, body = whole(method, path, *rest)
        return status, headers, body.replace(b'"searchset"', b'"searchset", "total": 2')

    with server(respond) as port, Gateway([fhir_node("n", port)]) as gateway:
        answer = gateway.get("/fhir/DiagnosticReport?identifier=A1")
    assert "node n: says that its answer is not whole" in answer.text
    assert "total" not in answer.json()


@pytest.mark.parametrize("is_probed", [True, False])
def test_a_study_is_found_by_a_modality_that_none_of_its_series_says(is_probed):
    """The parameter `modality` of R4 looks at the series alone."""
    one = {**imaging_study(1, {"reference": "Patient/p1"}), "series": [], "modality": [{"code": "MG"}]}
    everything = searchset(("http://x/fhir/ImagingStudy/s1", one), ("http://x/fhir/Patient/p1", patient("p1", "7")))
    names = ("identifier", "patient", "started", "modality")

    def respond(method, path, query, *_):
        if path.endswith("metadata"):
            return given(capabilities(*names, includes=["ImagingStudy:patient"]), FHIR_JSON)
        return given(searchset() if "modality" in query else everything, FHIR_JSON)

    with server(respond) as port, Gateway([fhir_node("n", port)], cache=False, probe=is_probed) as gateway:
        if not is_probed:  # seen in another search
            assert gateway.get("/dicom-web/studies").json()
        assert eventually(lambda: gateway.get("/dicom-web/studies?ModalitiesInStudy=MG").json())
        found = gateway.get("/dicom-web/studies?ModalitiesInStudy=MG").json()
        others = gateway.get("/dicom-web/studies?ModalitiesInStudy=CT").json()
    assert [row["00080061"]["Value"] for row in found] == [["MG"]]
    assert others == []


# --- what the studies say


@pytest.mark.parametrize("place", ["identifier", "basedOn"])
def test_a_study_is_found_by_its_accession_number_together_with_whose_number_it_is(place):
    number = {"type": {"coding": [{"code": "ACSN"}]}, "system": "urn:oid:2.999.7", "value": "A1"}
    study = imaging_study(1, {"identifier": {"value": "1"}})
    study[place] = [*study.get(place, []), number if place == "identifier" else {"identifier": number}]
    with server(searched(("ImagingStudy/s1", study))) as port, Gateway([fhir_node("n", port)]) as gateway:

        def found(**asked):
            return gateway.get("/fhir/ImagingStudy", params=asked).json()["total"]

        assert found(identifier="urn:oid:2.999.7|A1") == 1
        assert found(**{"basedon:identifier": "urn:oid:2.999.7|A1"}) == 1
        assert found(identifier="urn:oid:2.999.8|A1") == found(**{"identifier:not": "urn:oid:2.999.7|A1"}) == 0


@pytest.mark.parametrize("system", ["urn:mrn", "urn:nation"])
def test_a_study_is_found_by_every_identifier_that_its_patient_has_at_the_server(system):
    kind = {"coding": [{"code": "MR"}]}
    known = [{"system": "urn:nation", "value": "1"}, {"system": "urn:mrn", "value": "1", "type": kind}]
    known += [{"system": "urn:mrn", "value": "2", "use": "old"}]  # two of one issuer: who has the other one now?
    eva = {"resourceType": "Patient", "id": "eva", "identifier": known, "name": [{"family": "Lind"}]}
    ada = {"resourceType": "Patient", "id": "ada", "identifier": [{"system": "urn:nation", "value": "2"}]}
    named = {one["id"]: {"reference": f"Patient/{one['id']}"} for one in (eva, ada)}
    studies = [(f"ImagingStudy/s{n}", imaging_study(n, named[one])) for n, one in enumerate(("eva", "ada", "eva"))]
    entries = [*studies, ("Patient/eva", eva), ("Patient/ada", ada)]
    with server(searched(*entries)) as port, Gateway([fhir_node("n", port)]) as gateway:

        def found(path, **asked):
            entries = gateway.get(f"/fhir/{path}", params=asked).json().get("entry", ())
            return [entry["resource"]["id"] for entry in entries]

        assert found("ImagingStudy", **{"patient.identifier": f"{system}|1"}) == ["1.2.3.0", "1.2.3.2"]
        assert found("ImagingStudy", **{"patient.identifier": f"{system}|1", "patient.name": "Lind", "modality": "MG"})
        assert not found("ImagingStudy", **{"patient.identifier": f"{system}|1", "modality": "CT"})
        assert not found("ImagingStudy", **{"patient.identifier": "urn:mrn|2"})
        (her,) = found("Patient", identifier=f"{system}|1")
        assert [her] == found("Patient", identifier="urn:mrn|1")
        shown = gateway.get(f"/fhir/Patient/{her}").json()["identifier"]
        assert [(one["system"], one["value"]) for one in shown] == [("urn:mrn", "1"), ("urn:nation", "1")]


@pytest.mark.parametrize(("kind", "is_theirs"), [("MR", True), ("PI", True), ("SS", False), ("DL", False)])
def test_a_number_that_somebody_else_gave_is_not_taken_for_one_of_the_hospitals(kind, is_theirs):
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": kind}
    eva = {**patient("eva", "1"), "identifier": [{"type": {"coding": [coding]}, "value": "1"}]}
    entries = [
        ("ImagingStudy/s1", imaging_study(1, {"reference": "Patient/eva"})),
        ("ImagingStudy/s2", imaging_study(2, {"reference": "Patient/ada"})),
        ("Patient/eva", eva),
        ("Patient/ada", patient("ada", "1")),
    ]
    with server(searched(*entries)) as port, Gateway([fhir_node("n", port)]) as gateway:
        assert patients_by_study(gateway) == {"1.2.3.1": "1" if is_theirs else None, "1.2.3.2": "1"}


def test_a_study_that_its_server_calls_an_error_is_nobodys_study():
    """`entered-in-error` is how a server says that a study was put to the wrong patient (FHIR ImagingStudy.status, a modifier)."""
    of_her, of_somebody_else = (
        imaging_study(1, {"reference": "Patient/p"}),
        imaging_study(2, {"reference": "Patient/p"}),
    )
    of_somebody_else["status"] = "entered-in-error"
    entries = [("ImagingStudy/s1", of_her), ("ImagingStudy/s2", of_somebody_else), ("Patient/p", patient("p", "12345"))]
    with server(searched(*entries)) as port, Gateway([fhir_node("n", port)]) as gateway:
        found = gateway.get("/fhir/ImagingStudy?patient.identifier=I|12345").json()
        assert (found["total"], [one["resource"]["id"] for one in found["entry"]]) == (1, ["1.2.3.1"])
        assert gateway.get("/dicom-web/studies?StudyInstanceUID=1.2.3.2").content in (b"", b"[]")
        assert gateway.get("/fhir/ImagingStudy/1.2.3.2").status_code == 404
        assert gateway.get("/dicom-web/studies/1.2.3.2/metadata").status_code == 404
