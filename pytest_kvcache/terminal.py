"""Progress of a run on the terminal: one line rewritten on a tty, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_kvcache.controller import Progress
from pytest_kvcache.report import WIDTH, describe_progress, describe_survey, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from pytest_kvcache.cluster import Survey
    from pytest_kvcache.results import CaseResult, TrialResult

_LOG_INTERVAL_S = 15.0


class TerminalProgress(Progress):
    """Writes past pytest's capture, without ``-s``."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._trials = 0
        self._case: CaseResult | None = None
        self._trial = 0
        self._wrote_s = 0.0
        self._line_open = False

    def surveyed(self, survey: Survey) -> None:
        """Show what the hosts are, and what is wrong with them."""
        self._reporter_write("\n" + "\n".join(describe_survey(survey)) + "\n")

    def trial_started(self, case: CaseResult, trial: int, trials: int) -> None:
        """A launch begins."""
        self._case, self._trial, self._trials = case, trial, trials
        self._wrote_s = 0.0
        self._write(f"{case.name} trial {trial + 1}/{self._trials} starting")

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what the coordinator says."""
        if self._case is None or event["event"] not in ("progress", "phase"):
            return
        self._write(describe_progress(self._case, self._trial, self._trials, event))

    def waiting(self, problem: str, waited_s: float, limit_s: float) -> None:
        """Show for whom, and how much patience there is."""
        if not self._line_open:
            self.noted(f"{problem}: waiting for its end")
        self._write(f"waiting, {waited_s:.0f} of at most {limit_s:.0f} s")

    def waited(self) -> None:
        """The host is ours, or not to be had."""
        self._end_line()
        self._wrote_s = 0.0

    def noted(self, text: str) -> None:
        """Show it whole."""
        self._reporter_write("\n" + "\n".join(wrapped(f"[kv] {text}", indent="    ")) + "\n")

    def trial_finished(self, case: CaseResult, trial: TrialResult) -> None:
        """A launch is over; tell the plugins."""
        self._end_line()
        self._config.hook.pytest_kvcache_trial_finished(config=self._config, case=case, trial=trial)

    def _end_line(self) -> None:
        if self._line_open:
            self._reporter_write("\r\x1b[K" if self._is_tty else "\n")
            self._line_open = False

    def _write(self, text: str) -> None:
        line = f"[kv] {text}"[: WIDTH - 1]
        if self._is_tty:
            self._reporter_write(f"\r\x1b[K{line}")
        elif time.monotonic() - self._wrote_s >= _LOG_INTERVAL_S:
            self._wrote_s = time.monotonic()
            self._reporter_write(f"\n{line}")
        self._line_open = True

    @property
    def _is_tty(self) -> bool:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        return reporter is not None and bool(reporter.isatty)

    def _reporter_write(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if reporter is None:
            return
        if capture is None:
            reporter.write(text, flush=True)
            return
        with capture.global_and_fixture_disabled():
            reporter.write(text, flush=True)
