"""Requests with lengths and ids of blocks, a line each: what Mooncake's and Qwen's have in common.

Rank-side; imports numpy, the errors and this package's columns.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.blocksize import MisfitError, block_tokens
from pytest_kvcache.traces.ids import PromptIds
from pytest_kvcache.traces.times import OPTION, Timestamps

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]


class Columns(NamedTuple):
    """What the lines say: see `Recorded`."""

    stamps: Timestamps
    input_tokens: IntArray
    output_tokens: IntArray
    offsets: IntArray
    block_ids: npt.NDArray[np.int32]
    block_tokens: int
    block_why: str


class HashedRequests:
    """Collects a file's requests, of which line n + 1 is request n."""

    def __init__(self, path: str, ids: str) -> None:
        self._path = path
        self._ids = PromptIds(ids)
        self._rows = array("q")
        self._rest = array("d")

    def __len__(self) -> int:
        return len(self._rest)

    def add(self, timestamp: float, input_tokens: int, output_tokens: int, ids: Any) -> None:
        """Take one request; TraceError where its ids are none."""
        whole = int(timestamp)
        self._rows.extend((whole, input_tokens, output_tokens))
        self._rest.append(timestamp - whole)
        try:
            self._ids.add(ids)
        except ValueError as error:
            raise self._error(error) from error

    def finish(self, *, asked: int | None, usual: int, unit: str | None) -> Columns:
        """The columns; TraceError where ids, sizes and times can't be right."""
        try:
            offsets, block_ids = self._ids.finish()
        except ValueError as error:
            raise self._error(error) from error
        times, prompt, output = np.array(self._rows, dtype=np.int64).reshape(-1, 3).T.copy()
        stamps = Timestamps(whole=times, rest=np.array(self._rest, dtype=np.float64))
        late = stamps.too_late(unit) if unit is not None else None
        if late is not None:
            problem = f"the timestamp is {times[late]}, and {OPTION} is {unit}, which is beyond"
            raise TraceError(self._path, late + 1, f"{problem} year 2262; use a shorter unit")
        try:
            size, why = block_tokens(
                prompt, np.diff(offsets), asked=asked, usual=usual, field="input_length"
            )
        except MisfitError as error:
            raise TraceError(self._path, error.request + 1, str(error)) from error
        return Columns(stamps, prompt, output, offsets, block_ids, size, why)

    def _error(self, error: ValueError) -> TraceError:
        return TraceError(self._path, self._ids.at_request + 1, str(error))
