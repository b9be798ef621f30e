"""Mooncake JSONL: one request a line, its prompt as ids of prefix-chained blocks.

Source: the FAST'25 traces of github.com/kvcache-ai/Mooncake. Turns lines into plain
tuples and finds the block size; imports only the errors and numpy. What timestamps and ids
mean is found elsewhere (`tracetimes`, `traceids`).

File order is the order in which requests are decided. Timestamps are usually sorted but
need not be: they say when a request should start, not in which order it was recorded.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.times import MAX_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from pytest_kvcache.traces.ids import Id

    IntArray = npt.NDArray[np.int64]

BLOCK_TOKENS = 512  # of Mooncake's own traces
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")

_FEW = 3  # choices that a message lists one by one
_MAX_TOKENS = 2**31 - 1
_CHATS = ("chat_id", "parent_chat_id")  # of Alibaba's Qwen-Bailian traces


class Recorded(NamedTuple):
    """One line as it stands; ``has_chats``: it names a chat and its parent."""

    timestamp: float
    input_tokens: int
    output_tokens: int
    ids: list[Id]
    has_chats: bool = False


def requests(lines: Iterable[bytes], path: str) -> Iterator[Recorded]:
    """Yield what every line says.

    Other fields beyond `FIELDS` are ignored, blank lines are accepted at the end. Raises
    TraceError naming the line.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    blank = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise TraceError(path, blank, "the line is blank; remove it")
        try:
            yield _request(decoder.decode(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise TraceError(path, number, _problem(error, line)) from error


def block_tokens(
    input_tokens: IntArray, counts: IntArray, asked: int | None, path: str
) -> tuple[int, str]:
    """Return the block size under which every request has as many ids as it should, and why.

    ``counts``: ids per request. A trace gives either every block of a prompt (input /
    size rounded up, as Mooncake does) or the full ones only (rounded down), the same
    for all its requests, so the sizes that fit are one interval for either. ``asked``
    must be among them; None takes 512 if it is, else the only size, or the only power
    of two, that fits; why it was taken is empty where it is not derived from the lengths.
    Raises TraceError with the line of the first request that does not fit.
    """
    bounds = (_rounded_up(input_tokens, counts), _rounded_down(input_tokens, counts))
    sizes = [range(int(low.max()), int(high.min()) + 1) for low, high in bounds]
    wanted = BLOCK_TOKENS if asked is None else asked
    if any(wanted in fit for fit in sizes):
        return wanted, ""
    likely = _likely(sizes)
    if asked is None and len(likely) == 1:
        return likely[0], _why_derived(sizes)
    if asked is None and not any(sizes):
        at = max(_first(np.maximum.accumulate(b) > np.minimum.accumulate(h)) for b, h in bounds)
        against = "any block size that fits the lines before it"
    else:
        at = max(_first((wanted < low) | (wanted > high)) for low, high in bounds)
        against = f"blocks of {wanted} tokens"
    what = f"{counts[at]} hash_ids don't fit input_length {input_tokens[at]} and {against}"
    raise TraceError(path, at + 1, f"{what}; {_advice(likely, sizes)}")


def _rounded_up(tokens: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the sizes b with ceil(tokens / b) = count: (count - 1) b < tokens <= count b."""
    low = np.where(counts > 0, -(-tokens // np.maximum(1, counts)), _MAX_TOKENS + 1)
    high = np.where(counts > 1, (tokens - 1) // np.maximum(1, counts - 1), _MAX_TOKENS)
    return low, high


def _rounded_down(tokens: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the sizes b with floor(tokens / b) = count: count b <= tokens < (count + 1) b."""
    low = tokens // (counts + 1) + 1
    high = np.where(counts > 0, tokens // np.maximum(1, counts), _MAX_TOKENS)
    return low, high


def _first(misfits: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(misfits))


def _likely(sizes: list[range]) -> list[int]:
    """Return the sizes that may be meant: the only one that fits, else the powers of two."""
    ends = {end for fit in sizes if fit for end in (fit[0], fit[-1])}
    if len(ends) == 1:
        return list(ends)
    return [p for p in (2**exponent for exponent in range(31)) if any(p in fit for fit in sizes)]


def _why_derived(sizes: list[range]) -> str:
    several = sum(map(len, sizes)) > 1 and len({*sizes[0], *sizes[1]}) > 1
    kind = "power of two" if several else "size"
    return f"derived from the trace's lengths, the only {kind} that fits; see --kv-block-tokens"


def _advice(likely: list[int], sizes: list[range]) -> str:
    if 0 < len(likely) <= _FEW:
        return f"use --kv-block-tokens {' or '.join(map(str, likely))}, which fits every line"
    ranges = [f"{fit[0]} to {fit[-1]}" for fit in sizes if fit]
    if ranges:
        return f"use a --kv-block-tokens of {' or '.join(ranges)}, which fits every line"
    return "no --kv-block-tokens fits every line, so the file is damaged or of another format"


def _request(fields: Any) -> Recorded:
    """Return one line's values, checked; raises ValueError with the problem."""
    if not isinstance(fields, dict):
        raise ValueError(f"the line is not a JSON object; {_needs()}")  # noqa: TRY004 - data
    for name in FIELDS:
        if name not in fields:
            raise ValueError(f"there is no {name!r}; {_needs()}")
    return Recorded(
        _timestamp(fields["timestamp"]),
        _tokens(fields, "input_length", 1),
        _tokens(fields, "output_length", 0),
        _ids(fields["hash_ids"]),
        any(name in fields for name in _CHATS),
    )


def _timestamp(timestamp: Any) -> float:
    if type(timestamp) in (int, float) and 0 <= timestamp <= MAX_TIMESTAMP:
        value: float = timestamp
        return value
    raise ValueError(f"timestamp is {timestamp!r}; it must be a number from 0 to 2**63 - 1")


def _tokens(fields: dict[str, Any], name: str, least: int) -> int:
    tokens = fields[name]
    if type(tokens) is int and least <= tokens <= _MAX_TOKENS:
        return tokens
    raise ValueError(f"{name} is {tokens!r}; it must be an integer from {least} to {_MAX_TOKENS}")


def _ids(ids: Any) -> list[Id]:
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int, str}:
        raise ValueError(f"hash_ids is {_short(ids)}; it must be a list of integers or texts")
    return ids


def _problem(error: Exception, line: bytes) -> str:
    """Return what is wrong with a line that could not be read, and what to do."""
    if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return str(error)
    if not line.endswith(b"\n"):
        return "the last line is cut off; copy the file again, or delete that line"
    # A line of a trace has no lines of its own, which the decoder's text would count.
    found = (
        f"{error.msg} at character {error.pos + 1}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )
    return f"the line is not JSON ({found}); {_needs()}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number; every number of a trace must be finite")


def _needs() -> str:
    return f"a line of a Mooncake trace is an object with {', '.join(FIELDS)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a message's width
