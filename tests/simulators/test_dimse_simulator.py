"""The DIMSE simulator judged by DCMTK and by a plain pynetdicom client: a real peer, and its faults are the ones it says."""

from __future__ import annotations

import datetime
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from gateway.simulators import corpus
from gateway.simulators._dimse_matching import matches
from gateway.simulators._dimse_serving import FIND, GET, MOVE, VERIFICATION
from gateway.simulators.corpus import Corpus, HeldInstance
from gateway.simulators.dimse import DimseOptions, DimseSimulator

pytestmark = pytest.mark.skipif(not shutil.which("findscu"), reason="DCMTK is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="module")
def krakow(built: Corpus) -> Iterator[DimseSimulator]:
    with DimseSimulator(built.nodes["pl-krakow"].directory, "PLKRAKOW") as simulator:
        yield simulator


@pytest.fixture
def pacs(built: Corpus) -> Iterator[Any]:
    """Starts simulators of a node with options of its own, and stops them."""
    started: list[DimseSimulator] = []

    def start(node: str = "pl-krakow", **options: Any) -> DimseSimulator:
        simulator = DimseSimulator(built.nodes[node].directory, options=DimseOptions(**options))
        started.append(simulator)
        simulator.start()
        return simulator

    yield start
    for simulator in started:
        simulator.stop()


def _dcmtk(tool: str, simulator: DimseSimulator, *options: str | bytes, files: tuple[Path, ...] = ()) -> str:
    command = [tool, "-v", *options, "-aec", simulator.ae_title, simulator.host, str(simulator.port), *files]
    done = subprocess.run(command, capture_output=True, timeout=30)
    output = (done.stdout + done.stderr).decode("latin_1")
    assert done.returncode == 0, output
    return output


def _identifier(level: str, **keys: Any) -> Dataset:
    made = Dataset()
    made.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(made, keyword, value)
    return made


def _find(
    simulator: DimseSimulator, level: str, model: str = FIND[0], relational: bool = False, **keys: Any
) -> tuple[list[Dataset], list[int]]:
    """Rows and every status, the final one last."""
    entity = AE()
    entity.add_requested_context(model, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    negotiation = SOPClassExtendedNegotiation()
    negotiation.sop_class_uid, negotiation.service_class_application_information = model, b"\x01"
    association = entity.associate(
        simulator.host, simulator.port, ae_title=simulator.ae_title, ext_neg=[negotiation] if relational else []
    )
    assert association.is_established
    answers = list(association.send_c_find(_identifier(level, **keys), model))
    association.release()
    return [row for _, row in answers if row is not None], [status.Status for status, _ in answers]


def _get(simulator: DimseSimulator, held: list[HeldInstance], **keys: Any) -> tuple[dict[str, bytes], Dataset]:
    """A bare C-GET: the data set's bytes by SOP Instance UID, and the final status."""
    got: dict[str, bytes] = {}

    def store(event: Any) -> int:
        got[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return 0x0000

    entity = AE()
    entity.add_requested_context(GET[0])
    pairs = dict.fromkeys((instance.sop_class_uid, instance.transfer_syntax_uid) for instance in held)
    for sop_class, syntax in pairs:
        entity.add_requested_context(sop_class, syntax)
    roles = [build_role(sop_class, scp_role=True) for sop_class in dict.fromkeys(pair[0] for pair in pairs)]
    association = entity.associate(
        simulator.host, simulator.port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert association.is_established
    statuses = [status for status, _ in association.send_c_get(_identifier(**keys), GET[0])]
    association.release()
    return got, statuses[-1]


def _wait_for(condition: Any, seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def _data_set_bytes(path: Path) -> bytes:
    return path.read_bytes()[split_dataset(path)[1] :]


def test_echoscu_is_answered(krakow: DimseSimulator):
    _dcmtk("echoscu", krakow)
    assert krakow.operations["C-ECHO"] == 1


@pytest.mark.parametrize(
    ("node", "name", "encoding", "character_set"),
    [
        ("pl-krakow", "Żółkiewska^Łucja", "iso8859_2", "ISO_IR 101"),
        ("gr-athens", "Παπαδοπούλου^Ελένη", "iso8859_7", "ISO_IR 126"),
        ("ee-tartu", "Иванова^Екатерина", "iso8859_5", "ISO_IR 144"),
        ("de-berlin", "Größler^Änne", "latin_1", "ISO_IR 100"),
        ("ee-tartu", "Žižka^Šárka", "utf_8", "ISO_IR 192"),
    ],
)
def test_findscu_finds_by_a_national_name_and_gets_the_bytes_of_the_file(
    pacs: Any, tmp_path: Path, node: str, name: str, encoding: str, character_set: str
):
    keys = ["QueryRetrieveLevel=STUDY", f"SpecificCharacterSet={character_set}", "StudyInstanceUID"]
    arguments: list[str | bytes] = [part for key in keys for part in ("-k", key)]
    _dcmtk(
        "findscu",
        pacs(node),
        "-S",
        *arguments,
        "-k",
        b"PatientName=" + name.encode(encoding),
        "-X",
        "-od",
        str(tmp_path),
    )
    (answer,) = tmp_path.glob("*.dcm")
    assert name.encode(encoding) in answer.read_bytes()
    assert dcmread(answer, force=True).SpecificCharacterSet == character_set


def test_the_rows_of_every_level_are_the_corpus(built: Corpus, krakow: DimseSimulator):
    node = built.nodes["pl-krakow"]
    counts = {"NumberOfStudyRelatedSeries": "", "NumberOfStudyRelatedInstances": "", "ModalitiesInStudy": ""}
    rows, statuses = _find(krakow, "STUDY", StudyInstanceUID="", **counts)
    assert {row.StudyInstanceUID for row in rows} == {study.study_uid for study in node.studies}
    assert statuses == [0xFF00] * len(rows) + [0x0000]
    for row in rows:
        study = node.study(row.StudyInstanceUID)
        assert row.NumberOfStudyRelatedSeries == len(study.series)
        assert row.NumberOfStudyRelatedInstances == len(study.instances)
        series_rows, _ = _find(krakow, "SERIES", StudyInstanceUID=study.study_uid, SeriesInstanceUID="", Modality="")
        assert {(s.SeriesInstanceUID, s.Modality) for s in series_rows} == {
            (s.series_uid, s.modality) for s in study.series
        }
    series = node.studies[0].series[0]
    images, _ = _find(
        krakow,
        "IMAGE",
        StudyInstanceUID=node.studies[0].study_uid,
        SeriesInstanceUID=series.series_uid,
        SOPInstanceUID="",
        SOPClassUID="",
        Rows="",
        NumberOfFrames="",
        AvailableTransferSyntaxUID="",
    )
    assert {(i.SOPInstanceUID, i.AvailableTransferSyntaxUID) for i in images} == {
        (i.sop_instance_uid, i.transfer_syntax_uid) for i in series.instances
    }


def test_a_search_over_all_studies_is_one_operation(pacs: Any):
    simulator = pacs()
    rows, _ = _find(simulator, "STUDY", StudyInstanceUID="", PatientName="")
    assert len(rows) > 5
    assert {k: n for k, n in simulator.operations.items() if k.startswith("C-")} == {"C-FIND STUDY": 1}
    assert [operation for operation, _ in simulator.requests] == ["C-FIND STUDY"]


def test_patient_root_has_the_patient_level_and_asks_for_the_patient_above_a_study(krakow: DimseSimulator):
    patients, _ = _find(krakow, "PATIENT", FIND[1], PatientID="K-*", PatientName="", NumberOfPatientRelatedStudies="")
    assert [(row.PatientID, row.NumberOfPatientRelatedStudies) for row in patients] == [("K-000042", 1)]
    assert _find(krakow, "STUDY", FIND[1], StudyInstanceUID="") == ([], [0xA900])
    studies, _ = _find(krakow, "STUDY", FIND[1], PatientID="K-000042", StudyInstanceUID="")
    assert len(studies) == 1


@pytest.mark.parametrize("refusal", [0xA900, 0xC000])
def test_a_hierarchical_archive_refuses_series_without_their_study(pacs: Any, refusal: int):
    simulator = pacs(refusal=refusal)
    assert _find(simulator, "SERIES", Modality="CT", SeriesInstanceUID="") == ([], [refusal])
    assert _find(simulator, "NONSENSE", Modality="CT") == ([], [refusal])


def test_a_hierarchical_archive_does_not_know_the_study_at_the_series_level(built: Corpus, krakow: DimseSimulator):
    study = built.case("split-study").study_uid
    (row,), statuses = _find(krakow, "SERIES", StudyInstanceUID=study, SeriesInstanceUID="", PatientName="Nobody")
    assert "PatientName" not in row
    assert statuses == [0xFF01, 0x0000]


def test_a_relational_archive_negotiates_it_and_answers(pacs: Any):
    simulator = pacs(relational=True)
    rows, statuses = _find(
        simulator, "SERIES", relational=True, Modality="MR", SeriesInstanceUID="", PatientName="", StudyDate=""
    )
    assert len(rows) == 3
    assert {str(row.PatientName) for row in rows} == {"Gżegżółka^Stanisława"}
    assert statuses[-1] == 0x0000


CASES = [
    ({"PatientName": "wiśniewski^józef"}, 1),
    ({"PatientName": "WIŚNIEWSKI*"}, 1),
    ({"PatientName": "Wiśniewski"}, 0),
    ({"PatientName": "*"}, 9),
    ({"PatientID": "9999000003?"}, 1),
    ({"PatientID": "99990000035"}, 1),
    ({"PatientID": "9999000003"}, 0),
    ({"StudyDescription": "tk miednicy do planowania"}, 0),
    ({"StudyDescription": "TK miednicy*"}, 1),
    ({"StudyDate": "20250101-20251231"}, 4),
    ({"StudyDate": "20241218"}, 1),
    ({"StudyDate": "-20041231"}, 3),
    ({"StudyDate": "20250403-"}, 2),
    ({"StudyTime": "1100-1130"}, 1),
    ({"StudyTime": "112000"}, 1),
    ({"ModalitiesInStudy": "MG"}, 1),
    ({"ModalitiesInStudy": "ZZ"}, 0),
    ({"ModalitiesInStudy": ["MG", "MR"]}, 2),
    ({"AccessionNumber": "KR/25/0328"}, 1),
    ({"IssuerOfPatientID": "PESEL"}, 3),
    ({"StudyInstanceUID": ["1.2.999.999.99.9.9999.8888", "1.2.3"]}, 1),
    ({"NumberOfStudyRelatedSeries": "3"}, 1),
    ({"PatientBirthDate": "19540101", "PatientSex": "M"}, 1),
    ({"PatientBirthDate": "19540101", "PatientSex": "F"}, 0),
]


@pytest.mark.parametrize(("keys", "expected"), CASES)
def test_keys_match_as_the_standard_says(krakow: DimseSimulator, keys: dict[str, Any], expected: int):
    rows, statuses = _find(krakow, "STUDY", **{"SpecificCharacterSet": "ISO_IR 192", "StudyInstanceUID": "", **keys})
    assert len(rows) == expected
    assert set(statuses) <= {0xFF00, 0x0000}


def test_a_sequence_key_matches_within_one_item(krakow: DimseSimulator):
    def count(**keys: str) -> int:
        item = Dataset()
        for keyword, value in keys.items():
            setattr(item, keyword, value)
        return len(_find(krakow, "STUDY", StudyInstanceUID="", IssuerOfPatientIDQualifiersSequence=[item])[0])

    pesel = "2.16.840.1.113883.3.4424.1.1.616"
    assert count(UniversalEntityID=pesel, UniversalEntityIDType="ISO") == 2
    assert count(UniversalEntityID=pesel, UniversalEntityIDType="DNS") == 0
    assert count(UniversalEntityID="") > 2


def test_ignored_keys_come_back_unmatched_with_the_warning_status(pacs: Any):
    rows, statuses = _find(
        pacs(ignored_keys=frozenset({"ModalitiesInStudy"})), "STUDY", StudyInstanceUID="", ModalitiesInStudy="ZZ"
    )
    assert len(rows) == 9
    assert all("ModalitiesInStudy" in row for row in rows)
    assert statuses == [0xFF01] * 9 + [0x0000]


def test_omitted_keys_are_neither_matched_nor_returned_nor_mentioned(pacs: Any):
    rows, statuses = _find(
        pacs(omitted_keys=frozenset({"ModalitiesInStudy"})), "STUDY", StudyInstanceUID="", ModalitiesInStudy="ZZ"
    )
    assert len(rows) == 9
    assert not any("ModalitiesInStudy" in row for row in rows)
    assert statuses == [0xFF00] * 9 + [0x0000]


def test_an_archive_stops_at_its_maximum_loudly_or_silently(pacs: Any):
    rows, statuses = _find(pacs(max_results=3), "STUDY", StudyInstanceUID="")
    assert (len(rows), statuses[-1]) == (3, 0xA700)
    rows, statuses = _find(pacs(max_results=3, max_results_status=0), "STUDY", StudyInstanceUID="")
    assert (len(rows), statuses[-1]) == (3, 0x0000)
    rows, statuses = _find(pacs(max_results=9), "STUDY", StudyInstanceUID="")
    assert (len(rows), statuses[-1]) == (9, 0x0000)


def test_an_archive_may_answer_in_one_character_set_and_maim_the_rest(pacs: Any):
    rows, _ = _find(pacs(character_set="ISO_IR 100"), "STUDY", PatientID="99990000011", PatientName="")
    assert (rows[0].SpecificCharacterSet, str(rows[0].PatientName)) == ("ISO_IR 100", "?ó?kiewska^?ucja")
    rows, _ = _find(pacs(character_set="ISO_IR 192"), "STUDY", PatientID="99990000011", PatientName="")
    assert (rows[0].SpecificCharacterSet, str(rows[0].PatientName)) == ("ISO_IR 192", "Żółkiewska^Łucja")


def test_an_archive_may_leave_the_character_set_out(pacs: Any, tmp_path: Path):
    simulator = pacs("gr-athens", omit_character_set=True)
    _dcmtk(
        "findscu", simulator, "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName", "-k", "PatientID=99135900025",
        "-X", "-od", str(tmp_path),
    )  # fmt: skip
    (answer,) = tmp_path.glob("*.dcm")
    assert "Γεωργίου^Νικόλαος".encode("iso8859_7") in answer.read_bytes()
    assert "SpecificCharacterSet" not in dcmread(answer, force=True)


@pytest.mark.parametrize("node", ["fr-lyon", "pl-krakow", "gr-athens", "ee-tartu"])
def test_c_get_gives_every_instance_with_the_bytes_of_its_file(built: Corpus, pacs: Any, node: str):
    simulator = pacs(node)
    for study in built.nodes[node].studies:
        got, status = _get(simulator, list(study.instances), level="STUDY", StudyInstanceUID=study.study_uid)
        assert status.Status == 0x0000, study.study_uid
        assert got == {i.sop_instance_uid: _data_set_bytes(i.path) for i in study.instances}


def test_c_get_of_a_series_an_instance_and_of_nothing(built: Corpus, krakow: DimseSimulator):
    study = built.nodes["pl-krakow"].studies[1]
    series = study.series[0]
    keys = {"StudyInstanceUID": study.study_uid, "SeriesInstanceUID": series.series_uid}
    got, _ = _get(krakow, list(series.instances), level="SERIES", **keys)
    assert set(got) == {i.sop_instance_uid for i in series.instances}
    two = [i.sop_instance_uid for i in series.instances[:2]]
    got, _ = _get(krakow, list(series.instances), level="IMAGE", SOPInstanceUID=two, **keys)
    assert set(got) == set(two)
    got, status = _get(krakow, list(series.instances), level="STUDY", StudyInstanceUID="1.2.3")
    assert (got, status.Status) == ({}, 0x0000)
    got, status = _get(krakow, list(series.instances), level="STUDY", StudyInstanceUID="")
    assert (got, status.Status) == ({}, 0xA900)


def test_getscu_gets_a_study(built: Corpus, krakow: DimseSimulator, tmp_path: Path):
    study = built.case("split-study").studies[0]
    _dcmtk(
        "getscu", krakow, "-S", "-od", str(tmp_path), "-k", "QueryRetrieveLevel=STUDY", "-k",
        f"StudyInstanceUID={study.study_uid}",
    )  # fmt: skip
    got = {dcmread(path).SOPInstanceUID: dcmread(path).PixelData for path in tmp_path.iterdir()}
    assert got == {i.sop_instance_uid: dcmread(i.path).PixelData for i in study.instances}


def test_an_instance_whose_syntax_the_caller_does_not_take_fails_alone(built: Corpus, krakow: DimseSimulator):
    study = next(s for s in built.nodes["pl-krakow"].studies if s.patient_id == "99990000035")
    plain = HeldInstance(Path(), study.instances[0].sop_class_uid, "", ExplicitVRLittleEndian, 1)
    got, status = _get(krakow, [plain], level="STUDY", StudyInstanceUID=study.study_uid)
    assert got == {}
    assert status.NumberOfFailedSuboperations == len(study.instances)


def test_movescu_receives_at_a_known_destination_only(built: Corpus, pacs: Any, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    simulator = pacs(destinations={"MOVER": ("127.0.0.1", port)})
    study = built.nodes["pl-krakow"].studies[0]
    keys = ["-S", "-od", str(tmp_path), "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study.study_uid}"]
    output = _dcmtk("movescu", simulator, *keys, "--port", str(port), "+xa", "-d", "-aet", "MOVER")
    assert len(list(tmp_path.iterdir())) == len(study.instances)
    assert simulator.operations["C-MOVE"] == 1
    assert "Move Originator AE Title      : MOVER" in output
    entity = AE()
    entity.add_requested_context(MOVE[0])
    association = entity.associate(simulator.host, simulator.port)
    (answer,) = association.send_c_move(_identifier("STUDY", StudyInstanceUID=study.study_uid), "STRANGER", MOVE[0])
    association.release()
    assert answer[0].Status == 0xA801


def test_what_storescu_sends_is_found_and_comes_back_with_the_same_bytes(built: Corpus, tmp_path: Path):
    source = built.nodes["gr-athens"].studies[0].instances[0]
    with DimseSimulator(tmp_path) as simulator:
        _dcmtk("storescu", simulator, "-R", files=(source.path,))
        rows, _ = _find(simulator, "STUDY", StudyInstanceUID="")
        assert len(rows) == 1
        got, _ = _get(simulator, [source], level="STUDY", StudyInstanceUID=rows[0].StudyInstanceUID)
    assert list(got) == [source.sop_instance_uid]
    assert dcmread(tmp_path / f"{source.sop_instance_uid}.dcm").PixelData == dcmread(source.path).PixelData


def test_files_that_appear_are_known_after_a_rescan_and_what_is_not_dicom_is_passed_over(built: Corpus, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("not a DICOM file")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with DimseSimulator(tmp_path) as simulator:
        assert _find(simulator, "STUDY", StudyInstanceUID="")[0] == []
        shutil.copy(built.nodes["gr-athens"].studies[0].instances[0].path, tmp_path)
        simulator.rescan()
        assert len(_find(simulator, "STUDY", StudyInstanceUID="")[0]) == 1


def test_an_archive_without_get_or_move_rejects_those_contexts_and_still_answers_the_rest(pacs: Any):
    simulator = pacs(no_get=True, no_move=True)
    entity = AE()
    for model in (VERIFICATION, FIND[0], GET[0], MOVE[0]):
        entity.add_requested_context(model)
    association = entity.associate(simulator.host, simulator.port)
    assert {context.abstract_syntax for context in association.accepted_contexts} == {VERIFICATION, FIND[0]}
    association.release()


def test_a_tcp_black_hole_takes_the_connection_and_says_nothing(pacs: Any):
    simulator = pacs(black_hole="tcp")
    with socket.create_connection((simulator.host, simulator.port), timeout=1) as connection:
        connection.sendall(b"\x01\x00\x00\x00\x00\x04")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert simulator.operations == {"connection": 1}


def test_an_association_black_hole_never_answers_and_lets_go_when_the_peer_leaves(pacs: Any):
    simulator = pacs(black_hole="association")
    before = threading.active_count()
    entity = AE()
    entity.add_requested_context(FIND[0])
    entity.dimse_timeout = 0.5
    association = entity.associate(simulator.host, simulator.port)
    answers = list(association.send_c_find(_identifier("STUDY", StudyInstanceUID=""), FIND[0]))
    assert not answers[0][0]
    _wait_for(lambda: simulator.open_associations == 0)
    _wait_for(lambda: threading.active_count() <= before)
    assert simulator.operations["aborted"] == 1


def test_a_delay_holds_back_the_first_answer_and_options_may_change_while_it_runs(pacs: Any):
    simulator = pacs(delay=1.5)
    begin = time.monotonic()
    _find(simulator, "STUDY", StudyInstanceUID="")
    assert time.monotonic() - begin > 1.5
    simulator.options = DimseOptions()
    begin = time.monotonic()
    _find(simulator, "STUDY", StudyInstanceUID="")
    assert time.monotonic() - begin < 1.5


def test_associations_beyond_the_maximum_and_strangers_are_rejected(pacs: Any):
    simulator = pacs(max_associations=1, calling_ae_titles=("FRIEND",))
    friend, stranger = AE(ae_title="FRIEND"), AE(ae_title="STRANGER")
    for entity in (friend, stranger):
        entity.add_requested_context(VERIFICATION)
    first = friend.associate(simulator.host, simulator.port)
    assert first.is_established
    assert simulator.open_associations == 1
    assert friend.associate(simulator.host, simulator.port).is_rejected
    first.release()
    _wait_for(lambda: simulator.open_associations == 0)
    assert stranger.associate(simulator.host, simulator.port).is_rejected
    _wait_for(lambda: simulator.operations["rejected"] == 2)


def test_a_misbehaving_archive_fills_its_rows_with_what_their_vr_forbids(pacs: Any):
    keys = {"StudyInstanceUID": "", "StudyDate": "", "NumberOfStudyRelatedSeries": ""}
    rows, statuses = _find(pacs(garbage=True), "STUDY", **keys)
    assert statuses[-1] == 0x0000
    assert {row.get_item("StudyInstanceUID").value for row in rows} == {b"garbage!"}
    assert {row.get_item("NumberOfStudyRelatedSeries").value for row in rows} == {b"garbage!"}


def test_a_misbehaving_archive_repeats_a_study_for_each_of_its_instances(built: Corpus, pacs: Any):
    study = built.nodes["pl-krakow"].studies[0]
    rows, _ = _find(pacs(one_row_per_instance=True), "STUDY", StudyInstanceUID=study.study_uid)
    assert len(rows) == len(study.instances) > 1


def test_a_misbehaving_archive_sends_another_study_than_asked(built: Corpus, pacs: Any):
    studies = built.nodes["pl-krakow"].studies
    everything = [i for study in studies for i in study.instances]
    got, _ = _get(pacs(foreign_study=True), everything, level="STUDY", StudyInstanceUID=studies[0].study_uid)
    assert got
    assert not set(got) & {i.sop_instance_uid for i in studies[0].instances}


def test_an_archive_that_aborts_midway_has_sent_only_so_much(built: Corpus, pacs: Any):
    study = built.nodes["pl-krakow"].studies[1]
    assert len(study.instances) > 2
    got, status = _get(pacs(abort_after=2), list(study.instances), level="STUDY", StudyInstanceUID=study.study_uid)
    assert len(got) == 2
    assert "Status" not in status


def test_leaving_in_the_middle_of_a_retrieve_frees_the_association(tmp_path: Path):
    study = corpus.ct_series(tmp_path, 40, rows=256, columns=256)
    with DimseSimulator(tmp_path) as simulator:
        before = threading.active_count()
        instance = HeldInstance(Path(), "1.2.840.10008.5.1.4.1.1.2", "", ExplicitVRLittleEndian, 1)
        entity = AE()
        entity.dimse_timeout = 1
        entity.add_requested_context(GET[0])
        entity.add_requested_context(instance.sop_class_uid, ExplicitVRLittleEndian)
        role = [build_role(instance.sop_class_uid, scp_role=True)]

        def abort(event: Any) -> int:
            event.assoc.abort()
            return 0x0000

        association = entity.associate(
            simulator.host, simulator.port, ext_neg=role, evt_handlers=[(evt.EVT_C_STORE, abort)]
        )
        list(association.send_c_get(_identifier("STUDY", StudyInstanceUID=study), GET[0]))
        _wait_for(lambda: simulator.open_associations == 0)
        _wait_for(lambda: threading.active_count() <= before)
        assert simulator.operations["aborted"] == 1


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    return folder / "certificate.pem", folder / "key.pem"


def test_echoscu_is_answered_over_tls_and_not_without(pacs: Any, tmp_path: Path):
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    simulator = pacs(tls=context)
    _dcmtk("echoscu", simulator, "+tla", "+cf", str(certificate))
    with pytest.raises(AssertionError, match=r"Association Request Failed|Aborted|closed"):
        _dcmtk("echoscu", simulator, "-ta", "3")


def test_no_patient_appears_in_the_log(pacs: Any, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG, logger="pynetdicom"):
        _find(pacs(), "STUDY", PatientName="Wi*", SpecificCharacterSet="ISO_IR 192")
    assert "niewski" not in caplog.text
    assert "Wi*" not in caplog.text


def test_a_simulator_that_stops_leaves_no_thread(built: Corpus):
    before = threading.active_count()
    simulator = DimseSimulator(built.nodes["pl-krakow"].directory)
    port = simulator.start()
    entity = AE()
    entity.add_requested_context(VERIFICATION)
    association = entity.associate("127.0.0.1", port)
    assert association.is_established
    simulator.stop()
    _wait_for(lambda: not association.is_established)
    _wait_for(lambda: threading.active_count() <= before)


SERVE = """
import sys
from pathlib import Path
from gateway.simulators.dimse import DimseSimulator
simulator = DimseSimulator(Path(sys.argv[1]))
print(simulator.start(), flush=True)
sys.stdin.read()
simulator.stop()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to read memory")
def test_a_huge_instance_is_sent_without_holding_it_in_memory(tmp_path: Path):
    study = corpus.large_multiframe(tmp_path / "huge.dcm", 100)
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        simulator = DimseSimulator(tmp_path, "ANY-SCP", port=int(process.stdout.readline()))
        before = _resident(process.pid, "VmRSS")
        _dcmtk(
            "getscu", simulator, "-S", "--ignore", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"
        )
        grown = _resident(process.pid, "VmHWM") - before
        process.communicate(timeout=10)
    assert grown < 40_000


def _resident(pid: int, field: str) -> int:
    """Kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


_DATES = st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1))


@given(_DATES, _DATES, _DATES)
def test_a_date_range_is_what_the_calendar_says(low: datetime.date, high: datetime.date, day: datetime.date):
    key = DataElement(0x00080020, "DA", f"{low:%Y%m%d}-{high:%Y%m%d}")
    assert matches(key, DataElement(0x00080020, "DA", f"{day:%Y%m%d}")) == (low <= day <= high)


@given(st.text("ab*?", max_size=6), st.text("ab", max_size=6))
def test_a_wildcard_matches_what_a_walk_over_the_letters_matches(pattern: str, text: str):
    def walk(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return walk(p[1:], t) or (bool(t) and walk(p, t[1:]))
        return bool(t) and p[0] in ("?", t[0]) and walk(p[1:], t[1:])

    expected = (walk(pattern, text) and (bool(text) or set(pattern) <= {"*"})) or not pattern
    assert matches(DataElement(0x00081030, "LO", pattern), DataElement(0x00081030, "LO", text)) == expected
