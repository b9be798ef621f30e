"""A hit curve on a terminal: hit ratio upwards, capacity to the right. Pure.

Bars are what LRU hits, marks above them what no cache of that size can exceed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.tracesizes import PlotPoint

COLUMNS = 64
_ROWS = 10
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFT = 10  # columns before the axis
_BAR, _MARK, _RESET = "\x1b[34m", "\x1b[33m", "\x1b[0m"


def plot(points: Sequence[PlotPoint], most: str, *, plain: bool, coloured: bool) -> Iterator[str]:
    """Lines of at most 79 columns; ``most`` names the last capacity, for people.

    ``plain``: no signs beyond ASCII, and whole rows only. No points: no lines.
    """
    if not points:
        return
    top = max(point.optimal_hit_ratio or point.hit_ratio for point in points)
    if not top:
        return
    for row in reversed(range(_ROWS)):
        label = f"{top * (row + 1) / _ROWS:.4f}" if row % 3 == 0 or row == _ROWS - 1 else ""
        cells = "".join(_cell(_across(points, column), row, top, plain, coloured)
                        for column in range(COLUMNS))  # fmt: skip
        yield f"  {label:>{_LEFT - 2}} |{cells}".rstrip()
    yield " " * (_LEFT + 1) + "+" + "-" * COLUMNS
    yield " " * (_LEFT + 2) + f"0{most:>{COLUMNS - 1}}"
    bar, mark = ("#", "o") if plain else ("█", "·")
    if coloured:
        bar, mark = f"{_BAR}{bar}{_RESET}", f"{_MARK}{mark}{_RESET}"
    has_optimum = any(point.optimal_hit_ratio is not None for point in points)
    yield " " * (_LEFT + 2) + f"{bar} LRU" + (f"   {mark} at most, whoever evicts" * has_optimum)


def _across(points: Sequence[PlotPoint], column: int) -> PlotPoint:
    """Fewer capacities than columns are drawn broader."""
    return points[min(len(points) - 1, column * len(points) // COLUMNS)]


def _cell(point: PlotPoint, row: int, top: float, plain: bool, coloured: bool) -> str:  # noqa: FBT001
    """One sign: the bar as far as it reaches, a mark where the optimum lies above it."""
    eighths = round(point.hit_ratio / top * _ROWS * 8) - 8 * row
    best = point.optimal_hit_ratio
    if best is not None and eighths <= 0 and row == min(_ROWS - 1, int(best / top * _ROWS)):
        mark = "o" if plain else "·"
        return f"{_MARK}{mark}{_RESET}" if coloured else mark
    sign = _EIGHTHS[max(0, min(8, eighths))]
    if plain:
        sign = "#" if eighths >= 4 else " "  # noqa: PLR2004  half a row
    return f"{_BAR}{sign}{_RESET}" if coloured and sign != " " else sign
