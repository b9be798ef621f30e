"""The backend called file: which of its two stores keeps the objects.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pytest_kvcache.backends.calls import FileCalls, SlotCalls
from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.posix.engineslots import EngineSlots
from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.fileio import IN_FILES
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_kvcache.backends.calls import Calls
    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan, ObjectFileNames
    from pytest_kvcache.backends.traits import BackendTraits

_STORES: Mapping[str, Callable[[], FileBackend | SlabBackend]] = {
    "file": FileBackend, "slab": SlabBackend,
}  # fmt: skip

_Store = FileBackend | SlabBackend | EngineFiles | EngineSlots | EngineBuckets


class StoreBackend:
    """One file per object, or slabs, as the plan's ``store`` says.

    ``in_files`` is that store once it is open: it knows where objects are. With an engine's calls
    in the plan, these are made instead, and nobody else may move an object, unless they are made
    of batches: then ``in_files`` is where these find their files. ``buckets`` is where objects are
    packed, if they are.
    """

    traits: ClassVar[BackendTraits] = replace(IN_FILES, stores=tuple(_STORES), makes_calls=True)

    def __init__(self) -> None:
        self.in_files: FileBackend | SlabBackend | EngineFiles | None = None
        self.buckets: EngineBuckets | None = None
        self._opened: _Store | None = None

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Open the store of the plan."""
        if plan.store is None:
            raise StorageError(f"{plan.host}: the file backend needs a store, got none")
        if plan.calls is not None:
            made = _by_calls(plan.calls)
            facts = made.open(plan)
            self._opened = made
            if isinstance(plan.calls, FileCalls) and plan.calls.batch_submits is not None:
                assert isinstance(made, EngineFiles)
                self.in_files = made
            self.buckets = made if isinstance(made, EngineBuckets) else None
            return facts
        store = _STORES[plan.store]()
        facts = store.open(plan)
        self._opened = self.in_files = store
        return facts

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Write a part of an object."""
        self._store(key).put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read a part of an object."""
        self._store(key).get_into(key, offset, buffer)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._store(key).delete(key)

    def sync(self, key: str) -> None:
        """Make an object durable."""
        self._store(key).sync(key)

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        """Ask the filesystem which objects there are."""
        return self._named.look_up(keys)

    def object_files(self) -> ObjectFileNames:
        """Where the files of objects are, and how they are called."""
        return self._named.object_files()

    def close(self) -> None:
        """Close the store, if it was opened."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _named(self) -> FileBackend | EngineFiles:
        """The store, if its files are named by their objects."""
        if not isinstance(self._opened, FileBackend | EngineFiles):
            raise StorageError(
                "the file backend is asked which objects it has, and keeps none in files of their"
                " own"
            )
        return self._opened

    def _store(self, key: str) -> _Store:
        if self._opened is None:
            raise StorageError(f"object {key} is asked of the file backend before it was opened")
        return self._opened


def _by_calls(calls: Calls) -> EngineFiles | EngineSlots | EngineBuckets:
    if isinstance(calls, FileCalls):
        return EngineFiles(calls)
    return EngineSlots(calls) if isinstance(calls, SlotCalls) else EngineBuckets()
