"""A recorded trace: its columns as a value, and the reading of a trace file.

Rank-side: imports numpy, the errors and the parsers; never pytest, never MPI.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import os
import zipfile
import zlib
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.atomic import writing
from pytest_kvcache.errors import TraceError, UnavailableError
from pytest_kvcache.traces import mooncake
from pytest_kvcache.traces.ids import IDS
from pytest_kvcache.traces.times import OPTION, Timestamps, TimeUnit, time_unit

try:
    import lzma
except ImportError:  # a Python that was built without liblzma reads everything but .xz
    lzma = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    _Stream = io.BufferedReader | gzip.GzipFile | lzma.LZMAFile

_COLUMNS = ("arrival_ns", "input_tokens", "output_tokens", "offsets", "block_ids")

_READ_ERRORS = (OSError, EOFError, zlib.error, *((lzma.LZMAError,) if lzma else ()))

_BINARY = "it is binary; name a text file, plain or packed by gzip or xz"

_HEAD_BYTES = 1 << 20  # as much of a first line as it takes to tell what the file is

# (how the file begins, what its first line holds, lower case, the format)
_SIGNS = (
    (b"{", b'"requests"', "agent-session JSONL"),
    (b"{", b'"conversations"', "ShareGPT JSON"),
    (b"[", b'"conversations"', "ShareGPT JSON"),
    (b"{", b'"hash_ids"', "mooncake"),
    (b"{", b'"input_length"', "mooncake"),
    (b"timestamp,", b",request tokens,", "BurstGPT CSV"),
    (b"timestamp,", b"contexttokens,generatedtokens", "Azure LLM CSV"),
    (b"timestamp,", b"operation,object_size_bytes", "I/O trace CSV"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a file was read, where its own fields leave that open.

    ``block_why`` says how the block size was derived, empty where it was not; ``ids`` what
    they stand for, ``prefix`` or ``content``.
    """

    unit: TimeUnit
    ids: str
    block_why: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in the order in which they are decided, as read-only int64 columns.

    ``arrival_ns``, ``input_tokens`` and ``output_tokens`` have one entry per request
    (arrivals need not be sorted); the block ids of request i, distinct, are
    ``block_ids[offsets[i]:offsets[i + 1]]``: equal ids mean equal whole prefixes.
    ``name`` is the file's name, ``format`` what was read, ``block_tokens`` the trace's
    own block size. ``part_of_ns`` is the timeline of the trace that this is a part of:
    the parts of several ranks keep their distance in time. ``reading`` is how the file was
    read, None for a trace that comes from elsewhere. Raises TraceError if the columns
    contradict each other, TypeError if they are not integers.
    """

    name: str
    format: str
    block_tokens: int
    arrival_ns: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    offsets: IntArray
    block_ids: IntArray
    part_of_ns: tuple[int, int] | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        for column in _COLUMNS:
            values = np.asarray(getattr(self, column))
            frozen = values.astype(np.int64, casting="safe", copy=False).view()
            frozen.flags.writeable = False
            object.__setattr__(self, column, frozen)
        problem = _contradiction(self)
        if problem:
            raise TraceError(self.name, 0, f"{problem}; read the trace file again")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def blocks(self, index: int) -> IntArray:
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
        shift = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts)
        return Trace(
            name=self.name,
            format=self.format,
            block_tokens=self.block_tokens,
            arrival_ns=self.arrival_ns[chosen],
            input_tokens=self.input_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            offsets=offsets,
            block_ids=self.block_ids[shift + np.arange(len(shift))],
            part_of_ns=self.timeline_ns,
            reading=self.reading,
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
        sha = hashlib.sha256(b"pytest-kvcache/trace/1")
        sha.update(f" {self.block_tokens} {len(self)} {len(self.block_ids)} ".encode())
        for column in _COLUMNS:
            sha.update(getattr(self, column).astype("<i8").tobytes())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the columns as .npz, whole or not at all; raises OSError."""
        with writing(Path(path)) as stream:
            np.savez(
                stream,
                name=np.array(self.name),
                format=np.array(self.format),
                block_tokens=np.array(self.block_tokens),
                arrival_ns=self.arrival_ns,
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                offsets=self.offsets,
                block_ids=self.block_ids,
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
                    **{column: columns[column] for column in _COLUMNS},
                )
        except (*_READ_ERRORS, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            problem = f"it is no saved trace ({error}); read the trace file again"
            raise TraceError(file, 0, problem) from error


def _contradiction(trace: Trace) -> str:
    """Return what is wrong with the columns, "" if nothing is."""
    if trace.block_tokens < 1:
        return f"block_tokens is {trace.block_tokens}, not at least 1"
    if any(getattr(trace, column).ndim != 1 for column in _COLUMNS):
        return "a column is not one-dimensional"
    rows = {len(trace.arrival_ns), len(trace.input_tokens), len(trace.output_tokens)}
    if rows != {len(trace.offsets) - 1}:
        return "the columns have different lengths"
    bounds = trace.offsets
    if bounds[0] != 0 or bounds[-1] != len(trace.block_ids) or (np.diff(bounds) < 0).any():
        return "the offsets don't divide the block ids"
    if any(getattr(trace, column).min(initial=0) < 0 for column in _COLUMNS):
        return "a value is negative"
    return "a request repeats a block id" if _repeats(trace) else ""


def _repeats(trace: Trace) -> bool:
    """Return whether a request has a block id twice."""
    owner = np.repeat(np.arange(len(trace)), np.diff(trace.offsets))
    order = np.argsort(trace.block_ids, kind="stable")  # equal ids stay in request order
    same_id = np.diff(trace.block_ids[order]) == 0
    return bool((same_id & (np.diff(owner[order]) == 0)).any())


def read_trace(
    path: str | os.PathLike[str],
    *,
    block_tokens: int | None,
    unit: str | None = None,
    ids: str = "prefix",
) -> Trace:
    """Read a trace file, plain or packed by gzip or xz, whatever its name says.

    ``block_tokens`` None means the trace's own, ``unit`` None the one that its timestamps
    seem to be in; ``ids`` is what equal ids mean: equal prefixes, or equal contents of
    single blocks. Raises UnavailableError for a known format that can't be read yet,
    TraceError (with the line) for anything else.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as raw, _unpacked(raw, name) as stream:
            lines = _recognised(stream, name)
            return _columns(mooncake.requests(lines, name), name, block_tokens, unit, ids)
    except _READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        problem = f"it can't be read ({reason}); name a readable, complete trace file"
        raise TraceError(name, 0, problem) from error


def _columns(
    requests: Iterable[mooncake.Recorded], path: str, asked: int | None, unit: str | None, ids: str
) -> Trace:
    rows, rest, block_ids = array("q"), array("d"), array("q")
    numbers = IDS[ids]()
    has_chats = False
    for line, request in enumerate(requests, start=1):
        whole = int(request.timestamp)
        rows.extend((whole, request.input_tokens, request.output_tokens, len(request.ids)))
        rest.append(request.timestamp - whole)
        has_chats |= request.has_chats
        try:
            block_ids.extend(numbers.number(request.ids, line))
        except ValueError as error:
            raise TraceError(path, line, str(error)) from error
    times, prompt, output, counts = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
    stamps = Timestamps(whole=times, rest=np.array(rest, dtype=np.float64))
    found = time_unit(stamps, unit, has_chats=has_chats)
    late = stamps.too_late(found.name) if unit is not None else None
    if late is not None:
        problem = f"the timestamp is {times[late]}, and {OPTION} is {unit}, which is beyond year"
        raise TraceError(path, late + 1, f"{problem} 2262; use a shorter unit")
    size, block_why = mooncake.block_tokens(prompt, counts, asked, path)
    return Trace(
        name=Path(path).name,
        format="mooncake",
        block_tokens=size,
        arrival_ns=stamps.in_ns(found.name),
        input_tokens=prompt,
        output_tokens=output,
        offsets=np.concatenate(([0], np.cumsum(counts))),
        block_ids=np.array(block_ids, dtype=np.int64),
        reading=Reading(unit=found, ids=ids, block_why=block_why),
    )


def _unpacked(raw: io.BufferedReader, path: str) -> _Stream:
    """Return the file's plain content; told by its first bytes."""
    magic = raw.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(raw)
    if magic != b"\xfd7zXZ\x00":
        return raw
    if lzma is None:
        raise TraceError(path, 0, "it is packed by xz, which this Python can't read; unpack it")
    return lzma.open(raw)


def _recognised(stream: _Stream, path: str) -> Iterator[bytes]:
    """Return all lines of a Mooncake trace; raise for any other content."""
    head = stream.readline(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    if not head.strip():
        if any(line.strip() for line in stream):
            raise TraceError(path, 1, "the line is blank; remove it")
        raise TraceError(path, 0, "it is empty; name a trace with at least one request")
    rest = stream.read(_HEAD_BYTES) if head.startswith(b"[") else b""
    found = _format(head + rest, path)
    if found != "mooncake":
        hint = "convert it to Mooncake JSONL, one object a line with "
        fields = ", ".join(mooncake.FIELDS)
        raise UnavailableError("--kv-trace", f"{path}, a file of {found}", hint + fields)
    first = head if head.endswith(b"\n") else head + stream.readline()
    return itertools.chain([first], stream)


def _format(head: bytes, path: str) -> str:
    try:
        codecs.utf_8_decode(head, "strict", False)  # a character cut off at the end is fine
    except UnicodeDecodeError as error:
        raise TraceError(path, 0, _BINARY) from error
    if b"\0" in head:
        raise TraceError(path, 0, _BINARY)
    text = head.lstrip().lower()
    for start, sign, found in _SIGNS:
        if text.startswith(start) and sign in text:
            return found
    fields = ", ".join(mooncake.FIELDS)
    raise TraceError(
        path, 1, f"it is no Mooncake JSONL trace, an object a line with {fields}; check the path"
    )
