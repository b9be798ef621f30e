"""A slab file: its name, its header and how it is made and recognised.

A slab begins with a page that says what it is and whose. It gets its name only when that
page is on the storage, so whatever bears such a name without such a page was not made by
a run, however the run ended. Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import MAX_CHUNK_BYTES, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
_MAGIC = b"KVCACHE-SLAB\n"
_NAME = re.compile(r"kvcache-slab-\d{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabHeader:
    """What a slab says of itself: JSON behind the magic word, in the file's first page.

    ``owner`` is the run's and the rank's directory (``kvcache-<run id>/rank-3``),
    ``number`` counts the rank's slabs from 0, ``extents`` are this slab's own, of
    ``extent_bytes`` each, the first at ``first_byte``. Raises ValueError for another
    ``format``.
    """

    owner: str
    number: int
    object_bytes: int
    extent_bytes: int
    extents: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"its format is {self.format!r}; this version knows {FORMAT}")

    @property
    def first_byte(self) -> int:
        """Where the extents begin: they are aligned as far as their size allows."""
        return first_byte(self.extent_bytes)

    def to_page(self) -> bytes:
        """The file's first page."""
        text = _MAGIC + json.dumps(asdict(self)).encode() + b"\n"
        return text.ljust(PAGE_BYTES, b"\0")

    @classmethod
    def from_page(cls, page: bytes) -> SlabHeader:
        """The inverse of ``to_page``; ValueError if it is none."""
        if len(page) != PAGE_BYTES or not page.startswith(_MAGIC):
            raise ValueError("it does not begin with a slab's header")
        try:
            return cls(**json.loads(page[len(_MAGIC) :].rstrip(b"\0")))
        except TypeError as error:
            raise ValueError(f"its header is odd: {error}") from error


def first_byte(extent_bytes: int) -> int:
    """Round the header's page up to the extents' own alignment; what is between is a hole."""
    return min(MAX_CHUNK_BYTES, extent_bytes & -extent_bytes)


def owner_of(directory: str) -> str:
    """How headers name a rank's directory, wherever that is mounted."""
    return "/".join(Path(directory).parts[-2:])


def reserve(fd: int, begin: int, length: int) -> bool:
    """Have the filesystem set bytes of a file aside; False where it can't. OSError if it fails.

    fallocate(2) itself: the C library's posix_fallocate writes a byte into every block
    where the filesystem has no fallocate, and does not tell.
    """
    call = ctypes.CDLL(None, use_errno=True).fallocate
    while call(fd, 0, ctypes.c_int64(begin), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def create_slab(
    directory: str,
    header: SlabHeader,
    flags: int,
    reserver: Callable[[int, int, int], bool] = reserve,
) -> tuple[int, bool]:
    """Make a slab in ``directory``; return its descriptor, and whether its space is reserved.

    Where it is not, the file has its length and gets its blocks by being written.
    """
    draft = f"{directory}/.{slab_name(header.number)}.draft"
    length = header.extents * header.extent_bytes
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600)
    try:
        _write_header(fd, header)
        reserved = reserver(fd, header.first_byte, length)
        if not reserved:
            os.ftruncate(fd, header.first_byte + length)
        os.fsync(fd)
        Path(draft).rename(slab_path(directory, header.number))
    except OSError:
        os.close(fd)
        raise
    return fd, reserved


def slab_name(number: int) -> str:
    """The name of a rank's slab."""
    return f"kvcache-slab-{number:04d}"


def slab_path(directory: str, number: int) -> str:
    """Where a rank's slab is."""
    return f"{directory}/{slab_name(number)}"


def own_slabs(directory: str) -> list[str]:
    """Paths of the slabs in a rank's directory; nothing there is fine.

    Raises ValueError for something that is called like a slab and is none of this rank's,
    or can't be read.
    """
    found = []
    try:
        names = sorted(name for name in os.listdir(directory) if _NAME.fullmatch(name))  # noqa: PTH208
    except FileNotFoundError:
        return []
    for name in names:
        path = f"{directory}/{name}"
        try:
            header = _read_header(path)
        except FileNotFoundError:
            continue  # another rank removes it
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is called like a slab and is none: {error}") from error
        if (header.owner, slab_name(header.number)) != (owner_of(directory), name):
            raise ValueError(
                f"{path} is {slab_name(header.number)} of {header.owner} by its header"
            )
        found.append(path)
    return found


def _write_header(fd: int, header: SlabHeader) -> None:
    page = mmap.mmap(-1, PAGE_BYTES)  # aligned, for direct I/O
    page[:] = header.to_page()
    if os.pwritev(fd, (page,), 0) != PAGE_BYTES:
        raise OSError(errno.EIO, "the header was not written whole")


def _read_header(path: str) -> SlabHeader:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        return SlabHeader.from_page(os.pread(fd, PAGE_BYTES, 0))
    finally:
        os.close(fd)
