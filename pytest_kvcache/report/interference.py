"""Loads with stores beside them and without, as text. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from pytest_kvcache.report.text import figure, wrapped
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.interference import InterferenceFigures, SideFigures
    from pytest_kvcache.results.outcome import TrialResult

_RATIOS: Final = ("load_p99", "load_p50", "read_p99", "request_p99", "request_p50")
_OTHER_RATE: Final = 0.05
"""From how much more loads per second on it is said that the sides had another load."""


def interference_lines(plan: Plan, trials: Sequence[TrialResult]) -> Iterator[str]:
    """A row for each side, the ratios of the pairs, and what the sides differ in beside stores."""
    pairs = [trial.interference for trial in trials if trial.interference is not None]
    if not pairs:
        return
    yield ""
    yield _row("", "loads", "loads/s", "bytes/load", "load p50", "load p99", "read p99", "w GiB/s")
    for name, sides in (
        ("with stores", [pair.with_stores for pair in pairs]),
        ("without stores", [pair.without_stores for pair in pairs]),
    ):
        yield _side_row(name, sides)
    yield from wrapped(
        f"{_of_pairs(len(pairs))}; p50 and p99 in ms. Times as long with stores, each pair"
        f" for itself: {', '.join(_ratio(name, pairs) for name in _RATIOS)}",
        indent="  ",
    )
    for text in (*_rates(plan, pairs), *_verdicts(pairs)):
        yield from wrapped(text, indent="  ")


def _of_pairs(count: int) -> str:
    return f"medians of {count} pairs of launches" if count > 1 else "one pair of launches"


def _side_row(name: str, sides: Sequence[SideFigures]) -> str:
    sizes = _known([side.bytes_per_load for side in sides])
    return _row(
        name,
        f"{median(side.loads for side in sides):,.0f}",
        _middle([side.loads_per_s for side in sides]),
        format_bytes(round(median(sizes))) if sizes else "—",
        _middle([side.load_p50_ms for side in sides]),
        _middle([side.load_p99_ms for side in sides]),
        _middle([side.read_p99_ms for side in sides]),
        _middle([side.write_gib_per_s for side in sides]),
    )


def _row(name: str, loads: str, per_s: str, size: str, *cells: str) -> str:
    return f"  {name:<14}{loads:>8}{per_s:>8}{size:>11}" + "".join(f"{cell:>9}" for cell in cells)


def _known(values: Sequence[float | None]) -> list[float]:
    """All values; none if one is not known."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def _middle(values: Sequence[float | None]) -> str:
    known = _known(values)
    return figure(median(known)) if known else "—"


def _ratio(name: str, pairs: Sequence[InterferenceFigures]) -> str:
    """``load p99 1.8 (1.7 to 2.0)``."""
    shown = name.replace("_", " ")
    ratios = _known([getattr(pair, f"{name}_ratio") for pair in pairs])
    if not ratios:
        return f"{shown} —"
    spread = f" ({min(ratios):.3g} to {max(ratios):.3g})" if len(ratios) > 1 else ""
    return f"{shown} {median(ratios):.3g}{spread}"


def _rates(plan: Plan, pairs: Sequence[InterferenceFigures]) -> Iterator[str]:
    """In a closed loop whoever gets answers sooner asks more: the sides had another load."""
    more = _known(
        [
            pair.without_stores.loads_per_s / pair.with_stores.loads_per_s
            if pair.without_stores.loads_per_s and pair.with_stores.loads_per_s
            else None
            for pair in pairs
        ]
    )
    if plan.open_loop or not more or abs(median(more) - 1) <= _OTHER_RATE:
        return
    yield (
        f"without stores there were {median(more):.3g} times as many loads per second, as users of"
        " a closed loop ask again once they are answered; --kv-request-rate gives both sides the"
        " same arrivals"
    )


def _verdicts(pairs: Sequence[InterferenceFigures]) -> Iterator[str]:
    """What stands against launches that have no table of their own."""
    codes = dict.fromkeys(code for pair in pairs for code in pair.without_stores.verdicts)
    if codes:
        yield f"verdicts on the launches without stores: {', '.join(codes)}"
