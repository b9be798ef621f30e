"""The backends' contract, kept by the file stores when an engine moves their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_kvcache.testing import CHUNK_BYTES, BackendContract
from tests.ringkit import ThroughEngine

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.backends.protocol import Store
    from pytest_kvcache.system.kernelqueues import KernelEngine


class _Engine(BackendContract):
    engine: ClassVar[KernelEngine] = "io_uring"
    store: ClassVar[Store | None] = "slab"

    def make_backend(self, tmp_path: Path) -> ThroughEngine:
        del tmp_path
        return ThroughEngine(self.engine, CHUNK_BYTES)


class TestUringSlabs(_Engine):
    pass


class TestUringSlabsBufferedSynced(_Engine):
    io = "buffered"
    sync = "data"


class TestUringFiles(_Engine):
    store = "file"


class TestUringFilesBufferedSynced(_Engine):
    store = "file"
    io = "buffered"
    sync = "data"


class TestUringFilesSynced(_Engine):
    store = "file"
    sync = "data"


class TestLibaioSlabs(_Engine):
    engine = "libaio"


class TestLibaioFiles(_Engine):
    engine = "libaio"
    store = "file"


class TestLibaioSlabsBufferedSynced(_Engine):
    engine = "libaio"
    io = "buffered"
    sync = "data"


class TestLibaioFilesBufferedSynced(_Engine):
    engine = "libaio"
    store = "file"
    io = "buffered"
    sync = "data"
