"""`check`: everything that is wrong with a mapping or a node file, each with its key, before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from gateway.assembly import Builder, build_node, destination_of, receiver_of
from gateway.cache.answers import Ttl
from gateway.cli import console
from gateway.errors import GatewayError, SettingsError
from gateway.federation import nodes
from gateway.federation.nodes import NodeConfig, NodeFile
from gateway.mapping import load
from gateway.mapping.schema import Mapping as FormatMapping

_NODE_FILE_KEYS = frozenset(NodeFile.model_fields)


def run(files: Sequence[Path], mappings: Path | None) -> None:
    """Prints OK and what the file holds, or one line per problem; exits with 1 when there is any."""
    is_wrong = False
    with console.refusals():
        formats = load.load_all([mappings] if mappings else [])
    formats |= {found.format: found for file in files if (found := _sound_mapping(file))}
    for file in files:
        says, problems = examine(file, formats)
        for problem in problems:
            console.complain(f"{file}: {problem}")
        if not problems:
            console.output().print(f"{file}: OK, {says}", markup=False)
        is_wrong = is_wrong or bool(problems)
    if is_wrong:
        raise typer.Exit(console.FOUND_WRONG)


def examine(file: Path, formats: Mapping[str, FormatMapping]) -> tuple[str, list[str]]:
    """What a file holds, and what is wrong with it; a file is known by what is in it, not by its name."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError:
        return "", ["cannot be read"]
    except UnicodeDecodeError:
        return "", ["is not UTF-8"]
    except tomllib.TOMLDecodeError as error:
        return "", [f"is not TOML: {error}"]
    if raw.keys() & _NODE_FILE_KEYS:
        return _examine_nodes(raw, formats)
    if "format" in raw or "example" in raw:
        return _examine_mapping(file)
    return "", ["is neither a node file (which has [[node]]) nor a mapping (which has 'format')"]


def _examine_mapping(file: Path) -> tuple[str, list[str]]:
    problems = load.check(file)
    if problems:
        return "", problems
    found = load.load(file)
    entries = len(found.study) + len(found.series) + len(found.instance)
    return f"mapping {found.format} ({found.title}): {entries} attributes, {len(found.example)} examples proved", []


def _sound_mapping(file: Path) -> FormatMapping | None:
    """The mapping of a file that is one and is in order: node files checked beside it may name it."""
    try:
        return load.load(file)
    except GatewayError:
        return None


def _examine_nodes(raw: Mapping[str, Any], formats: Mapping[str, FormatMapping]) -> tuple[str, list[str]]:
    file, problems = nodes.parse(raw)
    if file is None:
        return "", problems
    problems = [problem for config in file.node for problem in _problems(config, file, formats)]
    listed = ", ".join(f"{config.id} ({config.adapter}, {config.mapping_name})" for config in file.node)
    return f"{len(file.node)} nodes: {listed}", problems


def _problems(config: NodeConfig, file: NodeFile, formats: Mapping[str, FormatMapping]) -> Iterator[str]:
    """What only the world outside the node file can tell: its mapping, and the files and folders it names."""
    missing = list(_missing(config.connection, f"node[{config.id}].connection"))
    if config.retrieve:
        missing += _missing(config.retrieve.connection, f"node[{config.id}].retrieve.connection")
    yield from missing
    mapping = formats.get(config.mapping_name)
    wanted = "fhir" if config.adapter == "fhir" else "dicom"
    if mapping and mapping.protocol != wanted:
        yield f"node[{config.id}].mapping: '{mapping.format}' reads {mapping.protocol}, the adapter gives {wanted}"
    if missing:
        return
    try:
        build_node(config, Builder(destination_of(file, receiver_of(file))), formats, Ttl())
    except SettingsError as error:
        yield error.detail if error.detail.startswith("node[") else f"node[{config.id}]: {error.detail}"


def _missing(table: BaseModel, key: str) -> Iterator[str]:
    """Every path in a table, and in the tables inside it, at which nothing is; an index may yet be made."""
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            yield from _missing(value, f"{key}.{name}")
        elif (
            isinstance(value, Path)
            and name != "index"
            and (problem := _absence(value, is_directory=name == "directory"))
        ):
            yield f"{key}.{name}: {problem}"


def _absence(path: Path, *, is_directory: bool) -> str:
    """Why what is wanted is not found at a path, or ''."""
    try:
        if not path.exists():
            return f"there is no {path}"
        return "" if path.is_dir() == is_directory else f"{path} is {'no' if is_directory else 'a'} directory"
    except OSError:
        return f"cannot be looked at: {path}"
