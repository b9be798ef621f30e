"""Objects in files of their own, by the calls that an engine makes: one after the other.

Rank side: imports neither pytest nor MPI. Nothing is dropped from the page cache here, and
nothing synced: no engine does.
"""

from __future__ import annotations

import errno
import os
import random
import zlib
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.fileio import StoreDirectory, direct_refusal, facts_of
from pytest_kvcache.backends.protocol import ObjectFileNames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_kvcache.backends.calls import FileCall, FileCalls, PathCall
    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
    from pytest_kvcache.errors import StorageError

_MODE = 0o644


class EngineFiles:
    """Stores and loads whole objects; ``look_up`` asks the filesystem for them.

    ``probe`` tells why direct I/O is refused at a path, None if it works. Where calls are made of
    batches, an I/O engine moves objects (ioengines/batches.py), and asks here where they are.
    """

    holds_for_sync = False

    def __init__(
        self, calls: FileCalls, *, probe: Callable[[str], str | None] = direct_refusal
    ) -> None:
        self._calls = calls
        self._probe = probe
        self._place = StoreDirectory(host="", directory="")
        self._root = ""
        ends = [*accumulate(calls.levels)]
        self._cuts = tuple(map(slice, [0, *ends], ends))  # of the digits, one for each level
        self._direct = False
        self.read_flags = self.write_flags = 0

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Find out how files can be opened; make the directories that are made ahead."""
        calls = self._calls
        self._place = StoreDirectory.of(plan)
        self._root = self._place.directory
        try:
            self._direct, notes = self._place.choose_io(plan, self._probe)
            if calls.directories == "ahead":
                self._make_ahead(Path(self._root), calls.levels)
        except OSError as error:
            raise self._place.failure("prepare", self._root, error) from error
        direct = os.O_DIRECT if self._direct else 0
        self.read_flags = os.O_RDONLY | direct
        access = os.O_WRONLY if calls.batch_submits is None else os.O_RDWR
        self.write_flags = access | os.O_CREAT | direct
        self.write_flags |= os.O_TRUNC if calls.truncates else 0
        self.write_flags |= os.O_EXCL if calls.exclusive else 0
        return facts_of(direct=self._direct, notes=notes)

    def path(self, key: str) -> str:
        """Where an object is: by a checksum of its block, for keys need not begin random."""
        return f"{self._leaf(key)}/{key}{self._calls.suffix}"

    @property
    def host(self) -> str:
        """This machine, for messages."""
        return self._place.host

    @property
    def buffered(self) -> bool:
        """Whether objects go through the page cache."""
        return not self._direct

    def failure(self, action: str, key: str, error: OSError) -> StorageError:
        """What to say when the system refuses something of an object's file."""
        return self._place.failure(action, self.path(key), error)

    def short(self, action: str, key: str, offset: int, wanted: int, got: int) -> StorageError:
        """What to say when fewer bytes were moved than wanted."""
        return self._place.short(action, self.path(key), offset, wanted, got)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Store a whole object."""
        path = self.path(key)
        try:
            moved = self._store(path, buffer)
        except OSError as error:
            raise self._place.failure("write", path, error) from error
        if moved != len(buffer):
            raise self._place.short("write", path, offset, len(buffer), moved)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Load a whole object, or the part of it that is looked at when nothing is measured."""
        path = self.path(key)
        try:
            moved = self._load(path, offset, buffer)
        except OSError as error:
            raise self._place.failure("read", path, error) from error
        if moved != len(buffer):
            raise self._place.short("read", path, offset, len(buffer), moved)

    def delete(self, key: str) -> None:
        """Unlink the object's file."""
        path = self.path(key)
        try:
            for call in self._calls.before_delete:
                _is_there(call, path)
            os.unlink(path)  # noqa: PTH108  a Path costs more than the call
        except OSError as error:
            raise self._place.failure("delete", path, error) from error

    def sync(self, key: str) -> None:
        """Refuse: no engine syncs, and a plan that asks for it is refused before."""
        raise NotImplementedError(f"object {key} is to be synced, which no engine's calls do")

    def close(self) -> None:
        """Leave nothing open: every call closes what it opens."""

    def look_up(self, keys: Sequence[str]) -> list[bool]:
        """Which objects are there: a call each."""
        path, leaf, suffix = self.path, self._leaf, self._calls.suffix
        is_there = _CALLS[self._calls.lookup_call]
        found: list[bool] = []
        try:
            for key in keys:
                there = is_there(f"{leaf(key)}/{key}{suffix}")
                found.append(there)
        except OSError as error:
            raise self._place.failure("look up", path(keys[len(found)]), error) from error
        return found

    def object_files(self) -> ObjectFileNames:
        """Files called like their objects, with the engine's suffix, in its directories."""
        return ObjectFileNames(root=self._root, suffix=self._calls.suffix)

    # --- a store ---------------------------------------------------------------------------

    def _store(self, path: str, buffer: memoryview) -> int:
        calls = self._calls
        if any(_is_there(call, path) for call in calls.before_store):
            raise FileExistsError(errno.EEXIST, "it is there before it is stored", path)
        if calls.directories == "stat":
            self._find_directory(_parent(path))
        elif calls.directories == "mkdir":
            self._try_directory(_parent(path))
        written = path if calls.publish == "in-place" else self._temporary(path)
        fd = os.open(written, self.write_flags, _MODE)
        try:
            _ask(calls.store_opened, fd)
            moved = _write(fd, buffer, calls.write_bytes or len(buffer))
        finally:
            os.close(fd)
        if calls.publish == "rename":
            self._rename(written, path)
        elif calls.publish == "link":
            try:
                os.link(written, path)
            finally:
                os.unlink(written)  # noqa: PTH108
        for call in calls.after_store:
            _is_there(call, path)
        return moved

    def _rename(self, written: str, path: str) -> None:
        """Publish; where all have one temporary name, another rank may have done it just now."""
        try:
            os.rename(written, path)  # noqa: PTH104
        except FileNotFoundError as error:
            if not self._calls.shares_temporary:
                raise
            text = "another one has published it meanwhile"
            raise FileExistsError(errno.EEXIST, text, path) from error

    def _temporary(self, path: str) -> str:
        if self._calls.shares_temporary:
            return f"{path}.tmp"
        return f"{path}_{random.getrandbits(64):016x}.tmp"

    # --- a load ----------------------------------------------------------------------------

    def _load(self, path: str, offset: int, buffer: memoryview) -> int:
        calls = self._calls
        for call in calls.before_load:
            _is_there(call, path)
        fd = os.open(path, self.read_flags)
        try:
            _ask(calls.load_opened, fd)
            if offset:  # never while anything is measured
                return os.preadv(fd, (buffer,), offset)
            if not calls.reads_on or self._direct:  # what is read directly is aligned
                return _read(fd, buffer, calls.read_bytes or len(buffer))
            more = bytearray(1)
            if calls.read_bytes is not None:
                moved = _read(fd, buffer, calls.read_bytes)
            else:
                moved = os.readv(fd, (buffer, more))
            return moved + (os.readv(fd, (more,)) if moved == len(buffer) else 0)
        finally:
            os.close(fd)

    # --- directories -----------------------------------------------------------------------

    def _leaf(self, key: str) -> str:
        if not self._cuts:
            return self._root
        digits = f"{zlib.crc32(key.partition('.')[0].encode()):08x}"
        leaf = self._root
        for cut in self._cuts:
            leaf = f"{leaf}/{digits[cut]}"
        return leaf

    def _make_ahead(self, directory: Path, levels: Sequence[int]) -> None:
        if not levels:
            return
        for number in range(16 ** levels[0]):
            below = directory / f"{number:0{levels[0]}x}"
            below.mkdir(0o700, exist_ok=True)
            self._make_ahead(below, levels[1:])

    def _find_directory(self, directory: str) -> None:
        """Make a directory that a stat does not find, those above it first."""
        if _is_there("stat", directory):
            return
        self._find_directory(_parent(directory))
        _make(directory)

    def _try_directory(self, directory: str) -> None:
        """Make a directory that mostly is there, and look at what is."""
        try:
            if not _make(directory):
                _by_stat(directory)
        except FileNotFoundError:
            self._try_directory(_parent(directory))
            _make(directory)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _make(directory: str) -> bool:
    """Whether it was not there before."""
    try:
        os.mkdir(directory)  # noqa: PTH102
    except FileExistsError:
        return False
    return True


def _is_there(call: PathCall, path: str) -> bool:
    """Whether the call finds a path; OSError for any other reason that it does not."""
    return _CALLS[call](path)


def _by_access(path: str) -> bool:
    return os.access(path, os.F_OK)


def _by_stat(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return False
    return True


def _by_open(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True


_CALLS: Mapping[PathCall, Callable[[str], bool]] = {
    "access": _by_access, "stat": _by_stat, "open": _by_open,
}  # fmt: skip


def _ask(calls: Sequence[FileCall], fd: int) -> None:
    for call in calls:
        if call == "fstat":
            os.fstat(fd)
        elif call == "isatty":
            os.isatty(fd)
        else:
            os.lseek(fd, 0, os.SEEK_CUR)


def _read(fd: int, buffer: memoryview, most_bytes: int) -> int:
    moved = 0
    while moved < len(buffer):
        step = os.readv(fd, (buffer[moved : moved + most_bytes],))
        if not step:
            break
        moved += step
    return moved


def _write(fd: int, buffer: memoryview, most_bytes: int) -> int:
    moved = 0
    while moved < len(buffer):
        step = os.write(fd, buffer[moved : moved + most_bytes])
        if not step:
            break
        moved += step
    return moved
