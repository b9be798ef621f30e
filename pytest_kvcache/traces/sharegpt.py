"""ShareGPT JSON: conversations as texts, of which only lengths are used: no reuse.

Source: the format of FastChat's ``data/dummy_conversation.json`` (Apache-2.0) and of the
ShareGPT files that serving benchmarks use: ``[{"id", "conversations": [{"from", "value"}]}]``,
a list, or its entries one a line.
Each answer is a request; its prompt is all that was said before, as a server receives it. No
file of this format has times. Tokens are counted by tiktoken's ``cl100k_base`` where that is
installed, else a token is 4 characters, rounded up.
"""

from __future__ import annotations

import importlib
import json
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.fields import json_lines, shown
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import NO_TIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_kvcache.traces.source import Source

FIELDS = ("conversations",)

_CHARS_PER_TOKEN = 4
_ANSWERS = frozenset({"gpt", "chatgpt", "assistant", "bard", "bing", "model"})
_ENCODING = "cl100k_base"
_NEEDS = "an entry is an object with conversations, a list of objects with from and value"


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file."""
    count, counted_by = _counter()
    rows = array("q")
    left_out = 0
    for entry, (line, conversation) in enumerate(_entries(source)):
        try:
            before = 0
            for is_answer, text in _messages(conversation):
                tokens = count(text)
                if is_answer and before:
                    rows.extend((before, tokens, entry))
                left_out += is_answer and not before
                before += tokens
        except ValueError as error:
            raise TraceError(source.path, line, f"entry {entry}: {error}") from error
    if not rows:
        raise TraceError(source.path, 0, "it has no conversation with an answer; name another file")
    prompts, outputs, conversations = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Recorded.of_lengths(
        block_tokens=asked.own_block_tokens,
        arrival_ns=np.zeros(len(prompts), dtype=np.int64),
        input_tokens=prompts,
        output_tokens=outputs,
        reading=Reading(unit=NO_TIMES, ids="none", left_out=left_out, tokens_by=counted_by),
        conversations=conversations,
    )


def first_entry(head: str) -> Any:
    """The first entry of a list that begins so; ValueError where it has none, or not all of it."""
    start = _after_space(head, 1)
    return json.JSONDecoder().raw_decode(head, start)[0]


def _messages(entry: Any) -> Iterator[tuple[bool, str]]:
    """Whether each message is an answer, and its text."""
    messages = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(messages, list):
        raise ValueError(f"there are no conversations; {_NEEDS}")  # noqa: TRY004 - data
    for number, message in enumerate(messages):
        name = f"conversations[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("from"), str):
            raise ValueError(f"{name} is {shown(message)}; {_NEEDS}")  # noqa: TRY004 - data
        if not isinstance(message.get("value"), str):
            found = shown(message.get("value"))
            raise ValueError(f"{name}.value is {found}; it must be a text")  # noqa: TRY004 - data
        yield message["from"].lower() in _ANSWERS, message["value"]


def _entries(source: Source) -> Iterator[tuple[int, Any]]:
    """Yield the entries, of a list or one a line, each with the line that it begins in."""
    if not source.head.lstrip().startswith(b"["):
        yield from json_lines(source, lambda entry: entry, _NEEDS)
        return
    decode = json.JSONDecoder().raw_decode
    texts = _texts(source)
    text, line, at, is_first = "", 1, 0, True
    while True:
        at = _after_space(text, at)
        expected = "[" if is_first else ",]"
        if at < len(text) and text[at] not in expected:
            raise TraceError(source.path, line + text.count("\n", 0, at), _broken(text[at:]))
        start = _after_space(text, at + 1)
        if at < len(text) and text[at] == "]":
            return
        try:
            if start < len(text) and text[start] == "]" and is_first:
                return
            entry, end = decode(text, start)
        except ValueError as error:
            more = next(texts, None)
            if more is None:
                where = line + text.count("\n", 0, min(start, len(text)))
                problem = f"the list is cut off or no JSON ({error}); copy the file again"
                raise TraceError(source.path, where, problem) from error
            line += text.count("\n", 0, at)
            text, at = text[at:] + more, 0
            continue
        yield line + text.count("\n", 0, start), entry
        at, is_first = end, False


def _broken(text: str) -> str:
    return f"{shown(text[:20])} stands where a list of conversations goes on; copy the file again"


def _texts(source: Source) -> Iterator[str]:
    """The file as text, in pieces that end with a character."""
    left = b""
    for chunk in source.chunks():
        whole = left + chunk
        for cut in range(len(whole), len(whole) - 4, -1):
            try:
                yield whole[:cut].decode("utf-8")
            except UnicodeDecodeError:
                continue
            left = whole[cut:]
            break
        else:
            raise TraceError(source.path, 0, "it is not text in UTF-8; copy the file again")
    if left:
        raise TraceError(source.path, 0, "it ends within a character; copy the file again")


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _counter() -> tuple[Callable[[str], int], str]:
    """What counts tokens, and its name."""
    try:
        library: Any = importlib.import_module("tiktoken")
        encode = library.get_encoding(_ENCODING).encode_ordinary
    except (ImportError, OSError):  # not here, or its vocabulary is not
        return lambda text: -(-len(text) // _CHARS_PER_TOKEN), f"{_CHARS_PER_TOKEN} characters each"
    return lambda text: len(encode(text)), f"tiktoken's {_ENCODING}"
