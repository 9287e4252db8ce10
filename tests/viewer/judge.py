"""Judges what the browser saw at one visit against the files that the hospitals hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_rescale

from gateway.simulators.corpus import Corpus, HeldStudy
from tests.viewer.visits import Visit

_IMAGE = re.compile(r"/instances/([0-9.]+)/frames/([0-9]+)")
_STUDY = re.compile(r"/studies/([0-9.]+)")
_LEAST_GREYS = 16
_LONGEST = 250
_LEAST_SAMPLES, _GREYS_OFF, _SHARE_ALIKE = 500, 4, 0.99


@dataclass(frozen=True)
class Fault:
    visit: str
    text: str


def judge(visit: Visit, seen: dict[str, Any], archive: Corpus) -> list[Fault]:
    """Everything that is wrong with a visit; nothing when all is well."""
    return [Fault(visit.name, text) for text in _faults(visit, seen, archive)]


def _faults(visit: Visit, seen: dict[str, Any], archive: Corpus) -> Iterator[str]:
    held = visit.held(archive)
    yield from _refusals(visit, seen, held)
    yield from (f"'{text}' is missing" for text in visit.texts if text not in seen["text"])
    yield from (f"'{text}' is shown" for text in visit.absent if text in seen["text"])
    if not seen["isolated"]:
        yield "the page is not cross-origin isolated"
    if visit.absent and held:
        yield from (f"asks for the study {uid}" for uid in sorted(_asked_for(seen) - {held.study_uid}))
    if visit.shows == "nothing" and seen["viewports"]:
        yield "an image is shown"
    if visit.shows == "images":
        assert held
        if not seen["viewports"]:
            yield "no image is shown"
        for viewport in seen["viewports"]:
            yield from _pixels(viewport, held)


def _asked_for(seen: dict[str, Any]) -> set[str]:
    """The studies that anything was asked of, below their own path."""
    return {found[1] for one in seen["requests"] if (found := _STUDY.search(one["path"]))}


def _refusals(visit: Visit, seen: dict[str, Any], held: HeldStudy | None) -> Iterator[str]:
    """Requests that failed and should not have, and the other way round."""
    wanted = [(status, start.format(study=held.study_uid if held else "")) for status, start in visit.refused]
    failed = [(one["status"], one["path"]) for one in seen["requests"] if one["status"] >= 400]
    for status, path in failed:
        if not any(status == expected and path.startswith(start) for expected, start in wanted):
            yield f"{status} for {path}"
    for expected, start in wanted:
        if not any(status == expected and path.startswith(start) for status, path in failed):
            yield f"no {expected} for {start}"
    if not visit.refused:  # OHIF writes every refusal to the console, each in lines of its own
        yield from dict.fromkeys(fault.split("\n")[0][:_LONGEST] for fault in seen["faults"])


def _pixels(viewport: dict[str, Any], held: HeldStudy) -> Iterator[str]:
    """The samples that the viewer decoded add up to those of the file; a canvas of few greys shows nothing."""
    named = _IMAGE.search(viewport["id"])
    paths = {instance.sop_instance_uid: instance.path for instance in held.instances}
    if not named or named[1] not in paths:
        yield f"an image of another study is shown: {viewport['id']}"
        return
    dataset = dcmread(paths[named[1]])
    if (viewport["rows"], viewport["columns"]) != (dataset.Rows, dataset.Columns):
        yield f"{viewport['columns']} x {viewport['rows']} instead of {dataset.Columns} x {dataset.Rows}"
    yield from _drawing(viewport, dataset, int(named[2]))
    expected = None if viewport["colour"] else _sum(dataset, int(named[2]), scaled=viewport["scaled"])
    if expected is not None and abs(viewport["sum"] - expected) > 0.5:
        yield f"the samples differ from the file's: {viewport['id']}"
    if viewport["greys"] < _LEAST_GREYS:
        yield f"the canvas has {viewport['greys']} greys"


def _drawing(viewport: dict[str, Any], dataset: Dataset, frame: int) -> Iterator[str]:
    """The canvas shows what a rendering of the file by pydicom has at the same pixels, give or take the scaling between them."""
    reference = _rendered(dataset, frame, viewport["window"])
    if reference is None:
        return
    near = [_nearness(reference, *sample) for sample in viewport["drawn"]]
    if len(near) < _LEAST_SAMPLES:
        yield f"the canvas has {len(near)} of the image's pixels"
    elif sum(distance <= _GREYS_OFF for distance in near) < _SHARE_ALIKE * len(near):
        far = sum(distance > _GREYS_OFF for distance in near)
        yield f"the canvas differs from the reference rendering at {far} of {len(near)} pixels: {viewport['id']}"


def _rendered(dataset: Dataset, frame: int, window: dict[str, float] | None) -> Any:
    """Greys from 0 to 255 as PS3.3 C.11.2 has them; None in colour, or where there is no decoder for the transfer syntax."""
    try:
        pixels = dataset.pixel_array
    except RuntimeError:
        return None
    if dataset.SamplesPerPixel > 1:
        return None
    pixels = pixels[frame - 1] if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels
    values = apply_rescale(pixels, dataset).astype(float)
    low, high = _window(dataset, window) or (values.min(), values.max())
    greys = ((values - low) / max(high - low, 1e-6)).clip(0, 1) * 255
    return 255 - greys if dataset.PhotometricInterpretation == "MONOCHROME1" else greys


def _window(dataset: Dataset, shown: dict[str, float] | None) -> tuple[float, float] | None:
    """The first window of the file; where it has none, the one that the viewer chose."""
    if dataset.get("WindowWidth") is None:
        return (shown["lower"], shown["upper"]) if shown else None
    centre, width = (
        float(each[0] if isinstance(each, MultiValue) else each) for each in (dataset.WindowCenter, dataset.WindowWidth)
    )
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _nearness(reference: Any, column: int, row: int, *colours: int) -> float:
    """How many greys a sample is outside of those of the pixel and its neighbours: the canvas interpolates between them."""
    around = reference[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
    return float(max(around.min() - colours[0], colours[0] - around.max(), 0))


def _sum(dataset: Dataset, frame: int, *, scaled: bool) -> float | None:
    """The sum of a frame's samples; None where this environment has no decoder for its transfer syntax."""
    try:
        pixels = dataset.pixel_array
    except RuntimeError:
        return None
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[frame - 1]
    return float((apply_rescale(pixels, dataset) if scaled else pixels).sum(dtype=float))
