"""pytest-benchmark's tables: shown where somebody asks for them, in units that are named.

Our own table has everything that a run says; the others would be one more per metric. All
that pytest-benchmark saves, compares and draws stays as it is. Imports nothing of it.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from pytest_kvcache.measure.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

_PREFIX = "--benchmark-"
# What a project's standing configuration says of tables: how they look, if there are any.
_LOOKS = frozenset({"--benchmark-columns", "--benchmark-sort"})
Groups = list[tuple[str | None, list[dict[str, Any]]]]


def asks_for_tables(config: pytest.Config) -> bool:
    """Whether an option of pytest-benchmark was typed, or is configured beyond the looks."""
    typed = [*config.invocation_params.args, *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    if any(flag.startswith(_PREFIX) for flag in _flags(map(str, typed))):
        return True
    configured = {flag for flag in _flags(config.getini("addopts")) if flag.startswith(_PREFIX)}
    return bool(configured - _LOOKS)


def _flags(words: Iterable[str]) -> list[str]:
    return [word.partition("=")[0] for word in words]


def without_ours(groups: Groups) -> Groups:
    """The groups without our entries; other benchmarks of the session keep their tables."""
    others = [
        (name, [entry for entry in entries if not is_ours(entry)]) for name, entries in groups
    ]
    return [(name, entries) for name, entries in others if entries]


def is_ours(entry: dict[str, Any]) -> bool:
    """Whether the entry is a metric of a case."""
    return entry["extra_info"].get("metric") in METRICS and "plan_digest" in entry["extra_info"]


def scale(unit: str, entries: Sequence[dict[str, Any]]) -> tuple[str, float] | None:
    """Prefix and factor of a table of ours, so that its columns have the names' units.

    Latencies in ms, reciprocals in s, and operations per second unscaled: of a reciprocal
    that is the rate itself. None: not all entries are ours.
    """
    if not entries or not all(map(is_ours, entries)):
        return None
    latencies = all(METRICS[entry["extra_info"]["metric"]].latency for entry in entries)
    return ("m", 1e3) if unit == "seconds" and latencies else ("", 1.0)
