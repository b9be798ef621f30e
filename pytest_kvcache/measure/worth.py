"""Whether loads pay: how many tokens arrived sooner than they could have been recomputed.

A load pays where the storage (and the memory in front of it) takes less time for the tokens of
a prefix than computing them anew would. Rank-side and controller; imports neither pytest nor MPI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_kvcache.measure.metrics import MIN_SAMPLES_BEYOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

_LEADING_BITS: Final = 7
LENGTH_STEP: Final = 2.0 ** (1 - _LEADING_BITS)
"""Lengths are kept to 7 leading bits: those counted as one are less than 1/64 (1.6 %) longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCounts:
    """Loads of about one length, ``tokens`` at least, that began in the window.

    ``useful`` of them took less time than recomputing takes. Lengths below 128 tokens are exact,
    longer ones are kept to 7 leading bits.
    """

    tokens: int
    loads: int
    useful: int


class WorthBook:
    """Counts of one rank, made off the timed path.

    ``tokens_per_s`` is what recomputing makes in the place of a load.
    """

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self._counts: dict[int, list[int]] = {}
        self.loaded_tokens = 0
        self.useful_tokens = 0

    def begin(self) -> None:
        """Of a window."""
        self._counts.clear()
        self.loaded_tokens = self.useful_tokens = 0

    def book(self, tokens: NDArray[np.int64], took_ns: NDArray[np.int64]) -> None:
        """Loads of so many tokens each, and how long they took."""
        useful = took_ns * self._tokens_per_s < tokens * 1e9
        self.loaded_tokens += int(tokens.sum())
        self.useful_tokens += int(tokens[useful].sum())
        lengths = lengths_of(tokens)
        for counted, chosen in ((0, lengths), (1, lengths[useful])):
            for length, count in zip(*np.unique(chosen, return_counts=True), strict=True):
                self._counts.setdefault(int(length), [0, 0])[counted] += int(count)

    def counted(self) -> tuple[LengthCounts, ...]:
        """By length, the shortest first."""
        return tuple(
            LengthCounts(tokens=tokens, loads=loads, useful=useful)
            for tokens, (loads, useful) in sorted(self._counts.items())
        )


def lengths_of(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The length that each number of tokens is counted as: its leading bits."""
    _mantissas, bits = np.frexp(tokens.astype(np.float64))  # exact below 2**53
    dropped = np.maximum(bits.astype(np.int64) - _LEADING_BITS, 0)
    return tokens >> dropped << dropped


def added(ranks: Iterable[Sequence[LengthCounts]]) -> tuple[LengthCounts, ...]:
    """The counts of all ranks together."""
    sums: dict[int, tuple[int, int]] = {}
    for each in (counts for rank in ranks for counts in rank):
        loads, useful = sums.get(each.tokens, (0, 0))
        sums[each.tokens] = loads + each.loads, useful + each.useful
    return tuple(
        LengthCounts(tokens=tokens, loads=loads, useful=useful)
        for tokens, (loads, useful) in sorted(sums.items())
    )


def turning_tokens(lengths: Sequence[LengthCounts]) -> int | None:
    """The length from which on loads pay: the one that misjudges the fewest loads.

    Those below it should not have paid, those from it on should have; of equally good ones the
    shortest. None: fewer than 10 loads pay, or fewer than 10 do not (as many as a percentile must
    have beyond it), or no length tells them apart better than saying that all pay, or none does.
    """
    wrong = best = sum(each.loads - each.useful for each in lengths)  # from the very first on
    found: int | None = None
    for at, each in enumerate(lengths):
        wrong += 2 * each.useful - each.loads
        if wrong < best and at + 1 < len(lengths):
            best, found = wrong, lengths[at + 1].tokens
    useful, loads = sum(each.useful for each in lengths), sum(each.loads for each in lengths)
    is_rare = min(useful, loads - useful) < MIN_SAMPLES_BEYOND
    return None if is_rare or useful <= best else found
