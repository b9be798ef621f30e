"""Operations as engines make them: by so many workers, a request's one after the other."""

from __future__ import annotations

import random
from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.buffers import Workers
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.cache.index import Admission
from pytest_kvcache.engine.batches import make_dispatcher
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.jobs import JobDispatcher
from pytest_kvcache.measure.recorder import DELETE, READ, WRITE, Recorder
from tests.factories import FakeClock, Script, ask, key_of
from tests.rig import Rig, Shuffled, Stage, index_of, settings_of

if TYPE_CHECKING:
    from pytest_kvcache.engine.operations import Operation
    from pytest_kvcache.ioengines.protocol import Completion

ALONE = Workers(readers=1, writers=1, lanes=1)


def stored(*names: str) -> Script:
    """One user that has these blocks, and asks for them again."""
    return Script([[ask(0, *names)]], population=[ask(0, *names)])


def test_objects_of_one_request_are_read_one_after_the_other(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(stored("a", "b", "c"), stage, clock=clock, queue_depth=4,
              workers=Workers.of_all(4, 1))  # fmt: skip
    rig.start()
    for name in ("get a", "get b", "get c"):
        stage.release(*stage.expect(name))
    rig.finish()


def test_as_many_objects_of_a_request_are_under_way_as_it_has_lanes(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(stored("a", "b", "c", "d"), stage, clock=clock, queue_depth=4,
              workers=Workers.of_all(4, 2))  # fmt: skip
    rig.start()
    first, second = stage.expect("get a", "get b")
    stage.release(second)
    stage.expect("get a", "get c")
    stage.release(first)
    stage.release(*stage.expect("get c", "get d"))
    rig.finish()


def test_tiles_begin_at_equal_parts_of_a_request(clock: FakeClock, stage: Stage) -> None:
    names = "abcdefg"
    rig = Rig(stored(*names), stage, clock=clock, queue_depth=3,
              workers=Workers.of_all(3, 3, tiles=True))  # fmt: skip
    rig.start()
    of_first, of_second, _of_third = stage.expect("get a", "get c", "get e")
    stage.release(of_second)
    stage.expect("get a", "get d", "get e")
    stage.release(of_first)
    stage.expect("get b", "get d", "get e")
    stage.release_all()
    rig.finish()


def test_a_worker_ends_one_request_before_it_begins_another(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "a", "b")], [ask(1, "c", "d")]]
    population = [ask(0, "a", "b"), ask(1, "c", "d")]
    rig = Rig(Script(turns, population=population), stage, clock=clock, workers=ALONE)
    rig.start()
    for name in ("get a", "get b", "get c", "get d"):
        stage.release(*stage.expect(name))
    rig.finish()


def test_reads_and_writes_have_workers_of_their_own(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "x", "y")], [ask(1, "a", "b")]]
    rig = Rig(Script(turns, population=[ask(1, "a", "b")]), stage, clock=clock, workers=ALONE)
    rig.start()
    write, read = stage.expect("put x", "get a")
    stage.release(write)
    stage.expect("put y", "get a")
    stage.release(read)
    stage.release(*stage.expect("put y", "get b"))
    rig.finish()


def test_what_a_stop_finds_waiting_behind_an_object_is_not_begun(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a", "b", "c")]]), stage, clock=clock, workers=ALONE)
    rig.start(window_ns=10, drain_s=0.0)
    (first,) = stage.expect("put a")
    clock.advance(20)
    stage.wake()
    stage.release(first)
    rig.finish()
    assert [str(call) for call in stage.calls] == ["put a"]


def test_a_stop_lets_no_more_of_a_request_be_under_way(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(stored("a", "b", "c"), stage, clock=clock, queue_depth=4,
              workers=Workers.of_all(4, 1))  # fmt: skip
    rig.start(window_ns=10)
    (first,) = stage.expect("get a")
    clock.advance(20)
    stage.wake()
    stage.expect("get a")
    stage.release(first)
    for name in ("get b", "get c"):  # what loads when the window ends is finished
        stage.release(*stage.expect(name))
    rig.finish()
    assert rig.recorder.histograms["load"].count == 1


def test_workers_have_a_buffer_each_and_readers_spare_ones_for_what_is_checked() -> None:
    workers = Workers(readers=2, writers=1, lanes=1)
    assert settings_of(queue_depth=3, workers=workers).slot_counts == (4, 1)


def test_deletes_are_the_writers_work(clock: FakeClock, stage: Stage) -> None:
    script = Script(
        [[ask(0, "x", "y")], [ask(1, "a", "b")]], population=[ask(0, "u", "v"), ask(1, "a", "b")]
    )
    rig = Rig(script, stage, clock=clock, capacity_blocks=4, workers=ALONE)
    rig.start()
    stage.release(stage.expect("delete v", "get a")[1])
    delete, _read = stage.expect("delete v", "get b")
    stage.release(delete)
    stage.expect("delete u", "get b")
    stage.release_all()
    rig.finish()


def test_writes_that_are_synced_end(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a", "b")]]), stage, clock=clock, workers=ALONE, sync=True)
    rig.start()
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("put b"))
    rig.finish()
    assert stage.synced == ["a", "b"]


def test_the_next_object_is_begun_before_the_last_one_is_checked(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(stored("a", "b"), stage, clock=clock, workers=ALONE)
    dispatcher = rig.loop.blocks.dispatchers[0]
    begun: list[list[str]] = []
    end = Dispatcher._end

    def looked(self: Dispatcher, completion: Completion) -> None:
        begun.append([str(call) for call in stage.pending])
        end(self, completion)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "_end", looked)
        rig.start()
        begun.clear()
        for name in ("get a", "get b"):
            stage.release(*stage.expect(name))
        rig.finish()
    assert isinstance(dispatcher, JobDispatcher)
    assert begun == [["get b"], []]


@pytest.mark.parametrize("workers", [None, ALONE])
def test_only_workers_have_a_dispatcher_of_jobs(workers: Workers | None) -> None:
    made = make_dispatcher(
        settings=settings_of(workers=workers), io=Shuffled(NullBackend(), 2, random.Random(0)),
        payload=None, log=Recorder().log, on_complete=print,
    )  # fmt: skip
    assert isinstance(made, JobDispatcher) == (workers is not None)


@given(
    jobs=st.lists(st.tuples(st.sampled_from([READ, WRITE, DELETE]), st.integers(1, 7)), max_size=6),
    workers=st.builds(
        Workers.of_all, st.integers(1, 4), st.none() | st.integers(1, 4), tiles=st.booleans()
    ),
    seed=st.integers(0, 1000),
)
def test_every_operation_is_done_once_and_no_job_has_more_under_way_than_lanes(
    jobs: list[tuple[int, int]], workers: Workers, seed: int
) -> None:
    done: list[Operation] = []
    settings = settings_of(queue_depth=workers.readers, workers=workers)
    io = Shuffled(NullBackend(), workers.readers, random.Random(seed))
    dispatcher = JobDispatcher(
        settings=settings, io=io, payload=None, log=Recorder().log, on_complete=done.append
    )
    asked = []
    for owner, (kind, count) in enumerate(jobs):
        asked += [[key_of(f"{owner} {number}") for number in range(count)]]
        admission = index_of(None, settings).admit(asked[-1], 0, settings.object_bytes)
        assert isinstance(admission, Admission)
        dispatcher.submit(kind, admission.inserts, owner)
    most = Counter[object]()
    while dispatcher.busy:
        dispatcher.turn(0)
        most |= Counter(
            op.owner
            for op in dispatcher._operations
            if op is not None and op not in done and op.kind != DELETE
        )
    keys = [[op.entry.key for op in done if op.owner == owner] for owner in range(len(jobs))]
    assert [sorted(of_job) for of_job in keys] == [sorted(of_job) for of_job in asked]
    if workers.lanes is not None:
        assert max(most.values(), default=0) <= workers.lanes
    if workers.lanes == 1:
        moved = [kind != DELETE for kind, _count in jobs]
        assert [*compress(keys, moved)] == [*compress(asked, moved)]
