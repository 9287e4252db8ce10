"""Rendered images and thumbnails over HTTP: held against pydicom and pillow, by every parameter of PS3.18 8.3.5."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from gateway.wire.media import parse_media_type
from gateway.wire.multipart import MultipartParser, PartBegin, PartData
from tests.imaging.pixel_files import TWELVE_BITS, files, named, picture, read, samples
from tests.running import Gateway, files_node
from tests.specimens import specimen

LEVELS_APART = 1
"""A PNG may differ from the reference by this much in a sample: roundings."""
MEAN_APART = 6.0
"""A JPEG may differ from it by this much on average."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each file as a study of its own, with an identity where it has none; pixels and their attributes stay as they are."""
    directory = tmp_path_factory.mktemp("rendered")
    for path in files():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(path, 1), _uid(path, 2)
        dataset.SOPInstanceUID = _uid(path, 3)
        if "SOPClassUID" not in dataset:
            dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.PatientID = "R1"
        list(dataset.iterall())  # one is written in Implicit VR whatever it says: its values have to be looked at
        dataset.save_as(directory / f"{path.name}.dcm", enforce_file_format=True)
    specimen(directory / "more", "R2", "series of two", number=1, PixelData=bytes(range(16)))
    specimen(directory / "more", "R2", "series of two", number=2, PixelData=bytes(range(16, 32)))
    specimen(directory / "more", "R3", "burned in", BurnedInAnnotation="YES", PixelData=bytes(range(16)))
    report = specimen(directory / "more", "R4", "report", Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    _without_pixels(directory / "more", report)
    document = specimen(
        directory / "more", "R5", "document", Modality="DOC", SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"
    )
    document.MIMETypeOfEncapsulatedDocument, document.EncapsulatedDocument = (
        "application/pdf",
        PDF + b"\0" * (len(PDF) % 2),
    )
    document.EncapsulatedDocumentLength = len(PDF)
    _without_pixels(directory / "more", document)
    return directory


PDF = b"%PDF-1.4 " + b"a page " * 20_001


def _without_pixels(directory: Path, dataset: pydicom.Dataset) -> None:
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "SamplesPerPixel"):
        delattr(dataset, keyword)
    (next(p for p in directory.glob("*.dcm") if pydicom.dcmread(p).SOPInstanceUID == dataset.SOPInstanceUID)).unlink()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(directory / f"{dataset.Modality}.dcm", enforce_file_format=True)


def _uid(path: Path, kind: int) -> str:
    return generate_uid(entropy_srcs=[path.name, str(kind)])


def place(path: Path) -> str:
    return f"/dicom-web/studies/{_uid(path, 1)}/series/{_uid(path, 2)}/instances/{_uid(path, 3)}"


@pytest.fixture(scope="module")
def gateway(shelf: Path) -> Iterator[Gateway]:
    with Gateway([files_node("shelf", shelf)]) as running:
        yield running


def image_of(answer: Any) -> Image.Image:
    assert answer.status_code == 200, answer.text[:300]
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def parts_of(answer: Any) -> list[tuple[dict[str, str], bytes]]:
    parser = MultipartParser(parse_media_type(answer.headers["content-type"]).parameters["boundary"])
    found: list[tuple[dict[str, str], bytes]] = []
    for event in parser.feed(answer.content):
        if isinstance(event, PartBegin):
            found.append((dict(event.headers), b""))
        elif isinstance(event, PartData):
            found[-1] = (found[-1][0], found[-1][1] + event.data)
    return found


def png(gateway: Gateway, where: str, **parameters: str) -> numpy.ndarray[Any, Any]:
    return numpy.asarray(image_of(gateway.get(where, params=parameters, headers={"accept": "image/png"})))


def apart(ours: Any, wanted: Any) -> int:
    assert ours.shape == wanted.shape
    return int(numpy.abs(ours.astype(int) - wanted.astype(int)).max())


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_a_rendered_png_is_the_reference_rendering(gateway: Gateway, path: Path) -> None:
    if path.name in TWELVE_BITS:
        assert png(gateway, f"{place(path)}/rendered").shape == (1024, 256)
        return
    count = int(read(path).get("NumberOfFrames") or 1)
    ours = png(gateway, f"{place(path)}/frames/{count}/rendered")
    assert apart(ours, picture(path, count)) <= LEVELS_APART


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "SC_rgb_rle.dcm", "MR_small_jp2klossless.dcm", "examples_palette.dcm"]
)
def test_a_jpeg_is_near_the_reference_rendering(gateway: Gateway, name: str) -> None:
    answer = gateway.get(f"{place(named(name))}/rendered")
    assert answer.headers["content-type"] == "image/jpeg"
    ours, wanted = numpy.asarray(image_of(answer)).astype(int), picture(named(name)).astype(int)
    assert numpy.abs(ours - wanted).mean() <= MEAN_APART


WINDOWS = {
    "-100,400": lambda v: ((v + 100.5) / 399 + 0.5) * 255,
    "-100,400,linear-exact": lambda v: ((v + 100) / 400 + 0.5) * 255,
    "40.5,80,sigmoid": lambda v: 255 / (1 + numpy.exp(-4 * (v - 40.5) / 80)),
    "1000,1": lambda v: numpy.where(v > 999.5, 255, 0),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_that_of_the_standard(gateway: Gateway, window: str) -> None:
    path = named("CT_small.dcm")
    dataset = read(path)
    values = samples(path).astype(float) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    wanted = numpy.clip(WINDOWS[window](values), 0, 255)
    assert apart(png(gateway, f"{place(path)}/rendered", window=window), numpy.rint(wanted)) <= LEVELS_APART


def test_a_viewport_cuts_flips_and_scales(gateway: Gateway) -> None:
    where, whole = f"{place(named('CT_small.dcm'))}/rendered", picture(named("CT_small.dcm"))
    assert apart(png(gateway, where, viewport="32,64,0,0,32,64"), whole[:64, :32]) <= LEVELS_APART
    assert apart(png(gateway, where, viewport="32,64,10,20,-32,64"), whole[20:84, 10:42][:, ::-1]) <= LEVELS_APART
    assert apart(png(gateway, where, viewport="32,32,0,0,32,-32"), whole[:32, :32][::-1]) <= LEVELS_APART
    assert png(gateway, where, viewport="64,200").shape == (64, 64)
    assert png(gateway, where, viewport="300,256,,,64,128").shape == (256, 128)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", "1"), ("window", "a,b"), ("window", "1,0"), ("window", "1,0.5,linear"), ("window", "1,2,cubic"), ("window", "nan,1"),
        ("viewport", "1"), ("viewport", "0,5"), ("viewport", "10,10,-1,0,5,5"), ("viewport", "10,10,0,0,0,5"),
        ("viewport", "1,2,3,4,5,6,7"), ("viewport", "99999,9"), ("quality", "0"), ("quality", "101"), ("quality", "x"),
        ("iccprofile", "adobergb"),
    ],
)  # fmt: skip
def test_a_parameter_that_makes_no_sense_is_named(gateway: Gateway, name: str, value: str) -> None:
    answer = gateway.get(f"{place(named('CT_small.dcm'))}/rendered", params={name: value})
    assert (answer.status_code, answer.json()["parameter"]) == (400, name)


def test_a_lower_quality_costs_less(gateway: Gateway) -> None:
    where = f"{place(named('CT_small.dcm'))}/rendered"
    sizes = [len(gateway.get(where, params={"quality": str(quality)}).content) for quality in (10, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_an_annotation_is_burned_in_and_what_cannot_be_is_said(gateway: Gateway, shelf: Path) -> None:
    where = f"{place(named('CT_small.dcm'))}/rendered"
    plain = png(gateway, where)
    for annotation in ("patient", "technique", "patient,technique"):
        answer = gateway.get(where, params={"annotation": annotation}, headers={"accept": "image/png"})
        assert "warning" not in answer.headers
        assert (numpy.asarray(image_of(answer)) != plain).any()
    unknown = gateway.get(where, params={"annotation": "weather"}, headers={"accept": "image/png"})
    assert "annotation values are not supported: weather" in unknown.headers["warning"]
    assert (numpy.asarray(image_of(unknown)) == plain).all()


@pytest.mark.parametrize("value", ["Ż", "a\r\nX-Made-Up: 1", 'a", 299 other "b', "山田^太郎"])
def test_an_annotation_that_is_no_keyword_is_not_repeated(gateway: Gateway, value: str) -> None:
    where = place(named("CT_small.dcm"))
    for resource in ("rendered", "frames/1/rendered"):
        answer = gateway.get(f"{where}/{resource}", params={"annotation": f"patient,{value},weather"})
        assert answer.status_code == 200, answer.text[:300]
        told = "The following annotation values are not supported: (no keyword), weather"
        assert answer.headers["warning"].endswith(f'/dicom-web "{told}"')
        assert "x-made-up" not in answer.headers


def test_a_colour_profile_is_there_when_it_is_asked_for(gateway: Gateway) -> None:
    where = f"{place(named('SC_rgb_rle.dcm'))}/rendered"
    assert "icc_profile" not in image_of(gateway.get(where)).info
    for wanted in ("yes", "srgb"):
        assert image_of(gateway.get(where, params={"iccprofile": wanted})).info["icc_profile"]


def test_a_parameter_that_changes_nothing_of_an_image_is_said(gateway: Gateway) -> None:
    grey, colour = (f"{place(named(name))}/rendered" for name in ("CT_small.dcm", "SC_rgb_rle.dcm"))
    palette = f"{place(named('examples_palette.dcm'))}/rendered"
    for where in (colour, palette):
        assert "a window changes nothing" in gateway.get(where, params={"window": "40,400"}).headers["warning"]
    for where, accept in ((grey, "image/png"), (colour, "image/gif")):
        answer = gateway.get(where, params={"iccprofile": "yes"}, headers={"accept": accept})
        assert "no colour profile" in answer.headers["warning"]
    for where, parameters in (
        (grey, {"window": "40,400"}),
        (colour, {"iccprofile": "yes"}),
        (grey, {"iccprofile": "no"}),
    ):
        assert "warning" not in gateway.get(where, params=parameters).headers


def test_a_multi_frame_is_an_animation_as_gif_and_says_so_otherwise(gateway: Gateway) -> None:
    where = place(named("examples_ybr_color.dcm"))
    animation = gateway.get(f"{where}/rendered", headers={"accept": "image/gif"})
    image = image_of(animation)
    lasts = []
    for number in range(image.n_frames):
        image.seek(number)
        lasts.append(image.info["duration"])
    assert sum(lasts) == 30 * 30  # FrameTime is 33.333, in hundredths of a second; what does not change is shown longer
    assert "warning" not in animation.headers
    one = gateway.get(f"{where}/rendered")
    assert "frame 15 of 30 is shown" in one.headers["warning"]


def test_several_frames_are_several_parts(gateway: Gateway) -> None:
    where = place(named("examples_ybr_color.dcm"))
    answer = gateway.get(f"{where}/frames/3,1/rendered", headers={"accept": "image/png"})
    parts = parts_of(answer)
    assert [headers["content-type"] for headers, _ in parts] == ["image/png"] * 2
    assert [headers["content-location"].rpartition("/frames/")[2] for headers, _ in parts] == [
        "3/rendered",
        "1/rendered",
    ]
    for (_, data), number in zip(parts, (3, 1), strict=True):
        assert (
            apart(numpy.asarray(Image.open(io.BytesIO(data))), picture(named("examples_ybr_color.dcm"), number))
            <= LEVELS_APART
        )
    assert gateway.get(f"{where}/frames/31/rendered").status_code == 400


def study_of(gateway: Gateway, patient: str) -> str:
    (study,) = gateway.get("/dicom-web/studies", params={"PatientID": patient}).json()
    return f"/dicom-web/studies/{study['0020000D']['Value'][0]}"


def test_a_study_and_a_series_are_all_their_images(gateway: Gateway) -> None:
    study = study_of(gateway, "R2")
    (series,) = gateway.get(f"{study}/series").json()
    for where in (study, f"{study}/series/{series['0020000E']['Value'][0]}"):
        answer = gateway.get(f"{where}/rendered", headers={"accept": 'multipart/related; type="image/png"'})
        assert answer.headers["content-type"].startswith('multipart/related; type="image/png"')
        assert len(parts_of(answer)) == 2
        small = image_of(gateway.get(f"{where}/thumbnail"))
        assert small.size == (200, 200)


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("image/jpeg, application/dicom", 400),
        ('image/png, multipart/related; type="application/dicom"', 400),
        ("image/jp2", 406), ("video/mp4", 406), ("text/html", 406), ("application/pdf", 406),
        ("image/jp2, image/png;q=0.1", 200), ("image/*", 200), ("*/*", 200), ("video/mp4, */*;q=0.1", 200),
    ],
)  # fmt: skip
def test_accept_decides_or_is_refused(gateway: Gateway, accept: str, status: int) -> None:
    answer = gateway.get(f"{place(named('CT_small.dcm'))}/rendered", headers={"accept": accept})
    assert answer.status_code == status, answer.text[:200]


def test_the_accept_parameter_wins_over_the_header(gateway: Gateway) -> None:
    where = f"{place(named('CT_small.dcm'))}/rendered"
    answer = gateway.get(where, params={"accept": "image/png"}, headers={"accept": "text/html"})
    assert image_of(answer).format == "PNG"


def test_an_image_that_the_caller_has_is_not_sent_again(gateway: Gateway) -> None:
    where = f"{place(named('CT_small.dcm'))}/rendered"
    tag = gateway.get(where).headers["etag"]
    assert gateway.get(where, headers={"if-none-match": tag}).status_code == 304
    assert gateway.client.head(where).status_code == 200


def test_a_304_says_as_its_200_does_what_the_thumbnail_is_of(gateway: Gateway) -> None:
    """RFC 9110 15.4.5."""
    where = f"{place(named('CT_small.dcm')).partition('/series/')[0]}/thumbnail"
    whole = gateway.get(where)
    again = gateway.get(where, headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["content-location"] == whole.headers["content-location"]


def test_an_encapsulated_pdf_comes_as_it_is_and_a_report_is_refused(gateway: Gateway) -> None:
    document, report = instance_of(gateway, "R5"), instance_of(gateway, "R4")
    for accept in ("*/*", "application/pdf"):
        answer = gateway.get(f"{document}/rendered", headers={"accept": accept})
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "application/pdf", PDF)
    assert gateway.get(f"{document}/rendered", headers={"accept": "image/png"}).status_code == 406
    assert gateway.get(f"{report}/rendered").status_code == 406


def instance_of(gateway: Gateway, patient: str) -> str:
    study = study_of(gateway, patient)
    (one,) = gateway.get(f"{study}/instances").json()
    return f"{study}/series/{one['0020000E']['Value'][0]}/instances/{one['00080018']['Value'][0]}"


@pytest.mark.parametrize("patient", ["R3", "R4", "R5"])
def test_a_thumbnail_of_what_may_name_the_patient_or_is_no_image_shows_nothing_of_it(
    gateway: Gateway, patient: str
) -> None:
    where = instance_of(gateway, patient)
    for level in (where, re.sub("/instances/.*", "", where), re.sub("/series/.*", "", where)):
        answer = gateway.get(f"{level}/thumbnail", headers={"accept": "image/png"})
        pixels = numpy.asarray(image_of(answer))
        values, counts = numpy.unique(pixels, return_counts=True)
        assert values[counts.argmax()] == 64  # the neutral grey


def test_a_thumbnail_is_small_and_takes_no_annotation(gateway: Gateway) -> None:
    where = place(named("CT_small.dcm"))
    plain = png(gateway, f"{where}/thumbnail", viewport="50,60")
    assert plain.shape == (50, 50)
    answer = gateway.get(f"{where}/thumbnail?viewport=50,60&annotation=patient", headers={"accept": "image/png"})
    assert (numpy.asarray(image_of(answer)) == plain).all()
    assert "not supported" in answer.headers["warning"]
    assert gateway.get(f"{where}/thumbnail?viewport=50,60,1,1,5,5").status_code == 400
    assert image_of(gateway.get(f"{where}/frames/1/thumbnail")).size == (200, 200)


def test_more_pixels_than_the_ceiling_are_refused(shelf: Path) -> None:
    with Gateway([files_node("shelf", shelf)], imaging_pixels=128 * 127) as small:
        answer = small.get(f"{place(named('CT_small.dcm'))}/rendered")
        assert (answer.status_code, answer.json()["code"]) == (413, "GW108")
        assert small.get(f"{place(named('MR_small.dcm'))}/rendered").status_code == 200
