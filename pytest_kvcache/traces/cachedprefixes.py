"""Calls of sessions with how many of their prompts' tokens were cached: blocks from lengths.

Rank-side; imports numpy. Such traces have no ids: that the first ``cached`` tokens of a call's
prompt were there is all that they say. So a call shares its first cached / block blocks
(rounded down: a block is there as a whole) with what its session held for the same model: the
latest earlier prompt that is long enough, else the longest one; all others are its own. What
was cached without an earlier call of the session having it (the prompts that sessions have in
common, answers that became prompts) counts as new: hits are at most those recorded.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.branches import Branches
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import DATES

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]


class Call(NamedTuple):
    """A call's tokens; ``cached`` of the prompt's were there."""

    prompt: int
    cached: int
    output: int


class CachedPrefixes:
    """Collects calls, in any order."""

    def __init__(self) -> None:
        self._sessions: dict[str, int] = {}
        self._holders: dict[tuple[int, str], int] = {}
        self._rows = array("q")
        self.left_out = 0

    def add(self, session: str, model: str, call: Call) -> None:
        """Take one call."""
        number = self._sessions.setdefault(session, len(self._sessions))
        holder = self._holders.setdefault((number, model), len(self._holders))
        self._rows.extend((number, holder, *call))

    def finish(self, arrival_ns: IntArray, asked: Asked, path: str) -> Recorded:
        """All calls by time; at the same time by session, then as they were added."""
        if not len(arrival_ns):
            raise TraceError(path, 0, "it has no call with tokens; name another file")
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, len(Call._fields) + 2)
        order = np.lexsort((rows[:, 0], arrival_ns))
        sessions, holders, prompt, cached, output = rows[order].T.copy()
        size = asked.own_block_tokens
        branches = _branches(holders, prompt // size, cached // size)
        offsets, block_ids = branches.laid_out(np.arange(len(order)))
        return Recorded(
            block_tokens=size,
            arrival_ns=arrival_ns[order],
            input_tokens=prompt,
            output_tokens=output,
            offsets=offsets,
            block_ids=block_ids,
            reading=Reading(unit=DATES, ids="cached", left_out=self.left_out),
            conversations=sessions,
        )


def _branches(holders: IntArray, blocks: IntArray, cached: IntArray) -> Branches:
    """What each call shares with an earlier one of its holder, and what it adds."""
    branches = Branches()
    held: dict[int, list[tuple[int, int]]] = {}  # (call, blocks), longer ones first
    rows = zip(holders.tolist(), blocks.tolist(), cached.tolist(), strict=True)
    for call, (holder, count, wanted) in enumerate(rows):
        prompts = held.setdefault(holder, [])
        at = len(prompts) - 1
        while at > 0 and prompts[at][1] < wanted:
            at -= 1
        parent, most = prompts[at] if prompts else (0, 0)
        shared = min(wanted, most, count)
        branches.add(parent, shared, count - shared)
        while prompts and prompts[-1][1] <= count:
            prompts.pop()
        prompts.append((call, count))
    return branches
