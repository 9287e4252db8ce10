"""The help teaches, and everything it names is there."""

from __future__ import annotations

import re

import pytest

from gateway.cli import simulate
from tests.cli.commands import Command

COMMANDS = ("serve", "demo", "check", "ping", "query", "simulate", "cache purge")


def test_the_first_help_shows_the_three_steps_to_add_a_hospital(command: Command) -> None:
    shown = command("--help").stdout
    steps = ["[[node]]", "check nodes.toml", "ping pl-krakow", "imaging-gateway serve"]
    places = [shown.index(step) for step in steps]
    assert places == sorted(places)


def test_the_block_of_the_first_help_is_a_node_file_that_checks_out(command: Command) -> None:
    shown = command("--help", COLUMNS="120").stdout
    block = shown[shown.index("[[node]]") : shown.index("2. imaging-gateway")]
    (command.directory / "nodes.toml").write_text("\n".join(line.strip() for line in block.splitlines()))
    checked = command("check", "nodes.toml")
    assert checked.returncode == 0, checked.stderr
    assert "pl-krakow (dimse, dicom-latin2-pl)" in checked.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gives_an_example_that_names_only_options_it_has(command: Command, name: str) -> None:
    shown = command(*name.split(), "--help", COLUMNS="160").stdout
    example = re.search(rf"Example: (imaging-gateway {name}.*)", shown)
    assert example
    options = shown[shown.index("Options") :]
    assert set(re.findall(r"--[a-z-]+", example[1])) <= set(re.findall(r"--[a-z-]+", options))


def test_every_fault_that_the_help_of_simulate_names_exists(command: Command) -> None:
    shown = " ".join(command("simulate", "--help", COLUMNS="160").stdout.split())
    told = shown[shown.index("All peers:") : shown.index("Example:")]
    named = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", told)) | set(re.findall(r"\b(\w+)=", told))
    known = {name for protocol in simulate.OPTIONS for name in simulate.types(protocol)}
    assert len(named) > 8
    assert named <= known


def test_the_version_is_one_line(command: Command) -> None:
    done = command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("imaging-gateway ")
    assert done.stdout.count("\n") == 1
