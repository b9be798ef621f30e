"""What a host knows of files, dropped: pages, directory entries and inodes. Rank side."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from typing import Final

from pytest_kvcache.errors import PreflightError, StorageError

DROP_CACHES: Final = "/proc/sys/vm/drop_caches"
# Pages, too: ext4's inode tables and directories lie in the page cache of the device, and after
# a 2 (entries and inodes alone) a scan of 5,120 files read nothing of it; after a 3, 2.25 MiB.
_ALL: Final = "3"


def check_may_drop(path: str = DROP_CACHES) -> None:
    """Raise PreflightError where this process may not drop them."""
    if not os.access(path, os.W_OK):
        raise PreflightError(_refused(path, "not writable for this user"))


def drop_caches(directory: str, path: str = DROP_CACHES) -> None:
    """Write out the filesystem of a directory, then forget all that is clean.

    Dirty pages and inodes are not dropped, so what is written out matters. Raises StorageError.
    """
    try:
        fd = os.open(directory, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"{socket.gethostname()}: can't sync the filesystem of {directory}:"
            f" {error.strerror or error}; without that its caches can't be dropped"
        ) from error
    try:
        Path(path).write_text(_ALL, encoding="ascii")
    except OSError as error:
        raise StorageError(_refused(path, error.strerror or str(error))) from error


def _refused(path: str, why: str) -> str:
    return (
        f"{socket.gethostname()}: --kv-drop-caches is given, and {path} can't be written ({why});"
        " run as root outside a container, or leave it out: the metadata is then warm, and the"
        " results say so"
    )
