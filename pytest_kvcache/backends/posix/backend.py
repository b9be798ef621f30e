"""The backend called file: which of its two stores keeps the objects.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan

_STORES: Mapping[str, Callable[[], FileBackend | SlabBackend]] = {
    "file": FileBackend,
    "slab": SlabBackend,
}
_METHODS = ("put_from", "get_into", "delete", "sync", "close")


class StoreBackend:
    """One file per object, or slabs, as the plan's ``store`` says.

    `open` makes the store and takes over its methods, so that they cost what they cost
    there. ``in_files`` is the store itself: it knows where objects are.
    """

    def __init__(self) -> None:
        self.in_files: FileBackend | SlabBackend | None = None

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Open the store of the plan."""
        if plan.store is None:
            raise StorageError(f"{plan.host}: the file backend needs a store, got none")
        store = _STORES[plan.store]()
        facts = store.open(plan)
        for name in _METHODS:
            setattr(self, name, getattr(store, name))
        self.in_files = store
        return facts

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Write a part of an object."""
        self._not_open(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read a part of an object."""
        self._not_open(key, offset, buffer)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._not_open(key)

    def sync(self, key: str) -> None:
        """Make an object durable."""
        self._not_open(key)

    def close(self) -> None:
        """Nothing is open yet."""

    def _not_open(self, key: str, *_: object) -> NoReturn:
        raise StorageError(f"object {key} is asked of the file backend before it was opened")
