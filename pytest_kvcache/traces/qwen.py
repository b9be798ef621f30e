"""Qwen-Bailian JSONL: requests of a production cluster, with conversations and contents' ids.

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon (Apache-2.0; Wang et al., USENIX
ATC'25): ``chat_id``, ``parent_chat_id`` (-1 for the first of a conversation), ``timestamp``
in seconds from the trace's start, ``input_length``, ``output_length``, ``type``, ``turn``,
``hash_ids``.

Its README has each id as the salted SipHash of the tokens of one block of 16, mapped to a
counter: equal ids are equal contents, whatever stands before them. No engine can use such a
block behind another prefix, so ids are chained here; where they were chained already that
changes nothing. A prompt's last block may hold padding in the place of the answer's first
tokens (docs/qa-context-growth-pattern.md there): its id is then another one in the next turn,
and that block is not hit, as in the cluster. ``<think>`` tokens that a next turn leaves out
end the common prefix likewise.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_kvcache.traces.fields import integer, json_lines, number, present, shown
from pytest_kvcache.traces.hashed import HashedRequests
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import MAX_TIMESTAMP, TimeUnit

if TYPE_CHECKING:
    from pytest_kvcache.traces.source import Source

BLOCK_TOKENS = 16
FIELDS = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids")

_NEEDS = f"a line of a Qwen-Bailian trace is an object with {', '.join(FIELDS)}"
_ROOT = -1  # the parent of a conversation's first request


class _Line(NamedTuple):
    chat: int
    parent: int
    timestamp: float
    input_tokens: int
    output_tokens: int
    ids: Any


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file; ``type`` and ``turn`` are not used."""
    ids = asked.ids or "content"
    found = HashedRequests(source.path, ids)
    conversations = array("q")
    first_of: dict[int, int] = {}  # of a chat, the one that its conversation began with
    for _line, request in json_lines(source, _request, _NEEDS):
        found.add(request.timestamp, request.input_tokens, request.output_tokens, request.ids)
        parent = request.chat if request.parent == _ROOT else request.parent
        first_of[request.chat] = first = first_of.get(parent, parent)
        conversations.append(first)
    unit = asked.unit or "s"
    columns = found.finish(asked=asked.block_tokens, usual=BLOCK_TOKENS, unit=unit)
    return Recorded(
        block_tokens=columns.block_tokens,
        arrival_ns=columns.stamps.in_ns(unit),
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        offsets=columns.offsets,
        block_ids=columns.block_ids,
        reading=Reading(unit=TimeUnit(name=unit), ids=ids, block_why=columns.block_why),
        conversations=np.array(conversations, dtype=np.int64),
    )


def _request(fields: dict[str, Any]) -> _Line:
    values = [present(fields, name, _NEEDS) for name in FIELDS]
    chat, parent, timestamp, tokens, output, ids = values
    return _Line(
        _chat(chat, "chat_id", 0),
        _chat(parent, "parent_chat_id", _ROOT),
        number(timestamp, "timestamp", MAX_TIMESTAMP),
        integer(tokens, "input_length", 1),
        integer(output, "output_length"),
        ids,
    )


def _chat(value: Any, name: str, least: int) -> int:
    if type(value) is int and least <= value < 1 << 63:
        return value
    raise ValueError(f"{name} is {shown(value)}; it must be an integer, at least {least}")
