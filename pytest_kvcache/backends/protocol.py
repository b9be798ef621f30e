"""What a storage backend is: the plan it opens with, the facts it answers, six methods.

What it is like before it is opened are its traits (traits.py). Rank side: imports neither
pytest nor MPI, and no backend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.backends.calls import Calls
    from pytest_kvcache.backends.traits import BackendTraits

# The unit of direct I/O and of verification: no Linux filesystem in use needs more.
PAGE_BYTES = 4096
# Largest transfer of backends that take parts: a rank's memory must not grow with the object.
MAX_CHUNK_BYTES = 4 * 2**20

IoMode = Literal["direct", "buffered"]
SyncMode = Literal["none", "data"]
Store = Literal["file", "slab"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan:
    """What one rank asks of its backend.

    ``directory`` is the rank's own, empty and existing (None where the traits want none);
    ``namespace`` a name that no other rank of any run has, for keys of a store that all
    ranks share; ``object_bytes`` the size of the largest object as stored, ``chunk_bytes`` the
    largest transfer (the object, where the traits say that objects move whole); with
    ``io="direct"`` both are multiples of 4096. ``host`` names this machine in messages.
    ``capacity_objects`` is how many objects will ever be stored at the same time (None:
    not known); ``store`` one of the traits' ``stores``, None where there are none; ``calls`` are
    an engine's, by which whole objects are to be moved instead (None: in the store's own way);
    ``options`` what the user gave with ``--kv-backend-option``, secrets in clear, so it is
    left out of the plan's repr. Raises OptionError for a value that breaks a rule.
    """

    directory: str | None
    object_bytes: int
    chunk_bytes: int
    io: IoMode
    sync: SyncMode
    host: str
    namespace: str
    capacity_objects: int | None = None
    store: Store | None = None
    calls: Calls | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        if self.io not in ("direct", "buffered"):
            raise OptionError(f"io is {self.io!r}; it must be direct or buffered")
        if self.sync not in ("none", "data"):
            raise OptionError(f"sync is {self.sync!r}; it must be none or data")
        if self.object_bytes < 1:
            raise OptionError(f"object_bytes is {self.object_bytes}; it must be at least 1")
        if self.chunk_bytes < 1:
            raise OptionError(f"chunk_bytes is {self.chunk_bytes}; it must be at least 1")
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

    ``io_mode`` is ``direct``, ``buffered`` or ``none`` (nothing is stored on a storage);
    ``io_note`` says for people what to know about it (why direct I/O was given up), or is
    None. What is known without opening are the traits.
    """

    io_mode: str
    io_note: str | None


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


def absent_name(block: str, part: int | None) -> str:
    """A name for an object of a block that is not there: nothing is ever stored under it."""
    return f"{block}." if part is None else f"{block}..{part}"


def is_absent_name(key: str) -> bool:
    """Whether it is one: without a version."""
    return key.endswith(".") or ".." in key


@runtime_checkable
class LooksUp(Protocol):
    """A backend that can be asked which objects it has: one whose traits say ``makes_calls``."""

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        """Which objects are there; StorageError where it can't be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFileNames:
    """Files in a tree of directories below ``root``, named by an object's key and ``suffix``."""

    root: str
    suffix: str


@runtime_checkable
class NamesObjects(LooksUp, Protocol):
    """A backend whose objects can be found again by the names of their files, by another process.

    It answers so much after it was closed.
    """

    def object_files(self) -> ObjectFileNames:
        """Where they are, and how they are called."""
        ...


class BackendFactory(Protocol):
    """What ``kvcache_backends`` registers: makes a backend, and says beforehand what it is like.

    A class with a class attribute ``traits`` is one.
    """

    @property
    def traits(self) -> BackendTraits:
        """What is decided by before anything is launched, without making a backend."""
        ...

    def __call__(self) -> Backend:
        """Make a backend that is not open; called once per rank and trial, or twice."""
        ...
