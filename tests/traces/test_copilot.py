from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError, TraceError
from pytest_kvcache.traces.read import read_trace
from pytest_kvcache.traces.reuse import infinite_hits

if TYPE_CHECKING:
    from pathlib import Path


def call(second: int, prompt: int | None, cached: int | None = 0, **changes: Any) -> dict[str, Any]:
    """A call as schema.json has it."""
    return {
        "message_id": "m", "timestamp": f"2026-06-03T10:00:{second:02}.250Z", "duration_ms": 81.5,
        "initiator_type": "agent", "model": "Model A", "result": "Success", "status_code": "OK",
        "tokens": {"total": 1, "prompt": prompt, "completion": 40, "cached": cached,
                   "cached_pct": 0.0},
        "message_metadata": [{"type": "System", "role": "system", "sequenceId": 0, "token_len": 9}],
    } | changes  # fmt: skip


def session(name: str, *turns: list[dict[str, Any]]) -> dict[str, Any]:
    made = [{"turn_id": "t", "llm_calls": calls, "tool_batches": []} for calls in turns]
    return {"session_id": name, "date": "2026-06-03", "turns": made}


def written(path: Path, *sessions: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in sessions))
    return path


def test_calls_of_all_sessions_come_by_their_time(tmp_path: Path) -> None:
    first = session("a", [call(1, 600), call(5, 1_100, 600)], [call(9, 1_200, 1_100)])
    file = written(tmp_path / "t", first, session("b", [call(5, 512, 512)]))
    trace = read_trace(file, block_tokens=None)
    assert (trace.format, trace.block_tokens) == ("github copilot", 256)
    assert (trace.arrival_ns - trace.arrival_ns[0]).tolist() == [0, 4 * 10**9, 4 * 10**9, 8 * 10**9]
    assert trace.arrival_ns[0] == 1_780_480_801_250_000_000
    assert trace.input_tokens.tolist() == [600, 1_100, 512, 1_200]
    assert trace.output_tokens.tolist() == [40] * 4
    assert infinite_hits(trace) == 2 + 4
    assert trace.reading is not None
    assert str(trace.reading.unit) == "given as dates"


def test_calls_without_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    failed = call(2, None, result="UserCancel")
    file = written(tmp_path / "t", session("a", [call(1, 600), failed, call(3, 600, None)]))
    trace = read_trace(file, block_tokens=None)
    assert trace.reading is not None
    assert (len(trace), trace.reading.left_out) == (2, 1)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (session("a", [call(1, 5, 6)]), r"turns\[0\].llm_calls\[0\].tokens.cached is 6, more than"),
        (session("a", [], [call(1, -5)]), r"turns\[1\].llm_calls\[0\].tokens.prompt is -5; it mu"),
        (session("a", [call(1, 5, timestamp="now")]), "timestamp is 'now'; it must be a date as"),
        (session("a", [call(1, 5, timestamp=None)]), "timestamp is None; it must be a date as"),
        ({"session_id": "a", "turns": 3}, "turns is 3; it must be a list"),
        ({"session_id": "a"}, "there is no 'turns'; a line is a session with session_id and"),
    ],
)
def test_a_session_that_breaks_a_rule_is_named_with_line_and_field(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    file = written(tmp_path / "t", session("x", [call(0, 600)]), changed)
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        read_trace(file, block_tokens=None)


@pytest.mark.parametrize("asked", [{"unit": "s"}, {"ids": "content"}])
def test_options_without_a_say_are_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    file = written(tmp_path / "t", session("a", [call(1, 600)]))
    with pytest.raises(OptionError, match=r"GitHub Copilot .*: leave the option out"):
        read_trace(file, block_tokens=None, **asked)


def test_prompts_shorter_than_a_block_store_nothing_and_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "t", session("a", [call(1, 200)]))
    with pytest.raises(TraceError, match="its longest prompt has 200 tokens, and a block 256"):
        read_trace(file, block_tokens=None)
    assert len(read_trace(file, block_tokens=100).block_ids) == 2
