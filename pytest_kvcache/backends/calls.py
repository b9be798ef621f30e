"""Which calls of the system an engine makes for an object: the words that profiles are written in.

Pure. A file per object, slots of one file, or files of many objects; profiles.py has the table of
engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.errors import OptionError

Lookup = Literal["memory", "first-miss", "all"]
"""Who knows what is stored.

An index in ``memory``; or the storage, asked for the blocks of a prompt up to the ``first-miss``,
or for ``all`` of them.
"""
LOOKUPS: tuple[Lookup, ...] = get_args(Lookup)

Publish = Literal["in-place", "rename", "link"]
"""How an object gets its name.

It is written under it, ``in-place``; or under another one, and there is a ``rename`` then, or a
``link`` and an unlink of the other name.
"""
PUBLISHES: tuple[Publish, ...] = get_args(Publish)

PathCall = Literal["access", "stat", "open"]
"""A call that asks for a path: access(2), stat(2), or open(2) and close(2)."""
FileCall = Literal["fstat", "isatty", "lseek"]
"""A call of an open file; isatty is the ioctl(2) of a language's buffered file."""
Directories = Literal["ahead", "stat", "mkdir"]
"""When the directory of an object is made.

Before anything is stored, ``ahead``; or as each is stored: where a ``stat`` does not find it,
upwards; or by a ``mkdir`` that mostly finds it there, and a stat of what it found.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCalls:
    """The calls for objects that have a file each.

    ``levels`` are the hexadecimal digits of each level of directories, none: one flat directory.
    ``suffix`` ends an object's name. Of a store: the ``before_store`` calls of the object's path
    (where one finds it, nothing is written), its directory, an open with ``O_EXCL`` if it is
    ``exclusive`` and ``O_TRUNC`` if it ``truncates``, ``store_opened``, writes of at most
    ``write_bytes`` (None: one write), close, ``publish``, and the ``after_store`` calls.
    A temporary name is another one each time, or ``shares_temporary``: the object's with ``.tmp``.
    Of a load: ``before_load``, open, ``load_opened``, one read, close; ``reads_on``: the read asks
    for a byte more than there is, and another one for what may follow. Of a delete:
    ``before_delete``, unlink. A lookup is one ``lookup_call`` per object.

    With ``batch_submits`` (in place alone) what is stored, or loaded, of a request is a batch: all
    its files are opened, moved by asynchronous I/O that each io_submit(2) begins for so many of
    them, and when all have ended, closed.
    """

    publish: Publish = "in-place"
    shares_temporary: bool = False
    exclusive: bool = False
    truncates: bool = True
    levels: tuple[int, ...] = ()
    directories: Directories = "ahead"
    suffix: str = ""
    lookup_call: PathCall = "stat"
    before_store: tuple[PathCall, ...] = ()
    store_opened: tuple[FileCall, ...] = ()
    write_bytes: int | None = None
    after_store: tuple[PathCall, ...] = ()
    before_load: tuple[PathCall, ...] = ()
    load_opened: tuple[FileCall, ...] = ()
    read_bytes: int | None = None
    reads_on: bool = False
    before_delete: tuple[PathCall, ...] = ()
    batch_submits: int | None = None

    def __post_init__(self) -> None:
        if sum(self.levels) > _PATH_DIGITS or min(self.levels, default=1) < 1:
            raise OptionError(
                f"levels are {self.levels}; they must be counts of hexadecimal digits, at most"
                f" {_PATH_DIGITS} in all"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCalls:
    """The calls for objects in slots of one file of a rank, which is there while it runs.

    ``allocates``: the file's blocks are allocated ahead (fallocate), else it is sparse;
    ``unlinked``: it has no name once it is open. An object is written by one call and read by one,
    of ``vectors`` buffers each. Before it lie parts of ``header`` bytes, which that write takes
    with it, with what fills their page, and which are read by a call each.
    """

    allocates: bool = False
    unlinked: bool = False
    vectors: int = 1
    header: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.vectors < 1 or sum(self.header) > PAGE_BYTES or min(self.header, default=1) < 1:
            raise OptionError(
                f"vectors are {self.vectors} and header is {self.header}; there must be at least"
                f" one buffer, and parts of a header that fit into {PAGE_BYTES} bytes"
            )

    @property
    def header_room_bytes(self) -> int:
        """What the header takes: a page."""
        return PAGE_BYTES if self.header else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketCalls:
    """The calls for objects that are packed into buckets, each a file that is written at once.

    A bucket is full with so many ``objects``, or where one more would make it larger than
    ``size_bytes``. It is written under its own name by one call, of each object its name and its
    data; then there is a second file, of where each begins. ``readers`` load what a request wants
    each, of one bucket after the other: an open, and a call for each object. What goes are both
    files.
    """

    objects: int
    size_bytes: int
    readers: int

    def __post_init__(self) -> None:
        if not 1 <= self.objects <= _MOST_VECTORS // 2:
            raise OptionError(
                f"objects are {self.objects}; a bucket must have one, and at most"
                f" {_MOST_VECTORS // 2}, for one call takes two buffers of each"
            )

    def blocks(self, object_bytes: int) -> int:
        """How many objects of a size a bucket has: one at least."""
        return max(1, min(self.objects, self.size_bytes // object_bytes))


Calls = FileCalls | SlotCalls | BucketCalls

BUCKET_ROOM_BYTES = 256
"""What an object takes in its bucket and the file beside it, its data apart, at most."""
_MOST_VECTORS = 1024  # IOV_MAX of Linux

_PATH_DIGITS = 8  # of the checksum that directories are named by

OURS = FileCalls(levels=(2,), truncates=False)
"""What one option alone changes: a file per object in 256 directories, made ahead."""
