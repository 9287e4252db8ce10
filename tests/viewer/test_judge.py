"""The judge of the pictures itself: it passes what the file holds, and nothing that is shifted, inverted or of another window."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

from tests.viewer.judge import _drawing, _rendered

WINDOW = {"lower": 600.0, "upper": 1600.0}


@pytest.fixture
def file() -> Dataset:
    return dcmread(str(get_testdata_file("MR_small.dcm")))


def canvas(
    file: Dataset, *, shift: int = 0, invert: bool = False, window: dict[str, float] | None = None
) -> dict[str, Any]:
    """What a viewer would have drawn."""
    greys = _rendered(file, 1, window or WINDOW)
    samples = []
    for row in range(4, 60, 2):
        for column in range(4, 60, 2):
            grey = round(float(greys[row, column + shift]))
            samples.append([column, row, *[255 - grey if invert else grey] * 3])
    return {"drawn": samples, "window": WINDOW, "id": "one"}


@pytest.fixture
def windowless(file: Dataset) -> Dataset:
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in file:
            delattr(file, keyword)
    return file


def test_what_the_file_holds_passes(windowless: Dataset) -> None:
    assert list(_drawing(canvas(windowless), windowless, 1)) == []


@pytest.mark.parametrize(
    "change", [{"shift": 4}, {"invert": True}, {"window": {"lower": 0.0, "upper": 4000.0}}], ids=str
)
def test_what_the_file_does_not_hold_is_named(windowless: Dataset, change: dict[str, Any]) -> None:
    [fault] = _drawing(canvas(windowless, **change), windowless, 1)
    assert "differs from the reference rendering" in fault


def test_a_canvas_without_the_image_is_named(windowless: Dataset) -> None:
    [fault] = _drawing({"drawn": [], "window": WINDOW, "id": "one"}, windowless, 1)
    assert "0 of the image's pixels" in fault
