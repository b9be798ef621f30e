"""What a storage backend is: the plan it opens with, the facts it answers, six methods.

Rank side: imports neither pytest nor MPI, and no backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pytest_kvcache.errors import OptionError

# The unit of direct I/O and of verification: no Linux filesystem in use needs more.
PAGE_BYTES = 4096
# Largest transfer: a rank's memory must not grow with the object.
MAX_CHUNK_BYTES = 4 * 2**20

IoMode = Literal["direct", "buffered"]
SyncMode = Literal["none", "data"]
Store = Literal["file", "slab"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan:
    """What one rank asks of its backend.

    ``directory`` is the rank's own, empty and existing (None where the backend needs
    none); ``object_bytes`` the size of an object as stored, ``chunk_bytes`` the largest
    transfer; with ``io="direct"`` both are multiples of 4096. ``host`` names this
    machine in messages. ``capacity_objects`` is how many objects will ever be stored at
    the same time (None: not known); ``store`` how the backend called file keeps them,
    None for every other backend. Raises OptionError for a value that breaks a rule.
    """

    directory: str | None
    object_bytes: int
    chunk_bytes: int
    io: IoMode
    sync: SyncMode
    host: str
    capacity_objects: int | None = None
    store: Store | None = None

    def __post_init__(self) -> None:
        if self.io not in ("direct", "buffered"):
            raise OptionError(f"io is {self.io!r}; it must be direct or buffered")
        if self.sync not in ("none", "data"):
            raise OptionError(f"sync is {self.sync!r}; it must be none or data")
        if self.object_bytes < 1:
            raise OptionError(f"object_bytes is {self.object_bytes}; it must be at least 1")
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise OptionError(
                f"chunk_bytes is {self.chunk_bytes}; it must be 1 to {MAX_CHUNK_BYTES}"
            )
        self._check_alignment()
        self._check_store()

    def _check_alignment(self) -> None:
        if self.io != "direct":
            return
        for name, value in (
            ("object_bytes", self.object_bytes),
            ("chunk_bytes", self.chunk_bytes),
        ):
            if value % PAGE_BYTES:
                raise OptionError(
                    f"{name} is {value}; with io direct it must be a multiple of"
                    f" {PAGE_BYTES}: pad it, or use io buffered"
                )

    def _check_store(self) -> None:
        if self.store not in (None, "file", "slab"):
            raise OptionError(f"store is {self.store!r}; it must be file or slab")
        if self.capacity_objects is not None and self.capacity_objects < 1:
            raise OptionError(f"capacity_objects is {self.capacity_objects}; it must be at least 1")
        if self.store == "slab" and self.capacity_objects is None:
            raise OptionError(
                "store is 'slab' and capacity_objects is None; slabs are made for a number of"
                " objects, give it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What a backend found out when it opened.

    ``io_mode`` is ``direct``, ``buffered`` or ``none``; ``io_note`` says for people what
    to know about it (why direct I/O was given up), or is None. ``stores_data`` False
    means that nothing can be read back: the engine allocates no buffers and verifies
    nothing. ``is_storage`` False labels the results NOT_STORAGE. ``in_directory`` says
    whether the data lies in the plan's directory: only then do that filesystem and the
    process's byte counters tell whether reads reached a device.
    """

    io_mode: str
    io_note: str | None
    stores_data: bool
    is_storage: bool
    in_directory: bool


class Backend(Protocol):
    """Stores objects of bytes under keys; called from several threads at once.

    Keys match ``[0-9a-f.]+`` and name one object for ever: it is written once, never
    overwritten. Chunks of one object may be put concurrently and in any order; the
    object exists from its first chunk on. The engine deletes and syncs an object only
    while none of its chunks is in flight.

    Every failure is a `StorageError` that names host and path; one that the system
    reported carries the OSError as ``__cause__``, so that ``error.__cause__.errno``
    tells. A transfer moves all its bytes or raises. Nothing is allocated per operation
    beyond the path, and the GIL is released while bytes move.
    """

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Get ready, outside every measured span; called once, before anything else."""
        ...

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at byte ``offset`` of the object."""
        ...

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill all of ``buffer`` from byte ``offset`` of the object."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object and free its space; an absent object is an error."""
        ...

    def sync(self, key: str) -> None:
        """Make the object durable; called once after its last chunk if the plan says so."""
        ...

    def close(self) -> None:
        """Release what `open` took, but leave the objects; may be called again."""
        ...
