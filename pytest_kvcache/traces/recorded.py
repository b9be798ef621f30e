"""What a format's reader is asked for, and what it finds: columns, and how they were read.

Rank-side; imports numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_kvcache.traces.operations import Operations
    from pytest_kvcache.traces.times import TimeUnit

    IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user says of a file; None: nothing.

    ``default_block_tokens`` is the block size of a trace that has none of its own.
    """

    block_tokens: int | None
    unit: str | None
    ids: str | None
    default_block_tokens: int

    @property
    def own_block_tokens(self) -> int:
        """The block size of a trace that has none of its own."""
        return self.block_tokens or self.default_block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a file was read, where its own fields leave that open.

    ``block_why`` says how the block size was derived, empty where it was not. ``ids`` is
    where equal blocks come from: ids of ``prefix`` or of ``content``, lengths of cached
    prefixes (``cached``), keys of ``objects``, or nowhere:
    ``none``, a trace without reuse. ``left_out`` counts
    requests of the file that are not replayed. ``tokens_by`` is what counted the tokens of
    texts, empty where the file has their numbers.
    """

    unit: TimeUnit
    ids: str
    block_why: str = ""
    left_out: int = 0
    tokens_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """Requests as columns, in the order in which they are decided.

    ``conversations`` numbers each request's conversation, where the format names one.
    ``operations``: it is an I/O trace, each request of which is one of them.
    """

    block_tokens: int
    arrival_ns: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    offsets: IntArray
    block_ids: npt.NDArray[np.int32]
    reading: Reading
    conversations: IntArray | None = None
    operations: Operations | None = None

    @classmethod
    def of_lengths(cls, *, block_tokens: int, input_tokens: IntArray, **others: Any) -> Recorded:
        """Return prompts that share nothing: of each its full blocks, all new."""
        counts = input_tokens // block_tokens
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
        block_ids = np.arange(int(offsets[-1]), dtype=np.int32)
        return cls(
            block_tokens=block_tokens,
            input_tokens=input_tokens,
            offsets=offsets,
            block_ids=block_ids,
            **others,
        )


def reading_notes(ids: str, left_out: int, tokens_by: str) -> list[str]:
    """What to know of a trace that was read so: where its blocks come from if it has no ids."""
    notes = {
        "none": ["lengths only: no prompt shares a block with another, so there is no reuse"],
        "cached": ["blocks derived from the lengths of cached prefixes"],
    }.get(ids, [])
    if tokens_by:
        notes.append(f"tokens counted by {tokens_by}")
    if left_out:
        notes.append(f"{left_out:,} of the file's requests left out")
    return notes
