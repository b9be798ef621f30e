from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.traces.reuse import infinite_hits

if TYPE_CHECKING:
    from pathlib import Path


def turn(chat: int, parent: int, ids: list[int], **changes: Any) -> dict[str, Any]:
    """A line of the published files, of full blocks of 16 tokens."""
    return {
        "chat_id": chat, "parent_chat_id": parent, "timestamp": chat / 2,
        "input_length": 16 * len(ids), "output_length": 5, "type": "text", "turn": 1,
        "hash_ids": ids,
    } | changes  # fmt: skip


def written(path: Path, *turns: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in turns))
    return path


def prompts(trace: Trace) -> list[list[int]]:
    return [trace.blocks(i).tolist() for i in range(len(trace))]


# The second prompt has two contents of the first one behind another block: no prefix of it.
TURNS = (turn(0, -1, [4, 5, 6]), turn(1, -1, [9, 5, 6]), turn(2, 0, [4, 5, 6, 7]))


def test_ids_of_contents_are_chained(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t", *TURNS), block_tokens=None)
    assert (trace.format, trace.block_tokens) == ("qwen-bailian", 16)
    assert prompts(trace) == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 6]]
    assert infinite_hits(trace) == 3
    assert trace.reading is not None
    assert trace.reading.ids == "content"


def test_contents_that_were_taken_for_prefixes_would_be_hits_that_no_engine_has(
    tmp_path: Path,
) -> None:
    again = turn(3, 1, [5, 6])  # in the middle of two prompts, at the head of none
    file = written(tmp_path / "t", *TURNS, again)
    seen: set[int] = set()
    unchained = 0
    for each in (*TURNS, again):
        ids = each["hash_ids"]
        run = next((n for n, i in enumerate(ids) if i not in seen), len(ids))
        unchained += run
        seen |= set(ids)
    assert (infinite_hits(read_trace(file, block_tokens=None)), unchained) == (3, 5)
    problem = r"line 2: hash_ids\[1\] stands behind hash_ids\[0\], and in line 1 behind another id"
    with pytest.raises(TraceError, match=problem):
        read_trace(file, block_tokens=None, ids="prefix")


def test_ids_that_were_chained_already_stay_as_they_are(tmp_path: Path) -> None:
    chained = (turn(0, -1, [0, 1, 2]), turn(1, -1, [3, 4]), turn(2, 0, [0, 1, 2, 5]))
    file = written(tmp_path / "t", *chained)
    content = read_trace(file, block_tokens=None)
    assert content.digest == read_trace(file, block_tokens=None, ids="prefix").digest
    assert prompts(content) == [[0, 1, 2], [3, 4], [0, 1, 2, 5]]


def test_a_padded_last_block_is_another_one_in_the_next_turn(tmp_path: Path) -> None:
    first = turn(0, -1, [4, 5], input_length=20)  # the rest of block 5 is padding
    after = turn(1, 0, [4, 8, 9])  # where the answer stands now
    assert prompts(read_trace(written(tmp_path / "t", first, after), block_tokens=None)) == [
        [0, 1], [0, 2, 3],
    ]  # fmt: skip


def test_times_are_seconds(tmp_path: Path) -> None:
    whole = [turn(n, -1, [n], timestamp=60 * n) for n in range(9)]
    trace = read_trace(written(tmp_path / "t", *whole), block_tokens=None)
    assert trace.arrival_ns.tolist() == [60 * 10**9 * n for n in range(9)]
    assert trace.reading is not None
    assert (str(trace.reading.unit), trace.reading.unit.doubt) == ("in s", "")


def test_conversations_stay_together_by_their_chats(tmp_path: Path) -> None:
    # All begin with the same system prompt; 99 is the parent of a chat that began before the trace.
    turns = [turn(n, -1, [1, 10 + n]) for n in range(3)]
    turns += [turn(3, 0, [1, 10, 20]), turn(4, 3, [1, 10, 20, 21]), turn(5, 99, [1, 30])]
    trace = read_trace(written(tmp_path / "t", *turns), block_tokens=None)
    assert trace.conversations is not None
    assert trace.conversations.tolist() == [0, 1, 2, 0, 0, 99]
    parts = [part.tolist() for part in partition(trace, 3)]
    assert [0, 3, 4] in parts
    lost = infinite_hits(trace) - sum(infinite_hits(trace, part) for part in partition(trace, 3))
    assert lost == 2  # each other rank stores the system prompt once


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"parent_chat_id": -2}, "parent_chat_id is -2; it must be an integer, at least -1"),
        ({"chat_id": "a"}, "chat_id is 'a'; it must be an integer, at least 0"),
        ({"timestamp": -0.5}, "timestamp is -0.5; it must be a number from 0"),
        ({"input_length": 100}, "3 hash_ids don't fit input_length 100 and blocks of 16 tokens"),
    ],
)
def test_a_turn_that_breaks_a_rule_is_named_with_its_line(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    file = written(tmp_path / "t", TURNS[0], TURNS[1] | changes)
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        read_trace(file, block_tokens=16)
