"""WADO-URI answers what WADO-RS answers, asked for as old viewers do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from tests.edge.test_rendered import LEVELS_APART, _uid, apart, image_of, place, png, shelf
from tests.imaging.pixel_files import named, picture, samples
from tests.running import Gateway, files_node

__all__ = ["shelf"]


@pytest.fixture(scope="module")
def gateway(shelf: Path) -> Iterator[Gateway]:
    with Gateway([files_node("shelf", shelf)]) as running:
        yield running


def wado(gateway: Gateway, name: str, *, root: str = "/dicom-web", **more: str) -> Any:
    path = named(name)
    uids = {"studyUID": _uid(path, 1), "seriesUID": _uid(path, 2), "objectUID": _uid(path, 3)}
    return gateway.get(f"{root}/wado", params={"requestType": "WADO", **uids, **more})


def shown(gateway: Gateway, name: str, **more: str) -> Any:
    return numpy.asarray(image_of(wado(gateway, name, contentType="image/png", **more)))


@pytest.mark.parametrize("root", ["/dicom-web", "/nodes/shelf/dicom-web"])
def test_an_image_comes_as_jpeg_unless_asked_for_otherwise(gateway: Gateway, root: str) -> None:
    assert wado(gateway, "CT_small.dcm", root=root).headers["content-type"] == "image/jpeg"
    assert (
        wado(gateway, "CT_small.dcm", root=root, contentType="image/jp2,image/png").headers["content-type"]
        == "image/png"
    )


def test_window_size_region_and_frame_are_those_of_the_newer_service(gateway: Gateway) -> None:
    where = f"{place(named('CT_small.dcm'))}/rendered"
    windowed = shown(gateway, "CT_small.dcm", windowCenter="40", windowWidth="400")
    assert apart(windowed, png(gateway, where, window="40,400")) == 0
    assert apart(shown(gateway, "CT_small.dcm", rows="50", columns="64"), png(gateway, where, viewport="64,50")) == 0
    assert shown(gateway, "CT_small.dcm", rows="64").shape == (64, 64)
    part = shown(gateway, "CT_small.dcm", region="0.25,0.5,0.5,1")
    assert apart(part, picture(named("CT_small.dcm"))[64:, 32:64]) <= LEVELS_APART
    frame = shown(gateway, "examples_ybr_color.dcm", frameNumber="7")
    assert apart(frame, picture(named("examples_ybr_color.dcm"), 7)) <= LEVELS_APART


def test_an_object_comes_as_dicom_as_stored_or_in_the_syntax_asked_for(gateway: Gateway, shelf: Path) -> None:
    stored = wado(gateway, "SC_rgb_rle.dcm", contentType="application/dicom")
    assert stored.content == (shelf / "SC_rgb_rle.dcm.dcm").read_bytes()
    assert stored.headers["content-type"] == f"application/dicom; transfer-syntax={RLELossless}"
    decoded = wado(gateway, "SC_rgb_rle.dcm", contentType="application/dicom", transferSyntax=ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(io.BytesIO(decoded.content))
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert numpy.array_equal(dataset.pixel_array, samples(named("SC_rgb_rle.dcm")))


@pytest.mark.parametrize(
    ("status", "name", "parameters"),
    [
        (400, "requestType", {"requestType": "DELETE"}),
        (400, "objectUID", {"objectUID": "x"}),
        (400, "seriesUID", {"seriesUID": ""}),
        (400, "windowCenter", {"windowCenter": "1"}),
        (400, "windowWidth", {"windowCenter": "1", "windowWidth": "0"}),
        (400, "windowCenter", {"windowCenter": "x", "windowWidth": "10"}),
        (400, "frameNumber", {"frameNumber": "2"}),
        (400, "rows", {"rows": "0"}),
        (400, "rows", {"rows": "5", "contentType": "application/dicom"}),
        (400, "region", {"region": "0,0,2,1"}),
        (400, "region", {"region": "0,0,1"}),
        (400, "frameNumber", {"frameNumber": "0"}),
        (400, "imageQuality", {"imageQuality": "101"}),
        (400, "transferSyntax", {"transferSyntax": "1.2.840.10008.1.2.1"}),
        (400, "transferSyntax", {"transferSyntax": "1.2.840.10008.1.2", "contentType": "application/dicom"}),
        (400, "charset", {"charset": "latin-1"}),
        (406, "contentType", {"contentType": "text/html"}),
        (406, "contentType", {"contentType": "application/pdf"}),
        (406, "anonymize", {"anonymize": "yes"}),
        (406, "presentationUID", {"presentationUID": "1.2.3"}),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    gateway: Gateway, status: int, name: str, parameters: dict[str, str]
) -> None:
    answer = wado(gateway, "CT_small.dcm", **parameters)
    assert (answer.status_code, answer.json().get("parameter")) == (status, name)


def test_a_frame_or_an_object_that_is_not_there_is_said_so(gateway: Gateway) -> None:
    assert wado(gateway, "CT_small.dcm", frameNumber="2").status_code == 400
    assert wado(gateway, "CT_small.dcm", objectUID="1.2.3").status_code == 404
