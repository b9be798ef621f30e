"""What the stores that keep objects in files share: direct I/O, transfers, their errors.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendFacts
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.mounts import MEMORY_TYPES, TYPE_NUMBERS, statfs_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import BackendPlan

    Transfer = Callable[[int, Sequence[memoryview | mmap.mmap], int], int]

IN_FILES = BackendTraits(
    unit="range",
    directory=True,
    bounded_by="disk",
    smallest_part_bytes=1,
    largest_part_bytes=None,
    alignment_bytes=PAGE_BYTES,
    kernel_counts=True,
    is_storage=True,
)
"""What backends are like that keep their objects in files of the rank's directory."""

# Where the page cache is the storage; its own verdict tells that.
_MEMORY = frozenset(number for number, names in TYPE_NUMBERS.items() if names <= MEMORY_TYPES)
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


def facts_of(*, direct: bool, notes: Sequence[str]) -> BackendFacts:
    """What a store found out: how its files are opened, and what people should know."""
    mode = "direct" if direct else "buffered"
    return BackendFacts(io_mode=mode, io_note="; ".join(notes) or None)


def direct_refusal(
    path: str,
    *,
    opener: Callable[[str, int, int], int] = os.open,
    writer: Transfer = os.pwritev,
    reader: Transfer = os.preadv,
) -> str | None:
    """Why the filesystem of ``path`` refuses direct I/O; None if it takes it.

    Decided by writing and reading one aligned page of a new file ``path``, removed
    again: some filesystems accept the open and refuse the transfer, others accept both and
    go through the page cache all the same (ext4 with data=journal). Raises OSError for any
    other failure than a refusal.
    """
    page = mmap.mmap(-1, PAGE_BYTES)
    page.write(os.urandom(PAGE_BYTES))
    written = bytes(page)
    try:
        fd = opener(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            writer(fd, (page,), 0)
            through_cache = is_cached(fd) and statfs_type(fd) not in _MEMORY
            page[:] = bytes(PAGE_BYTES)
            reader(fd, (page,), 0)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return os.strerror(error.errno)
    finally:
        Path(path).unlink(missing_ok=True)
    if through_cache:
        return "what is written goes through the page cache"
    return None if bytes(page) == written else "a page came back changed"


def keeps_pages(path: str) -> bool:
    """Whether a page of a new file ``path`` stays in the page cache after DONTNEED.

    True on tmpfs, where the page cache is the storage. Asked of mincore(2); a filesystem
    whose files can't be mapped counts as False.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(PAGE_BYTES), 0)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return is_cached(fd)
    finally:
        os.close(fd)
        Path(path).unlink()


def is_cached(fd: int, offset: int = 0) -> bool:
    """Whether the page at byte ``offset`` of a file is in the page cache."""
    try:
        mapped = mmap.mmap(fd, PAGE_BYTES, flags=mmap.MAP_PRIVATE, offset=offset)
    except OSError as error:
        if error.errno not in (errno.ENODEV, *_REFUSALS):
            raise
        return False
    states = (ctypes.c_ubyte * 1)()
    first = ctypes.c_char.from_buffer(mapped)
    answer = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(PAGE_BYTES), states
    )
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return bool(states[0] & 1)


def move(call: Transfer, fd: int, offset: int, buffer: memoryview, *, buffered: bool) -> int:
    """Bytes moved; fewer than the buffer has only where the file ends.

    ``buffered``: the pages that were read are dropped from the page cache.
    """
    wanted = len(buffer)
    moved = call(fd, (buffer,), offset)
    while moved < wanted:
        step = call(fd, (buffer[moved:],), offset + moved)
        if not step:
            break
        moved += step
    if buffered and call is os.preadv:
        os.posix_fadvise(fd, offset, wanted, os.POSIX_FADV_DONTNEED)
    return moved


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDirectory:
    """Where a rank keeps its objects, and how failures there are worded."""

    host: str
    directory: str

    @classmethod
    def of(cls, plan: BackendPlan) -> StoreDirectory:
        """The plan's; StorageError if it has no directory."""
        if plan.directory is None:
            raise StorageError(f"{plan.host}: the file backend needs a directory, got none")
        return cls(host=plan.host, directory=plan.directory)

    def choose_io(
        self, plan: BackendPlan, probe: Callable[[str], str | None]
    ) -> tuple[bool, list[str]]:
        """Whether files are opened direct, and what people should know about it.

        ``probe`` tells why direct I/O is refused at a path, None if it works.
        """
        path = f"{self.directory}/probe-{token_hex(8)}"  # another rank may probe there as well
        refusal = probe(path) if plan.io == "direct" else None
        direct = plan.io == "direct" and refusal is None
        notes = []
        if refusal is not None:
            notes.append(
                f"the filesystem of {self.directory} on {self.host} refuses direct I/O"
                f" ({refusal}): buffered instead"
            )
        if not direct and keeps_pages(path):
            notes.append(
                f"the page cache of {self.host} keeps pages of {self.directory} that were"
                " to be dropped: reads may come from memory"
            )
        return direct, notes

    def failure(self, action: str, path: str, error: OSError) -> StorageError:
        """What the system said, with the fix where the filesystem is full."""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, fix = "is full", "lower --kv-storage-capacity-gb"
            if error.errno == errno.ENOSPC and self._lacks_inodes():
                what, fix = "has no inode left", "use longer --kv-block-tokens or --kv-store=slab"
            return StorageError(
                f"the filesystem of {self.directory} on {self.host} {what} (can't {action}"
                f" {path}: {reason}); {fix} or give another --kv-cache-dir"
            )
        return StorageError(f"{self.host}: can't {action} {path}: {reason}")

    def _lacks_inodes(self) -> bool:
        """Whether there is room, and nothing that a file could begin with."""
        try:
            found = os.statvfs(self.directory)
        except OSError:
            return False
        return found.f_files > 0 and not found.f_favail and found.f_bavail > 0

    def short(self, action: str, path: str, offset: int, wanted: int, got: int) -> StorageError:
        """A transfer that moved too little; a write, for the filesystem has no more room."""
        told = f"short {action} of {path} at offset {offset}: wanted {wanted} bytes, got {got}"
        if action == "write" and self._lacks_room(wanted - got):
            return StorageError(
                f"the filesystem of {self.directory} on {self.host} is full ({told}); lower"
                " --kv-storage-capacity-gb or give another --kv-cache-dir"
            )
        return StorageError(f"{self.host}: {told}")

    def _lacks_room(self, wanted_bytes: int) -> bool:
        """Whether so much has no room any more."""
        try:
            found = os.statvfs(self.directory)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < wanted_bytes
