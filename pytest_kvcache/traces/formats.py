"""Formats of recorded requests: one table, and which one a file's first record is of.

A format is a row here and a file beside this one. What a file is, its first record says, as
JSON or as a CSV header: never a word somewhere in a line, nor its name.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import OptionError, TraceError
from pytest_kvcache.traces import (
    azure,
    burstgpt,
    copilot,
    ioformat,
    iotrace,
    mooncake,
    qwen,
    sessions,
    sharegpt,
    tracelab,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.traces.recorded import Asked, Recorded
    from pytest_kvcache.traces.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format; a file is of the first one that has all ``fields`` in its first record.

    ``name`` is what a plan calls it. ``takes_unit`` and ``takes_ids``: whether
    --kv-trace-time-unit and --kv-trace-ids have a say.
    """

    name: str
    title: str
    fields: frozenset[str]
    read: Callable[[Source, Asked], Recorded]
    takes_unit: bool = False
    takes_ids: bool = False


FORMATS = (
    Format(name="agent sessions", title="agent sessions (JSONL)",
           fields=frozenset({"requests"}), read=sessions.read, takes_ids=True),
    Format(name="github copilot", title="GitHub Copilot coding agents (JSONL)",
           fields=frozenset(copilot.FIELDS), read=copilot.read),
    Format(name="tracelab", title="TraceLab (JSONL)",
           fields=frozenset(tracelab.FIELDS), read=tracelab.read),
    Format(name="sharegpt", title="ShareGPT (JSON)",
           fields=frozenset(sharegpt.FIELDS), read=sharegpt.read),
    Format(name="qwen-bailian", title="Qwen-Bailian (JSONL)",
           fields=frozenset({"chat_id", "parent_chat_id", "hash_ids"}), read=qwen.read,
           takes_unit=True, takes_ids=True),
    Format(name="mooncake", title="Mooncake (JSONL)",
           fields=frozenset({"hash_ids"}), read=mooncake.read, takes_unit=True, takes_ids=True),
    Format(name="burstgpt", title="BurstGPT (CSV)",
           fields=frozenset(burstgpt.FIELDS), read=burstgpt.read),
    Format(name="azure llm", title="Azure LLM inference (CSV)",
           fields=frozenset(azure.FIELDS), read=azure.read),
    Format(name="i/o trace", title="I/O trace of --kv-io-trace (CSV)",
           fields=frozenset({ioformat.FIRST_LINE}), read=iotrace.read_own),
    Format(name="mlperf i/o trace", title="I/O trace of the MLPerf KV cache benchmark (CSV)",
           fields=frozenset(iotrace.CSV_COLUMNS), read=iotrace.read_csv),
)  # fmt: skip


def recognised(source: Source) -> Format:
    """Return the format of a file; TraceError where it is of none."""
    head = source.head
    if not head.strip():
        if any(line.strip() for line in source.lines()):
            raise TraceError(source.path, 1, "the line is blank; remove it")
        raise TraceError(source.path, 0, "it is empty; name a trace with at least one request")
    first = head.split(b"\n", 1)[0]
    if not first.strip():
        raise TraceError(source.path, 1, "the line is blank; remove it")
    names = _names(head, first, source.path)
    for each in FORMATS:
        if each.fields <= names:
            return each
    known = ", ".join(each.title for each in FORMATS)
    found = ", ".join(sorted(names)[:8])
    has = f"its first record has {found}" if names else "its first line is no record of any"
    problem = f"it is of no format that is read: {has}; these are {known}, see docs/traces.md"
    raise TraceError(source.path, 1, problem)


def check_asked(found: Format, asked: Asked, path: str) -> None:
    """Refuse what has no say in a format."""
    for option, value, is_taken in (
        ("--kv-trace-time-unit", asked.unit, found.takes_unit),
        ("--kv-trace-ids", asked.ids, found.takes_ids),
    ):
        if value is not None and not is_taken:
            raise OptionError(
                f"{option} is {value}; {path} is of the format {found.title}, which leaves that"
                " open to nobody: leave the option out"
            )


def _names(head: bytes, first: bytes, path: str) -> frozenset[str]:
    """The names of the first record's fields; none: it is no record."""
    text = head.decode("utf-8", "ignore").lstrip()
    if text.startswith(ioformat.FIRST_LINE):
        return frozenset({ioformat.FIRST_LINE})
    try:
        if text.startswith("["):
            record: Any = sharegpt.first_entry(text)
        elif text.startswith("{"):
            record = json.loads(first)
        else:
            return frozenset(name.strip() for name in next(csv.reader([first.decode("utf-8")])))
    except (ValueError, RecursionError, csv.Error) as error:
        if text.startswith("{") and b"\n" not in head:
            problem = "the last line is cut off; copy the file again, or delete that line"
            raise TraceError(path, 1, problem) from error
        return frozenset()
    return frozenset(record) if isinstance(record, dict) else frozenset()
