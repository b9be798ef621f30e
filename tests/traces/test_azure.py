from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.read import read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import real_trace

if TYPE_CHECKING:
    from pathlib import Path

CODE = "azure-llm-2023/AzureLLMInferenceTrace_code.csv"


def test_the_trace_of_2023_holds_what_its_reference_says() -> None:
    trace = real_trace(CODE)
    assert (trace.format, len(trace)) == ("azure llm", 8_819)
    seconds = (trace.arrival_ns - trace.arrival_ns[0]) / 1e9
    between = np.diff(seconds)
    assert seconds[-1] == pytest.approx(3_435.948, abs=5e-4)
    assert float(between.std() / between.mean()) == pytest.approx(13.151, abs=5e-4)
    assert len(np.unique(trace.arrival_ns)) == 8_819
    assert int(np.bincount(seconds.astype(int)).max()) == 67
    assert int(trace.input_tokens.sum()) == 18_059_974
    assert int(trace.output_tokens.sum()) == 245_896
    prompts = np.percentile(trace.input_tokens, [0, 5, 25, 50, 75, 90, 95, 99, 100])
    assert prompts.round(1).tolist() == [3, 75, 578, 1469, 2744.5, 5187.6, 7303.3, 7436, 7437]


def test_no_prompt_shares_a_block_with_another() -> None:
    trace = real_trace(CODE)
    assert trace.block_ids.tolist() == list(range(int((trace.input_tokens // 256).sum())))
    assert infinite_hits(trace) == 0
    assert trace.reading is not None
    assert trace.reading.ids == "none"


def test_the_dates_of_2024_are_read(tmp_path: Path) -> None:
    path = tmp_path / "AzureLLMInferenceTrace_code_1week.csv"
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
        b"2024-05-10 00:00:00.017335+00:00,2399,6\n"
    )
    trace = read_trace(path, block_tokens=None)
    assert trace.arrival_ns.tolist() == [1_715_299_200_009_930_000, 1_715_299_200_017_335_000]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"2024-05-10,1,2", "TIMESTAMP is '2024-05-10'; it must be a date as"),
        (b"2024-05-10 00:00:01,1.5,2", "ContextTokens is '1.5'; it must be an integer from 0"),
        (b"2024-05-10 00:00:01,1", "there are 2 values, and the header names 3 columns"),
        (b"2024-05-10 00:00:01,\xff,2", "the line is not text"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_line_and_field(
    tmp_path: Path, row: bytes, problem: str
) -> None:
    path = tmp_path / "t"
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00.1,900,2\r\n" + row
    )
    with pytest.raises(TraceError, match=f"line 3: {problem}"):
        read_trace(path, block_tokens=None)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(TraceError, match="it has a header and no request"):
        read_trace(path, block_tokens=None)
