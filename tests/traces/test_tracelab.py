from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.read import read_trace

if TYPE_CHECKING:
    from pathlib import Path


def events(*rows: tuple[str, int]) -> list[dict[str, Any]]:
    return [
        {"event_type": kind, "timestamp": f"2026-06-01T05:40:{second:02}.151Z"}
        for kind, second in rows
    ]


def round_(total: int, cached: int, *rows: tuple[str, int], **changes: Any) -> dict[str, Any]:
    """A row as example_sessions/sanitized has it."""
    return {
        "provider": "claude", "session_id": "claude:9", "round_index": 0, "model": "claude-opus",
        "input_tokens_total": total, "prefix_tokens": cached, "newly_append_tokens": total - cached,
        "output_tokens": 31, "reasoning_output_tokens": None, "timing_events": events(*rows),
        "tools": [], "trace_key": "x",
    } | changes  # fmt: skip


def written(path: Path, *rounds: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rounds))
    return path


def test_a_round_comes_with_its_last_input_before_it_answers(tmp_path: Path) -> None:
    claude = round_(600, 0, ("user_message", 20), ("tool_result", 21), ("reasoning", 29))
    # Codex has the results of a round's own calls behind them: they are the next round's input.
    codex = round_(
        900, 256, ("user_message", 30), ("tool_call", 33), ("tool_result", 39), session_id="codex:1"
    )
    silent = round_(512, 0, ("text", 45), ("text", 46))
    trace = read_trace(written(tmp_path / "t", claude, codex, silent), block_tokens=None)
    assert trace.format == "tracelab"
    assert (trace.arrival_ns - trace.arrival_ns[0]).tolist() == [0, 9 * 10**9, 24 * 10**9]
    assert trace.input_tokens.tolist() == [600, 900, 512]
    assert trace.output_tokens.tolist() == [31] * 3


def test_rounds_of_a_session_share_what_was_cached(tmp_path: Path) -> None:
    rows = [round_(total, cached, ("user_message", at)) for total, cached, at in
            ((32_272, 27_217, 1), (35_740, 29_380, 3), (38_592, 35_738, 5))]  # fmt: skip
    trace = read_trace(written(tmp_path / "t", *rows), block_tokens=256)
    prompts = [trace.blocks(i).tolist() for i in range(3)]
    assert [len(each) for each in prompts] == [126, 139, 150]
    # 27,217 tokens of the first round were there before the session: of what, nothing says.
    assert prompts[1][:114] == prompts[0][:114]
    assert prompts[1][114] not in prompts[0]
    assert prompts[2][:139] == prompts[1]


def test_rounds_without_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    file = written(tmp_path / "t", round_(600, 0, ("text", 1)), round_(600, 0))
    trace = read_trace(file, block_tokens=None)
    assert trace.reading is not None
    assert (len(trace), trace.reading.left_out) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prefix_tokens": 101}, "input_tokens_total is 600, prefix_tokens 101 and newly_append"),
        ({"prefix_tokens": None}, "prefix_tokens is None; it must be an integer"),
        ({"timing_events": 3}, "timing_events is 3; it must be a list of objects"),
        ({"timing_events": [{"event_type": "text", "timestamp": "x"}]}, "timestamp of timing_even"),
    ],
)
def test_a_round_that_breaks_a_rule_is_named_with_line_and_field(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    sound = round_(600, 100, ("text", 1))
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        read_trace(written(tmp_path / "t", sound, sound | changes), block_tokens=None)
