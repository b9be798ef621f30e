"""Ratios to fio as a picture: SVG without a plotting library. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.storagefigures import RATIO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.figures import Figure

_LEFT, _WIDTH, _ROW, _TOP = 290, 420, 24, 44
_MET, _MISSED = "#2a7f62", "#c1440e"


def ratio_plot(figures: Sequence[Figure]) -> str:
    """Of every ratio the range of its rounds, the median (a dot) and the target (a bar)."""
    shown = [figure for figure in figures if figure.unit == RATIO]
    highest = max([1.5, *(max(figure.values) for figure in shown)]) * 1.05
    height = _TOP + _ROW * len(shown) + 12

    def x(value: float) -> float:
        return _LEFT + value / highest * _WIDTH

    size = f'width="{_LEFT + _WIDTH + 20}" height="{height}"'
    line = f'x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{_TOP - 8}" y2="{height - 8}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18">Ours / fio: dot the median, line the range, bar the target</text>',
        f'<line {line} stroke="#999" stroke-dasharray="3 3"/>',
        f'<text x="{x(1):.1f}" y="{_TOP - 12}" text-anchor="middle">1.0</text>',
    ]
    for number, figure in enumerate(shown):
        parts.append(_row(figure, _TOP + _ROW * number + _ROW / 2, x))
    return "\n".join([*parts, "</svg>", ""])


def _row(figure: Figure, y: float, x: Callable[[float], float]) -> str:
    colour = _MET if figure.met else _MISSED
    name = escape(f"{figure.name} ({'≥' if figure.at_least else '≤'} {figure.target:g})")
    low, high, target = x(min(figure.values)), x(max(figure.values)), x(figure.target)
    return (
        f'<text x="10" y="{y + 4:.1f}">{name}</text>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"'
        ' stroke-width="2"/>'
        f'<circle cx="{x(figure.median):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        f'<line x1="{target:.1f}" x2="{target:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}"'
        ' stroke="black"/>'
        f'<text x="{high + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{figure.median:.2f}</text>'
    )
