"""Frames in another syntax: no caller waits for a turn at a node while it holds one there, and none costs a question more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from gateway.simulators.dicomweb import DicomwebSimulator
from tests.edge.test_rendered import parts_of
from tests.handmade import dicomweb_node
from tests.imaging.pixel_files import named, read, samples
from tests.running import Gateway, files_node

STORED = named("SC_rgb_rle_2frame.dcm")
OCTETS = 'multipart/related; type="application/octet-stream"; transfer-syntax='
UNCACHED = {"cache=False": {"cache": False}, "no Redis": {"redis_url": "redis://127.0.0.1:9/0", "cache_timeout": 0.2}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    shutil.copy(STORED, tmp_path / "node" / "one.dcm")
    return tmp_path / "node"


@contextmanager
def node_of(kind: str, directory: Path, most: int) -> Iterator[dict[str, Any]]:
    """A node that works on `most` operations at once: one that gives frames, or ('spooled') whole instances only."""
    limits = {"max_concurrent": most, "search_deadline": 5}
    if kind == "files":
        yield files_node("a", directory, **limits)
    elif kind == "spooled":
        yield files_node("a", directory, capabilities=["find", "retrieve"], **limits)
    else:
        with DicomwebSimulator(directory) as web:
            yield dicomweb_node("a", web.port, connection={"url": web.url}, **limits)


def asked(gateway: Gateway, syntax: str) -> httpx.Response:
    """Both frames, the second one first."""
    one = read(STORED)
    where = f"studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}/frames/2,1"
    return gateway.get(f"/dicom-web/{where}", headers={"accept": OCTETS + syntax})


@pytest.mark.parametrize("uncached", UNCACHED.values(), ids=UNCACHED.keys())
@pytest.mark.parametrize(("most", "callers"), [(1, 1), (1, 4), (4, 12)])
@pytest.mark.parametrize("kind", ["files", "dicomweb", "spooled"])
def test_as_many_as_a_node_serves_at_once_have_their_frames_in_another_syntax(
    directory: Path, kind: str, most: int, callers: int, uncached: dict[str, Any]
) -> None:
    with (
        node_of(kind, directory, most) as node,
        Gateway([node], **uncached) as gateway,
        ThreadPoolExecutor(callers) as pool,
    ):
        answers = list(pool.map(lambda _: asked(gateway, ExplicitVRLittleEndian), range(callers)))
    assert [answer.status_code for answer in answers] == [200] * callers
    wanted = [samples(STORED, 2).tobytes(), samples(STORED, 1).tobytes()]
    assert all([data for _, data in parts_of(answer)] == wanted for answer in answers)


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRLittleEndian, JPEG2000Lossless])
def test_frames_cost_a_node_the_same_questions_in_whatever_syntax(directory: Path, syntax: str) -> None:
    with (
        DicomwebSimulator(directory) as web,
        Gateway([dicomweb_node("a", web.port, connection={"url": web.url})], cache=False) as gateway,
    ):
        assert asked(gateway, "*").status_code == 200
        as_stored = web.operations.copy()
        web.operations.clear()
        assert asked(gateway, syntax).status_code == 200
        assert web.operations == as_stored
        assert as_stored["series_metadata"] == 1


def test_a_syntax_that_cannot_be_had_is_still_said_as_an_error(directory: Path) -> None:
    with Gateway([files_node("a", directory, max_concurrent=1)], cache=False) as gateway:
        for _ in range(2):
            answer = asked(gateway, "1.2.840.10008.1.2.4.91")
            assert (answer.status_code, answer.json()["code"]) == (406, "GW102")
