"""Opens OHIF on the demo's hospitals in a headless browser and asks by the clients of npm; compares with the hospitals' files."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.cli.demo import cache_directory
from gateway.simulators import corpus
from gateway.simulators.corpus import Corpus
from tests.viewer.judge import Fault, judge
from tests.viewer.visits import VISITS, Visit

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "viewer"
OHIF = "@ohif/app@3.13.2"
MODULES = ("playwright-core@1.65.1", "dicomweb-client@0.11.3", "xhr2@0.2.1", "fhir-kit-client@2.0.3")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Missing(Exception):
    """What this machine lacks for the check."""


@dataclass(frozen=True)
class Tools:
    """The programs and packages that the check runs with."""

    node: str
    browser: str
    dist: Path
    modules: Path


def tools() -> Tools:
    """Finds or fetches everything. Raises Missing with the reason."""
    node, npm = _program("node"), _program("npm")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise Missing("chromium is not installed (Debian package chromium)")
    BUILD.mkdir(parents=True, exist_ok=True)
    return Tools(node, browser, _ohif(npm), _modules(npm))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _ohif(npm: str) -> Path:
    """OHIF's built pages, fetched once into build/; never part of the repository."""
    home = BUILD / "ohif"
    if not (home / "package" / "dist" / "index.html").exists():
        home.mkdir(exist_ok=True)
        _fetch([npm, "pack", "--silent", OHIF], home)
        archive = next(home.glob("ohif-app-*.tgz"))
        with tarfile.open(archive) as packed:
            # Python 3.11.2, as Debian has it, knows neither the filter nor a default that refuses what leaves the directory.
            safe = getattr(tarfile, "data_filter", None)
            packed.extractall(home, **({"filter": safe} if safe else {}))
        archive.unlink()
    return home / "package" / "dist"


def _modules(npm: str) -> Path:
    home, wanted = BUILD / "node", " ".join(MODULES)
    stamp = home / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        home.mkdir(exist_ok=True)
        _fetch([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), *MODULES], home)
        stamp.write_text(wanted)
    return home / "node_modules"


def _fetch(command: list[str], directory: Path) -> None:
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=600)
    except (subprocess.SubprocessError, OSError):
        raise Missing(f"npm cannot fetch {command[-1]}") from None


class Pages(http.server.SimpleHTTPRequestHandler):
    """OHIF's files, cross-origin isolated as a hospital would serve them; unknown paths are OHIF's own routes."""

    protocol_version = "HTTP/1.1"
    config = b""

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/app-config.js":
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Content-Length", str(len(self.config)))
            self.end_headers()
            self.wfile.write(self.config)
            return
        if not Path(self.translate_path(self.path)).is_file():
            self.path = "/index.html"
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: what the viewer asks of the gateway is recorded in the browser."""


@contextmanager
def pages(dist: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves OHIF on a free port. `Pages.config` is to be set before the first page is opened."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(dist)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def demo(origin: str) -> Iterator[str]:
    """The root of a running demo that lets `origin`'s pages call it; everything it started is gone afterwards."""
    log = BUILD / "demo.log"
    environment = os.environ | {"GATEWAY_CORS_ORIGINS": json.dumps([origin])}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo", "--port", "0"], env=environment, stdout=output, stderr=output
        )
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> str:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        found = re.search(r"first page +(http://[0-9.:]+)/", log.read_text())
        if found:
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(f"the demo did not start; see {log}")


def browse(tools: Tools, viewer: str, gateway: str, visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the browser saw at each visit; its pictures are in build/viewer."""
    plan = BUILD / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "viewer": viewer, "gateway": gateway, "chromium": tools.browser, "modules": str(tools.modules),
                "pictures": str(BUILD), "open": visits,
            }
        )
    )  # fmt: skip
    return _node(tools, "viewer.mjs", str(plan))  # type: ignore[no-any-return]


def ask(tools: Tools, script: str, root: str, study: str) -> dict[str, Any]:
    """What a client of npm makes of one study."""
    return _node(tools, script, str(tools.modules), root, study)  # type: ignore[no-any-return]


def _node(tools: Tools, script: str, *arguments: str) -> Any:
    done = subprocess.run([tools.node, str(HERE / script), *arguments], stdout=subprocess.PIPE, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{script} failed")
    return json.loads(done.stdout)


def roots(gateway: str, archive: Corpus) -> str:
    """The viewer's data sources: the federation, and each hospital by itself."""
    own = [(node, f"{gateway}/nodes/{node}/dicom-web") for node in archive.nodes]
    return json.dumps([("gateway", f"{gateway}/dicom-web"), *own])


def check(tools: Tools, only: str) -> list[Fault]:
    with ExitStack() as stack:
        server = stack.enter_context(pages(tools.dist))
        viewer = f"http://127.0.0.1:{server.server_address[1]}"
        gateway = stack.enter_context(demo(viewer))
        archive = corpus.describe(cache_directory() / "hospitals-demo")
        config = (HERE / "app-config.js").read_text().replace("= ROOTS;", f"= {roots(gateway, archive)};")
        Pages.config = config.encode()
        visits = [visit for visit in VISITS if only in visit.name]
        seen = browse(tools, viewer, gateway, [_as_plan(visit, archive) for visit in visits])
        (BUILD / "seen.json").write_text(json.dumps(seen, indent=1, ensure_ascii=False))
        faults = [fault for visit, one in zip(visits, seen, strict=True) for fault in judge(visit, one, archive)]
        return faults + client_faults(tools, gateway, archive)


def client_faults(tools: Tools, gateway: str, archive: Corpus) -> list[Fault]:
    """What dicomweb-client, and fhir-kit-client in both versions, make of a study that several nodes hold."""
    study = archive.case("shared-study").studies[0]
    uid, count, name = study.study_uid, len(study.instances), study.patient_name
    found = _compared(
        "dicomweb-client", ask(tools, "client.mjs", f"{gateway}/dicom-web", uid), instances=count, name=name
    )
    for root, version in (("r4", "4.0.1"), ("r5", "5.0.0")):
        answers = ask(tools, "fhir.mjs", f"{gateway}/fhir/{root}", uid)
        family = name.partition("^")[0]
        found += _compared(f"fhir-kit-client {root}", answers, version=version, instances=count, family=family)
    return found


def _compared(client: str, answers: dict[str, Any], **expected: Any) -> list[Fault]:
    expected["faults"] = []
    return [
        Fault(client, f"{key}: {answers.get(key)!r} instead of {value!r}")
        for key, value in expected.items()
        if answers.get(key) != value
    ]


def _as_plan(visit: Visit, archive: Corpus) -> dict[str, Any]:
    return {"name": visit.name, "path": visit.path(archive), "shows": visit.shows}


def main() -> int:
    """0: all is well, or skipped with its reason; 1: the viewer shows something wrong, or a skip with CI set."""
    try:
        found = tools()
    except Missing as missing:
        print(f"skipped: {missing}")
        return 1 if os.environ.get("CI") else 0
    faults = check(found, sys.argv[1] if len(sys.argv) > 1 else "")
    for fault in faults:
        print(f"{fault.visit}: {fault.text}")
    print(f"{len(faults)} faults; the pictures are in {BUILD}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
