"""One benchmark per host: a lock that a second one fails on at once, or waits for.

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
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

DIRECTORY_VARIABLE = "KVCACHE_LOCK_DIR"

_MODE = 0o666  # any user's benchmark disturbs any other's
_CONTENT_BYTES = 4096
_LOOK_EVERY_S = 0.5
# Where every user of a Linux host can make a file; the first also goes with a reboot.
_DIRECTORIES = ("/dev/shm", "/run/lock", "/tmp", "/var/tmp")  # noqa: S108 - names in a fixed order
_TAKEN = "a benchmark runs on "


def lock_directories(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where locks of this host may lie, in the order in which they are tried.

    The same for all users and sessions, as far as it can be: what is only this session's
    comes last. ``KVCACHE_LOCK_DIR`` replaces them all.
    """
    given = environ.get(DIRECTORY_VARIABLE)
    if given:
        return (Path(given).absolute(),)
    own = (f"/run/user/{os.getuid()}", tempfile.gettempdir())
    return tuple(path for path in map(Path, dict.fromkeys((*_DIRECTORIES, *own))) if path.is_dir())


def is_taken(problem: str | None) -> bool:
    """Whether an error says that another benchmark has the host: one that ends by waiting."""
    return problem is not None and problem.startswith(_TAKEN)


class Patience:
    """How long a run waits, in all, for the benchmarks of others to end."""

    def __init__(
        self, limit_s: float, report: Callable[[str, float, float], None] | None = None
    ) -> None:
        """``report`` is called while waiting: for whom, how long so far, and at most."""
        self._limit_s = limit_s
        self._report = report
        self.waited_s = 0.0

    def wait(self, problem: str) -> bool:
        """Sleep a moment; False: it is over, and ``problem`` stands."""
        left_s = self._limit_s - self.waited_s
        if left_s <= 0:
            return False
        if self._report is not None:
            self._report(problem.partition(";")[0], self.waited_s, self._limit_s)
        began_s = time.monotonic()
        time.sleep(min(_LOOK_EVERY_S, left_s))
        self.waited_s += time.monotonic() - began_s
        return True


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
        directories: Sequence[Path] | None = None,
        in_container: bool = False,
    ) -> None:
        if not hostname or "/" in hostname:
            raise ValueError(f"hostname is {hostname!r}; it must be usable in a file name")
        self._hostname = hostname
        self._run_id = run_id
        self._pid: int | str = "of a container" if in_container else os.getpid()
        places = lock_directories(os.environ) if directories is None else tuple(directories)
        self._paths = tuple(place / f"pytest-kvcache.{hostname}.lock" for place in places)
        self.path = self._paths[0]
        """The file that is locked, or would be first."""
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise ``PreflightError`` naming who has it and since when.

        It is the first that can be had: of a directory that this user can't write to,
        another one may hold it all the same, so all of them are looked at.
        """
        if self._fd is not None:
            raise RuntimeError(f"{self.path} is held by this very object already")
        refused: list[str] = []
        for path in self._paths:
            self.path = path
            try:
                self._fd = self._locked()
                self._write_holder(self._fd)
            except OSError as error:
                self.release()
                self._check_unused(error)
                refused.append(f"{path.parent} ({error.strerror})")
            else:
                break
        if self._fd is None:
            raise PreflightError(self._nowhere(refused))
        self._check_others()

    def acquire_patiently(self, patience: Patience) -> None:
        """Take the lock, waiting for its holder to end; PreflightError once patience is over."""
        while True:
            try:
                self.acquire()
            except PreflightError as error:
                if not (is_taken(str(error)) and patience.wait(str(error))):
                    raise
            else:
                return

    def _check_unused(self, error: OSError) -> None:
        """Raise ``PreflightError`` where a file is in the way, which may be somebody's lock.

        A directory in which no file can be made is no such case; the next one is tried.
        """
        if not os.path.lexists(self.path) or error.errno == errno.EROFS:
            return
        raise PreflightError(
            f"the lock {self.path} can't be used ({error.strerror}); it must be a regular"
            f" file that this user may write, so remove it or mend its mode"
        ) from error

    def _nowhere(self, refused: Sequence[str]) -> str:
        return (
            f"the lock of this host can't be made in {', '.join(refused)}; set"
            f" {DIRECTORY_VARIABLE} to a directory that every benchmark of this host may write to"
        )

    def _check_others(self) -> None:
        """Give way to one who holds the lock in another of the directories.

        Two that come at the same time may both give way; never do both go on.
        """
        for path in self._paths:
            if path == self.path:
                continue
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = _read_holder(fd)
                    self.release()
                    raise self._taken(holder) from None
                finally:
                    os.close(fd)

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
            f"{_TAKEN}{self._hostname} already (pid {pid}, run {run_id}, since"
            f" {since}); two at a time disturb each other, so wait for its end (--kv-wait=10m does)"
            " or stop it"
        )


def _read_holder(fd: int) -> dict[str, Any]:
    """Return what the holder wrote, or nothing: it may be about to write."""
    try:
        holder = json.loads(os.pread(fd, _CONTENT_BYTES, 0))
    except (ValueError, OSError):
        return {}
    return holder if isinstance(holder, dict) else {}
