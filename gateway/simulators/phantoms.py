"""Pictures for generated instances: plausible anatomy drawn with numpy, the same in every build."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

MAXIMUM_12_BIT = 4095


def mammogram(view: str, laterality: str, shape: tuple[int, int], seed: int) -> Pixels:
    """One breast, bright on dark, 12 bits: `view` is CC or MLO; in a right breast the chest wall is on the right."""
    rng = np.random.default_rng(seed)
    y, x = _grid(shape)
    breast = _breast_depth(y, x)
    picture = 900 * np.sqrt(breast) + 1300 * breast * _texture(shape, rng)
    picture += _lesion(y, x, rng) * (breast > 0.15)
    if view == "MLO":
        picture = np.maximum(picture, 2600 * _soft(0.55 - x - 0.75 * y))
    picture += rng.normal(0, 12, shape)
    return _twelve_bits(picture if laterality == "L" else picture[:, ::-1])


def for_processing(presentation: Pixels) -> Pixels:
    """The detector's own view of a mammogram: much signal where there is little tissue."""
    attenuation = np.exp(-presentation.astype(np.float64) / 1800)
    return _twelve_bits(200 + 3600 * attenuation)


def tomosynthesis(view: str, laterality: str, shape: tuple[int, int, int], seed: int) -> Pixels:
    """Slices through one breast, frame first; the lesion is in focus in the middle one."""
    frames, rows, columns = shape
    plain = mammogram(view, laterality, (rows, columns), seed).astype(np.float64)
    rng = np.random.default_rng(seed + 1)
    y, x = _grid((rows, columns))
    mirrored = x if laterality == "L" else 1 - x
    spot = np.exp(-((y - 0.45) ** 2 + (mirrored - 0.35) ** 2) / 0.004)
    depth = np.linspace(-1, 1, frames)
    return np.stack(
        [
            _twelve_bits(0.7 * plain + 1500 * np.exp(-(z**2) / 0.05) * spot + rng.normal(0, 20, plain.shape))
            for z in depth
        ]
    )


def abdomen(z: float, shape: tuple[int, int], seed: int, *, prone: bool = False) -> Pixels:
    """One axial CT slice as HU + 1024, `z` from 0 (pelvis) to 1 (diaphragm): gas-filled colon with one polyp."""
    rng = np.random.default_rng(seed)
    y, x = _grid(shape)
    hu = np.full(shape, -1000.0)
    hu[_ellipse(y, x, 0.5, 0.5, 0.34, 0.44)] = -100
    hu[_ellipse(y, x, 0.5, 0.5, 0.29, 0.39)] = 45
    hu[_ellipse(y, x, 0.70, 0.5, 0.06, 0.07)] = 420
    for centre_y, centre_x, radius in _colon(z):
        hu[_ellipse(y, x, centre_y, centre_x, radius + 0.012, radius + 0.012)] = 60
        hu[_ellipse(y, x, centre_y, centre_x, radius, radius)] = -950
    if abs(z - 0.4) < 0.08:
        hu[_ellipse(y, x, 0.46, 0.235, 0.025, 0.02)] = 55
    hu += rng.normal(0, 12, shape)
    return _twelve_bits((hu[::-1, ::-1] if prone else hu) + 1024)


def pelvis(plane: str, z: float, shape: tuple[int, int], seed: int, *, b_value: int | None = None) -> Pixels:
    """One MR slice of a female pelvis with a cervical lesion: T2-weighted, or diffusion-weighted at `b_value` in s/mm2.

    `plane` is SAG or AX; `z` from 0 to 1 through the stack.
    """
    rng = np.random.default_rng(seed)
    y, x = _grid(shape)
    signal = np.full(shape, 10.0)
    for inside, t2, adc in _pelvic_organs(plane, z, y, x):
        signal[inside] = t2 if b_value is None else t2 * np.exp(-b_value * adc)
    return _twelve_bits(signal * (1 + 0.08 * _texture(shape, rng)) + np.abs(rng.normal(0, 9, shape)))


def _pelvic_organs(plane: str, z: float, y: Floats, x: Floats) -> list[tuple[Mask, float, float]]:
    """Where, T2 signal, apparent diffusion coefficient in mm2/s; later ones lie over earlier ones."""
    near = max(0.0, 1 - abs(z - 0.5) * 3)
    bladder_x = 0.36 if plane == "SAG" else 0.5
    return [
        (_ellipse(y, x, 0.5, 0.5, 0.42, 0.46), 900, 0.0004),
        (_ellipse(y, x, 0.5, 0.5, 0.36, 0.40), 350, 0.0012),
        (_ellipse(y, x, 0.38, bladder_x, 0.12 * near, 0.15 * near), 1900, 0.0030),
        (_ellipse(y, x, 0.52, 0.52, 0.10 * near, 0.13 * near), 700, 0.0014),
        (_ellipse(y, x, 0.60, 0.56, 0.05 * near, 0.06 * near), 1050, 0.0007),
        (_ellipse(y, x, 0.68, 0.66, 0.06, 0.05), 200, 0.0016),
    ]


def lesion_mask(z: float, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Where the contours and the segmentation of the split study say that the tumour is; 0 or 1."""
    y, x = _grid(shape)
    radius = 0.09 * max(0.0, 1 - abs(z - 0.5) * 2.5)
    return _ellipse(y, x, 0.52, 0.5, radius, radius * 1.2).astype(np.uint8)


def _colon(z: float) -> list[tuple[float, float, float]]:
    """(y, x, radius) of the ascending, transverse and descending colon at one height."""
    sway = 0.02 * np.sin(12 * z)
    parts = [(0.5 + sway, 0.24, 0.055), (0.5 - sway, 0.76, 0.05)]
    if z > 0.6:
        parts += [(0.33, x, 0.045) for x in (0.36, 0.5, 0.64)]
    if z < 0.25:
        parts.append((0.6, 0.52, 0.05))
    return parts


def _breast_depth(y: Floats, x: Floats) -> Floats:
    return np.clip(1 - (x / 0.78) ** 2 - ((y - 0.5) / 0.44) ** 2, 0, 1)


def _lesion(y: Floats, x: Floats, rng: Rng) -> Floats:
    """A spiculated mass and a cluster of microcalcifications."""
    angle, distance = np.arctan2(y - 0.45, x - 0.35), np.hypot(y - 0.45, x - 0.35)
    picture: Floats = 900 * np.exp(-((distance / (0.045 + 0.012 * np.cos(9 * angle))) ** 2))
    for _ in range(9):
        spot_y, spot_x = rng.normal(0.62, 0.03), rng.normal(0.3, 0.03)
        picture = picture + 1400 * np.exp(-((y - spot_y) ** 2 + (x - spot_x) ** 2) / 0.00004)
    return picture


def _texture(shape: tuple[int, int], rng: Rng) -> Floats:
    """Smooth noise of several scales, about 0 to 1."""
    total = np.zeros(shape)
    for cells, weight in ((4, 0.5), (10, 0.3), (24, 0.2)):
        total += weight * _enlarged(rng.random((cells, cells)), shape)
    return total


def _enlarged(coarse: Floats, shape: tuple[int, int]) -> Floats:
    """Bilinear enlargement."""
    rows = np.linspace(0, coarse.shape[0] - 1, shape[0])
    columns = np.linspace(0, coarse.shape[1] - 1, shape[1])
    across = np.stack([np.interp(columns, np.arange(coarse.shape[1]), row) for row in coarse])
    return np.stack([np.interp(rows, np.arange(coarse.shape[0]), column) for column in across.T], axis=1)


def _grid(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Row and column positions, 0 to 1."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    return y / shape[0], x / shape[1]


def _ellipse(y: Floats, x: Floats, centre_y: float, centre_x: float, radius_y: float, radius_x: float) -> Mask:
    if radius_y <= 0 or radius_x <= 0:
        return np.zeros(y.shape, dtype=bool)
    inside: Mask = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
    return inside


def _soft(distance: Floats) -> Floats:
    return np.clip(distance * 8, 0, 1)


def _twelve_bits(picture: Floats) -> Pixels:
    stored: Pixels = np.clip(picture, 0, MAXIMUM_12_BIT).astype(np.uint16)
    return stored
