from __future__ import annotations

from pytest_kvcache.engine.payload import Payload
from tests.factories import (
    PAGE,
    Bookkeeper,
    FakeClock,
    S,
    Script,
    ask,
    extremes,
)
from tests.rig import Rig, Stage


def test_latency_counts_what_began_in_the_window_and_bytes_what_ended_in_it(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")] * 4], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(ramp_ns=2 * S, window_ns=8 * S)
    for seconds in (3, 4):  # begun at 0 s and 3 s; the window is from 2 s to 10 s
        (call,) = stage.expect("get a")
        rig.advance(seconds * S)
        stage.release(call)
    (call,) = stage.expect("get a")  # begun at 7 s, ends at 12 s
    rig.advance(5 * S)
    stage.release(call)
    rig.finish()
    for section in ("read", "device", "load", "request"):
        assert extremes(rig.histogram(section)) == (2, 4 * S, 5 * S, 9 * S), section
    assert rig.recorder.section_bytes["read"] == 2 * PAGE
    window = rig.sums(0, 8 * S)
    assert (window["read_bytes"], window["requests"], window["prompt_tokens"]) == (2 * PAGE, 2, 2)
    assert (window["prompt_blocks"], window["hit_blocks"], window["hit_tokens"]) == (2, 2, 2)
    assert rig.sums()["read_bytes"] == 3 * PAGE
    assert rig.loop.counters.requested_read_bytes == 3 * PAGE
    assert rig.stopped_ns == rig.start_ns + 12 * S


def test_what_is_queued_at_the_end_is_read_but_no_latency_of_the_window(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    (first,) = stage.expect("get a")
    rig.advance(6 * S)
    stage.release(first)
    (second,) = stage.expect("get b")
    clock.advance(S)
    stage.release(second)
    rig.finish()
    assert extremes(rig.histogram("read")) == (1, 6 * S, 6 * S, 6 * S)
    assert extremes(rig.histogram("load")) == (1, 7 * S, 7 * S, 7 * S)
    assert extremes(rig.histogram("request")) == (1, 7 * S, 7 * S, 7 * S)
    assert rig.sums(0, 5 * S)["read_bytes"] == rig.sums(0, 5 * S)["requests"] == 0


def test_what_waits_to_be_written_at_the_end_is_left(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a", "b", "c")]]), stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    (first,) = stage.expect("put a")
    rig.advance(6 * S)
    stage.release(first)
    rig.finish()
    assert [str(call) for call in stage.calls] == ["put a"]
    assert rig.index.present_blocks == 1


def test_what_was_not_admitted_by_the_end_never_is(clock: FakeClock, stage: Stage) -> None:
    # User 1 needs room, and the only block that may go is being read by user 0.
    script = Script([[ask(0, "a")], [ask(1, "c", "d")]], population=[ask(0, "a"), ask(1, "c")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=2)
    rig.start(window_ns=5 * S)
    (read,) = stage.expect("get a")
    rig.advance(6 * S)
    stage.release(read)
    stage.release_all()
    rig.finish()
    assert [str(call) for call in stage.calls] == ["get a"]
    counters = rig.loop.counters
    assert (counters.offered, counters.completed, counters.backlog) == (2, 0, 2)


def test_an_object_that_is_half_written_at_the_end_is_finished(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b")]])
    rig = Rig(script, stage, clock=clock, queue_depth=1, stored_bytes=3 * PAGE)
    rig.start(window_ns=5 * S)
    (first,) = stage.expect("put a")
    rig.advance(6 * S)
    stage.release(first)
    stage.release_all()
    rig.finish()
    assert [str(call) for call in stage.calls] == ["put a", "put a @4096", "put a @8192"]
    assert extremes(rig.histogram("write")) == (1, 6 * S, 6 * S, 6 * S)


def test_every_offered_request_is_completed_dropped_or_backlog(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a"), ask(0, "a")], [ask(1, "a")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    (call,) = stage.expect("get a")
    stage.release(call)
    assert len(stage.calls) > 1
    rig.advance(6 * S)
    stage.release_all()
    rig.finish()
    counters = rig.loop.counters
    assert counters.offered == 3
    assert counters.backlog == 2
    assert counters.offered == counters.completed + counters.dropped + counters.backlog


def test_queue_and_service_times_add_up_to_the_load_time(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    (first,) = stage.expect("get a")
    clock.advance(2 * S)
    stage.release(first)
    (second,) = stage.expect("get b")
    clock.advance(3 * S)
    stage.release(second)
    rig.finish()
    assert extremes(rig.histogram("read")) == (2, 2 * S, 3 * S, 5 * S)
    assert extremes(rig.histogram("queue")) == (2, 0, 2 * S, 2 * S)
    assert extremes(rig.histogram("load")) == (1, 5 * S, 5 * S, 5 * S)


def test_load_time_lasts_until_the_last_byte_of_any_read(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, queue_depth=2)
    rig.start()
    first, second = stage.expect("get a", "get b")
    clock.advance(2 * S)
    stage.release(second)
    assert rig.loop.counters.requested_read_bytes
    clock.advance(5 * S)
    stage.release(first)
    rig.finish()
    assert extremes(rig.histogram("read")) == (2, 2 * S, 7 * S, 9 * S)
    assert extremes(rig.histogram("load")) == (1, 7 * S, 7 * S, 7 * S)


def test_the_last_byte_counts_and_not_the_last_check(clock: FakeClock, stage: Stage) -> None:
    # Both end at once; what the first check takes is no time of the storage.
    class Slow(Payload):
        def verify(self, *_args: object, **_settings: object) -> None:
            clock.advance(10 * S)

        def difference(self, *_args: object, **_settings: object) -> None:
            """The first one is checked byte by byte."""

    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, payload=Slow(1, PAGE), queue_depth=2, verify="sample")
    rig.start()
    first, second = stage.expect("get a", "get b")
    clock.advance(2 * S)
    stage.release(first, second)
    rig.finish()
    assert clock() > rig.start_ns + 20 * S
    assert extremes(rig.histogram("read")) == (2, 2 * S, 2 * S, 4 * S)
    assert extremes(rig.histogram("load")) == (1, 2 * S, 2 * S, 2 * S)


def test_a_request_that_waits_for_a_block_of_another_one_is_loading_from_its_issue(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")], [ask(1, "a")]]), stage, clock=clock)
    rig.start()
    (put,) = stage.expect("put a")
    clock.advance(3 * S)
    stage.release(put)
    (get,) = stage.expect("get a")
    clock.advance(2 * S)
    stage.release(get)
    rig.finish()
    assert extremes(rig.histogram("load")) == (1, 2 * S, 2 * S, 2 * S)
    assert extremes(rig.histogram("request")) == (2, 0, 5 * S, 5 * S)


def test_hits_of_a_partial_last_block_count_its_true_tokens() -> None:
    full, partial = ask(0, "a", "b", prompt_tokens=8), ask(0, "a", "b", prompt_tokens=7)
    backend = Bookkeeper()
    backend.prepare(PAGE)
    rig = Rig(
        Script([[partial, full, partial]]),
        backend,
        payload=Payload(1, PAGE),
        block_tokens=4,
    )
    rig.run()
    sums = rig.sums()
    assert (sums["hit_blocks"], sums["hit_tokens"], sums["arrived_tokens"]) == (4, 15, 22)


def test_a_request_without_hits_has_no_load_time_but_a_response(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock)
    rig.start()
    stage.release(*stage.expect("put a"))
    rig.finish()
    assert rig.histogram("load").count == 0
    assert rig.histogram("request").count == 1
    assert rig.sums()["prompt_blocks"] == 1


def test_generation_comes_after_the_load_and_before_the_stores(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", output=["b", "c"])]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, generation_s_per_token=4.0)
    rig.start()
    (read,) = stage.expect("get a")
    clock.advance(S)
    stage.release(read)
    assert stage.pending == []
    rig.advance(8 * S)
    writes = stage.expect("put b", "put c")
    clock.advance(S)
    stage.release(*writes)
    rig.finish()
    assert extremes(rig.histogram("load")) == (1, S, S, S)
    assert extremes(rig.histogram("request")) == (1, 9 * S, 9 * S, 9 * S)


def test_a_generation_that_runs_at_the_end_of_the_window_is_waited_for(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", output=["b"])]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, generation_s_per_token=8.0)
    rig.start(window_ns=5 * S)
    stage.release(*stage.expect("get a"))
    rig.advance(6 * S)
    rig.advance(2 * S)
    rig.finish()
    assert extremes(rig.histogram("request")) == (1, 8 * S, 8 * S, 8 * S)
    assert stage.pending == []
