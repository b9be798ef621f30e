"""The backends' contract, run against every built-in one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.file import FileBackend
from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.testing import BackendContract

if TYPE_CHECKING:
    from collections.abc import Iterator


class TestNull(BackendContract):
    def make_backend(self, tmp_path: Path) -> NullBackend:
        del tmp_path
        return NullBackend()

    def test_it_is_no_storage_and_says_so(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert (facts.io_mode, facts.stores_data, facts.is_storage) == (
                "none",
                False,
                False,
            )


class TestMemory(BackendContract):
    def make_backend(self, tmp_path: Path) -> MemoryBackend:
        del tmp_path
        return MemoryBackend()

    def test_it_is_no_storage_and_says_so(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert (facts.io_mode, facts.stores_data, facts.is_storage) == ("none", True, False)


class _File(BackendContract):
    """In pytest's own temporary directory, whatever filesystem that is."""

    def make_backend(self, tmp_path: Path) -> FileBackend:
        del tmp_path
        return FileBackend()


class TestFileDirect(_File):
    def test_it_is_storage_and_says_how_it_is_opened(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, PAGE_BYTES) as (_, facts):
            assert facts.is_storage
            assert facts.io_mode == ("buffered" if facts.io_note else "direct")


class TestFileBufferedSynced(_File):
    io = "buffered"
    sync = "data"


class _InMemory(_File):
    """On a tmpfs: the same code, without the wait for a device."""

    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        if not Path("/dev/shm").is_dir():
            pytest.skip("this machine has no /dev/shm")
        path = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/dev/shm"))
        yield path
        shutil.rmtree(path)


class TestFileDirectSyncedInMemory(_InMemory):
    sync = "data"


class TestFileBufferedInMemory(_InMemory):
    io = "buffered"
