"""The engines in front of io_uring and libaio, beside a real directory and beside a fake kernel."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.system.kernelqueues import system_call
from tests.ringkit import DEPTH, buffers, engine_of, finish, queue_of
from tests.storage import make_plan, open_files_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.ring import RingEngine
    from pytest_kvcache.system.kernelqueues import KernelEngine

PAGE = 4096
OBJECT = 4 * PAGE
BOTH = pytest.mark.parametrize("name", ["io_uring", "libaio"])
STORES = pytest.mark.parametrize("store", ["slab", "file"])
NOTHING = memoryview(b"")


class Kit:
    """A store in a directory, an engine on it, and its buffers."""

    def __init__(
        self, name: KernelEngine, store: str, directory: Path, queue: Any = None, **plan: Any
    ) -> None:
        self.backend = StoreBackend()
        self.backend.open(
            make_plan(
                directory, object_bytes=OBJECT, chunk_bytes=OBJECT, capacity_objects=40,
                store=store, **plan,
            )
        )  # fmt: skip
        self.engine: RingEngine[Any] = engine_of(name, self.backend, queue=queue)
        self.buffers = buffers(2 * DEPTH, OBJECT)
        self.engine.register([*self.buffers, NOTHING])

    def stage(self, slot: int, kind: int, key: str, content: bytes = b"", offset: int = 0) -> None:
        if kind == WRITE:
            self.buffers[slot][: len(content)] = content
        view = self.buffers[slot][: len(content)] if kind in (READ, WRITE) else NOTHING
        self.engine.stage(slot, kind, key, offset, view, 1)

    def do(self, kind: int, key: str, content: bytes = b"", offset: int = 0) -> str | None:
        slot = 0 if kind in (READ, WRITE) else 2 * DEPTH
        self.stage(slot, kind, key, content, offset)
        ((_, started, done, error),) = finish(self.engine)
        assert started <= done
        return None if error is None else str(error)

    def close(self) -> None:
        self.engine.close()
        self.backend.close()


@pytest.mark.thorough
@BOTH
@STORES
@given(data=st.data())
def test_an_engine_behaves_as_a_dict_of_bytes(
    data: st.DataObject, name: KernelEngine, store: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        kit = Kit(name, store, Path(directory))
        kept: dict[str, bytes] = {}
        for number in range(data.draw(st.integers(1, 12))):
            key = data.draw(st.sampled_from("0123"))
            if key not in kept:
                content = os.urandom(PAGE * data.draw(st.integers(1, 4)))
                assert kit.do(DELETE, key) is not None
                assert kit.do(READ, key, bytes(PAGE)) is not None
                assert kit.do(WRITE, key, content) is None
                kept[key] = content
            elif number % 3 == 0:
                assert kit.do(DELETE, key) is None
                del kept[key]
            else:
                first = data.draw(st.integers(0, len(kept[key]) // PAGE - 1)) * PAGE
                wanted = kept[key][first:]
                kit.buffers[0][:] = bytes(OBJECT)
                assert kit.do(READ, key, wanted, first) is None
                assert kit.buffers[0][: len(wanted)] == wanted
                assert kit.do(SYNC, key) is None
        kit.close()
        assert not open_files_below(Path(directory))


@BOTH
@STORES
def test_a_full_depth_of_transfers_keeps_every_byte_in_its_place(
    name: KernelEngine, store: str, tmp_path: Path
) -> None:
    kit = Kit(name, store, tmp_path)
    contents = {f"{number:x}": os.urandom(OBJECT) for number in range(2 * DEPTH)}
    for slot, (key, content) in enumerate(contents.items()):
        kit.stage(slot, WRITE, key, content)
    assert all(error is None for *_, error in finish(kit.engine))
    for slot, key in enumerate(reversed(contents)):
        kit.buffers[slot][:] = bytes(OBJECT)
        kit.stage(slot, READ, key, bytes(OBJECT))
    done = finish(kit.engine)
    assert sorted(slot for slot, *_ in done) == list(range(2 * DEPTH))
    for slot, key in enumerate(reversed(contents)):
        assert kit.buffers[slot] == contents[key]
    kit.close()


@BOTH
def test_transfers_of_an_object_share_one_descriptor(name: KernelEngine, tmp_path: Path) -> None:
    kit = Kit(name, "file", tmp_path)
    content = os.urandom(OBJECT)
    for part in range(4):
        kit.buffers[part][:PAGE] = content[part * PAGE : (part + 1) * PAGE]
        kit.engine.stage(part, WRITE, "a", part * PAGE, kit.buffers[part][:PAGE], 4)
    assert all(error is None for *_, error in finish(kit.engine))
    assert not open_files_below(tmp_path)  # the last one has closed it
    for part in range(3):  # one never comes
        kit.engine.stage(part, READ, "a", part * PAGE, kit.buffers[part][:PAGE], 4)
    assert all(error is None for *_, error in finish(kit.engine))
    assert len(open_files_below(tmp_path)) == 1
    kit.close()
    assert not open_files_below(tmp_path)


@BOTH
@STORES
def test_nothing_is_left_open_after_close(name: KernelEngine, store: str, tmp_path: Path) -> None:
    before = _descriptors(), _mappings()
    for _ in range(3):
        kit = Kit(name, store, tmp_path)
        assert kit.do(WRITE, "a", bytes(OBJECT)) is None
        assert kit.do(READ, "b", bytes(OBJECT)) is not None
        kit.stage(0, READ, "a", bytes(OBJECT))
        kit.engine.submit(1)
        kit.stage(1, READ, "a", bytes(OBJECT))
        kit.close()
        kit.engine.close()
    assert (_descriptors(), _mappings()) == before


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _mappings() -> int:
    text = Path("/proc/self/maps").read_text(encoding="utf-8")
    return text.count("io_uring") + text.count("[aio]")


@BOTH
@STORES
def test_an_error_names_host_and_path_and_its_cause(
    name: KernelEngine, store: str, tmp_path: Path
) -> None:
    kit = Kit(name, store, tmp_path)
    kit.stage(0, READ, "a", bytes(OBJECT))
    ((_, _, _, error),) = finish(kit.engine)
    assert isinstance(error, StorageError)
    assert "n1: can't read" in str(error)
    if store == "file":
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == errno.ENOENT
    kit.close()


@BOTH
def test_a_file_that_is_too_short_is_an_error(name: KernelEngine, tmp_path: Path) -> None:
    kit = Kit(name, "file", tmp_path)
    assert kit.do(WRITE, "a", bytes(2 * PAGE)) is None
    reported = kit.do(READ, "a", bytes(OBJECT))
    assert reported is not None
    assert f"wanted {OBJECT} bytes, got {2 * PAGE}" in reported
    kit.close()


# --- a kernel that does what it may do --------------------------------------------------------


class Sparing:
    """A queue that takes at most ``most`` calls at a time, and moves at most ``share`` bytes."""

    def __init__(self, queue: Queue, most: int = 99, share: int = OBJECT) -> None:
        self.queue, self.most, self.share = queue, most, share
        self.held: list[tuple[int, int]] = []
        self.holding = False
        self.notes: list[str] = []
        self.register, self.prepare_path = queue.register, queue.prepare_path
        self.close = queue.close

    def prepare(  # noqa: PLR0917 - as the queue's
        self, slot: int, operation: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        if operation in (kernel.READ, kernel.WRITE):
            length = min(length, self.share)
        self.queue.prepare(slot, operation, fd, position, length, skip)

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        taken = slots[: self.most]
        return self.queue.enter(taken, timeout_ns if len(taken) == len(slots) else None)

    def peek(self) -> bool:
        if self.queue.peek():
            self.held += self.queue.harvest()
        return bool(self.held) and not self.holding

    def harvest(self) -> list[tuple[int, int]]:
        found, self.held = self.held, []
        return found


@BOTH
@STORES
@pytest.mark.parametrize(("most", "share"), [(1, OBJECT), (3, PAGE), (99, PAGE)])
def test_what_the_kernel_takes_or_moves_in_part_is_carried_on(
    name: KernelEngine, store: str, most: int, share: int, tmp_path: Path
) -> None:
    make = queue_of(name)
    kit = Kit(name, store, tmp_path, queue=lambda slots: Sparing(make(slots), most, share))
    contents = {f"{number:x}": os.urandom(OBJECT) for number in range(DEPTH)}
    for slot, (key, content) in enumerate(contents.items()):
        kit.stage(slot, WRITE, key, content)
    begun = kit.engine.submit(DEPTH)
    assert begun == kit.engine.in_flight == min(most, DEPTH)
    assert all(error is None for *_, error in finish(kit.engine))
    for slot, key in enumerate(contents):
        kit.stage(DEPTH + slot, READ, key, bytes(OBJECT))
    assert all(error is None for *_, error in finish(kit.engine))
    for slot, content in enumerate(contents.values()):
        assert kit.buffers[DEPTH + slot] == content
    kit.close()


@BOTH
@STORES
def test_what_is_withdrawn_had_not_begun_and_what_had_comes_late(
    name: KernelEngine, store: str, tmp_path: Path
) -> None:
    make, made = queue_of(name), []

    def queue(slots: int) -> Sparing:
        made.append(Sparing(make(slots), most=2))
        return made[0]

    kit = Kit(name, store, tmp_path, queue=queue)
    for slot in range(5):
        kit.stage(slot, WRITE, f"{slot:x}", bytes(OBJECT))
    made[0].holding = True
    assert kit.engine.submit(5) == 2
    assert kit.engine.withdraw() == [2, 3, 4]
    time.sleep(0.05)
    assert kit.engine.look() == 0
    assert kit.engine.in_flight == 2  # so the loop does not give those slots out again
    assert kit.engine.longest_wait_ns(time.monotonic_ns()) > 40_000_000
    made[0].holding = False
    done = finish(kit.engine)
    assert sorted(slot for slot, *_ in done) == [0, 1]
    assert kit.engine.longest_wait_ns(time.monotonic_ns()) == 0
    kit.close()


@BOTH
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
def test_a_kernel_that_takes_nothing_for_a_while_is_asked_again(
    name: KernelEngine, error: int, tmp_path: Path
) -> None:
    refusals = iter([True, True, True])

    def call(number: int, *args: int) -> int:
        submits = number in (426, 209, 2) and (args[1] > 0)
        if submits and next(refusals, False):
            return -error
        return system_call(number, *args)

    kit = Kit(name, "slab", tmp_path, queue=lambda slots: _queue(name, slots, call))
    assert kit.do(WRITE, "a", bytes(OBJECT)) is None
    assert next(refusals, None) is None
    kit.close()


def _queue(name: KernelEngine, slots: int, call: Any) -> Queue:
    from pytest_kvcache.ioengines.choose import open_queue  # noqa: PLC0415

    return open_queue(name, slots, DEPTH, call)


@BOTH
def test_a_stamp_is_not_late_by_the_time_in_which_nothing_was_in_flight(
    name: KernelEngine, tmp_path: Path
) -> None:
    kit = Kit(name, "slab", tmp_path)
    for _ in range(2):
        time.sleep(0.2)
        kit.stage(0, WRITE, "a", bytes(OBJECT))
        began = time.monotonic_ns()
        kit.engine.submit(1)
        time.sleep(0.05)  # so that the first look finds it
        while not kit.engine.look():
            time.sleep(0.01)
        assert max(kit.engine.lags_ns) <= time.monotonic_ns() - began
        kit.engine.lags_ns.clear()
        kit.engine.reap()
    kit.close()


@BOTH
def test_another_thread_sees_how_long_the_loop_has_waited(
    name: KernelEngine, tmp_path: Path
) -> None:
    """While the loop is within the system call that waits."""
    make, made = queue_of(name), []

    def queue(slots: int) -> Sparing:
        made.append(Sparing(make(slots)))
        return made[0]

    kit = Kit(name, "slab", tmp_path, queue=queue)
    kit.stage(0, WRITE, "a", bytes(OBJECT))
    made[0].holding = True
    kit.engine.submit(1)
    while not made[0].held:  # until the answer is there, and held back: the next call sleeps
        time.sleep(0.001)
        made[0].peek()
    seen: list[int] = []

    def watch() -> None:
        time.sleep(0.1)
        seen.append(kit.engine.longest_wait_ns(time.monotonic_ns()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    while not seen:  # a call may be interrupted, and is made again, as the loop does
        kit.engine.submit(0, time.monotonic_ns() + 400_000_000)
    watcher.join()
    assert seen[0] > 100_000_000
    made[0].holding = False
    finish(kit.engine)
    kit.close()
