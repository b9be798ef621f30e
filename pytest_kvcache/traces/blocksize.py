"""The block size of a trace with ids: what the lengths of its prompts and their ids allow. Pure.

Rank-side; imports numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.traces.fields import MAX_TOKENS

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]

_FEW = 3  # choices that a message lists one by one


class MisfitError(ValueError):
    """A request has more or fewer ids than its length allows; ``request`` counts from 0."""

    def __init__(self, request: int, problem: str) -> None:
        self.request = request
        super().__init__(problem)


def block_tokens(
    input_tokens: IntArray, counts: IntArray, *, asked: int | None, usual: int, field: str
) -> tuple[int, str]:
    """Return the block size under which every request has as many ids as it should, and why.

    ``counts``: ids per request. A trace gives either every block of a prompt (input /
    size rounded up, as Mooncake does) or the full ones only (rounded down), the same
    for all its requests, so the sizes that fit are one interval for either. ``asked``
    must be among them; None takes the ``usual`` size of the format if it is, else the only
    size, or the only power of two, that fits; why it was taken is empty where it is not
    derived from the lengths. ``field`` is what the format calls the length. Raises
    MisfitError with the first request that does not fit.
    """
    bounds = (_rounded_up(input_tokens, counts), _rounded_down(input_tokens, counts))
    sizes = [range(int(low.max()), int(high.min()) + 1) for low, high in bounds]
    wanted = usual if asked is None else asked
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
    what = f"{counts[at]} hash_ids don't fit {field} {input_tokens[at]} and {against}"
    raise MisfitError(at, f"{what}; {_advice(likely, sizes)}")


def _rounded_up(tokens: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the sizes b with ceil(tokens / b) = count: (count - 1) b < tokens <= count b."""
    low = np.where(counts > 0, -(-tokens // np.maximum(1, counts)), MAX_TOKENS + 1)
    high = np.where(counts > 1, (tokens - 1) // np.maximum(1, counts - 1), MAX_TOKENS)
    return low, high


def _rounded_down(tokens: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the sizes b with floor(tokens / b) = count: count b <= tokens < (count + 1) b."""
    low = tokens // (counts + 1) + 1
    high = np.where(counts > 0, tokens // np.maximum(1, counts), MAX_TOKENS)
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
