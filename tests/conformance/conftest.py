"""One federation like the demo's, over the small corpus, built once for all tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from national_nodes import Demo, node_tables
from small_hospital import Small, small

from gateway.simulators import corpus as corpora
from gateway.simulators.corpus import Corpus
from tests.running import Gateway

pytest.register_assert_rewrite(
    "bulk_rows",
    "dicomweb_rows",
    "dicomweb_search_rows",
    "fhir_mapping_rows",
    "fhir_rows",
    "fhir_search_rows",
    "record_rows",
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.build(tmp_path_factory.mktemp("corpus"), scale="small")


@pytest.fixture(scope="session")
def tables(corpus: Corpus) -> Iterator[list[dict[str, Any]]]:
    """The [[node]] tables of the federation, with their simulators running."""
    with contextlib.ExitStack() as stack:
        yield node_tables(corpus, stack)


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Three studies behind three protocols, served without a view."""
    with small(tmp_path_factory.mktemp("small")) as running:
        yield running


@pytest.fixture(scope="session")
def demo(corpus: Corpus, tables: list[dict[str, Any]]) -> Iterator[Demo]:
    with Gateway(tables) as gateway:
        yield Demo(gateway, corpus, tables)
