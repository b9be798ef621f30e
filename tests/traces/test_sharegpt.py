from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import source
from pytest_kvcache.traces.read import read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import real_trace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _without_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)


def talk(*messages: tuple[Any, Any]) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in messages]}


TALKS = [
    talk(("human", "a" * 41), ("gpt", "b" * 8), ("human", "ü" * 4), ("gpt", "c")),
    talk(("system", "s" * 40), ("user", "q" * 40), ("assistant", "d" * 5)),
]


def test_each_answer_is_a_request_whose_prompt_is_all_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(TALKS))
    trace = read_trace(path, block_tokens=10)
    assert trace.format == "sharegpt"
    assert trace.input_tokens.tolist() == [11, 11 + 2 + 1, 20]
    assert trace.output_tokens.tolist() == [2, 1, 2]
    assert trace.conversations is not None
    assert trace.conversations.tolist() == [0, 0, 1]
    assert (trace.block_ids.tolist(), infinite_hits(trace)) == ([0, 1, 2, 3], 0)
    assert trace.reading is not None
    assert (trace.reading.ids, trace.reading.tokens_by) == ("none", "4 characters each")
    assert "replay it as fast as the storage allows" in trace.reading.unit.doubt


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 50])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_alike_however_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, indent: int | None
) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(TALKS * 2, indent=indent, ensure_ascii=False), encoding="utf-8")
    whole = read_trace(path, block_tokens=10)
    monkeypatch.setattr(source, "_BUFFER_BYTES", chunk_bytes)
    monkeypatch.setattr(source, "_HEAD_BYTES", 400)
    assert len(whole) == 6
    assert read_trace(path, block_tokens=10).digest == whole.digest


def test_entries_one_a_line_are_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "list", tmp_path / "lines"
    one.write_text(json.dumps(TALKS))
    other.write_text("".join(json.dumps(each) + "\n" for each in TALKS))
    assert read_trace(one, block_tokens=10).digest == read_trace(other, block_tokens=10).digest


def test_the_published_sample_is_read() -> None:
    trace = real_trace("sharegpt-format/dummy_conversation.json", block_tokens=16)
    assert trace.conversations is not None
    assert len(set(trace.conversations.tolist())) == 500


def test_tokens_are_counted_by_a_tokenizer_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_word = SimpleNamespace(encode_ordinary=str.split)
    known = SimpleNamespace(get_encoding={"cl100k_base": by_word}.__getitem__)
    monkeypatch.setitem(sys.modules, "tiktoken", known)
    path = tmp_path / "t"
    path.write_text(json.dumps([talk(("human", "one two three"), ("gpt", "four five"))]))
    trace = read_trace(path, block_tokens=1)
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [2])
    assert trace.reading is not None
    assert trace.reading.tokens_by == "tiktoken's cl100k_base"


def test_an_answer_to_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps([talk(("gpt", "a" * 44), ("human", "b"), ("gpt", "c"))]))
    trace = read_trace(path, block_tokens=10)
    assert trace.reading is not None
    assert (trace.input_tokens.tolist(), trace.reading.left_out) == ([12], 1)


SOUND = json.dumps(TALKS, indent=0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SOUND[:-4], "the list is cut off or no JSON"),
        (SOUND.replace('},\n{\n"id"', '}\n{\n"id"'), r"line \d+: '{.* stands where a list of"),
        (json.dumps([*TALKS, 3]), "line 1: entry 2: there are no conversations"),
        (json.dumps([*TALKS, talk((3, "x"))]), r"entry 2: conversations\[0\] is .*; an entry is"),
        (json.dumps([*TALKS, talk(("gpt", 3))]), r"entry 2: conversations\[0\].value is 3"),
        ("[" + json.dumps({"id": 1, "conversations": []}) + "]", "it has no conversation with"),
    ],
)  # fmt: skip
def test_a_list_that_breaks_a_rule_is_named_with_its_entry(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(TraceError, match=problem):
        read_trace(path, block_tokens=10)
