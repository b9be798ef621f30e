from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix import fileio
from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.fileio import direct_refusal, keeps_pages, move
from pytest_kvcache.backends.posix.openfiles import MAX_IDLE_FILES, OpenFiles
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
    from collections.abc import Iterator, Sequence


def refuse(_path: str) -> str:
    return "Invalid argument"


# --- how files are opened ---------------------------------------------------------------


def test_a_refusal_of_direct_io_falls_back_visibly(tmp_path: Path) -> None:
    backend = FileBackend(probe=refuse)
    facts = backend.open(make_plan(tmp_path))
    assert facts.io_mode == "buffered"
    assert facts.io_note is not None
    assert f"filesystem of {tmp_path} on n1 refuses direct I/O (Invalid arg" in facts.io_note
    backend.put_from("ab", 0, memoryview(b"z" * CHUNK))  # unaligned memory: not direct
    got = bytearray(CHUNK)
    backend.get_into("ab", 0, memoryview(got))
    assert got == b"z" * CHUNK


def test_direct_io_bypasses_the_page_cache(tmp_path: Path) -> None:
    backend = FileBackend(probe=lambda _: None)
    assert backend.open(make_plan(tmp_path)).io_mode == "direct"
    flags = backend.read_flags & backend.write_flags
    assert flags & os.O_DIRECT


def test_buffered_when_asked_asks_no_probe(tmp_path: Path) -> None:
    def forbidden(_path: str) -> str:
        raise AssertionError

    facts = FileBackend(probe=forbidden).open(make_plan(tmp_path, io="buffered"))
    assert facts.io_mode == "buffered"
    assert "refuses" not in (facts.io_note or "")


def test_a_filesystem_that_refuses_the_open_is_found_out(tmp_path: Path) -> None:
    def opener(path: str, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return os.open(path, flags, mode)

    assert direct_refusal(str(tmp_path / "probe"), opener=opener) == "Invalid argument"
    assert not stored_files(tmp_path)


@pytest.mark.parametrize("broken", ["writer", "reader"])
def test_a_filesystem_that_refuses_the_transfer_only_is_found_out(
    tmp_path: Path, broken: str
) -> None:
    def transfer(_fd: int, _buffers: object, _offset: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "whatever")

    kinds: dict[str, Any] = {broken: transfer}
    refusal = direct_refusal(str(tmp_path / "probe"), opener=plain_open, **kinds)
    assert refusal == os.strerror(errno.EOPNOTSUPP)
    assert not stored_files(tmp_path)


def plain_open(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags & ~os.O_DIRECT, mode)


def test_a_page_that_comes_back_changed_is_a_refusal(tmp_path: Path) -> None:
    def reader(_fd: int, buffers: Sequence[Any], _offset: int) -> int:
        buffers[0][:] = b"x" * PAGE
        return PAGE

    refusal = direct_refusal(str(tmp_path / "probe"), reader=reader)
    assert refusal == "a page came back changed"


def test_direct_writes_that_go_through_the_page_cache_are_a_refusal(tmp_path: Path) -> None:
    """As on ext4 with data=journal, which accepts the open and the transfer."""
    if probe_filesystem(str(tmp_path), "n1").is_tmpfs:
        pytest.skip("tmpfs has nothing but the page cache")
    refusal = direct_refusal(str(tmp_path / "probe"), opener=plain_open)
    assert refusal == "what is written goes through the page cache"
    assert not stored_files(tmp_path)


def test_a_failure_that_is_no_refusal_is_not_taken_for_one(tmp_path: Path) -> None:
    def writer(_fd: int, _buffers: object, _offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        direct_refusal(str(tmp_path / "probe"), opener=plain_open, writer=writer)
    assert not stored_files(tmp_path)


def test_another_failure_of_the_probe_is_an_error(tmp_path: Path) -> None:
    def probe(path: str) -> str | None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with pytest.raises(StorageError, match=f"n1: can't prepare {tmp_path}: Input/output error"):
        FileBackend(probe=probe).open(make_plan(tmp_path))


def test_a_page_cache_that_is_the_storage_is_said() -> None:
    directory = Path("/dev/shm")
    if not directory.is_dir():
        pytest.skip("this machine has no /dev/shm")
    assert keeps_pages(str(directory / f"kvcache-test-{os.getpid()}"))


def test_a_page_cache_that_lets_go_is_not_complained_about() -> None:
    if not probe_filesystem("/var/tmp", "n1").counts_io:
        pytest.skip("/var/tmp of this machine has no device")
    assert not keeps_pages(f"/var/tmp/kvcache-test-{os.getpid()}")


def test_pages_that_stay_are_noted_for_people() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this machine has no /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/dev/shm"))
    try:
        note = FileBackend().open(make_plan(directory, io="buffered")).io_note
    finally:
        shutil.rmtree(directory)
    assert note is not None
    assert "reads may come from memory" in note


def is_cached(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return fileio.is_cached(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [CHUNK, 2 * CHUNK])
def test_buffered_pages_are_dropped_after_sync_and_after_every_read(size: int) -> None:
    if not probe_filesystem("/var/tmp", "n1").counts_io:
        pytest.skip("/var/tmp of this machine has no device")
    directory = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/var/tmp"))
    try:
        backend = FileBackend()
        backend.open(make_plan(directory, io="buffered", sync="data", object_bytes=size))
        backend.put_from("ab", 0, page_buffer(CHUNK))
        (path,) = stored_files(directory)
        assert is_cached(path)
        backend.sync("ab")
        assert not is_cached(path)
        backend.get_into("ab", 0, page_buffer(CHUNK))
        assert not is_cached(path)
        backend.close()
    finally:
        shutil.rmtree(directory)


def test_a_backend_without_a_directory_says_so() -> None:
    with pytest.raises(StorageError, match="n1: the file backend needs a directory"):
        FileBackend().open(make_plan(None))


def test_a_missing_directory_names_host_path_and_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"n1: can't prepare {tmp_path}/no: No such file") as e:
        FileBackend().open(make_plan(tmp_path / "no"))
    assert isinstance(e.value.__cause__, FileNotFoundError)


# --- what is on the disk ------------------------------------------------------------------


def test_keys_that_begin_alike_spread_over_the_directories(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=PAGE, chunk_bytes=PAGE))
    for number in range(64):
        backend.put_from(f"00000000{number:x}.0", 0, page_buffer(PAGE))
    assert len({path.parent for path in stored_files(tmp_path)}) > 32


def test_close_leaves_the_objects_and_no_open_file(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=2 * CHUNK))
    backend.put_from("ab", 0, page_buffer(CHUNK))
    backend.get_into("ab", 0, page_buffer(CHUNK))
    assert open_files_below(tmp_path)
    backend.close()
    assert not open_files_below(tmp_path)
    assert len(stored_files(tmp_path)) == 1


def test_delete_frees_the_space_of_a_file_that_is_still_open(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=2 * CHUNK))
    backend.put_from("ab", 0, page_buffer(CHUNK))
    backend.get_into("ab", 0, page_buffer(CHUNK))
    backend.delete("ab")
    assert not open_files_below(tmp_path)
    assert not stored_files(tmp_path)


@pytest.mark.parametrize("sync", ["none", "data"])
def test_a_complete_object_leaves_no_file_open(tmp_path: Path, sync: str) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=3 * CHUNK, sync=sync))
    for offset in (0, CHUNK, 2 * CHUNK):
        backend.put_from("ab", offset, page_buffer(CHUNK))
    assert len(open_files_below(tmp_path)) == (1 if sync == "data" else 0)
    backend.sync("ab")
    for offset in (0, CHUNK, 2 * CHUNK):
        backend.get_into("ab", offset, page_buffer(CHUNK))
    assert not open_files_below(tmp_path)


def test_chunks_of_one_object_share_one_open(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=3 * CHUNK))
    backend.put_from("ab", 0, page_buffer(CHUNK))
    backend.put_from("ab", CHUNK, page_buffer(CHUNK))
    assert len(open_files_below(tmp_path)) == 1


def test_abandoned_objects_do_not_exhaust_the_open_files(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=2 * PAGE, chunk_bytes=PAGE))
    keys = [f"{number:x}" for number in range(2 * MAX_IDLE_FILES)]
    for offset in (0, PAGE):  # nobody is finished before everybody has begun
        for key in keys:
            backend.put_from(key, offset, page_buffer(PAGE))
            assert len(open_files_below(tmp_path)) <= MAX_IDLE_FILES
    for key in keys:
        backend.get_into(key, PAGE, page_buffer(PAGE))
    assert len(open_files_below(tmp_path)) <= 2 * MAX_IDLE_FILES
    assert len(stored_files(tmp_path)) == len(keys)


def test_a_file_in_use_is_closed_by_its_last_transfer_only(tmp_path: Path) -> None:
    path = str(tmp_path / "object")
    files = OpenFiles(os.O_RDWR | os.O_CREAT, 2 * PAGE)
    first, second = files.acquire(path), files.acquire(path)
    assert first is second
    assert files.take(path) is None  # a delete comes between
    files.release(path, first, PAGE)
    os.fstat(second.fd)
    files.release(path, second, PAGE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second.fd)


def test_threads_that_open_one_file_at_once_share_one_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "object")
    for _ in range(50):
        files = OpenFiles(os.O_RDWR | os.O_CREAT, 8 * PAGE)
        barrier = threading.Barrier(8)
        got = []

        def work(files: OpenFiles = files, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            got.append(files.acquire(path))  # noqa: B023 - joined below

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(got)) == 1
        assert len(open_files_below(tmp_path)) == 1
        for held in got:
            files.release(path, held, PAGE)
        assert not open_files_below(tmp_path)


# --- transfers that go wrong --------------------------------------------------------------


@pytest.fixture
def buffered(tmp_path: Path) -> FileBackend:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, io="buffered"))
    return backend


def test_a_short_transfer_goes_on_where_it_stopped() -> None:
    calls = []

    def stingy(_fd: int, buffers: Any, offset: int) -> int:
        calls.append((offset, len(buffers[0])))
        return min(1000, len(buffers[0]))

    assert move(stingy, 0, 500, memoryview(bytes(2500)), buffered=True) == 2500
    assert calls == [(500, 2500), (1500, 1500), (2500, 500)]


def test_a_transfer_that_moves_nothing_ends() -> None:
    steps = iter([1000, 0])
    moved = move(lambda *_: next(steps), 0, 0, memoryview(bytes(4096)), buffered=True)
    assert moved == 1000


@pytest.mark.parametrize("size", [CHUNK, 2 * CHUNK])
@pytest.mark.parametrize("left", [0, 5000, 2 * PAGE])
def test_a_truncated_object_is_a_short_read(tmp_path: Path, left: int, size: int) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=size))
    backend.put_from("ab", 0, page_buffer(CHUNK))
    (path,) = stored_files(tmp_path)
    os.truncate(path, left)
    pattern = f"n1: short read of {path} at offset 0: wanted {CHUNK} bytes, got {left}"
    with pytest.raises(StorageError, match=pattern):
        backend.get_into("ab", 0, page_buffer(CHUNK))


def test_a_failed_transfer_leaves_no_file_open(tmp_path: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, object_bytes=4 * CHUNK))
    for offset in range(0, 4 * CHUNK, CHUNK):
        backend.put_from("ab", offset, page_buffer(CHUNK))
    (path,) = stored_files(tmp_path)
    os.truncate(path, CHUNK)
    backend.get_into("ab", 0, page_buffer(CHUNK))
    assert open_files_below(tmp_path)
    with pytest.raises(StorageError, match="short read"):
        backend.get_into("ab", CHUNK, page_buffer(CHUNK))
    assert not open_files_below(tmp_path)


def test_a_write_that_moves_too_little_is_an_error(
    buffered: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(StorageError, match=f"short write .* wanted {CHUNK} bytes, got 0"):
        buffered.put_from("ab", 0, memoryview(bytes(CHUNK)))


def test_a_write_that_finds_no_more_room_says_that_the_disk_is_full(
    buffered: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs_result((4096, 4096, 9, 0, 0, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    with pytest.raises(StorageError, match=r"on n1 is full \(short write .*\); lower --kv-st"):
        buffered.put_from("ab", 0, memoryview(bytes(CHUNK)))


def test_a_system_error_keeps_its_number(buffered: FileBackend) -> None:
    with pytest.raises(StorageError, match=r"n1: can't read .*/ab: No such file") as caught:
        buffered.get_into("ab", 0, memoryview(bytearray(CHUNK)))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwritev", "close", "fdatasync"])
def test_a_full_disk_or_quota_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    backend = FileBackend()
    backend.open(make_plan(tmp_path, io="buffered"))

    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError) as caught:
            put_and_sync(backend)
    assert f"the filesystem of {tmp_path} on n1 is full" in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "lower --kv-storage-capacity-gb or give another --kv-cache-dir" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


def put_and_sync(backend: FileBackend) -> None:
    backend.put_from("ab", 0, memoryview(bytes(CHUNK)))
    backend.sync("ab")


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "tmpfs", "size=8m,mode=700") as target:
        yield target


def test_a_really_full_filesystem_is_reported_and_survived(small_tmpfs: Path) -> None:
    backend = FileBackend()
    backend.open(make_plan(small_tmpfs, object_bytes=2**20, chunk_bytes=2**19))
    buffer = page_buffer(2**19)
    stored: list[str] = []
    with pytest.raises(StorageError, match=f"filesystem of {small_tmpfs} on n1 is full") as e:
        fill(backend, buffer, stored)
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.ENOSPC
    assert len(stored) >= 6
    for key in stored:
        backend.get_into(key, 0, buffer)
    backend.delete(stored.pop())
    backend.put_from("ff", 0, buffer)
    backend.close()


def fill(backend: FileBackend, buffer: memoryview, stored: list[str]) -> None:
    for number in range(9):
        for offset in (0, len(buffer)):
            backend.put_from(f"{number:x}", offset, buffer)
        stored.append(f"{number:x}")
