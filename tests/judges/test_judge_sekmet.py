"""Judge: sekmet's scenario runner. Its shipped scenarios all write, so that of those only the read-only steps can pass.

The scenarios of this folder go through everything that is only read, one by one and in bulk.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.judges.conftest import Judged

pytestmark = pytest.mark.interop

READING, EXPORTING = (
    Path(__file__).parent / "scenarios" / f"imaging_{name}.yaml" for name in ("read_only", "bulk_export")
)
# Of `sekmet scenario list`; each registers a patient first, and the gateway's FHIR takes nothing in.
WRITE = {
    "adt_admit_transfer_discharge", "adt_merge_update", "appointment_book_cancel", "billing_claim", "clinical_documentation",
    "lab_order_peer_fills", "lab_order_to_result", "medication_order_dispense", "messaging_adt_orders",
    "rad_order_imaging_report", "subscription_backport_roundtrip", "subscription_roundtrip",
}  # fmt: skip
OTHERS = {
    "conformance_smoke": "its read-only steps are judged below",
    "bulk_export_group": "makes a Group first; the scenario of this folder exports at the other levels",
}
READ_ONLY_STEPS = {"CapabilityStatement"}


@dataclass(frozen=True)
class Runner:
    """sekmet with the gateway as its peer, in a directory of its own."""

    directory: Path

    def run(self, scenario: str, **variables: str) -> dict[str, Any]:
        """The report of one scenario."""
        given = [word for name, value in variables.items() for word in ("--var", f"{name}={value}")]
        words = ["scenario", "run", scenario, "--peer", "gateway", "--no-serve", "--report-dir", "reports", *given]
        self.sekmet(*words)
        [report] = list(self.directory.rglob("*.json"))
        told = json.loads(report.read_text())
        return dict(told[0] if isinstance(told, list) else told["results"][0])

    def sekmet(self, *words: str) -> str:
        done = subprocess.run(
            [peers.needs("sekmet"), *words], cwd=self.directory, capture_output=True, text=True, timeout=120
        )
        return done.stdout + done.stderr


@pytest.fixture
def runner(judged: Judged, tmp_path: Path) -> Runner:
    settings = {
        "base_url": f"http://127.0.0.1:{peers.free_port()}/fhir",
        "db_path": str(tmp_path / "sekmet.db"),
        "peers": {"gateway": {"base_url": judged.fhir}},
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    return Runner(tmp_path)


def complaints(report: dict[str, Any]) -> list[str]:
    return [f"{step['name']}: {step['message']}" for step in report["steps"] if step["status"] != "passed"]


def test_the_shipped_scenarios_are_those_that_were_looked_at(runner: Runner) -> None:
    listed = {line.split()[0] for line in runner.sekmet("scenario", "list").splitlines() if " steps " in line}
    assert listed == WRITE | OTHERS.keys()


def test_what_is_only_read_passes(judged: Judged, runner: Runner) -> None:
    study = next(study for study in judged.studies if study.text("StudyDate"))
    day = study.text("StudyDate")
    report = runner.run(
        str(READING),
        study=study.uid,
        patient=study.text("PatientID"),
        instances=str(len(study.files)),
        day=f"{day[:4]}-{day[4:6]}-{day[6:]}",
    )
    assert complaints(report) == []
    assert len(report["steps"]) == 14


def test_what_is_exported_in_bulk_is_valid_and_as_much_as_the_manifest_says(judged: Judged, runner: Runner) -> None:
    report = runner.run(str(EXPORTING), studies=str(len(judged.studies)))
    assert complaints(report) == []
    assert len(report["steps"]) == 5


def test_the_bulk_client_follows_an_export_to_its_end(runner: Runner) -> None:
    told = runner.sekmet("bulk", "export", "--peer", "gateway", "--level", "system", "--type", "ImagingStudy,Patient")
    assert "202" in told, told
    assert "ImagingStudy" in told, told
    assert "valid" in told.lower(), told


def test_the_smoke_test_of_conformance_passes_where_it_only_reads_and_is_refused_where_it_writes(
    runner: Runner,
) -> None:
    report = runner.run("conformance_smoke")
    passed = {step["name"] for step in report["steps"] if step["status"] == "passed"}
    assert passed >= READ_ONLY_STEPS
    [create] = [step for step in report["steps"] if step["name"] == "Create Patient"]
    assert "-> 404" in create["message"] or "(got 404" in create["message"] or "405" in create["message"]
    assert not [step for step in report["steps"] if "(got 5" in step["message"]]


def test_the_peer_is_understood(runner: Runner) -> None:
    told = runner.sekmet("peers", "test", "gateway")
    assert "4.0.1" in told, told
    assert "ImagingStudy" in told, told
