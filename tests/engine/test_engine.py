from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.engine.payload import ChunkBuffer, Payload
from pytest_kvcache.errors import ResultError, StalledError, StorageError
from pytest_kvcache.measure.recorder import WRITE
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.registry import build_registry
from pytest_kvcache.workloads.replay import ReplayFamily
from tests.factories import (
    HOST,
    PAGE,
    PATIENCE_S,
    Bookkeeper,
    FakeClock,
    Rig,
    S,
    Script,
    Stage,
    Watched,
    ask,
    extremes,
    key_of,
    make_plan,
    make_trace_plan,
    registry_of,
    run_rank,
    tireless_scenarios,
    wait_for,
)
from tests.recordings import MOONCAKE, REFERENCE, SHAREGPT, real_trace, small_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.cache.identity import Identity
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Request, Workload


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stage(clock: FakeClock) -> Iterator[Stage]:
    held = Stage(clock)
    yield held
    held.release_all()


# -- hits of real traces -------------------------------------------------------------------

# Some rows of the reference tables; real ranks replay another one of the long trace.
REPLAYED = [
    (MOONCAKE, 43_924),
    *((SHAREGPT, capacity_blocks) for capacity_blocks in (14, 294, 2_944, 14_722)),
]


def replay_plan(trace: Trace, capacity_blocks: int) -> Plan:
    return make_plan(
        scenario="trace",
        duration_s=None,
        users=100,
        queue_depth=16,
        block_tokens=trace.block_tokens,
        capacity_blocks=capacity_blocks,
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "capacity_blocks"), REPLAYED)
def test_a_real_trace_hits_what_its_reference_says(name: str, capacity_blocks: int) -> None:
    reference, trace = REFERENCE[name], real_trace(name)
    plan = replay_plan(trace, capacity_blocks)
    result = run_rank(plan, build_registry(), trace=trace).result
    assert result.error is None
    assert result.offered == result.completed == reference.requests
    assert result.prompt_blocks == reference.prompt_blocks
    assert result.arrived_tokens == reference.input_tokens
    ratios = {capacity: (blocks, tokens) for capacity, blocks, tokens in reference.lru}
    expected_blocks, expected_tokens = ratios[capacity_blocks]
    assert f"{result.hit_blocks / result.prompt_blocks:.6f}" == expected_blocks
    assert f"{result.hit_tokens / result.arrived_tokens:.6f}" == expected_tokens
    assert result.read_count == result.hit_blocks
    assert result.write_count == result.evictions + capacity_blocks
    assert result.cached_blocks == capacity_blocks
    if capacity_blocks == reference.distinct_blocks:
        assert result.hit_blocks == reference.infinite_hit_blocks
        assert result.hit_tokens == reference.infinite_hit_tokens
        assert result.evictions == 0


# -- what the storage is asked to do -------------------------------------------------------


def literal(requests: Sequence[Request], capacity_blocks: int) -> tuple[int, list[bytes]]:
    """The loop of the traces' README, word by word: hits, and what is left, oldest first."""
    cache: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for request in requests:
        for key in request.keys[: request.prompt_blocks]:
            if key not in cache:
                break
            hits += 1
        for key in reversed(request.keys[:capacity_blocks]):
            if key in cache:
                cache.move_to_end(key)
                continue
            if len(cache) == capacity_blocks:
                cache.popitem(last=False)
            cache[key] = None
    return hits, list(cache)


PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(
    lambda path: ["".join(map(str, path[: i + 1])) for i in range(len(path))]
)


@st.composite
def scripts(draw: st.DrawFn) -> list[list[Request]]:
    """Per user some requests of paths in a small tree; the last blocks may be output."""
    turns = []
    for user in range(draw(st.integers(1, 4))):
        paths = draw(st.lists(PATHS, max_size=6))
        prompts = [draw(st.integers(0, len(path))) for path in paths]
        turns.append(
            [
                ask(user, *path[:prompt], output=path[prompt:])
                for path, prompt in zip(paths, prompts, strict=True)
            ]
        )
    return turns


def stored_objects(rig: Rig, parts: int) -> set[str]:
    """The objects of all blocks that the index calls present."""
    present = [slot.object_key for slot in rig.index._slots.values() if slot.present]
    if parts == 1:
        return set(present)
    return {f"{object_key}.{part}" for object_key in present for part in range(parts)}


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(
    turns=scripts(),
    capacity_blocks=st.integers(1, 6),
    queue_depth=st.integers(1, 4),
    chunks=st.integers(1, 3),
    parts=st.integers(1, 3),
    syncs=st.booleans(),
)
def test_whatever_is_asked_the_storage_is_never_abused(
    turns: list[list[Request]],
    capacity_blocks: int,
    queue_depth: int,
    chunks: int,
    parts: int,
    *,
    syncs: bool,
) -> None:
    backend, workload = Bookkeeper(limit=capacity_blocks * parts), Watched(Script(turns))
    stored_bytes, object_bytes = chunks * PAGE, chunks * PAGE - 1
    backend.prepare(stored_bytes, syncs=syncs)
    rig = Rig(
        workload,
        backend,
        clock=time.monotonic_ns,
        capacity_blocks=capacity_blocks,
        payload=Payload(1, PAGE),
        queue_depth=queue_depth,
        stored_bytes=stored_bytes,
        object_bytes=object_bytes,
        objects_per_block=parts,
        sync=syncs,
        verify="full",
    )
    rig.run()
    assert rig.engine.first_error is None
    assert backend.breaches == []
    hit_blocks, content = literal(workload.order, capacity_blocks)
    assert list(rig.index._slots) == content
    assert set(backend.objects) == stored_objects(rig, parts)
    hits, evictions = hit_blocks * parts, rig.index.evictions * parts
    writes = len(content) * parts + evictions
    assert [backend.counts[name] for name in ("get", "put", "delete", "sync")] == [
        hits * chunks,
        writes * chunks,
        evictions,
        writes * syncs,
    ]
    sums, counters = rig.sums(), rig.engine.counters
    assert sums["hit_blocks"] == hit_blocks
    assert (rig.histogram("read").count, rig.histogram("write").count) == (hits, writes)
    assert rig.histogram("device").count == (hits + writes) * chunks
    assert (sums["read_bytes"], sums["write_bytes"]) == (hits * object_bytes, writes * object_bytes)
    assert (counters.requested_read_bytes, counters.requested_write_bytes) == (
        hits * stored_bytes,
        writes * stored_bytes,
    )
    assert (rig.engine.pool.checked, rig.engine.pool.corrupt) == (hits * chunks, 0)
    assert counters.offered == counters.completed == len(workload.order) == sums["requests"]
    assert (counters.backlog, counters.dropped, counters.read_failed) == (0, 0, 0)


def test_a_cache_much_smaller_than_its_users_is_never_overfilled() -> None:
    backend = Bookkeeper(limit=60)
    plan = make_plan(users=40, queue_depth=8, capacity_blocks=60, backend="memory", duration_s=None)
    registry = registry_of(backends={"memory": lambda: backend}, workloads=tireless_scenarios(5))
    result = run_rank(plan, registry).result
    assert result.error is None
    assert backend.breaches == []
    assert result.evictions > 60
    assert backend.most_objects <= 60
    assert (result.read_failed, result.write_failed, result.corrupt) == (0, 0, 0)


def test_victims_are_deleted_before_anything_is_written(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "c", "d")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=2)
    rig.start()
    first, second = stage.expect("delete a", "delete b")
    stage.release(first)
    stage.expect("delete b")
    stage.release(second)
    stage.release(*stage.expect("put c", "put d"))
    rig.finish()


def test_a_block_is_read_only_when_its_last_chunk_is_written(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")], [ask(1, "a")]])
    rig = Rig(script, stage, clock=clock, stored_bytes=2 * PAGE)
    rig.start()
    first, second = stage.expect("put a", "put a @4096")
    stage.release(second)
    stage.expect("put a")
    stage.release(first)
    stage.release(*stage.expect("get a", "get a @4096"))
    rig.finish()
    assert [str(call) for call in stage.calls[2:]] == ["get a", "get a @4096"]
    assert rig.index.hit_blocks == 1


def test_a_block_in_layers_is_read_only_when_the_last_of_them_is_written(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")], [ask(1, "a")]])
    rig = Rig(script, stage, clock=clock, queue_depth=3, objects_per_block=3)
    rig.start()
    calls = stage.expect("put a/0", "put a/1", "put a/2")
    stage.release(calls[2], calls[0])
    (slot,) = rig.index._slots.values()
    wait_for(lambda: slot.unwritten == 1)
    stage.expect("put a/1")
    clock.advance(S)
    stage.release(calls[1])
    stage.release(*stage.expect("get a/0", "get a/1", "get a/2"))
    rig.finish()
    assert rig.index.hit_blocks == 1
    assert (rig.histogram("write").count, rig.histogram("read").count) == (3, 3)
    assert rig.histogram("load").count == 1
    assert rig.sums()["write_bytes"] == 3 * PAGE
    write = rig.histogram("write")
    assert (write.min_ns, write.max_ns) == (0, S)  # of an object, not of the block


def test_all_layers_of_a_victim_are_deleted_before_anything_is_written(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1, objects_per_block=2)
    rig.start()
    first, second = stage.expect("delete a/0", "delete a/1")
    stage.release(second)
    stage.expect("delete a/0")
    stage.release(first)
    stage.release(*stage.expect("put b/0", "put b/1"))
    rig.finish()


def test_a_block_that_lost_a_layer_is_no_hit(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock, queue_depth=3, objects_per_block=3)
    rig.start()
    first, second, third = stage.expect("put a/0", "put a/1", "put a/2")
    stage.release(first)
    stage.release(second, error="no space left")
    stage.release(third)
    rig.finish()
    assert rig.index.present_blocks == rig.index.used_blocks == 0
    assert rig.engine.counters.write_failed == 1
    assert rig.histogram("write").count == 2
    assert rig.engine.first_error is not None
    assert "no space left" in rig.engine.first_error


def test_a_layer_that_can_not_be_read_makes_its_request_have_no_load(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, queue_depth=3, objects_per_block=3)
    rig.start()
    first, second, third = stage.expect("get a/0", "get a/1", "get a/2")
    stage.release(first, third)
    stage.release(second, error="a read error")
    rig.finish()
    assert rig.engine.counters.read_failed == 1
    assert (rig.histogram("read").count, rig.histogram("load").count) == (2, 0)
    assert rig.index.present_blocks == 0


def test_a_block_that_two_requests_lack_is_stored_once(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a")], [ask(1, "a", "b")]]), stage, clock=clock)
    rig.start()
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("get a"))
    stage.release(*stage.expect("put b"))
    rig.finish()
    assert rig.index.hit_blocks == 1


def test_a_block_that_is_read_is_no_victim(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a")], [ask(1, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1)
    rig.start()
    stage.release(*stage.expect("get a"))
    stage.release(*stage.expect("delete a"))
    stage.release(*stage.expect("put b"))
    rig.finish()


# -- failures ------------------------------------------------------------------------------


class Spoiler(Bookkeeper):
    """Reads block ``victim`` wrongly, in one of many ways."""

    def __init__(self, how: str, victim: str) -> None:
        super().__init__()
        self._how = how
        self._victim = key_of(victim).hex()

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        if not key.startswith(self._victim):
            super().get_into(key, offset, buffer)
        elif self._how == "flipped bit":
            super().get_into(key, offset, buffer)
            buffer[len(buffer) // 2] ^= 1
        elif self._how == "other object":
            other = next(name for name in self.objects if not name.startswith(self._victim))
            super().get_into(other, offset, buffer)
        elif self._how == "other page":
            super().get_into(key, PAGE - offset, buffer)
        elif self._how == "zeros":
            buffer[:] = bytes(len(buffer))
        elif self._how == "short":
            raise StorageError(f"{HOST}: short read of {key}: wanted {PAGE} bytes, got 1")
        else:
            assert self._how == "nothing"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped bit", "differs in 1 bytes"),
        ("other object", "has the stamp of page"),
        ("other page", "has the stamp of page"),
        ("zeros", "it is zero"),
        ("short", "short read"),
        ("nothing", "was not read"),
    ],
)
def test_a_wrong_read_is_a_failure_and_nothing_else(how: str, message: str) -> None:
    good, wrong = ask(0, "a", "b", "c"), ask(0, "a", "x", "c")
    script = Script([[good, wrong]], population=[good, ask(0, "x")])
    backend = Spoiler(how, "x")
    backend.prepare(2 * PAGE)
    rig = Rig(
        script,
        backend,
        clock=time.monotonic_ns,
        payload=Payload(1, PAGE),
        queue_depth=1,
        stored_bytes=2 * PAGE,
        object_bytes=2 * PAGE,
        verify="full",
    )
    rig.run()
    counters, sums = rig.engine.counters, rig.sums()
    assert rig.engine.first_error is not None
    assert message in rig.engine.first_error
    assert counters.read_failed == 1
    assert rig.engine.pool.corrupt == (0 if how == "short" else 2)
    assert key_of("x") not in rig.index._slots
    # Of the first request all reads count, of the second one the two right ones.
    assert rig.histogram("read").count == 5
    assert rig.recorder.section_bytes["read"] == sums["read_bytes"] == 5 * 2 * PAGE
    assert counters.requested_read_bytes == 5 * 2 * PAGE
    assert rig.histogram("load").count == rig.histogram("request").count == 1
    assert (sums["requests"], sums["prompt_blocks"], sums["hit_blocks"]) == (1, 3, 3)
    assert (sums["prompt_tokens"], sums["arrived_tokens"], sums["hit_tokens"]) == (3, 3, 3)
    assert counters.completed == 1


def test_a_failure_ends_the_run_early() -> None:
    endless = [ask(0, "a")] * 1_000_000
    backend = Spoiler("zeros", "x")
    backend.prepare(PAGE)
    script = Script([endless, [ask(1, "x")]], population=[ask(0, "a"), ask(1, "x")])
    rig = Rig(
        script,
        backend,
        clock=time.monotonic_ns,
        payload=Payload(1, PAGE),
        verify="full",
    )
    rig.run(window_ns=60 * S)
    assert rig.engine.first_error is not None
    assert rig.stopped_ns < rig.start_ns + 60 * S
    assert script.asked[0] < 1_000_000


def test_a_failed_write_is_a_failure_and_nothing_else(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a", "b")]]), stage, clock=clock)
    rig.start()
    bad, good = stage.expect("put a", "put b")
    clock.advance(S)
    stage.release(good)
    stage.release(bad, error="can't write")
    rig.finish()
    counters, sums = rig.engine.counters, rig.sums()
    assert rig.engine.first_error == f"{HOST}: can't write"
    assert (counters.write_failed, counters.requested_write_bytes) == (1, PAGE)
    assert extremes(rig.histogram("write")) == (1, S, S, S)
    assert rig.histogram("device").count == 1
    assert sums["write_bytes"] == rig.recorder.section_bytes["write"] == PAGE
    assert [slot.key for slot in rig.index._slots.values()] == [key_of("b")]


def test_a_failed_chunk_fails_its_object_once(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock, stored_bytes=2 * PAGE, sync=True)
    rig.start()
    bad, good = stage.expect("put a", "put a @4096")
    stage.release(bad, error="can't write")
    stage.release(good)
    rig.finish()
    assert rig.engine.counters.write_failed == 1
    assert rig.histogram("write").count == 0
    assert rig.index.used_blocks == 0


@pytest.mark.parametrize("kind", ["put", "get", "delete"])
def test_nothing_is_stored_in_the_room_of_what_could_not_be_stored_read_or_deleted(
    clock: FakeClock, stage: Stage, kind: str
) -> None:
    # Its object, or a part of it, is still there: one more would be beyond the capacity.
    full = [ask(0, "a")]
    turns = {
        "put": [[ask(0, "a")], [ask(1, "b")]],
        "get": [[ask(0, "a")], [ask(1, "b")]],
        "delete": [[ask(0, "b")]],
    }
    script = Script(turns[kind], population=[] if kind == "put" else full)
    rig = Rig(script, stage, clock=clock, capacity_blocks=1, queue_depth=1)
    rig.start()
    stage.release(*stage.expect(f"{kind} a"), error="it failed")
    wait_for(lambda: rig.engine._stopping)
    stage.release_all()
    rig.finish()
    assert rig.engine.first_error == f"{HOST}: it failed"
    assert [str(call) for call in stage.calls if call.kind == WRITE and call.name == "b"] == []
    assert key_of("b") not in rig.index._slots or kind == "delete"


def test_a_failed_delete_is_the_runs_error(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1)
    rig.start()
    stage.release(*stage.expect("delete a"), error="it failed")
    stage.release_all()
    rig.finish()
    assert rig.engine.first_error == f"{HOST}: it failed"
    assert rig.engine.counters.delete_failed == 1


class Broken(Bookkeeper):
    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        del key, offset, buffer
        raise RuntimeError("a bug in a backend")


def test_a_bug_in_a_backend_is_raised_and_not_counted() -> None:
    rig = Rig(Script([[ask(0, "a")]]), Broken(), clock=time.monotonic_ns)
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        rig.run()
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        rig.engine.close()


def test_a_bug_in_a_backend_is_raised_out_of_the_population() -> None:
    rig = Rig(Script([[]], population=[ask(0, "a")]), Broken(), clock=time.monotonic_ns)
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        rig.populate()


def test_a_clock_that_runs_backwards_gives_an_error_and_no_number(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock)
    rig.start()
    (put,) = stage.expect("put a")
    clock.advance(-5 * S)
    stage.release(put)
    with pytest.raises(ResultError, match=r"a latency is -5000000000 ns; it must not be negative"):
        rig.finish()
    assert rig.histogram("write").count == 0


def test_a_read_that_never_ends_fails_the_trial(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=S, drain_s=5.0)
    stage.expect("get a")
    rig.advance(S)
    wait_for(lambda: rig.engine._stopping)
    while not rig.has_ended:
        rig.advance(60 * S)
        time.sleep(0.01)
    with pytest.raises(StalledError, match="in flight did not end within 60 s"):
        rig.finish()


# -- what has no end in the run ------------------------------------------------------------


def censored(rig: Rig) -> tuple[int, int]:
    """Loads and requests that began in the window and were not seen to end."""
    return rig.recorder.censored["load"], rig.recorder.censored["request"]


def test_a_request_that_waits_for_admission_at_the_end_is_not_forgotten(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")], [ask(1, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1)  # b needs the room of a
    rig.start(window_ns=S)
    (call,) = stage.expect("get a")
    rig.advance(S)
    wait_for(lambda: rig.engine._stopping)
    stage.release(call)
    rig.finish()
    assert censored(rig) == (0, 1)
    assert rig.histogram("request").count == rig.histogram("load").count == 1


def test_reads_that_have_not_begun_when_the_drain_ends_are_left_and_counted(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b", "c")]], population=[ask(0, "a", "b", "c")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start(window_ns=S, drain_s=5.0)
    (call,) = stage.expect("get a")
    rig.advance(S)
    wait_for(lambda: rig.engine._stopping)
    rig.advance(5 * S)
    wait_for(lambda: censored(rig) == (1, 1))
    stage.release(call)
    rig.finish()
    assert rig.histogram("read").count == 1
    assert rig.histogram("request").count == rig.histogram("load").count == 0


def test_an_answer_that_is_not_due_when_the_drain_ends_is_counted(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")._replace(output_tokens=10)]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, generation_s_per_token=1.0)
    rig.start(window_ns=S, drain_s=5.0)
    stage.release(*stage.expect("get a"))
    wait_for(lambda: rig.engine._timers)
    rig.advance(S)
    wait_for(lambda: rig.engine._stopping)
    rig.advance(5 * S)
    rig.finish()
    assert censored(rig) == (0, 1)
    assert rig.histogram("load").count == 1
    assert rig.histogram("request").count == 0


# -- the window ----------------------------------------------------------------------------


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
    wait_for(lambda: rig.engine._stopping)
    stage.release(call)
    rig.finish()
    for section in ("read", "device", "load", "request"):
        assert extremes(rig.histogram(section)) == (2, 4 * S, 5 * S, 9 * S), section
    assert rig.recorder.section_bytes["read"] == 2 * PAGE
    window = rig.sums(0, 8 * S)
    assert (window["read_bytes"], window["requests"], window["prompt_tokens"]) == (2 * PAGE, 2, 2)
    assert (window["prompt_blocks"], window["hit_blocks"], window["hit_tokens"]) == (2, 2, 2)
    assert rig.sums()["read_bytes"] == 3 * PAGE
    assert rig.engine.counters.requested_read_bytes == 3 * PAGE
    assert rig.stopped_ns == rig.start_ns + 12 * S


def test_what_is_queued_at_the_end_is_read_but_no_latency_of_the_window(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    (first,) = stage.expect("get a")
    rig.advance(6 * S)
    wait_for(lambda: rig.engine._stopping)
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
    wait_for(lambda: rig.engine._stopping)
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
    wait_for(lambda: rig.engine._stopping)
    stage.release(read)
    stage.release_all()
    rig.finish()
    assert [str(call) for call in stage.calls] == ["get a"]
    counters = rig.engine.counters
    assert (counters.offered, counters.completed, counters.backlog) == (2, 0, 2)


def test_an_object_that_is_half_written_at_the_end_is_finished(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b")]])
    rig = Rig(script, stage, clock=clock, queue_depth=1, stored_bytes=3 * PAGE)
    rig.start(window_ns=5 * S)
    (first,) = stage.expect("put a")
    rig.advance(6 * S)
    wait_for(lambda: rig.engine._stopping)
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
    wait_for(lambda: len(stage.calls) > 1)
    rig.advance(6 * S)
    wait_for(lambda: rig.engine._stopping)
    stage.release_all()
    rig.finish()
    counters = rig.engine.counters
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
    wait_for(lambda: rig.engine.counters.requested_read_bytes)
    clock.advance(5 * S)
    stage.release(first)
    rig.finish()
    assert extremes(rig.histogram("read")) == (2, 2 * S, 7 * S, 9 * S)
    assert extremes(rig.histogram("load")) == (1, 7 * S, 7 * S, 7 * S)


def test_the_last_byte_counts_and_not_the_last_check(clock: FakeClock, stage: Stage) -> None:
    # The read that ends first is verified last; that is no time of the storage.
    verifying, verified = threading.Event(), threading.Event()

    class Slow(Payload):
        def verify(
            self,
            buffer: ChunkBuffer,
            length: int,
            identity: Identity,
            first_page: int,
            *,
            thorough: bool,
        ) -> None:
            del buffer, length, first_page, thorough
            if identity == own:
                verifying.set()
                assert verified.wait(PATIENCE_S)

    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", "b")])
    rig = Rig(script, stage, clock=clock, payload=Slow(1, PAGE), queue_depth=2, verify="full")
    rig.start()
    own = rig.index._slots[key_of("a")].identity
    first, second = stage.expect("get a", "get b")
    clock.advance(2 * S)
    stage.release(first)
    assert verifying.wait(PATIENCE_S)
    clock.advance(3 * S)
    stage.release(second)
    wait_for(lambda: rig.engine.counters.requested_read_bytes)
    clock.advance(10 * S)
    verified.set()
    rig.finish()
    assert extremes(rig.histogram("read")) == (2, 2 * S, 5 * S, 7 * S)
    assert extremes(rig.histogram("load")) == (1, 5 * S, 5 * S, 5 * S)


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
        clock=time.monotonic_ns,
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
    wait_for(lambda: rig.engine._timers)
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
    wait_for(lambda: rig.engine._timers)
    rig.advance(6 * S)
    wait_for(lambda: rig.engine._stopping)
    rig.advance(2 * S)
    rig.finish()
    assert extremes(rig.histogram("request")) == (1, 8 * S, 8 * S, 8 * S)
    assert stage.pending == []


# -- closed loop ---------------------------------------------------------------------------


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
    wait_for(lambda: rig.engine._timers)
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
    wait_for(lambda: len(rig.engine._stalled) == 2)
    assert script.asked == [2, 2]
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert script.asked == [3, 3]
    assert rig.engine.counters.store_stall_ns == 2 * 7 * S


def test_users_that_still_wait_for_the_store_queue_at_the_end_are_reported_too(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        [ask(user, f"{user}{turn}x", f"{user}{turn}y") for turn in range(3)] for user in (0, 1)
    ]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start(window_ns=5 * S)
    wait_for(lambda: len(rig.engine._stalled) == 2)
    rig.advance(5 * S)
    wait_for(lambda: rig.engine._stopping)
    stage.release_all()
    rig.finish()
    assert rig.engine.counters.store_stall_ns == 2 * 5 * S


def test_time_in_the_store_queue_is_no_response_time(clock: FakeClock, stage: Stage) -> None:
    turns = [[ask(0, "x1", "x2", "x3", "x4", "x5"), ask(0, "y")]]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start()
    wait_for(lambda: rig.engine._stalled)
    clock.advance(7 * S)
    stage.release_all()
    rig.finish()
    assert extremes(rig.histogram("request")) == (2, 0, 0, 0)


# -- open loop -----------------------------------------------------------------------------


def test_in_an_open_loop_responses_count_from_the_intended_arrival(
    clock: FakeClock, stage: Stage
) -> None:
    arrivals = [ask(0, "a", arrival_ns=S), ask(0, "b", arrival_ns=2 * S)]
    script = Script([arrivals], population=[ask(0, "a", "b")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    wait_for(lambda: rig.engine._timers)
    rig.advance(S)
    (first,) = stage.expect("get a")
    rig.advance(4 * S)
    wait_for(lambda: rig.engine.counters.offered == 2)
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
    assert rig.engine.counters.completed == 4


def test_in_an_open_loop_an_answer_brings_no_request(clock: FakeClock, stage: Stage) -> None:
    arrivals = [ask(0, name, arrival_ns=at * S) for name, at in (("a", 0), ("b", 10), ("c", 20))]
    rig = Rig(Script([arrivals], population=[ask(0, "a", "b", "c")], open_loop=True), stage,
              clock=clock)  # fmt: skip
    rig.start()
    for name in "abc":
        (call,) = stage.expect(f"get {name}")
        stage.release(call)
        wait_for(lambda: rig.engine.counters.completed == len(stage.calls))
        rig.advance(10 * S)
    rig.finish()
    assert [call.at_ns - rig.start_ns for call in stage.calls] == [0, 10 * S, 20 * S]
    assert rig.engine.counters.offered == 3


def test_what_comes_beyond_the_longest_backlog_is_dropped_and_counted(
    clock: FakeClock, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvcache.engine.engine.MAX_BACKLOG", 2)
    arrivals = [ask(0, "a", arrival_ns=0)] * 5
    script = Script([arrivals], population=[ask(0, "a")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start()
    wait_for(lambda: rig.engine.counters.offered == 5)
    stage.release_all()
    rig.finish()
    counters = rig.engine.counters
    assert (counters.offered, counters.dropped, counters.completed) == (5, 3, 2)
    assert rig.histogram("request").count == rig.sums()["requests"] == 2
    assert rig.sums()["prompt_blocks"] == 2
    assert rig.recorder.censored["request"] == 3
    assert rig.histogram("wakeup").count == 5


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
    wait_for(lambda: rig.engine.counters.offered == 20)
    clock.advance(100 * S)
    stage.release_all()
    rig.finish()
    assert rig.engine.counters.completed == 20
    assert rig.engine.counters.backlog >= 19


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
    wait_for(lambda: rig.engine.counters.offered == 10)
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
    counters = rig.engine.counters
    while counters.completed < 5:
        wait_for(lambda: counters.completed * S > clock() - rig.start_ns)
        rig.advance(S)
    assert rig.engine._stores == 30
    assert not rig.engine._stalled
    clock.advance(10 * S)
    stage.release_all()
    rig.finish()
    counters = rig.engine.counters
    assert (counters.store_stall_ns, counters.backlog, counters.storing) == (0, 1, 4)
    assert extremes(rig.histogram("request")) == (5, 0, 0, 0)


def test_the_time_that_the_harness_takes_to_wake_up_is_recorded_apart() -> None:
    clock = FakeClock()
    arrivals = [ask(0, arrival_ns=S), ask(0, arrival_ns=2 * S)]
    rig = Rig(Script([arrivals], open_loop=True), Stage(clock), clock=clock)
    rig.start()
    wait_for(lambda: rig.engine._timers)
    clock.advance(S // 2)
    rig.advance(S)  # nobody has looked at the clock at 1 s
    wait_for(lambda: rig.engine.counters.offered == 1)
    rig.advance(S // 2)
    rig.finish()
    assert extremes(rig.histogram("wakeup")) == (2, 0, S // 2, S // 2)
    assert rig.histogram("request").sum_ns == S // 2
    assert rig.histogram("load").count == 0


def test_a_closed_loop_has_no_wake_ups(clock: FakeClock) -> None:
    rig = Rig(Script([[ask(0, think_s=1.0), ask(0)]]), Stage(clock), clock=clock)
    rig.start()
    rig.advance(5 * S)
    rig.finish()
    assert rig.histogram("request").count == 2
    assert rig.histogram("wakeup").count == 0


def test_a_window_lasts_to_its_end_and_takes_no_arrival_beyond_it(clock: FakeClock) -> None:
    arrivals = [ask(0, arrival_ns=at * S) for at in (1, 9, 10, 11)]
    script = Script([arrivals], open_loop=True)
    rig = Rig(script, Stage(clock), clock=clock)
    rig.start(window_ns=10 * S)
    rig.advance(9 * S)
    wait_for(lambda: rig.engine.counters.completed == 2)
    rig.advance(S // 2)
    assert not rig.has_ended
    rig.advance(3 * S)
    rig.finish()
    assert rig.stopped_ns == rig.start_ns + 9 * S + S // 2 + 3 * S
    counters = rig.engine.counters
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
    counters = rig.engine.counters
    assert counters.offered == 100
    assert 0 < counters.completed < 20
    assert counters.backlog == 100 - counters.completed
    assert counters.storing == 0
    assert rig.histogram("wakeup").count == 100
    assert rig.recorder.censored["request"] == counters.backlog


def test_a_tick_comes_even_if_arrivals_never_stop(clock: FakeClock) -> None:
    arrivals = [ask(0, arrival_ns=0)] * 10_000
    script = Sluggish([arrivals], open_loop=True)
    script.clock = clock
    rig = Rig(script, Stage(clock), clock=clock)
    rig.stop = True  # told by the first tick
    rig.run()
    assert rig.engine.counters.completed < 10


def test_simulated_generation_is_no_backlog_of_the_storage(clock: FakeClock, stage: Stage) -> None:
    arrivals = [ask(0, output=[name], arrival_ns=0) for name in "abc"]
    arrivals.append(ask(0, "x", arrival_ns=S))
    arrivals.append(ask(0, arrival_ns=1_000 * S))
    script = Script([arrivals], population=[ask(0, "x")], open_loop=True)
    rig = Rig(script, stage, clock=clock, queue_depth=1, generation_s_per_token=100.0)
    rig.start(window_ns=10 * S, drain_s=0.0)
    wait_for(lambda: rig.engine._generating == 3)
    rig.advance(S)
    (held,) = stage.expect("get x")
    for _ in range(18):
        rig.advance(S // 2)
        wait_for(lambda: rig.engine._sampled_ns == clock())
    stage.release(held)
    rig.finish()
    counters = rig.engine.counters
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
    counters = rig.engine.counters
    assert (counters.completed, counters.backlog, counters.generating) == (1, 0, 0)


# -- population ----------------------------------------------------------------------------


def test_the_population_is_stored_and_not_measured() -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE)
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", output=["b"]), ask(1, "c")])
    rig = Rig(script, backend, clock=time.monotonic_ns, payload=Payload(1, PAGE), verify="full")
    rig.run()
    assert sorted(backend.objects) == sorted(
        f"{key_of(name).hex()}.{number}" for name, number in (("a", 2), ("b", 1), ("c", 3))
    )
    assert rig.histogram("write").count == 0
    assert rig.sums()["write_bytes"] == 0
    counters = rig.engine.counters
    assert (counters.offered, counters.completed, counters.requested_write_bytes) == (1, 1, 0)
    assert rig.sums()["hit_blocks"] == 2


def test_the_population_ends_where_the_cache_is_full() -> None:
    backend = Bookkeeper(limit=5)
    backend.prepare(PAGE)
    contexts = [ask(user, "s", f"{user}x", f"{user}y") for user in range(4)]
    rig = Rig(Script([[]] * 4, population=contexts), backend, clock=time.monotonic_ns,
              payload=Payload(1, PAGE), capacity_blocks=6)  # fmt: skip
    rig.populate()
    assert len(backend.objects) == rig.index.present_blocks == 5
    assert rig.index.evictions == 0
    assert backend.breaches == []
    rig.engine.close()


def test_the_population_waits_for_room_in_the_store_queue() -> None:
    most = 0

    class Counted(Script):
        def population(self) -> Iterator[Request]:
            nonlocal most
            for number in range(200):
                most = max(most, rig.engine._stores)
                yield ask(0, f"{number}x", f"{number}y")

    backend = Bookkeeper()
    backend.prepare(PAGE)
    rig = Rig(Counted([[]]), backend, clock=time.monotonic_ns, payload=Payload(1, PAGE))
    rig.populate()
    assert len(backend.objects) == 400
    assert most <= 4 * 2
    rig.engine.close()


def test_a_population_of_many_short_waits_is_told_of_all_the_same() -> None:
    class Slow(Bookkeeper):
        def put_from(self, object_key: str, offset: int, data: memoryview) -> None:
            time.sleep(0.002)
            super().put_from(object_key, offset, data)

    seen: list[int] = []

    def tick() -> bool:
        seen.append(rig.index.present_blocks)
        return False

    contexts = [ask(0, f"{number}x", f"{number}y") for number in range(200)]
    backend = Slow()
    backend.prepare(PAGE)
    rig = Rig(Script([[]], population=contexts), backend, clock=time.monotonic_ns,
              payload=Payload(1, PAGE))  # fmt: skip
    rig.engine.populate(tick)
    assert len(backend.objects) == 400
    assert len(seen) >= 3  # it takes at least 400 ms; each wait for room a few
    assert sorted(seen) == seen
    rig.engine.close()


def test_a_failure_ends_the_population_at_once(clock: FakeClock, stage: Stage) -> None:
    contexts = [ask(0, "a1", "a2", "a3", "a4", "a5"), ask(1, "b")]
    rig = Rig(Script([[], []], population=contexts), stage, clock=clock, queue_depth=1)
    thread = threading.Thread(target=rig.engine.populate, args=(lambda: False,), daemon=True)
    thread.start()
    stage.release(*stage.expect("put a1"), error="can't write")
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert [str(call) for call in stage.calls] == ["put a1"]
    assert rig.engine.first_error == f"{HOST}: can't write"
    assert key_of("b") not in rig.index._slots
    rig.engine.close()


def test_the_population_stops_when_told() -> None:
    clock = FakeClock()
    stage = Stage(clock)
    rig = Rig(Script([[]], population=[ask(0, "a", "b", "c")]), stage, clock=clock)
    told = threading.Event()

    def tick() -> bool:
        told.set()
        return True

    thread = threading.Thread(target=rig.engine.populate, args=(tick,), daemon=True)
    thread.start()
    stage.expect("put a", "put b")
    rig.advance(S)
    assert told.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    stage.release_all()
    rig.engine.close()


def test_a_stop_order_ends_the_run(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a")] * 2], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=1_000 * S)
    stage.expect("get a")
    rig.stop = True
    rig.advance(S)
    wait_for(lambda: rig.engine._stopping)
    stage.release_all()
    rig.finish()
    assert rig.stopped_ns == rig.start_ns + S
    assert script.asked == [1]


# -- determinism ---------------------------------------------------------------------------


class Slow(Bookkeeper):
    """Every transfer gives the other threads a chance."""

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        time.sleep(0.0005)
        super().get_into(key, offset, buffer)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        time.sleep(0.0005)
        super().put_from(key, offset, buffer)


def streams(backend: Bookkeeper, capacity_blocks: int, **changes: object) -> Watched:
    """What the users of a rank ask for, against this backend."""
    seen: list[Watched] = []

    class Spied:
        needs_trace = False
        need = build_registry().workloads["mixed"].need

        def build(self, context: object) -> Workload:
            seen.append(Watched(build_registry().workloads["mixed"].build(context)))  # type: ignore[arg-type]  # as it comes
            return seen[-1]

    registry = registry_of(backends={"memory": lambda: backend}, workloads={"mixed": Spied()})
    plan = make_plan(
        scenario="mixed", users=10, backend="memory", capacity_blocks=capacity_blocks,
        context_scale=0.02, **changes,
    )  # fmt: skip
    assert run_rank(plan, registry).result.error is None
    return seen[0]


def test_users_ask_the_same_whatever_the_speed_of_the_storage() -> None:
    quick, slow = (streams(backend, 300).given for backend in (Bookkeeper(), Slow()))
    assert set(quick) == set(slow) == set(range(10))
    for user, asked in quick.items():
        shared = min(len(asked), len(slow[user]))
        assert shared > 0
        assert asked[:shared] == slow[user][:shared]


@pytest.mark.thorough
@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_at_a_rate_the_storage_decides_nothing_of_what_is_asked_or_when(arrival: str) -> None:
    at_a_rate = {"request_rate": 500.0, "arrival": arrival}
    quick, slow = (streams(backend, 300, **at_a_rate) for backend in (Bookkeeper(), Slow()))
    assert len(quick.order) > 50
    assert quick.order == slow.order


def replayed_on(backend: Bookkeeper, plan: Plan, trace: Trace) -> RankResult:
    registry = registry_of(
        backends={"memory": lambda: backend}, workloads={"trace": ReplayFamily()}
    )
    return run_rank(plan, registry, trace=trace).result


@pytest.mark.thorough
@pytest.mark.parametrize("speedup", [0.0, 100.0])
def test_a_replay_hits_and_stores_what_was_forecast_whatever_the_speed_of_the_storage(
    speedup: float,
) -> None:
    prompts = [[100 * (n % 5), *range(100 * (n % 5) + 1, 100 * (n % 5) + n)] for n in range(1, 13)]
    recorded = small_trace(prompts)
    trace = replace(recorded, arrival_ns=np.arange(len(prompts)) * S // 10)
    planned = make_trace_plan(speedup=speedup, requests=len(trace))
    plan = replace(replay_plan(trace, 20), backend="memory", users=4, trace=planned)
    found = forecast(plan, trace, ReplayFamily())
    assert found.hit_ratio
    for backend in (Bookkeeper(), Slow()):
        result = replayed_on(backend, plan, trace)
        assert result.error is None
        assert result.hit_blocks / result.prompt_blocks == pytest.approx(found.hit_ratio)
        assert result.write_count * plan.stored_bytes == found.written_bytes
        assert result.read_count * plan.stored_bytes == found.read_bytes


# -- disaggregated serving -----------------------------------------------------------------


def phase_plan(phase: str, **changes: Any) -> Plan:
    return make_plan(phase=phase, backend="memory", duration_s=0.3, context_scale=0.1, **changes)


@pytest.mark.thorough
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_phase_makes_its_own_operations_only(phase: str) -> None:
    book = Bookkeeper()
    registry = registry_of(backends={"memory": lambda: book}, workloads=tireless_scenarios())
    result = run_rank(phase_plan(phase), registry).result
    assert book.breaches == []
    assert result.error is None
    assert result.populated_blocks > 0
    assert result.hit_blocks > 0
    if phase == "prefill":
        assert (result.read_count, result.requested_read_bytes) == (0, 0)
        assert book.counts["get"] == result.read_back > 0  # after the window
        assert result.write_count > 0
        assert result.generated_tokens == 0
    else:
        assert (result.write_count, result.requested_write_bytes) == (0, 0)
        assert book.counts["put"] == len(book.objects) == result.populated_blocks
        assert result.read_count > 0
        assert result.hit_blocks == result.prompt_blocks
        assert result.generated_tokens > 0


def test_a_decode_without_room_for_every_user_fails_and_says_how_many_there_are() -> None:
    registry = registry_of(backends={"memory": Bookkeeper}, workloads=tireless_scenarios())
    with pytest.raises(StorageError, match=r"contexts of \d of 4 users.*--kv-num-users"):
        run_rank(phase_plan("decode", capacity_blocks=20), registry)


@pytest.mark.thorough
def test_a_decoded_trace_hits_everything_that_the_cache_can_hold() -> None:
    trace = real_trace(MOONCAKE).limit(500)
    plan = replay_plan(trace, 50_000)
    result = run_rank(replace(plan, phase="decode"), build_registry(), trace=trace).result
    assert result.error is None
    assert result.hit_blocks == result.prompt_blocks == result.read_count > 0
    assert result.write_count == 0
