"""One line on a running trial: where it is, how long everything still takes, what it does.

Columns keep their widths while a case runs, and those that the terminal has no room for
are left out as a whole, the least important first. Pure; prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.units import GIB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.plan.plan import Plan

MARK = "[kv] "
MOST_COLUMNS = 100
_STORED = "population"  # the phase that fills the cache
# Columns in the order in which they are given up, and in that in which they stand.
_GIVEN_UP = ("case", "free", "iops", "hit", "p99", "rates", "left", "where", "trial")
_SHOWN = ("case", "trial", "where", "left", "rates", "iops", "p99", "hit", "free")


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
        """``trial 1/3``; a trial of two launches counts those."""
        what = "trial" if self.plan.interference is None else "launch"
        return f"{what} {self._trial + 1}/{self.trials}"

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
        if elapsed_s < self.plan.ramp_s and self.plan.ramp_s >= 1:
            return f"ramp {elapsed_s:.0f}/{self.plan.ramp_s:.0f} s"
        elapsed_s = max(0.0, elapsed_s - self.plan.ramp_s)
        if self.plan.duration_s is None:
            return f"window {elapsed_s:.0f} s"
        if elapsed_s > self.plan.duration_s:
            return f"drain {elapsed_s - self.plan.duration_s:.0f} s"
        return f"window {elapsed_s:.0f}/{self.plan.duration_s:.0f} s"

    def widths(self) -> dict[str, int]:
        """The widths of all columns that a line of this case can have."""
        where = len("precondition 0 s" if self.plan.precondition_bytes else "calibration 0 s")
        if self.plan.duration_s is not None:
            where = max(where, len("window / s") + 2 * len(f"{self.plan.duration_s:.0f}"))
        left = len("≤ 59m59s left" if self.at_most else "59m59s left")
        found = {"case": len(self.plan.case), "trial": len(self.trial), "where": where}
        found |= {"left": left, "rates": 19, "iops": 9, "p99": 13, "hit": 8}
        return found | ({"free": 13} if self.plan.traits.bounded_by == "disk" else {})

    def left_s(self, event: Mapping[str, Any], now_s: float) -> float | None:
        """Seconds left of all trials together; None: not known yet."""
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
        stored_bytes = int(event.get("cached_bytes", 0))
        elapsed_s = float(event["t_s"]) - self._phase_began_s
        if self._phase != _STORED or not stored_bytes or elapsed_s <= 0:
            return None
        plan = self.plan
        blocks = max(plan.fill_blocks, min(plan.need_blocks, plan.capacity_blocks))
        wanted = blocks * plan.stored_bytes * plan.np
        return max(0.0, (wanted - stored_bytes) / (stored_bytes / elapsed_s))


def progress_line(
    outlook: Outlook, event: Mapping[str, Any], *, now_s: float, width: int, averaged: bool = False
) -> str:
    """The line of an event, shorter than ``width``.

    ``averaged``: its figures are those of the interval since such a line was last written,
    and not of the last second.
    """
    texts = dict(_texts(outlook, event, now_s=now_s, averaged=averaged))
    widths = outlook.widths()
    room = width - 1 - len(MARK)
    for name in _GIVEN_UP[:-1]:
        if sum(widths.values()) + len(widths) - 1 <= room:
            break
        widths.pop(name, None)
    shown = [name for name in _SHOWN if name in widths]
    text = " ".join(texts.get(name, "").ljust(widths[name]) for name in shown).rstrip()
    return (MARK + text)[: width - 1]


def _texts(
    outlook: Outlook, event: Mapping[str, Any], *, now_s: float, averaged: bool
) -> Iterator[tuple[str, str]]:
    """Name and text of each column that has something to say."""
    plan = outlook.plan
    yield "case", plan.case
    yield "trial", outlook.trial
    yield "where", outlook.where(event["t_s"])
    left_s = outlook.left_s(event, now_s)
    if left_s is not None:
        yield "left", f"{'≤ ' if outlook.at_most else ''}{short_duration(left_s)} left"
    if event["event"] != "progress":
        return
    if event["phase"] == _STORED:
        yield "rates", f"{format_bytes(event['cached_bytes'])} stored"
    elif event["phase"] == "precondition":
        yield "rates", f"{format_bytes(event['write_bytes'])} written"
    elif event["phase"] == "window" and plan.restarts:
        yield "rates", f"{event['completed']:,} found"
    elif event["phase"] == "window":
        yield from _figures(event["interval" if averaged else "recent"])
        asked = event["prompt_blocks"]
        hit = f"{event['hit_blocks'] / asked:.0%}" if asked else "—"
        yield "hit", f"hit {hit:>4}"
    if event["phase"] in (_STORED, "window"):
        free_bytes = event["free_bytes"]
        free = "—" if free_bytes is None else f"{_short(free_bytes / GIB)} GiB"
        yield "free", f"free {free}"


def _figures(figures: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Dashes where a rank has not reported the whole time yet."""
    read = write = operations = p99 = "—"
    if figures is not None:
        read, write = _short(figures["read_gib_per_s"]), _short(figures["write_gib_per_s"])
        operations = _thousands(figures["operations_per_s"])
        p99 = _milliseconds(figures["read_p99_ms"])
    yield "rates", f"r {read:>4} w {write:>4} GiB/s"
    yield "iops", f"{operations:>4} IOPS"
    yield "p99", f"r p99 {p99}"


def short_duration(seconds: float) -> str:
    """``45 s``, ``2m40s``, ``1h05m``."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  seconds of a minute
        return f"{whole} s"
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
