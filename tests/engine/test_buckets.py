"""A loop whose storage packs blocks into buckets: what waits in memory, what is written when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.buffers import Workers
from tests.factories import HOST, S, Script, ask
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from tests.factories import FakeClock


def rig_of(script: Script, stage: Stage, clock: FakeClock, **changes: Any) -> Rig:
    values: dict[str, Any] = {"bucket_blocks": 2, "capacity_blocks": 4, "most_stores": 8}
    values |= changes
    readers = values.pop("readers", 1)
    workers = replace(
        Workers.of_batches(values["bucket_blocks"], None), lanes=1, read_batches=readers, packs=True
    )
    return Rig(
        script, stage, clock=clock, queue_depth=2 * values["bucket_blocks"], workers=workers,
        **values,
    )  # fmt: skip


def staged(rig: Rig) -> int:
    return rig.recorder.ledger.sums(0, rig.recorder.ledger.end_ns)["staged_hit_blocks"]


def test_nothing_is_written_before_a_bucket_is_full_and_then_all_of_it(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [ask(0, "a"), ask(0, "b"), ask(0, "c")]
    rig = rig_of(Script([turns]), stage, clock)
    rig.start()
    stage.release(*stage.expect("put a", "put b"))
    rig.finish()
    assert len(stage.calls) == 2  # c is in memory to the end
    assert rig.loop.counters.completed == 3
    assert (rig.index.present_blocks, rig.index.used_blocks) == (2, 2)


def test_a_bucket_is_one_call_and_each_object_takes_as_long_as_that(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(Script([[ask(0, "a"), ask(0, "b")]]), stage, clock)
    rig.start()
    puts = stage.expect("put a", "put b")
    clock.advance(S)
    stage.release(*puts)
    rig.finish()
    recorder = rig.recorder
    write, device = recorder.histograms["write"], recorder.histograms["device"]
    assert (write.count, device.count) == (2, 1)
    assert recorder.section_bytes["device"] == recorder.section_bytes["write"]
    assert recorder.in_flight_ns == S


def test_what_is_in_memory_is_a_hit_and_nothing_is_read_of_it(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [ask(0, "a"), ask(0, "a", "b"), ask(0, "a", "b", "c")]
    rig = rig_of(Script([turns]), stage, clock)
    rig.start()
    puts = stage.expect("put a", "put b")  # the third has hit both while they are written
    assert rig.loop.counters.completed == 3
    stage.release(*puts)
    rig.finish()
    assert rig.index.hit_blocks == staged(rig) == 3
    assert rig.recorder.histograms["load"].count == 0


def test_what_is_written_is_read(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a", "b", "c")]], population=[ask(0, "a", "b", "c")])
    rig = rig_of(script, stage, clock)
    rig.start()
    stage.release(*stage.expect("get a", "get b"))
    rig.finish()
    assert (rig.index.hit_blocks, staged(rig)) == (3, 1)


def test_a_long_request_leaves_buffers_for_those_that_are_read_beside_it(
    clock: FakeClock, stage: Stage
) -> None:
    asked = [ask(0, "a", "b", "c", "d"), ask(1, "e", "f", "g", "h")]
    script = Script([[request] for request in asked], population=asked)
    rig = rig_of(script, stage, clock, bucket_blocks=4, capacity_blocks=8, readers=2)
    rig.start()
    stage.release(*stage.expect("get a", "get b", "get e", "get f")[:2])
    stage.release(*stage.expect("get c", "get d", "get e", "get f"))
    stage.release(*stage.expect("get g", "get h"))
    rig.finish()


def test_a_request_is_read_by_one_reader_and_keeps_it(clock: FakeClock, stage: Stage) -> None:
    asked = [ask(0, "a", "b", "c", "d"), ask(1, "e"), ask(2, "f", "g", "h")]
    script = Script([[request] for request in asked], population=asked)
    rig = rig_of(script, stage, clock, bucket_blocks=4, capacity_blocks=8, readers=2)
    rig.start()
    first, second, *_ = stage.expect("get a", "get b", "get e")
    stage.release(first)
    stage.expect("get b", "get e")  # though there are buffers for more of it
    stage.release(second)
    stage.release(*stage.expect("get c", "get d", "get e")[2:])
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.completed == 3


def test_what_a_reader_has_left_when_the_time_is_over_is_not_read(
    clock: FakeClock, stage: Stage
) -> None:
    asked = [ask(0, "a", "b", "c", "d")]
    script = Script([asked], population=asked)
    rig = rig_of(script, stage, clock, bucket_blocks=4, readers=2)
    rig.start(window_ns=10, drain_s=0.0)
    begun = stage.expect("get a", "get b")
    clock.advance(20)
    stage.wake()
    stage.release(*begun)
    rig.finish()
    assert [str(call) for call in stage.calls] == ["get a", "get b"]
    assert rig.recorder.censored["load"] == 1


def test_a_bucket_makes_room_by_one_delete_before_it_is_written(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "x", "y")]], population=[ask(0, "a", "b"), ask(1, "c", "d")])
    rig = rig_of(script, stage, clock)
    rig.start()
    stage.release(*stage.expect("delete a"))
    stage.release(*stage.expect("put x", "put y"))
    rig.finish()
    assert rig.index.evictions == 2
    assert rig.recorder.histograms["delete"].count == 1


def test_hits_of_a_bucket_that_has_to_go_are_read_before_it_does(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "x", "y")]], population=[ask(0, "a", "b"), ask(1, "c", "d")])
    rig = rig_of(script, stage, clock)
    rig.start()
    stage.release(*stage.expect("get a"))
    stage.release(*stage.expect("delete a"))
    stage.release(*stage.expect("put x", "put y"))
    rig.finish()


def test_a_bucket_waits_for_data_that_another_request_has_not_got_yet(
    clock: FakeClock, stage: Stage
) -> None:
    slow, quick = ask(0, "x", output=["o"], output_tokens=1), ask(1, "y")
    script = Script([[slow], [quick]])
    rig = rig_of(script, stage, clock, generation_s_per_token=1.0, bucket_blocks=3)
    rig.start()
    stage.expect()  # y has filled the bucket; x and o come with the answer
    rig.advance(S)
    stage.release(*stage.expect("put x", "put o", "put y"))
    rig.finish()


def test_who_asks_for_data_that_are_not_there_yet_waits_for_them(
    clock: FakeClock, stage: Stage
) -> None:
    slow, same = ask(0, "x", output_tokens=1), ask(1, "x")
    rig = rig_of(Script([[slow], [same]]), stage, clock, generation_s_per_token=1.0)
    rig.start()
    assert rig.loop.counters.completed == 0
    rig.advance(S)
    rig.finish()
    assert rig.loop.counters.completed == 2
    assert staged(rig) == 1
    assert not stage.calls


def test_users_wait_while_too_much_waits_to_be_written(clock: FakeClock, stage: Stage) -> None:
    turns = [ask(0, f"{number}") for number in range(8)]
    rig = rig_of(Script([turns]), stage, clock, most_stores=3, capacity_blocks=8)
    rig.start()
    assert rig.loop.counters.completed == 4
    stage.release(*stage.expect("put 0", "put 1"))
    stage.release(*stage.expect("put 2", "put 3"))
    stage.release_all()
    rig.finish()
    assert rig.loop.counters.completed == 8


def test_a_bucket_that_can_not_be_written_ends_the_run(clock: FakeClock, stage: Stage) -> None:
    rig = rig_of(Script([[ask(0, "a", "b"), ask(0, "c")]]), stage, clock)
    rig.start()
    stage.release(*stage.expect("put a", "put b"), error="it is full")
    rig.finish()
    assert rig.loop.first_error == f"{HOST}: it is full"
    assert rig.loop.counters.write_failed == 2
    assert rig.index.present_blocks == 0


def test_what_has_not_begun_when_the_time_is_over_is_not_written(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [[ask(0, "a", "b", "c", "d")], [ask(1, "e")]]
    rig = rig_of(Script(turns), stage, clock)
    rig.start(window_ns=10, drain_s=0.0)
    begun = stage.expect("put a", "put b")
    clock.advance(20)
    stage.wake()
    stage.release(*begun)
    rig.finish()
    assert [str(call) for call in stage.calls] == ["put a", "put b"]
    assert (rig.index.present_blocks, rig.index.used_bytes) == (2, 2 * rig.settings.stored_bytes)


def test_requests_that_store_nothing_find_what_there_is(clock: FakeClock, stage: Stage) -> None:
    population = [ask(0, "a", "b", "c")]
    rig = rig_of(
        Script([[ask(0, "a", "b", "c", "d")]], population=population), stage, clock, phase="decode"
    )
    rig.start()
    stage.release(*stage.expect("get a", "get b"))
    rig.finish()
    assert (rig.index.hit_blocks, staged(rig), rig.index.used_blocks) == (3, 1, 2)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_dropped_stores_leave_what_is_in_memory_alone(
    clock: FakeClock, stage: Stage, most: int
) -> None:
    turns = [ask(0, f"{number}") for number in range(8)]
    rig = rig_of(
        Script([turns]), stage, clock, most_stores=most, capacity_blocks=8, drops_stores=True
    )
    rig.start()
    assert rig.loop.counters.completed == 8
    stage.release_all()
    rig.finish()
    kept = most + 1
    assert rig.loop.counters.dropped_blocks == 8 - kept
    assert rig.index.present_blocks == kept // 2 * 2


def test_a_backend_that_moves_objects_one_by_one_has_taken_as_long_as_all_of_a_bucket(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(Script([[ask(0, "a", "b")]]), stage, clock)
    rig.start()
    first, second = stage.expect("put a", "put b")
    clock.advance(S)
    second.at_ns = clock()  # it began when the first one had ended
    stage.release(first)
    clock.advance(S)
    stage.release(second)
    rig.finish()
    assert rig.recorder.in_flight_ns == 2 * S
    assert rig.recorder.histograms["device"].sum_ns == 2 * S
