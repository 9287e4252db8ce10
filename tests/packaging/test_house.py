"""The house's own order, held over the whole tree: style, types, layers and the shipped mappings (`make lint`)."""

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
CHECKS = {
    "style": ["-m", "ruff", "check", "--quiet", "."],
    "format": ["-m", "ruff", "format", "--check", "--quiet", "."],
    "types": ["-m", "mypy"],
    "layers": ["-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-logo"],
    "mappings": ["-m", "gateway", "check", *map(str, sorted((TREE / "mappings").glob("*.toml")))],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_the_whole_tree_is_in_order(command):
    result = subprocess.run([sys.executable, *command], cwd=TREE, capture_output=True, text=True, timeout=600)
    if result.returncode:
        pytest.fail(f"{' '.join(command[:4])}\n{result.stdout}{result.stderr}", pytrace=False)


def test_there_are_mappings_to_check():
    assert len(CHECKS["mappings"]) > 5
