"""Buckets are written by one call, and read from after one open."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendPlan
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.buckets import BucketEngine
from pytest_kvcache.ioengines.choose import Situation, choose_engine, make_engine
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE
from tests.factories import HOST, PATIENCE_S
from tests.systemcalls import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_kvcache.ioengines.protocol import Completion

SIZE = 2 * PAGE_BYTES
KEYS = [f"{number:032x}.1" for number in range(5)]


def plan_of(directory: Path) -> BackendPlan:
    return BackendPlan(
        directory=str(directory), object_bytes=SIZE, chunk_bytes=SIZE, io="buffered", sync="none",
        host=HOST, namespace="n",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> EngineBuckets:
    made = EngineBuckets()
    made.open(plan_of(tmp_path))
    return made


@pytest.fixture
def engine(store: EngineBuckets) -> Iterator[BucketEngine]:
    made = BucketEngine(store, 2 * len(KEYS), store, 1)
    made.register([])
    yield made
    made.close()


def buffers(byte: int = 0) -> list[memoryview]:
    found = [memoryview(mmap.mmap(-1, SIZE)) for _key in KEYS]
    for number, buffer in enumerate(found):
        buffer[:] = bytes([byte + number if byte else 0]) * SIZE
    return found


def carried_out(
    engine: BucketEngine, kind: int, keys: Sequence[str], views: Sequence[memoryview]
) -> list[Completion]:
    for slot, (key, view) in enumerate(zip(keys, views, strict=True)):
        engine.stage(slot, kind, key, 0, view, 1)
    engine.submit(len(keys))
    ended: list[Completion] = []
    until_s = time.monotonic() + PATIENCE_S
    while len(ended) < len(keys):
        assert time.monotonic() < until_s
        engine.submit(0, time.monotonic_ns() + 10**8)
        if engine.look():
            ended += engine.reap()
    return sorted(ended, key=lambda completion: completion[0])


def test_a_bucket_has_all_that_was_staged_and_each_is_read_back(
    engine: BucketEngine, tmp_path: Path
) -> None:
    ended = carried_out(engine, WRITE, KEYS, buffers(byte=7))
    assert len({completion[1:3] for completion in ended}) == 1  # as long as their bucket took
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.bucket", "1.meta"]
    found = buffers()
    assert all(error is None for *_rest, error in carried_out(engine, READ, KEYS, found))
    assert found == buffers(byte=7)


def test_reads_follow_each_other_in_time(engine: BucketEngine) -> None:
    carried_out(engine, WRITE, KEYS, buffers(byte=1))
    ended = carried_out(engine, READ, KEYS, buffers())
    times = [at for completion in ended for at in completion[1:3]]
    assert times == sorted(times)


def test_what_is_deleted_is_the_bucket_with_all_that_is_in_it(
    engine: BucketEngine, store: EngineBuckets, tmp_path: Path
) -> None:
    carried_out(engine, WRITE, KEYS[:2], buffers()[:2])
    carried_out(engine, WRITE, KEYS[2:], buffers()[2:])
    ((_slot, _began, _ended, error),) = carried_out(engine, DELETE, KEYS[:1], [memoryview(b"")])
    assert error is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.bucket", "2.meta"]
    with pytest.raises(StorageError, match="no bucket has it"):
        store.bucket_of(KEYS[1])


def test_a_bucket_that_can_not_be_written_fails_all_its_objects(
    engine: BucketEngine, tmp_path: Path
) -> None:
    (tmp_path / "1.bucket").mkdir()
    ended = carried_out(engine, WRITE, KEYS, buffers())
    assert len({str(error) for *_rest, error in ended}) == 1
    assert "can't write" in str(ended[0][3])


def test_a_bucket_that_can_not_be_opened_fails_what_is_read_of_it_alone(
    engine: BucketEngine, tmp_path: Path
) -> None:
    carried_out(engine, WRITE, KEYS[:2], buffers()[:2])
    carried_out(engine, WRITE, KEYS[2:], buffers()[2:])
    (tmp_path / "1.bucket").unlink()
    ended = carried_out(engine, READ, KEYS, buffers())
    assert [error is None for *_rest, error in ended] == [False, False, True, True, True]
    assert "can't read" in str(ended[0][3])


def test_an_object_that_is_cut_off_is_an_error_and_those_before_it_are_read(
    engine: BucketEngine, tmp_path: Path
) -> None:
    carried_out(engine, WRITE, KEYS, buffers())
    path = tmp_path / "1.bucket"
    os.truncate(path, path.stat().st_size - 1)
    ended = carried_out(engine, READ, KEYS, buffers())
    assert [error is None for *_rest, error in ended] == [True, True, True, True, False]
    assert f"wanted {SIZE} bytes, got {SIZE - 1}" in str(ended[4][3])


def test_an_object_alone_is_a_bucket_of_its_own_and_a_part_of_one_is_refused(
    store: EngineBuckets,
) -> None:
    view = buffers(byte=3)[0]
    store.put_from(KEYS[0], 0, view)
    found = buffers()[0]
    store.get_into(KEYS[0], PAGE_BYTES, found[:PAGE_BYTES])
    assert found[:PAGE_BYTES] == view[PAGE_BYTES:]
    with pytest.raises(StorageError, match="buckets have whole objects"):
        store.put_from(KEYS[1], PAGE_BYTES, view)
    with pytest.raises(NotImplementedError):
        store.sync(KEYS[0])


def test_buckets_are_refused_where_the_plan_wants_direct_io(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="through the page cache, and the plan's io is direct"):
        EngineBuckets(probe=lambda _path: None).open(replace(plan_of(tmp_path), io="direct"))


def test_a_backend_without_buckets_has_its_calls_made_one_by_one(tmp_path: Path) -> None:
    backend = MemoryBackend()
    backend.open(plan_of(tmp_path))
    engine = make_engine("threads", backend, situation())
    assert isinstance(engine, BucketEngine)
    carried_out(engine, WRITE, KEYS, buffers(byte=9))
    found = buffers()
    carried_out(engine, READ, KEYS, found)
    engine.close()
    assert found == buffers(byte=9)


def situation() -> Situation:
    return Situation(
        host=HOST, files=None, directory=None, depth=10, transfer_bytes=SIZE, bucket_readers=3
    )


def test_threads_are_chosen_with_the_reason() -> None:
    choice = choose_engine("auto", situation())
    assert choice.name == "threads"
    assert "a thread writes the engine's buckets, each by one call" in choice.reason


SCRIPT = f"""
import mmap, os, sys, time
from pathlib import Path
from pytest_kvcache.ioengines.buckets import BucketEngine
from pytest_kvcache.ioengines.protocol import READ, WRITE
from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
from pytest_kvcache.backends.protocol import BackendPlan

store = EngineBuckets()
store.open(BackendPlan(directory=sys.argv[1], object_bytes={SIZE}, chunk_bytes={SIZE},
    io="buffered", sync="none", host="here", namespace="n"))
engine = BucketEngine(store, 16, store, 1)
keys = {KEYS!r}
views = [memoryview(mmap.mmap(-1, {SIZE})) for _key in keys]

def carried_out(kind, numbers):
    for number in numbers:
        engine.stage(number, kind, keys[number], 0, views[number], 1)
    engine.submit(len(numbers))
    done = 0
    while done < len(numbers):
        engine.submit(0, time.monotonic_ns() + 10**8)
        engine.look()
        done += len(engine.reap())

for mark, kind, numbers in (
    ("first", WRITE, [0, 1, 2]), ("second", WRITE, [3, 4]), ("load", READ, [1, 2, 3, 0]),
):
    os.access(f"/mark/{{mark}}", 0)
    carried_out(kind, numbers)
os.access("/mark/end", 0)
engine.close()
"""


def test_several_requests_are_read_at_a_time(store: EngineBuckets, tmp_path: Path) -> None:
    """The first one waits for a writer of its pipe, the second one does not wait for it."""
    engine = BucketEngine(store, 2 * len(KEYS), store, 2)
    carried_out(engine, WRITE, KEYS[:1], buffers()[:1])
    carried_out(engine, WRITE, KEYS[1:], buffers(byte=5)[1:])
    held = tmp_path / "1.bucket"
    held.rename(tmp_path / "kept")
    os.mkfifo(held)
    engine.stage(9, READ, KEYS[0], 0, buffers()[0], 1)
    engine.submit(1)
    found = buffers()[1:]
    carried_out(engine, READ, KEYS[1:], found)
    assert found == buffers(byte=5)[1:]
    assert engine.in_flight == 1
    os.close(os.open(held, os.O_WRONLY))
    engine.close()


def test_a_bucket_takes_one_open_however_much_is_moved_of_it(tmp_path: Path) -> None:
    made = calls_of(SCRIPT, tmp_path)
    assert made["first"] == made["second"] == "open pwrite open write close close"
    assert made["load"] == "open pread pread pread close open pread close"
