"""One pytest session's benchmark: plans on demand, one controller, gates at the end.

The pytest side's only way to the controller; imports neither pytest-benchmark nor MPI.
"""

from __future__ import annotations

import itertools
import os
import platform
import secrets
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pytest_kvcache.asked import Asked
from pytest_kvcache.baseline import Baseline, Found, load_baseline
from pytest_kvcache.compare import (
    Comparison,
    Judgement,
    check_rule,
    compare,
    judge,
    judge_slo,
)
from pytest_kvcache.controller import Controller, Progress
from pytest_kvcache.dryrun import DryRun, describe_dry_run
from pytest_kvcache.errors import OptionError
from pytest_kvcache.evidence import evidence_of
from pytest_kvcache.forecast import forecast
from pytest_kvcache.localhost import is_local
from pytest_kvcache.metrics import METRICS, possible
from pytest_kvcache.planning import Case, CaseName, Planner, name_cases
from pytest_kvcache.proof import probe_filesystem
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results import RunResult
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.options import Options
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.results import CaseResult
    from pytest_kvcache.summary import MetricSeries


_AROUND_A_LAUNCH_S = 60.0  # hosts are asked, what a launch left is cleared away


class Bench:
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
        run_id = new_run_id()
        self._planner = Planner(self.registry, run_id)
        self._modify_plan = modify_plan
        self.refused = False
        """Whether a dry run found hosts that can't run a case."""
        self._cases: dict[tuple[CaseName, int], tuple[Options, Case]] = {}
        self.asked = Asked()
        self._baseline = _baseline_of(options)
        self.controller = Controller(
            options=options,
            registry=self.registry,
            run=RunResult(
                run_id=run_id,
                started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                command=tuple(command),
                version=VERSION,
                commit=commit_of(os.getcwd()),  # noqa: PTH109  as git sees it
                environment=environment(),
            ),
            environ=dict(os.environ),
            progress=progress,
            max_trials=max_trials,
        )

    def plan(self, name: CaseName, options: Options | None = None) -> Case:
        """The planned case; the same object for the same question."""
        options = options or self.options
        key = (name, id(options))  # the options are kept with it, or the id would be used again
        if key not in self._cases:
            survey = self.controller.survey(options, name.layout)
            case = self._planner.plan(options, name, survey)
            self._cases[key] = options, replace(case, plan=self._modify_plan(case.plan))
        return self._cases[key][1]

    def check(self, names: Sequence[CaseName]) -> None:
        """Plan and check every case, and find its baseline, before anything is launched."""
        if self.options.wait and not self.options.dry_run:
            self.reserve(names)  # what is free is known once a neighbour has gone
        cases = [self.plan(name) for name in names]
        for case in cases:
            self.controller.check(self.options, case.plan)
        if cases:
            self.controller.note_launcher()
        self._check_baseline([case.plan for case in cases])
        if not self.options.dry_run:
            self.reserve(names)

    def reserve(self, names: Sequence[CaseName]) -> None:
        """Have this host for the run alone, if a case runs here."""
        if any(is_local(host.name) for name in names for host in name.layout.hosts):
            self.controller.take_lock()

    def run(self, name: CaseName, options: Options | None = None) -> CaseResult:
        """All trials of a case, launched at most once."""
        chosen = options or self.options
        return self.controller.run_case(chosen, self.plan(name, options))

    def limit_s(self, name: CaseName) -> float:
        """Longer than all trials of the case can take: each launch has a deadline of its own."""
        deadline_s = self.plan(name).plan.deadline_s
        return self.options.trials.high * (deadline_s + _AROUND_A_LAUNCH_S)

    def dry_run(self, name: CaseName, *, whole: bool) -> Iterator[str]:
        """What the case would do, its values and the exact launcher command, line by line."""
        case = self.plan(name)
        plan = case.plan
        directory = self.controller.directory / plan.case / "trial-1"
        found = DryRun(
            plan=plan,
            options=self.options,
            forecast=forecast(plan, case.trace, self.registry.workload(plan.scenario)),
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
            return [f"the backend {plan.backend} is no storage"]
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
            f" {len(case.trials)} trial{'s' * (len(case.trials) > 1)}"
            for case, target in self.controller.unsettled()
        ]

    def judge(self) -> list[Judgement]:
        """Every gate on every case that ran."""
        found: list[Judgement] = []
        for case in self.controller.run.cases:
            evidence = evidence_of(trial.to_json() for trial in case.trials)
            for rule in self.options.fail:
                before = self._found(case.name, case.plan_digest, rule.metric)
                now = case.series(rule.metric)
                found.append(judge(rule, before, now, case=case.name, evidence=evidence))
            found.extend(
                judge_slo(slo, case.series(slo.metric), case=case.name) for slo in self.options.slo
            )
        return found

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
                evidence=evidence_of(trial.to_json() for trial in case.trials),
            )
            for case in self.controller.run.cases
            for metric in possible(self.options.metrics, case.plan.phase)
        ]

    def differing(self) -> tuple[str, ...]:
        """Cases whose plan differs from the baseline's."""
        if self._baseline is None:
            return ()
        cases = self.controller.run.cases
        differing = [c.name for c in cases if self._baseline.differs(c.name, c.plan_digest)]
        return tuple(dict.fromkeys(differing))

    def untold(self) -> tuple[str, ...]:
        """Cases of which the baseline does not tell what stands behind its values."""
        if self._baseline is None:
            return ()
        metrics = [rule.metric for rule in self.options.fail] or self.options.metrics
        asked = itertools.product(self.controller.run.cases, metrics)
        found = [
            (case.name, self._found(case.name, case.plan_digest, metric)) for case, metric in asked
        ]
        return tuple(dict.fromkeys(c for c, f in found if f.series and not f.evidence.is_told))

    def _found(self, case: str, plan_digest: str, metric: str) -> Found:
        if self._baseline is None:
            return Found()
        return self._baseline.find(case, metric, plan_digest)

    def _check_baseline(self, plans: Sequence[Plan]) -> None:
        for plan, rule in itertools.product(plans, self.options.fail):
            found = self._found(plan.case, plan.workload_digest, rule.metric)
            if found.series is None:
                raise OptionError(
                    f"--kv-compare={self.options.compare} has no {rule.metric} of {plan.case} for"
                    f" its gate ({found.reason}), or drop the --kv-fail"
                )


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
    command = [
        "git",
        "-C",
        directory,
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
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
