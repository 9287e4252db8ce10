"""The suite's own rule: a skip is a failure where CI is set, and only there."""

import os
import subprocess
import sys
from pathlib import Path

RULE = Path(__file__).parents[1] / "skipping.py"
MODULES = {
    "test_by_call": "def test_it(): pytest.skip('no such peer: call')",
    "test_by_mark": "@pytest.mark.skipif(True, reason='no such peer: mark')\ndef test_it(): pass",
    "test_by_fixture": "@pytest.fixture\ndef peer(): pytest.skip('no such peer: fixture')\ndef test_it(peer): pass",
    "test_by_module": "pytest.skip('no such peer: module', allow_module_level=True)",
    "test_expected": "@pytest.mark.xfail(strict=True)\ndef test_it(): assert False",
}
REASONS = [f"no such peer: {way}" for way in ("call", "mark", "fixture", "module")]


def run(directory: Path, **environment: str) -> tuple[int, str]:
    """The exit code and the output of a suite that skips in every way there is."""
    (directory / "conftest.py").write_bytes(RULE.read_bytes())
    for name, text in MODULES.items():
        (directory / f"{name}.py").write_text(f"import pytest\n{text}\n")
    clean = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    options = [
        "-ra",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "--rootdir",
        str(directory),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(directory)],
        cwd=directory, env={**clean, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return result.returncode, result.stdout


def test_with_ci_set_every_skip_fails_and_says_why(tmp_path):
    code, output = run(tmp_path, CI="true")
    assert code == 1
    assert [reason for reason in REASONS if reason not in output] == []
    assert "= 1 failed, 1 xfailed, 3 errors in " in output


def test_without_ci_a_skip_is_a_skip_and_says_why(tmp_path):
    code, output = run(tmp_path)
    assert code == 0
    assert [reason for reason in REASONS if reason not in output] == []
    assert "= 4 skipped, 1 xfailed in " in output
