"""`simulate` runs a peer that others can use, says where it is, and ends when it is told to."""

from __future__ import annotations

import signal
import subprocess

import httpx
import pytest
from pynetdicom import AE

from gateway.cli import simulate
from gateway.errors import SettingsError
from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebOptions
from gateway.simulators.dimse import DimseOptions
from tests.cli.commands import Command

STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
VERIFICATION = "1.2.840.10008.1.1"


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().split()[1]


def test_a_dimse_peer_answers_an_echo_under_its_title_and_has_the_fault_that_was_asked_for(
    command: Command, hospitals: Corpus
) -> None:
    directory = str(hospitals.nodes["fr-lyon"].directory)
    words = ("simulate", "dimse", "--directory", directory, "--ae-title", "LYON", "--with", "no_get")
    with command.running(*words) as process:
        title, _, place = address(process).partition("@")
        host, port = place.split(":")
        entity = AE()
        entity.add_requested_context(VERIFICATION)
        entity.add_requested_context(STUDY_ROOT_GET)
        association = entity.associate(host, int(port), ae_title=title)
        assert association.is_established
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        assert association.send_c_echo().Status == 0
        association.release()
    assert (title, accepted) == ("LYON", {VERIFICATION})


@pytest.mark.parametrize(("protocol", "path"), [("dicomweb", "/studies"), ("fhir", "/ImagingStudy")])
def test_an_http_peer_answers_at_the_address_it_prints_and_only_with_its_token(
    command: Command, hospitals: Corpus, protocol: str, path: str
) -> None:
    directory = str(hospitals.nodes["es-madrid"].directory)
    with command.running("simulate", protocol, "--directory", directory, "--with", "bearer=open-sesame") as process:
        url = address(process) + path
        assert httpx.get(url).status_code == 401
        answer = httpx.get(url, headers={"Authorization": "Bearer open-sesame"})
        assert answer.status_code == 200
        assert answer.json()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_peer_ends_cleanly_by_a_signal(command: Command, hospitals: Corpus, number: signal.Signals) -> None:
    with command.running("simulate", "dimse", "--directory", str(hospitals.nodes["fr-lyon"].directory)) as process:
        address(process)
        process.send_signal(number)
        assert process.wait(15) == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_a_peer_ends_with_its_input_when_told_to(command: Command, hospitals: Corpus) -> None:
    directory = str(hospitals.nodes["fr-lyon"].directory)
    with command.running("simulate", "dicomweb", "--directory", directory, "--until-eof") as process:
        address(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(15) == 0


def test_a_directory_that_is_not_there_and_a_fault_that_does_not_exist_are_one_line_each(command: Command) -> None:
    for words, told in (
        (("--directory", "/nowhere"), "--directory: /nowhere is not a directory"),
        (("--directory", ".", "--with", "no_gte"), "--with no_gte: a dimse peer has abort_after, "),
        (("--directory", ".", "--with", "max_results=many"), "--with max_results: 'many' is not a whole number"),
    ):
        done = command.inside("simulate", "dimse", *words)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"imaging-gateway: {told}")
        assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told_with_another_one(command: Command, hospitals: Corpus) -> None:
    directory = str(hospitals.nodes["fr-lyon"].directory)
    with command.running("simulate", "dicomweb", "--directory", directory) as process:
        port = address(process).split(":")[2].split("/")[0]
        done = command.inside("simulate", "dimse", "--directory", directory, "--port", port)
    assert done.exit_code == 2
    assert f"port: {port} is taken by another program; choose another one, such as --port " in done.stderr


@pytest.mark.parametrize("protocol", ["dimse", "dicomweb", "fhir"])
def test_all_options_are_listed(command: Command, protocol: str) -> None:
    shown = command.inside("simulate", protocol, "--options").stdout
    assert all(f"  {name}" in shown for name in simulate.types(protocol))


def test_switches_become_options_of_every_kind() -> None:
    switches = ["no-get", "max_results=5", "ignored_keys=PatientID,StudyDate", 'destinations={"A": ["127.0.0.1", 4]}']
    assert simulate.options_of("dimse", [*switches, "black_hole=tcp", "delay=0.5"]) == DimseOptions(
        no_get=True,
        max_results=5,
        ignored_keys=frozenset({"PatientID", "StudyDate"}),
        destinations={"A": ("127.0.0.1", 4)},
        black_hole="tcp",
        delay=0.5,
    )
    assert simulate.options_of("dicomweb", ["basic=reader,secret", "wrong_vr=false"]) == DicomwebOptions(
        basic=("reader", "secret"), wrong_vr=False
    )


@pytest.mark.parametrize("switch", ["framing=loud", "basic=only-one", "delay=soon", "issuer_systems={a", "tls=1"])
def test_a_value_of_the_wrong_kind_is_refused_by_name(switch: str) -> None:
    protocol = "fhir" if switch.startswith("issuer") else "dimse" if switch.startswith("tls") else "dicomweb"
    with pytest.raises(SettingsError, match=f"--with {switch.split('=')[0]}"):
        simulate.options_of(protocol, [switch])
