"""One benchmark per host: a lock that a second one fails on at once.

An ``flock``, so that the kernel releases it when its holder dies, in whatever way.
Imports neither pytest nor mpi4py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import tempfile
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import PreflightError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_MODE = 0o666  # any user's benchmark disturbs any other's
_CONTENT_BYTES = 4096


class HostLock:
    """The right to benchmark on ``hostname``, held by one run at a time.

    The host's name is part of the file's name, because hosts of a test cluster share
    directories. A ``with`` block, or ``acquire`` and ``release``.
    """

    def __init__(
        self,
        hostname: str,
        *,
        run_id: str,
        directory: Path | None = None,
        in_container: bool = False,
    ) -> None:
        if not hostname or "/" in hostname:
            raise ValueError(f"hostname is {hostname!r}; it must be usable in a file name")
        self._hostname = hostname
        self._run_id = run_id
        self._pid: int | str = "of a container" if in_container else os.getpid()
        self.path = (directory or _default_directory()) / f"pytest-kvcache.{hostname}.lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise ``PreflightError`` naming who has it and since when."""
        if self._fd is not None:
            raise RuntimeError(f"{self.path} is held by this very object already")
        try:
            self._fd = self._locked()
            self._write_holder(self._fd)
        except OSError as error:
            self.release()
            raise PreflightError(
                f"the lock {self.path} can't be used ({error.strerror}); it must be a regular"
                f" file that this user may write, so remove it or mend its mode"
            ) from error

    def holder(self) -> dict[str, Any]:
        """Who has it: ``pid``, ``run_id``, ``since``; nothing where nobody has said."""
        with suppress(OSError):
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return _read_holder(fd)
            finally:
                os.close(fd)
        return {}

    def release(self) -> None:
        """Give the lock back and remove its file; without the lock, do nothing.

        The file is removed while the lock is still held: whoever opened it before and
        gets the lock after sees that the name has gone, and starts anew. Another user's
        file can't be removed from a sticky directory and stays, unlocked.
        """
        if self._fd is None:
            return
        with suppress(FileNotFoundError, PermissionError):
            self.path.unlink()
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _locked(self) -> int:
        """Return a descriptor that holds the lock of the file that bears the name now."""
        while True:
            fd = self._opened()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._bears_the_name(fd):
                    return fd
            except BlockingIOError:
                holder = _read_holder(fd)
                os.close(fd)
                raise self._taken(holder) from None
            except OSError:
                os.close(fd)
                raise
            os.close(fd)

    def _opened(self) -> int:
        """Open the file, or create it.

        Not both at once: with fs.protected_regular, O_CREAT fails for another user's file
        in a sticky directory. Links are not followed: anyone may write there. Ranks don't
        inherit it: os.open sees to that.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            with suppress(FileNotFoundError):
                fd = os.open(self.path, flags)
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return fd
                os.close(fd)
                raise OSError(errno.EINVAL, "not a regular file")
            with suppress(FileExistsError):
                fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, _MODE)
                os.fchmod(fd, _MODE)  # past the umask
                return fd

    def _bears_the_name(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.lstat())
        except FileNotFoundError:
            return False

    def _write_holder(self, fd: int) -> None:
        since = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
        holder = {"pid": self._pid, "run_id": self._run_id, "since": since}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode(), 0)

    def _taken(self, holder: dict[str, Any]) -> PreflightError:
        pid, run_id, since = (holder.get(key, "unknown") for key in ("pid", "run_id", "since"))
        return PreflightError(
            f"a benchmark runs on {self._hostname} already (pid {pid}, run {run_id}, since"
            f" {since}); two at a time disturb each other, so wait for its end or stop it"
        )


def _read_holder(fd: int) -> dict[str, Any]:
    """Return what the holder wrote, or nothing: it may be about to write."""
    try:
        holder = json.loads(os.pread(fd, _CONTENT_BYTES, 0))
    except (ValueError, OSError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _default_directory() -> Path:
    shared_memory = Path("/dev/shm")  # noqa: S108 - on every Linux, and gone with a reboot
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())
