"""What is to be done with one object, and in what pieces.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.backends.buffers import slot_counts
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_kvcache.backends.buffers import Workers
    from pytest_kvcache.cache.identity import Identity
    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.errors import StorageError
    from pytest_kvcache.models import BlockPart


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How operations are carried out.

    ``object_bytes`` is the logical size of an object where a request does not say another
    one, ``stored_bytes`` the same padded to whole pages; results count logical bytes. A
    block is stored as ``objects_per_block`` of them: one, or one per layer. ``parts`` are
    these objects where they are not all alike and read for every block: then ``object_bytes``
    and ``stored_bytes`` are those of the largest, and all blocks are the plan's. A transfer
    moves at most ``transfer_bytes``. ``discards_findings``: the backend stores nothing, so what
    is read is stamped as if it had been stored, then verified as ever, and what that finds
    is discarded. ``most_stores`` objects wait to be stored before users wait; None: as many as
    the queue depth gives. ``workers``: operations are made as an engine's would make them.
    ``shared``: others store and delete the same objects, and may be faster (`was_raced`).
    ``drops_stores``: where too many objects wait, requests store nothing, instead of users waiting.
    """

    queue_depth: int
    object_bytes: int
    stored_bytes: int
    transfer_bytes: int
    sync: bool
    verify: str
    discards_findings: bool = False
    objects_per_block: int = 1
    parts: tuple[BlockPart, ...] = ()
    most_stores: int | None = None
    workers: Workers | None = None
    shared: bool = False
    drops_stores: bool = False

    @property
    def slot_counts(self) -> tuple[int, int]:
        """Buffers for reading and for writing."""
        if self.workers is not None:
            return self.workers.slot_counts(self.transfer_bytes)
        return slot_counts(self.queue_depth, self.transfer_bytes)

    @property
    def block_bytes(self) -> int:
        """The data of a block, all its objects."""
        if self.parts:
            return sum(part.object_bytes for part in self.parts)
        return self.objects_per_block * self.object_bytes

    @property
    def stored_block_bytes(self) -> int:
        """What its objects take on the storage, each padded."""
        if self.parts:
            return sum(part.stored_bytes for part in self.parts)
        return self.objects_per_block * self.stored_bytes

    def stored_bytes_of(self, entry: BlockEntry, part: int | None) -> int:
        """Bytes of an object of a block as they are transferred."""
        if self.parts:
            return self.parts[part or 0].stored_bytes
        return entry.stored_bytes // self.objects_per_block

    @property
    def transfers(self) -> int:
        """How many transfers an object of ``object_bytes`` takes."""
        return -(-self.stored_bytes // self.transfer_bytes)


_RACES: Final = {
    READ: (errno.ENOENT, errno.ESTALE),  # who stored it has deleted it since it was found
    WRITE: (errno.EEXIST,),  # another one has its name
    DELETE: (errno.ENOENT,),
}


def was_raced(kind: int, problem: StorageError) -> bool:
    """Whether an operation on a shared object came to nothing as another rank was faster."""
    cause = problem.__cause__
    return isinstance(cause, OSError) and cause.errno in _RACES.get(kind, ())


def object_key_of(entry: BlockEntry, part: int | None) -> str:
    """What a backend stores an object of a block under; None: the only one."""
    return entry.object_key if part is None else f"{entry.object_key}.{part}"


def parts_of_prefix(
    hits: Sequence[BlockEntry], parts: Sequence[BlockPart]
) -> Iterator[tuple[BlockEntry, int]]:
    """What a request reads of its leading hits: entry and number of the object, in their order."""
    begins = [len(hits) - part.read_blocks(len(hits)) for part in parts]
    for at, entry in enumerate(hits):
        for number, begin in enumerate(begins):
            if at >= begin:
                yield entry, number


def all_parts(
    entries: Iterable[BlockEntry], parts: Sequence[BlockPart]
) -> Iterator[tuple[BlockEntry, int]]:
    """Every object of the entries' blocks, by its number."""
    return ((entry, number) for entry in entries for number in range(len(parts)))


class Operation:
    """One get, put or delete of an object; ``owner`` is whoever asked for it.

    ``part`` is which object of the entry's block; None where it is the only one. It moves
    ``stored_bytes``, of which ``object_bytes`` count, in ``left`` transfers, of which those
    below ``staged_bytes`` were staged. ``row`` is the kind of row that it is noted as. ``raced``:
    it came to nothing, for of those that share the store another one was faster; ``is_others``:
    what was read names another rank as who wrote it.
    """

    __slots__ = (
        "done_ns", "entry", "failed", "identity", "is_others", "kind", "left", "object_bytes",
        "object_key", "owner", "raced", "row", "staged_bytes", "stamping_ns", "started_ns",
        "stored_bytes", "submitted_ns", "tag", "transfers",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  made once per object, on the timed path
        self, kind: int, entry: BlockEntry, part: int | None, owner: Any, submitted_ns: int,
        object_bytes: int, stored_bytes: int, transfers: int, row: int,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.row = row
        self.entry = entry
        if part is None:
            self.object_key = entry.object_key
            self.identity: Identity = entry.identity
            self.tag = entry.tag
        else:
            self.object_key = object_key_of(entry, part)
            self.identity = entry.identity._replace(part=part)
            self.tag = self.identity.tag
        self.owner = owner
        self.submitted_ns = submitted_ns
        self.object_bytes = object_bytes
        self.stored_bytes = stored_bytes
        self.transfers = transfers
        self.left = transfers
        self.staged_bytes = 0
        self.stamping_ns = 0
        self.started_ns = 0
        self.done_ns = 0
        self.failed = False
        self.raced = False
        self.is_others = False
