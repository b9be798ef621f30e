"""How many requests were answered within what their class of service expects. Rank-side.

Imports neither pytest nor MPI. A request is judged once, by the time from its intended start to
its answer without what is simulated (prefill, generation), against a limit that knows how many
bytes it read. One that is never answered is judged too, and was not in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_kvcache.measure.recorder import Ledger

PERCENTILES: Final = ("p95", "p99", "p999", "p9999")
"""The limits of a class; by the first one a request is good."""

_WITHIN: Final = tuple(f"within_{name}" for name in PERCENTILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """By class the times of a request that reads nothing, one for each of PERCENTILES.

    ``ns_per_byte`` is what each byte that it reads adds. A request without a class is of
    ``unclassed``.
    """

    of_class: dict[str, tuple[float, ...]]
    ns_per_byte: float
    unclassed: str
    places: dict[str | None, int] = field(init=False)

    def __post_init__(self) -> None:
        places: dict[str | None, int] = {name: at for at, name in enumerate(self.of_class)}
        object.__setattr__(self, "places", {**places, None: places[self.unclassed]})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCounts:
    """One class on one rank. ``judged`` and those within a limit began in the window.

    ``completed_in_window`` and ``good_in_window`` (of those, within the first limit) ended in the
    common window.
    """

    name: str
    judged: int
    within_p95: int
    within_p99: int
    within_p999: int
    within_p9999: int
    completed_in_window: int
    good_in_window: int


class ServiceBook:
    """Counts of one rank, made off the timed path."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._limits_ns = np.array(list(limits.of_class.values())) * 1e6
        self._judged = np.zeros(len(self._limits_ns), dtype=np.int64)
        self._within = np.zeros(self._limits_ns.shape, dtype=np.int64)
        self._ledger: Ledger | None = None

    def begin(self, ledger: Ledger) -> None:
        """Of a window, whose slices ``ledger`` has; it has ``columns_of`` these limits."""
        self._judged[:] = 0
        self._within[:] = 0
        self._ledger = ledger

    def miss(self, service_class: str | None) -> None:
        """A request that began in the window is never answered."""
        self._judged[self.limits.places[service_class]] += 1

    def book(self, every: NDArray[np.void], *, began_inside: NDArray[np.bool_]) -> None:
        """Rows of answered requests: class, start, end, what was simulated in ns, bytes."""
        assert self._ledger is not None
        place, done_ns = every["service_class"], every["done_ns"]
        took_ns = done_ns - every["started_ns"] - every["computing_ns"]
        limits_ns = self._limits_ns[place] + every["bytes"][:, None] * self.limits.ns_per_byte
        within = took_ns[:, None] <= limits_ns
        for at, name in enumerate(self.limits.of_class):
            of_class = place == at
            self._judged[at] += int((of_class & began_inside).sum())
            self._within[at] += within[of_class & began_inside].sum(axis=0)
            good = within[of_class, 0].astype(np.int64)
            completed, good_name = columns_of(name)
            self._ledger.add(done_ns[of_class], {completed: np.ones_like(good), good_name: good})

    def counted(self, window_ns: int, slice_ns: int) -> tuple[ServiceCounts, ...]:
        """By class; the common window is the first ``window_ns``, a multiple of ``slice_ns``."""
        if self._ledger is None:
            return ()
        self._ledger.coarsen(slice_ns)
        sums = self._ledger.sums(0, window_ns)
        return tuple(
            ServiceCounts(
                name=name,
                judged=int(self._judged[at]),
                **dict(zip(_WITHIN, map(int, self._within[at]), strict=True)),
                completed_in_window=sums[columns_of(name)[0]],
                good_in_window=sums[columns_of(name)[1]],
            )
            for at, name in enumerate(self.limits.of_class)
        )


def columns_of(name: str) -> tuple[str, str]:
    """What a ledger calls the completed and the good requests of a class."""
    return f"{name}/completed", f"{name}/good"
