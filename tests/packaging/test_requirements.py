"""What is installed: pinned by requirements.lock, within what pyproject.toml allows, and from no named registry."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())
LOCK = [line for line in (TREE / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LOCK)}
DIRECT = [
    Requirement(line)
    for line in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    )
]
# In two parts each, so that this file names none either.
REGISTRIES = re.compile(
    "|".join(
        re.escape(f"{name}.{domain}")
        for name, domain in (
            ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("crates", "io"), ("ghcr", "io"),
            ("quay", "io"), ("docker", "io"), ("gcr", "io"), ("mcr.microsoft", "com"), ("anaconda", "org"),
            ("debian", "org"), ("golang", "org"), ("artifactory", ""), ("nexus", ""),
        )
    )
)  # fmt: skip
GENERATED = {"build", "dist"}


def texts():
    """Every text file of the tree that is not generated."""
    for path in sorted(TREE.rglob("*")):
        parts = path.relative_to(TREE).parts
        hidden = parts[0].startswith(".") and parts[0] not in (".ci", ".gitignore", ".dockerignore")
        if hidden or parts[0] in GENERATED or "__pycache__" in parts or not path.is_file():
            continue
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def installed_by(requirement, extras, seen):
    """The names of all distributions that a requirement brings into this environment."""
    name = canonicalize_name(requirement.name)
    if (name, frozenset(requirement.extras)) in seen:
        return
    seen.add((name, frozenset(requirement.extras)))
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        return
    for line in found.requires or ():
        inner = Requirement(line)
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            installed_by(inner, inner.extras, seen)


def test_the_lock_holds_nothing_but_pins():
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []
    assert len(PINS) == len(LOCK)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_what_the_project_needs_is_pinned_within_what_it_allows(requirement):
    pinned = PINS.get(canonicalize_name(requirement.name))
    assert pinned is not None
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_what_comes_with_it_is_pinned_too():
    seen = set()
    for requirement in DIRECT:
        installed_by(requirement, requirement.extras, seen)
    names = {name for name, _ in seen}
    assert len(names) > len(DIRECT)
    assert sorted(names - set(PINS) - {"pip", "setuptools", "wheel"}) == []


def test_no_file_names_a_registry():
    named = {str(path.relative_to(TREE)): found[0] for path, text in texts() if (found := REGISTRIES.search(text))}
    assert named == {}


def test_the_search_for_registries_reads_the_tree():
    names = {path.relative_to(TREE).as_posix() for path, _ in texts()}
    assert {"Makefile", "requirements.lock", ".ci/run", "gateway/app.py", "mappings/dicom.toml"} <= names
