"""The conformance statement is what the code's own tables say, for every node of the node file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from starlette.routing import Route

from gateway.cli.conformance import statement
from gateway.edge import routes
from gateway.model.vocabulary import RETURNED, Level, keyword

NODES = """
[[node]]
id = "pacs"
name = "Pacs"
adapter = "dimse"
connection = { host = "127.0.0.1", port = 104, called_ae_title = "PACS" }
[[node]]
id = "web"
name = "Web"
adapter = "dicomweb"
connection = { url = "https://pacs.example/dicom-web" }
"""


def test_every_route_key_and_attribute_is_in_it() -> None:
    text = "\n".join(statement())
    for route in routes.dicomweb():
        if isinstance(route, Route) and route.name != "capabilities":
            assert f"`{route.path}`" in text
    for level in Level:
        for tag in RETURNED[level]:
            assert re.search(rf"\| {keyword(tag)} \| \({tag[:4]},{tag[4:]}\) \|.*\| always \|", text)
    for heading in (
        "1 Conformance",
        "3 Introduction",
        "4 Networking",
        "5 Media",
        "6 Support of character",
        "7 Security",
    ):
        assert f"\n## {heading}" in text


def test_it_is_printed_and_tells_proxies_from_native_nodes(tmp_path: Path) -> None:
    file = tmp_path / "nodes.toml"
    file.write_text(NODES)
    asked = [sys.executable, "-m", "gateway", "conformance", "--nodes", str(file)]
    printed = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    assert "| resource | pacs (dimse) | web (dicomweb) |" in printed
    assert "| DIMSE proxy: C-FIND | native |" in printed
    tables = [line for line in printed.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_a_wrong_node_file_is_named() -> None:
    asked = [sys.executable, "-m", "gateway", "conformance", "--nodes", "/no/such/file.toml"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode != 0
    assert "/no/such/file.toml" in done.stderr
    assert "Traceback" not in done.stderr
