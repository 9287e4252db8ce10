"""`ping` tells a healthy node from a sick one; `query` shows studies and what is missing from them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gateway.cli import query
from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebSimulator
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from tests.cli.commands import Command
from tests.running import Gateway


def dimse(node: str, port: int, more: str = "") -> str:
    return (
        f'[[node]]\nid = "{node}"\nname = "{node}"\nadapter = "dimse"\nconnect_deadline = 2\nsearch_deadline = 2\n'
        f'connection = {{ host = "127.0.0.1", port = {port}, called_ae_title = "LYON"{more} }}\n'
    )


@pytest.fixture
def refused_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_ping_says_what_a_node_can_do_and_what_the_administrator_has_to_enter(
    command: Command, hospitals: Corpus
) -> None:
    with DimseSimulator(hospitals.nodes["fr-lyon"].directory, "LYON", options=DimseOptions(no_get=True)) as lyon:
        text = dimse("fr-lyon", lyon.port) + '[move_receiver]\nae_title = "GATEWAY"\nport = 11117\n'
        Path(command.directory, "nodes.toml").write_text(text)
        done = command("ping", "fr-lyon")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"fr-lyon  OK  dimse  LYON at 127.0.0.1:{lyon.port}\n  echo ")
    assert " can         echo find move" in done.stdout
    assert "  character sets ISO_IR" in done.stdout
    assert "C-MOVE destination AE title GATEWAY, host 127.0.0.1, port 11117" in done.stdout
    assert 'node file: retrieve = "move"' in done.stdout


def test_ping_asks_all_nodes_and_fails_when_one_does_not_answer(
    command: Command, hospitals: Corpus, refused_port: int
) -> None:
    madrid = DicomwebSimulator(hospitals.nodes["es-madrid"].directory)
    silent = DimseSimulator(hospitals.nodes["fr-lyon"].directory, "LYON", options=DimseOptions(black_hole="tcp"))
    with madrid, silent:
        Path(command.directory, "other.toml").write_text(
            dimse("it-roma", refused_port)
            + f'[[node]]\nid = "es-madrid"\nname = "Madrid"\nadapter = "dicomweb"\nconnection = {{ url = "{madrid.url}" }}\n'
            + dimse("fr-lyon", silent.port)
            + f'[[node]]\nid = "ee-tartu"\nname = "Tartu"\nadapter = "files"\n'
            f'connection = {{ directory = "{hospitals.nodes["ee-tartu"].directory}" }}\n'
        )
        done = command("ping", "--nodes", "other.toml")
    assert done.returncode == 1
    heads = [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert heads == [["it-roma", "FAILED"], ["es-madrid", "OK"], ["fr-lyon", "FAILED"], ["ee-tartu", "OK"]]
    assert "why         GW201 Node unreachable" in done.stdout
    assert "why         GW202 Node timed out" in done.stdout
    assert "quirks = [" in done.stdout


def test_ping_of_a_node_that_is_not_in_the_file_names_those_that_are(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(dimse("fr-lyon", 104))
    done = command.inside("ping", "atlantis")
    assert (done.exit_code, done.stderr) == (
        2,
        "imaging-gateway: nodes.toml: there is no node 'atlantis'; there are fr-lyon\n",
    )


def test_ping_without_a_node_file_says_what_is_missing(command: Command) -> None:
    done = command.inside("ping")
    assert done.exit_code == 2
    assert done.stderr.startswith("imaging-gateway: nodes.toml: cannot be read")


@pytest.fixture(scope="module")
def gateway(hospitals: Corpus) -> Iterator[Gateway]:
    with socket.socket() as down:
        down.bind(("127.0.0.1", 0))
        nodes = [
            {
                "id": node,
                "name": node,
                "adapter": "files",
                "connection": {"directory": str(hospitals.nodes[node].directory)},
                "patient_id_issuer": hospitals.nodes[node].hospital.patient_id_issuer,
            }
            for node in ("pl-krakow", "es-madrid")
        ]
        roma = {"url": f"http://127.0.0.1:{down.getsockname()[1]}/dicom-web"}
        nodes.append({"id": "it-roma", "name": "Roma", "adapter": "dicomweb", "connection": roma})
        with Gateway(nodes, cache=False) as running:
            yield running


def test_query_shows_studies_with_their_nodes_and_names_the_node_that_is_missing(
    command: Command, gateway: Gateway, hospitals: Corpus
) -> None:
    done = command("query", "--url", gateway.url, "--name", "zolkiewska*")
    assert done.returncode == 0, done.stderr
    heading, study, count = done.stdout.splitlines()
    expected = next(s for s in hospitals.nodes["pl-krakow"].studies if s.patient_id == "99990000011")
    assert heading.split() == [
        "Date",
        "Patient",
        "Name",
        "Modalities",
        "Description",
        "Series",
        "Images",
        "Nodes",
        "Study",
        "UID",
    ]
    for shown in ("2025-02-20", "99990000011 (PESEL)", "Żółkiewska Łucja", "MG", "pl-krakow", expected.study_uid):
        assert shown in study
    assert count == "1 study"
    assert "warning: " in done.stderr
    assert "it-roma" in done.stderr


def test_the_filters_of_query_are_put_to_the_gateway(command: Command, gateway: Gateway, hospitals: Corpus) -> None:
    def uids(*words: str) -> set[str]:
        done = command.inside("query", "--url", gateway.url, "--json", *words)
        assert done.exit_code == 0, done.stderr
        return {row["0020000D"]["Value"][0] for row in json.loads(done.stdout)}

    def held(node: str) -> set[str]:
        return {study.study_uid for study in hospitals.nodes[node].studies}

    assert uids() == held("pl-krakow") | held("es-madrid")
    assert uids("--node", "es-madrid") == held("es-madrid")
    assert uids("--node", "es-madrid", "--node", "pl-krakow") == held("pl-krakow") | held("es-madrid")
    krakow, madrid = hospitals.case("shared-patient-id").studies
    assert uids("--patient-id", "12345", "--issuer", "SU-KRAKOW") == {krakow.study_uid}
    assert uids("--date", "20250130", "--modality", "CT") == {madrid.study_uid}
    assert len(uids("--limit", "2")) == 2


def test_a_refusal_of_the_gateway_is_shown_in_its_own_words(command: Command, gateway: Gateway) -> None:
    done = command.inside("query", "--url", gateway.url, "--patient-id", "12345")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "409: " in done.stderr
    assert "SU-KRAKOW" in done.stderr
    assert "HU-MADRID" in done.stderr


def test_without_a_gateway_query_says_how_to_get_one(command: Command, refused_port: int) -> None:
    done = command.inside("query", "--url", f"http://127.0.0.1:{refused_port}")
    assert done.exit_code == 2
    assert f"no gateway answers at http://127.0.0.1:{refused_port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_asked_of_a_gateway_on_this_machine_goes_through_no_proxy(
    command: Command, gateway: Gateway, refused_port: int
) -> None:
    proxy = f"http://127.0.0.1:{refused_port}"
    done = command.inside("query", "--url", gateway.url, http_proxy=proxy, HTTP_PROXY=proxy, no_proxy="", NO_PROXY="")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("answer", [b"<html>Log in</html>", b'{"resourceType": "Bundle"}', b"[1]", b"\xff"])
def test_another_server_than_a_gateway_is_told_in_one_line(command: Command, answer: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = command.inside("query", "--url", url)
        server.shutdown()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"imaging-gateway: what answers at {url} is no gateway: it does not give DICOM JSON\n"


def test_several_warnings_in_one_header_are_told_apart() -> None:
    headers = ['299 gateway "node a: says \\"no\\", twice", 299 gateway "node b: cannot be reached"', '299 - "c"']
    assert query.warnings_of(headers) == ('node a: says "no", twice', "node b: cannot be reached", "c")


def test_what_a_hospital_sends_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = {"vr": "PN", "Value": [{"Alphabetic": "Evil\x1b[2J\x07^[bold]Eve[/bold]"}]}
    query.show(query.Studies([{"00100010": name}], ()))
    shown = capsys.readouterr().out
    assert "Evil [2J  [bold]Eve[/bold]" in shown
    assert "\x1b" not in shown
