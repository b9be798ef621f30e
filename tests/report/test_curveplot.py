from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.plan.tracesizes import PlotPoint
from pytest_kvcache.report.curveplot import COLUMNS, plot

RATIOS = st.lists(st.floats(0, 1), min_size=1, max_size=COLUMNS).map(sorted)


def points(ratios: list[float], optimum: float | None) -> list[PlotPoint]:
    return [
        PlotPoint(
            capacity_blocks=number + 1,
            hit_ratio=ratio,
            optimal_hit_ratio=None if optimum is None else max(ratio, optimum),
        )
        for number, ratio in enumerate(ratios)
    ]


@given(ratios=RATIOS, optimum=st.one_of(st.none(), st.floats(0, 1)), plain=st.booleans())
def test_every_line_fits_a_terminal_and_plain_ones_are_ascii(
    *, ratios: list[float], optimum: float | None, plain: bool
) -> None:
    lines = [*plot(points(ratios, optimum), "2.5 TiB", plain=plain, coloured=False)]
    assert all(len(line) < 80 for line in lines)
    assert not plain or "".join(lines).isascii()


@given(RATIOS, st.one_of(st.none(), st.floats(0, 1)))
def test_colours_add_nothing_but_colours(ratios: list[float], optimum: float | None) -> None:
    found = points(ratios, optimum)
    bare = [*plot(found, "9 B", plain=False, coloured=False)]
    coloured = [*plot(found, "9 B", plain=False, coloured=True)]
    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured] == bare
    assert "\x1b" not in "".join(bare)


def test_the_bars_are_as_high_as_the_ratios_and_the_marks_lie_above_them() -> None:
    lines = [*plot(points([0.1, 0.5, 1.0, 1.0], 0.75), "4 B", plain=True, coloured=False)]
    cells = [line[12:].ljust(COLUMNS) for line in lines[:10]]
    columns = ["".join(row[at] for row in cells) for at in (0, 16, 32)]
    assert columns == ["  o      #", "  o  #####", "##########"]
    assert lines[0].split()[0] == "1.0000"
    assert lines[-1].split() == ["#", "LRU", "o", "at", "most,", "whoever", "evicts"]


def test_a_curve_without_an_optimum_does_not_speak_of_it() -> None:
    assert "at most" not in "".join(plot(points([0.5], None), "1 B", plain=True, coloured=False))


def test_nothing_is_drawn_where_nothing_hits() -> None:
    assert not [*plot([], "0 B", plain=True, coloured=False)]
    assert not [*plot(points([0.0], 0.0), "1 B", plain=True, coloured=False)]
