"""The backends' contract, run against every built-in one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.errors import StorageError
from pytest_kvcache.testing import CAPACITY_OBJECTS, CHUNK_BYTES, BackendContract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.backends.protocol import Store


KEY = "0a1b.0"


class TestNull(BackendContract):
    def make_backend(self, tmp_path: Path) -> NullBackend:
        del tmp_path
        return NullBackend()

    def test_it_is_no_storage_and_says_so(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert facts.io_mode == "none"
        assert (NullBackend.traits.stores_data, NullBackend.traits.is_storage) == (False, False)


class TestMemory(BackendContract):
    def make_backend(self, tmp_path: Path) -> MemoryBackend:
        del tmp_path
        return MemoryBackend()

    def test_it_is_no_storage_and_says_so(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert facts.io_mode == "none"
        assert (MemoryBackend.traits.stores_data, MemoryBackend.traits.is_storage) == (True, False)


class _File(BackendContract):
    """In pytest's own temporary directory, whatever filesystem that is."""

    store: ClassVar[Store | None] = "file"

    def make_backend(self, tmp_path: Path) -> StoreBackend:
        del tmp_path
        return StoreBackend()


class _Slab(_File):
    store = "slab"

    def test_what_was_not_put_is_not_there(self, tmp_path: Path) -> None:
        """An extent still holds what its last owner left in it."""
        with self.storing(tmp_path, 2 * CHUNK_BYTES) as objects:
            objects.put(KEY, 1)
            objects.backend.delete(KEY)
            for number in range(CAPACITY_OBJECTS):  # one of them owns that extent
                objects.put_chunk(f"{number:x}", number, 0)
            for number in range(CAPACITY_OBJECTS):
                objects.check_chunk(f"{number:x}", number, 0)
                buffer = objects.payload.read_buffer()
                with pytest.raises(StorageError, match=f"wanted {CHUNK_BYTES} bytes, got 0"):
                    objects.backend.get_into(f"{number:x}", CHUNK_BYTES, buffer.view[:CHUNK_BYTES])


class TestFileDirect(_File):
    def test_it_is_storage_and_says_how_it_is_opened(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert StoreBackend.traits.is_storage
            assert facts.io_mode == ("buffered" if facts.io_note else "direct")


class TestFileBufferedSynced(_File):
    io = "buffered"
    sync = "data"


class TestSlabDirect(_Slab):
    pass


class TestSlabBufferedSynced(_Slab):
    io = "buffered"
    sync = "data"


class _InMemory(BackendContract):
    """On a tmpfs: the same code, without the wait for a device."""

    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        if not Path("/dev/shm").is_dir():
            pytest.skip("this machine has no /dev/shm")
        path = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/dev/shm"))
        yield path
        shutil.rmtree(path)


class TestFileDirectSyncedInMemory(_InMemory, _File):
    sync = "data"


class TestFileBufferedInMemory(_InMemory, _File):
    io = "buffered"


class TestSlabDirectSyncedInMemory(_InMemory, _Slab):
    sync = "data"


class TestSlabBufferedInMemory(_InMemory, _Slab):
    io = "buffered"
