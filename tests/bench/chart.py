"""The results as a picture: how far each case is from its bar, in SVG written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from tests.bench.measuring import Result

_ROW, _TOP, _NAMES, _PLOT, _FIGURES = 22, 46, 660, 360, 340
_LEAST, _MOST = 0.25, 8.0
_MET, _NOT_MET, _NO_BAR = "#2e7d32", "#c62828", "#9e9e9e"


def svg(results: Mapping[str, Result]) -> str:
    """One row a case; a bar that reaches the line in the middle is just met. The scale is logarithmic, cut at both ends."""
    width, height = _NAMES + _PLOT + _FIGURES, _TOP + _ROW * len(results) + 12
    rows = [_row(number, name, one) for number, (name, one) in enumerate(results.items())]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<text x="8" y="18" font-size="15">imaging-gateway: make bench</text>',
            *(_tick(at, height) for at in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
            *rows,
            "</svg>",
            "",
        ]
    )


def _x(headroom: float) -> float:
    held = min(max(headroom, _LEAST), _MOST)
    return _NAMES + _PLOT * math.log(held / _LEAST) / math.log(_MOST / _LEAST)


def _tick(at: float, height: int) -> str:
    colour, label = ("#000000", "the bar") if at == 1 else ("#dddddd", f"{at:g}x of it")
    return (
        f'<line x1="{_x(at):.1f}" x2="{_x(at):.1f}" y1="{_TOP - 6}" y2="{height - 8}" stroke="{colour}"/>'
        f'<text x="{_x(at):.1f}" y="{_TOP - 10}" text-anchor="middle" fill="#555555" font-size="10">{label}</text>'
    )


def _row(number: int, name: str, one: Result) -> str:
    y = _TOP + _ROW * number
    colour = _NO_BAR if one.met is None else _MET if one.met else _NOT_MET
    figures = f"{one.ours:g} / {one.theirs:g} {one.unit} = {one.ratio:g}" + (f"  (bar {one.bar})" if one.bar else "")
    drawn = [
        f'<text x="{_NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
        f'<text x="{_NAMES + _PLOT + 8}" y="{y + 15}" fill="{colour}">{escape(figures)}</text>',
    ]
    if one.headroom is not None:
        drawn.append(
            f'<rect x="{_NAMES}" y="{y + 4}" width="{max(2.0, _x(one.headroom) - _NAMES):.1f}" height="{_ROW - 8}" '
            f'fill="{colour}" fill-opacity="0.75"/>'
        )
    return "\n".join(drawn)
