"""The edge writes ImagingStudy without pydantic, and writes what the published models would (how much faster: `make bench`)."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

from tests.bench import rendering


@pytest.mark.parametrize("version", ["R4", "R5"])
def test_a_study_of_600_instances_is_the_same_json_both_ways(version: str) -> None:
    held = rendering.tree()
    assert orjson.loads(rendering.plain(version, held)) == orjson.loads(rendering.modelled(version, held))


def test_the_edge_s_renderer_brings_no_model_of_fhir_resources_with_it() -> None:
    code = (
        "import sys, gateway.edge.fhir.interactions; print([name for name in sys.modules if name.startswith('fhir.')])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
