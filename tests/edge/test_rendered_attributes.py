"""What a frame is rendered with is its own, wherever in the instance it stands and however the pixels lie in their words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from PIL import ImageCms
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.edge.test_rendered import image_of, instance_of, png
from tests.running import Gateway, files_node
from tests.specimens import specimen

STORED = bytes(range(0, 256, 16))
ENTRIES = 2048
"""So many that the metadata have them as bulk data."""


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def voi_table(entries: Any) -> Dataset:
    table = item(LUTDescriptor=[ENTRIES, 0, 16], LUTData=numpy.asarray(entries, "<u2").tobytes())
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    return item(FrameVOILUTSequence=Sequence([item(VOILUTSequence=Sequence([table]))]))


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"\0" * 2000
"""One that is not the gateway's own."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("attributes")
    rising, falling = numpy.arange(ENTRIES) * 256, 65535 - numpy.arange(ENTRIES) * 256
    specimen(
        directory, "A1", "tables of its frames", NumberOfFrames=2, PixelData=STORED * 2,
        PerFrameFunctionalGroupsSequence=Sequence([voi_table(rising.clip(0, 65535)), voi_table(falling.clip(0, 65535))]),
    )  # fmt: skip
    specimen(
        directory, "A2", "a slide", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        PixelData=STORED * 3, OpticalPathSequence=Sequence([item(ICCProfile=PROFILE)]),
    )  # fmt: skip
    with Gateway([files_node("attributes", directory)]) as running:
        yield running


@pytest.mark.parametrize(("number", "wanted"), [(1, range(0, 256, 16)), (2, range(255, -1, -16))])
def test_a_frame_has_the_long_table_that_stands_in_its_own_functional_groups(
    gateway: Gateway, number: int, wanted: range
) -> None:
    pixels = png(gateway, f"{instance_of(gateway, 'A1')}/frames/{number}/rendered")
    assert numpy.abs(pixels.ravel().astype(int) - list(wanted)).max() <= 1


def test_each_frame_of_an_animation_has_the_long_table_of_its_own(gateway: Gateway) -> None:
    image = image_of(gateway.get(f"{instance_of(gateway, 'A1')}/rendered", headers={"accept": "image/gif"}))
    first = numpy.asarray(image.convert("L")).ravel()
    image.seek(1)
    second = numpy.asarray(image.convert("L")).ravel()
    assert first[0] < 5
    assert second[0] > 250


def test_the_colour_profile_of_a_slide_is_that_of_its_optical_path(gateway: Gateway) -> None:
    where = f"{instance_of(gateway, 'A2')}/rendered"
    answer = gateway.get(where, params={"iccprofile": "yes"}, headers={"accept": "image/png"})
    assert image_of(answer).info["icc_profile"] == PROFILE


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "multipart/related; type=image/png"])
def test_a_frame_that_is_not_there_is_said_before_the_frames_that_are(gateway: Gateway, accept: str) -> None:
    answer = gateway.get(f"{instance_of(gateway, 'A1')}/frames/1,3/rendered", headers={"accept": accept})
    assert (answer.status_code, answer.json()["parameter"]) == (400, "frames")
