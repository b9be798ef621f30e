"""What the last second was like: counted on the ranks, added up by the coordinator. Pure.

A rank tells with each heartbeat what was completed since the one before, and when that
was on its own clock, so that neither a late message nor one more or less of them between
two lines changes a rate. Figures that would lack a rank are no figures.

Imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.measure.series import BIN_COUNT, p99_ms
from pytest_kvcache.units import GIB

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]

_LONG_AGO_NS = 500_000_000
_NS_PER_S = 1e9
_WIRE = np.dtype("<u4")


class Recent:
    """A rank's operations since its last report; of reads with their service times.

    One thread adds and publishes, another one takes what was published last: both see whole
    sums only, for what is published is never changed.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(3, dtype=np.int64)  # operations, bytes read, bytes written
        self._reads = np.zeros(BIN_COUNT, dtype=np.int64)
        self._published = self._taken = (0, self._sums.copy(), self._reads.copy())

    def add(self, kind: str, bins: IntArray, moved_bytes: IntArray) -> None:
        """Count completed operations of a kind; ``bins``: ``coarse_index`` of their times.

        A demotion is a write.
        """
        if not bins.size:
            return
        is_read = kind == "read"
        self._sums[0] += len(bins)
        self._sums[1 if is_read else 2] += int(moved_bytes.sum())
        if is_read:
            self._reads += np.bincount(bins, minlength=BIN_COUNT)

    def publish(self, now_ns: int) -> None:
        """What was counted until now may be taken."""
        self._published = (now_ns, self._sums.copy(), self._reads.copy())

    def take(self, now_ns: int) -> dict[str, Any]:
        """About 1.2 kB, whatever has happened: the counts since this was asked last.

        ``t_ns`` is when they were published; where that is long ago, for the loop is stuck,
        a moment before ``now_ns``, for nothing has happened since.
        """
        published, taken = self._published, self._taken
        self._taken = published
        operations, read_bytes, write_bytes = (published[1] - taken[1]).tolist()
        return {
            "t_ns": max(published[0], now_ns - _LONG_AGO_NS),
            "operations": operations,
            "read_bytes": read_bytes,
            "write_bytes": write_bytes,
            "reads": (published[2] - taken[2]).astype(_WIRE).tobytes(),
        }


class LiveFigures:
    """The coordinator's sum over its ranks (any names), from one line to the next."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.restart()

    def restart(self) -> None:
        """Another phase begins: a rank's first report says from when on it counts."""
        self._since_ns: dict[int, int] = {}
        self._until_ns: dict[int, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[int, IntArray] = {}  # rank → operations, bytes read, bytes written
        self._reads = np.zeros(BIN_COUNT, dtype=np.int64)

    def receive(self, rank: int, recent: dict[str, Any]) -> None:
        """Add a rank's report; of the first one only the time counts."""
        if rank not in self._since_ns:
            self._since_ns[rank] = self._until_ns[rank] = recent["t_ns"]
            return
        self._until_ns[rank] = recent["t_ns"]
        sums = [recent["operations"], recent["read_bytes"], recent["write_bytes"]]
        self._sums[rank] = self._sums.get(rank, 0) + np.array(sums, dtype=np.int64)
        self._reads += np.frombuffer(recent["reads"], dtype=_WIRE)

    def take(self) -> dict[str, float | None] | None:
        """The rates since the last figures; None until every rank has reported a span.

        What has been received stays in that case, and counts in the next figures. The p99 is
        null where fewer than MIN_OPERATIONS reads stand behind it.
        """
        spans_ns = {r: self._until_ns[r] - since for r, since in self._since_ns.items()}
        if len(spans_ns) < self._ranks or not all(span > 0 for span in spans_ns.values()):
            return None
        rates = sum(sums / (spans_ns[rank] / _NS_PER_S) for rank, sums in self._sums.items())
        operations, read, written = np.broadcast_to(rates, 3).tolist()
        figures = {
            "operations_per_s": float(operations),
            "read_gib_per_s": read / GIB,
            "write_gib_per_s": written / GIB,
            "read_p99_ms": p99_ms(self._reads),
        }
        self._since_ns = dict(self._until_ns)
        self._clear()
        return figures
