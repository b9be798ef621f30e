"""A recorded trace: its columns as a value, and the reading of a trace file.

Rank-side: imports numpy, the errors and the parsers; never pytest, never MPI.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pytest_kvcache.atomic import writing
from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import formats
from pytest_kvcache.traces.operations import Operations
from pytest_kvcache.traces.recorded import Asked, Reading
from pytest_kvcache.traces.source import READ_ERRORS, opened

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]

_COLUMNS = ("arrival_ns", "input_tokens", "output_tokens", "offsets", "block_ids", "conversations")
_OF_RECORDED = (*_COLUMNS, "block_tokens", "reading", "operations")
_MAX_ID = 2**31 - 1
_SLICE = 1 << 18  # block ids that are looked at at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in the order in which they are decided, as read-only columns of integers.

    ``arrival_ns``, ``input_tokens`` and ``output_tokens`` have one entry per request
    (arrivals need not be sorted); the block ids of request i, distinct, are
    ``block_ids[offsets[i]:offsets[i + 1]]`` (int32, the others are int64): equal ids mean
    equal whole prefixes. ``conversations`` numbers each request's conversation where the
    format names one, None: it does not.
    ``name`` is the file's name, ``format`` what was read, ``block_tokens`` the trace's
    own block size. ``part_of_ns`` is the timeline of the trace that this is a part of:
    the parts of several ranks keep their distance in time. ``reading`` is how the file was
    read, None for a trace that comes from elsewhere. ``operations``: it is an I/O trace, whose
    requests are single operations. Raises TraceError if the columns
    contradict each other, TypeError if they are not integers.
    """

    name: str
    format: str
    block_tokens: int
    arrival_ns: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    offsets: IntArray
    block_ids: npt.NDArray[np.int32]
    conversations: IntArray | None = None
    part_of_ns: tuple[int, int] | None = None
    reading: Reading | None = None
    operations: Operations | None = None

    def __post_init__(self) -> None:
        for column in self._columns:
            values = np.asarray(getattr(self, column))
            if column == "block_ids" and int(values.max(initial=0)) > _MAX_ID:
                raise TraceError(self.name, 0, f"a block id is beyond {_MAX_ID}; number them anew")
            is_ids = column == "block_ids" and values.dtype.kind in "iu"
            kind: np.dtype[np.signedinteger[Any]] = np.dtype(np.int32 if is_ids else np.int64)
            casting: Literal["same_kind", "safe"] = "same_kind" if is_ids else "safe"
            frozen = values.astype(kind, casting=casting, copy=False).view()
            frozen.flags.writeable = False
            object.__setattr__(self, column, frozen)
        problem = _contradiction(self)
        if problem:
            raise TraceError(self.name, 0, f"{problem}; read the trace file again")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def _columns(self) -> tuple[str, ...]:
        """The names of the columns that are there."""
        return _COLUMNS if self.conversations is not None else _COLUMNS[:-1]

    def blocks(self, index: int) -> npt.NDArray[np.int32]:
        """Return the block ids of one request, head first."""
        if not 0 <= index < len(self):
            raise IndexError(f"request {index} is not in a trace of {len(self)}")
        return self.block_ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def timeline_ns(self) -> tuple[int, int]:
        """The first arrival, and how long a cycle lasts: the span and one mean pause."""
        if self.part_of_ns is not None:
            return self.part_of_ns
        if not len(self):
            return 0, 0
        first, span = int(self.arrival_ns.min()), int(np.ptp(self.arrival_ns))
        return first, span + span // max(1, len(self) - 1)

    def select(self, indices: npt.ArrayLike) -> Trace:
        """Return the part with these requests, in the order given, on this timeline."""
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.min(initial=0) < 0 or chosen.max(initial=-1) >= len(self):
            raise IndexError(f"requests {chosen} are not all in a trace of {len(self)}")
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        begins, ends = self.offsets[chosen], self.offsets[chosen + 1]
        pieces = zip(begins.tolist(), ends.tolist(), strict=True)
        is_all = len(chosen) == len(self) and bool((np.diff(chosen) == 1).all())
        return Trace(
            name=self.name,
            format=self.format,
            block_tokens=self.block_tokens,
            arrival_ns=self.arrival_ns[chosen],
            input_tokens=self.input_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            offsets=offsets,
            block_ids=self.block_ids[: offsets[-1]]
            if is_all or not len(chosen)
            else np.concatenate([self.block_ids[begin:end] for begin, end in pieces]),
            conversations=None if self.conversations is None else self.conversations[chosen],
            part_of_ns=self.timeline_ns,
            reading=self.reading,
            operations=self.operations and self.operations.select(chosen, self.block_ids),
        )

    def limit(self, count: int) -> Trace:
        """Return the trace of the first ``count`` requests, of all if there are fewer."""
        if count < 0:
            raise ValueError(f"count is {count}; it must be at least 0")
        first = self.select(np.arange(min(count, len(self))))
        return replace(first, part_of_ns=None)  # a trace of its own

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the block size and the columns; the name does not count."""
        sha = hashlib.sha256(b"pytest-kvcache/trace/2")
        sha.update(f" {self.block_tokens} {len(self)} {len(self.block_ids)} ".encode())
        for column in self._columns:
            values = getattr(self, column)
            sha.update(column.encode())
            for start in range(0, len(values), _SLICE):
                sha.update(values[start : start + _SLICE].astype("<i8").tobytes())
        if self.operations is not None:
            for values in self.operations.to_columns().values():
                sha.update(values.tobytes())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the columns as .npz, whole or not at all; raises OSError."""
        with writing(Path(path)) as stream:
            np.savez(
                stream,
                name=np.array(self.name),
                format=np.array(self.format),
                block_tokens=np.array(self.block_tokens),
                **{column: getattr(self, column) for column in self._columns},
                **({} if self.operations is None else self.operations.to_columns()),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read what `save` wrote; raises TraceError if it is anything else."""
        file = os.fspath(path)
        if not zipfile.is_zipfile(file):
            raise TraceError(file, 0, "it is no saved trace; read the trace file again")
        try:
            with np.load(file, allow_pickle=False) as columns:
                return cls(
                    name=str(columns["name"]),
                    format=str(columns["format"]),
                    block_tokens=int(columns["block_tokens"]),
                    **{column: columns[column] for column in _COLUMNS if column in columns},
                    operations=Operations.from_columns(columns),
                )
        except (*READ_ERRORS, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            problem = f"it is no saved trace ({error}); read the trace file again"
            raise TraceError(file, 0, problem) from error


def _contradiction(trace: Trace) -> str:
    """Return what is wrong with the columns, "" if nothing is."""
    if trace.block_tokens < 1:
        return f"block_tokens is {trace.block_tokens}, not at least 1"
    columns = [getattr(trace, column) for column in _COLUMNS]
    columns = [column for column in columns if column is not None]
    if any(column.ndim != 1 for column in columns):
        return "a column is not one-dimensional"
    rows = {len(trace.arrival_ns), len(trace.input_tokens), len(trace.output_tokens)}
    if trace.conversations is not None:
        rows.add(len(trace.conversations))
    if rows != {len(trace.offsets) - 1}:
        return "the columns have different lengths"
    bounds = trace.offsets
    if bounds[0] != 0 or bounds[-1] != len(trace.block_ids) or (np.diff(bounds) < 0).any():
        return "the offsets don't divide the block ids"
    if any(column.min(initial=0) < 0 for column in columns):
        return "a value is negative"
    return "a request repeats a block id" if _repeats(trace) else ""


def _repeats(trace: Trace) -> bool:
    """Return whether a request has a block id twice."""
    first = 0
    while first < len(trace):
        last = int(np.searchsorted(trace.offsets, trace.offsets[first] + _SLICE, side="right"))
        last = max(first + 1, last - 1)
        owner = np.repeat(np.arange(last - first), np.diff(trace.offsets[first : last + 1]))
        ids = trace.block_ids[trace.offsets[first] : trace.offsets[last]]
        keys = np.sort(owner << 31 | ids)
        if (keys[1:] == keys[:-1]).any():
            return True
        first = last
    return False


def read_trace(
    path: str | os.PathLike[str],
    *,
    block_tokens: int | None,
    unit: str | None = None,
    ids: str | None = None,
    default_block_tokens: int = 256,
) -> Trace:
    """Read a trace file, plain or packed by gzip, xz or zstd, whatever its name says.

    ``block_tokens`` None means the trace's own, and ``default_block_tokens`` where it has none;
    ``unit`` None the one that its timestamps seem to be in; ``ids`` is what equal ids mean:
    equal prefixes, or equal contents of single blocks, None what the format says. Raises
    TraceError, with the line where there is one, and OptionError for what has no say in the
    file's format.
    """
    name = os.fspath(path)
    asked = Asked(
        block_tokens=block_tokens, unit=unit, ids=ids, default_block_tokens=default_block_tokens
    )
    with opened(name) as source:
        found = formats.recognised(source)
        formats.check_asked(found, asked, name)
        columns = found.read(source, asked)
    if not len(columns.block_ids):
        longest = int(columns.input_tokens.max(initial=0))
        problem = (
            f"its longest prompt has {longest:,} tokens, and a block {columns.block_tokens:,}, so"
            " nothing would be stored; give a smaller --kv-block-tokens"
        )
        raise TraceError(name, 0, problem)
    return Trace(
        name=Path(path).name,
        format=found.name,
        **{field: getattr(columns, field) for field in _OF_RECORDED},
    )
