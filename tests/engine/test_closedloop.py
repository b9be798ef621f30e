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
