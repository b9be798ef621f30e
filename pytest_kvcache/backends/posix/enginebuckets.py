"""Objects packed into buckets, by the calls that an engine makes: a bucket is written by one.

Rank side: imports neither pytest nor MPI. Which bucket has what, and where in it, is known in
memory; the file beside each that says so is written and never read. Nothing is dropped from the
page cache here, and nothing synced: no engine does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.fileio import StoreDirectory, direct_refusal, facts_of
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan

_CREATES = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the data of an object begin, in which bucket."""

    path: str
    offset: int


class EngineBuckets:
    """Stores objects in buckets (``put_bucket``), and loads each from within one.

    ``probe`` tells why direct I/O is refused at a path, None if it works. One thread writes and
    deletes, any number read.
    """

    def __init__(self, *, probe: Callable[[str], str | None] = direct_refusal) -> None:
        self._probe = probe
        self._place = StoreDirectory(host="", directory="")
        self._numbers = count(1)
        self._places: dict[str, _Place] = {}  # by object
        self._objects: dict[str, tuple[str, ...]] = {}  # by path

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Find out how files are read here."""
        self._place = StoreDirectory.of(plan)
        try:
            direct, notes = self._place.choose_io(plan, self._probe)
        except OSError as error:
            raise self._place.failure("prepare", self._place.directory, error) from error
        if direct:
            raise StorageError(
                f"{plan.host}: buckets are written through the page cache, and the plan's io is"
                " direct; take buffered"
            )
        return facts_of(direct=False, notes=notes)

    # --- whole buckets --------------------------------------------------------------------

    def put_bucket(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> None:
        """Write a bucket of these whole objects, and the file that says what is where."""
        path = f"{self._place.directory}/{next(self._numbers)}.bucket"
        vectors: list[bytes | memoryview] = []
        places, end = {}, 0
        for key, buffer in zip(keys, buffers, strict=True):
            name = key.encode()
            places[key] = _Place(path, end + len(name))
            vectors += (name, buffer)
            end += len(name) + len(buffer)
        table = "".join(f"{key} {place.offset}\n" for key, place in places.items()).encode()
        try:
            moved = _write(path, vectors, table)
        except OSError as error:
            raise self._place.failure("write", path, error) from error
        if moved != end + len(table):
            raise self._place.short("write", path, 0, end + len(table), moved)
        self._objects[path] = tuple(keys)
        self._places |= places

    def bucket_of(self, key: str) -> str:
        """The path of the bucket that has an object; StorageError where none has."""
        return self._where("read", key).path

    def open_bucket(self, path: str) -> int:
        """Open a bucket to read of it; close the file descriptor afterwards."""
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._place.failure("read", path, error) from error

    def read(self, fd: int, key: str, offset: int, buffer: memoryview) -> None:
        """Read an object, or a part of it, of its open bucket."""
        place = self._where("read", key)
        told = f"{key} in {place.path}"
        try:
            moved = os.preadv(fd, (buffer,), place.offset + offset)
        except OSError as error:
            raise self._place.failure("read", told, error) from error
        if moved != len(buffer):
            raise self._place.short("read", told, offset, len(buffer), moved)

    # --- as a backend ---------------------------------------------------------------------

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Store a whole object in a bucket of its own."""
        if offset:
            raise StorageError(
                f"{self._place.host}: object {key} is written from byte {offset} on; buckets have"
                " whole objects"
            )
        self.put_bucket([key], [buffer])

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read an object alone."""
        fd = self.open_bucket(self.bucket_of(key))
        try:
            self.read(fd, key, offset, buffer)
        finally:
            os.close(fd)

    def delete(self, key: str) -> None:
        """Remove the bucket that has an object, with all that is in it."""
        path = self._where("delete", key).path
        try:
            for each in (_meta(path), path):
                os.unlink(each)  # noqa: PTH108  a Path costs more than the call
        except OSError as error:
            raise self._place.failure("delete", path, error) from error
        for gone in self._objects.pop(path):
            del self._places[gone]

    def sync(self, key: str) -> None:
        """Refuse: no engine syncs, and a plan that asks for it is refused before."""
        raise NotImplementedError(f"object {key} is to be synced, which no engine's calls do")

    def close(self) -> None:
        """Leave nothing open: every call closes what it opens."""

    def _where(self, action: str, key: str) -> _Place:
        place = self._places.get(key)
        if place is None:
            raise StorageError(
                f"{self._place.host}: can't {action} {key}: no bucket has it; report this"
            )
        return place


def _write(path: str, vectors: Sequence[bytes | memoryview], table: bytes) -> int:
    """Make both files, that of the table while the other one is open; the bytes that were moved."""
    fd = os.open(path, _CREATES, _MODE)
    try:
        moved = os.pwritev(fd, vectors, 0)
        beside = os.open(_meta(path), _CREATES, _MODE)
        try:
            return moved + os.write(beside, table)
        finally:
            os.close(beside)
    finally:
        os.close(fd)


def _meta(path: str) -> str:
    return f"{path.removesuffix('.bucket')}.meta"
