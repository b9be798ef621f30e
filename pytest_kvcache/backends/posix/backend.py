"""The backend called file: which of its two stores keeps the objects.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.fileio import IN_FILES
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
    from pytest_kvcache.backends.traits import BackendTraits

_STORES: Mapping[str, Callable[[], FileBackend | SlabBackend]] = {
    "file": FileBackend, "slab": SlabBackend,
}  # fmt: skip


class StoreBackend:
    """One file per object, or slabs, as the plan's ``store`` says.

    ``in_files`` is that store once it is open: it knows where objects are.
    """

    traits: ClassVar[BackendTraits] = replace(IN_FILES, stores=tuple(_STORES))

    def __init__(self) -> None:
        self.in_files: FileBackend | SlabBackend | None = None

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Open the store of the plan."""
        if plan.store is None:
            raise StorageError(f"{plan.host}: the file backend needs a store, got none")
        store = _STORES[plan.store]()
        facts = store.open(plan)
        self.in_files = store
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

    def close(self) -> None:
        """Close the store, if it was opened."""
        if self.in_files is not None:
            self.in_files.close()

    def _store(self, key: str) -> FileBackend | SlabBackend:
        if self.in_files is None:
            raise StorageError(f"object {key} is asked of the file backend before it was opened")
        return self.in_files
