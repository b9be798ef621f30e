"""The system calls that a profile makes for an object, beside those that its engine was seen to.

The calls below are those of the engines themselves, as strace showed them of their released
wheels (or as their source has them); `readv` and `preadv` with one buffer stand for `read` and
`pread` of the same bytes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.calls import FileCalls, SlotCalls
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.posix.engineslots import EngineSlots
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendPlan
from pytest_kvcache.errors import StorageError
from tests.enginecalls import SEEN
from tests.factories import HOST
from tests.systemcalls import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16 * PAGE_BYTES
KEY, OTHER = f"{1:032x}.1", f"{2:032x}.1"

SCRIPT = """
import mmap, os, sys, time
from pytest_kvcache.backends.calls import BucketCalls, FileCalls
from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.posix.engineslots import EngineSlots
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.ioengines.batches import BatchEngine
from pytest_kvcache.ioengines.buckets import BucketEngine
from pytest_kvcache.ioengines.protocol import READ, WRITE

root, size = sys.argv[1], int(sys.argv[2])
buffer = memoryview(mmap.mmap(-1, size))

def in_a_batch(kind):
    engine.stage(0, kind, "KEY", 0, buffer, 1)
    engine.submit(1)
    while not engine.look():
        engine.submit(0, time.monotonic_ns() + 10**9)
    assert engine.reap()[0][3] is None

for name, profile in PROFILES.items():
    calls = profile.calls
    files = isinstance(calls, FileCalls)
    buckets = isinstance(calls, BucketCalls)
    backend = EngineFiles(calls) if files else EngineBuckets() if buckets else EngineSlots(calls)
    os.mkdir(f"{root}/{name}")
    backend.open(BackendPlan(
        directory=f"{root}/{name}", object_bytes=size, chunk_bytes=size, io=profile.io,
        sync="none", host="here", namespace="n", capacity_objects=4))
    store = lambda: backend.put_from("KEY", 0, buffer)
    load = lambda: backend.get_into("KEY", 0, buffer)
    if files and calls.batch_submits is not None:
        engine = BatchEngine(backend, 1, backend, calls.batch_submits)
        engine.register([])
    elif buckets:
        engine = BucketEngine(backend, 1, backend, 1)
    if buckets or (files and calls.batch_submits is not None):
        store, load = lambda: in_a_batch(WRITE), lambda: in_a_batch(READ)
    store()
    backend.delete("KEY")
    os.access(f"/mark/{name}/store", 0)
    store()
    os.access(f"/mark/{name}/lookup", 0)
    if files:
        backend.look_up(["KEY"])
    os.access(f"/mark/{name}/load", 0)
    load()
    os.access(f"/mark/{name}/delete", 0)
    backend.delete("KEY")
    os.access(f"/mark/{name}/end", 0)
    backend.close()
""".replace("KEY", KEY)


@pytest.fixture(scope="module")
def calls_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return calls_of(SCRIPT, tmp_path_factory.mktemp("calls"), str(SIZE))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_makes_the_calls_of_its_engine(name: str, calls_made: dict[str, str]) -> None:
    lookup, *others = SEEN[name]
    assert [calls_made[f"{name}/{what}"] for what in ("store", "load", "delete")] == others
    if lookup is not None:
        assert calls_made[f"{name}/lookup"] == lookup


# --- what a store of files does --------------------------------------------------------------


def files(directory: Path, calls: FileCalls) -> EngineFiles:
    backend = EngineFiles(calls)
    backend.open(plan_of(directory))
    return backend


def plan_of(directory: Path, **changes: object) -> BackendPlan:
    values: dict[str, object] = {
        "directory": str(directory), "object_bytes": SIZE, "chunk_bytes": SIZE, "io": "buffered",
        "sync": "none", "host": HOST, "namespace": "n", "capacity_objects": 2,
    }  # fmt: skip
    return BackendPlan(**values | changes)  # type: ignore[arg-type]


def data(byte: int) -> memoryview:
    return memoryview(bytearray([byte]) * SIZE)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("publish", ["in-place", "rename", "link"])
def test_what_was_stored_is_there_under_its_name_alone(tmp_path: Path, publish: str) -> None:
    calls = FileCalls(publish=publish, suffix=".bin", levels=(3, 2), directories="stat")  # type: ignore[arg-type]
    backend = files(tmp_path, calls)
    backend.put_from(KEY, 0, data(7))
    assert names(tmp_path) == [f"{KEY}.bin"]
    found = data(0)
    backend.get_into(KEY, 0, found)
    assert found == data(7)


def test_a_lookup_tells_which_objects_are_there(tmp_path: Path) -> None:
    backend = files(tmp_path, FileCalls())
    backend.put_from(KEY, 0, data(1))
    assert backend.look_up([KEY, OTHER, KEY]) == [True, False, True]
    backend.delete(KEY)
    assert backend.look_up([KEY]) == [False]


def test_a_lookup_that_can_not_be_made_is_an_error_and_no_miss(tmp_path: Path) -> None:
    backend = files(tmp_path, FileCalls(lookup_call="stat"))
    with pytest.raises(StorageError, match=r"can't look up .*: File name too long"):
        backend.look_up([KEY, "0" * 300])


def test_an_object_that_is_there_before_it_is_stored_is_an_error(tmp_path: Path) -> None:
    backend = files(tmp_path, FileCalls(before_store=("access",)))
    backend.put_from(KEY, 0, data(1))
    with pytest.raises(StorageError, match=r"is there before it is stored"):
        backend.put_from(KEY, 0, data(2))


def test_an_object_that_is_shorter_than_it_was_is_an_error(tmp_path: Path) -> None:
    backend = files(tmp_path, FileCalls())
    backend.put_from(KEY, 0, data(1))
    os.truncate(backend.path(KEY), SIZE - 1)
    with pytest.raises(StorageError, match=f"wanted {SIZE} bytes, got {SIZE - 1}"):
        backend.get_into(KEY, 0, data(0))


def test_a_longer_object_is_an_error_where_the_engine_reads_on(tmp_path: Path) -> None:
    backend = files(tmp_path, FileCalls(reads_on=True))
    backend.put_from(KEY, 0, data(1))
    with Path(backend.path(KEY)).open("ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="short read"):
        backend.get_into(KEY, 0, data(0))


@pytest.mark.parametrize("field", ["write_bytes", "read_bytes"])
def test_pieces_of_a_store_or_load_are_all_of_it(tmp_path: Path, field: str) -> None:
    backend = files(tmp_path, FileCalls(**{field: PAGE_BYTES + 1}))  # type: ignore[arg-type]
    backend.put_from(KEY, 0, data(3))
    found = data(0)
    backend.get_into(KEY, 0, found)
    assert found == data(3)


# --- what a store of slots does --------------------------------------------------------------


@pytest.fixture(params=[SlotCalls(), SlotCalls(vectors=3), SlotCalls(header=(24, 64))], ids=str)
def slots(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineSlots]:
    backend = EngineSlots(request.param)
    backend.open(plan_of(tmp_path))
    yield backend
    backend.close()


def test_each_object_has_a_slot_of_its_own_until_it_is_deleted(slots: EngineSlots) -> None:
    slots.put_from(KEY, 0, data(1))
    slots.put_from(OTHER, 0, data(2))
    slots.delete(KEY)
    third = f"{3:032x}.1"
    slots.put_from(third, 0, data(3))
    for key, byte in ((OTHER, 2), (third, 3)):
        found = data(0)
        slots.get_into(key, 0, found)
        assert found == data(byte)
    with pytest.raises(StorageError, match="it is not stored"):
        slots.get_into(KEY, 0, data(0))


def test_a_file_of_slots_that_is_unlinked_leaves_no_name(tmp_path: Path) -> None:
    backend = EngineSlots(SlotCalls(allocates=True, unlinked=True))
    backend.open(plan_of(tmp_path))
    backend.put_from(KEY, 0, data(1))
    assert names(tmp_path) == []
    backend.close()


def test_where_nothing_can_be_allocated_the_file_is_sparse_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvcache.backends.posix.engineslots._allocate", lambda *_args: False)
    backend = EngineSlots(SlotCalls(allocates=True))
    facts = backend.open(plan_of(tmp_path))
    assert "allocates nothing ahead: the file of slots is sparse" in str(facts.io_note)
    assert (tmp_path / "slots").stat().st_blocks == 0
    backend.close()


def test_slots_that_are_allocated_have_their_room_before_anything_is_stored(
    tmp_path: Path,
) -> None:
    backend = EngineSlots(SlotCalls(allocates=True, header=(8,)))
    facts = backend.open(plan_of(tmp_path))
    backend.close()
    found = (tmp_path / "slots").stat()
    assert found.st_size == 2 * (SIZE + PAGE_BYTES)
    assert facts.io_note is not None or found.st_blocks * 512 >= found.st_size


def test_a_file_of_slots_that_finds_no_room_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, _size_bytes: int) -> bool:
        opened.append(fd)
        raise OSError(28, os.strerror(28))

    opened: list[int] = []
    monkeypatch.setattr("pytest_kvcache.backends.posix.engineslots._allocate", full)
    with pytest.raises(StorageError, match="is full"):
        EngineSlots(SlotCalls(allocates=True)).open(plan_of(tmp_path))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_who_finds_the_common_temporary_file_taken_was_not_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank has published it, and may have deleted it again by now."""
    files = EngineFiles(FileCalls(publish="rename", shares_temporary=True))
    files.open(
        BackendPlan(
            directory=str(tmp_path), object_bytes=4096, chunk_bytes=4096, io="buffered",
            sync="none", host="n1", namespace="mine",
        )
    )  # fmt: skip

    def taken(source: str, target: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", source, None, target)

    monkeypatch.setattr("os.rename", taken)
    with pytest.raises(StorageError) as failed:
        files.put_from("ab.0", 0, memoryview(bytearray(4096)))
    assert isinstance(failed.value.__cause__, FileExistsError)
