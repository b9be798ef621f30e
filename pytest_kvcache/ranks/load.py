"""Who decides how many users are active next, and who tells all ranks in time.

Rank-side: the coordinator's part of a load that changes. A change is ordered ``LEAD_NS``
before its moment, which is one of the agreed clock; each rank obeys by its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_kvcache.engine.load import LoadChange
from pytest_kvcache.measure.live import LiveFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.plan.loadsteps import LoadStep

    Figures = dict[str, float | None]

LEAD_NS: Final = 1_000_000_000  # ranks look for orders every 0.1 s


class LoadControl(Protocol):
    """Decides how many users are active, step by step."""

    def next_step(self, so_far: Figures | None) -> LoadStep | None:
        """The step that follows the one whose figures these are; None: that one goes on.

        Asked ``LEAD_NS`` before the step ends. ``so_far`` are rates over all ranks and the p99
        of reads, of the step without its first and last second; None before the first step, and
        where a rank has not told enough.
        """


class FixedSchedule:
    """Steps that are known beforehand (implements ``LoadControl``)."""

    def __init__(self, steps: Sequence[LoadStep]) -> None:
        self._steps = iter(steps)

    def next_step(self, so_far: Figures | None) -> LoadStep | None:
        """The next one, whatever was measured."""
        del so_far
        return next(self._steps, None)


class LoadConductor:
    """Asks a load control for the next step and orders it, while the window lasts.

    ``begin_ns`` is the window's begin on the coordinator's clock, ``offsets_ns`` what each
    rank's is ahead of it; ``order`` sends a change to each rank.
    """

    def __init__(
        self,
        control: LoadControl,
        begin_ns: int,
        offsets_ns: Sequence[int],
        order: Callable[[Sequence[LoadChange]], None],
    ) -> None:
        self._control = control
        self._begin_ns = begin_ns
        self._offsets_ns = offsets_ns
        self._order = order
        self._figures = LiveFigures(len(offsets_ns))
        self._step = control.next_step(None)
        self._ordered: LoadStep | None = None

    @property
    def first_users(self) -> int | None:
        """How many are active from the start on; None: all, all the time."""
        return None if self._step is None else self._step.users

    def receive(self, rank: int, recent: dict[str, Any]) -> None:
        """Count what a rank has told of the window."""
        self._figures.receive(rank, recent)

    def tick(self, now_ns: int) -> None:
        """Order the next step when its time has come."""
        since_ns = now_ns - self._begin_ns
        if self._ordered is not None and since_ns >= self._ordered.begin_ns:
            self._step, self._ordered = self._ordered, None
            self._figures.restart()
        if self._step is None or self._ordered is not None:
            return
        if since_ns >= self._step.end_ns - LEAD_NS:
            self._ordered = self._control.next_step(self._figures.take())
            if self._ordered is None:
                self._step = None  # it goes on, and nobody is asked again
                return
            at_ns, users = self._begin_ns + self._ordered.begin_ns, self._ordered.users
            self._order([LoadChange(at_ns + offset_ns, users) for offset_ns in self._offsets_ns])
