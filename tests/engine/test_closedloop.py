from __future__ import annotations

from typing import TYPE_CHECKING

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


def test_a_user_asks_again_only_when_its_request_is_answered(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")] * 3, [ask(1, "b")] * 50], population=[ask(0, "a"), ask(1, "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start()
    for _ in range(50):
        (_slow, quick) = stage.expect("get a", "get b")
        stage.release(quick)
    stage.expect("get a")
    assert script.asked == [1, 50]
    stage.release_all()
    rig.finish()
    assert script.asked == [3, 50]


def test_requests_without_any_transfer_end_with_the_window_too(clock: FakeClock) -> None:
    class Endless(Script):
        """Prompts shorter than a block, at a thousand a second."""

        def next_request(self, user: int) -> Request | None:
            clock.advance(S // 1000)
            return super().next_request(user)

    script = Endless([[ask(0)] * 5_000])
    rig = Rig(script, Stage(clock), clock=clock)
    rig.run(window_ns=S)
    assert script.asked[0] < 1_100
    assert rig.histogram("request").count <= 1_001


def test_a_user_thinks_after_its_answer(clock: FakeClock, stage: Stage) -> None:
    think = [ask(0, "a", think_s=seconds) for seconds in (5.0, 2.0)]
    rig = Rig(Script([think], population=[ask(0, "a")]), stage, clock=clock)
    rig.start()
    origin_ns = clock()
    rig.advance(4 * S)
    rig.advance(S)
    (first,) = stage.expect("get a")
    assert first.at_ns == origin_ns + 5 * S
    clock.advance(3 * S)  # it was answered at 8 s, so the next one comes at 10 s
    stage.release(first)
    rig.advance(3 * S)  # the client is late by 1 s, which counts against us
    (second,) = stage.expect("get a")
    clock.advance(S)
    stage.release(second)
    rig.finish()
    assert extremes(rig.histogram("request")) == (2, 2 * S, 3 * S, 5 * S)
    assert extremes(rig.histogram("read")) == (2, S, 3 * S, 4 * S)


def test_a_full_store_queue_makes_users_wait_and_the_time_is_reported(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        [ask(user, f"{user}{turn}x", f"{user}{turn}y") for turn in range(3)] for user in (0, 1)
    ]
    script = Script(turns)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    # Four objects may wait per queue depth, which two requests fill; two more find it full.
    assert len(rig.loop._stalled) == 2
    assert script.asked == [2, 2]
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert script.asked == [3, 3]
    assert rig.loop.counters.store_stall_ns == 2 * 7 * S


def test_users_that_still_wait_for_the_store_queue_at_the_end_are_reported_too(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        [ask(user, f"{user}{turn}x", f"{user}{turn}y") for turn in range(3)] for user in (0, 1)
    ]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    assert len(rig.loop._stalled) == 2
    rig.advance(5 * S)
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.store_stall_ns == 2 * 5 * S


def test_time_in_the_store_queue_is_no_response_time(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "x1", "x2", "x3", "x4", "x5"), ask(0, "y")]]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start()
    assert rig.loop._stalled
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert extremes(rig.histogram("request")) == (2, 0, 0, 0)


# -- users that come and go ------------------------------------------------------------------


def test_users_beyond_the_active_ones_rest_after_their_answer(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")] * 9, [ask(1, "b")] * 9], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=100 * S)
    rig.loop.active_users = 1
    stage.release(*stage.expect("get a", "get b"))
    stage.release(*stage.expect("get a"))
    stage.expect("get a")
    assert script.asked == [3, 1]
    rig.loop.active_users = 2
    rig.advance(S)
    stage.expect("get a", "get b")
    assert script.asked == [3, 2]
    rig.advance(100 * S)
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert (counters.offered, counters.completed, counters.backlog) == (5, 3, 2)
    response = rig.histogram("request")
    assert (response.min_ns, response.max_ns) == (0, 101 * S)  # resting is no response time


def test_a_user_that_rests_where_it_thinks_keeps_its_request(
    clock: FakeClock, stage: Stage
) -> None:
    think = [ask(0, "a", think_s=5.0), ask(0, "b")]
    script = Script([think], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=1_000 * S)
    rig.loop.active_users = 0
    rig.advance(6 * S)
    stage.expect()
    assert script.asked == [1]
    rig.loop.active_users = 1
    rig.advance(10 * S)
    stage.release(*stage.expect("get a"))
    stage.release(*stage.expect("get b"))
    rig.finish()
    assert script.asked == [2]
    assert rig.loop.counters.completed == 2


def test_a_run_whose_users_all_rest_lasts_to_its_end(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a")] * 9], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=10 * S)
    rig.loop.active_users = 0
    stage.release(*stage.expect("get a"))
    rig.advance(5 * S)
    assert not rig.has_ended
    rig.advance(5 * S)
    rig.finish()
    assert rig.loop.counters.completed == rig.loop.counters.offered == 1


def test_a_user_that_is_wanted_again_before_the_loop_looks_does_not_rest_for_ever(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[], [ask(1, "a")]])
    rig = Rig(script, stage, clock=clock)
    rig.loop._populating = False
    rig.loop.active_users = 1
    rig.loop._next_turn(1, clock())
    rig.loop.active_users = 2  # nobody has looked at the 1
    stage.open_ended = True

    def work() -> None:
        rig.loop._work_while(lambda: not script.asked[1])

    rig.behind(work)
    rig.join()
    assert script.asked == [0, 1]


def test_who_loads_another_users_blocks_goes_on_taking_turns(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(7, "a"), ask(9, "a"), ask(7, "a")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=10 * S)
    for _turn in range(3):
        stage.release(*stage.expect("get a"))
    rig.finish()
    assert rig.loop.counters.completed == 3
