"""The wheel as a stranger meets it: built from the source archive, installed alone, run outside the tree."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
MAPPINGS = sorted(path.name for path in (TREE / "mappings").glob("*.toml"))
pytestmark = pytest.mark.timeout(900)


def run(*command, cwd, **environment):
    """What a command prints. It sees no virtual environment, no PYTHONPATH and no setting of this process."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "GATEWAY_", "PYTEST")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory that holds the source archive and the wheel made from it."""
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, TREE, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin directory of an environment that holds the wheel and what it asks for, pinned; nothing of the tests."""
    venv = tmp_path_factory.mktemp("stranger") / "venv"
    run(TREE / ".ci" / "venv", venv, cwd=venv.parent, PYTHON=sys.executable)
    pip = (venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", TREE / "requirements.lock", wheel, cwd=venv.parent)
    return venv / "bin"


def names_in(archive):
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as source:
        return ["/".join(name.split("/")[1:]) for name in source.getnames()]


def test_the_wheel_carries_the_mappings_the_licence_and_the_types(wheel):
    names = names_in(wheel)
    assert {f"gateway/_mappings/{name}" for name in MAPPINGS} <= set(names)
    assert "gateway/py.typed" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")] != []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gateway", "imaging_gateway"}


def test_the_source_archive_carries_what_it_takes_to_build_and_test_it(built):
    (archive,) = built.glob("*.tar.gz")
    names = set(names_in(archive))
    wanted = {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "Makefile", ".ci/run", "gateway/py.typed"}
    assert wanted | {f"mappings/{name}" for name in MAPPINGS} <= names
    assert "tests/conftest.py" in names


def test_the_licence_is_the_whole_apache_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
    text = archive.read(name).decode()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()


def test_installed_alone_it_finds_its_mappings_in_itself(installed, tmp_path):
    found = run(
        installed / "python", "-c", "from gateway.mapping.load import shipped; print(shipped())", cwd=tmp_path
    ).strip()  # fmt: skip
    assert Path(found).is_relative_to(installed.parent)
    output = run(installed / "imaging-gateway", "check", *(Path(found) / name for name in MAPPINGS), cwd=tmp_path)
    assert output.count(": OK, ") == len(MAPPINGS)


def test_installed_alone_it_runs_the_demo_over_all_its_hospitals(installed, tmp_path):
    demo = ("demo", "--once", "--port", "0", "--scale", "small", "--directory", tmp_path / "demo")
    output = run(installed / "imaging-gateway", *demo, cwd=tmp_path, HOME=str(tmp_path), XDG_CACHE_HOME="", CI="")
    answered = [
        node for node in ("de-berlin", "fr-lyon", "pl-krak", "gr-athens", "es-madrid", "ee-tartu") if node in output
    ]
    assert len(answered) == 6, output
    assert "it-roma: cannot be reached" in output


def test_a_mapping_that_is_wrong_is_refused_with_its_key_by_the_installed_command(installed, tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text((TREE / "mappings" / "dicom.toml").read_text() + "\n[nonsense]\nkey = 1\n")
    result = subprocess.run(
        [installed / "imaging-gateway", "check", wrong], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "nonsense" in result.stdout + result.stderr
