"""The README tells the truth about the settings, the node file and the error codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway import errors
from gateway.federation.nodes import NodeConfig
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = (ROOT / "gateway" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    assert f"GATEWAY_{name.upper()}" in README


@pytest.mark.parametrize("name", sorted(NodeConfig.model_fields))
def test_every_key_of_a_node_is_documented(name: str) -> None:
    assert f"`{name}`" in README


def test_every_error_code_is_in_the_map_of_the_house() -> None:
    codes = {
        kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)
    }
    families = {"GW100", "GW200", "GW300", "GW301", "GW302"}
    assert {code for code in codes - families if code not in MAP} == set()


def test_every_package_is_in_the_map_of_the_house() -> None:
    packages = {path.name for path in (ROOT / "gateway").iterdir() if (path / "__init__.py").is_file()}
    assert {name for name in packages if not re.search(rf"`{name}/`", MAP)} == set()
