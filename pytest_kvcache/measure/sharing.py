"""What ranks that share a store notice of each other's blocks, and what follows when it is joined.

Rank-side; imports neither pytest nor MPI. Each rank notes moments (`SharingLog`); when all is over
they are dealt out by key, so that each rank gets all of some blocks, and joins them (`joined`).
Times are counted from the run's start, which all ranks' clocks have in common.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

STORED = 0  # from the question whether it is there until it was published
DELETED = 1  # from the call's begin to its end
FOUND = 2  # that another rank has stored, by a lookup, for the first time
MISSED = 3  # the first block of a prompt that a lookup did not find
LOST = 4  # from when it was there, found or stored by this rank, until it was seen to be gone
GIVEN_UP = 5  # not stored, for another rank had: from the question whether it is there

_ROW: Final = np.dtype(
    [("key", "V16"), ("kind", "i8"), ("began_ns", "i8"), ("ended_ns", "i8"), ("rank", "i8")]
)
CLOCK_ERROR_NS: Final = 1_000_000
"""What lies nearer together on two hosts' clocks has no order, at least."""
MOST_MOMENTS: Final = 10_000_000
"""Of one rank, which take 400 MB of it."""
_TO_JOIN: Final = (FOUND, MISSED, LOST, GIVEN_UP)
"""Kinds without which there is nothing to join of a block that one rank alone has stored."""


class Moment(NamedTuple):
    """Something that a rank did with a block, or saw of it, between two moments of its clock."""

    kind: int
    began_ns: int
    ended_ns: int
    rank: int


class SharingLog:
    """The moments of one rank, in the order in which they were noted: 40 bytes each.

    ``vanished`` counts the blocks that it had found and that were gone when it read them,
    ``displaced`` those that it displaced itself before it could decide what to read; ``error``
    says that there were more than can be kept, so that nothing follows from them.
    """

    def __init__(self) -> None:
        self.vanished = 0
        self.displaced = 0
        self.error: str | None = None
        self._keys = bytearray()
        self._kinds = array("q")
        self._began_ns = array("q")
        self._ended_ns = array("q")

    def note(self, kind: int, key: bytes, began_ns: int, ended_ns: int) -> None:
        """Note a moment, by this host's clock."""
        if len(self._kinds) >= MOST_MOMENTS:
            self.error = (
                f"a rank that shares a store has noted {MOST_MOMENTS:,} moments of blocks, all that"
                " it keeps; shorten --kv-duration, or raise --kv-block-tokens"
            )
            return
        self._keys += key
        self._kinds.append(kind)
        self._began_ns.append(began_ns)
        self._ended_ns.append(ended_ns)

    def dealt(self, rank: int, among: Sequence[int], origin_ns: int) -> dict[int, bytes]:
        """Rank → the moments of the blocks that it is to join, of those that share the store.

        ``origin_ns`` is the run's start on this host's clock.
        """
        rows = np.zeros(len(self._kinds), _ROW)
        if not len(rows):
            return {}
        rows["key"] = np.frombuffer(self._keys, "V16")
        rows["kind"], rows["rank"] = np.frombuffer(self._kinds, "i8"), rank
        rows["began_ns"] = np.frombuffer(self._began_ns, "i8") - origin_ns
        rows["ended_ns"] = np.frombuffer(self._ended_ns, "i8") - origin_ns
        owners = np.frombuffer(self._keys, "<u4").reshape(len(rows), -1)[:, 0] % len(among)
        return {to: rows[owners == place].tobytes() for place, to in enumerate(among)}


@dataclass(slots=True)
class Joined:
    """What became of some blocks, by what all who share them have noted.

    ``visible_ns``: from the end of a store until a rank of another host first found the block, one
    for each such host. ``stale``: how many lookups began after a store had ended, and did not find
    the block though nobody had deleted it; ``longest_stale_ns`` after it at most. ``races``: how
    many blocks a rank stored, or gave up, as another one had stored them since it asked.
    ``unexplained``: blocks that were gone, which nobody has deleted; ``lost_key`` is one.
    """

    visible_ns: list[int] = field(default_factory=list)
    stale: int = 0
    longest_stale_ns: int | None = None
    races: int = 0
    unexplained: int = 0
    lost_key: bytes | None = None


def joined(
    parts: Iterable[bytes],
    host_of: Mapping[int, Any],
    *,
    exclusive: bool,
    error_ns: int = CLOCK_ERROR_NS,
) -> Joined:
    """Join what ranks have dealt to this one; ``host_of`` names the host of each.

    ``exclusive``: of a block that is there no second one can be stored. ``error_ns``: what lies
    nearer together has no order.
    """
    found = Joined()
    for key, moments in _by_key(parts).items():
        block = _Block(moments, host_of, exclusive=exclusive, error_ns=error_ns)
        found.visible_ns += block.visible_ns()
        found.races += block.races()
        for late_ns in block.stale_ns():
            found.stale += 1
            found.longest_stale_ns = max(late_ns, found.longest_stale_ns or 0)
        lost = block.unexplained()
        found.unexplained += lost
        if lost and found.lost_key is None:
            found.lost_key = key
    return found


def _by_key(parts: Iterable[bytes]) -> dict[bytes, list[Moment]]:
    """The moments of each block of which there is something to join."""
    rows: NDArray[np.void] = np.frombuffer(b"".join(parts), _ROW)
    if not len(rows):
        return {}
    halves = np.frombuffer(rows["key"].tobytes(), "<u8").reshape(-1, 2)
    _keys, numbers = np.unique(halves, axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    stored = np.bincount(numbers, rows["kind"] == STORED, len(_keys)) > 1
    stored |= np.bincount(numbers, np.isin(rows["kind"], _TO_JOIN), len(_keys)) > 0
    rows = rows[stored[numbers]]
    found: dict[bytes, list[Moment]] = defaultdict(list)
    columns = (rows[name].tolist() for name in ("kind", "began_ns", "ended_ns", "rank"))
    for key, *moment in zip(map(bytes, rows["key"]), *columns, strict=True):
        found[key].append(Moment(*moment))
    return found


class _Block:
    """All moments of one block."""

    def __init__(
        self,
        moments: Sequence[Moment],
        host_of: Mapping[int, Any],
        *,
        exclusive: bool,
        error_ns: int,
    ) -> None:
        of_kind: dict[int, list[Moment]] = defaultdict(list)
        for moment in sorted(moments, key=lambda each: each.ended_ns):
            of_kind[moment.kind].append(moment)
        self._stores = of_kind[STORED]
        self._deletes = of_kind[DELETED]
        self._finds = of_kind[FOUND]
        self._misses = of_kind[MISSED]
        self._losses = of_kind[LOST]
        self._given_up = of_kind[GIVEN_UP]
        self._exclusive = exclusive
        self._error_ns = error_ns
        self._host_of = host_of

    def visible_ns(self) -> list[int]:
        """Until each other host first found what one had stored."""
        first: dict[Any, Moment] = {}
        for find in self._finds:
            first.setdefault(self._host_of[find.rank], find)
        found = []
        for host, find in first.items():
            before = [s for s in self._stores if s.ended_ns <= find.ended_ns]
            if any(self._host_of[store.rank] == host for store in before):
                continue  # of what this host stored itself, finding it tells nothing
            others = [s for s in self._stores if self._host_of[s.rank] != host]
            if not others:
                continue
            store = before[-1] if before else others[0]  # it was there before the call returned
            found.append(max(0, find.ended_ns - store.ended_ns))
        return found

    def stale_ns(self) -> list[int]:
        """How long after the end of a store each lookup began that did not find it."""
        found = []
        for miss in self._misses:
            store = self._stored_before(miss.began_ns - self._error_ns)
            if store is not None and not self._deleted(store, miss.ended_ns):
                found.append(miss.began_ns - store.ended_ns)
        return found

    def races(self) -> int:
        """Blocks that another rank has stored between the question of one and the end of its store.

        What was there before the question was not raced for; where a second one can't be stored,
        the first one had gone (`unexplained`).
        """
        count = 0
        for mine in (*([] if self._exclusive else self._stores), *self._given_up):
            count += any(
                other.rank != mine.rank
                and mine.began_ns - self._error_ns <= other.ended_ns <= mine.ended_ns
                and not self._deleted(other, mine.ended_ns)
                for other in self._stores
            )
        return count

    def unexplained(self) -> int:
        """Losses before which nobody has deleted the block."""
        count = 0
        for loss in self._losses:
            store = self._stored_before(loss.began_ns)
            count += not self._deleted(store, loss.ended_ns)
        if self._exclusive:
            for store, after in itertools.pairwise(self._stores):
                count += not self._deleted(store, after.ended_ns) and not any(
                    store.ended_ns - self._error_ns <= loss.ended_ns <= after.ended_ns
                    for loss in self._losses
                )
        return count

    def _stored_before(self, at_ns: int) -> Moment | None:
        return next((s for s in reversed(self._stores) if s.ended_ns <= at_ns), None)

    def _deleted(self, store: Moment | None, until_ns: int) -> bool:
        """Whether somebody may have deleted the block after a store and until a moment."""
        since_ns = None if store is None else store.ended_ns - self._error_ns
        return any(
            (since_ns is None or each.ended_ns >= since_ns)
            and each.began_ns <= until_ns + self._error_ns
            for each in self._deletes
        )
