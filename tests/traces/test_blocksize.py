from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces.blocksize import MisfitError, block_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence


def found(requests: Sequence[tuple[int, int]], asked: int | None) -> tuple[int, str]:
    tokens, counts = np.array(requests, dtype=np.int64).T
    try:
        return block_tokens(tokens, counts, asked=asked, usual=512, field="input_length")
    except MisfitError as error:
        raise MisfitError(error.request, f"request {error.request}: {error}") from error


def size(requests: Sequence[tuple[int, int]], asked: int | None = None) -> int:
    """Return the block size of requests given as (input tokens, ids)."""
    return found(requests, asked)[0]


def why(requests: Sequence[tuple[int, int]], asked: int | None = None) -> str:
    return found(requests, asked)[1]


def rounded_up(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


LENGTHS = st.lists(st.integers(1, 5_000), min_size=1, max_size=20)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 600), st.booleans(), st.integers(-9, 9))
def test_a_size_fits_where_all_counts_are_rounded_up_or_all_down(
    lengths: list[int],
    true_size: int,
    up: bool,  # noqa: FBT001 - drawn
    off: int,
) -> None:
    counts = [rounded_up(n, true_size) if up else n // true_size for n in lengths]
    requests = list(zip(lengths, counts, strict=True))
    assert size(requests, true_size) == true_size
    other = max(1, true_size + off)
    fits = counts == [rounded_up(n, other) for n in lengths]
    if fits or counts == [n // other for n in lengths]:
        assert size(requests, other) == other
    else:
        with pytest.raises(MisfitError, match=f"and blocks of {other} tokens"):
            size(requests, other)


def test_the_size_is_mooncakes_own_where_that_fits() -> None:
    assert size([(600, 2), (512, 1), (13, 1)]) == 512
    assert size([(600, 1), (1024, 2), (13, 0)]) == 512


def test_the_size_is_found_where_only_one_power_of_two_fits() -> None:
    assert size([(100, 6), (15, 0), (4_001, 250)]) == 16
    assert size([(100, 7), (15, 1), (4_001, 251)]) == 16


def test_a_size_that_was_derived_says_how() -> None:
    assert why([(655, 3)]) == (
        "derived from the trace's lengths, the only power of two that fits; see --kv-block-tokens"
    )
    assert "the only size that fits" in why([(99, 0), (100, 1), (200, 2), (300, 3)])
    assert why([(600, 2), (512, 1), (13, 1)]) == ""
    assert why([(655, 3)], 256) == ""


def test_the_size_is_found_where_only_one_fits() -> None:
    assert size([(99, 0), (100, 1), (200, 2), (300, 3)]) == 100


def test_a_size_that_does_not_fit_says_which_does() -> None:
    with pytest.raises(
        MisfitError,
        match="request 0: 6 hash_ids don't fit input_length 100 and blocks of 512 tokens; "
        "use --kv-block-tokens 16, which fits every line",
    ):
        size([(100, 6), (4_001, 250)], 512)


def test_the_first_line_that_does_not_fit_is_named() -> None:
    with pytest.raises(MisfitError, match="request 1: 250 hash_ids don't fit input_length 4001"):
        size([(512, 1), (4_001, 250)], 512)


def test_a_prompt_of_exactly_one_block_has_not_two() -> None:
    with pytest.raises(MisfitError, match="request 0: 2 hash_ids don't fit input_length 1024"):
        size([(1024, 2)], 1024)


def test_several_sizes_that_fit_are_left_to_the_user() -> None:
    with pytest.raises(MisfitError, match="use --kv-block-tokens 4 or 8, which fits"):
        size([(9, 2)])
    with pytest.raises(MisfitError, match="use a --kv-block-tokens of 100 to 111 or 91 to 100"):
        size([(1000, 10)])
    with pytest.raises(MisfitError, match="use a --kv-block-tokens of 1100 to 2147483647 or 551"):
        size([(600, 1), (1100, 1)])


def test_rounding_up_here_and_down_there_fits_no_size() -> None:
    with pytest.raises(
        MisfitError,
        match=r"request 2: 9 hash_ids .* fits the lines before it; no --kv-block-tokens",
    ):
        size([(512, 1), (600, 2), (700, 9), (300, 1)])


def test_a_size_no_line_can_have_is_refused_with_the_line_that_shows_it() -> None:
    with pytest.raises(MisfitError, match="request 1: 1 hash_ids don't fit input_length 600"):
        size([(600, 2), (600, 1)], 512)
