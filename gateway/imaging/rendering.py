"""Frames made into a PNG, JPEG or GIF: tones, source region and viewport, annotations, colour profile (PS3.18 8.3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont

from gateway.imaging.frame import CannotDecode, Frame
from gateway.imaging.options import GIF, PNG, OutsideImage, Rendering, Viewport, can_write
from gateway.imaging.tones import shown

_PROFILE_PNG_JPEG = "icc_profile"


def render(frames: Sequence[Frame], asked: Rendering) -> bytes:
    """The frames as one file; more than one only as GIF. Raises CannotDecode, OutsideImage."""
    images = [_finished(frame, asked) for frame in frames]
    buffer = BytesIO()
    first, *rest = images
    if asked.media_type == GIF:
        more: dict[str, Any] = (
            {"save_all": True, "append_images": rest, "duration": asked.milliseconds, "loop": 0} if rest else {}
        )
        first.save(buffer, "GIF", **more)
        return buffer.getvalue()
    profile = {_PROFILE_PNG_JPEG: first.info[_PROFILE_PNG_JPEG]} if first.info.get(_PROFILE_PNG_JPEG) else {}
    if asked.media_type == PNG:
        first.save(buffer, "PNG", compress_level=1, **profile)
    else:
        first.save(buffer, "JPEG", quality=asked.quality, subsampling=0 if asked.quality >= 90 else 2, **profile)
    return buffer.getvalue()


def _finished(frame: Frame, asked: Rendering) -> Image.Image:
    image = _in_viewport(Image.fromarray(shown(frame, asked.window)), asked.viewport)
    if image.mode == "RGB":
        image = _with_profile(image, frame, asked.icc_profile)
    if asked.lines:
        _annotate(image, asked.lines)
    return image


def _in_viewport(image: Image.Image, viewport: Viewport) -> Image.Image:
    """The region, flipped, in the largest size that fits the viewport and keeps the aspect ratio (PS3.18 8.3.5.1.3)."""
    columns, rows = image.size
    box = _region(viewport, columns, rows)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min((viewport.columns or math.inf) / width, (viewport.rows or math.inf) / height)
    scale = 1.0 if scale == math.inf else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    is_cut = tuple(map(int, box)) != (0, 0, columns, rows) or any(side != int(side) for side in box)
    if is_cut or size != image.size:
        is_whole = scale == 1.0 and all(side == int(side) for side in box)
        sampling = Image.Resampling.NEAREST if is_whole else _sampling(scale)
        image = image.resize(size, sampling, box=box)
    for flips, way in zip(
        viewport.flips, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True
    ):
        image = image.transpose(way) if flips else image
    return image


def _sampling(scale: float) -> Image.Resampling:
    return Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR


def _region(viewport: Viewport, columns: int, rows: int) -> tuple[float, float, float, float]:
    x, y, width, height = viewport.x, viewport.y, viewport.width, viewport.height
    if viewport.relative:
        x, y = x * columns, y * rows
        width = None if width is None else width * columns
        height = None if height is None else height * rows
    right, bottom = x + (columns - x if width is None else width), y + (rows - y if height is None else height)
    box = (max(0.0, x), max(0.0, y), min(float(columns), right), min(float(rows), bottom))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise OutsideImage
    return box


def _with_profile(image: Image.Image, frame: Frame, wanted: str) -> Image.Image:
    """'no' and nothing leave it out; 'yes' adds the instance's own, sRGB where it has none; 'srgb' makes it sRGB."""
    if wanted not in ("yes", "srgb"):
        return image
    own = frame.dataset.get("ICCProfile")
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    if wanted == "srgb" and own:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(bytes(own)))
            ImageCms.profileToProfile(image, source, standard, inPlace=True)
        except ImageCms.PyCMSError:
            raise CannotDecode("ICC profile") from None
    image.info[_PROFILE_PNG_JPEG] = bytes(own) if wanted == "yes" and own else standard.tobytes()
    return image


def _annotate(image: Image.Image, lines: Sequence[str]) -> None:
    size = max(10, min(image.size) // 32)
    font, drawing = ImageFont.load_default(size), ImageDraw.Draw(image)
    fill, edge = ((255, 255, 255), (0, 0, 0)) if image.mode == "RGB" else (255, 0)
    for number, line in enumerate(lines):
        place = size // 2, size // 2 + number * (size + size // 4)
        drawing.text(place, line, fill=fill, font=font, stroke_width=max(1, size // 12), stroke_fill=edge)


def neutral(columns: int, rows: int, word: str, media_type: str) -> bytes:
    """A picture of nothing, with a word such as the modality: for a thumbnail of what may not or cannot be shown."""
    grey: NDArray[numpy.uint8] = numpy.full((rows, columns), 64, numpy.uint8)
    image = Image.fromarray(grey)
    if word and can_write(word):
        font = ImageFont.load_default(max(8, rows // 4))
        ImageDraw.Draw(image).text((columns / 2, rows / 2), word, fill=224, font=font, anchor="mm")
    buffer = BytesIO()
    image.save(buffer, media_type.partition("/")[2].upper())
    return buffer.getvalue()
