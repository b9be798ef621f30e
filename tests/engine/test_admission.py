from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.engine.payload import Payload
from tests.factories import (
    PAGE,
    Bookkeeper,
    FakeClock,
    S,
    Script,
    Watched,
    ask,
    make_plan,
    name_of,
    registry_of,
    run_rank,
    tireless_scenarios,
)
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.workloads.protocol import Request


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
    present = [entry.object_key for entry in rig.index._entries.values() if entry.present]
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
    assert rig.loop.first_error is None
    assert backend.breaches == []
    hit_blocks, content = literal(workload.order, capacity_blocks)
    assert list(rig.index._entries) == content
    assert set(backend.objects) == stored_objects(rig, parts)
    hits, evictions = hit_blocks * parts, rig.index.evictions * parts
    writes = len(content) * parts + evictions
    assert [backend.counts[name] for name in ("get", "put", "delete", "sync")] == [
        hits * chunks,
        writes * chunks,
        evictions,
        writes * syncs,
    ]
    sums, counters = rig.sums(), rig.loop.counters
    assert sums["hit_blocks"] == hit_blocks
    assert (rig.histogram("read").count, rig.histogram("write").count) == (hits, writes)
    assert rig.histogram("device").count == (hits + writes) * chunks
    assert (sums["read_bytes"], sums["write_bytes"]) == (hits * object_bytes, writes * object_bytes)
    assert (counters.requested_read_bytes, counters.requested_write_bytes) == (
        hits * stored_bytes,
        writes * stored_bytes,
    )
    assert (rig.loop.checked, rig.loop.corrupt) == (hits * chunks, 0)
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
    (entry,) = rig.index._entries.values()
    assert entry.unwritten == 1
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
    assert rig.loop.counters.write_failed == 1
    assert rig.histogram("write").count == 2
    assert rig.loop.first_error is not None
    assert "no space left" in rig.loop.first_error


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
    assert rig.loop.counters.read_failed == 1
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


class Sized(Bookkeeper):
    """Knows how long each object is to become, by the first letter of its name."""

    sizes: ClassVar[dict[str, int]] = {"a": 1, "b": PAGE, "c": 5 * PAGE + 7, "d": 64 * PAGE}

    def size_of(self, key: str) -> int:
        return self.sizes[name_of(key)[0]]

    def _is_complete(self, stored: Any) -> bool:
        sizes = {-(-size // PAGE) * PAGE for size in self.sizes.values()}
        return stored.length in sizes and stored.synced == self.syncs


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True),
                   min_size=1, max_size=8),
    queue_depth=st.integers(1, 4),
    transfer_pages=st.integers(1, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_objects_of_many_sizes_are_moved_in_parts_and_counted_by_their_own_bytes(
    names: list[list[str]], queue_depth: int, transfer_pages: int, seed: int
) -> None:
    backend = Sized()
    transfer_bytes = transfer_pages * PAGE
    requests = [
        ask(0, *blocks, sizes=[Sized.sizes[name] for name in blocks]) for blocks in [*names, *names]
    ]
    rig = Rig(
        Script([requests]), backend, payload=Payload(1, transfer_bytes), verify="full",
        queue_depth=queue_depth, transfer_bytes=transfer_bytes, seed=seed,
    )  # fmt: skip
    rig.run()
    assert rig.loop.first_error is None
    assert backend.breaches == []
    lengths = {name_of(key): stored.length for key, stored in backend.objects.items()}
    asked = {name for blocks in names for name in blocks}
    assert lengths == {name: -(-Sized.sizes[name] // PAGE) * PAGE for name in asked}
    for stored in backend.objects.values():
        assert all(len(part) <= transfer_bytes for part in stored.parts.values())
    sums = rig.sums()
    assert sums["write_bytes"] == sum(Sized.sizes[name] for name in asked)
    hits = rig.histogram("read").count
    assert sums["hit_blocks"] == hits > 0
    read_bytes = rig.recorder.section_bytes["read"]
    assert sums["read_bytes"] == read_bytes
    moved = rig.recorder.section_bytes
    assert moved["device"] == moved["read"] + moved["write"]


def test_a_request_that_waits_for_a_prompt_under_way_is_asked_again_once_not_at_each_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = [f"{block:03}" for block in range(200)]
    rig = Rig(
        Script([[ask(0, *prompt)], [ask(1, *prompt)]]),
        NullBackend(),
        queue_depth=1,  # the blocks come in their order
    )
    asked = []
    decide = rig.loop.blocks.decide

    def counted(inflight: InFlightRequest) -> bool:
        asked.append(inflight.request.user)
        return decide(inflight)

    monkeypatch.setattr(rig.loop.blocks, "decide", counted)
    rig.start()
    rig.join()
    assert rig.loop.counters.completed == 2
    assert len(asked) <= 4
