"""Load steps: parts of a window in which the number of active users does not change.

What is timed belongs to the step in which it *began*, as it belongs to the window in which it
began: what was under way when the load changed is never averaged into what came after. So the
steps of a rank add up to its window. A request begins when it was meant to, an operation with
its first transfer, a lookup of blocks when it is made.

Runs on ranks and on the controller; imports numpy and histogram.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_kvcache.measure.histogram import BIN_COUNT, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

STEP_SECTIONS: Final = ("read", "write", "demote", "load", "request")
"""Every step has a histogram of these."""
SUMMED: Final = (
    "read_op_bytes",
    "write_op_bytes",
    "demote_op_bytes",
    "prompt_blocks",
    "hit_blocks",
    "load_censored",
    "request_censored",
)
"""Counts of a step that over all steps are the rank's counter of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """What one rank did in one load step; times are from the window's begin, on its clock.

    ``users`` were active from ``begin_s`` on, which the rank did at ``obeyed_s`` (of the first
    step: when it began to issue). ``answered`` requests that began in it, by so many different
    users, were answered, ``answered_later`` of them when it was over.
    """

    users: int
    begin_s: float
    obeyed_s: float
    answered: int
    answered_users: int
    answered_later: int
    read_op_bytes: int
    write_op_bytes: int
    demote_op_bytes: int
    prompt_blocks: int
    hit_blocks: int
    load_censored: int
    request_censored: int


class _Step:
    """One load step while it is counted."""

    __slots__ = ("answered", "begin_ns", "counts", "histograms", "later", "obeyed_ns", "users")

    def __init__(self, begin_ns: int, users: int, obeyed_ns: int) -> None:
        self.begin_ns = begin_ns
        self.users = users
        self.obeyed_ns = obeyed_ns
        self.histograms = {section: Histogram() for section in STEP_SECTIONS}
        self.counts = dict.fromkeys(SUMMED, 0)
        self.answered: set[int] = set()
        self.later = 0


class StepLedger:
    """One rank's load steps; none where its load never changes, and then nothing is booked.

    All moments that are booked lie in the window, and none after the begin of a step to come.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._begins_ns = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._steps)

    def begin(self, begin_ns: int, users: int, obeyed_ns: int) -> None:
        """What begins from ``begin_ns`` on belongs to another step."""
        self._steps.append(_Step(begin_ns, users, obeyed_ns))
        self._begins_ns = np.array([step.begin_ns for step in self._steps], dtype=np.int64)

    def record(self, section: str, started_ns: IntArray, times_ns: IntArray) -> None:
        """Book how long operations, loads or requests took that began then."""
        if section in STEP_SECTIONS:
            for number, among in self._parts(started_ns):
                self._steps[number].histograms[section].record(times_ns[among])

    def add(self, counter: str, started_ns: IntArray, values: IntArray) -> None:
        """Add values to a count of the steps in which they began."""
        for number, among in self._parts(started_ns):
            self._steps[number].counts[counter] += int(values[among].sum())

    def answer(
        self, users: IntArray, started_ns: IntArray, done_ns: IntArray, end_ns: int | None
    ) -> None:
        """Book whose requests were answered; the last step ends at ``end_ns``."""
        for number, among in self._parts(started_ns):
            step = self._steps[number]
            step.answered.update(np.unique(users[among]).tolist())
            until_ns = self._begins_ns[number + 1] if number + 1 < len(self) else end_ns
            if until_ns is not None:
                step.later += int((done_ns[among] >= until_ns).sum())

    def counted(self, origin_ns: int) -> tuple[StepCounts, ...]:
        """The counts of each step; times from ``origin_ns`` on."""
        return tuple(
            StepCounts(
                users=step.users,
                begin_s=(step.begin_ns - origin_ns) / 1e9,
                obeyed_s=(step.obeyed_ns - origin_ns) / 1e9,
                answered=step.histograms["request"].count,
                answered_users=len(step.answered),
                answered_later=step.later,
                **step.counts,
            )
            for step in self._steps
        )

    def dense(self, steps: int) -> IntArray:
        """The counts of all bins of so many steps, section by section; adds up over ranks."""
        dense = np.zeros((steps, len(STEP_SECTIONS), BIN_COUNT), dtype=np.int64)
        for row, step in zip(dense, self._steps, strict=False):  # a rank may have ended early
            row[:] = [step.histograms[section].counts for section in STEP_SECTIONS]
        return dense

    def extremes(self) -> list[list[tuple[int, int | None, int | None]]]:
        """Of each step the exact sum, minimum and maximum of each section."""
        return [
            [step.histograms[section].extremes for section in STEP_SECTIONS] for step in self._steps
        ]

    def _parts(self, started_ns: IntArray) -> Iterator[tuple[int, BoolArray]]:
        """Each step in which some of these moments lie, by its number, and which do."""
        if not self._steps or not started_ns.size:
            return
        numbers = np.searchsorted(self._begins_ns, started_ns, side="right") - 1
        for number in np.unique(numbers[numbers >= 0]).tolist():
            yield number, numbers == number


StepHistograms = dict[str, Histogram]


def histograms_of(
    dense: IntArray, extremes: list[list[list[tuple[int, int | None, int | None]]]]
) -> tuple[StepHistograms, ...]:
    """Each step's histograms over all ranks: of summed ``dense``, and each rank's ``extremes``."""
    return tuple(
        {
            section: Histogram.added(
                counts, [rank[number][column] for rank in extremes if number < len(rank)]
            )
            for column, (section, counts) in enumerate(zip(STEP_SECTIONS, row, strict=True))
        }
        for number, row in enumerate(dense)
    )
