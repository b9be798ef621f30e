"""Gates as pytest items: one per rule, at the very end, red where it is closed.

A gate that only changed the exit code would be green wherever people look: in the counts,
in the short summary, in JUnit. So each rule is an item that judges what ran. The items
join after everything that selects and orders tests, so that neither ``-k`` nor ``--lf``
nor a random order can lose or move them, and run by a protocol of their own, so that no
plugin skips them (``--benchmark-only``) or runs them again until they pass.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_kvcache.fixture import (
    BENCHMARK_SESSION_KEY,
    COMPARED_KEY,
    OPTIONS_KEY,
    STOCK_GATE_KEY,
    compared_by_benchmark,
    is_xdist_worker,
)
from pytest_kvcache.gates.table import verdict_line
from pytest_kvcache.options.rules import FailRule
from pytest_kvcache.otherplugins import StockGate
from pytest_kvcache.showable import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.gates.compare import Judgement
    from pytest_kvcache.options.rules import SloRule
    from pytest_kvcache.plan.planner import CaseName

_RAN_KEY: pytest.StashKey[bool] = pytest.StashKey()
_NEVER_RAN = "it did not come to run; see what failed above"
_NOTHING_SELECTED = (
    "no benchmark was selected that it could judge; select one (--pyargs pytest_kvcache.suite is"
    " the shipped one), or leave the gate out"
)


def _verdicts(judgements: Sequence[Judgement]) -> list[str]:
    """Metric, value and limit; of several cases each with its name."""
    if len(judgements) == 1:
        return [verdict_line(judgements[0])]
    return [f"{judgement.case}: {verdict_line(judgement)}" for judgement in judgements]


def _in_one_line(judgements: Sequence[Judgement]) -> str:
    return "; ".join(_verdicts(judgements))


class ClosedGateError(Exception):
    """A gate that is closed: in one line, and at length with its verdict as the last line."""

    def __init__(self, verdict: str, lines: Sequence[str]) -> None:
        super().__init__(verdict)
        self.lines = tuple(lines)


def _closed_by(judgements: Sequence[Judgement]) -> ClosedGateError:
    """What a gate says about each case that it closed for."""
    lines = []
    for judgement in judgements:
        lines += textwrap.wrap(f"{judgement.case}: {judgement.reason}", COLUMNS - 1)
    return ClosedGateError(_in_one_line(judgements), [*lines, *_verdicts(judgements)])


@dataclass(frozen=True)
class _Crash:
    """What the short summary and JUnit show of a failure, by pytest's names for it."""

    message: str
    path: str
    lineno: int

    def __str__(self) -> str:
        return self.message


class _Verdict:
    """A closed gate as text: why, and in the last line metric, value and limit."""

    def __init__(self, error: ClosedGateError, path: Path) -> None:
        self._lines = error.lines
        self.reprcrash = _Crash(str(error), str(path), 0)

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def toterminal(self, tw: Any) -> None:
        """Write it, as pytest's own representations do."""
        for line in self._lines:
            tw.line(line, red=True)


class GateItem(pytest.Item):
    """A gate of any kind."""

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **kwargs: Any
    ) -> Any:
        """A closed gate's verdict instead of a traceback."""
        if isinstance(excinfo.value, ClosedGateError):
            return _Verdict(excinfo.value, self.path)
        return super().repr_failure(excinfo, *args, **kwargs)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The place of a gate in reports: no file."""
        return self.path, None, self.name


class StockGateItem(GateItem):
    """pytest-benchmark's own gate, on our entries."""

    def runtest(self) -> None:
        """Raise ClosedGateError for every entry that exceeds a limit."""
        stock = self.config.stash[STOCK_GATE_KEY]
        if not stock.judged:
            pytest.skip("no entry was recorded that --benchmark-compare has as well")
        broken = stock.broken()
        if broken:
            raise ClosedGateError("; ".join(broken), broken)


class RuleItem(GateItem):
    """One rule on one case, or on all cases that no other item of the rule judges."""

    def __init__(
        self,
        *,
        rule: FailRule | SloRule,
        case: str | None,
        others: frozenset[str],
        has_none: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rule = rule
        self.case = case
        self.others = others
        """Cases that have an item of their own."""
        self.has_none = has_none
        """Whether none of the session's tests can run a case."""

    def runtest(self) -> None:
        """Judge; raises ClosedGateError for every case that closes the gate."""
        benchmark_session = self.config.stash[BENCHMARK_SESSION_KEY]
        found = [
            judgement
            for judgement in benchmark_session.judge()
            if judgement.rule == self.rule and self._is_asked_about(judgement.case)
        ]
        if self.has_none:
            found = [benchmark_session.missing(self.rule, "no case", _NOTHING_SELECTED)]
        elif not found:
            if self.others or not self.session.stash.get(_RAN_KEY, False):
                pytest.skip("no case ran that it could judge")
            found = [benchmark_session.missing(self.rule, self.case or "any case", _NEVER_RAN)]
        allowed = benchmark_session.options.allow_inconclusive
        closed = [j for j in found if j.closes(allow_inconclusive=allowed)]
        if closed:
            raise _closed_by(closed)

    def _is_asked_about(self, case: str) -> bool:
        return case not in self.others if self.case is None else case == self.case


class Gates:
    """The hooks of gates, of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Append the gates, after all selection and ordering."""
        options = self._config.stash[OPTIONS_KEY]
        rules: list[FailRule | SloRule] = list(dict.fromkeys([*options.fail, *options.slo]))
        idle = self._config.option.collectonly or options.dry_run or is_xdist_worker(self._config)
        if idle or not session.items:
            return
        self._add_stock_gate(session)
        if not rules:
            return
        if not any(map(uses_kvcache, session.items)):
            typed = [rule for rule in rules if self._is_typed(rule)]
            session.items.extend(_gate(session, rule, has_none=True) for rule in typed)
            return
        known, has_others = _cases(session.items)
        if not known:
            known, has_others = [], True
        for rule in rules:
            session.items.extend(_gates(session, rule, known, has_others=has_others))

    def _add_stock_gate(self, session: pytest.Session) -> None:
        limits = self._config.getoption("benchmark_compare_fail", default=None)
        compared = compared_by_benchmark(self._config)
        if not (limits and compared and any(map(uses_kvcache, session.items))):
            return
        self._config.stash[STOCK_GATE_KEY] = StockGate(limits, compared)
        name = "gate[--benchmark-compare-fail]"
        item = StockGateItem.from_parent(session, name=name, nodeid=f"kvcache::{name}")
        session.items.append(item)

    def _is_typed(self, rule: FailRule | SloRule) -> bool:
        """Whether the rule is for this very session, not of a file for all of a project."""
        flag = "--kv-fail" if isinstance(rule, FailRule) else "--kv-slo"
        words = map(str, self._config.invocation_params.args)
        return any(word.partition("=")[0] == flag for word in words)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Run a gate without setup, and without what other plugins do to tests.

        They may expect that their own protocol has been through before, so the reports are
        made here. The last item of a session ends its fixtures.
        """
        if not isinstance(item, GateItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        _report(item, pytest.CallInfo.from_call(item.runtest, when="call"))

        if nextitem is None:
            _report(item, pytest.CallInfo.from_call(lambda: _teardown(item), when="teardown"))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember whether any test that may run a case was more than skipped."""
        report = yield
        if uses_kvcache(item) and (report.failed or (report.when == "call" and report.passed)):
            item.session.stash[_RAN_KEY] = True
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """No green end with a closed gate, whatever became of its item."""
        benchmark_session = session.config.stash.get(BENCHMARK_SESSION_KEY, None)
        if benchmark_session is None or is_xdist_worker(session.config):
            return
        allowed = benchmark_session.options.allow_inconclusive
        closed = any(j.closes(allow_inconclusive=allowed) for j in benchmark_session.judge())
        stock = session.config.stash.get(STOCK_GATE_KEY, None)
        closed = closed or (stock is not None and bool(stock.broken()))
        if closed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_compare_machine_info(
        self, config: pytest.Config, compared_benchmark: Mapping[str, Any]
    ) -> None:
        """Keep what ``--benchmark-compare`` is going to compare with; it comes before any test."""
        config.stash.setdefault(COMPARED_KEY, []).append(compared_benchmark)


def uses_kvcache(item: pytest.Item) -> bool:
    """Whether a test can run a case."""
    return isinstance(item, pytest.Function) and "kvcache" in item.fixturenames


def _cases(items: Sequence[pytest.Item]) -> tuple[list[str], bool]:
    """The names of the cases that are known before anything runs, and if there may be others."""
    known: dict[str, None] = {}
    has_others = False
    for item in items:
        if isinstance(item, pytest.Function) and uses_kvcache(item):
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if "kv_case" in params:
                known[str(cast("CaseName", params["kv_case"]))] = None
            else:
                has_others = True
    return list(known), has_others


def _gates(
    session: pytest.Session, rule: FailRule | SloRule, known: Sequence[str], *, has_others: bool
) -> Iterator[RuleItem]:
    """An item per known case, and one for all others if there may be some."""
    alone = len(known) + has_others == 1
    for case in known:
        yield _gate(session, rule, case=case, which="" if alone else f" of {case}")
    if has_others:
        yield _gate(session, rule, others=frozenset(known))


def _gate(
    session: pytest.Session,
    rule: FailRule | SloRule,
    *,
    case: str | None = None,
    which: str = "",
    others: frozenset[str] = frozenset(),
    has_none: bool = False,
) -> RuleItem:
    name = f"{'gate' if isinstance(rule, FailRule) else 'slo'}[{rule}{which}]"
    item: RuleItem = RuleItem.from_parent(
        session,
        name=name,
        nodeid=f"kvcache::{name}",
        rule=rule,
        case=case,
        others=others,
        has_none=has_none,
    )
    return item


def _teardown(item: GateItem) -> None:
    """End the fixtures of the session, as its last item does; the hook wants a setup before."""
    item.session._setupstate.teardown_exact(None)  # noqa: SLF001


def _report(item: GateItem, call: pytest.CallInfo[None]) -> None:
    report = pytest.TestReport.from_item_and_call(item, call)
    item.ihook.pytest_runtest_logreport(report=report)
