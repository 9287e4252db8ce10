"""`serve` starts only when everything is in order, says in one line what is not, and ends without breaking a request."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import threading
import warnings
from pathlib import Path

import httpx
import pytest

from gateway.simulators.corpus import Corpus
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from tests.cli.commands import ROOT, Command
from tests.faults.certificates import Authority


def write_nodes(command: Command, url: str, mapping: str = "dicom") -> None:
    Path(command.directory, "nodes.toml").write_text(
        f'[[node]]\nid = "es-madrid"\nname = "Madrid"\nadapter = "dicomweb"\nmapping = "{mapping}"\n'
        f'connection = {{ url = "{url}" }}\n'
    )


def address(process: subprocess.Popen[str]) -> str:
    """From the line that says where it serves."""
    assert process.stderr
    for line in process.stderr:
        if found := re.match(r"imaging-gateway: serving nodes.toml on (https?://127\.0\.0\.1:\d+)$", line):
            return found[1]
    raise AssertionError("the gateway did not say that it serves")


def test_sigterm_lets_the_request_under_way_end_and_the_exit_is_clean(command: Command, hospitals: Corpus) -> None:
    slow = DicomwebOptions(delay=1.0, faulty_operations=frozenset({"retrieve_instance"}))
    study = hospitals.nodes["es-madrid"].studies[0]
    path = (
        f"studies/{study.study_uid}/series/{study.series[0].series_uid}/instances/{study.instances[0].sop_instance_uid}"
    )
    with DicomwebSimulator(hospitals.nodes["es-madrid"].directory, slow) as madrid:
        write_nodes(command, madrid.url)
        with command.running("serve", "--port", "0") as process:
            url = address(process)
            assert httpx.get(f"{url}/ready").text == "ready"
            answers: list[httpx.Response] = []
            headers = {"Accept": "application/dicom; transfer-syntax=*"}
            get = threading.Thread(
                target=lambda: answers.append(httpx.get(f"{url}/dicom-web/{path}", headers=headers, timeout=20))
            )
            get.start()
            while not madrid.operations["retrieve_instance"]:
                assert get.is_alive()
            process.send_signal(signal.SIGTERM)
            get.join(20)
            assert process.wait(20) == 0
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/live")
    assert answers[0].status_code == 200
    assert answers[0].content == study.instances[0].path.read_bytes()
    assert "server" not in answers[0].headers


def agreed(url: str, least: ssl.TLSVersion, most: ssl.TLSVersion, ciphers: str) -> str | None:
    """The cipher suite that the gateway agrees to with such a client; None where it does not."""
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers(f"{ciphers}@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        client.minimum_version, client.maximum_version = least, most
    address = httpx.URL(url)
    try:
        with (
            socket.create_connection((address.host, address.port or 443), 10) as plain,
            client.wrap_socket(plain) as connection,
        ):
            used = connection.cipher()
            return used[0] if used else None
    except (ssl.SSLError, ConnectionError):
        return None


def test_tls_is_of_today_and_keeps_secrets_whatever_the_system_allows(command: Command, tmp_path: Path) -> None:
    """RFC 9325 (BCP 195), to which the secure transport profiles of PS3.15 refer."""
    Path(command.directory, "nodes.toml").write_text("")
    pem, old, new = str(Authority(tmp_path).file("good")), ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    files = {"GATEWAY_TLS_CERTIFICATE": pem, "GATEWAY_TLS_KEY": pem}
    with command.running("serve", "--port", "0", **files, OPENSSL_CONF="/dev/null") as process:
        url = address(process)
        assert agreed(url, new, new, "DEFAULT")
        assert agreed(url, old, old, "DEFAULT") in ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256")
        assert agreed(url, old, old, "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:AES128-SHA") is None
        assert agreed(url, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, "ALL") is None


def refused(command: Command, *words: str, **environment: str) -> str:
    done = command("serve", *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("imaging-gateway: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_missing_node_file_and_a_wrong_variable_are_one_line_each(command: Command) -> None:
    assert "nodes.toml: cannot be read" in refused(command, "--port", "0")
    assert "GATEWAY_SEARCH_DEADLINE: " in refused(command, "--port", "0", GATEWAY_SEARCH_DEADLINE="soon")


@pytest.mark.parametrize("name", ["GATEWAY_TRUSTED_PROXIES", "GATEWAY_CORS_ORIGINS"])
@pytest.mark.parametrize("given", ["10.0.0.5", '{"proxy": "10.0.0.5"}', "[10.0.0.5"])
def test_what_is_no_list_is_named_by_its_variable_and_not_shown(command: Command, name: str, given: str) -> None:
    told = refused(command, "--port", "0", **{name: given})
    assert f'{name}: is not a JSON list, such as ["first", "second"]' in told
    assert "10.0.0.5" not in told


def test_a_node_without_its_mapping_and_a_mapping_with_an_unknown_key_are_one_line_each(command: Command) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web", "dicom-atlantis")
    assert "node[es-madrid].mapping: there is no mapping 'dicom-atlantis'" in refused(command, "--port", "0")
    plain = (ROOT / "mappings" / "dicom.toml").read_text().replace('format = "dicom"', 'format = "dicom-atlantis"')
    folder = command.directory / "formats"
    folder.mkdir()
    (folder / "atlantis.toml").write_text("colour = 1\n" + plain)
    assert "atlantis.toml: colour: unknown key" in refused(command, "--port", "0", "--mappings", "formats")


def test_a_directory_of_mappings_that_is_none_is_named(command: Command) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web")
    for name in ("formatss", "nodes.toml"):
        assert f"{name}: is no directory of mappings" in refused(command, "--port", "0", GATEWAY_MAPPINGS=name)


def test_what_is_no_setting_is_told_at_the_start_unless_the_node_file_asks_for_it(command: Command) -> None:
    (command.directory / "nodes.toml").write_text(
        '[[node]]\nid = "a"\nname = "A"\nadapter = "dicomweb"\n'
        'connection = { url = "http://127.0.0.1:9/", auth = { kind = "bearer", token = "${GATEWAY_PACS}" } }\n'
    )
    with command.running("serve", "--port", "0", GATEWAY_CACHEKEY="hunter2", GATEWAY_PACS="secret") as process:
        assert process.stderr
        told = process.stderr.readline()
        assert "hunter2" not in told
        assert told == (
            "imaging-gateway: GATEWAY_CACHEKEY is no setting and has no effect; is GATEWAY_CACHE_KEY meant?\n"
        )
        assert "GATEWAY_PACS" not in process.stderr.readline()


def test_a_taken_port_is_named_with_another_one_to_choose(command: Command) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused(command, "--port", str(port))
    assert re.search(rf"port: {port} is taken by another program; choose another one, such as --port \d+", told)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_spool_that_cannot_be_written_to_is_named_by_its_variable(command: Command, workers: str) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web")
    told = refused(command, "--port", "0", "--workers", workers, GATEWAY_SPOOL="nodes.toml")
    assert "GATEWAY_SPOOL: nodes.toml cannot be written to" in told


def test_a_demo_that_can_be_kept_nowhere_names_the_option(command: Command) -> None:
    (command.directory / "file").touch()
    done = command("demo", "--port", "0", "--directory", "file/demo")
    assert (done.returncode, done.stdout) == (2, "")
    place = command.directory / "file" / "demo"
    assert done.stderr == f"imaging-gateway: {place} cannot be written to; name another place with --directory\n"


def test_off_loopback_without_an_oidc_issuer_it_does_not_start(command: Command) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web")
    assert "GATEWAY_OIDC_ISSUER" in refused(command, "--port", "0", "--host", "0.0.0.0")


def test_a_certificate_that_is_none_is_named_by_its_variable(command: Command) -> None:
    write_nodes(command, "http://127.0.0.1:9/dicom-web")
    (command.directory / "cert.pem").write_text("not a certificate")
    told = refused(command, "--port", "0", GATEWAY_TLS_CERTIFICATE="cert.pem", GATEWAY_TLS_KEY="cert.pem")
    assert "GATEWAY_TLS_CERTIFICATE" in told


def test_workers_refuse_what_one_process_refuses_in_the_same_one_line(command: Command) -> None:
    assert "nodes.toml: cannot be read" in refused(command, "--port", "0", "--workers", "2")
    write_nodes(command, "http://127.0.0.1:9/dicom-web", "dicom-atlantis")
    assert "there is no mapping 'dicom-atlantis'" in refused(command, "--port", "0", GATEWAY_WORKERS="2")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "is taken by another program" in refused(
            command, "--port", str(other.getsockname()[1]), "--workers", "2"
        )


def test_a_c_move_receiver_cannot_be_shared_by_workers(command: Command) -> None:
    (command.directory / "nodes.toml").write_text('[move_receiver]\nae_title = "IMAGING-GW"\nport = 0\n')
    told = refused(command, "--port", "0", "--workers", "2")
    assert "move_receiver: a PACS sends to one AE title at one host and port" in told
    assert "GATEWAY_WORKERS=1" in told
