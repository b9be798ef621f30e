from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.engine.load import LoadChange
from tests.factories import (
    FakeClock,
    S,
    Script,
    ask,
    extremes,
    key_of,
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
    assert len(rig.loop.stalled) == 2
    assert script.asked == [2, 2]
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert script.asked == [3, 3]
    assert rig.loop.counters.store_stall_ns == 2 * 7 * S


def test_a_full_store_queue_may_drop_what_would_be_stored_and_nobody_waits(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        [ask(user, f"{user}{turn}x", f"{user}{turn}y") for turn in range(4)] for user in (0, 1)
    ]
    script = Script(turns)
    rig = Rig(script, stage, clock=clock, queue_depth=1, drops_stores=True)
    rig.start()
    # Four objects may wait per queue depth: three requests find no more, the other five do.
    assert not rig.loop.stalled
    assert script.asked == [4, 4]
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert (counters.requested_writes, counters.dropped_blocks) == (6, 10)
    assert counters.store_stall_ns == 0
    assert rig.index.present_blocks == 6


def test_a_scenario_may_say_how_many_objects_wait_before_users_do(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [[ask(user, f"{user}{turn}") for turn in range(9)] for user in (0, 1)]
    script = Script(turns)
    rig = Rig(script, stage, clock=clock, queue_depth=1, most_stores=2)
    rig.start()
    assert len(rig.loop.stalled) == 2  # the queue depth alone would let four wait
    assert sum(script.asked) == 2 + 2
    stage.release_all()
    rig.finish()
    assert script.asked == [9, 9]


def test_users_that_still_wait_for_the_store_queue_at_the_end_are_reported_too(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        [ask(user, f"{user}{turn}x", f"{user}{turn}y") for turn in range(3)] for user in (0, 1)
    ]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    assert len(rig.loop.stalled) == 2
    rig.advance(5 * S)
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.store_stall_ns == 2 * 5 * S


def test_time_in_the_store_queue_is_no_response_time(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "x1", "x2", "x3", "x4", "x5"), ask(0, "y")]]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start()
    assert rig.loop.stalled
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert extremes(rig.histogram("request")) == (2, 0, 0, 0)


# -- users that come and go ------------------------------------------------------------------


def change(rig: Rig, users: int, in_ns: int = 0) -> None:
    """So many users are active from now on, or from a moment to come."""
    rig.loop.changes.append(LoadChange(rig.clock() + in_ns, users))


def test_users_beyond_the_active_ones_rest_after_their_answer(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")] * 9, [ask(1, "b")] * 9], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=100 * S)
    change(rig, 1)
    stage.release(*stage.expect("get a", "get b"))
    stage.release(*stage.expect("get a"))
    stage.expect("get a")
    assert script.asked == [3, 1]
    change(rig, 2)
    rig.advance(S)
    stage.expect("get a", "get b")
    assert script.asked == [3, 2]
    rig.advance(100 * S)
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert (counters.offered, counters.completed, counters.backlog) == (5, 3, 2)
    response = rig.histogram("request")
    # Resting is no response time; the loop has slept through the change, for a second.
    assert (response.min_ns, response.max_ns) == (0, 101 * S)


def test_a_user_that_rests_where_it_thinks_keeps_its_request(
    clock: FakeClock, stage: Stage
) -> None:
    think = [ask(0, "a", think_s=5.0), ask(0, "b")]
    script = Script([think], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=1_000 * S)
    change(rig, 0)
    rig.advance(6 * S)
    stage.expect()
    assert script.asked == [1]
    change(rig, 1)
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
    change(rig, 0)
    stage.release(*stage.expect("get a"))
    rig.advance(5 * S)
    assert not rig.has_ended
    rig.advance(5 * S)
    rig.finish()
    assert rig.loop.counters.completed == rig.loop.counters.offered == 1


def test_the_load_changes_at_its_moment_and_not_when_the_loop_happens_to_look(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")] * 9, [ask(1, "b")] * 9], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=100 * S)
    change(rig, 1, in_ns=S)
    rig.advance(S - 1)
    stage.release(*stage.expect("get a", "get b"))
    (first, second) = stage.expect("get a", "get b")  # a nanosecond before it
    rig.advance(1)
    stage.release(first, second)
    stage.expect("get a")
    change(rig, 2, in_ns=S)
    rig.advance(S - 1)
    stage.expect("get a")
    rig.advance(1)
    (_, late) = stage.expect("get a", "get b")
    assert late.at_ns == clock()
    stage.release_all()
    rig.stop()
    rig.advance(S)
    rig.finish()


def test_a_loop_without_anything_to_do_sleeps_no_longer_than_until_a_change(
    clock: FakeClock,
) -> None:
    rig = Rig(Script([[ask(0, "a")]]), Stage(clock), clock=clock)
    rig.loop.changes.append(LoadChange(clock() + S // 50, 1))
    assert rig.loop._wake_ns(clock(), None) == clock() + S // 50


def test_who_was_to_come_back_and_is_noticed_late_has_waited_since_the_moment_agreed(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")]], population=[ask(0, "a")]), stage, clock=clock)
    change(rig, 0, in_ns=S)  # the begin of the run
    rig.start(window_ns=100 * S)
    change(rig, 1, in_ns=5 * S)
    rig.advance(7 * S)
    stage.release(*stage.expect("get a"))
    rig.stop()
    rig.advance(S)
    rig.finish()
    assert extremes(rig.histogram("request")) == (1, 2 * S, 2 * S, 2 * S)
    assert [step.obeyed_s for step in rig.recorder.steps.counted(rig.start_ns)] == [0.0, 7.0]


def test_a_change_that_comes_when_the_run_is_stopped_is_none(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")] * 9], population=[ask(0, "a")]), stage, clock=clock)
    change(rig, 1, in_ns=S)
    rig.start(window_ns=10 * S)
    rig.advance(10 * S)  # a read is still under way
    change(rig, 0)
    rig.advance(S)
    stage.release_all()
    rig.finish()
    assert not rig.loop.changes
    assert len(rig.recorder.steps) == 1


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


class Held(Script):
    """User 0 may not come before user 1 has asked twice."""

    holds_users = True

    def next_request(self, user: int) -> Request | None:
        if user == 0 and self.asked[1] < 2:
            return None
        return super().next_request(user)


def test_a_user_that_had_to_wait_is_asked_again_when_another_one_has_asked(
    clock: FakeClock, stage: Stage
) -> None:
    script = Held([[ask(0, "a")], [ask(1, "b")] * 2], population=[ask(0, "a"), ask(1, "b")])
    rig = Rig(script, stage, clock=clock)
    rig.start()
    (first,) = stage.expect("get b")
    assert script.asked == [0, 1]
    stage.release(first)
    stage.expect("get b", "get a")  # the second one of user 1 lets user 0 come
    assert script.asked == [1, 2]
    stage.release_all()
    rig.finish()


def test_what_a_request_deletes_is_gone_before_its_own_is_stored(
    clock: FakeClock, stage: Stage
) -> None:
    replaces = ask(0, output=["b"], deletes=(key_of("a"),))
    anew = ask(0, output=["b"], deletes=(key_of("b"), key_of("nowhere")))
    rig = Rig(Script([[replaces, anew]], population=[ask(0, "a")]), stage, clock=clock)
    rig.start()
    (delete,) = stage.expect("delete a")
    stage.release(delete)
    (put,) = stage.expect("put b")
    stage.release(put)
    (delete,) = stage.expect("delete b")
    stage.release(delete)
    stage.expect("put b")
    stage.release_all()
    rig.finish()
