"""A declared rate of requests: any closed workload, driven by a schedule of arrivals.

Rank-side; imports neither pytest nor MPI. The schedule is made before the run from
(seed, trial, rank) alone, and so is the order in which users take their turns: neither
knows how fast the storage is.
"""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.protocol import NEVER_NS
from pytest_kvcache.workloads.wrapped import WrappedWorkload

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from pytest_kvcache.workloads.protocol import Request, Workload

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]

# The gamma distribution's shape per process of --kv-arrival: that of the times between
# arrivals. 1 is the exponential distribution; a quarter makes bursts. vLLM's serving
# benchmark calls the same number its burstiness.
ARRIVAL_SHAPES: Mapping[str, float] = MappingProxyType({"poisson": 1.0, "gamma": 0.25})

DEFAULT_ARRIVAL = "poisson"
MAX_ARRIVALS = 50_000_000  # per rank: 400 MB of schedule

_DRAWS = 8192  # at once; another number would give another schedule


def interval_cv(arrival: str) -> float:
    """Coefficient of variation of the times between arrivals: 1 / sqrt(shape)."""
    return 1 / math.sqrt(ARRIVAL_SHAPES[arrival])


def arrival_offsets_ns(*, per_s: float, arrival: str, span_s: float, identity: str) -> IntArray:
    """Ascending ns since the start of the run, up to the first at or after ``span_s``.

    The times between them are independent draws with a mean of 1 / ``per_s`` s. The same
    ``identity`` gives the same schedule, and a longer span begins with the shorter one.
    """
    span = span_s * per_s  # in mean intervals
    # The stream of this generator, unlike that of numpy's newer ones, is frozen (NEP 19).
    uniforms = np.random.RandomState(np.frombuffer(_digest(identity), dtype="<u4"))
    at = 0.0
    parts: list[FloatArray] = []
    while not parts or at < span:
        steps = _intervals(uniforms, ARRIVAL_SHAPES[arrival])
        parts.append(np.cumsum(np.concatenate(([at], steps)))[1:])
        at = float(parts[-1][-1])
    offsets = np.concatenate(parts)
    offsets = offsets[: np.searchsorted(offsets, span) + 1]
    with np.errstate(over="ignore"):  # a rate may be so low that nothing ever comes
        offsets_ns: IntArray = np.minimum(offsets / per_s * 1e9, float(NEVER_NS)).astype(np.int64)
    return offsets_ns


def _digest(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=16).digest()


def _intervals(uniforms: np.random.RandomState, shape: float) -> FloatArray:
    """Some draws of a gamma distribution with a mean of 1; exponential for a shape of 1."""
    if shape == 1:
        drawn: FloatArray = -np.log1p(-uniforms.random_sample(_DRAWS))
        return drawn
    return _gamma(uniforms.random_sample((_DRAWS, 2)), shape) / shape


def _gamma(uniforms: FloatArray, shape: float) -> FloatArray:
    """Draws for a shape below 1 and a scale of 1; fewer than there are pairs of uniforms.

    Algorithm GS of Ahrens and Dieter, Computer methods for sampling from gamma, beta,
    Poisson and binomial distributions, Computing 12, 1974: it takes nothing but uniforms.
    """
    limit = 1 + shape / math.e
    scaled = limit * uniforms[:, 0]
    low = scaled <= 1
    drawn = np.where(low, scaled ** (1 / shape), -np.log((limit - scaled) / shape))
    bound = np.where(low, np.exp(-drawn), np.maximum(drawn, 1.0) ** (shape - 1))
    accepted: FloatArray = drawn[uniforms[:, 1] <= bound]
    return accepted


class OpenLoop(WrappedWorkload):
    """A closed workload whose users ask when the schedule says so.

    Each arrival takes the next turn of a user that a generator of its own draws, out of
    the half that has been silent for longest: nobody asks again at once, which would
    make the request wait for the blocks of the one before. Think times play no part.
    Raises OptionError for a workload with arrivals of its own.
    """

    open_loop = True

    def __init__(self, closed: Workload, offsets_ns: IntArray, identity: str) -> None:
        if closed.open_loop:
            raise OptionError(
                "--kv-request-rate is given, and the scenario has arrivals of its own; leave the"
                " rate out"
            )
        super().__init__(closed)
        self._offsets_ns = offsets_ns
        self._draws = random.Random(int.from_bytes(_digest(identity), "big"))
        self._silent = list(range(closed.users))  # for longest first
        self._arrived = 0

    def next_request(self, user: int) -> Request | None:
        """The next arrival, whoever is asked for; None after the last one."""
        del user
        while self._silent and self._arrived < len(self._offsets_ns):
            # random() is the one method whose sequence Python promises to keep.
            place = int(self._draws.random() * ((len(self._silent) + 1) // 2))
            drawn = self._silent.pop(place)
            request = self._workload.next_request(drawn)
            if request is not None:
                self._silent.append(drawn)
                arrival_ns = int(self._offsets_ns[self._arrived])
                self._arrived += 1
                return request._replace(think_s=0.0, arrival_ns=arrival_ns)
        return None
