"""Operations in batches: what one request reads, or writes, begins and ends together."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.buffers import Workers
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.cache.index import Admission
from pytest_kvcache.engine.batches import BatchDispatcher
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.measure.recorder import DELETE, READ, WRITE, Recorder
from tests.factories import FakeClock, Script, ask, key_of
from tests.rig import Rig, Shuffled, Stage, index_of, settings_of

if TYPE_CHECKING:
    from pytest_kvcache.engine.operations import Operation
    from pytest_kvcache.ioengines.protocol import Completion


def rig_of(script: Script, stage: Stage, clock: FakeClock, most: int = 8, **changes: Any) -> Rig:
    workers = Workers.of_batches(most, None)
    return Rig(script, stage, clock=clock, queue_depth=2 * most, workers=workers, **changes)


def two_users(*names: str) -> Script:
    """The first has and asks for the blocks before `|`, the second for those after it."""
    cut = names.index("|")
    asked = [ask(0, *names[:cut]), ask(1, *names[cut + 1 :])]
    return Script([[request] for request in asked], population=asked)


def test_all_that_a_request_reads_begins_together_and_another_one_waits(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(two_users("a", "b", "c", "|", "d", "e"), stage, clock)
    rig.start()
    first, *others = stage.expect("get a", "get b", "get c")
    stage.release(*others)
    stage.expect("get a")
    stage.release(first)
    stage.release(*stage.expect("get d", "get e"))
    rig.finish()


def test_a_batch_has_no_more_objects_than_its_most(clock: FakeClock, stage: Stage) -> None:
    rig = rig_of(two_users("a", "b", "c", "|", "d"), stage, clock, most=2)
    rig.start()
    for names in (["get a", "get b"], ["get c"], ["get d"]):
        stage.release(*stage.expect(*names))
    rig.finish()


def test_the_objects_of_a_block_are_in_one_batch(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = rig_of(script, stage, clock, objects_per_block=2)
    rig.start()
    assert len(stage.pending) == 4
    stage.release_all()
    rig.finish()


def test_there_is_a_batch_of_reads_and_one_of_writes(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "x", "y")], [ask(1, "a", "b")], [ask(2, "z")]]
    rig = rig_of(Script(turns, population=[ask(1, "a", "b")]), stage, clock)
    rig.start()
    reads, writes = slice(2), slice(2, None)
    found = stage.expect("get a", "get b", "put x", "put y")
    stage.release(*found[reads])
    stage.expect("put x", "put y")
    stage.release(*found[writes])
    stage.release(*stage.expect("put z"))
    rig.finish()


def test_deletes_are_a_batch_of_their_own_before_the_writes(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "x", "y")]], population=[ask(1, "u", "v")])
    rig = rig_of(script, stage, clock, capacity_blocks=2)
    rig.start()
    stage.release(*stage.expect("delete u", "delete v"))
    stage.release(*stage.expect("put x", "put y"))
    rig.finish()


def test_the_next_batch_begins_before_the_last_one_is_checked(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(two_users("a", "b", "|", "c"), stage, clock, most=2)
    begun: list[list[str]] = []
    end = Dispatcher._end

    def looked(self: Dispatcher, completion: Completion) -> None:
        begun.append([str(call) for call in stage.pending])
        end(self, completion)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "_end", looked)
        rig.start()
        begun.clear()
        stage.release(*stage.expect("get a", "get b"))
        stage.release(*stage.expect("get c"))
        rig.finish()
    assert begun == [["get c"], ["get c"], []]


def test_a_batch_waits_for_buffers_for_all_of_it(clock: FakeClock, stage: Stage) -> None:
    rig = rig_of(two_users("a", "b", "|", "c", "d"), stage, clock, most=2)
    dispatcher = rig.loop.blocks.dispatchers[0]
    rig.start()
    taken = [dispatcher._free_reads.pop() for _ in range(len(dispatcher._free_reads) - 1)]
    stage.release(stage.expect("get a", "get b")[0])
    assert len(dispatcher._free_reads) < 3
    stage.expect("get b")
    dispatcher._free_reads += taken
    stage.release(*stage.expect("get b"))
    stage.release(*stage.expect("get c", "get d"))
    rig.finish()


def test_so_many_requests_are_read_at_a_time_as_far_as_there_are_workers(
    clock: FakeClock, stage: Stage
) -> None:
    asked = [ask(0, "a", "b"), ask(1, "c"), ask(2, "d"), ask(3, "e")]
    workers = replace(Workers.of_batches(6, None), read_batches=3)
    script = Script([[request] for request in asked], population=asked)
    rig = Rig(script, stage, clock=clock, queue_depth=12, workers=workers)
    rig.start()
    first, second, third, fourth = stage.expect("get a", "get b", "get c", "get d")
    stage.release(first, third)
    stage.release(second, fourth, *stage.expect("get b", "get d", "get e")[2:])
    rig.finish()
    assert rig.loop.counters.completed == 4


def test_a_batch_that_has_not_begun_when_the_time_is_over_does_not(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(Script([[ask(0, "a", "b")], [ask(1, "c")]]), stage, clock)
    rig.start(window_ns=10, drain_s=0.0)
    begun = stage.expect("put a", "put b")
    clock.advance(20)
    stage.wake()
    stage.release(*begun)
    rig.finish()
    assert [str(call) for call in stage.calls] == ["put a", "put b"]


@given(
    jobs=st.lists(st.tuples(st.sampled_from([READ, WRITE, DELETE]), st.integers(1, 7)), max_size=6),
    most=st.integers(1, 5),
    batches=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_every_operation_is_done_once_and_a_kind_has_so_many_batches_under_way(
    jobs: list[tuple[int, int]], most: int, batches: int, seed: int
) -> None:
    done: list[Operation] = []
    workers = replace(Workers.of_batches(most, None), read_batches=batches)
    settings = settings_of(queue_depth=2 * most, workers=workers)
    io = Shuffled(NullBackend(), 2 * most, random.Random(seed))
    dispatcher = BatchDispatcher(
        settings=settings, io=io, payload=None, log=Recorder().log, on_complete=done.append
    )
    asked = []
    for owner, (kind, count) in enumerate(jobs):
        asked += [[key_of(f"{owner} {number}") for number in range(count)]]
        admission = index_of(None, settings).admit(asked[-1], 0, settings.object_bytes)
        assert isinstance(admission, Admission)
        dispatcher.submit(kind, admission.inserts, owner)
    while dispatcher.busy:
        dispatcher.turn(0)
        slots = [item[0] for item in (*io._staged, *io._begun)] + [item[0] for item in io._made]
        held = [dispatcher._at(slot) for slot in slots]
        for kinds, at_once in (([READ], batches), ([WRITE, DELETE], 1)):
            of_kind = [op for op in held if op.kind in kinds]
            assert len({op.owner for op in of_kind}) <= at_once
            assert len(of_kind) <= most
    keys = [[op.entry.key for op in done if op.owner == owner] for owner in range(len(jobs))]
    assert [sorted(of_job) for of_job in keys] == [sorted(of_job) for of_job in asked]
    assert dispatcher._idle == dispatcher._most
    assert not any(dispatcher._under_way.values())
