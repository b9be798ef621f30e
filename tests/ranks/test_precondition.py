"""Objects that are overwritten in place before a cache is filled."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.engine.operations import TransferSettings
from pytest_kvcache.engine.payload import make_payload
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.inline import InlineEngine
from pytest_kvcache.models import LayerGroup, ModelSpec, block_parts
from pytest_kvcache.ranks import precondition
from pytest_kvcache.ranks.precondition import Precondition
from pytest_kvcache.system.filesystem import IoCounters
from tests.factories import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = TransferSettings(
    queue_depth=4, object_bytes=PAGE, stored_bytes=PAGE, transfer_bytes=PAGE, sync=False,
    verify="off",
)  # fmt: skip


class Overwritten(MemoryBackend):
    """Memory that remembers every put, and can refuse them."""

    def __init__(self, refuses_after: int | None = None) -> None:
        super().__init__()
        self.puts: Counter[str] = Counter()
        self.contents: dict[str, set[bytes]] = defaultdict(set)
        self.deleted: list[str] = []
        self.refuses_after = refuses_after

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        if self.refuses_after is not None and self.puts.total() >= self.refuses_after:
            raise StorageError("the disk is full")
        super().put_from(key, offset, buffer)
        self.puts[key] += 1
        self.contents[key].add(np.frombuffer(buffer, np.uint8).tobytes())

    def delete(self, key: str) -> None:
        super().delete(key)
        self.deleted.append(key)


def opened(backend: Overwritten, object_bytes: int) -> Overwritten:
    plan = BackendPlan(
        directory=None, object_bytes=object_bytes, chunk_bytes=PAGE, io="direct", sync="none",
        host="h", namespace="n", capacity_objects=100,
    )  # fmt: skip
    backend.open(plan)
    return backend


def carried_out(
    size_bytes: int,
    most_blocks: int,
    backend: Overwritten,
    *,
    must_arrive: bool = False,
    stops: Iterator[bool] | None = None,
    settings: TransferSettings = SETTINGS,
) -> Precondition:
    made = Precondition(size_bytes, most_blocks, settings)
    payload = make_payload("normal", 1, PAGE, PAGE)

    def tick() -> bool:
        return next(stops) if stops is not None else False

    made.run(
        InlineEngine(opened(backend, settings.object_bytes), 4),
        payload,
        tick,
        must_arrive=must_arrive,
    )
    return made


def test_the_same_objects_are_overwritten_until_it_is_enough() -> None:
    backend = Overwritten()
    made = carried_out(25 * PAGE, 10, backend)
    assert made.written_bytes == 25 * PAGE
    assert sorted(backend.puts.values()) == [2] * 5 + [3] * 5
    assert sorted(backend.deleted) == sorted(backend.puts)


def test_each_round_writes_other_contents() -> None:
    backend = Overwritten()
    carried_out(30 * PAGE, 10, backend)
    assert all(len(contents) == 3 for contents in backend.contents.values())
    assert len(set().union(*backend.contents.values())) == 30


def test_a_part_of_an_object_is_a_whole_one() -> None:
    backend = Overwritten()
    assert carried_out(PAGE + 1, 10, backend).written_bytes == 2 * PAGE
    assert len(backend.puts) == 2


def test_there_are_never_more_objects_than_the_cache_may_hold() -> None:
    backend = Overwritten()
    carried_out(7 * PAGE, 1, backend)
    assert list(backend.puts.values()) == [7]


@pytest.mark.parametrize("size_pages", [6, 25])
def test_objects_of_several_sizes_are_written_until_it_is_enough(size_pages: int) -> None:
    groups = (
        LayerGroup(kind="full", layers=1, kv_heads=1, head_dim=4 * PAGE),
        LayerGroup(kind="sliding", layers=1, kv_heads=1, head_dim=PAGE // 2, window_tokens=1),
    )
    model = ModelSpec(name="hybrid", layers=2, dtype="int8", groups=groups)
    parts = block_parts(model, "block", 1, 1, PAGE)
    assert [part.stored_bytes for part in parts] == [8 * PAGE, PAGE]
    backend = Overwritten()
    settings = replace(
        SETTINGS, parts=parts, objects_per_block=2, object_bytes=8 * PAGE, stored_bytes=8 * PAGE
    )
    made = carried_out(size_pages * PAGE, 10, backend, settings=settings)
    rounds = -(-size_pages // 9)
    assert made.written_bytes == rounds * 9 * PAGE
    assert (made.blocks, len(backend.deleted)) == (rounds, 2 * rounds)


def test_an_operation_that_fails_ends_it() -> None:
    with pytest.raises(StorageError, match="--kv-precondition failed: the disk is full"):
        carried_out(9 * PAGE, 3, Overwritten(refuses_after=4))


def test_it_ends_when_another_rank_failed() -> None:
    with pytest.raises(StorageError, match="--kv-precondition was told to stop"):
        carried_out(9 * PAGE, 3, Overwritten(), stops=iter([False, False, True]))


@pytest.mark.parametrize(
    ("arrived", "is_refused"), [(0, True), (8, True), (9, False), (20, False), (None, False)]
)
def test_what_the_kernel_did_not_give_to_a_device_was_not_written(
    monkeypatch: pytest.MonkeyPatch, arrived: int | None, *, is_refused: bool
) -> None:
    end = None if arrived is None else 5 * PAGE + arrived * PAGE
    samples = iter([
        IoCounters(read_bytes=0, write_bytes=5 * PAGE),
        IoCounters(read_bytes=0, write_bytes=end),
    ])  # fmt: skip
    monkeypatch.setattr(precondition, "sample_io", lambda: next(samples))
    if is_refused:
        with pytest.raises(StorageError, match="--kv-precondition wrote 40 KiB, of which the ker"):
            carried_out(10 * PAGE, 10, Overwritten(), must_arrive=True)
        return
    made = carried_out(10 * PAGE, 10, Overwritten(), must_arrive=True)
    assert made.arrived_bytes == (None if arrived is None else arrived * PAGE)
