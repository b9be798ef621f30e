"""Runs → a picture (SVG): what was read and written per second, and how long it took. Pure.

A block per case, a panel per quantity, a line per trial. Each point is the mean of an
interval of the trial's series and stands in the interval's middle; where an interval has no
p99 the line has a gap. Stalls, which the trial knows to the millisecond, are marked.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvcache.measure.series import DONE, KINDS
from pytest_kvcache.report.scales import (
    Scale,
    scale_from_zero,
    scale_of_span,
    scale_of_times,
    tick_label,
)
from pytest_kvcache.report.svg import element, words
from pytest_kvcache.report.tables import describe_case
from pytest_kvcache.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.results.run import RunResult
    from pytest_kvcache.results.trial import Trial
    from pytest_kvcache.results.verdictcodes import Verdict

WIDTH_PX = 840
LETTER_PX = {"title": 10.2, "small": 7.6}  # of a wide font, per letter
_LEFT_PX, _RIGHT_PX, _MARGIN_PX = 80.0, WIDTH_PX - 24.0, 16.0
_PANEL_PX, _HEAD_PX, _LINE_PX, _GAP_PX = 104.0, 30.0, 17.0, 28.0
_SWATCH_PX, _BETWEEN_PX = 22.0, 16.0
_MOST_TICKS, _MOST_SECONDS = 5, 11
_LONGEST_RAMP = 1 / 8  # of the window; a longer one is cut, since nothing is drawn in it
_LEAST_BAND_PX = 2.0  # what is shorter could be overlooked
_DOTS_UP_TO = 60  # points of a line, which are dots as well as long as they can be told apart
_COLOURS = (("#0969da", "#58a6ff"), ("#bc4c00", "#f0883e"), ("#1a7f37", "#3fb950"),
            ("#8250df", "#bc8cff"), ("#6e7781", "#c9d1d9"), ("#bf3989", "#f778ba"))  # fmt: skip
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")  # once all colours are taken

_LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#59636e", "grid": "#d8dee4",
          "ramp": "#eaeef2", "bad": "#cf222e"}  # fmt: skip
_DARK = {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "grid": "#30363d",
         "ramp": "#21262d", "bad": "#ff7b72"}  # fmt: skip


def picture_of(runs: Sequence[RunResult]) -> str:
    """One SVG of all cases of all runs, below each other."""
    blocks = [partial(_block, case, run.run_id) for run in runs for case in run.cases]
    drawn = _stacked(*blocks, gap_px=_GAP_PX)(_MARGIN_PX)
    height = drawn.end_px + _MARGIN_PX
    names = ", ".join(case.name for run in runs for case in run.cases)
    picture = element(
        "svg",
        words("title", f"{names}: GiB/s and p99 over time"),
        words("style", _style()),
        element("rect", class_="paper", width=WIDTH_PX, height=height),
        drawn.svg,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        width=WIDTH_PX,
        height=height,
        viewBox=f"0 0 {WIDTH_PX} {height:.0f}",
    )
    return f"{picture}\n"


def _style() -> str:
    """Colours for light, and for dark where the reader prefers it."""
    fonts = (
        "text { font-family: system-ui, sans-serif } .title { font-size: 16px; font-weight: 600 }"
        " .small { font-size: 12px } .head { font-weight: 600 }"
        " .line { fill: none; stroke-width: 1.6; stroke-linejoin: round }"
        " .grid { stroke-width: 1 } .stall { fill-opacity: 0.22 }"
    )
    dashes = " ".join(f".d{n} {{ stroke-dasharray: {dash} }}" for n, dash in enumerate(_DASHES))
    dark = f"@media (prefers-color-scheme: dark) {{ {_colours(_DARK, 1)} }}"
    return f"{fonts} {dashes} {_colours(_LIGHT, 0)} {dark}"


def _colours(names: Mapping[str, str], scheme: int) -> str:
    fills = {"paper": "paper", "ink": "ink", "faint": "faint", "ramp": "ramp", "bad": "bad",
             "stall": "bad"}  # fmt: skip
    rules = [f".{kind} {{ fill: {names[colour]} }}" for kind, colour in fills.items()]
    rules.append(f".grid {{ stroke: {names['grid']} }}")
    for number, colours in enumerate(_COLOURS):
        rules.append(f".line.t{number} {{ stroke: {colours[scheme]} }}")
        rules.append(f".dot.t{number} {{ fill: {colours[scheme]} }}")
    return " ".join(rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Something drawn, and where the next thing may begin."""

    svg: str
    end_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """What a panel shows: a heading, and a trial's values by interval (None: a gap)."""

    heading: str
    values: Mapping[int, Sequence[float | None]]
    logarithmic: bool

    @property
    def known(self) -> list[float]:
        """All values of all trials."""
        every = itertools.chain.from_iterable(self.values.values())
        return [value for value in every if value is not None]


# --- a case ---------------------------------------------------------------------------------


def _block(case: CaseResult, run_id: str, y: float) -> _Part:
    drawn = [trial for trial in case.trials if _points(trial)]
    nothing = partial(_lines, "no whole second was measured: nothing to draw", "small", "ink")
    return _stacked(
        partial(_lines, case.name, "title", "ink"),
        partial(_lines, describe_case(case), "small", "faint"),
        partial(_lines, f"run {run_id}", "small", "faint"),
        partial(_legend, case.trials),
        partial(_panels, drawn) if drawn else nothing,
        partial(_lines, _verdicts(case), "small", "ink"),
        gap_px=2.0,
    )(y)


def _stacked(*drawers: Callable[[float], _Part], gap_px: float = 0.0) -> Callable[[float], _Part]:
    """Everything below each other, each from where the one before it ends."""

    def draw(y: float) -> _Part:
        svg, at = [], y - gap_px
        for drawer in drawers:
            part = drawer(at + gap_px)
            svg.append(part.svg)
            at = part.end_px
        return _Part(svg="".join(svg), end_px=at)

    return draw


def _points(trial: TrialResult) -> int:
    return 0 if trial.measured is None else trial.measured.series.points


def _lines(text: str, size: str, kind: str, y: float) -> _Part:
    """Text as wide as the picture, in as many lines as it takes."""
    line_px = _LINE_PX + 5 if size == "title" else _LINE_PX
    room = int((WIDTH_PX - 2 * _MARGIN_PX) / LETTER_PX[size])
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    svg = [
        words("text", line, class_=f"{size} {kind}", x=_MARGIN_PX, y=y + line_px * (number + 0.8))
        for number, line in enumerate(lines)
    ]
    return _Part(svg="".join(svg), end_px=y + line_px * len(lines))


def _legend(trials: Sequence[TrialResult], y: float) -> _Part:
    """Which line is which, and what the grounds mean; as many rows as that takes."""
    entries = [(_swatch(trial.index), _name(trial)) for trial in trials]
    entries.append(("ramp", "ramp, not measured"))
    if any(_stalls(trial, math.inf) for trial in trials):
        entries.append(("stall", "stall of some rank"))
    x, svg = _MARGIN_PX, []
    for kind, label in entries:
        needed = _SWATCH_PX + LETTER_PX["small"] * len(label)
        if x + needed > _RIGHT_PX and x > _MARGIN_PX:
            x, y = _MARGIN_PX, y + _LINE_PX
        svg.append(_sample(kind, x, y))
        svg.append(words("text", label, class_="small ink", x=x + _SWATCH_PX, y=y + 12))
        x += needed + _BETWEEN_PX
    return _Part(svg="".join(svg), end_px=y + _LINE_PX)


def _sample(kind: str, x: float, y: float) -> str:
    if kind.startswith("line"):
        return element("path", class_=kind, d=f"M{x:.1f} {y + 8:.1f}h16")
    return element("rect", class_=kind, x=x, y=y + 2, width=16, height=12)


def _swatch(index: int) -> str:
    dash = index // len(_COLOURS) % len(_DASHES)
    return f"line t{index % len(_COLOURS)} d{dash}"


def _name(trial: TrialResult) -> str:
    state = "" if trial.ok else " (interrupted)" if trial.interrupted else " (failed)"
    return f"trial {trial.index + 1}{state}" + ("" if _points(trial) else ", nothing to draw")


def _verdicts(case: CaseResult) -> str:
    """Each code once, with the trials that have it unless all have, and those of the case."""
    given: dict[str, set[int]] = {}
    for trial in case.trials:
        for verdict in trial.verdicts:
            given.setdefault(_judgement(verdict), set()).add(trial.index + 1)
    lines = [
        code if len(trials) == len(case.trials) else f"{code} of trial {_listed(sorted(trials))}"
        for code, trials in given.items()
    ]
    lines += [_judgement(verdict) for verdict in case.verdicts]
    return f"verdicts: {'; '.join(lines)}" if lines else ""


def _judgement(verdict: Verdict) -> str:
    return f"{verdict.code} (invalid)" if verdict.severity == "invalid" else verdict.code


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# --- panels ---------------------------------------------------------------------------------


def _panels(trials: Sequence[TrialResult], y: float) -> _Part:
    across = _across(trials)
    panels = [partial(_panel, quantity, trials, across) for quantity in _quantities(trials)]
    return _stacked(*panels, partial(_seconds, trials, across))(y)


def _seconds(trials: Sequence[TrialResult], across: Scale, y: float) -> _Part:
    """The labels of what all panels share."""
    widths_s = sorted({measured.series.interval_s for measured in _measured(trials).values()})
    each = " or ".join(f"{width} s" for width in widths_s)
    labels = [
        _text(tick_label(tick), across(tick), y + 14, anchor="middle") for tick in across.ticks
    ]
    under = f"seconds of the window; each point stands for {each}"
    labels.append(_text(under, (_LEFT_PX + _RIGHT_PX) / 2, y + 31, anchor="middle", kind="ink"))
    return _Part(svg="".join(labels), end_px=y + 38)


def _across(trials: Sequence[TrialResult]) -> Scale:
    """Seconds, of the longest window and the longest ramp."""
    known = _measured(trials).values()
    length_s = max(*(trial.window_s for trial in known), *map(_end_s, known))
    ramp_s = min(max(trial.ramp_s for trial in known), length_s * _LONGEST_RAMP)
    return scale_of_span(ramp_s, length_s, _LEFT_PX, _RIGHT_PX, _MOST_SECONDS)


def _measured(trials: Sequence[TrialResult]) -> dict[int, Trial]:
    """The trials that left a record, by index."""
    return {trial.index: trial.measured for trial in trials if trial.measured is not None}


def _end_s(trial: Trial) -> float:
    return trial.series.interval_s * trial.series.points


def _quantities(trials: Sequence[TrialResult]) -> Iterator[_Quantity]:
    """Bandwidths of what moved at all, and the p99 of reads, or of writes if none was read."""
    series = {index: trial.series for index, trial in _measured(trials).items()}
    moved = [kind for kind in KINDS if any(any(s.done(kind)) for s in series.values())]
    for kind in moved or ["read"]:
        rates = {
            index: [moved_bytes / s.interval_s / GIB for moved_bytes in s.moved(kind)]
            for index, s in series.items()
        }
        yield _Quantity(heading=f"{DONE[kind]}, GiB/s", values=rates, logarithmic=False)
    for kind in moved[:1]:
        times = {index: s.p99s_ms(kind) for index, s in series.items()}
        heading = f"p99 of the {kind}s' service times, ms"
        yield _Quantity(heading=heading, values=times, logarithmic=True)


def _panel(quantity: _Quantity, trials: Sequence[TrialResult], across: Scale, y: float) -> _Part:
    top, bottom = y + _HEAD_PX, y + _HEAD_PX + _PANEL_PX
    heading = quantity.heading
    up = scale_from_zero(max(quantity.known, default=0.0), bottom, top, _MOST_TICKS)
    if quantity.logarithmic and quantity.known:
        up = scale_of_times(min(quantity.known), max(quantity.known), bottom, top, _MOST_TICKS)
        heading += ", logarithmic" if up.logarithmic else ""
    elif quantity.logarithmic:
        heading += ": none, since no interval has 100 operations"
    svg = [_ground(trials, across, top)]
    for tick in up.ticks:
        line = f"M{_LEFT_PX:.1f} {up(tick):.1f}H{_RIGHT_PX:.1f}"
        svg.append(element("path", class_="grid", d=line))
        if quantity.known:
            svg.append(_text(tick_label(tick), _LEFT_PX - 8, up(tick) + 4, anchor="end"))
    svg.append(_text(heading, _LEFT_PX, top - 8, kind="ink head"))
    for index, trial in _measured(trials).items():
        svg += _curve(index, quantity.values[index], trial.series.interval_s, across, up)
    return _Part(svg="".join(svg), end_px=bottom)


def _ground(trials: Sequence[TrialResult], across: Scale, top: float) -> str:
    """The ramp, and when some rank of some trial was stalled."""
    begin = across(across.low)
    bands = [("ramp", begin, across(0.0) - begin)] if across.low else []
    for from_s, to_s in _united(s for trial in trials for s in _stalls(trial, across.high)):
        bands.append(("stall", across(from_s), max(_LEAST_BAND_PX, across(to_s) - across(from_s))))
    return "".join(
        element("rect", class_=kind, x=left, y=top, width=width, height=_PANEL_PX)
        for kind, left, width in bands
    )


def _stalls(trial: TrialResult, end_s: float) -> list[tuple[float, float]]:
    """The stalls of every rank: from and to, in seconds of the window until ``end_s``."""
    ranks = () if trial.measured is None else trial.measured.ranks
    found = [stall for rank in ranks for stall in rank.stalls]
    return [(min(s.begin_s, end_s), min(s.end_s, end_s)) for s in found if not s.is_a_pause]


def _united(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The times as spans that do not touch."""
    united: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if united and begin <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((begin, end))
    return united


def _curve(
    index: int, values: Sequence[float | None], width_s: float, across: Scale, up: Scale
) -> Iterator[str]:
    """A line through the middles of the intervals, and a dot wherever it could be overlooked."""
    places = [
        None if value is None else (across((number + 0.5) * width_s), up(value))
        for number, value in enumerate(values)
    ]
    pieces = [*_pieces(places)]
    path = "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece) for piece in pieces if len(piece) > 1
    )
    if path:
        yield element("path", class_=_swatch(index), d=path)
    for piece in pieces:
        for x, y in piece if len(piece) == 1 or len(values) <= _DOTS_UP_TO else []:
            yield element("circle", class_=f"dot t{index % len(_COLOURS)}", cx=x, cy=y, r=2.2)


def _pieces(
    places: Iterable[tuple[float, float] | None],
) -> Iterator[list[tuple[float, float]]]:
    """What hangs together: the line has gaps where there is no value."""
    for there, group in itertools.groupby(places, key=lambda place: place is not None):
        if there:
            yield [place for place in group if place is not None]


def _text(text: str, x: float, y: float, *, anchor: str | None = None, kind: str = "faint") -> str:
    return words("text", text, class_=f"small {kind}", x=x, y=y, text_anchor=anchor)
