"""Whatever the schedule, the store and the clock: who is active asks, and nobody else does."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.engine.load import LoadChange
from pytest_kvcache.engine.loop import Loop
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.recorder import REQUEST, Recorder, Window
from pytest_kvcache.measure.steps import STEP_SECTIONS, SUMMED
from pytest_kvcache.ranks.report import recorded
from tests.factories import FakeClock, S, ask
from tests.rig import index_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.ioengines.protocol import Completion, IoEngineName
    from pytest_kvcache.workloads.protocol import Request

MS = 1_000_000
STEP_NS = 6 * S // 10


class Ticking(FakeClock):
    """A clock that goes on with every look, by chance up to 1 ms: all work takes time."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice

    def __call__(self) -> int:
        self.now_ns += self._dice.randint(0, MS)
        return self.now_ns


class Timed:
    """An I/O engine whose calls last up to 5 ms of a fake clock, and where orders are heard."""

    name: IoEngineName = "threads"

    def __init__(self, clock: FakeClock, depth: int, dice: random.Random) -> None:
        self.depth = depth
        self.lags_ns: list[int] = []
        self.orders: list[tuple[int, LoadChange]] = []  # when each is heard
        self.received: Any = None
        self._clock = clock
        self._dice = dice
        self._staged: list[int] = []
        self._under_way: list[Completion] = []

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    def register(self, buffers: Sequence[memoryview]) -> None:
        del buffers

    def stage(self, slot: int, *call: object) -> None:
        del call
        self._staged.append(slot)

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        begun, self._staged = self._staged[:limit], self._staged[limit:]
        for slot in begun:
            now = self._clock()
            self._under_way.append((slot, now, now + self._dice.randint(1, 5 * MS), None))
        if wait_until_ns is not None:
            ends_ns = [done_ns for _slot, _began, done_ns, _error in self._under_way]
            self._clock.now_ns = max(self._clock.now_ns, min([*ends_ns, wait_until_ns]))
        while self.orders and self.orders[0][0] <= self._clock.now_ns:
            self.received(self.orders.pop(0)[1])
        return len(begun)

    def look(self) -> int:
        return sum(call[2] <= self._clock.now_ns for call in self._under_way)

    def reap(self) -> Sequence[Completion]:
        ended = [call for call in self._under_way if call[2] <= self._clock.now_ns]
        self._under_way = [call for call in self._under_way if call not in ended]
        return ended

    def withdraw(self) -> list[int]:
        staged, self._staged = self._staged, []
        return staged

    def longest_wait_ns(self, now_ns: int) -> int:
        del now_ns
        return 0

    def close(self) -> None:
        assert not self._under_way


class Thinkers:
    """Users without an end, who think up to 0.3 s and have a few blocks in common."""

    open_loop = False

    def __init__(self, users: int, dice: random.Random) -> None:
        self.users = users
        self._dice = dice
        self._made = 0

    def population(self) -> Iterator[Request]:
        return iter([ask(0, *range(20))])

    def next_request(self, user: int) -> Request | None:
        self._made += 1
        think_s = self._dice.choice((0.0, 0.0, self._dice.random() * 0.3))
        prompt = range(self._dice.randint(0, 4))
        return ask(user, *prompt, output=[f"o{self._made}"], think_s=think_s)


class Kept(Recorder):
    """A recorder that remembers whose requests began and were answered when."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[int, int, int]] = []

    def _book(self, rows: Any, window: Window) -> None:
        super()._book(rows, window)
        found = rows[rows["kind"] == REQUEST]
        columns = [found[name].tolist() for name in (found.dtype.names[1], "started_ns", "done_ns")]
        self.requests += zip(*columns, strict=True)


def run(
    counts: Sequence[int], users: int, ramp_ns: int, seed: int, *, drain_s: float = 60.0
) -> tuple[Kept, list[int]]:
    """A run with these numbers of active users, each for 0.6 s; and when each began."""
    dice = random.Random(seed)
    clock, recorder = Ticking(dice), Kept()
    made = settings_of(queue_depth=dice.randint(1, 4))
    io = Timed(clock, made.queue_depth, dice)
    loop = Loop(
        settings=made,
        block_tokens=1,
        generation_s_per_token=dice.choice((0.0, 0.01)),
        phase="both",
        io=io,
        cache=index_of(40, made),
        workload=Thinkers(users, dice),
        payload=None,
        recorder=recorder,
        clock=clock,
    )
    loop.populate()
    start_ns = clock.now_ns
    begin_ns = start_ns + ramp_ns
    begins_ns = [begin_ns + number * STEP_NS for number in range(len(counts))]
    io.received = loop.changes.append
    loop.changes.append(LoadChange(start_ns, counts[0]))
    later = zip(begins_ns[1:], counts[1:], strict=True)
    io.orders = [
        (at_ns - dice.randint(S // 10, S // 2), LoadChange(at_ns, n)) for at_ns, n in later
    ]
    end_ns = begins_ns[-1] + STEP_NS
    recorder.open_window(Window(begin_ns, end_ns))
    loop.run(start_ns=start_ns, end_ns=end_ns, drain_s=drain_s)
    loop.close()
    recorder.finish()
    return recorder, [*begins_ns, end_ns]


SCHEDULES = st.tuples(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.integers(8, 9),
    st.sampled_from([0, S // 3]),
    st.integers(0, 1 << 32),
)


@pytest.mark.thorough
@settings(deadline=None)
@given(SCHEDULES)
def test_exactly_those_who_are_active_ask_and_each_for_one_thing_at_a_time(
    schedule: tuple[list[int], int, int, int],
) -> None:
    counts, *_rest = schedule
    recorder, bounds_ns = run(*schedule)
    asking: list[set[int]] = [set() for _count in counts]
    later = [0] * len(counts)
    answers_ns: dict[int, int] = {}
    for user, started_ns, done_ns in sorted(recorder.requests, key=lambda row: row[1]):
        number = int(np.searchsorted(bounds_ns, started_ns, side="right")) - 1
        if 0 <= number < len(counts):
            asking[number].add(user)
            later[number] += done_ns >= bounds_ns[number + 1]
        assert answers_ns.get(user, 0) <= started_ns
        answers_ns[user] = done_ns
    assert asking == [set(range(count)) for count in counts]
    steps = recorder.steps.counted(bounds_ns[0])
    assert [step.answered_users for step in steps] == counts
    assert [step.answered_later for step in steps] == later


@pytest.mark.thorough
@settings(deadline=None)
@given(SCHEDULES)
def test_the_load_steps_add_up_to_the_window(schedule: tuple[list[int], int, int, int]) -> None:
    counts, *_rest = schedule
    recorder, bounds_ns = run(*schedule, drain_s=0.0)
    steps = recorder.steps.counted(bounds_ns[0])
    assert [step.users for step in steps] == counts
    assert all(step.answered_later <= step.users for step in steps)
    assert [step.begin_s for step in steps] == [(at - bounds_ns[0]) / 1e9 for at in bounds_ns[:-1]]
    assert all(step.obeyed_s >= step.begin_s for step in steps[1:])
    sums = recorder.ledger.sums(0, recorder.ledger.end_ns)
    own = recorded(recorder) | sums
    assert {name: sum(getattr(step, name) for step in steps) for name in SUMMED} == {
        name: own[name] for name in SUMMED
    }
    dense = recorder.steps.dense(len(steps)).sum(axis=0)
    for column, section in enumerate(STEP_SECTIONS):
        parts = [of_step[column] for of_step in recorder.steps.extremes()]
        assert Histogram.added(dense[column], parts) == recorder.histograms[section]
    assert sum(step.answered for step in steps) == recorder.histograms["request"].count


def test_every_count_of_a_load_step_adds_up_or_is_of_it_alone() -> None:
    recorder, bounds_ns = run([2, 1], 8, 0, 0)
    names = {part.name for part in fields(recorder.steps.counted(bounds_ns[0])[0])}
    own = {"users", "begin_s", "obeyed_s", "answered", "answered_users", "answered_later"}
    assert names == own | set(SUMMED)
