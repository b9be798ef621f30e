"""Progress of a run on the terminal: one line rewritten on a tty, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from pytest_kvcache.fixture import OPTIONS_KEY, verbosity_of
from pytest_kvcache.launch.runner import Progress
from pytest_kvcache.report.progress import MARK, MOST_COLUMNS, Outlook, progress_line
from pytest_kvcache.report.tables import describe_survey
from pytest_kvcache.report.text import wrapped
from pytest_kvcache.showable import encoding_of, showable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import pytest

    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult

_LOG_INTERVAL_S = 15.0
_DUMB = frozenset({"", "dumb", "unknown"})  # terminals that can't rewrite a line
_SILENT = -2  # verbosity of -qq


class TerminalProgress(Progress):
    """Writes past pytest's capture, without ``-s``."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._case: CaseResult | None = None
        self._outlook: Outlook | None = None
        self._wrote_s = 0.0
        self._shown = ""
        self._in_log = False
        self._told_of_waiting = False

    def surveyed(self, survey: Survey) -> None:
        """Show what the hosts are, and what is wrong with them."""
        if verbosity_of(self._config) >= 0 or survey.problems:
            self._reporter_write("\n" + "\n".join(describe_survey(survey)) + "\n")

    def trial_started(self, case: CaseResult, trial: int, trials: int) -> None:
        """A launch begins."""
        if self._outlook is None or trial == 0:
            at_most = self._config.stash[OPTIONS_KEY].target_ci is not None
            self._outlook = Outlook(case.plan, trials, at_most=at_most)
        self._outlook.start(trial, time.monotonic())
        self._case = case
        self._write(f"{MARK}{case.name} {self._outlook.trial} starting")

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what the coordinator says."""
        outlook = self._outlook
        if outlook is None or event["event"] not in ("progress", "phase"):
            return
        if event["event"] == "phase":
            outlook.enter(event["phase"], event["t_s"])
        now_s = time.monotonic()
        if self._rewrites:
            self._write(progress_line(outlook, event, now_s=now_s, width=self._width))
        elif _is_due(event, now_s - self._wrote_s):
            averaged = event["phase"] == "window"
            line = progress_line(outlook, event, now_s=now_s, width=self._width, averaged=averaged)
            self._write(line)

    def waiting(self, problem: str, waited_s: float, limit_s: float) -> None:
        """Show for whom, and how much patience there is."""
        if not self._told_of_waiting:
            self._told_of_waiting = True
            self.noted(f"{problem}: waiting for its end")
            self._wrote_s = 0.0
        if self._rewrites or time.monotonic() - self._wrote_s >= _LOG_INTERVAL_S:
            self._write(f"{MARK}waiting, {waited_s:.0f} of at most {limit_s:g} s")

    def waited(self) -> None:
        """The host is ours, or not to be had."""
        self._told_of_waiting = False
        self._wipe()
        self._wrote_s = 0.0

    def noted(self, text: str) -> None:
        """Show a note whole."""
        self._reporter_write("\n" + "\n".join(wrapped(MARK + text, indent="    ")) + "\n")

    def side_finished(self) -> None:
        """A launch of two is over; what it was is told with the other one."""
        if self._outlook is not None:
            self._outlook.end(time.monotonic())
        self._wipe()

    def trial_finished(self, case: CaseResult, trial: TrialResult) -> None:
        """A launch is over; report that to the plugins."""
        if self._outlook is not None:
            self._outlook.end(time.monotonic())
        self._wipe()
        self._config.hook.pytest_kvcache_trial_finished(config=self._config, case=case, trial=trial)

    def _write(self, line: str) -> None:
        self._wrote_s = time.monotonic()
        line = line[: self._width - 1]
        verbosity = verbosity_of(self._config)
        if self._rewrites and verbosity > _SILENT:
            self._reporter_write(f"\r{line.ljust(len(self._shown))}")
            self._shown = line
        elif verbosity >= 0 and not self._rewrites:
            self._reporter_write(f"\n{line}")
            self._in_log = True

    def _wipe(self) -> None:
        """What follows begins on a line of its own."""
        if self._shown:
            self._reporter_write(f"\r{' ' * len(self._shown)}\r")
        if self._in_log:
            self._reporter_write("\n")
        self._shown, self._in_log = "", False

    @property
    def _rewrites(self) -> bool:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        is_tty = reporter is not None and bool(reporter.isatty)
        return is_tty and os.environ.get("TERM", "") not in _DUMB

    @property
    def _width(self) -> int:
        with self._uncaptured():  # or it would be the width of a file
            return min(MOST_COLUMNS, _columns())

    def _reporter_write(self, whole: str) -> None:
        text = showable(whole, encoding_of(sys.__stdout__))
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            with self._uncaptured():
                reporter.write(text, flush=True)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            return nullcontext()
        disabled: AbstractContextManager[None] = capture.global_and_fixture_disabled()
        return disabled


def _columns() -> int:
    """The terminal's own answer comes first: readline puts what it finds into COLUMNS."""
    with suppress(OSError):
        columns = os.get_terminal_size(1).columns
        if columns:
            return columns
    return shutil.get_terminal_size().columns


def _is_due(event: Mapping[str, Any], since_s: float) -> bool:
    """Whether a log gets a line: of a window where an interval has been averaged, else by time."""
    if event["event"] == "progress" and event["phase"] == "window":
        return event["interval"] is not None
    return since_s >= _LOG_INTERVAL_S
