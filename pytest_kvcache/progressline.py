"""One line on a running trial: where it is, how long everything still takes, what it does.

Columns keep their widths while a case runs, and those that the terminal has no room for
are left out as a whole, the least important first. Pure; prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.plan import Plan

MARK = "[kv] "
MOST_COLUMNS = 100
_GIB = 1 << 30
_STORED = "population"  # the phase that fills the cache
# Columns in the order in which they are given up, and in that in which they stand.
_GIVEN_UP = ("case", "free", "iops", "hit", "p99", "rates", "left", "where", "trial")
_SHOWN = ("case", "trial", "where", "left", "rates", "iops", "p99", "hit", "free")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A text, the width that it always has, and the part of the line that it is."""

    name: str
    text: str
    width: int


class Outlook:
    """How long a case still takes: from its plan, and from the trials that have ended."""

    def __init__(self, plan: Plan, trials: int, *, at_most: bool = False) -> None:
        self.plan = plan
        self.trials = trials
        self.at_most = at_most
        self._trial = 0
        self._took_s: list[float] = []
        self._began_s = self._phase_began_s = 0.0
        self._phase = ""

    @property
    def trial(self) -> str:
        """``trial 1/3``."""
        return f"trial {self._trial + 1}/{self.trials}"

    def start(self, trial: int, now_s: float) -> None:
        """A launch begins; its own clock begins later, when the ranks are together."""
        self._trial, self._began_s, self._phase = trial, now_s, ""

    def end(self, now_s: float) -> None:
        """The launch is over."""
        self._took_s.append(now_s - self._began_s)

    def enter(self, phase: str, t_s: float) -> None:
        """A phase begins, by the trial's own clock."""
        self._phase, self._phase_began_s = phase, t_s

    def where(self, t_s: float) -> str:
        """The phase, and how far it is: ``window 12/60 s``."""
        elapsed_s = max(0.0, t_s - self._phase_began_s)
        if self._phase != "window":
            return f"{self._phase} {elapsed_s:.0f} s"
        if elapsed_s < self.plan.ramp_s:
            return f"ramp {elapsed_s:.0f}/{self.plan.ramp_s:.0f} s"
        elapsed_s -= self.plan.ramp_s
        if self.plan.duration_s is None:
            return f"window {elapsed_s:.0f} s"
        if elapsed_s > self.plan.duration_s:
            return f"drain {elapsed_s - self.plan.duration_s:.0f} s"
        return f"window {elapsed_s:.0f}/{self.plan.duration_s:.0f} s"

    def where_width(self) -> int:
        """Of the longest text that a window can have."""
        if self.plan.duration_s is None:
            return len("window 12345 s")
        total = len(f"{self.plan.duration_s:.0f}")
        return len("window / s") + 2 * total

    def left_s(self, event: Mapping[str, Any], now_s: float) -> float | None:
        """Of all trials together; None: nothing tells yet."""
        this_s = self._this_trial_s(event, now_s)
        if this_s is None:
            return None
        spent_s = now_s - self._began_s
        each_s = sum(self._took_s) / len(self._took_s) if self._took_s else spent_s + this_s
        return this_s + each_s * (self.trials - self._trial - 1)

    def _this_trial_s(self, event: Mapping[str, Any], now_s: float) -> float | None:
        if self._phase == "window" and self.plan.duration_s is not None:
            elapsed_s = float(event["t_s"]) - self._phase_began_s
            return max(0.0, self.plan.ramp_s + self.plan.duration_s - elapsed_s)
        if self._phase == "clean-up":
            return 0.0
        if self._took_s:
            each_s = sum(self._took_s) / len(self._took_s)
            return max(0.0, each_s - (now_s - self._began_s))
        if self.plan.duration_s is None:
            return None
        before_s = self._population_s(event)
        return None if before_s is None else before_s + self.plan.ramp_s + self.plan.duration_s

    def _population_s(self, event: Mapping[str, Any]) -> float | None:
        """What is left of filling the cache, at the speed it has had until now."""
        stored = int(event.get("cached_blocks", 0))
        elapsed_s = float(event["t_s"]) - self._phase_began_s
        if self._phase != _STORED or not stored or elapsed_s <= 0:
            return None
        wanted = min(self.plan.need_blocks, self.plan.capacity_blocks) * self.plan.np
        return max(0.0, (wanted - stored) / (stored / elapsed_s))


def progress_line(
    outlook: Outlook, event: Mapping[str, Any], *, now_s: float, width: int, averaged: bool = False
) -> str:
    """The line of an event, shorter than ``width``.

    ``averaged``: its figures are those of the interval since such a line was last told,
    and not of the last second.
    """
    columns = {
        column.name: column for column in _columns(outlook, event, now_s=now_s, averaged=averaged)
    }
    room = width - 1 - len(MARK)
    kept = list(columns.values())
    for name in _GIVEN_UP[:-1]:
        if sum(column.width + 1 for column in kept) - 1 <= room:
            break
        kept = [column for column in kept if column.name != name]
    kept.sort(key=lambda column: _SHOWN.index(column.name))
    text = " ".join(column.text.ljust(column.width) for column in kept).rstrip()
    return (MARK + text)[: width - 1]


def _columns(
    outlook: Outlook, event: Mapping[str, Any], *, now_s: float, averaged: bool
) -> Iterator[Column]:
    plan = outlook.plan
    yield Column(name="case", text=plan.case, width=len(plan.case))
    yield Column(name="trial", text=outlook.trial, width=len(outlook.trial))
    yield Column(name="where", text=outlook.where(event["t_s"]), width=outlook.where_width())
    left_s = outlook.left_s(event, now_s)
    most = "≤ " if outlook.at_most else ""
    left = "" if left_s is None else f"{most}{short_duration(left_s)} left"
    yield Column(name="left", text=left, width=len(most) + len("59m59s left"))
    if event["event"] != "progress":
        return
    if event["phase"] == _STORED:
        stored = format_bytes(event["cached_blocks"] * plan.stored_bytes)
        yield Column(name="rates", text=f"{stored} stored", width=len("1023.99 GiB stored"))
    elif event["phase"] == "window":
        yield from _figures(event["interval" if averaged else "recent"])
        asked = event["prompt_blocks"]
        hit = f"{event['hit_blocks'] / asked:.0%}" if asked else "—"
        yield Column(name="hit", text=f"hit {hit:>4}", width=8)
    if plan.needs_directory and event["phase"] in (_STORED, "window"):
        free_bytes = event["free_bytes"]
        free = "—" if free_bytes is None else f"{_short(free_bytes / _GIB)} GiB"
        yield Column(name="free", text=f"free {free}", width=len("free 12345 GiB"))


def _figures(figures: Mapping[str, Any] | None) -> Iterator[Column]:
    """Dashes where a rank has not told of the whole time yet."""
    read = write = operations = p99 = "—"
    if figures is not None:
        read, write = _short(figures["read_gib_per_s"]), _short(figures["write_gib_per_s"])
        operations = _thousands(figures["operations_per_s"])
        p99 = _milliseconds(figures["read_p99_ms"])
    yield Column(name="rates", text=f"r {read:>4} w {write:>4} GiB/s", width=19)
    yield Column(name="iops", text=f"{operations:>4} IOPS", width=9)
    yield Column(name="p99", text=f"r p99 {p99}", width=len("r p99 3.21 ms"))


def short_duration(seconds: float) -> str:
    """``45s``, ``2m40s``, ``1h05m``."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  seconds of a minute
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004  minutes of an hour
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"


def _short(value: float) -> str:
    """Three digits, or as many as there are before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"  # noqa: PLR2004


def _thousands(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value / 1000:.0f} s" if value >= 10_000 else f"{_short(value)} ms"  # noqa: PLR2004
