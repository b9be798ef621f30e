from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import mooncake
from pytest_kvcache.traces.recorded import Asked, Recorded
from pytest_kvcache.traces.source import Source


def line(**changes: Any) -> bytes:
    fields = {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
    return json.dumps(fields | changes).encode() + b"\n"


def recorded(*lines: bytes, block_tokens: int | None = 512, unit: str | None = "ms") -> Recorded:
    """What a file of these lines holds."""
    asked = Asked(block_tokens=block_tokens, unit=unit, ids=None, default_block_tokens=256)
    return mooncake.read(Source("t.jsonl", io.BytesIO(b"".join(lines))), asked)


def test_a_line_becomes_timestamp_lengths_and_ids() -> None:
    found = recorded(line(timestamp=1.5, extra="ignored"))
    assert found.arrival_ns.tolist() == [1_500_000]
    assert (found.input_tokens.tolist(), found.output_tokens.tolist()) == ([600], [3])
    assert (found.offsets.tolist(), found.block_ids.tolist()) == ([0, 2], [0, 1])


def test_timestamps_out_of_order_keep_the_file_order() -> None:
    found = recorded(line(timestamp=9), line(timestamp=2))
    assert found.arrival_ns.tolist() == [9_000_000, 2_000_000]


def test_blank_lines_at_the_end_are_accepted() -> None:
    assert len(recorded(line(), b"\n", b"  \r\n").arrival_ns) == 1


def test_the_last_line_may_lack_its_newline() -> None:
    assert len(recorded(line(), line().rstrip(b"\n")).arrival_ns) == 2


def test_a_blank_line_between_requests_is_named() -> None:
    with pytest.raises(TraceError, match="line 2: the line is blank"):
        recorded(line(), b"\n", line())


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
        recorded(line(), line(**changes))
    assert caught.value.line == 2


@pytest.mark.parametrize("name", mooncake.FIELDS)
def test_a_missing_field_is_named(name: str) -> None:
    fields = json.loads(line())
    del fields[name]
    with pytest.raises(TraceError, match=f"line 1: there is no '{name}'"):
        recorded(json.dumps(fields).encode())


@pytest.mark.parametrize("text", [b"[1]\n", b"3\n", b'"timestamp"\n'])
def test_a_line_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(TraceError, match="line 2: the line is not a JSON object"):
        recorded(line(), text)


@pytest.mark.parametrize("text", [b"{oops}\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(TraceError, match="line 2: the line is not JSON"):
        recorded(line(), text, line())


def test_what_is_no_json_is_found_within_its_line() -> None:
    with pytest.raises(TraceError) as caught:
        recorded(line(), b'{"timestamp": 0, "input_length": \n', line())
    reported = str(caught.value)
    assert "line 2: the line is not JSON (Expecting value at character 33); a line of" in reported


@settings(deadline=None)
@given(st.integers(1, len(line()) - 2))
def test_a_last_line_that_is_cut_off_is_called_so(length: int) -> None:
    with pytest.raises(TraceError, match="line 2: the last line is cut off"):
        recorded(line(), line()[:length])


# -- the input of kvcache-simulator ---------------------------------------------------------


def simulated(**changes: Any) -> bytes:
    fields = {"block_size": 64, "input_length": 130, "hash_ids": [2001, 2002, 2003]}
    return json.dumps(fields | changes).encode() + b"\n"


def test_a_record_with_a_block_size_needs_no_time_and_no_output() -> None:
    found = recorded(simulated(), simulated(), block_tokens=None, unit=None)
    assert (found.block_tokens, found.reading.block_why) == (64, "")
    assert found.output_tokens.tolist() == [0, 0]
    assert "--kv-trace-speedup=0" in found.reading.unit.doubt


def test_a_block_size_of_the_records_is_taken_where_others_would_fit_too() -> None:
    one = recorded(simulated(block_size=65, hash_ids=[1, 2]), block_tokens=None, unit=None)
    assert one.block_tokens == 65


def test_times_of_records_with_a_block_size_are_read_like_others() -> None:
    found = recorded(simulated(timestamp=5, output_length=7), block_tokens=None, unit=None)
    assert (found.arrival_ns.tolist(), found.output_tokens.tolist()) == ([5_000_000], [7])
    assert (found.reading.unit.name, found.reading.unit.doubt) == ("ms", "")


def test_tokens_of_each_block_are_accepted_where_the_lengths_say_the_same() -> None:
    found = recorded(simulated(block_tokens=[64, 64, 2]), block_tokens=None, unit=None)
    assert found.block_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_size": 0}, "block_size is 0; it must be an integer from 1"),
        ({"block_size": 32}, "block_size is 32, and in line 1 64; a trace has one size"),
        ({"block_size": None}, "there is no 'timestamp'"),
        ({"timestamp": 3}, "the line has a timestamp, unlike line 1"),
        ({"input_length": 300}, "3 hash_ids don't fit input_length 300 and blocks of 64"),
        ({"block_tokens": [64, 64]}, r"block_tokens is \[64, 64\]; it must have a count for each"),
        ({"block_tokens": [64, 2, 64]}, r"block_tokens\[1\] is 2, and by .* it is 64; only a"),
        ({"block_tokens": [64, 64, 0]}, r"block_tokens\[2\] is 0; it must be an integer from 1"),
    ],
)
def test_a_size_that_breaks_a_rule_is_named_with_its_line(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        recorded(simulated(), simulated(**changes), block_tokens=None, unit=None)


def test_another_block_size_than_the_records_have_is_refused() -> None:
    with pytest.raises(TraceError, match="block_size is 64, and --kv-block-tokens 16; leave it"):
        recorded(simulated(), block_tokens=16, unit=None)


def test_a_unit_of_times_that_are_absent_is_refused() -> None:
    with pytest.raises(TraceError, match="there are no timestamps, and --kv-trace-time-unit is s"):
        recorded(simulated(), block_tokens=None, unit="s")
