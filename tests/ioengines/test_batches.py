"""Files of a batch are all opened before any is moved, and all closed after."""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendPlan
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import batches
from pytest_kvcache.ioengines.batches import BatchEngine
from pytest_kvcache.ioengines.choose import Situation, choose_engine
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE
from pytest_kvcache.system.kernelqueues import aio_numbers
from tests.factories import HOST, PATIENCE_S, Bookkeeper
from tests.systemcalls import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import Completion

SIZE = 4 * PAGE_BYTES
KEYS = [f"{number:032x}.1" for number in range(5)]


@pytest.fixture
def files(tmp_path: Path) -> EngineFiles:
    backend = EngineFiles(FileCalls(truncates=False, batch_submits=2))
    backend.open(
        BackendPlan(
            directory=str(tmp_path), object_bytes=SIZE, chunk_bytes=SIZE, io="direct", sync="none",
            host=HOST, namespace="n",
        )
    )  # fmt: skip
    return backend


@pytest.fixture
def engine(files: EngineFiles) -> Iterator[BatchEngine]:
    made = BatchEngine(files, 2 * len(KEYS), files, 2)
    made.register([])
    yield made
    made.close()


def buffers(byte: int = 0) -> list[memoryview]:
    found = [memoryview(mmap.mmap(-1, SIZE)) for _key in KEYS]
    for number, buffer in enumerate(found):
        buffer[:] = bytes([byte + number if byte else 0]) * SIZE
    return found


def moved(engine: BatchEngine, kind: int, views: Sequence[memoryview]) -> list[Completion]:
    """What came of all keys, by their slots."""
    for slot, view in enumerate(views):
        engine.stage(slot, kind, KEYS[slot], 0, view, 1)
    assert engine.submit(engine.depth) == len(views)
    found: list[Completion] = []
    until = time.monotonic() + PATIENCE_S
    while len(found) < len(views):
        engine.submit(0, time.monotonic_ns() + 10**8)
        if engine.look():
            found += engine.reap()
        assert time.monotonic() < until
    assert not engine.in_flight
    return sorted(found, key=lambda completion: completion[0])


def test_what_was_stored_in_a_batch_is_loaded_in_another(engine: BatchEngine) -> None:
    assert [error for *_, error in moved(engine, WRITE, buffers(1))] == [None] * len(KEYS)
    found = buffers()
    assert [error for *_, error in moved(engine, READ, found)] == [None] * len(KEYS)
    assert [bytes(view) for view in found] == [bytes(view) for view in buffers(1)]


def test_an_object_takes_from_its_own_open_to_its_own_close(engine: BatchEngine) -> None:
    done = moved(engine, WRITE, buffers(1))
    began = [started_ns for _, started_ns, _, _ in done]
    ended = [done_ns for _, _, done_ns, _ in done]
    assert began == sorted(began)
    assert ended == sorted(ended)
    assert began[-1] <= ended[0]  # all were opened before the first was closed


def test_what_a_batch_lacks_fails_alone(engine: BatchEngine, files: EngineFiles) -> None:
    moved(engine, WRITE, buffers(1))
    Path(files.path(KEYS[1])).unlink()
    os.truncate(files.path(KEYS[3]), PAGE_BYTES)
    errors = [error for *_, error in moved(engine, READ, buffers())]
    assert [error is None for error in errors] == [True, False, True, False, True]
    assert f"can't read {files.path(KEYS[1])}: No such file" in str(errors[1])
    assert isinstance(errors[1], StorageError)
    assert isinstance(errors[1].__cause__, FileNotFoundError)
    assert f"short read of {files.path(KEYS[3])}" in str(errors[3])


def test_a_full_disk_is_told_of_each_object(engine: BatchEngine) -> None:
    engine._queues[WRITE] = Answering(-errno.ENOSPC)
    errors = [error for *_, error in moved(engine, WRITE, buffers(1))]
    assert len([error for error in errors if "is full" in str(error)]) == len(KEYS)


class Answering:
    """A queue of the kernel with one answer for all, as soon as ``holds`` are under way."""

    notes: Sequence[str] = ()

    def __init__(self, answer: int, *, takes: bool = True, holds: int = 0) -> None:
        self.made: list[str] = []
        self._answer = answer
        self._takes = takes
        self._holds = holds
        self._ended: list[tuple[int, int]] = []

    def register(self, buffers: Sequence[memoryview]) -> None:
        pass

    def prepare(  # noqa: PLR0917
        self, slot: int, operation: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        pass

    def prepare_path(self, slot: int, operation: int, path: bytes, flags: int = 0) -> None:
        raise NotImplementedError

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        assert timeout_ns is None
        self.made.append(f"begin {len(slots)}")
        if not self._takes:
            return 0
        self._ended += [(slot, self._answer) for slot in slots]
        return len(slots)

    def peek(self) -> bool:
        self.made.append("look")
        return len(self._ended) > self._holds

    def harvest(self) -> Sequence[tuple[int, int]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


def test_more_of_a_batch_begin_after_each_look_whether_others_have_ended_or_not(
    engine: BatchEngine,
) -> None:
    moved(engine, WRITE, buffers(1))
    queue = Answering(SIZE)
    engine._queues[READ] = queue
    moved(engine, READ, buffers())
    assert queue.made == ["begin 2", "look", "begin 2", "look", "begin 1", "look"]
    queue = Answering(SIZE, holds=len(KEYS) - 1)
    engine._queues[READ] = queue
    moved(engine, READ, buffers())
    assert queue.made == ["begin 2", "look", "begin 2", "look", "begin 1", "look"]


def test_a_kernel_that_takes_nothing_is_given_up_in_the_end(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_PATIENCE_POLLS", 3)
    engine._queues[WRITE] = Answering(0, takes=False)
    errors = [error for *_, error in moved(engine, WRITE, buffers(1))]
    assert len([e for e in errors if "Resource temporarily unavailable" in str(e)]) == len(KEYS)


def test_a_batch_leaves_no_file_open(engine: BatchEngine, files: EngineFiles) -> None:
    moved(engine, WRITE, buffers(1))
    opened = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    assert not {files.path(key) for key in KEYS} & opened


def test_without_files_calls_are_the_backends_own() -> None:
    backend = Bookkeeper()
    backend.prepare(SIZE)
    engine = BatchEngine(backend, 2 * len(KEYS), None, 2)
    engine.register([])
    for kind in (WRITE, READ, DELETE):
        assert [error for *_, error in moved(engine, kind, buffers())] == [None] * len(KEYS)
    engine.close()
    assert backend.counts == {"put": len(KEYS), "get": len(KEYS), "delete": len(KEYS)}


def test_a_kernel_without_such_io_is_told_before_anything_is_moved(files: EngineFiles) -> None:
    def refused(slots: int) -> Queue:
        raise OSError(errno.EAGAIN, f"io_setup of {slots}")

    engine = BatchEngine(files, 4, files, 2, refused)
    with pytest.raises(StorageError, match=r"refuses what moves batches .* fs.aio-max-nr"):
        engine.register([])


@pytest.mark.parametrize("depth", [1, 8])
def test_batches_are_chosen_where_the_kernel_can_move_them(depth: int, files: EngineFiles) -> None:
    here = Situation(
        host=HOST, files=files, directory=None, depth=depth, transfer_bytes=SIZE, batch_submits=2
    )
    choice = choose_engine("auto", here)
    assert (choice.name, choice.asynchronous) == ("threads", None)
    assert "in batches by io_submit" in choice.reason
    setup = aio_numbers()[0]

    def denying(number: int, *_arguments: int) -> int:
        assert number == setup
        return -errno.EPERM

    with pytest.raises(StorageError, match=r"batches by io_submit, which can't be had there"):
        choose_engine("auto", here, call=denying)


BATCHES = """
import mmap, os, sys, time
from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.ioengines.batches import BatchEngine
from pytest_kvcache.ioengines.protocol import READ, WRITE

size = 65536
files = EngineFiles(FileCalls(truncates=False, batch_submits=2))
files.open(BackendPlan(
    directory=sys.argv[1], object_bytes=size, chunk_bytes=size, io="direct", sync="none",
    host="here", namespace="n"))
engine = BatchEngine(files, 10, files, 2)
engine.register([])
views = [memoryview(mmap.mmap(-1, size)) for _ in range(5)]
for mark, kind in (("store", WRITE), ("load", READ)):
    os.access(f"/mark/{mark}", 0)
    for slot, view in enumerate(views):
        engine.stage(slot, kind, f"{slot}.1", 0, view, 1)
    engine.submit(10)
    while engine.look() < 5:
        engine.submit(0, time.monotonic_ns() + 10**9)
    assert not any(error for *_, error in engine.reap())
os.access("/mark/end", 0)
"""


def test_all_files_are_opened_then_moved_so_many_at_a_time_then_closed(tmp_path: Path) -> None:
    found = calls_of(BATCHES, tmp_path)
    opened, closed = " ".join(["open"] * 5), " ".join(["close"] * 5)
    for mark, operation in (("store", "pwrite"), ("load", "pread")):
        begun = f"io_submit:2*{operation} io_submit:2*{operation} io_submit:{operation}"
        assert found[mark] == f"{opened} {begun} {closed}"
