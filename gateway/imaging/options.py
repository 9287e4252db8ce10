"""How a frame is to be rendered: the parameters of PS3.18 8.3.5 as one value that travels to the processes that render."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PNG, JPEG, GIF = "image/png", "image/jpeg", "image/gif"
QUALITY = 90
LINEAR, LINEAR_EXACT, SIGMOID = "linear", "linear-exact", "sigmoid"


class OutsideImage(Exception):
    """The region asked for has nothing of the image."""


@dataclass(frozen=True, slots=True)
class Viewport:
    """The most columns and rows that come out, 0 for as many as there are; and the region of the source that is shown.

    A region without width or height goes to the edge. `flips` are horizontally and vertically. With `relative` the region is
    in parts of the image from 0 to 1, as WADO-URI has it (PS3.18 9.5.1.2.4), else in pixels.
    """

    columns: int = 0
    rows: int = 0
    x: float = 0.0
    y: float = 0.0
    width: float | None = None
    height: float | None = None
    flips: tuple[bool, bool] = (False, False)
    relative: bool = False


@dataclass(frozen=True, slots=True)
class Rendering:
    """`window` is (center, width, function); None takes the data set's own. `icc_profile` is '', no, yes or srgb.
    `milliseconds` is how long each of several frames is shown; `lines` are written into the image."""

    media_type: str = JPEG
    window: tuple[float, float, str] | None = None
    viewport: Viewport = field(default_factory=Viewport)
    quality: int = QUALITY
    icc_profile: str = ""
    lines: tuple[str, ...] = ()
    milliseconds: int = 100

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Rendering:
        viewport = {**told["viewport"], "flips": tuple(told["viewport"]["flips"])}
        window = tuple(told["window"]) if told["window"] else None
        return cls(**{**told, "viewport": Viewport(**viewport), "window": window, "lines": tuple(told["lines"])})


def can_write(line: str) -> bool:
    """Whether all its letters are in the font that is at hand."""
    return all(" " <= letter <= "~" or "\u00a1" <= letter <= "\u00ff" for letter in line)
