from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.read import read_trace
from tests.recordings import AGENTS, MOONCAKE, SHAREGPT, real_trace

if TYPE_CHECKING:
    from pathlib import Path

LINE = {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (AGENTS, "agent sessions"),
        (MOONCAKE, "mooncake"),
        (SHAREGPT, "mooncake"),
        ("azure-llm-2023/AzureLLMInferenceTrace_code.csv", "azure llm"),
        ("burstgpt-format/BurstGPT_1.head.csv", "burstgpt"),
        ("burstgpt-format/BurstGPT_3.head.csv", "burstgpt"),
    ],
)
def test_real_files_are_known_by_their_first_record(name: str, found: str) -> None:
    assert real_trace(name).format == found


@pytest.mark.parametrize(
    "extra",
    [
        {"note": '"requests": "conversations": chat_id parent_chat_id'},
        {"tags": ["requests", "turns", "session_id", "prefix_tokens"]},
        {"nested": {"requests": [], "conversations": [], "turns": []}},
        {"chat_id": 3},
    ],
)
def test_a_word_somewhere_in_a_line_does_not_make_it_another_format(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(LINE | extra) + "\n")
    assert read_trace(path, block_tokens=512, unit="ms").format == "mooncake"


def test_columns_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text('GeneratedTokens, ContextTokens,"TIMESTAMP"\n5,600,2024-05-10 00:00:00\n')
    trace = read_trace(path, block_tokens=None)
    assert (trace.format, trace.input_tokens.tolist()) == ("azure llm", [600])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a,b,c\n1,2,3\n", "its first record has a, b, c; these are agent sessions"),
        ('{"prompt": "requests"}\n', "its first record has prompt; these"),
        ('[{"prompt": "x"}]', "its first record has prompt; these"),
        ("[3]", "its first line is no record of any"),
        ("[", "its first line is no record of any"),
        ('{"hash_ids"}\n', "its first line is no record of any"),
    ],
)
def test_a_file_of_no_format_says_what_it_has_and_what_there_is(
    tmp_path: Path, content: str, found: str
) -> None:
    path = tmp_path / "t"
    path.write_text(content)
    with pytest.raises(TraceError, match=r"line 1: it is of no format that is read") as caught:
        read_trace(path, block_tokens=None)
    assert found in str(caught.value)
