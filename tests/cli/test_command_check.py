"""`check` names every problem with its file and key, and nothing starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import ROOT, Command

NODES = """
[[node]]
id = "fr-lyon"
name = "Lyon"
adapter = "dimse"
connection = { host = "127.0.0.1", port = 104, called_ae_title = "LYON" }
"""


def test_every_shipped_mapping_is_said_to_be_in_order(command: Command) -> None:
    files = sorted(map(str, (ROOT / "mappings").glob("*.toml")))
    done = command("check", *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK, mapping ") == len(files)


def test_a_node_file_is_known_by_its_content_and_its_nodes_are_listed(command: Command) -> None:
    Path(command.directory, "anything.toml").write_text(NODES)
    done = command("check", "anything.toml")
    assert (done.returncode, done.stdout) == (0, "anything.toml: OK, 1 nodes: fr-lyon (dimse, dicom)\n")


def test_all_problems_of_a_node_file_are_listed_with_their_keys(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(
        NODES.replace("port = 104", "port = 99999, colour = 1").replace('"Lyon"', '"${LYON_NAME}"')
        + 'time_zone = "Europe/Lyon"\nmaping = "dicom"\n'
    )
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert all(line.startswith("imaging-gateway: nodes.toml: node[fr-lyon].") for line in lines)
    for key in (
        "name: the environment variable LYON_NAME",
        "connection.port:",
        "connection.colour:",
        "time_zone:",
        "maping:",
    ):
        assert any(f"node[fr-lyon].{key}" in line for line in lines), key


def test_a_character_set_that_dicom_does_not_know_is_a_problem(command: Command) -> None:
    for term, says in (("utf-16", 1), ("Latin-42", 1), ("ISO_IR 101", 0), ("\\\\ISO 2022 IR 87", 0)):
        Path(command.directory, "nodes.toml").write_text(NODES + f'character_set = "{term}"\n')
        done = command.inside("check", "nodes.toml")
        assert done.exit_code == says, term
        assert (f"node[fr-lyon].character_set: '{term}' is not a DICOM character set" in done.stderr) == bool(says)


def test_a_file_with_the_mark_that_windows_editors_put_at_its_beginning_is_read(command: Command) -> None:
    plain = (ROOT / "mappings" / "dicom.toml").read_text()
    for name, content in (("nodes.toml", NODES), ("mapping.toml", plain)):
        Path(command.directory, name).write_text(content, encoding="utf-8-sig")
    done = command.inside("check", "nodes.toml", "mapping.toml")
    assert done.exit_code == 0, done.stderr
    assert "fr-lyon" in command.inside("ping", "fr-lyon").stdout


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [
        ("[[node]]", "[node]", "node: is to be a list, in [ ], or of tables that are each headed [[node]]"),
        ("called_ae_title", "ae_title", "node[fr-lyon].connection.ae_title: unknown key"),
        ("called_ae_title", "ae_title", "node[fr-lyon].connection.called_ae_title: is missing"),
        ("[[node]]", '[[node]]\npurposes = "TREAT"', "node[fr-lyon].purposes: is to be a list, in [ ]"),
        ("[[node]]", '[[node]]\nstore = "yes"', "node[fr-lyon].store: is to be a table, in { }"),
        ("[[node]]", '[[node]]\nissuers = ["PESEL"]', "node[fr-lyon].issuers.0: is to be a table, in { }"),
        (
            "{ host",
            '{ auth = { username = "gw" }, url = "https://a.example", host',
            "connection.auth: its kind is missing",
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_file(
    command: Command, written: str, instead: str, told: str
) -> None:
    text = NODES.replace(written, instead)
    Path(command.directory, "nodes.toml").write_text(text.replace("dimse", "dicomweb") if "auth" in instead else text)
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert told in done.stderr


def test_variables_come_from_the_environment_and_their_values_are_not_printed(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(NODES.replace("port = 104", 'port = 104, secret = "${SECRET}"'))
    done = command.inside("check", "nodes.toml", SECRET="hunter2-hunter2")
    assert done.exit_code == 1
    assert "node[fr-lyon].connection.secret:" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_node_that_names_a_mapping_that_is_not_there_is_a_problem(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(NODES + 'mapping = "dicom-atlantis"\n')
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert "nodes.toml: node[fr-lyon].mapping: there is no mapping 'dicom-atlantis'" in done.stderr


def test_a_mapping_of_another_protocol_than_the_adapters_is_a_problem(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(NODES + 'mapping = "fhir-r4"\n')
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert "node[fr-lyon].mapping: 'fhir-r4' reads fhir" in done.stderr


def test_a_new_format_and_the_node_that_uses_it_are_checked_together(command: Command) -> None:
    plain = (ROOT / "mappings" / "dicom.toml").read_text().replace('format = "dicom"', 'format = "dicom-atlantis"')
    Path(command.directory, "atlantis.toml").write_text(plain)
    Path(command.directory, "nodes.toml").write_text(NODES + 'mapping = "dicom-atlantis"\n')
    done = command.inside("check", "nodes.toml", "atlantis.toml")
    assert done.exit_code == 0, done.stderr


def test_a_directory_and_a_certificate_that_are_not_there_are_problems(command: Command) -> None:
    Path(command.directory, "nodes.toml").write_text(
        '[[node]]\nid = "a"\nname = "A"\nadapter = "files"\nconnection = { directory = "/nowhere/at/all" }\n'
        '[[node]]\nid = "b"\nname = "B"\nadapter = "dicomweb"\n'
        'connection = { url = "https://b.example/dicom-web", tls = { ca_bundle = "/nowhere/ca.pem" } }\n'
    )
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert "node[a].connection.directory: there is no /nowhere/at/all" in done.stderr
    assert "node[b].connection.tls.ca_bundle: there is no /nowhere/ca.pem" in done.stderr


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [
        ('host = "127.0.0.1"', 'host = "dicom://127.0.0.1"', "connection.host:"),
        ("[[node]]", '[[node]]\nquirks = ["ignores-ofset"]', "quirks: there is no 'ignores-ofset'"),
        ("[[node]]", '[[node]]\nquirks = ["ignores-StudyDte"]', "quirks: there is no 'ignores-StudyDte'"),
    ],
)
def test_what_would_be_of_no_effect_is_a_problem(command: Command, written: str, instead: str, told: str) -> None:
    Path(command.directory, "nodes.toml").write_text(NODES.replace(written, instead))
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert f"node[fr-lyon].{told}" in done.stderr


def test_whatever_ping_may_print_is_a_quirk(command: Command) -> None:
    words = ["ignores-modalities-in-study", "ignores-StudyDate", "fuzzy-names", "answers-204", "no-transfer-syntax-any"]
    Path(command.directory, "nodes.toml").write_text(NODES.replace("[[node]]", f"[[node]]\nquirks = {words}"))
    assert command.inside("check", "nodes.toml").exit_code == 0


def test_a_file_where_a_directory_is_wanted_and_a_key_that_is_none_are_problems(command: Command) -> None:
    Path(command.directory, "text").write_text("no key")
    auth = 'kind = "client_credentials", token_url = "https://a.example", client_id = "gw", private_key = "text"'
    Path(command.directory, "nodes.toml").write_text(f"""
[[node]]
id = "disk"
name = "Disk"
adapter = "files"
connection = {{ directory = "text" }}

[[node]]
id = "web"
name = "Web"
adapter = "dicomweb"
connection = {{ url = "https://pacs.example", auth = {{ {auth} }} }}
""")
    done = command.inside("check", "nodes.toml")
    assert "node[disk].connection.directory: text is no directory" in done.stderr
    assert "node[web].connection.auth.private_key is neither an RSA nor an EC key" in done.stderr


def test_a_mapping_with_an_unknown_key_and_one_whose_example_fails_are_told(command: Command) -> None:
    plain = (ROOT / "mappings" / "dicom.toml").read_text()
    Path(command.directory, "unknown.toml").write_text("colour = 1\n" + plain)
    Path(command.directory, "wrong.toml").write_text(plain.replace('PatientID = "4711"', 'PatientID = "4712"', 1))
    done = command.inside("check", "unknown.toml", "wrong.toml")
    assert done.exit_code == 1
    assert "unknown.toml: colour: unknown key" in done.stderr
    assert "wrong.toml: example" in done.stderr


def test_what_is_no_toml_or_neither_kind_of_file_is_told_without_a_traceback(command: Command) -> None:
    Path(command.directory, "broken.toml").write_text("[[node\n")
    Path(command.directory, "other.toml").write_text("colour = 1\n")
    Path(command.directory, "binary.toml").write_bytes(b"\xff\xfe\x00")
    done = command.inside("check", "broken.toml", "other.toml", "binary.toml", "absent.toml")
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    for told in (
        "broken.toml: is not TOML",
        "other.toml: is neither",
        "binary.toml: is not UTF-8",
        "absent.toml: cannot be read",
    ):
        assert told in done.stderr


def test_a_path_that_the_system_does_not_let_be_looked_at_is_a_problem_like_any_other(command: Command) -> None:
    place = "/etc/" + "x" * 300  # as one below a directory that this user may not enter: root may enter all
    Path(command.directory, "nodes.toml").write_text(
        f'[[node]]\nid = "a"\nname = "A"\nadapter = "files"\nconnection = {{ directory = "{place}" }}\n'
    )
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert f"node[a].connection.directory: cannot be looked at: {place}" in done.stderr
    told = command("check", "nodes.toml", GATEWAY_MAPPINGS=place)
    assert told.stderr == f"imaging-gateway: {place}: cannot be read\n"


@pytest.mark.parametrize("tls", ['ca_bundle = "nodes.toml"', 'certificate = "nodes.toml"'])
@pytest.mark.parametrize("adapter", ["dicomweb", "fhir"])
def test_a_certificate_of_a_node_that_is_none_is_a_problem_of_that_node(
    command: Command, adapter: str, tls: str
) -> None:
    Path(command.directory, "nodes.toml").write_text(
        f'[[node]]\nid = "a"\nname = "A"\nadapter = "{adapter}"\n'
        f'connection = {{ url = "https://a.example/x", tls = {{ {tls} }} }}\n'
    )
    done = command.inside("check", "nodes.toml")
    assert done.exit_code == 1
    assert done.stderr == "imaging-gateway: nodes.toml: node[a].connection.tls: the certificates cannot be read\n"
