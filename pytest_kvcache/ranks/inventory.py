"""What a rank has put into a store without a directory, and has to take out again.

Where a store has no directory that goes with all that is in it, objects go one by one:
those of the index, and what a stop has left between an eviction and its delete.
Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from pytest_kvcache.backends.protocol import Backend, BackendFacts, BackendPlan


class Inventory:
    """A backend, and the keys of what is in it; calls go on to the backend as they come.

    Threads of the I/O engine call it; a set's ``add`` and ``discard`` are one step each.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stored: set[str] = set()
        self._doubtful: set[str] = set()

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Do as the backend does."""
        return self._backend.open(plan)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Put an object; of one whose put failed, nobody knows whether it is there."""
        self._stored.add(key)
        try:
            self._backend.put_from(key, offset, buffer)
        except BaseException:
            self._doubtful.add(key)
            raise

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Do as the backend does."""
        self._backend.get_into(key, offset, buffer)

    def delete(self, key: str) -> None:
        """Do as the backend does."""
        self._backend.delete(key)
        self._stored.discard(key)

    def sync(self, key: str) -> None:
        """Do as the backend does."""
        self._backend.sync(key)

    def close(self) -> None:
        """Do as the backend does."""
        self._backend.close()

    def clear(self, at_once: int) -> None:
        """Delete all that is left, so many at once; raises the first StorageError."""
        with ThreadPoolExecutor(at_once) as threads:
            for done in [threads.submit(self._clear_one, key) for key in sorted(self._stored)]:
                done.result()

    def _clear_one(self, key: str) -> None:
        if key not in self._doubtful:
            self.delete(key)
            return
        with suppress(StorageError):  # it may never have come to be
            self.delete(key)
