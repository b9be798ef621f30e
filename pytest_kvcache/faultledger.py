"""Which report gave a case's fault: whole once, and referred to by the other metrics.

Only a report that pytest has shown as a failure counts as given: that of a test which is
run again, or was expected to fail, shows nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_kvcache.results.case import CaseResult

Fault = tuple[str, str]  # digest of the plan, error
_CODE = re.compile(r"[A-Z][A-Z_]+(?=: )")
_PYTESTS_HEAD = "Failed: "  # of what pytest.fail() raises


class FaultLedger:
    """A plugin of its own: hooks that report have no config to keep it in."""

    def __init__(self) -> None:
        self._raised: dict[str, Fault] = {}
        self._reported: dict[Fault, str] = {}

    def text(self, result: CaseResult, nodeid: str) -> str:
        """What the test has to say of a case that failed."""
        assert result.error is not None
        fault = (result.plan.digest, result.error)
        reporter = self._reported.get(fault, nodeid)
        self._raised[nodeid] = fault
        code = _CODE.match(result.error)
        if reporter != nodeid:
            head = code[0] if code else "failed"
            return f"{head}: see {reporter.rpartition('::')[2]}, which tells it whole"
        trial = next(trial for trial in result.trials if trial.error is not None)
        return f"{result.error}\n({result.name}, trial {trial.index + 1})"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure that is logged is a failure that is shown."""
        if report.outcome == "passed":
            return
        fault = self._raised.pop(report.nodeid, None)
        if fault is not None and report.outcome == "failed":
            self._reported.setdefault(fault, report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """What is said in one line begins with what is wrong, not with how pytest was told."""
        report = yield
        if report.failed and "kvcache" in getattr(item, "fixturenames", ()):
            crash = getattr(report.longrepr, "reprcrash", None)
            if crash is not None:
                crash.message = crash.message.removeprefix(_PYTESTS_HEAD)
        return report
