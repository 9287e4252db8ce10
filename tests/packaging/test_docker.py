"""docker/: what can be held without a container engine. Every file named exists, every configuration is read by its program."""

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from gateway import settings
from gateway.federation import nodes
from gateway.mapping.load import load_all
from gateway.security.guard import check_start
from gateway.security.scopes import allows
from gateway.simulators import corpus
from tests.peers import free_port

TREE = Path(__file__).parents[2]
DOCKER = TREE / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILES = sorted(DOCKER.rglob("Dockerfile"))
NODES = DOCKER / "nodes" / "nodes.toml"
REALM = json.loads((DOCKER / "identity" / "realm.json").read_text())
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECRETS = {
    "GATEWAY_SECRET": "s" * 32,
    "GATEWAY_CACHE_KEY": base64.b64encode(bytes(32)).decode(),
    "VIEWER_SECRET": "v",
    "KEYCLOAK_ADMIN_PASSWORD": "k",
    "MADRID_PASSWORD": "m",
}


def contexts(dockerfile):
    """The directory a Dockerfile is built from: compose names it; the gateway's own is the tree."""
    return TREE if dockerfile.parent == DOCKER else dockerfile.parent


def filled(text):
    """A value of compose.yml with ${VAR:?...} filled in as compose does from .env."""
    return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: SECRETS[found[1]], str(text))


def environment(service):
    return {name: filled(value) for name, value in SERVICES[service].get("environment", {}).items()}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.parent.relative_to(TREE)))
def test_what_a_dockerfile_copies_is_there_and_is_let_through(dockerfile):
    ignored = (TREE / ".dockerignore").read_text().splitlines() if contexts(dockerfile) == TREE else []
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile.read_text(), re.MULTILINE):
        for source in shlex.split(line)[:-1]:
            assert (contexts(dockerfile) / source).exists(), source
            assert not ignored or source in kept, f"{source} is hidden by .dockerignore"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.parent.relative_to(TREE)))
def test_no_image_runs_as_root(dockerfile):
    last_stage = dockerfile.read_text().rsplit("\nFROM ", 1)[-1]
    users = re.findall(r"^USER (\S+)$", last_stage, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0", "0:0")


def test_the_image_starts_the_gateway_pinned_and_with_a_health_check():
    text = (DOCKER / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["imaging-gateway"]\nCMD ["serve"]' in text
    assert re.search(r"^HEALTHCHECK .*healthy\.py", text, re.MULTILINE)
    assert all("-c requirements.lock" in line for line in text.splitlines() if "pip install" in line)


def test_what_compose_mounts_and_builds_is_there():
    volumes = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    for volume in volumes:
        assert volume in COMPOSE["volumes"] or (DOCKER / volume).is_file(), volume
    for service in SERVICES.values():
        build = service.get("build")
        if isinstance(build, dict):
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
        elif build:
            assert (DOCKER / build / "Dockerfile").is_file()


def test_every_image_that_is_not_built_here_is_of_a_named_version():
    bases = [base for file in DOCKERFILES for base in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)]
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert [image for image in {*bases, *images} - built if not re.search(r":v?\d", image)] == []


def test_the_certificate_is_made_once_and_is_for_every_name_that_is_called(tmp_path):
    needs("openssl")
    (line,) = SERVICES["certificate"]["command"]
    command = [*SERVICES["certificate"]["entrypoint"], line.replace("/tls/", f"{tmp_path}/")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    made = (tmp_path / "certificate.pem").read_bytes()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "certificate.pem").read_bytes() == made
    names = x509.load_pem_x509_certificate(made).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert set(names.value.get_values_for_type(x509.DNSName)) == set(SERVICES["proxy"]["networks"]["inside"]["aliases"])
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0


def test_services_depend_on_services_that_there_are():
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        networks = service.get("networks", ())
        assert set(networks) <= set(COMPOSE["networks"]), name
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]


def test_every_secret_that_compose_wants_is_explained_and_none_has_a_value():
    wanted = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yml").read_text()))
    lines = [line for line in (DOCKER / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert {line.partition("=")[0] for line in lines} == wanted == set(SECRETS)
    assert [line for line in lines if not line.endswith("=")] == []


def test_what_redis_remembers_for_months_outlives_it_and_lies_encrypted_on_its_disk(composed):
    command = SERVICES["redis"]["command"]
    said = dict(zip(command[1::2], command[2::2], strict=True))
    assert said["--appendonly"] == "yes"
    assert said["--maxmemory-policy"] == "volatile-lru"
    assert [volume for volume in SERVICES["redis"]["volumes"] if volume.partition(":")[2] == "/data"] == ["redis:/data"]
    assert settings.read().cache_key is not None


def test_only_the_proxy_can_be_reached_and_only_from_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in published["proxy"])


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """The environment of the gateway's container, with the image's own defaults; its directory of files is here."""
    image = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", (DOCKER / "Dockerfile").read_text()))
    given = {**image, **environment("gateway"), "TARTU_DIRECTORY": str(tmp_path)}
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def test_the_gateway_starts_with_what_compose_sets_and_is_guarded(composed):
    read = settings.read()
    check_start(read)
    assert not read.on_loopback
    known = {f"GATEWAY_{name.upper()}" for name in settings.Settings.model_fields}
    assert {name for name in composed if name.startswith("GATEWAY_")} <= known
    assert list(read.trusted_proxies) == [SERVICES["proxy"]["networks"]["inside"]["ipv4_address"]]


def test_without_its_issuer_the_image_does_not_start(composed, monkeypatch):
    monkeypatch.setenv("GATEWAY_OIDC_ISSUER", "")
    with pytest.raises(Exception, match="GATEWAY_OIDC_ISSUER"):
        check_start(settings.read())


def test_the_node_file_is_in_order_and_reaches_every_protocol(composed):
    file = nodes.read(NODES)
    assert {node.adapter for node in file.node} == set(nodes.CONNECTIONS)
    assert {node.mapping_name for node in file.node} <= set(load_all())
    command = [sys.executable, "-m", "gateway", "check", str(NODES)]
    result = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_node_is_a_service_of_compose(composed):
    urls = re.findall(r"https?://([\w-]+):\d+", NODES.read_text())
    hosts = {tomllib.loads(NODES.read_text())["node"][1]["connection"]["host"], *urls}
    assert hosts == {"berlin", "berlin-pixels", "krakow", "madrid"}
    assert hosts <= set(SERVICES)


def test_no_secret_of_a_node_is_written_down():
    assert re.findall(r'(?:password|token|secret) = "(?!\$\{)', NODES.read_text()) == []
    assert [client["secret"] for client in REALM["clients"]] == ["${VIEWER_SECRET}"]


def test_the_issuer_gives_tokens_that_the_gateway_takes():
    (client,) = REALM["clients"]
    scopes = {scope["name"]: scope for scope in REALM["clientScopes"]}
    assert set(client["defaultClientScopes"]) <= set(scopes)
    granted = [
        name for name in client["defaultClientScopes"] if scopes[name]["attributes"]["include.in.token.scope"] == "true"
    ]
    for resource in ("ImagingStudy", "Patient", "Endpoint", "Organization"):
        assert allows(granted, resource, "r")
        assert allows(granted, resource, "s")
    mapped = [mapper["config"] for scope in scopes.values() for mapper in scope.get("protocolMappers", ())]
    audiences = {config.get("included.custom.audience") for config in mapped} - {None}
    assert audiences == {environment("gateway")["GATEWAY_OIDC_AUDIENCE"]}
    assert environment("gateway")["GATEWAY_OIDC_ISSUER"].endswith(f"/realms/{REALM['realm']}")


def test_the_proxy_serves_every_name_that_is_called():
    caddy = (DOCKER / "proxy" / "Caddyfile").read_text()
    called = {environment("gateway")["GATEWAY_PUBLIC_ROOT"], environment("identity")["KC_HOSTNAME"]}
    called.add(environment("grafana")["GF_SERVER_ROOT_URL"])
    assert set(re.findall(r"^(https://\S+) \{", caddy, re.MULTILINE)) == called
    assert set(SERVICES["proxy"]["networks"]["inside"]["aliases"]) == {
        url.split("/")[2].split(":")[0] for url in called
    }
    assert set(re.findall(r"reverse_proxy (\S+):\d+", caddy)) <= set(SERVICES)


def needs(program):
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def started(command, port, **more):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        ends = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, "it ended"
            assert time.monotonic() < ends, "it does not listen"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    return corpus.build(tmp_path_factory.mktemp("hospitals"), scale="small")


def load(hospitals, node, host_and_port, port):
    """Runs the line of the service `load` for one node, with its host and folder replaced by ours."""
    (line,) = (line for line in SERVICES["load"]["command"][0].splitlines() if host_and_port in line)
    line = line.replace(host_and_port, f"127.0.0.1 {port}").replace(
        f"/hospitals/{node}", str(hospitals.nodes[node].directory)
    )
    subprocess.run(shlex.split(line), check=True, capture_output=True, timeout=120)


@pytest.mark.interop
def test_dcmqrscp_runs_on_its_configuration_and_takes_what_is_loaded(hospitals, tmp_path):
    needs("dcmqrscp")
    folder = DOCKER / "nodes" / "dimse" / "dcmqrscp"
    port, area = free_port(), tmp_path / "pacs"
    area.mkdir()
    text = (folder / "dcmqrscp.cfg").read_text().replace("/var/lib/pacs", str(area)).replace("11112", str(port))
    (tmp_path / "dcmqrscp.cfg").write_text(text)
    command = json.loads(re.search(r"^CMD (.+)$", (folder / "Dockerfile").read_text(), re.MULTILINE)[1])
    ours = {"/etc/imaging-node/dcmqrscp.cfg": str(tmp_path / "dcmqrscp.cfg"), "11112": str(port)}
    with started([ours.get(part, part) for part in command], port):
        load(hospitals, "pl-krakow", "krakow 11112", port)
    held = [path for path in area.iterdir() if path.name != "index.dat"]
    instances = [instance for study in hospitals.nodes["pl-krakow"].studies for instance in study.instances]
    # DCMTK 3.6.7 sends pydicom's RLE compressed RT Dose in another class's presentation context, and refuses it.
    assert len(held) == len(instances) - 1


@pytest.mark.interop
def test_orthanc_runs_on_its_configuration_and_lets_in_the_gateway_only(hospitals, tmp_path):
    needs("Orthanc")
    if not PLUGIN.exists():
        pytest.skip("orthanc-dicomweb is not installed")
    http, dicom = free_port(), free_port()
    given = json.loads((DOCKER / "nodes" / "dicomweb" / "orthanc" / "orthanc.json").read_text())
    given |= {"HttpPort": http, "DicomPort": dicom, "StorageDirectory": str(tmp_path), "IndexDirectory": str(tmp_path)}
    (tmp_path / "orthanc.json").write_text(json.dumps(given | {"RemoteAccessAllowed": False}))
    url = f"http://127.0.0.1:{http}/dicom-web/studies"
    with started(["Orthanc", str(tmp_path / "orthanc.json")], http, env={**os.environ, "MADRID_PASSWORD": "m"}):
        load(hospitals, "es-madrid", "madrid 4242", dicom)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=20)
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, url, "gateway", "m")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
        rows = json.load(opener.open(request, timeout=20))
    wanted = {study.study_uid for study in hospitals.nodes["es-madrid"].studies}
    assert {row["0020000D"]["Value"][0] for row in rows} == wanted


@contextlib.contextmanager
def answering(status, host="127.0.0.1"):
    """A server whose every answer has this status: its port, and what it is asked for."""
    asked = []

    class Live(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer((host, 0), Live)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_is_the_answer_of_live(status, code):
    with answering(status) as (port, asked):
        assert healthy(port) == code
        assert asked == ["/live"]


def test_the_health_check_asks_no_proxy_that_the_engine_gives_its_containers(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering(200) as (port, _):
        assert healthy(port) == 0


@pytest.mark.parametrize(
    ("host", "asked_for"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.9", "127.0.0.9"), ("", "127.0.0.1")]
)
def test_the_health_check_asks_where_the_gateway_listens(host, asked_for):
    with answering(200, asked_for) as (port, _):
        assert healthy(port, host) == 0


def test_the_health_check_fails_where_nothing_listens():
    assert healthy(free_port()) == 1


def healthy(port, host=""):
    environment = {**os.environ, "GATEWAY_PORT": str(port), "GATEWAY_HOST": host}
    environment.pop("GATEWAY_TLS_CERTIFICATE", None)
    command = [sys.executable, str(DOCKER / "healthy.py")]
    return subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode
