"""A measured figure against its target, and the terminal's table of them. Pure but `where`."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIB = 1 << 20
HEADER = f"{'':<36}{'median':>8} {'':<6}{'range':>15}{'target':>7} "


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity; ``values`` one per round, ``details`` what they come from."""

    name: str
    unit: str
    target: float
    at_least: bool
    values: tuple[float, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.name} has no value; a figure has one per round")

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        return self.median >= self.target if self.at_least else self.median <= self.target

    def line(self) -> str:
        """The figure as it is printed, in 80 columns at most."""
        spread = f"{short(min(self.values))} … {short(max(self.values))}"
        target = f"{'≥' if self.at_least else '≤'}{self.target:g}"
        verdict = "" if self.met else "miss"
        return (
            f"{self.name:<36}{short(self.median):>8} {self.unit:<6}{spread:>15}{target:>7} "
            f"{verdict}"
        ).rstrip()

    def to_json(self) -> dict[str, Any]:
        """The figure as it is written to the JSON file."""
        return {
            "name": self.name,
            "unit": self.unit,
            "target": self.target,
            "at_least": self.at_least,
            "values": list(self.values),
            "median": self.median,
            "met": self.met,
            "details": dict(self.details),
        }


def short(value: float) -> str:
    """A number with three significant digits."""
    if value >= 100:  # noqa: PLR2004
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Ours over theirs, round by round: neighbours in time, so that drift cancels."""
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


def table(figures: Sequence[Figure]) -> str:
    """The table of all figures."""
    return "\n".join([HEADER.rstrip(), *(figure.line() for figure in figures)])


def where() -> dict[str, Any]:
    """The machine that the figures were measured on."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
