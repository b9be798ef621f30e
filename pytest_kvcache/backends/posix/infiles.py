"""What a backend answers that keeps its objects in files: where they are, not how to get there.

Rank side: imports neither pytest nor MPI. An engine that has the kernel move bytes by itself
(io_uring, libaio) asks `Slabs` or `ObjectFiles` and never calls the backend's own transfers;
both ways may be taken of one backend, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pytest_kvcache.errors import StorageError


class InFiles(Protocol):
    """What both have in common."""

    @property
    def host(self) -> str:
        """This machine, for messages."""
        ...

    @property
    def buffered(self) -> bool:
        """Whether transfers go through the page cache, from which what was read is dropped."""
        ...

    def failure(self, action: str, key: str, error: OSError) -> StorageError:
        """What to say when the system refuses to read, write, sync or delete an object."""
        ...

    def short(self, action: str, key: str, offset: int, wanted: int, got: int) -> StorageError:
        """What to say when fewer bytes could be moved than wanted."""
        ...


@runtime_checkable
class Slabs(InFiles, Protocol):
    """Objects lie in files that stay open."""

    def locate(self, key: str, offset: int, length: int, *, write: bool) -> tuple[int, int]:
        """Return the descriptor and the position of a part; a write makes room for its object.

        Raises StorageError where there is no such part, or no room.
        """
        ...

    def locate_object(self, action: str, key: str) -> tuple[int, int, int]:
        """Return descriptor, position and length of all its room; StorageError if absent."""
        ...

    def wrote(self, key: str, offset: int, length: int) -> None:
        """Note that a part of the object was written."""
        ...

    def delete(self, key: str) -> None:
        """Free the object's room; StorageError if absent. Never waits."""
        ...


@runtime_checkable
class ObjectFiles(InFiles, Protocol):
    """Each object has a file of its own."""

    @property
    def read_flags(self) -> int:
        """What a file is opened with to be read."""
        ...

    @property
    def write_flags(self) -> int:
        """What a file is opened with to be written; it is made if need be."""
        ...

    @property
    def holds_for_sync(self) -> bool:
        """Whether a file that was written stays open for its sync."""
        ...

    def path(self, key: str) -> str:
        """Return where the object's file is, or will be."""
        ...
