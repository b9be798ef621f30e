"""GitHub Copilot coding agents JSONL: one session a line, its turns, their calls of models.

Source: Azure/AzurePublicDataset, ``GitHubCopilotCodingAgentDataset2026.md`` and
``analysis/GitHubCopilotCodingAgents/schema.json`` (CC-BY; Liu et al., arXiv 2608.00101):
``session_id``, ``turns[].llm_calls[]`` with ``timestamp`` (when the call began), ``model`` and
``tokens.prompt``, ``.completion``, ``.cached``. A day is an archive of gzip-packed files of
about 500 sessions each. Calls without tokens, as failed ones have none, are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_kvcache.traces.cachedprefixes import CachedPrefixes, Call
from pytest_kvcache.traces.dates import Dates
from pytest_kvcache.traces.fields import integer, json_lines, present, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.traces.recorded import Asked, Recorded
    from pytest_kvcache.traces.source import Source

FIELDS = ("session_id", "turns")

_NEEDS = "a line is a session with session_id and turns, whose llm_calls have timestamp and tokens"


class _Made(NamedTuple):
    """A call that is replayed; ``call`` None: one that is not."""

    model: str
    timestamp: Any
    call: Call | None


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file; calls of tools and kinds of messages are not used."""
    calls, dates = CachedPrefixes(), Dates(source.path, "timestamp")
    for line, (session, made) in json_lines(source, _session, _NEEDS):
        for each in made:
            if each.call is None:
                calls.left_out += 1
                continue
            calls.add(session, each.model, each.call)
            dates.add(each.timestamp, line)
    return calls.finish(dates.finish(), asked, source.path)


def _session(fields: dict[str, Any]) -> tuple[str, list[_Made]]:
    return str(present(fields, "session_id", _NEEDS)), list(_calls(fields))


def _calls(fields: dict[str, Any]) -> Iterator[_Made]:
    for turn, where in _objects(present(fields, "turns", _NEEDS), "turns"):
        for call, place in _objects(turn.get("llm_calls") or [], f"{where}.llm_calls"):
            tokens = call.get("tokens") or {}
            made = None
            if tokens.get("prompt") is not None:
                prompt = integer(tokens["prompt"], f"{place}.tokens.prompt")
                cached = integer(tokens.get("cached") or 0, f"{place}.tokens.cached")
                output = integer(tokens.get("completion") or 0, f"{place}.tokens.completion")
                if cached > prompt:
                    raise ValueError(
                        f"{place}.tokens.cached is {cached}, more than the {prompt} of"
                        " tokens.prompt; delete the session, or copy the file again"
                    )
                made = Call(prompt, cached, output)
            yield _Made(str(call.get("model")), call.get("timestamp"), made)


def _objects(values: Any, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """A list's objects, each with where it stands."""
    if not isinstance(values, list):
        raise ValueError(f"{name} is {shown(values)}; it must be a list")  # noqa: TRY004 - data
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise ValueError(f"{name}[{number}] is {shown(value)}; it must be an object")  # noqa: TRY004
        yield value, f"{name}[{number}]"
