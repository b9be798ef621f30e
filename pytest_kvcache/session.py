"""One pytest session's benchmark: plans on demand, one controller, gates at the end.

The pytest side's only way to the controller; imports neither pytest-benchmark nor MPI.
"""

from __future__ import annotations

import itertools
import os
import platform
import secrets
import socket
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pytest_kvcache.commands import CommandError, run_command
from pytest_kvcache.errors import OptionError
from pytest_kvcache.gates.baseline import Baseline, load_baseline
from pytest_kvcache.gates.compare import Comparison, Found, Judgement, compare, judge, judge_slo
from pytest_kvcache.hosts.localhost import is_local
from pytest_kvcache.launch.runner import Controller, Progress
from pytest_kvcache.launch.usersearch import SearchForUsers
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.asked import Asked
from pytest_kvcache.options.closed import CLOSED_PAUSE_S
from pytest_kvcache.options.options import DEFAULT_TRIALS
from pytest_kvcache.options.rules import CLOSING, FailRule, SloRule, check_rule
from pytest_kvcache.plan.backendrules import secrets_of
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.plan.planner import Case, CaseName, Planner, name_cases
from pytest_kvcache.plan.possible import possible
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.dryrun import DryRun, describe_dry_run
from pytest_kvcache.report.service import short_classes
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.provenance import (
    UNKNOWN,
    PlannedRank,
    Provenance,
    describe_differences,
    differences,
    facts_of,
    incomparable,
)
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.units import format_count
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.summary import MetricSeries


_LEAST_TRIALS = 2  # of either side of a gate: one value has no noise
_AROUND_A_LAUNCH_S = 60.0  # hosts are asked, what a launch left is cleared away


# What the launcher must not hand on: pytest's own command line, which may hold secrets.
_PYTESTS_OWN = frozenset({"PYTEST_ADDOPTS"})


class BenchmarkSession:
    """Lazy: a session that never asks for a case creates and touches nothing."""

    def __init__(
        self,
        options: Options,
        *,
        command: Sequence[str],
        progress: Progress,
        modify_plan: Callable[[Plan], Plan],
        max_trials: int | None,
    ) -> None:
        self.options = options
        self.registry = build_registry(options.plugin)
        self.names = name_cases(options, self.registry)
        self.secrets = secrets_of(options, self.registry.backend(options.backend).traits)
        run_id = new_run_id()
        self._planner = Planner(self.registry, run_id)
        self._modify_plan = modify_plan
        self._max_trials = max_trials
        self.refused = False
        """Whether a dry run found hosts that can't run a case."""
        self._cases: dict[tuple[CaseName, int], tuple[Options, Case]] = {}
        self._searches: dict[tuple[CaseName, int], tuple[Options, CaseResult]] = {}
        self.asked = Asked()
        self._baseline = _baseline_of(options)
        self.controller = Controller(
            options=options,
            registry=self.registry,
            run=RunResult(
                run_id=run_id,
                started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                command=tuple(map(self.secrets.mask, command)),
                version=VERSION,
                commit=commit_of(os.getcwd()),  # noqa: PTH109  as git sees it
                environment=environment(),
            ),
            environ={name: v for name, v in os.environ.items() if name not in _PYTESTS_OWN},
            progress=progress,
            max_trials=max_trials,
            gates_can_decide=self._gates_can_decide,
        )

    def plan(self, name: CaseName, options: Options | None = None) -> Case:
        """The planned case; the same object for the same question."""
        options = options or self.options
        key = (name, id(options))  # the options are kept with it, or the id would be used again
        if key not in self._cases:
            self._cases[key] = options, self._planned(options, name)
        return self._cases[key][1]

    def check(self, names: Sequence[CaseName], compared: Sequence[Mapping[str, Any]] = ()) -> None:
        """Plan and check every case, and find its baseline, before anything is launched.

        ``compared`` is what pytest-benchmark compares with.
        """
        if self.options.wait and not self.options.dry_run:
            self.reserve(names)  # what is free is known once a neighbour has gone
        cases = [self.plan(name) for name in names]
        for case in cases:
            self.controller.check(self.options, case.plan)
        if cases:
            self.controller.note_launcher()
        self._check_baseline([case.plan for case in cases])
        self.check_stock([case.plan for case in cases], compared)
        if not self.options.dry_run:
            self.reserve(names)

    def reserve(self, names: Sequence[CaseName]) -> None:
        """Have this host for the run alone, if a case runs here."""
        if any(is_local(host.name) for name in names for host in name.layout.hosts):
            self.controller.take_lock()

    def run(self, name: CaseName, options: Options | None = None) -> CaseResult:
        """All trials of a case, launched at most once."""
        chosen = options or self.options
        if chosen.enable_autoscaling:
            return self._searched(name, chosen)
        case = self.plan(name, options)
        if chosen.closed:
            self._rest(case.plan.case)
        return self.controller.run_case(chosen, case)

    def _searched(self, name: CaseName, options: Options) -> CaseResult:
        """The case with the users that a search finds, and the path to them; launched once."""
        key = (name, id(options))
        if key not in self._searches:
            largest = self.plan(name, options)
            plan = self._planned_and_checked
            search = SearchForUsers(self.controller, plan, options, name, largest)
            self._searches[key] = options, search.run()
        return self._searches[key][1]

    def _planned(self, options: Options, name: CaseName) -> Case:
        survey = self.controller.survey(options, name.layout)
        case = self._planner.plan(options, name, survey)
        return replace(case, plan=self._modify_plan(case.plan))

    def _planned_and_checked(self, options: Options, name: CaseName) -> Case:
        """A load of a search; what it asks for was not known when the session was checked."""
        case = self._planned(options, name)
        self.controller.check(options, case.plan)
        return case

    def _rest(self, case: str) -> None:
        """By closed rules the storage has a rest before the next workload."""
        before = {each.name for each in self.controller.run.cases}
        if before and case not in before:
            time.sleep(CLOSED_PAUSE_S)

    def limit_s(self, name: CaseName) -> float:
        """Longer than all trials of the case can take: each launch has a deadline of its own."""
        deadline_s = self.plan(name).plan.deadline_s
        rest_s = CLOSED_PAUSE_S if self.options.closed else 0.0
        plan = self.plan(name).plan
        launches = plan.most_search_steps + self.options.trials.high * plan.launches_per_trial
        return rest_s + launches * (deadline_s + _AROUND_A_LAUNCH_S)

    def dry_run(self, name: CaseName, *, whole: bool) -> Iterator[str]:
        """What the case would do, its values and the exact launcher command, line by line."""
        case = self.plan(name)
        plan = case.plan
        directory = self.controller.directory / plan.case / "trial-1"
        family = self.registry.workload(plan.scenario, plan.scenarios_of_its_own)
        found = DryRun(
            plan=plan,
            options=self.options,
            forecast=forecast(plan, case.trace, family),
            storage=self._storage(plan, name),
            argv=self.controller.argv(self.options, plan, directory),
        )
        yield from describe_dry_run(found, whole=whole)
        refusal = self.controller.refusal(self.options, plan)
        if refusal is not None:
            self.refused = True
            yield f"  preflight: {refusal}"

    def _storage(self, plan: Plan, name: CaseName) -> list[str]:
        """What is below the cache directory, on which hosts."""
        if not plan.needs_directory:
            what = "stores outside the hosts" if plan.traits.is_storage else "is no storage"
            return [f"the backend {plan.backend} {what}"]
        survey = self.controller.survey(self.options, name.layout)
        if survey is None:
            local = probe_filesystem(plan.cache_dir, socket.gethostname())
            below = local.chain.describe()
            if local.chain.unseen is not None:
                below += f" ({local.chain.unseen})"
            return [_on_what(plan.cache_dir, below, local.memory_at_end)]
        known = {host: facts.filesystem for host, facts in survey.facts.items()}
        return [
            f"{host}: {_on_what(plan.cache_dir, facts['type'], facts['memory_at_end'])}"
            for host, facts in known.items()
            if facts is not None
        ]

    def unsettled(self) -> list[str]:
        """One line on each case whose trials ended before its interval was narrow enough."""
        return [
            f"{case.name}: --kv-target-ci={target * 100:g}% was not reached after"
            f" {format_count(len(case.trials), 'trial')}"
            for case, target in self.controller.unsettled()
        ]

    def namesakes(self) -> list[str]:
        """One line on each name under which cases of different plans ran."""
        lines = []
        cases = {(case.name, case.plan_digest): case for case in self.controller.run.asked}
        for name in dict.fromkeys(name for name, _digest in cases):
            first, *others = (case for (n, _digest), case in cases.items() if n == name)
            texts = {
                str(difference)
                for other in others
                for difference in differences(*map(self.controller.run.provenance, (first, other)))
                if difference.kind == "plan"
            }
            if others:
                lines.append(
                    f"{name} is the name of {1 + len(others)} cases that differ in"
                    f" {'; '.join(sorted(texts))}: give each a name of its own with"
                    " kvcache.run(label=...)"
                )
        return lines

    def judge(self) -> list[Judgement]:
        """Every gate on every case that ran."""
        return [judgement for case in self.controller.run.asked for judgement in self._judge(case)]

    def _judge(self, case: CaseResult) -> Iterator[Judgement]:
        provenance = self.controller.run.provenance(case)
        options = self.options
        for rule in options.fail:
            before = self._found(case.name, case.plan_digest, rule.metric)
            judgement = judge(
                rule,
                before,
                case.series(rule.metric),
                case=case.name,
                provenance=provenance,
                across=options.compare_across,
            )
            yield _explained(judgement, case)
        for slo in options.slo:
            judgement = judge_slo(
                slo,
                case.series(slo.metric),
                case=case.name,
                provenance=provenance,
                allow_invalid=options.allow_invalid,
            )
            yield _explained(judgement, case)

    def missing(self, rule: FailRule | SloRule, case: str, reason: str) -> Judgement:
        """What a gate says of a case that never came to run."""
        return Judgement(rule=rule, case=case, status="missing", reason=reason)

    def _gates_can_decide(self, case: CaseResult) -> bool:
        """Whether no gate on the case would be helped by more trials."""
        return not any(judgement.needs_trials for judgement in self._judge(case))

    def compared(self) -> list[Comparison]:
        """How every case stands against the baseline, where no gate says what to look at."""
        if self._baseline is None or self.options.fail:
            return []
        return [
            compare(
                metric,
                self._found(case.name, case.plan_digest, metric),
                case.series(metric),
                case=case.name,
                provenance=self.controller.run.provenance(case),
            )
            for case in self.controller.run.asked
            for metric in possible(self.options.metrics, case.plan)
        ]

    def differing(self) -> dict[str, list[str]]:
        """What differs from the baseline, by case."""
        found: dict[str, list[str]] = {}
        for case, before in self._baselines():
            lines = list(
                describe_differences(before.provenance, self.controller.run.provenance(case))
            )
            if before.other_plan and before.provenance.facts is None:
                lines.append("plan: the baseline does not tell in what (plan_digest)")
            if lines:
                found.setdefault(case.name, []).extend(lines)
        return {case: list(dict.fromkeys(lines)) for case, lines in found.items()}

    def unknown(self) -> tuple[str, ...]:
        """Cases of which the baseline does not tell what stands behind its values."""
        return tuple(
            dict.fromkeys(c.name for c, found in self._baselines() if not found.provenance.is_known)
        )

    @property
    def baseline_session(self) -> str:
        """When the session of the baseline began; empty without one."""
        if self._baseline is None:
            return ""
        return self._baseline.recorded_at or "at an unknown time"

    def stock_refusal(
        self, compared: Sequence[Mapping[str, Any]], name: str, now: Provenance
    ) -> str | None:
        """Why pytest-benchmark must not compare an entry with what it has under that name."""
        for before in _stock_provenance(compared, name):
            obstacle = incomparable(before, now, CLOSING)
            if obstacle is not None:
                return f"--benchmark-compare has {name}, but {obstacle}"
        return None

    def stock_differences(self, compared: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """What differs from what pytest-benchmark compares with, by case."""
        found: dict[str, list[str]] = {}
        for case in self.controller.run.asked:
            now = self.controller.run.provenance(case)
            for metric in self.options.metrics:
                for before in _stock_provenance(compared, f"{case.name}-{metric}"):
                    found.setdefault(case.name, []).extend(describe_differences(before, now))
        return {case: list(dict.fromkeys(lines)) for case, lines in found.items() if lines}

    def _baselines(self) -> Iterator[tuple[CaseResult, Found]]:
        """Each case with what it is compared with, metric by metric."""
        if self._baseline is None:
            return
        metrics = [rule.metric for rule in self.options.fail] or self.options.metrics
        for case, metric in itertools.product(self.controller.run.asked, metrics):
            found = self._found(case.name, case.plan_digest, metric)
            if found.series is not None:
                yield case, found

    def _found(self, case: str, plan_digest: str, metric: str) -> Found:
        if self._baseline is None:
            return Found()
        return self._baseline.find(case, metric, plan_digest)

    def _check_baseline(self, plans: Sequence[Plan]) -> None:
        """Refuse gates that could only close, whatever the run finds."""
        for plan, rule in itertools.product(plans, self.options.fail):
            found = self._found(plan.case, plan.workload_digest, rule.metric)
            if found.series is None:
                raise OptionError(
                    f"--kv-compare={self.options.compare} has no {rule.metric} of {plan.case} for"
                    f" its gate: {found.reason}, or drop the --kv-fail"
                )
            expected = _expected_provenance(plan, found.provenance)
            obstacle = incomparable(found.provenance, expected, self.options.compare_across)
            if obstacle is not None:
                raise OptionError(
                    f"--kv-compare={self.options.compare} can't be the baseline of a gate on"
                    f" {plan.case}: {obstacle}"
                )
            self._check_trials(rule, plan.case, len(found.series.values))

    def _check_trials(self, rule: FailRule, case: str, before: int) -> None:
        """Refuse a gate that could never tell a change from noise."""
        now = self.options.trials.high
        if self._max_trials is not None:
            now = min(now, self._max_trials)
        if min(before, now) >= _LEAST_TRIALS or self.options.allow_inconclusive:
            return
        fixes = []
        if before < _LEAST_TRIALS:
            fixes.append(
                f"record the baseline anew with --kv-trials={max(now, DEFAULT_TRIALS.low)}"
            )
        if now < self.options.trials.high:
            fixes.append("leave out --benchmark-disable, which makes a single trial of all")
        elif now < _LEAST_TRIALS:
            fixes.append(f"raise --kv-trials (to {max(before, DEFAULT_TRIALS.low)}, say)")
        raise OptionError(
            f"--kv-fail is {rule}, which could never be decided: of {case} the baseline"
            f" (--kv-compare={self.options.compare}) has {format_count(before, 'trial')} and"
            f" this run {format_count(now, 'trial')}, and noise needs at least {_LEAST_TRIALS} on"
            " either side;"
            f" {' and '.join(fixes)}, or let a gate that can't tell pass (--kv-allow-inconclusive)"
        )

    def check_stock(self, plans: Sequence[Plan], compared: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what pytest-benchmark must not compare, as far as it is known before."""
        for plan, metric in itertools.product(plans, self.options.metrics):
            expected = _expected_provenance(plan, UNKNOWN)
            refusal = self.stock_refusal(compared, f"{plan.case}-{metric}", expected)
            if refusal is not None:
                raise OptionError(refusal)


def _explained(judgement: Judgement, case: CaseResult) -> Judgement:
    """The judgement with the reason why a case has no value, or which class of service it is of."""
    short = short_classes(judgement.rule, case)
    if short and judgement.status in ("worse", "inconclusive"):
        return replace(judgement, reason=f"{judgement.reason}; {short}")
    if judgement.status != "missing" or judgement.now is not None:
        return judgement
    if case.error is not None:
        return replace(judgement, reason=f"the case failed: {case.error.splitlines()[0]}")
    return replace(judgement, reason=why_absent(case, judgement.rule.metric))


def _stock_provenance(compared: Sequence[Mapping[str, Any]], name: str) -> Iterator[Provenance]:
    """What stands behind the entries of that name that pytest-benchmark has loaded."""
    for data in compared:
        for benchmark in data.get("benchmarks", ()):
            if benchmark.get("fullname") == name and "plan_digest" in benchmark["extra_info"]:
                yield Provenance.from_json(benchmark["extra_info"])


def _expected_provenance(plan: Plan, before: Provenance) -> Provenance:
    """What will stand behind a case's values, as far as its plan tells.

    How files can really be opened and synced is found out by the ranks.
    """
    found = {} if before.facts is None else before.facts["plan"]
    opened = {name: found[name] for name in ("io", "sync") if name in found}
    counts = sorted(host.ranks for host in plan.layout.hosts if host.ranks)
    ranks = [
        PlannedRank(host=str(number), rank=rank)
        for number, count in enumerate(counts)
        for rank in range(count)
    ]
    facts = facts_of({**plan.workload, **opened}, {}, ranks)
    return Provenance(is_storage=plan.traits.is_storage, facts=facts)


def _on_what(cache_dir: str, below: str, memory: str | None) -> str:
    """Whether blocks reach a disk, in words."""
    if memory is not None:
        return f"{cache_dir} is in memory ({memory}): a trial there is invalid (TMPFS)"
    return f"{cache_dir} is on {below}, not in memory"


def _baseline_of(options: Options) -> Baseline | None:
    """The baseline, read and fit to be compared with; OptionError says what it lacks."""
    if options.compare is None:
        return None
    for rule in options.fail:
        check_rule(rule, METRICS[rule.metric].better)
    baseline = load_baseline(options.compare)
    compared = {*options.metrics, *(rule.metric for rule in options.fail)}
    for series in baseline.all_series():
        if series.name in compared:
            _check_unit(options, series)
    return baseline


def _check_unit(options: Options, series: MetricSeries) -> None:
    metric = METRICS[series.name]
    if (series.unit, series.better) != (metric.unit, metric.better):
        raise OptionError(
            f"--kv-compare={options.compare} has {series.name} in {series.unit!r},"
            f" {series.better} better; it must be in {metric.unit!r}, {metric.better} better,"
            " record it anew"
        )


def new_run_id() -> str:
    """Sortable by time, unique without a clock."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def commit_of(directory: str) -> str | None:
    """The commit checked out in ``directory``, with ``-dirty`` for changes; None: no git."""
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = run_command(["git", "-C", directory, *describe], timeout_s=10)
    except CommandError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """What produced the numbers, as far as this process knows it."""
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "hosts": [socket.gethostname()],
        "mpi": None,
        "launcher": None,
    }
