from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.fileio import is_cached
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.filesystem import probe_filesystem
from tests.storage import (
    CHUNK,
    PAGE,
    make_plan,
    mounted,
    open_files_below,
    page_buffer,
    stored_files,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.backends.protocol import BackendPlan


def slab_plan(directory: Path | None, **change: Any) -> BackendPlan:
    return make_plan(directory, **{"store": "slab", "capacity_objects": 10} | change)


def opened(directory: Path, **change: Any) -> SlabBackend:
    backend = SlabBackend()
    backend.open(slab_plan(directory, **change))
    return backend


def blocks_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in stored_files(directory))


# --- what is on the disk ------------------------------------------------------------------


def test_room_for_all_objects_is_there_before_the_first(tmp_path: Path) -> None:
    backend = opened(tmp_path)
    files = stored_files(tmp_path)
    assert sorted(path.name for path in files) == [f"kvcache-slab-{n:04d}" for n in range(8)]
    assert sum(path.stat().st_size for path in files) == 10 * CHUNK
    before = blocks_bytes(tmp_path)
    assert before >= 10 * CHUNK
    for number in range(10):
        backend.put_from(f"{number:x}", 0, page_buffer(CHUNK))
    backend.close()
    assert blocks_bytes(tmp_path) <= before + 8 * PAGE  # extent trees may grow, data does not
    assert stored_files(tmp_path) == files


def test_neighbours_are_in_other_slabs(tmp_path: Path) -> None:
    backend = opened(tmp_path)
    for number in range(8):
        backend.put_from(f"{number:x}", 0, page_buffer(CHUNK, b"%d" % number))
    for number, path in enumerate(sorted(stored_files(tmp_path))):
        content = path.read_bytes()
        assert content[:CHUNK] == b"%d" % number * CHUNK


def test_close_leaves_the_slabs_and_no_open_file(tmp_path: Path) -> None:
    backend = opened(tmp_path)
    assert len(open_files_below(tmp_path)) == 8
    backend.close()
    assert not open_files_below(tmp_path)
    assert len(stored_files(tmp_path)) == 8


def test_an_open_after_another_makes_the_slabs_anew(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.put_from("ab", 0, page_buffer(CHUNK))
    first.close()
    backend = opened(tmp_path, capacity_objects=3, sync="data", io="buffered")
    assert len(stored_files(tmp_path)) == 3
    with pytest.raises(StorageError, match="hold no such object"):
        backend.get_into("ab", 0, page_buffer(CHUNK))


# --- which object is where ----------------------------------------------------------------


def test_one_object_too_many_names_host_and_place(tmp_path: Path) -> None:
    backend = opened(tmp_path, capacity_objects=2)
    for key in ("a", "b"):
        backend.put_from(key, 0, page_buffer(CHUNK))
    pattern = f"n1: no room for object c in the slabs of {tmp_path}: all 2 extents hold"
    with pytest.raises(StorageError, match=pattern):
        backend.put_from("c", 0, page_buffer(CHUNK))
    backend.delete("a")
    backend.put_from("c", 0, page_buffer(CHUNK))
    assert (backend.allocator.allocated, backend.allocator.free) == (2, 0)


@pytest.mark.parametrize("action", ["read", "sync", "delete"])
def test_an_object_that_is_gone_names_host_and_place(tmp_path: Path, action: str) -> None:
    backend = opened(tmp_path)
    backend.put_from("ab", 0, page_buffer(CHUNK))
    backend.delete("ab")
    calls = {
        "read": lambda: backend.get_into("ab", 0, page_buffer(CHUNK)),
        "sync": lambda: backend.sync("ab"),
        "delete": lambda: backend.delete("ab"),
    }
    pattern = f"n1: can't {action} object ab: the slabs of {tmp_path} hold no such object"
    with pytest.raises(StorageError, match=pattern):
        calls[action]()
    assert (backend.allocator.allocated, backend.allocator.free) == (0, 10)


def test_a_put_past_the_object_touches_no_neighbour(tmp_path: Path) -> None:
    backend = opened(tmp_path, object_bytes=2 * CHUNK)
    pattern = f"n1: can't write bytes {CHUNK} to {3 * CHUNK} of object ab .* has {2 * CHUNK} bytes"
    with pytest.raises(StorageError, match=pattern):
        backend.put_from("ab", CHUNK, page_buffer(2 * CHUNK))
    assert backend.allocator.allocated == 0


def test_objects_come_and_go_and_none_is_lost(tmp_path: Path) -> None:
    backend = opened(tmp_path, object_bytes=2 * PAGE, chunk_bytes=PAGE, capacity_objects=8)

    def live(name: int) -> None:
        fill = b"%x" % name
        buffer = page_buffer(PAGE)
        for number in range(30):
            key = f"{name:x}.{number:x}"
            for offset in (PAGE, 0):
                backend.put_from(key, offset, page_buffer(PAGE, fill))
            for offset in (0, PAGE):
                backend.get_into(key, offset, buffer)
                assert bytes(buffer) == fill * PAGE
            backend.delete(key)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(live, name) for name in range(8)]:
            done.result()
    assert (backend.allocator.allocated, backend.allocator.free) == (0, 8)


# --- how files are opened -----------------------------------------------------------------


def test_a_refusal_of_direct_io_falls_back_visibly(tmp_path: Path) -> None:
    backend = SlabBackend(probe=lambda _: "Invalid argument")
    facts = backend.open(slab_plan(tmp_path))
    assert facts.io_mode == "buffered"
    assert "refuses direct I/O (Invalid argument)" in (facts.io_note or "")
    backend.put_from("ab", 0, memoryview(b"z" * CHUNK))  # unaligned memory: not direct
    got = bytearray(CHUNK)
    backend.get_into("ab", 0, memoryview(got))
    assert got == b"z" * CHUNK


def test_a_filesystem_that_reserves_nothing_is_reported(tmp_path: Path) -> None:
    backend = SlabBackend(reserver=lambda *_: False)
    facts = backend.open(slab_plan(tmp_path))
    note = f"the filesystem of {tmp_path} on n1 can't reserve space (fallocate): slabs get theirs"
    assert note in (facts.io_note or "")
    assert sum(path.stat().st_size for path in stored_files(tmp_path)) == 10 * CHUNK
    assert blocks_bytes(tmp_path) < 10 * CHUNK
    backend.put_from("ab", 0, page_buffer(CHUNK))
    backend.get_into("ab", 0, page_buffer(CHUNK))


def test_a_filesystem_without_fallocate_is_found_out(tmp_path: Path) -> None:
    with mounted(tmp_path / "ram", "ramfs", "mode=700") as directory:
        backend = SlabBackend()
        note = backend.open(slab_plan(directory)).io_note or ""
        backend.close()
    assert "can't reserve space (fallocate)" in note


def test_buffered_pages_of_an_object_are_dropped_and_none_are_read_ahead() -> None:
    if not probe_filesystem("/var/tmp", "n1").counts_io:
        pytest.skip("/var/tmp of this machine has no device")
    directory = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/var/tmp"))
    try:
        backend = opened(directory, io="buffered", sync="data", capacity_objects=40)
        (fd, *_), keys = backend._fds, [f"{number:x}" for number in range(40)]
        pages = range(0, 5 * CHUNK, PAGE)  # the extents 0, 8, 16, 24 and 32
        for key in keys:
            backend.put_from(key, 0, page_buffer(CHUNK))
        assert is_cached(fd, 0)
        for key in keys:
            backend.sync(key)
        assert not any(is_cached(fd, page) for page in pages)
        for key in keys[:24:8]:  # one after another in the first slab
            backend.get_into(key, 0, page_buffer(CHUNK))
        assert not any(is_cached(fd, page) for page in pages)
        backend.close()
    finally:
        shutil.rmtree(directory)


# --- what goes wrong ----------------------------------------------------------------------


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "tmpfs", "size=8m,mode=700") as target:
        yield target


def test_a_filesystem_without_the_room_is_reported_before_anything_is_stored(
    small_tmpfs: Path,
) -> None:
    pattern = f"the filesystem of {small_tmpfs} on n1 is full .*lower --kv-storage-capacity-gb"
    with pytest.raises(StorageError, match=pattern) as e:
        opened(small_tmpfs, object_bytes=2**20, capacity_objects=9)
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.ENOSPC
    assert not open_files_below(small_tmpfs)


@pytest.mark.parametrize("left", [0, 5_000])
def test_a_slab_that_was_truncated_is_a_short_read(tmp_path: Path, left: int) -> None:
    backend = opened(tmp_path)
    backend.put_from("ab", 0, page_buffer(CHUNK))
    path = tmp_path / "kvcache-slab-0000"
    os.truncate(path, left)
    pattern = f"n1: short read of {path} (object ab) at offset 0: wanted {CHUNK} bytes, got {left}"
    with pytest.raises(StorageError, match=re.escape(pattern)):
        backend.get_into("ab", 0, page_buffer(CHUNK))


def test_a_write_that_moves_too_little_is_an_error_and_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda *_: 0)
        with pytest.raises(StorageError, match=f"short write .*wanted {CHUNK} bytes, got 0"):
            backend.put_from("ab", 0, page_buffer(CHUNK))
    with pytest.raises(StorageError, match=r"short read .* got 0"):
        backend.get_into("ab", 0, page_buffer(CHUNK))


@pytest.mark.parametrize(("call", "action"), [("pwritev", "write"), ("fdatasync", "sync")])
def test_a_system_error_names_host_file_and_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, action: str
) -> None:
    backend = opened(tmp_path)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def put_and_sync() -> None:
        backend.put_from("ab", 0, page_buffer(CHUNK))
        backend.sync("ab")

    monkeypatch.setattr(os, call, broken)
    pattern = rf"n1: can't {action} {tmp_path}/kvcache-slab-0000 \(object ab\): Input/output error"
    with pytest.raises(StorageError, match=pattern) as e:
        put_and_sync()
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.EIO


# --- the backend called file --------------------------------------------------------------


@pytest.mark.parametrize(("store", "names"), [("file", "ab"), ("slab", "kvcache-slab-0000")])
def test_the_plan_chooses_the_store(tmp_path: Path, store: str, names: str) -> None:
    backend = StoreBackend()
    backend.open(make_plan(tmp_path, store=store, capacity_objects=1))
    backend.put_from("ab", 0, page_buffer(CHUNK))
    assert [path.name for path in stored_files(tmp_path)] == [names]
    backend.close()


def test_a_plan_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="n1: the file backend needs a store, got none"):
        StoreBackend().open(make_plan(tmp_path))


def test_a_backend_that_is_not_open_says_so() -> None:
    backend = StoreBackend()
    backend.close()
    with pytest.raises(StorageError, match="object ab is asked of the file backend before"):
        backend.sync("ab")


def test_what_slabs_need_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="n1: the file backend needs a directory, got none"):
        SlabBackend().open(slab_plan(None))
    with pytest.raises(StorageError, match="n1: slabs need the number of objects, got none"):
        SlabBackend().open(make_plan(tmp_path))
