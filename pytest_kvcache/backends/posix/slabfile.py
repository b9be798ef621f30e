"""A slab file: where it is and how it is made. Rank side: imports neither pytest nor MPI.

It holds extents and nothing else; whose it is says the directory that it lies in.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
    path: str, length: int, flags: int, reserver: Callable[[int, int, int], bool] = reserve
) -> tuple[int, bool]:
    """Make a slab of ``length`` bytes; return its descriptor, and whether its space is reserved.

    Where it is not, the file has its length and gets its blocks by being written.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600)
    try:
        reserved = reserver(fd, 0, length)
        if not reserved:
            os.ftruncate(fd, length)
        os.fsync(fd)
    except OSError:
        os.close(fd)
        raise
    return fd, reserved


def slab_path(directory: str, number: int) -> str:
    """Where a rank's slab is."""
    return f"{directory}/kvcache-slab-{number:04d}"


def slabs_in(directory: str) -> Iterable[Path]:
    """The slabs in a rank's directory, of whatever plan."""
    return Path(directory).glob("kvcache-slab-*")
