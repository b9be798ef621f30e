"""Block ids of a trace as numbers: opaque on the way in, prefix-chained on the way out. Pure.

Rank-side; imports numpy. Ids are whatever a recorder wrote (a counter, a hash of 64 bits
with or without a sign, a text): only whether two are equal counts. Each prefix gets a number
in the order in which it first occurs. Ids are dealt with a million at a time as columns:
one costs 4 bytes wherever it occurs, and 8 to 16 bytes more once.

Integers from 0 to 2**64 - 1 are told apart exactly. Any other id stands for the 64-bit
BLAKE2b of its text, and a prefix of contents for a 64-bit sum of hashes: of ten million of
them, two are taken for the same with a probability of 3 in a million (the birthday bound,
n**2 / 2**65).
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_kvcache.traces.fields import shown

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    NumberArray = npt.NDArray[np.int32]
    KeyArray = npt.NDArray[np.uint64]

IDS = ("prefix", "content")  # what equal ids may mean

_BATCH = 1 << 19  # ids that are numbered at a time
_DENSE = 1 << 25  # ids below are looked up in a table, as counters are; others in sorted keys
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: far apart for all positions
_ROUNDS = (  # of splitmix64's finaliser: Steele et al., OOPSLA 2014, as published by Vigna
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


class NotChainedError(ValueError):
    """An id stands behind another one than before; ``at`` is its place in the batch."""

    def __init__(self, at: int, numbers: NumberArray, *, was_first: bool) -> None:
        self.at, self.numbers, self.was_first = at, numbers, was_first
        super().__init__(f"id {at} of a batch is not prefix-chained")

    def told(self, place: int, there: str) -> str:
        """The sentence for users: ``place`` in its prompt, and ``there`` is where it was before."""
        here = "first" if place == 0 else f"behind hash_ids[{place - 1}]"
        before = "first" if self.was_first else "behind another id"
        return (
            f"hash_ids[{place}] stands {here}, and in {there} {before}; equal ids must stand for"
            " equal whole prefixes, so if each of them is the hash of one block's content, add"
            " --kv-trace-ids=content, which chains them"
        )


class Batch(NamedTuple):
    """Ids of some requests: all of them in a row, and where each request's begin and how many."""

    ids: KeyArray
    starts: IntArray
    counts: IntArray

    @classmethod
    def of(cls, ids: array[int], counts: IntArray) -> Batch:
        """The batch of so many ids of each request."""
        return cls(np.frombuffer(ids, dtype=np.uint64), np.cumsum(counts) - counts, counts)

    def request_of(self, at: int) -> int:
        """The request that an id belongs to."""
        return int(np.searchsorted(self.starts + self.counts, at, side="right"))


class PrefixNumbers:
    """Numbers of whole prefixes, by ids of whole prefixes or of single blocks' contents.

    Ids of prefixes always have the same one before them; ids of contents break that rule
    sooner or later, and would make hits of blocks that no engine could use. So with
    ``ids`` ``prefix`` such a batch raises NotChainedError; with ``content`` they are chained.
    """

    def __init__(self, ids: str) -> None:
        self._chains = ids == "content"
        self._numbers = _Numbers()
        self._before = array("i")  # the number of what stands before each

    @property
    def count(self) -> int:
        """Numbers that were given out, from 0 on."""
        return self._numbers.count

    def of(self, batch: Batch) -> tuple[NumberArray, npt.NDArray[np.bool_]]:
        """Each id's number, and whether it occurs for the first time."""
        last = np.int32(self.count - 1)
        numbers = self._numbers.of(_chained(batch) if self._chains else batch.ids)
        is_first = np.empty(len(numbers), dtype=bool)
        if len(numbers):
            highest = np.maximum.accumulate(numbers)
            is_first[0] = numbers[0] > last
            is_first[1:] = numbers[1:] > np.maximum(highest[:-1], last)
            if not self._chains:
                self._check(batch, numbers, is_first)
        return numbers, is_first

    def _check(self, batch: Batch, numbers: NumberArray, is_first: npt.NDArray[np.bool_]) -> None:
        before = np.empty_like(numbers)
        before[1:] = numbers[:-1]
        before[batch.starts[batch.counts > 0]] = -1
        self._before.frombytes(before[is_first].tobytes())
        expected = np.frombuffer(self._before, dtype=np.int32)[numbers]
        wrong = np.flatnonzero(expected != before)
        if len(wrong):
            at = int(wrong[0])
            raise NotChainedError(at, numbers, was_first=bool(expected[at] < 0))


class PromptIds:
    """The ids of prompts in file order: collected, and numbered a batch at a time.

    Errors count requests from 0 (``at_request``).
    """

    def __init__(self, ids: str) -> None:
        self._numbers = PrefixNumbers(ids)
        self._pending = array("Q")
        self._counts = array("q")
        self._numbered = 0  # requests
        self._found = array("i")
        self.at_request = 0

    def add(self, ids: Any) -> None:
        """Take the ids of one more prompt; ValueError where they can't be."""
        self.at_request = len(self._counts)
        before = len(self._pending)
        take(self._pending, ids)
        self._counts.append(len(self._pending) - before)
        if len(self._pending) >= _BATCH:
            self._number()

    def finish(self) -> tuple[IntArray, NumberArray]:
        """Offsets and numbers of all prompts; ValueError where ids are not prefix-chained."""
        self._number()
        self._numbers = PrefixNumbers("prefix")  # what was known of ids is not needed any more
        counts = np.frombuffer(self._counts, dtype=np.int64)
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
        return offsets, np.frombuffer(self._found, dtype=np.int32)

    def _number(self) -> None:
        batch = Batch.of(self._pending, np.array(self._counts[self._numbered :], dtype=np.int64))
        try:
            numbers, _is_first = self._numbers.of(batch)
        except NotChainedError as error:
            request = batch.request_of(error.at)
            self.at_request = self._numbered + request
            before = self._first_with(error)
            raise ValueError(
                error.told(error.at - int(batch.starts[request]), f"line {before + 1}")
            ) from error
        self._found.frombytes(numbers.tobytes())
        self._numbered = len(self._counts)
        self._pending = array("Q")

    def _first_with(self, error: NotChainedError) -> int:
        """The first request that has the id."""
        ends = np.cumsum(np.frombuffer(self._counts, dtype=np.int64))
        found = np.concatenate((np.frombuffer(self._found, dtype=np.int32), error.numbers))
        at = int(np.argmax(found == error.numbers[error.at]))
        return int(np.searchsorted(ends, at, side="right"))


def take(pending: array[int], ids: Any) -> None:
    """Append ids as 64 bits each; ValueError if they are no list of integers or texts."""
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int, str}:
        raise ValueError(f"hash_ids is {shown(ids)}; it must be a list of integers or texts")
    before = len(pending)
    try:
        pending.extend(ids)
    except (OverflowError, TypeError):
        del pending[before:]
        pending.extend(map(_of_64_bits, ids))


def _of_64_bits(each: int | str) -> int:
    if isinstance(each, int) and 0 <= each < 1 << 64:
        return each
    digest = hashlib.blake2b(repr(each).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _chained(batch: Batch) -> KeyArray:
    """A key per prefix: the sum, modulo 2**64, of a hash of each content and its place."""
    if not len(batch.ids):
        return batch.ids
    places = np.arange(len(batch.ids)) - np.repeat(batch.starts, batch.counts)
    sums = np.cumsum(_mixed(batch.ids + places.astype(np.uint64) * _STEP))
    before = np.concatenate((np.zeros(1, dtype=np.uint64), sums))[batch.starts]
    chained: KeyArray = sums - np.repeat(before, batch.counts)
    return chained


def _mixed(values: KeyArray) -> KeyArray:
    for shift, factor in _ROUNDS:
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _LAST_SHIFT)


class _Numbers:
    """Numbers of 64-bit keys, in the order in which they first occur.

    Small keys are looked up in a table; others in an array of sorted keys, into which each
    batch's new ones are merged.
    """

    def __init__(self) -> None:
        self.count = 0
        self._table = np.empty(0, dtype=np.int32)  # by key; -1: none
        self._keys = np.empty(0, dtype=np.uint64)
        self._key_numbers = np.empty(0, dtype=np.int32)

    def of(self, keys: KeyArray) -> NumberArray:
        """The number of each key."""
        found = self._known(keys)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            fresh, first, inverse = np.unique(keys[unknown], return_index=True, return_inverse=True)
            numbers = np.empty(len(fresh), dtype=np.int32)
            numbers[np.argsort(first)] = np.arange(
                self.count, self.count + len(fresh), dtype=np.int32
            )
            found[unknown] = numbers[inverse]
            self._learn(fresh, numbers)
            self.count += len(fresh)
        return found

    def _known(self, keys: KeyArray) -> NumberArray:
        is_small = keys < np.uint64(len(self._table))
        if is_small.all():
            return self._table[keys]
        found = np.full(len(keys), -1, dtype=np.int32)
        found[is_small] = self._table[keys[is_small]]
        if len(self._keys):
            large = np.flatnonzero(~is_small)
            at = np.minimum(np.searchsorted(self._keys, keys[large]), len(self._keys) - 1)
            is_known = self._keys[at] == keys[large]
            found[large[is_known]] = self._key_numbers[at[is_known]]
        return found

    def _learn(self, fresh: KeyArray, numbers: NumberArray) -> None:
        cut = int(np.searchsorted(fresh, np.uint64(_DENSE)))
        if cut:
            self._grow(int(fresh[cut - 1]) + 1)
            self._table[fresh[:cut]] = numbers[:cut]
        at = np.searchsorted(self._keys, fresh[cut:])
        self._keys = np.insert(self._keys, at, fresh[cut:])
        self._key_numbers = np.insert(self._key_numbers, at, numbers[cut:])

    def _grow(self, size: int) -> None:
        before = len(self._table)
        if size > before:
            # In place: a copy would need both at once. No view of it is kept anywhere.
            self._table.resize(max(size, min(_DENSE, before * 5 // 4)), refcheck=False)
            self._table[before:] = -1
