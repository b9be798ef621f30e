"""The end of a session: the report, in the place where it is seen, whatever others do.

The report comes before the summaries of other plugins, which may raise. Where pytest
shows no summary, or another plugin's end of the session has failed, what must not be
lost is said on stderr.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.fixture import (
    BENCHMARK_SESSION_KEY,
    OPTIONS_KEY,
    SELECTED_KEY,
    STOCK_GATE_KEY,
    compared_by_benchmark,
    is_xdist_worker,
    verbosity_of,
)
from pytest_kvcache.gates.table import gate_table, stock_table, verdict_line
from pytest_kvcache.options.asked import nothing_selected
from pytest_kvcache.showable import COLUMNS, encoding_of, showable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_kvcache.session import BenchmarkSession

_REPORTED_KEY: pytest.StashKey[bool] = pytest.StashKey()
_QUIET, _SILENT = -1, -2  # verbosity: -q and -qq


def write_report(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the report where pytest's summary goes."""
    config.stash[_REPORTED_KEY] = True
    session = _session_with_results(config)
    if session is None:
        for text in advice(config):
            for line in _fitted(f"kvcache: {text}"):
                reporter.write_line(showable(line, encoding_of(sys.__stdout__)), yellow=True)
        return
    if verbosity_of(config) >= 0:
        reporter.section("kvcache", sep="-")
    for text in report_lines(session, config):
        for line in text.splitlines() or [""]:  # pytest escapes a whole text for one sign
            reporter.write_line(showable(line, encoding_of(sys.__stdout__)))


def write_the_rest(config: pytest.Config) -> None:
    """Report what nobody has yet: on stderr, in a line each."""
    if config.stash.get(_REPORTED_KEY, False) or is_xdist_worker(config):
        return
    config.stash[_REPORTED_KEY] = True
    session = _session_with_results(config)
    lines = (
        advice(config)
        if session is None
        else [*_brief(session, absent=True), *_last(session, config)]
    )
    for line in lines:
        sys.stderr.write(showable(f"kvcache: {line}\n", encoding_of(sys.stderr)))


def report_lines(session: BenchmarkSession, config: pytest.Config) -> Iterator[str]:
    """Everything; with -q a line per case, with -qq only what is needed to find the rest."""
    verbosity = verbosity_of(config)
    if verbosity >= 0:
        yield from _whole(session, config)
        yield ""
    elif verbosity == _QUIET:
        for text in _brief(session):
            yield from _fitted(text)
    yield from _last(session, config, gates=verbosity < 0 or config.option.no_summary)
    for text in advice(config):
        yield from _fitted(f"kvcache: {text}")


def _whole(session: BenchmarkSession, config: pytest.Config) -> Iterator[str]:
    from pytest_kvcache.report.scaling import report_scaling  # noqa: PLC0415  see plugin.py
    from pytest_kvcache.report.tables import report_run  # noqa: PLC0415

    yield report_run(session.controller.run, session.options.metrics)
    scaling = report_scaling(session.controller.run.asked, session.options.metrics)
    yield from ["", scaling] if scaling else []
    yield from session.unsettled()
    for text in session.namesakes():
        yield from _fitted(text)
    table = gate_table(
        [*session.compared(), *session.judge()],
        differences=session.differing(),
        unknown=session.unknown(),
        session=session.baseline_session,
    )
    stock = stock_table(session.stock_differences(compared_by_benchmark(config)))
    for text in filter(None, (table, stock)):
        yield ""
        yield text


def _fitted(text: str) -> list[str]:
    """A text in lines that fit the terminal; a path or an option stays whole."""
    return textwrap.wrap(
        text, COLUMNS - 1, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _brief(session: BenchmarkSession, *, absent: bool = False) -> Iterator[str]:
    """A line per case; with ``absent`` also why it lacks a metric, where no item says so."""
    from pytest_kvcache.report.brief import absent_values, brief_case  # noqa: PLC0415  see plugin.py

    for case in session.controller.run.shown:
        yield brief_case(case, session.options.metrics)
        if absent:
            yield from absent_values(case, session.options.metrics)


def _last(session: BenchmarkSession, config: pytest.Config, *, gates: bool = True) -> Iterator[str]:
    """Closed gates, and where the rest is: the data that is kept, and the run file."""
    from pytest_kvcache.report.brief import kept_data  # noqa: PLC0415  see plugin.py

    if gates:
        for judgement in session.judge():
            if judgement.closes(allow_inconclusive=session.options.allow_inconclusive):
                yield f"gate closed: {judgement.case}: {verdict_line(judgement)}"
        stock = config.stash.get(STOCK_GATE_KEY, None)
        for line in stock.broken() if stock is not None else ():
            yield f"gate closed: --benchmark-compare-fail: {line}"
    kept = kept_data(session.controller.run.cases)
    if kept is not None:
        yield kept
    yield f"run file: {_shown(session.controller.run_file, config)}"


def advice(config: pytest.Config) -> list[str]:
    """What was asked for and came to nothing."""
    options = config.stash.get(OPTIONS_KEY, None)
    selected = config.stash.get(SELECTED_KEY, None)
    if options is None or selected is None or not selected.is_known:
        return []
    if selected.benchmarks:
        session = config.stash.get(BENCHMARK_SESSION_KEY, None)
        return session.asked.ignored(options) if session is not None else []
    session = config.stash.get(BENCHMARK_SESSION_KEY, None)
    mask = str if session is None else session.secrets.mask
    found = nothing_selected(
        options,
        [mask(str(word)) for word in config.invocation_params.args],
        tests=selected.others,
        deselected=selected.deselected,
    )
    return [found] if found else []


def _session_with_results(config: pytest.Config) -> BenchmarkSession | None:
    session = config.stash.get(BENCHMARK_SESSION_KEY, None)
    return session if session is not None and session.controller.run.cases else None


def _shown(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
