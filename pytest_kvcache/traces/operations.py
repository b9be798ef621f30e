"""What a storage was asked for, operation by operation: the columns of an I/O trace.

Rank-side; imports numpy and the errors.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.recorded import Reading, Recorded
from pytest_kvcache.traces.times import TimeUnit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    KeyArray = npt.NDArray[np.uint64]

READ, WRITE, OVERWRITE, DELETE, STORED = range(5)
"""Kinds: an overwrite stores an object that is there, and ``STORED`` was there beforehand."""

NOBODY = -1  # as a user: the operation came at a time of its own, whoever asked for it
_PAGE_BYTES = 4096
_SLICE = 1 << 16  # operations that are looked at at a time
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio
_ROUNDS = (  # of splitmix64's finaliser: Steele et al., OOPSLA 2014, as published by Vigna
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)
_PART = np.uint64(48)  # where the part of a block begins in its object's version


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operations:
    """The operations of a trace, one per request of it, and what is stored before the first.

    ``kind``, ``sizes`` (bytes), ``request`` (its number on its rank), ``user`` and ``rank`` have
    one entry per operation; which object it is of is its only block id. ``there_ids``,
    ``there_sizes`` and ``there_ranks`` are the objects that are there beforehand. ``key_ids``
    ascend; ``keys`` are their keys, two big-endian words of 64 bits each, not all different:
    objects of several ranks, or stored again, may have the same. ``has_users``: a request waits
    for the answer to its user's request before; ``has_ranks``: ranks were recorded.
    """

    kind: npt.NDArray[np.int8]
    sizes: IntArray
    request: IntArray
    user: IntArray
    rank: IntArray
    there_ids: IntArray
    there_sizes: IntArray
    there_ranks: IntArray
    key_ids: IntArray
    keys: KeyArray
    has_users: bool
    has_ranks: bool

    @property
    def overwrites(self) -> int:
        """How many operations stored an object that was there."""
        return int((self.kind == OVERWRITE).sum())

    @property
    def largest_bytes(self) -> int:
        """The size of the largest object."""
        return int(max(self.sizes.max(initial=0), self.there_sizes.max(initial=0)))

    @property
    def sizes_differ(self) -> bool:
        """Whether not all objects have the same size."""
        every = np.concatenate((self.sizes, self.there_sizes))
        return bool((every != every[:1]).any())

    @property
    def users(self) -> int:
        """How many users there are, of all recorded ranks; 0: none are named."""
        return int(self.user_numbers().max(initial=-1)) + 1 if self.has_users else 0

    def user_numbers(self) -> IntArray:
        """Each operation's user, numbered from 0 over all ranks."""
        _known, numbers = np.unique(self.rank << 32 | self.user, return_inverse=True)
        found: IntArray = numbers.astype(np.int64)
        return found

    def need_blocks(self, *, in_time: bool) -> int:
        """How many of the largest object's size are stored at once at most.

        ``in_time``: in the order in which operations were submitted. Else requests of different
        users may change places, and one that stores more than it deletes may come before all
        that delete: as much as the sum of those is needed, whatever their order.
        """
        largest = max(1, -(-self.largest_bytes // _PAGE_BYTES))
        pages = -(-self.sizes // _PAGE_BYTES)
        change = np.where(self.kind == WRITE, pages, 0) - np.where(self.kind == DELETE, pages, 0)
        if in_time:
            most = int(np.cumsum(change).max(initial=0))
        else:
            _known, request = np.unique(self.rank << 40 | self.request, return_inverse=True)
            net = np.bincount(request, weights=change) if len(change) else np.zeros(0)
            most = int(net[net > 0].sum())
        there = int((-(-self.there_sizes // _PAGE_BYTES)).sum())
        return -(-(there + max(0, most)) // largest)

    def select(self, chosen: IntArray, ids: npt.NDArray[np.int32]) -> Operations:
        """The operations at these places, whose objects are ``ids`` of all.

        Beforehand there is what they need, and what nobody ever asks for on their ranks.
        """
        mine = ids[chosen]
        ranks = np.unique(self.rank[chosen])
        there = np.isin(self.there_ids, mine)
        there |= ~np.isin(self.there_ids, ids) & np.isin(self.there_ranks, ranks)
        known = np.isin(self.key_ids, np.concatenate((mine, self.there_ids[there])))
        columns = {name: getattr(self, name)[chosen] for name in _PER_OPERATION}
        columns |= {name: getattr(self, name)[there] for name in _BEFOREHAND}
        return replace(self, **columns, key_ids=self.key_ids[known], keys=self.keys[known])

    def to_columns(self) -> dict[str, Any]:
        """Arrays by name, as numpy's files hold them."""
        return {f"op_{part.name}": np.array(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Operations | None:
        """The inverse; None where there are none."""
        if "op_kind" not in columns:
            return None
        values = {part.name: columns[f"op_{part.name}"] for part in fields(cls)}
        values |= {name: bool(values[name]) for name in ("has_users", "has_ranks")}
        return cls(**values)


_PER_OPERATION = ("kind", "sizes", "request", "user", "rank")
_BEFOREHAND = ("there_ids", "there_sizes", "there_ranks")


def mixed(values: KeyArray) -> KeyArray:
    """64-bit values that look random, a different one for each: also of 0 (splitmix64)."""
    with np.errstate(over="ignore"):
        values = values + _STEP
        for shift, factor in _ROUNDS:
            values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _LAST_SHIFT)


@dataclass(slots=True)
class Recording:
    """Operations as a parser finds them, a column each.

    ``high`` and ``low`` are the words of the key, ``version`` tells objects of one key apart.
    """

    kind: array[int] = field(default_factory=lambda: array("b"))
    submitted_ns: array[int] = field(default_factory=lambda: array("q"))
    high: array[int] = field(default_factory=lambda: array("Q"))
    low: array[int] = field(default_factory=lambda: array("Q"))
    version: array[int] = field(default_factory=lambda: array("Q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    request: array[int] = field(default_factory=lambda: array("i"))
    user: array[int] = field(default_factory=lambda: array("i"))
    rank: array[int] = field(default_factory=lambda: array("i"))
    line: array[int] = field(default_factory=lambda: array("I"))

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column for numpy; the parser's own is given up."""
        values: array[int] = getattr(self, name)
        setattr(self, name, array(values.typecode))
        return np.frombuffer(values, dtype=np.dtype(values.typecode))


class Names(NamedTuple):
    """What a format calls the fields that can contradict each other."""

    size: str
    key: str


def found_in(
    recording: Recording, path: str, *, names: Names, has_ranks: bool, left_out: int
) -> Recorded:
    """Sort operations by time, number their objects, and find out what was there beforehand.

    Two of ten million objects are taken for one with a probability of 3 in a million: they are
    told apart by 64 bits. There must be one operation beyond a population. Raises TraceError, with
    the line, for a read of another size than was
    written, and for one, or a delete, of what had been deleted.
    """
    submitted_ns = recording.column("submitted_ns")
    kind = recording.column("kind").astype(np.int8)
    order = np.lexsort((submitted_ns, kind != STORED))
    kind, submitted_ns = kind[order], submitted_ns[order]
    rank = recording.column("rank")[order]
    high, low, version = (recording.column(n)[order] for n in ("high", "low", "version"))
    ids, keys = _numbered(high, low, version, rank)
    del high, low, version  # a third of the memory
    sizes, rank = recording.column("size")[order], rank.astype(np.int64)
    try:
        there = _beforehand(kind, ids, sizes, names)
    except _WrongError as error:
        line = int(recording.column("line")[order[error.at]])
        raise TraceError(path, line, str(error)) from error
    run = slice(int((kind == STORED).sum()), None)
    user = recording.column("user")[order][run].astype(np.int64)
    count = len(kind[run])
    nothing = np.zeros(count, dtype=np.int64)
    return Recorded(
        block_tokens=1,
        arrival_ns=submitted_ns[run] - submitted_ns[run].min(),
        input_tokens=nothing,
        output_tokens=nothing,
        offsets=np.arange(count + 1),
        block_ids=ids[run].astype(np.int32),
        reading=Reading(unit=TimeUnit(name="ns"), ids="objects", left_out=left_out),
        operations=Operations(
            kind=kind[run],
            sizes=sizes[run],
            request=recording.column("request")[order][run].astype(np.int64),
            user=user,
            rank=rank[run],
            there_ids=ids[there],
            there_sizes=sizes[there],
            there_ranks=rank[there],
            key_ids=np.arange(len(keys)),
            keys=keys,
            has_users=bool((user != NOBODY).all()),
            has_ranks=has_ranks,
        ),
    )


def _numbered(
    high: KeyArray, low: KeyArray, version: KeyArray, rank: npt.NDArray[np.int32]
) -> tuple[IntArray, KeyArray]:
    """Return each operation's number of what it is of, and the key of each number.

    An object that is stored again under its key keeps the number, unless it came before the one
    before it was gone (deletes are late): then the two are not the same.
    """
    named = mixed(low ^ mixed(high ^ mixed(rank.astype(np.uint64) << _PART | version >> _PART)))
    _known, first, place = np.unique(mixed(named ^ mixed(version)), return_index=True,
                                     return_inverse=True)  # fmt: skip
    last = np.zeros(len(first), dtype=np.int64)
    last[place] = np.arange(len(place))
    by_key = np.lexsort((version[first], named[first]))
    first, last, of_key = first[by_key], last[by_key], named[first][by_key]
    begins = np.ones(len(first), dtype=bool)
    begins[1:] = (of_key[1:] != of_key[:-1]) | (first[1:] < last[:-1])
    number = np.zeros(len(first), dtype=np.int64)
    number[by_key] = np.cumsum(begins) - 1
    chosen = first[begins]
    return number[place], np.stack((high[chosen], low[chosen]), axis=1)


class _WrongError(ValueError):
    def __init__(self, at: int, problem: str) -> None:
        self.at = at
        super().__init__(problem)


def _rows(*columns: npt.NDArray[Any]) -> Iterator[tuple[int, ...]]:
    """The rows of columns as Python's numbers, some at a time: all at once take 100 bytes each."""
    for start in range(0, len(columns[0]), _SLICE):
        yield from zip(*(part[start : start + _SLICE].tolist() for part in columns), strict=True)


def _beforehand(
    kind: npt.NDArray[np.int8], ids: IntArray, sizes: IntArray, names: Names
) -> IntArray:
    """Return where each object that is there beforehand is first seen; mark overwrites."""
    absent, gone = 0, -1
    now = [absent] * (int(ids.max(initial=-1)) + 1)
    there = array("q")
    for at, (what, which, size) in enumerate(_rows(kind, ids, sizes)):
        held = now[which]
        if what == WRITE:
            if held > 0:
                kind[at] = OVERWRITE
            now[which] = size
            continue
        if what == STORED and held != absent:
            problem = f"{names.key} names an object that an earlier line has stored"
            raise _WrongError(at, f"{problem}; in the population each must be new")
        if held == gone:
            problem = f"{names.key} names an object that has been deleted, and not stored again"
            raise _WrongError(at, f"{problem}; remove the line")
        if held == absent:
            there.append(at)
            held = size
        if what == READ and size != held:
            problem = f"{names.size} is {size}, and the object was stored with {held} bytes"
            raise _WrongError(at, f"{problem}; whole objects are replayed")
        now[which] = gone if what == DELETE else held
    return np.array(there, dtype=np.int64)
