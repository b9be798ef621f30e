"""Lines, figures and rows of tables, as all reports have them. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pytest_kvcache.showable import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator


def wrapped(text: str, *, indent: str) -> list[str]:
    """``text`` in lines that fit, the second and later ones a little further in."""
    return textwrap.wrap(
        text, COLUMNS - 1, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def figure(value: float) -> str:
    """Four significant digits, without exponents."""
    magnitude = abs(value)
    if magnitude >= 1000:  # noqa: PLR2004  from here on digits behind the point say nothing
        return f"{value:,.0f}"
    for limit, digits in ((100, 1), (10, 2), (1, 3)):
        if magnitude >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def row(label: str, width: int, cells: str) -> Iterator[str]:
    """A row of a table; a label too long for its column has a line of its own above it."""
    if len(label) >= width:
        yield f"  {label}"
        label = ""
    yield f"  {label:<{width}}{cells}"
