"""The demo keeps what its guide says: seven hospitals of four protocols behind one address, one of them down."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydicom import dcmread

from tests.cli.commands import ENVIRONMENT, ROOT
from tests.demo.conftest import Demo, running

DOWN = "it-roma"


def uids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["0020000D"]["Value"][0] for row in rows}


def still_running(processes: list[psutil.Process], within: float) -> list[psutil.Process]:
    """Those that do not end in time."""
    ends = time.monotonic() + within
    while (alive := list(filter(has_not_ended, processes))) and time.monotonic() < ends:
        time.sleep(0.05)
    return alive


def has_not_ended(process: psutil.Process) -> bool:
    """What has ended but was not yet reaped by its new parent counts as ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shell(demo: Demo, command: str, where: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=where, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_alive_and_ready_and_its_first_page_names_every_hospital(demo: Demo) -> None:
    assert httpx.get(f"{demo.url}/live").status_code == 200
    assert httpx.get(f"{demo.url}/ready").text == "ready"
    page = httpx.get(f"{demo.url}/").text
    assert all(node.hospital.organisation in page for node in demo.corpus.nodes.values())


def test_every_hospitals_studies_come_in_one_answer_that_names_the_one_that_is_down(demo: Demo) -> None:
    answer = httpx.get(f"{demo.url}/dicom-web/studies", params={"limit": 200}, timeout=60)
    assert answer.status_code == 200
    assert uids(answer.json()) == {study.study_uid for study in demo.corpus.studies()}
    holders = {node for row in answer.json() for node in row["00080054"]["Value"]}
    assert holders == set(demo.corpus.nodes) - {DOWN}
    warnings = answer.headers.get_list("warning")
    assert any(DOWN in warning for warning in warnings)
    assert not any(other in warning for other in holders for warning in warnings)


def test_the_fhir_answer_has_an_outcome_entry_that_names_the_one_that_is_down(demo: Demo) -> None:
    bundle = httpx.get(f"{demo.url}/fhir/ImagingStudy", params={"_count": 200}, timeout=60).json()
    assert bundle["type"] == "searchset"
    outcomes = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "outcome"]
    assert [outcome["resourceType"] for outcome in outcomes] == ["OperationOutcome"]
    assert DOWN in json.dumps(outcomes)
    matches = [entry for entry in bundle["entry"] if entry["search"]["mode"] == "match"]
    assert len(matches) >= len({study.study_uid for study in demo.corpus.studies()})


def test_the_state_of_the_nodes_tells_the_one_that_is_down_from_the_others(demo: Demo) -> None:
    httpx.get(f"{demo.url}/dicom-web/studies", timeout=60)
    nodes = httpx.get(f"{demo.url}/nodes").json()["nodes"]
    assert {node["id"] for node in nodes} == set(demo.corpus.nodes)
    assert {node["id"] for node in nodes if node["state"] == "down"} == {DOWN}
    assert {node["adapter"] for node in nodes} == {"fhir", "dimse", "dicomweb", "files"}


@pytest.mark.parametrize("node", ["de-berlin", "fr-lyon", "pl-krakow", "gr-athens", "es-madrid", "ee-tartu"])
def test_an_instance_can_be_opened_from_every_hospital(demo: Demo, node: str, tmp_path: Path) -> None:
    study = next(study for study in demo.corpus.nodes[node].studies if study.modalities == ("MG",))
    held = study.instances[0]
    path = f"studies/{study.study_uid}/series/{study.series[0].series_uid}/instances/{held.sop_instance_uid}"
    answer = httpx.get(
        f"{demo.url}/nodes/{node}/dicom-web/{path}",
        headers={"Accept": "application/dicom; transfer-syntax=*"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (tmp_path / "got.dcm").write_bytes(answer.content)
    got, kept = dcmread(tmp_path / "got.dcm"), dcmread(held.path)
    assert got == kept
    assert got.PixelData


def test_what_the_guide_says_is_planted_is_found_as_it_says(demo: Demo) -> None:
    case = demo.corpus.case

    def asked(**keys: str) -> httpx.Response:
        return httpx.get(f"{demo.url}/dicom-web/studies", params=keys, timeout=60)

    for planted in ("shared-study", "split-study"):
        (row,) = asked(StudyInstanceUID=case(planted).study_uid).json()
        assert set(row["00080054"]["Value"]) == set(case(planted).nodes)
    for planted in ("uid-clash", "unlinked"):
        both = asked(StudyInstanceUID=case(planted).study_uid).json()
        assert len(both) == 2
        assert {row["00100020"]["Value"][0] for row in both} == {study.patient_id for study in case(planted).studies}
    for planted in ("no-patient-id", "no-date"):
        for study in case(planted).studies:
            (row,) = asked(StudyInstanceUID=study.study_uid).json()
            assert row["00080054"]["Value"] == [study.node]
    for uid in re.findall(r"2\.25\.\d+", demo.guide[demo.guide.index("Planted") : demo.guide.index("Five")]):
        assert len(asked(StudyInstanceUID=uid).json()) >= 1


def test_the_guide_has_five_commands(demo: Demo) -> None:
    assert len(demo.commands) == 5


def test_command_1_shows_every_study_and_the_warning(demo: Demo, tmp_path: Path) -> None:
    head, _, body = shell(demo, demo.commands[0], tmp_path).partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert re.search(rf"(?im)^warning: 299 .*{DOWN}", head)
    assert uids(json.loads(body)) == {study.study_uid for study in demo.corpus.studies()}


def test_command_2_shows_mammographies_since_january_as_fhir(demo: Demo, tmp_path: Path) -> None:
    bundle = json.loads(shell(demo, demo.commands[1], tmp_path))
    studies = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "match"]
    assert len(studies) == 5
    for study in studies:
        assert "MG" in {coding["code"] for coding in study["modality"]}
        assert study["started"] >= "2025-01-01"


def test_command_3_writes_one_multi_frame_image_as_the_hospital_stores_it(demo: Demo, tmp_path: Path) -> None:
    shell(demo, demo.commands[2], tmp_path)
    image = dcmread(tmp_path / "image.dcm")
    held = {
        one.sop_instance_uid: one.path for study in demo.corpus.nodes["es-madrid"].studies for one in study.instances
    }
    assert image.NumberOfFrames > 1
    assert (tmp_path / "image.dcm").read_bytes() == held[image.SOPInstanceUID].read_bytes()


def test_command_4_finds_a_polish_name_without_its_diacritics(demo: Demo, tmp_path: Path) -> None:
    assert "Żółkiewska^Łucja" in shell(demo, demo.commands[3], tmp_path)


def test_command_5_is_refused_with_both_issuers_named(demo: Demo, tmp_path: Path) -> None:
    head, _, body = shell(demo, demo.commands[4], tmp_path).partition("\n\n")
    assert head.startswith("HTTP/1.1 409")
    assert "SU-KRAKOW" in body
    assert "HU-MADRID" in body


def test_its_node_file_is_one_that_check_and_ping_accept(demo: Demo) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )

    checked = run("check", str(demo.node_file))
    assert checked.returncode == 0, checked.stderr
    pinged = run("ping", "--nodes", str(demo.node_file))
    assert pinged.returncode == 1
    states = dict(line.split()[:2] for line in pinged.stdout.splitlines() if line[:1].strip())
    assert states == {node: "FAILED" if node == DOWN else "OK" for node in demo.corpus.nodes}


def test_a_second_demo_on_the_same_port_names_another_one(demo: Demo) -> None:
    port = demo.url.rsplit(":", 1)[1]
    words = [
        sys.executable,
        "-m",
        "gateway",
        "demo",
        "--port",
        port,
        "--directory",
        str(demo.directory),
        "--scale",
        "small",
    ]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.search(rf"imaging-gateway: port: {port} is taken .* such as --port \d+\n", done.stderr)


def test_once_prints_the_studies_and_ends(demo_directory: Path) -> None:
    words = ["demo", "--once", "--port", "0", "--directory", str(demo_directory), "--scale", "small"]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=90, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "99990000011 (PESEL)" in done.stdout
    assert "Παπαδοπούλου Ελένη" in done.stdout
    assert f"node {DOWN}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_it_started_outlives_it(demo_directory: Path, number: signal.Signals) -> None:
    with running(demo_directory) as demo:
        simulators = [child for child in demo.descendants if "simulate" in child.cmdline()]
        assert len(simulators) == 6
        hospitals = re.findall(r"port = (\d+)|http://127\.0\.0\.1:(\d+)", demo.node_file.read_text())
        demo.process.send_signal(number)
        assert demo.process.wait(20) == (0 if number is signal.SIGTERM else -number)
        assert still_running(demo.descendants, within=15) == []
        for port in {first or second for first, second in hospitals}:
            with socket.socket() as gone, pytest.raises(ConnectionRefusedError):
                gone.connect(("127.0.0.1", int(port)))
        if number is signal.SIGTERM:
            assert demo.process.stderr
            assert "Traceback" not in demo.process.stderr.read()
