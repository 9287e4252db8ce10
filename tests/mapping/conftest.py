"""A mapping file from its text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.mapping.load import load
from gateway.mapping.schema import Mapping


@pytest.fixture
def mapping(tmp_path: Path) -> Callable[[str], Mapping]:
    def make(text: str) -> Mapping:
        file = tmp_path / "format.toml"
        file.write_text(text, encoding="utf-8")
        return load(file)

    return make
