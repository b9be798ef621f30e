"""Mooncake JSONL: one request a line, its prompt as ids of prefix-chained blocks.

Source: the FAST'25 traces of github.com/kvcache-ai/Mooncake (``FAST25-release``, Apache-2.0):
``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` of 512 tokens each. The
input of kvcache-simulator (PyPI, 0.1.3) is the same with a ``block_size`` per record, and
optionally ``block_tokens`` (of each block) and no ``timestamp`` and ``output_length``.

File order is the order in which requests are decided. Timestamps are usually sorted but
need not be: they say when a request should start, not in which order it was recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.fields import integer, json_lines, number, present, shown
from pytest_kvcache.traces.hashed import HashedRequests
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import MAX_TIMESTAMP, NO_TIMES, OPTION, time_unit

if TYPE_CHECKING:
    from pytest_kvcache.traces.source import Source

BLOCK_TOKENS = 512  # of Mooncake's own traces
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
NEEDS = f"a line of a Mooncake trace is an object with {', '.join(FIELDS)}"


class _Line(NamedTuple):
    timestamp: float | None
    input_tokens: int
    output_tokens: int
    ids: Any
    block_size: int | None


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file; other fields than these are ignored."""
    ids = asked.ids or "prefix"
    found = HashedRequests(source.path, ids)
    first: _Line | None = None
    for line, request in json_lines(source, _request, NEEDS):
        first = first or request
        _check_alike(request, first, source.path, line)
        timestamp = 0.0 if request.timestamp is None else request.timestamp
        found.add(timestamp, request.input_tokens, request.output_tokens, request.ids)
    assert first is not None  # the format was told by it
    own = first.block_size
    if own is not None and asked.block_tokens not in (None, own):
        problem = f"block_size is {own}, and --kv-block-tokens {asked.block_tokens}; leave it out"
        raise TraceError(source.path, 1, problem)
    if first.timestamp is None and asked.unit is not None:
        problem = f"there are no timestamps, and {OPTION} is {asked.unit}; leave it out"
        raise TraceError(source.path, 0, problem)
    columns = found.finish(asked=own or asked.block_tokens, usual=BLOCK_TOKENS, unit=asked.unit)
    unit = NO_TIMES if first.timestamp is None else time_unit(columns.stamps, asked.unit)
    return Recorded(
        block_tokens=columns.block_tokens,
        arrival_ns=columns.stamps.in_ns(unit.name if unit is not NO_TIMES else "ns"),
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        offsets=columns.offsets,
        block_ids=columns.block_ids,
        reading=Reading(unit=unit, ids=ids, block_why=columns.block_why),
    )


def _check_alike(request: _Line, first: _Line, path: str, line: int) -> None:
    """What one line has all have: a block size, the same one, and a timestamp."""
    if request.block_size != first.block_size:
        problem = f"block_size is {request.block_size}, and in line 1 {first.block_size}"
        raise TraceError(path, line, f"{problem}; a trace has one size, so split the file by it")
    if (request.timestamp is None) != (first.timestamp is None):
        has = "no timestamp" if request.timestamp is None else "a timestamp"
        problem = f"the line has {has}, unlike line 1"
        raise TraceError(path, line, f"{problem}; give every line one, or none")


def _request(fields: dict[str, Any]) -> _Line:
    """One line's values, checked; raises ValueError with the problem."""
    size = fields.get("block_size")
    if size is not None:
        integer(size, "block_size", 1)
        fields = {"timestamp": None, "output_length": 0} | fields
    timestamp = present(fields, "timestamp", NEEDS)
    if timestamp is not None or size is None:
        timestamp = number(timestamp, "timestamp", MAX_TIMESTAMP)
    tokens = integer(present(fields, "input_length", NEEDS), "input_length", 1)
    output = integer(present(fields, "output_length", NEEDS), "output_length")
    ids = present(fields, "hash_ids", NEEDS)
    if fields.get("block_tokens") is not None:
        _check_weights(fields["block_tokens"], ids, tokens, size)
    return _Line(timestamp, tokens, output, ids, size)


def _check_weights(weights: Any, ids: Any, tokens: int, size: int | None) -> None:
    """The tokens of each block, where a line has them, are those that its length implies."""
    if size is None:
        raise ValueError("there are block_tokens, and no block_size; add it")
    if not isinstance(weights, list) or not isinstance(ids, list) or len(weights) != len(ids):
        raise ValueError(f"block_tokens is {shown(weights)}; it must have a count for each hash_id")
    for place, weight in enumerate(weights):
        implied = min(size, tokens - place * size)
        if integer(weight, f"block_tokens[{place}]", 1) != implied:
            raise ValueError(
                f"block_tokens[{place}] is {weight}, and by input_length {tokens} and block_size"
                f" {size} it is {implied}; only a prompt's last block may have fewer tokens than"
                " block_size, so write the trace with blocks that are full"
            )
