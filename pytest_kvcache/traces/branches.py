"""Prompts as branches of earlier ones: what each shares with one, and what it adds. Pure.

Rank-side; imports numpy. Of prefix-chained prompts nothing else needs to be kept: a prompt is
the head of an earlier one, and numbers of its own, which follow each other. So prompts that
are read in one order and decided in another are laid out once, in place, when all are known.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    NumberArray = npt.NDArray[np.int32]


class Branches:
    """Prompts in the order in which they were read, each a branch of one before it."""

    def __init__(self) -> None:
        self._parents = array("i")
        self._shared = array("i")
        self._own = array("i")

    def __len__(self) -> int:
        return len(self._own)

    def add(self, parent: int, shared: int, own: int) -> None:
        """Add a prompt: the first ``shared`` blocks of prompt ``parent``, and ``own`` new ones."""
        self._parents.append(parent)
        self._shared.append(shared)
        self._own.append(own)

    def extend(self, parents: IntArray, shared: IntArray, own: IntArray) -> None:
        """Add many prompts."""
        for column, values in ((self._parents, parents), (self._shared, shared), (self._own, own)):
            column.frombytes(values.astype(np.int32).tobytes())

    def laid_out(self, order: IntArray) -> tuple[IntArray, NumberArray]:
        """Return offsets and numbers of all prompts, in this order.

        New blocks are numbered in the order in which prompts were read.
        """
        counts = np.add(self._shared, self._own, dtype=np.int64)
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts[order])))
        places = np.empty(len(order), dtype=np.int64)
        places[order] = offsets[:-1]
        numbers = np.empty(int(offsets[-1]), dtype=np.int32)
        first = 0
        rows = zip(places.tolist(), self._parents, self._shared, self._own, strict=True)
        starts = places.tolist()
        for start, parent, shared, own in rows:
            if shared:
                at = starts[parent]
                numbers[start : start + shared] = numbers[at : at + shared]
            if own:
                numbers[start + shared : start + shared + own] = np.arange(first, first + own)
                first += own
        return offsets, numbers
