from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import mooncake

if TYPE_CHECKING:
    from collections.abc import Sequence


def line(**changes: Any) -> bytes:
    fields = {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
    return json.dumps(fields | changes).encode() + b"\n"


def parse(*lines: bytes) -> list[mooncake.Recorded]:
    return list(mooncake.requests(lines, "t.jsonl"))


def size(requests: Sequence[tuple[int, int]], asked: int | None = None) -> int:
    """Return the block size of requests given as (input tokens, ids)."""
    tokens, counts = np.array(requests, dtype=np.int64).T
    return mooncake.block_tokens(tokens, counts, asked, "t.jsonl")[0]


def why(requests: Sequence[tuple[int, int]], asked: int | None = None) -> str:
    tokens, counts = np.array(requests, dtype=np.int64).T
    return mooncake.block_tokens(tokens, counts, asked, "t.jsonl")[1]


def test_a_line_becomes_timestamp_lengths_and_ids() -> None:
    assert parse(line(timestamp=1.5, extra="ignored")) == [(1.5, 600, 3, [7, 8], False)]


@pytest.mark.parametrize("name", ["chat_id", "parent_chat_id"])
def test_a_line_with_a_chat_is_marked(name: str) -> None:
    assert [recorded.has_chats for recorded in parse(line(**{name: 1}))] == [True]


def test_timestamps_out_of_order_keep_the_file_order() -> None:
    arrivals = [timestamp for timestamp, *_ in parse(line(timestamp=9), line(timestamp=2))]
    assert arrivals == [9, 2]


def test_blank_lines_at_the_end_are_accepted() -> None:
    assert len(parse(line(), b"\n", b"  \r\n")) == 1


def test_the_last_line_may_lack_its_newline() -> None:
    assert len(parse(line(), line().rstrip(b"\n"))) == 2


def test_a_blank_line_between_requests_is_named() -> None:
    with pytest.raises(TraceError, match="line 2: the line is blank"):
        parse(line(), b"\n", line())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"timestamp": -1}, "timestamp is -1"),
        ({"timestamp": "0"}, "timestamp is '0'"),
        ({"timestamp": True}, "timestamp is True"),
        ({"timestamp": 1e300}, "timestamp is 1e.300"),
        ({"timestamp": 2**63}, "timestamp is 9223372036854775808; it must be a number from 0"),
        ({"timestamp": float("nan")}, "NaN is not a number"),
        ({"timestamp": float("-inf")}, "-Infinity is not a number"),
        ({"input_length": 0}, "input_length is 0; it must be an integer from 1"),
        ({"input_length": 2**31}, "input_length is 2147483648"),
        ({"input_length": 600.0}, "input_length is 600.0"),
        ({"input_length": None}, "input_length is None"),
        ({"output_length": -1}, "output_length is -1; it must be an integer from 0"),
        ({"output_length": False}, "output_length is False"),
        ({"hash_ids": None}, "hash_ids is None; it must be a list"),
        ({"hash_ids": [1, True]}, r"hash_ids is \[1, True\]; it must be a list of integers or"),
        ({"hash_ids": [1, 2.0]}, r"hash_ids is \[1, 2.0\]; it must be a list of integers or"),
        ({"hash_ids": [[]] * 999}, r"hash_ids is \[\[\], .{40,60}\.\.\.; it must be a list"),
        ({"hash_ids": "7"}, "hash_ids is '7'; it must be a list"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_its_line(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TraceError, match=f"line 2: {problem}") as caught:
        parse(line(), line(**changes))
    assert caught.value.line == 2


@pytest.mark.parametrize("name", mooncake.FIELDS)
def test_a_missing_field_is_named(name: str) -> None:
    fields = json.loads(line())
    del fields[name]
    with pytest.raises(TraceError, match=f"line 1: there is no '{name}'"):
        parse(json.dumps(fields).encode())


@pytest.mark.parametrize("text", [b"[1]\n", b"3\n", b'"timestamp"\n'])
def test_a_line_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(TraceError, match="line 2: the line is not a JSON object"):
        parse(line(), text)


@pytest.mark.parametrize("text", [b"{oops}\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(TraceError, match="line 2: the line is not JSON"):
        parse(line(), text, line())


def test_what_is_no_json_is_found_within_its_line() -> None:
    with pytest.raises(TraceError) as caught:
        parse(line(), b'{"timestamp": 0, "input_length": \n', line())
    told = str(caught.value)
    assert "line 2: the line is not JSON (Expecting value at character 35); a line of" in told


@settings(deadline=None)
@given(st.integers(1, len(line()) - 2))
def test_a_last_line_that_is_cut_off_is_called_so(length: int) -> None:
    with pytest.raises(TraceError, match="line 2: the last line is cut off"):
        parse(line(), line()[:length])


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
        with pytest.raises(TraceError, match=f"and blocks of {other} tokens"):
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
        TraceError,
        match="line 1: 6 hash_ids don't fit input_length 100 and blocks of 512 tokens; "
        "use --kv-block-tokens 16, which fits every line",
    ):
        size([(100, 6), (4_001, 250)], 512)


def test_the_first_line_that_does_not_fit_is_named() -> None:
    with pytest.raises(TraceError, match="line 2: 250 hash_ids don't fit input_length 4001"):
        size([(512, 1), (4_001, 250)], 512)


def test_a_prompt_of_exactly_one_block_has_not_two() -> None:
    with pytest.raises(TraceError, match="line 1: 2 hash_ids don't fit input_length 1024"):
        size([(1024, 2)], 1024)


def test_several_sizes_that_fit_are_left_to_the_user() -> None:
    with pytest.raises(TraceError, match="use --kv-block-tokens 4 or 8, which fits"):
        size([(9, 2)])
    with pytest.raises(TraceError, match="use a --kv-block-tokens of 100 to 111 or 91 to 100"):
        size([(1000, 10)])
    with pytest.raises(TraceError, match="use a --kv-block-tokens of 1100 to 2147483647 or 551"):
        size([(600, 1), (1100, 1)])


def test_rounding_up_here_and_down_there_fits_no_size() -> None:
    with pytest.raises(
        TraceError,
        match=r"line 3: 9 hash_ids .* fits the lines before it; no --kv-block-tokens",
    ):
        size([(512, 1), (600, 2), (700, 9), (300, 1)])


def test_a_size_no_line_can_have_is_refused_with_the_line_that_shows_it() -> None:
    with pytest.raises(TraceError, match="line 2: 1 hash_ids don't fit input_length 600"):
        size([(600, 2), (600, 1)], 512)
