from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.engine import engine as module
from pytest_kvcache.engine.engine import Engine
from pytest_kvcache.engine.load import LoadChange
from pytest_kvcache.errors import StalledError
from pytest_kvcache.ioengines.inline import InlineEngine
from pytest_kvcache.measure.recorder import Recorder, Window
from tests.factories import PATIENCE_S, Bookkeeper, FakeClock, S, Script, ask, wait_for
from tests.rig import Stage, index_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.workloads.protocol import Workload


class Stuck(InlineEngine):
    """The loop stays inside its first call until it may go on, as inside a system call."""

    def __init__(self) -> None:
        backend = Bookkeeper()
        backend.prepare(0)
        self.inside, self.may_go_on = threading.Event(), threading.Event()
        real = backend.put_from

        def put_from(key: str, offset: int, buffer: memoryview) -> None:
            self.inside.set()
            assert self.may_go_on.wait(PATIENCE_S)
            real(key, offset, buffer)

        backend.put_from = put_from  # type: ignore[method-assign]  # held back
        super().__init__(backend, 2)


def engine_of(
    io: IoEngine, workload: Workload, clock: Callable[[], int] = time.monotonic_ns
) -> Engine:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    return Engine(
        settings=settings_of(), io=io, clock=clock, block_tokens=1, generation_s_per_token=0.0,
        phase="both", cache=index_of(None, settings_of()), workload=workload, payload=None,
        recorder=recorder,
    )  # fmt: skip


def test_ticks_come_and_tell_of_the_wait_while_the_loop_is_stuck_in_a_call() -> None:
    io = Stuck()
    engine = engine_of(io, Script([[]], population=[ask(0, "a")]))
    waits: list[int] = []

    def tick() -> bool:
        waits.append(engine.longest_wait_ns())
        if len(waits) > 5:
            io.may_go_on.set()
        return False

    engine.populate(tick)
    assert engine.first_error is None
    assert len(waits) > 5
    assert sorted(waits[:5]) == waits[:5]
    assert waits[4] > S // 5
    assert engine.longest_wait_ns() == 0


def test_a_call_that_never_ends_ends_the_trial() -> None:
    io, clock = Stuck(), FakeClock()
    engine = engine_of(io, Script([[ask(0, "a")]]), clock)

    def tick() -> bool:
        if io.inside.is_set():
            clock.advance(30 * S)
        return False

    begin_ns = clock()
    with pytest.raises(StalledError, match="in flight did not end within 60 s"):
        engine.run(start_ns=begin_ns, end_ns=begin_ns + S, drain_s=5.0, tick=tick)
    assert clock() >= begin_ns + 66 * S
    io.may_go_on.set()


def test_a_read_that_never_ends_ends_the_trial_although_the_loop_goes_on() -> None:
    clock = FakeClock()
    stage = Stage(clock)
    engine = engine_of(stage, Script([[ask(0, "a")]], population=[ask(0, "a")]), clock)
    stage.open_ended = True
    engine.populate(lambda: False)
    stage.open_ended = False

    def tick() -> bool:
        clock.advance(10 * S)
        with stage._changed:
            stage._woken = True
            stage._changed.notify_all()
        return False

    begin_ns = clock()
    with pytest.raises(StalledError, match="in flight did not end within 60 s"):
        engine.run(start_ns=begin_ns, end_ns=begin_ns + S, drain_s=5.0, tick=tick)
    stage.end()
    stage.release_all()


def test_a_tick_that_says_so_ends_the_population_and_the_run_that_follows_is_another_one() -> None:
    backend = Bookkeeper()
    backend.prepare(0)
    contexts = [ask(0, f"{number}") for number in range(20)]

    class Endless(Script):
        def population(self) -> Any:
            for context in contexts * 10_000:
                time.sleep(0.01)
                yield context

    engine = engine_of(InlineEngine(backend, 2), Endless([[ask(0, "a")]]))
    ticks: list[int] = []
    engine.populate(lambda: not ticks.append(1))  # type: ignore[func-returns-value]  # true
    assert len(ticks) < 10
    engine.run(start_ns=time.monotonic_ns(), end_ns=None, drain_s=1.0, tick=lambda: False)
    assert engine.counters.completed == 1
    engine.close()


def test_ticks_come_ten_times_a_second_however_busy_the_loop_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.02)
    engine = engine_of(InlineEngine(NullBackend(), 2), Script([[ask(0, "a")] * 1_000_000]))
    ticks: list[int] = []

    def tick() -> bool:
        ticks.append(engine.counters.completed)
        return len(ticks) >= 5

    engine.run(start_ns=time.monotonic_ns(), end_ns=None, drain_s=1.0, tick=tick)
    assert sorted(ticks) == ticks
    assert 0 < engine.counters.completed < 1_000_000


def test_what_the_loop_dies_of_is_raised_where_it_was_started() -> None:
    class Broken(InlineEngine):
        def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
            del limit, wait_until_ns
            raise RuntimeError("a bug in an engine")

    engine = engine_of(Broken(Bookkeeper(), 2), Script([[ask(0, "a")]]))
    with pytest.raises(RuntimeError, match="a bug in an engine"):
        engine.run(start_ns=time.monotonic_ns(), end_ns=None, drain_s=1.0, tick=lambda: False)


def test_no_thread_is_left_when_a_phase_is_over() -> None:
    backend = Bookkeeper()
    backend.prepare(0)
    engine = engine_of(InlineEngine(backend, 2), Script([[]], population=[ask(0, "a")]))
    engine.populate(lambda: False)
    wait_for(lambda: all(t.name != "kvcache-loop" for t in threading.enumerate()))


def test_no_more_users_can_be_active_than_there_are_to_take_turns() -> None:
    engine = engine_of(InlineEngine(NullBackend(), 2), Script([[], [], []]))
    for at_ns, users in ((S, 0), (2 * S, 3)):
        engine.set_active(LoadChange(at_ns, users))
    for users in (-1, 4):
        with pytest.raises(ValueError, match=f"active users are {users}; they must be 0 to 3"):
            engine.set_active(LoadChange(3 * S, users))
    assert list(engine.loop.changes) == [(S, 0), (2 * S, 3)]
    scheduled = engine_of(InlineEngine(NullBackend(), 2), Script([[]], open_loop=True))
    with pytest.raises(ValueError, match="they must be 0 to 0"):
        scheduled.set_active(LoadChange(S, 1))


def test_changes_of_the_load_come_in_the_order_of_their_moments() -> None:
    engine = engine_of(InlineEngine(NullBackend(), 2), Script([[], []]))
    engine.set_active(LoadChange(2 * S, 1))
    with pytest.raises(ValueError, match="order it first"):
        engine.set_active(LoadChange(S, 2))
