from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.read import read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import trace_path

if TYPE_CHECKING:
    from pathlib import Path

SIX = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
EIGHT = SIX.replace("Model", "Session ID,Elapsed time,Model")


def test_both_headers_are_read() -> None:
    first = read_trace(trace_path("burstgpt-format/BurstGPT_1.head.csv"), block_tokens=None)
    assert (first.format, first.arrival_ns.tolist()) == (
        "burstgpt",
        [5 * 10**9, 45 * 10**9, 118 * 10**9],
    )
    assert first.input_tokens.tolist() == [472, 1087, 417]
    assert first.output_tokens.tolist() == [18, 230, 276]
    third = read_trace(trace_path("burstgpt-format/BurstGPT_3.head.csv"), block_tokens=16)
    assert (third.input_tokens.tolist(), third.output_tokens.tolist()) == ([906], [446])
    assert third.arrival_ns.tolist() == [19_440_110 * 10**9]
    assert third.block_ids.tolist() == list(range(906 // 16))


def test_equal_lengths_are_no_reuse_and_the_reading_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(SIX + "5,ChatGPT,472,18,490,Conversation log\n" * 3)
    trace = read_trace(path, block_tokens=None)
    assert (len(trace.block_ids), infinite_hits(trace)) == (3, 0)
    assert trace.reading is not None
    assert trace.reading.ids == "none"


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(SIX + "5,GPT-4,472,0,472,API log\n7.5,GPT-4,300,2,302,API log\n")
    trace = read_trace(path, block_tokens=None)
    assert trace.reading is not None
    assert (trace.arrival_ns.tolist(), trace.reading.left_out) == ([7_500_000_000], 1)


def test_requests_of_a_session_are_one_conversation(tmp_path: Path) -> None:
    path = tmp_path / "t"
    rows = [f"{n},{session},1,GPT-4,300,2,302,x\n" for n, session in enumerate(("a", "", "a", ""))]
    path.write_text(EIGHT + "".join(rows))
    trace = read_trace(path, block_tokens=None)
    assert trace.conversations is not None
    first, second, third, fourth = trace.conversations.tolist()
    assert first == third
    assert len({first, second, fourth}) == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x,GPT-4,300,2,302,log", "Timestamp is 'x'; it must be seconds, 0 or more"),
        ("nan,GPT-4,300,2,302,log", "Timestamp is 'nan'; it must be seconds"),
        ("-1,GPT-4,300,2,302,log", "Timestamp is '-1'; it must be seconds"),
        ("1,GPT-4,3e2,2,302,log", "Request tokens is '3e2'; it must be an integer from 0"),
        ("1,GPT-4,300,-2,302,log", "Response tokens is '-2'; it must be an integer from 0"),
        ("1,GPT-4,300", "there are 3 values, and the header names 6 columns"),
        ("", "the line is blank"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_line_and_field(
    tmp_path: Path, row: str, problem: str
) -> None:
    path = tmp_path / "t"
    path.write_text(SIX + "5,GPT-4,472,9,472,API log\n" + row + "\n1,GPT-4,300,2,302,log\n")
    with pytest.raises(TraceError, match=f"line 3: {problem}"):
        read_trace(path, block_tokens=None)


def test_a_file_of_failures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(SIX + "5,GPT-4,472,0,472,API log\n")
    with pytest.raises(TraceError, match="it has no request that was answered"):
        read_trace(path, block_tokens=None)
