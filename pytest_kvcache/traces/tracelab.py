"""TraceLab JSONL: one round a line, a call of a model by a Claude Code or Codex session.

Source: github.com/uw-syfi/TraceLab, README.md, ``docs/prompt_cache_accounting.md`` and
``example_sessions/sanitized`` (data CC BY 4.0): ``session_id``, ``model``,
``input_tokens_total`` = ``prefix_tokens`` (cached) + ``newly_append_tokens``,
``output_tokens``, ``timing_events[]`` with ``event_type`` and ``timestamp``. Codex rounds have
their tools' results behind their own calls, Claude's before the answer: a round comes with
its last ``user_message`` or ``tool_result`` before anything else happens, else with its first
event. Rounds without events have no time, and are left out.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_kvcache.traces.cachedprefixes import CachedPrefixes, Call
from pytest_kvcache.traces.dates import Dates
from pytest_kvcache.traces.fields import integer, json_lines, present, shown

if TYPE_CHECKING:
    from pytest_kvcache.traces.recorded import Asked, Recorded
    from pytest_kvcache.traces.source import Source

FIELDS = ("session_id", "input_tokens_total", "prefix_tokens", "newly_append_tokens")

_NEEDS = f"a line of TraceLab is an object with {', '.join(FIELDS)}, output_tokens, timing_events"
_INPUTS = ("user_message", "tool_result")


class _Round(NamedTuple):
    session: str
    model: str
    timestamp: Any
    call: Call


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file."""
    calls, dates = CachedPrefixes(), Dates(source.path, "timestamp of timing_events")
    for line, found in json_lines(source, _round, _NEEDS):
        if found.timestamp is None:
            calls.left_out += 1
            continue
        calls.add(found.session, found.model, found.call)
        dates.add(found.timestamp, line)
    return calls.finish(dates.finish(), asked, source.path)


def _round(fields: dict[str, Any]) -> _Round:
    session = str(present(fields, "session_id", _NEEDS))
    total, cached, new = (
        integer(present(fields, name, _NEEDS), name)
        for name in ("input_tokens_total", "prefix_tokens", "newly_append_tokens")
    )
    if total != cached + new:
        raise ValueError(
            f"input_tokens_total is {total}, prefix_tokens {cached} and newly_append_tokens {new};"
            " the first must be the sum of the others"
        )
    output = integer(present(fields, "output_tokens", _NEEDS), "output_tokens")
    when = _came_at(fields.get("timing_events") or [])
    return _Round(session, str(fields.get("model")), when, Call(total, cached, output))


def _came_at(events: Any) -> Any:
    """When the round could begin; None: no event says."""
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError(f"timing_events is {shown(events)}; it must be a list of objects")
    times = [(event.get("event_type"), event.get("timestamp")) for event in events]
    known = [each for each in times if each[1] is not None]
    inputs = list(itertools.takewhile(lambda each: each[0] in _INPUTS, known))
    came = inputs[-1:] or known[:1]
    return came[0][1] if came else None
