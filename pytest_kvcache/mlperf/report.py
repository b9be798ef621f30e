"""A result of the MLPerf Storage KV cache benchmark, told to people and to programs. Pure text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from pytest_kvcache.mlperf.contradictions import contradictions_of
from pytest_kvcache.mlperf.figures import figures_of, unchecked_of
from pytest_kvcache.units import format_count
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.mlperf.contradictions import Contradiction
    from pytest_kvcache.mlperf.published import Published

SCHEMA = "pytest-kvcache/mlperf-import/1"
_COLUMNS = 79
_HEAD = ("option", "read GiB/s", "write GiB/s", "tokens/s", "by bytes", "P95 s", "files")


def import_to_json(runs: Sequence[Published]) -> dict[str, Any]:
    """Everything that was read, computed and found, for programs."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "results": [
            {
                "path": str(run.path),
                "summary": run.summary_name,
                "metadata": run.metadata_name,
                "note": run.summary.get("note"),
                "options": {name: figures_of(run, name).to_json() for name in run.option_names},
                "unchecked": {name: unchecked_of(run, name) for name in run.option_names},
                "contradictions": [found.to_json() for found in contradictions_of(run)],
            }
            for run in runs
        ],
    }


def describe_import(run: Published, found: Sequence[Contradiction]) -> Iterator[str]:
    """A table of the options, and a sentence for each contradiction, and what is not checked."""
    yield f"{run.path}"
    yield f"  {run.summary_name or 'no summary'}, {run.metadata_name or 'no metadata'}"
    if run.summary.get("note"):
        yield from _wrapped(f"note: {run.summary['note']}")
    yield ""
    yield _row(*_HEAD)
    for name in run.option_names:
        figures = figures_of(run, name)
        stated = figures.stated
        latency = stated["aggregated_p95_latency_ms"]
        if latency is None:
            latency = stated["aggregated_device_read_p95_ms"]
        expected = figures.expected_rank_files
        yield _row(
            name,
            _figure(stated["aggregated_read_bandwidth_gbps"]),
            _figure(stated["aggregated_write_bandwidth_gbps"]),
            _figure(stated["aggregated_storage_throughput_tokens_per_sec"]),
            _figure(figures.tokens_per_s_by_read_bytes),
            _figure(None if latency is None else latency / 1000),
            f"{figures.rank_files} of {'—' if expected is None else expected}",
        )
    yield ""
    unchecked = [f"option {n}: {text}" for n in run.option_names for text in unchecked_of(run, n)]
    if found:
        yield f"  {format_count(len(found), 'contradiction')}"
    else:
        yield "  no contradictions" + (" in what could be checked" if unchecked else "")
    for each in found:
        yield from _wrapped(f"- {each}")
    if unchecked:
        yield f"  not checked: {len(unchecked)}"
    for text in unchecked:
        yield from _wrapped(f"- {text}")


def _row(*cells: str) -> str:
    name, *others = cells
    return f"  {name:<8}" + "".join(f"{cell:>12}" for cell in others[:-1]) + f"{others[-1]:>9}"


def _figure(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"  # noqa: PLR2004  four digits


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, _COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
