from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.cache.index import BlockEntry
from pytest_kvcache.engine.operations import TransferSettings, object_key_of
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.ranks.readback import ReadBack

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
CHUNK = 2 * PAGE
OBJECT = 3 * PAGE  # a whole chunk and a half


def settings(objects_per_block: int = 1) -> TransferSettings:
    return TransferSettings(
        queue_depth=1, object_bytes=OBJECT, stored_bytes=OBJECT, transfer_bytes=CHUNK, sync=False,
        verify="sample", objects_per_block=objects_per_block,
    )  # fmt: skip


class Stored:
    """Blocks in a backend that keeps them in memory."""

    def __init__(self, blocks: int = 3, objects_per_block: int = 1) -> None:
        self.lost: list[BlockEntry] = []
        self.payload = Payload(7, CHUNK, OBJECT)
        self.backend = MemoryBackend()
        self.settings = settings(objects_per_block)
        self.backend.open(
            BackendPlan(
                directory=None, object_bytes=OBJECT, chunk_bytes=CHUNK, io="direct", sync="none",
                host="n1", namespace="kvcache-run/trial-1/rank-0",
                capacity_objects=max(1, blocks * objects_per_block),
            )
        )  # fmt: skip
        size = objects_per_block * OBJECT
        self.entries = [
            BlockEntry(bytes([n]) * 16, n + 1, objects_per_block, size, size) for n in range(blocks)
        ]
        parts: list[int | None] = [*range(objects_per_block)] if objects_per_block > 1 else [None]
        for entry in self.entries:
            for part in parts:
                self._store(entry, part)

    def _store(self, entry: BlockEntry, part: int | None) -> None:
        identity = entry.identity if part is None else entry.identity._replace(part=part)
        buffer = self.payload.write_buffer()
        for offset in range(0, OBJECT, CHUNK):
            length = min(CHUNK, OBJECT - offset)
            self.payload.stamp(buffer, length, identity, offset // PAGE)
            self.backend.put_from(object_key_of(entry, part), offset, buffer.cut(length).view)

    def read_back(self, tick: Callable[[], object] = lambda: None, **changes: Any) -> ReadBack:
        result = ReadBack()
        values: dict[str, Any] = {
            "backend": self.backend, "payload": self.payload, "settings": self.settings, "seed": 1,
        }  # fmt: skip
        result.examine(self.entries, tick=tick, lose=self.lost.append, **values | changes)
        return result


@pytest.mark.parametrize("objects_per_block", [1, 3])
def test_what_was_stored_is_there(objects_per_block: int) -> None:
    found = Stored(objects_per_block=objects_per_block).read_back()
    assert (found.checked, found.corrupt, found.error) == (3, 0, None)


def test_nothing_stored_is_nothing_to_read() -> None:
    found = Stored(blocks=0).read_back()
    assert (found.checked, found.corrupt, found.error) == (0, 0, None)


def test_only_some_of_many_are_read_and_others_hear_of_it() -> None:
    ticks: list[int] = []
    assert Stored(blocks=100).read_back(lambda: ticks.append(1)).checked == 16
    assert len(ticks) == 16


@pytest.mark.parametrize("seed", range(5))
def test_an_object_that_holds_another_one_is_wrong_and_named(seed: int) -> None:
    stored = Stored(blocks=1)
    (entry,) = stored.entries
    # The next generation: its writes never arrived.
    stored.entries = [BlockEntry(entry.key, 2, 1, OBJECT, OBJECT)]
    stored.backend.put_from(stored.entries[0].object_key, 0, memoryview(bytes(CHUNK)))
    stored.backend.put_from(stored.entries[0].object_key, CHUNK, memoryview(bytes(PAGE)))
    found = stored.read_back(seed=seed)
    assert (found.checked, found.corrupt) == (1, 1)
    assert str(found.error).startswith(f"object {stored.entries[0].object_key}, which the run has")


def test_an_object_that_is_not_there_is_an_error_and_the_last_look() -> None:
    stored = Stored(blocks=1)
    stored.backend.delete(stored.entries[0].object_key)
    found = stored.read_back()
    assert found.checked == 0
    assert str(found.error).startswith("what the run has stored can't be read back: ")


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_an_object_of_a_size_of_its_own_is_read_as_far_as_it_goes(pages: int) -> None:
    stored, size = Stored(blocks=0), pages * PAGE
    entry = BlockEntry(b"k" * 16, 1, 1, size, size)
    stored.entries = [entry]
    buffer = stored.payload.write_buffer()
    for offset in range(0, size, CHUNK):
        length = min(CHUNK, size - offset)
        stored.payload.stamp(buffer, length, entry.identity, offset // PAGE, size)
        stored.backend.put_from(object_key_of(entry, None), offset, buffer.cut(length).view)
    for seed in range(8):  # of each, any of its transfers
        found = stored.read_back(seed=seed)
        assert (found.checked, found.corrupt, found.error) == (1, 0, None)
