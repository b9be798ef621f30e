"""One rank's part of a shared store: what it notes, and what all who share it have noted.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.measure.sharing import Joined, SharingLog, joined

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.plan.plan import Plan


class RankSharing:
    """The log of a rank and, when all is over, what follows from everybody's (``joined``)."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.log = SharingLog()
        self.joined = Joined()
        self._layout = plan.layout
        self._rank = rank
        self._sharers = plan.sharers_of(rank)
        self._exclusive = plan.publish == "link"

    @property
    def origin(self) -> int:
        """What the heads of this rank's blocks say of who wrote them."""
        return self._rank + 1

    @property
    def error(self) -> str | None:
        """What is wrong with the store."""
        key = self.joined.lost_key
        if key is None or self.log.error is not None:
            return self.log.error
        return (
            f"block {key.hex()}, which was stored and which no rank has deleted, was gone when it"
            " was looked for again; look for what else deletes in the cache directory, or for a"
            " filesystem that forgets"
        )

    def dealt(self, origin_ns: int) -> dict[int, bytes]:
        """Rank → what it is to join; ``origin_ns`` is the run's start on this host's clock."""
        return self.log.dealt(self._rank, self._sharers, origin_ns)

    def join(self, parts: Iterable[bytes], visibility: Histogram, clock_error_ns: int) -> None:
        """Join what was dealt to this rank."""
        host_of = {rank: self._layout.host_of(rank) for rank in self._sharers}
        self.joined = joined(parts, host_of, exclusive=self._exclusive, error_ns=clock_error_ns)
        visibility.record(np.array(self.joined.visible_ns, dtype=np.int64))
