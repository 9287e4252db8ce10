"""Two people are never one: not below a study, not by a bare id, not through links, not while a node is silent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Gateway, files_node
from specimens import linked_to, specimen, uid

from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.simulators.dimse import DimseSimulator
from gateway.simulators.fhir import FhirOptions, FhirSimulator

SECRET = "the same before and after"


def values(rows: list[dict[str, Any]], tag: str) -> set[str]:
    return {value for row in rows for value in row.get(tag, {}).get("Value", [])}


def matches(response: Any) -> list[dict[str, Any]]:
    return [e["resource"] for e in response.json().get("entry", []) if e["search"]["mode"] == "match"]


def dimse_node(simulator: DimseSimulator, **more: Any) -> dict[str, Any]:
    connection = {"host": "127.0.0.1", "port": simulator.port, "called_ae_title": "SIM"}
    return {"id": "pacs", "name": "pacs", "adapter": "dimse", "connection": connection, **more}


def dicomweb_node(identifier: str, url: str, **more: Any) -> dict[str, Any]:
    return {"id": identifier, "name": identifier, "adapter": "dicomweb", "connection": {"url": url}, **more}


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# --- below a study of two patients inside one node


def test_series_found_by_patient_are_never_those_of_another_patient_under_the_same_study_uid(tmp_path: Path) -> None:
    """A hierarchical PACS does not name the patient in series rows, and the search by PatientID hides the other one."""
    specimen(tmp_path, "P1", "shared", "one")
    specimen(tmp_path, "P2", "shared", "two", 2)
    specimen(tmp_path, "P1", "own", "three", 3)
    with DimseSimulator(tmp_path, ae_title="SIM") as pacs, Gateway([dimse_node(pacs)]) as gateway:
        for resource in ("series", "instances"):
            response = gateway.get(f"/dicom-web/{resource}", params={"PatientID": "P1"})
            assert values(response.json(), "0020000E") == {uid("own", "three")}
            assert values(response.json(), "00100020") == {"P1"}
            assert "does not say which patient" in response.headers["warning"], (
                "what nobody can tell is left out, and told"
            )


def test_a_study_of_two_patients_is_not_found_by_what_the_other_ones_series_are(tmp_path: Path) -> None:
    specimen(tmp_path, "P1", "shared", "one", Modality="CT")
    specimen(tmp_path, "P2", "shared", "two", 2, Modality="MR")
    with Gateway([files_node("a", tmp_path)]) as gateway:
        response = gateway.get("/dicom-web/studies", params={"ModalitiesInStudy": "MR"})
        series = gateway.get("/dicom-web/series", params={"PatientID": "P1"})
    assert values(response.json(), "00100020") == {"P2"}
    assert values(series.json(), "0020000E") == {uid("shared", "one")}


# --- an instance that another patient's takes the place of


@pytest.mark.parametrize("pixels", ["/frames/1", "/bulkdata/7FE00010"])
def test_pixels_of_a_file_that_was_replaced_are_not_given_under_the_metadata_of_the_patient_before(
    tmp_path: Path, pixels: str
) -> None:
    held = specimen(tmp_path, "P1", "shared", "one")
    instance = (
        f"/dicom-web/studies/{held.StudyInstanceUID}/series/{held.SeriesInstanceUID}/instances/{held.SOPInstanceUID}"
    )
    with Gateway([files_node("a", tmp_path)]) as gateway:
        assert values(gateway.get(f"{instance}/metadata").json(), "00100020") == {"P1"}
        assert gateway.get(instance + pixels).status_code == 200
        for file in tmp_path.glob("*.dcm"):
            file.unlink()
        specimen(tmp_path, "P2", "shared", "one")
        answer = gateway.get(instance + pixels)
    assert answer.status_code == 502
    assert "sent an instance of another patient than the study's" in answer.text


# --- a bare PatientID


@pytest.fixture
def hospitals(tmp_path: Path) -> list[dict[str, Any]]:
    specimen(tmp_path / "a", "7", "a-study")
    specimen(tmp_path / "b", "7", "b-study")
    return [
        files_node("a", tmp_path / "a", patient_id_issuer="A"),
        files_node("b", tmp_path / "b", patient_id_issuer="B"),
    ]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/fhir/ImagingStudy", {"patient.identifier": "7"}),
        ("/fhir/ImagingStudy", {"patient.identifier": "7,8"}),
        ("/dicom-web/studies", {"PatientID": "7"}),
        ("/dicom-web/series", {"PatientID": "7"}),
        ("/dicom-web/studies", {"PatientID": "7*"}),
        ("/dicom-web/studies", {"PatientID": "?"}),
        ("/dicom-web/studies", {"PatientID": "7", "IssuerOfPatientID": "?*"}),
        ("/dicom-web/studies", {"PatientID": "7", "IssuerOfPatientID": "*"}),
    ],
)
def test_a_bare_patient_id_of_two_people_is_refused_however_it_is_written(
    hospitals: list[dict[str, Any]], path: str, parameters: dict[str, str]
) -> None:
    with Gateway(hospitals) as gateway:
        response = gateway.get(path, params=parameters)
    assert response.status_code == 409, response.text
    assert "A, B" in response.text


def test_a_patient_id_is_served_where_it_names_one_person(hospitals: list[dict[str, Any]]) -> None:
    with Gateway(hospitals) as gateway:
        by_issuer = gateway.get("/dicom-web/studies", params={"PatientID": "7", "IssuerOfPatientID": "A"})
        at_node = gateway.get("/nodes/b/dicom-web/studies", params={"PatientID": "7"})
    assert values(by_issuer.json(), "0020000D") == {uid("a-study")}
    assert values(at_node.json(), "0020000D") == {uid("b-study")}


def test_a_wildcard_that_many_people_answer_is_a_search_and_not_an_id(tmp_path: Path) -> None:
    for node in ("a", "b"):
        for patient in ("7", f"7{node}"):
            specimen(tmp_path / node, patient, f"{node}-{patient}")
    nodes = [files_node(node, tmp_path / node, patient_id_issuer=node.upper()) for node in ("a", "b")]
    with Gateway(nodes) as gateway:
        response = gateway.get("/dicom-web/studies", params={"PatientID": "7*"})
    assert response.status_code == 200
    assert len(response.json()) == 4


def test_an_issuer_linked_through_another_id_does_not_excuse_a_bare_patient_id(tmp_path: Path) -> None:
    """Patient 7 of A is patient 99 of B: that says nothing of patient 7 of B."""
    specimen(tmp_path / "a", "7", "a-study", OtherPatientIDsSequence=linked_to(("B", "99")))
    specimen(tmp_path / "b", "7", "b-study")
    nodes = [files_node(node, tmp_path / node, patient_id_issuer=node.upper()) for node in ("a", "b")]
    with Gateway(nodes) as gateway:
        response = gateway.get("/dicom-web/studies", params={"PatientID": "7"})
    assert response.status_code == 409, response.text


def test_an_id_that_a_link_or_a_domain_makes_one_persons_is_served(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "7", "a-study", OtherPatientIDsSequence=linked_to(("B", "7")))
    specimen(tmp_path / "b", "7", "b-study")
    nodes = [files_node(node, tmp_path / node, patient_id_issuer=node.upper()) for node in ("a", "b")]
    with Gateway(nodes) as gateway:
        assert len(gateway.get("/dicom-web/studies", params={"PatientID": "7"}).json()) == 2
    specimen(tmp_path / "a", "7", "a-study")
    with Gateway(nodes, file={"same_patient_domain": [{"issuers": ["A", "B"]}]}) as gateway:
        assert len(gateway.get("/dicom-web/studies", params={"PatientID": "7"}).json()) == 2


# --- linked patients


@pytest.fixture
def linked(tmp_path: Path) -> list[dict[str, Any]]:
    """One person, 1 at A and 2 at B: B says so."""
    specimen(tmp_path / "a", "1", "shared", "one")
    specimen(tmp_path / "b", "2", "shared", "two", 2, OtherPatientIDsSequence=linked_to(("A", "1")))
    return [
        files_node("a", tmp_path / "a", patient_id_issuer="A", priority=1),
        files_node("b", tmp_path / "b", patient_id_issuer="B", priority=2),
    ]


def test_a_patient_read_has_the_id_that_was_read_whichever_holder_describes_it(linked: list[dict[str, Any]]) -> None:
    with Gateway(linked) as gateway:
        for node in ("a", "b"):
            (study,) = matches(gateway.get("/fhir/ImagingStudy", params={"node": node}))
            reference = study["subject"]["reference"]
            patient = gateway.get(f"/fhir/{reference}")
            assert patient.status_code == 200
            assert f"Patient/{patient.json()['id']}" == reference
            included = gateway.get(
                "/fhir/ImagingStudy", params={"node": node, "_include": "ImagingStudy:patient"}
            ).json()
            (entry,) = [e for e in included["entry"] if e["search"]["mode"] == "include"]
            assert entry["fullUrl"].endswith(f"Patient/{entry['resource']['id']}")


def test_an_included_patient_has_the_id_of_its_own_address(linked: list[dict[str, Any]], tmp_path: Path) -> None:
    """The newer study is described by A and names the patient 1; the older one is B's alone and names the patient 2."""
    specimen(tmp_path / "b", "2", "older", StudyDate="20200101")
    with Gateway(linked) as gateway:
        bundle = gateway.get("/fhir/ImagingStudy", params={"_include": "ImagingStudy:patient"}).json()
    included = [entry for entry in bundle["entry"] if entry["search"]["mode"] == "include"]
    assert len(included) == 2
    for entry in included:
        assert entry["fullUrl"].endswith(f"/Patient/{entry['resource']['id']}")


def test_a_linked_patients_study_is_whole_even_where_one_node_holds_both_ids(tmp_path: Path) -> None:
    specimen(tmp_path / "a", "1", "shared", "one", IssuerOfPatientID="A")
    link = linked_to(("A", "1"))
    specimen(tmp_path / "a", "2", "shared", "two", 2, IssuerOfPatientID="B", OtherPatientIDsSequence=link)
    with Gateway([files_node("a", tmp_path / "a")]) as gateway:
        resource = gateway.get(f"/fhir/ImagingStudy/{uid('shared')}")
        instances = gateway.get(f"/dicom-web/studies/{uid('shared')}/metadata")
    assert {series["uid"] for series in resource.json()["series"]} == {uid("shared", "one"), uid("shared", "two")}
    assert values(instances.json(), "00080018") == {uid("shared", "one", 1), uid("shared", "two", 2)}


# --- a format that takes the patient id from elsewhere: the files' own id cannot be compared with it


def test_instances_of_two_patients_behind_one_fhir_study_are_not_given_as_one(tmp_path: Path) -> None:
    specimen(tmp_path / "server", "P1", "shared", "one")
    specimen(tmp_path / "pixels", "P1", "shared", "one")
    specimen(tmp_path / "pixels", "P2", "shared", "two", 2)
    with (
        DicomwebSimulator(tmp_path / "pixels") as pixels,
        FhirSimulator(tmp_path / "server", options=FhirOptions(dicomweb_url=pixels.url)) as server,
    ):
        node = {"id": "f", "name": "f", "adapter": "fhir", "connection": {"url": server.url}, "allow": [pixels.url]}
        with Gateway([node]) as gateway:
            whole = gateway.get(f"/dicom-web/studies/{uid('shared')}/series/{uid('shared', 'one')}")
            assert whole.status_code == 200, whole.text
            with pytest.raises(Exception, match=r"incomplete|peer closed"):
                gateway.get(f"/dicom-web/studies/{uid('shared')}")


# --- silence


def clash(tmp_path: Path, second: str) -> list[dict[str, Any]]:
    specimen(tmp_path / "a", "1", "shared", "one")
    specimen(tmp_path / "b", "2", "shared", "two", 2)
    return [
        files_node("a", tmp_path / "a", patient_id_issuer="SAME"),
        dicomweb_node("b", second, patient_id_issuer="SAME", search_deadline=0.5),
    ]


def test_the_id_of_a_clash_keeps_naming_its_study_while_the_other_node_is_silent(tmp_path: Path, silent: str) -> None:
    nodes = clash(tmp_path, silent)
    with DicomwebSimulator(tmp_path / "b") as web, Gateway(clash(tmp_path, web.url), secret=SECRET) as gateway:
        ids = {
            study["subject"]["identifier"]["value"]: study["id"] for study in matches(gateway.get("/fhir/ImagingStudy"))
        }
    assert set(ids) == {"1", "2"}
    with Gateway(nodes, secret=SECRET) as gateway:
        mine = gateway.get(f"/fhir/ImagingStudy/{ids['1']}")
        by_id = gateway.get("/fhir/ImagingStudy", params={"_id": ids["1"]})
        other = gateway.get(f"/fhir/ImagingStudy/{ids['2']}")
    assert mine.status_code == 200
    assert mine.json()["subject"]["identifier"]["value"] == "1"
    assert "b" in mine.headers["warning"]
    assert [study["subject"]["identifier"]["value"] for study in matches(by_id)] == ["1"]
    assert other.status_code == 503, "the node that has it is silent: nobody said no"


def test_series_of_a_clash_are_not_listed_together_when_a_node_wakes_between_two_questions(tmp_path: Path) -> None:
    """The node fails while it is asked whose the study is, and answers when it is asked for series."""
    nodes = clash(tmp_path, "http://unused.example")
    asleep = DicomwebOptions(status_500=True, faulty_operations=frozenset({"search_studies"}))
    with DicomwebSimulator(tmp_path / "b", asleep) as web:
        nodes[1]["connection"] = {"url": web.url}
        nodes[1]["quirks"] = []
        with Gateway(nodes, find_ttl=0, location_ttl=0) as gateway:
            federation = gateway.app.state.estate.pipeline.federation  # type: ignore[union-attr]
            asked = federation._ask

            async def waking(query: Any, *more: Any, **kinds: Any) -> Any:
                answer = await asked(query, *more, **kinds)
                web.options = DicomwebOptions()
                return answer

            type(federation)._ask, original = lambda self, *a, **k: waking(*a, **k), type(federation)._ask
            try:
                response = gateway.get(f"/dicom-web/studies/{uid('shared')}/series")
            finally:
                type(federation)._ask = original
    assert response.status_code == 409, response.text
