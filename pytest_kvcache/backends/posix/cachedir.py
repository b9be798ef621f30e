"""Whose the space below --kv-cache-dir is: what a run creates there, and removes again.

Rank side: imports neither pytest nor MPI.

A run owns ``DIR/kvcache-<run id>/``, known by its marker file, and in it one directory
per rank. Nothing else is ever deleted, and no symbolic link is followed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from pytest_kvcache.errors import OptionError, StorageError

MARKER_NAME = "KVCACHE-RUN"

# The one list of where benchmark data must not go: these and everything below them…
SYSTEM_DIRECTORIES = (
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/proc",
    "/run",
    "/sbin",
    "/snap",
    "/sys",
    "/usr",
    "/var/backups",
    "/var/cache",
    "/var/lib",
    "/var/lock",
    "/var/log",
    "/var/mail",
    "/var/run",
    "/var/spool",
)
# … but for these and everything below them; and these two themselves are refused.
_SCRATCH_DIRECTORIES = ("/dev/shm", f"/run/user/{os.getuid()}")  # noqa: S108 - a list of names
_ROOTS = ("/", "/var")

_REMOVE_ATTEMPTS = 100
_REMOVE_PAUSE_S = 0.01
_RANK_NAME = re.compile(r"rank-\d+|shared-\d+-[0-9a-f]+")


def validate_cache_dir(path: str, *, option: str = "--kv-cache-dir") -> None:
    """Raise OptionError unless ``path`` is a writable directory outside the system's own.

    Judged by the components of the real path: /usrdata is not inside /usr.
    """
    real = Path(path).resolve()
    culprit = _system_directory(real)
    if culprit is not None:
        really = "" if str(real) == path else f" (really {real})"
        raise OptionError(
            f"{option} is {path}{really}; it must not lie in the system directory {culprit}:"
            " give a directory of your own, e.g. below /var/tmp"
        )
    if not real.exists():
        raise OptionError(f"{option} is {path}, which does not exist; create it first")
    if not real.is_dir():
        raise OptionError(f"{option} is {path}; it must be a directory")
    if os.statvfs(real).f_flag & os.ST_RDONLY:
        raise OptionError(
            f"{option} is {path}, on a filesystem that is mounted read-only; mount it for writing,"
            " or give another directory"
        )
    if not os.access(real, os.W_OK | os.X_OK):
        raise OptionError(
            f"{option} is {path}; it must be writable by uid {os.getuid()}:"
            " change its mode, or give another directory"
        )


def _system_directory(real: Path) -> str | None:
    if str(real) in _ROOTS:
        return str(real)
    if any(real.is_relative_to(scratch) for scratch in _SCRATCH_DIRECTORIES):
        return None
    return next((name for name in SYSTEM_DIRECTORIES if real.is_relative_to(name)), None)


def run_name(run_id: str) -> str:
    """Return what everything that the run stores is below, in a directory or in a store."""
    return f"kvcache-{run_id}"


def run_dir(cache_dir: str, run_id: str) -> Path:
    """Return the path of the directory that the run owns."""
    return Path(cache_dir) / run_name(run_id)


def claim_rank_dir(cache_dir: str, run_id: str, rank: int, host: str) -> str:
    """Create the run's directory with its marker and the rank's own, empty, directory.

    Ranks may race for the former. What a previous trial of the same run left in the
    latter is removed. Raises StorageError if it can't, or if something else is there.
    """
    directory = run_dir(cache_dir, run_id)
    own = directory / f"rank-{rank}"
    try:
        _enter_run_dir(directory, run_id, host)
        _remove_tree(own)
        own.mkdir(0o700)
    except OSError as error:
        raise _failure("prepare", own, host, error) from error
    return str(own)


def claim_shared_dir(cache_dir: str, run_id: str, group: int, launch: str, host: str) -> str:
    """Create the run's directory with its marker, and that of a store that some ranks share.

    All of them may race for both. ``launch`` is hexadecimal, and another one for every launch: what
    a previous one of the same run left of it is removed.
    Raises StorageError if it can't, or if something else is there.
    """
    directory = run_dir(cache_dir, run_id)
    shared = directory / f"shared-{group}-{launch}"
    try:
        _enter_run_dir(directory, run_id, host)
        for left in directory.glob(f"shared-{group}-*"):
            if left != shared:
                _remove_tree(left)
        shared.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise _failure("prepare", shared, host, error) from error
    return str(shared)


def _enter_run_dir(directory: Path, run_id: str, host: str) -> None:
    """Have the run's directory, with its marker, whichever rank makes it."""
    if not os.path.lexists(directory):
        _create_run_dir(directory, run_id, host)
    _check_marker(directory, run_id, host)


def remove_rank_dir(cache_dir: str, run_id: str, rank: int, host: str | None = None) -> None:
    """Remove the rank's directory with all it holds; nothing there is fine.

    Raises StorageError if the run's directory does not carry the run's marker.
    """
    host = host or os.uname().nodename
    directory = run_dir(cache_dir, run_id)
    if not os.path.lexists(directory):
        return
    own = directory / f"rank-{rank}"
    try:
        _check_marker(directory, run_id, host)
        _remove_tree(own)
    except FileNotFoundError:
        return  # another rank removed the whole run
    except OSError as error:
        raise _failure("remove", own, host, error) from error


def remove_run_dir(cache_dir: str, run_id: str, host: str | None = None) -> None:
    """Remove the run's directory: the ranks' directories, then the marker, then itself.

    Nothing there is fine, and so are several ranks doing it at once. Raises StorageError
    if the directory lacks the run's marker (then nothing is deleted) or holds something
    that no run puts there (then that and the marker stay).
    """
    host = host or os.uname().nodename
    directory = run_dir(cache_dir, run_id)
    if not os.path.lexists(directory):
        return
    try:
        _check_marker(directory, run_id, host)
        foreign = _remove_ranks(directory)
        if foreign:
            raise StorageError(
                f"{host}: {directory} can't be removed: it holds {foreign[0]}, which is not"
                " this benchmark's; move it away and remove the directory"
            )
        _remove_marked(directory)
    except FileNotFoundError:
        return  # another rank was faster
    except OSError as error:
        raise _failure("remove", directory, host, error) from error


def _create_run_dir(directory: Path, run_id: str, host: str) -> None:
    """Make the directory and its marker appear at once, by one rename.

    A rename onto a directory that is not empty fails, so the first rank wins.
    """
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    marker = {"run_id": run_id, "host": host, "created": created}
    try:
        (draft / MARKER_NAME).write_text(json.dumps(marker), encoding="utf-8")
        draft.rename(directory)
    except OSError:
        (draft / MARKER_NAME).unlink(missing_ok=True)
        draft.rmdir()
        if not os.path.lexists(directory):
            raise


def _check_marker(directory: Path, run_id: str, host: str) -> None:
    """Raise StorageError unless ``directory`` is a real one that the run's marker names."""
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise StorageError(f"{host}: {directory} is no directory of its own; remove it")
    try:
        fd = os.open(directory / MARKER_NAME, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd, encoding="utf-8") as stream:
            owner = json.load(stream)["run_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        directory.lstat()  # FileNotFoundError: another rank just removed it
        raise StorageError(
            f"{host}: {directory} has no readable marker file {MARKER_NAME}, so it is not this"
            " run's and nothing in it is touched; move it away"
        ) from error
    if owner != run_id:
        raise StorageError(
            f"{host}: {directory} belongs to run {owner}, not to {run_id}; move it away"
        )


def _remove_ranks(directory: Path) -> list[str]:
    """Remove the ranks' directories; the answer is the names of what is not ours."""
    with os.scandir(directory) as entries:
        ranks = [
            entry.path
            for entry in entries
            if _RANK_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for rank in ranks:
        _remove_tree(Path(rank))
    # What is listed and was removed may still be in this host's cache of a network filesystem.
    known = {MARKER_NAME, *(Path(rank).name for rank in ranks)}
    return sorted({path.name for path in directory.iterdir()} - known)


def _remove_marked(directory: Path) -> None:
    """Remove a directory that holds its marker only.

    Renamed first: another rank sees it with its marker or not at all.
    """
    last = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        directory.rename(last)
        (last / MARKER_NAME).unlink()
    finally:
        last.rmdir()


def _remove_tree(path: Path) -> None:
    """Remove a directory; somebody else may be removing it too. Refuses a symbolic link."""
    if path.is_symlink():
        raise OSError(errno.ENOTDIR, "it is a symbolic link, which is not followed")
    for _ in range(_REMOVE_ATTEMPTS):
        if _was_removed(path):
            return
        time.sleep(_REMOVE_PAUSE_S)
    raise OSError(errno.ENOTEMPTY, "it is being filled by somebody else, again and again")


def _was_removed(path: Path) -> bool:
    """Remove all that is there; False: something has come since.

    What has gone by itself is as good as removed: the cleanup helper, ranks and agents of other
    hosts may all be at it.
    """
    with suppress(FileNotFoundError):
        for _root, directories, files, fd in os.fwalk(path, topdown=False, onerror=_unless_gone):
            for name in files:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            for name in directories:
                with suppress(FileNotFoundError):
                    _remove_directory(name, fd)
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove_directory(name: str, fd: int) -> None:
    try:
        os.rmdir(name, dir_fd=fd)
    except NotADirectoryError:  # a link to one
        os.unlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # then once more, from the top
            raise


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _failure(action: str, path: Path, host: str, error: OSError) -> StorageError:
    return StorageError(f"{host}: can't {action} {path}: {error.strerror or error}")
