"""Finding, reading and proving mapping files. One that is wrong in any way is refused, with file and key named."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.errors import InvalidMapping, fault_of
from gateway.mapping.prove import failures
from gateway.mapping.schema import Mapping

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped() -> Path:
    """The directory of the mappings that come with the gateway: inside the wheel, or beside the package in the tree."""
    inside = _PACKAGE / "_mappings"
    return inside if inside.is_dir() else _PACKAGE.parent / "mappings"


def load_all(directories: Iterable[Path] = ()) -> dict[str, Mapping]:
    """Every mapping that ships and those of `directories`, by format. Raises InvalidMapping; a format is given once."""
    found: dict[str, Mapping] = {}
    origin: dict[str, Path] = {}
    for directory in (shipped(), *directories):
        for file in _files(Path(directory)):
            mapping = load(file)
            if mapping.format in found:
                raise InvalidMapping(f"{file}: format: '{mapping.format}' is already that of {origin[mapping.format]}")
            found[mapping.format], origin[mapping.format] = mapping, file
    return found


def _files(directory: Path) -> list[Path]:
    """Path.glob finds nothing, without a word, where there is no directory."""
    try:
        is_directory, files = directory.is_dir(), sorted(directory.glob("*.toml"))
    except OSError:
        raise InvalidMapping(f"{directory}: cannot be read") from None
    if not is_directory:
        raise InvalidMapping(f"{directory}: is no directory of mappings")
    return files


def load(path: Path) -> Mapping:
    """One mapping file, its examples proved. Raises InvalidMapping with every problem found."""
    mapping, problems = _read(path)
    if mapping is None or problems:
        raise InvalidMapping("\n".join(f"{path}: {problem}" for problem in problems))
    return mapping


def check(path: Path) -> list[str]:
    """What is wrong with a mapping file, one line each, beginning with the key; [] when nothing is."""
    return _read(path)[1]


def _read(path: Path) -> tuple[Mapping | None, list[str]]:
    try:
        content = path.read_bytes()
        table: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except OSError:
        return None, ["cannot be read"]
    except UnicodeDecodeError:
        return None, ["is not UTF-8"]
    except tomllib.TOMLDecodeError as error:
        return None, [f"is not TOML: {error}"]
    try:
        mapping = Mapping.model_validate({**table, "digest": hashlib.sha256(content).hexdigest()[:16]})
    except ValidationError as error:
        return None, [_problem(one) for one in error.errors()]
    return mapping, failures(mapping)


def _problem(error: Any) -> str:
    """One pydantic error as 'key: what is wrong'."""
    key = ".".join(str(step) for step in error["loc"])
    text = "needs at least one [[example]]" if error["type"] == "too_short" else fault_of(error)
    return f"{key}: {text}" if key else text
