from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.factories import (
    FakeClock,
    S,
    Script,
    ask,
    extremes,
)
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from pytest_kvcache.workloads.protocol import Request


def test_in_an_open_loop_responses_count_from_the_intended_arrival(
    clock: FakeClock, stage: Stage
) -> None:
    arrivals = [ask(0, "a", arrival_ns=S), ask(0, "b", arrival_ns=2 * S)]
    script = Script([arrivals], population=[ask(0, "a", "b")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    rig.advance(S)
    (first,) = stage.expect("get a")
    rig.advance(4 * S)
    assert rig.loop.counters.offered == 2
    stage.release(first)  # at 5 s
    (second,) = stage.expect("get b")
    clock.advance(S)
    stage.release(second)  # at 6 s
    rig.finish()
    assert extremes(rig.histogram("request")) == (2, 4 * S, 4 * S, 8 * S)
    assert extremes(rig.histogram("read")) == (2, S, 4 * S, 5 * S)


def test_an_open_loop_does_not_wait_for_answers(clock: FakeClock, stage: Stage) -> None:
    arrivals = [ask(0, name, arrival_ns=number * S) for number, name in enumerate("abcd")]
    rig = Rig(Script([arrivals], open_loop=True), stage, clock=clock, queue_depth=4)
    rig.start()
    for _ in range(3):
        rig.advance(S)
    stage.expect("put a", "put b", "put c", "put d")
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.completed == 4


def test_in_an_open_loop_an_answer_brings_no_request(clock: FakeClock, stage: Stage) -> None:
    arrivals = [ask(0, name, arrival_ns=at * S) for name, at in (("a", 0), ("b", 10), ("c", 20))]
    rig = Rig(Script([arrivals], population=[ask(0, "a", "b", "c")], open_loop=True), stage,
              clock=clock)  # fmt: skip
    rig.start()
    for name in "abc":
        (call,) = stage.expect(f"get {name}")
        stage.release(call)
        assert rig.loop.counters.completed == len(stage.calls)
        rig.advance(10 * S)
    rig.finish()
    assert [call.at_ns - rig.start_ns for call in stage.calls] == [0, 10 * S, 20 * S]
    assert rig.loop.counters.offered == 3


def test_what_comes_beyond_the_longest_backlog_is_dropped_and_counted(
    clock: FakeClock, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvcache.engine.loop.MAX_BACKLOG", 2)
    arrivals = [ask(0, "a", arrival_ns=0)] * 5
    script = Script([arrivals], population=[ask(0, "a")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    assert rig.loop.counters.offered == 5
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert (counters.offered, counters.dropped, counters.completed) == (5, 3, 2)
    assert rig.histogram("request").count == rig.sums()["requests"] == 2
    assert rig.sums()["prompt_blocks"] == 2
    assert rig.recorder.censored["request"] == 3
    assert rig.histogram("scheduling_lag").count == 5


def test_requests_whose_tokens_are_computed_are_no_backlog(
    clock: FakeClock, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvcache.engine.loop.MAX_BACKLOG", 2)
    arrivals = [ask(0, "a", output=[f"o{number}"], arrival_ns=number * S) for number in range(5)]
    script = Script([arrivals], population=[ask(0, "a")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=9, generation_s_per_token=60.0)
    rig.start()
    for _ in arrivals:
        stage.release(*stage.pending)
        rig.advance(S)
    assert (rig.loop.counters.offered, rig.loop.counters.dropped) == (5, 0)
    stage.release_all()
    rig.advance(100 * S)
    rig.finish()
    assert rig.loop.counters.completed == 5


def test_what_is_under_way_when_the_last_request_has_arrived_is_backlog(
    clock: FakeClock, stage: Stage
) -> None:
    # The trace ends only when the storage has caught up: without this a replay that the
    # storage can't follow would have no backlog at all.
    arrivals = [ask(0, "a", arrival_ns=number * S) for number in range(20)]
    script = Script([arrivals], population=[ask(0, "a")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    rig.advance(19 * S)
    assert rig.loop.counters.offered == 20
    clock.advance(100 * S)
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.completed == 20
    assert rig.loop.counters.backlog >= 19


def test_a_stall_of_the_storage_counts_for_every_request_that_should_have_begun_in_it(
    clock: FakeClock, stage: Stage
) -> None:
    # Coordinated omission: a closed loop would have seen one slow request here.
    arrivals = [ask(0, "a", arrival_ns=number * S) for number in range(10)]
    script = Script([arrivals], population=[ask(0, "a")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    stage.expect("get a")
    for _ in range(20):
        rig.advance(S)
    assert rig.loop.counters.offered == 10
    stage.release_all()
    rig.finish()
    waits = [(20 - number) * S for number in range(10)]
    assert extremes(rig.histogram("request")) == (10, min(waits), max(waits), sum(waits))
    reads = rig.histogram("read")
    assert (reads.count, reads.max_ns, reads.sum_ns) == (10, 20 * S, 20 * S)


def test_a_full_store_queue_holds_nobody_back_in_an_open_loop(
    clock: FakeClock, stage: Stage
) -> None:
    arrivals = [
        ask(0, *(f"{number}{part}" for part in "abcdef"), arrival_ns=number * S)
        for number in range(5)
    ]
    rig = Rig(Script([arrivals], open_loop=True), stage, clock=clock, queue_depth=1)
    rig.start()
    counters = rig.loop.counters
    while counters.completed < 5:
        assert counters.completed * S > clock() - rig.start_ns
        rig.advance(S)
    assert rig.loop.blocks.stores == 30
    assert not rig.loop.stalled
    clock.advance(10 * S)
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert (counters.store_stall_ns, counters.backlog, counters.storing) == (0, 1, 4)
    assert extremes(rig.histogram("request")) == (5, 0, 0, 0)


def test_the_time_that_the_harness_takes_to_wake_up_is_recorded_apart() -> None:
    clock = FakeClock()
    arrivals = [ask(0, arrival_ns=S), ask(0, arrival_ns=2 * S)]
    rig = Rig(Script([arrivals], open_loop=True), Stage(clock), clock=clock)
    rig.start()
    clock.advance(S // 2)
    rig.advance(S)  # nobody has looked at the clock at 1 s
    assert rig.loop.counters.offered == 1
    rig.advance(S // 2)
    rig.finish()
    assert extremes(rig.histogram("scheduling_lag")) == (2, 0, S // 2, S // 2)
    assert rig.histogram("request").sum_ns == S // 2
    assert rig.histogram("load").count == 0


def test_a_closed_loop_has_no_wake_ups(clock: FakeClock) -> None:
    rig = Rig(Script([[ask(0, think_s=1.0), ask(0)]]), Stage(clock), clock=clock)
    rig.start()
    rig.advance(5 * S)
    rig.finish()
    assert rig.histogram("request").count == 2
    assert rig.histogram("scheduling_lag").count == 0


def test_a_window_lasts_to_its_end_and_takes_no_arrival_beyond_it(clock: FakeClock) -> None:
    arrivals = [ask(0, arrival_ns=at * S) for at in (1, 9, 10, 11)]
    script = Script([arrivals], open_loop=True)
    rig = Rig(script, Stage(clock), clock=clock)
    rig.start(window_ns=10 * S)
    rig.advance(9 * S)
    assert rig.loop.counters.completed == 2
    rig.advance(S // 2)
    assert not rig.has_ended
    rig.advance(3 * S)
    rig.finish()
    assert rig.stopped_ns == rig.start_ns + 9 * S + S // 2 + 3 * S
    counters = rig.loop.counters
    assert (counters.offered, counters.completed, counters.backlog) == (2, 2, 0)


class Sluggish(Script):
    """It takes the harness 60 ms to make a request."""

    clock: FakeClock

    def next_request(self, user: int) -> Request | None:
        self.clock.advance(60_000_000)
        return super().next_request(user)


def test_arrivals_that_the_harness_never_came_to_deal_with_are_offered_and_left(
    clock: FakeClock,
) -> None:
    arrivals = [ask(0, arrival_ns=number * 10_000_000) for number in range(200)]
    script = Sluggish([arrivals], open_loop=True)
    script.clock = clock
    rig = Rig(script, Stage(clock), clock=clock)
    rig.run(window_ns=S)
    counters = rig.loop.counters
    assert counters.offered == 100
    assert 0 < counters.completed < 20
    assert counters.backlog == 100 - counters.completed
    assert counters.storing == 0
    assert rig.histogram("scheduling_lag").count == 100
    assert rig.recorder.censored["request"] == counters.backlog


def test_a_tick_comes_even_if_arrivals_never_stop(clock: FakeClock) -> None:
    arrivals = [ask(0, arrival_ns=0)] * 10_000
    script = Sluggish([arrivals], open_loop=True)
    script.clock = clock
    rig = Rig(script, Stage(clock), clock=clock)
    rig.stop()  # told by the first tick
    rig.run()
    assert rig.loop.counters.completed < 10


def test_simulated_generation_is_no_backlog_of_the_storage(clock: FakeClock, stage: Stage) -> None:
    arrivals = [ask(0, output=[name], arrival_ns=0) for name in "abc"]
    arrivals.append(ask(0, "x", arrival_ns=S))
    arrivals.append(ask(0, arrival_ns=1_000 * S))
    script = Script([arrivals], population=[ask(0, "x")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1, generation_s_per_token=100.0)
    rig.start(window_ns=10 * S, drain_s=0.0)
    assert rig.loop._generating == 3
    rig.advance(S)
    (held,) = stage.expect("get x")
    for _ in range(18):
        rig.advance(S // 2)
        assert rig.loop.sampled_ns == clock()
    stage.release(held)
    rig.finish()
    counters = rig.loop.counters
    assert (counters.offered, counters.backlog, counters.generating) == (4, 4, 3)
    sums = rig.sums(0, 10 * S)
    assert sums["waiting"] / sums["samples"] == pytest.approx(18 / 20, abs=0.1)


def test_an_answer_that_was_generated_is_no_longer_being_generated(
    clock: FakeClock, stage: Stage
) -> None:
    arrivals = [ask(0, output=["a"], arrival_ns=0), ask(0, arrival_ns=1_000 * S)]
    rig = Rig(Script([arrivals], open_loop=True), stage, clock=clock, generation_s_per_token=1.0)
    rig.start(window_ns=10 * S)
    rig.advance(5 * S)
    stage.release(*stage.expect("put a"))
    rig.advance(5 * S)
    rig.finish()
    counters = rig.loop.counters
    assert (counters.completed, counters.backlog, counters.generating) == (1, 0, 0)
