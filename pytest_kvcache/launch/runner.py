"""Runs cases: launches their trials, believes only complete records, keeps the run file.

Controller side; imports neither pytest nor MPI. Every finished trial is written into
the run file at once, so that nothing that follows can lose it.
"""

from __future__ import annotations

import hashlib
import socket
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.atomic import write_json
from pytest_kvcache.errors import KVCacheError, LaunchError, PreflightError, ResultError
from pytest_kvcache.hosts.cluster import Cluster, Survey
from pytest_kvcache.hosts.facts import HostQuestion
from pytest_kvcache.hosts.localhost import is_local, launcher_name
from pytest_kvcache.hosts.lock import DIRECTORY_VARIABLE, HostLock, Patience
from pytest_kvcache.hosts.processes import MARKER_VARIABLE
from pytest_kvcache.launch.containers.execution import ContainerExecution
from pytest_kvcache.launch.execution import SHELL_SCRIPT, BareExecution, facts_of
from pytest_kvcache.launch.iotrace import IoTraceFile, IoTraceFiles
from pytest_kvcache.launch.preflight import (
    check_plan,
    check_results_dir,
    check_shared_memory,
    find_temporary_directory,
    host_problems,
    library_problems,
)
from pytest_kvcache.launch.trial import Launch
from pytest_kvcache.launchers.families import leftovers_of, libraries_of
from pytest_kvcache.launchers.protocol import LaunchJob
from pytest_kvcache.measure.iospool import spool_name
from pytest_kvcache.options.stopping import planned_looks
from pytest_kvcache.plan.interference import is_with_stores_first, without_stores
from pytest_kvcache.plan.possible import possible
from pytest_kvcache.plan.secretfile import take_secrets, write_secrets
from pytest_kvcache.plan.tiers import wants_devices
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult, withholds
from pytest_kvcache.results.pairs import paired
from pytest_kvcache.results.record import SOURCES, ControllerRecord
from pytest_kvcache.results.verdicts.noise import evaluate_case
from pytest_kvcache.results.verdicts.trial import evaluate_trial, idle_error
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_kvcache.hosts.hostlist import RankLayout
    from pytest_kvcache.launch.execution import Execution
    from pytest_kvcache.launch.preflight import LaunchSetup
    from pytest_kvcache.masking import Secrets
    from pytest_kvcache.options.options import Options, Trials
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.planner import Case
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.results.run import RunResult
    from pytest_kvcache.results.usersearch import PathOfSearch

_RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_PYTESTS_EXIT = "Exit"  # what pytest.exit() raises; pytest itself is not known here
_LIBRARY_CHOICE = ("MPI4PY_LIBMPI", "MPI4PY_MPIABI")


class Progress:
    """What the controller tells about a run while it runs; the default is silence."""

    def trial_started(self, case: CaseResult, trial: int, trials: int) -> None:
        """A launch begins, the ``trial``-th (from 0) of at most ``trials``."""

    def event(self, event: Mapping[str, Any]) -> None:
        """The coordinator wrote an event."""

    def waiting(self, problem: str, waited_s: float, limit_s: float) -> None:
        """Another benchmark has a host, and is waited for."""

    def waited(self) -> None:
        """Waiting is over: the other benchmark has ended, or patience has."""

    def noted(self, text: str) -> None:
        """Something was done in another way than usual."""

    def surveyed(self, survey: Survey) -> None:
        """The hosts have been asked what they are."""

    def side_finished(self) -> None:
        """The first of a trial's two launches is over."""

    def trial_finished(self, case: CaseResult, trial: TrialResult) -> None:
        """A trial's launch is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """Everything that decides what is launched and how it is judged: equal ones share a result."""

    identity: str
    trials: Trials
    target_ci: float | None
    allow_invalid: bool
    allow_preload: bool
    mpi_params: tuple[str, ...]
    oversubscribe: bool
    allow_run_as_root: bool
    secrets: Secrets
    io_trace: str | None

    @classmethod
    def of(cls, options: Options, case: Case) -> _Question:
        """What these options ask of this case's plan."""
        return cls(
            identity=case.plan.identity,
            secrets=case.secrets,
            io_trace=options.io_trace,
            trials=options.trials,
            target_ci=options.target_ci,
            allow_invalid=options.allow_invalid,
            allow_preload=options.allow_preload,
            mpi_params=options.mpi_params,
            oversubscribe=options.oversubscribe,
            allow_run_as_root=options.allow_run_as_root,
        )


class Controller:
    """One run: its launches, its lock, its run file."""

    def __init__(
        self,
        *,
        options: Options,
        registry: Registry,
        run: RunResult,
        environ: Mapping[str, str],
        progress: Progress,
        max_trials: int | None = None,
        gates_can_decide: Callable[[CaseResult], bool] = lambda _case: True,
    ) -> None:
        self.run = run
        self._gates_can_decide = gates_can_decide
        self._options = options
        self._registry = registry
        self._environ = environ
        self._progress = progress
        self._max_trials = max_trials
        self._execution = _execution(options, registry, run.run_id, environ)
        self._setup: LaunchSetup | None = None
        self._lock: HostLock | None = None
        self._has_tmpdir = False
        self._patience = Patience(options.wait, progress.waiting)
        self._cluster: Cluster | None = None
        self._surveys: dict[tuple[object, ...], Survey] = {}
        self._done: dict[_Question, CaseResult] = {}
        self._io_traces = IoTraceFiles()

    @property
    def directory(self) -> Path:
        """Where this run's files are."""
        return Path(self._options.results_dir).absolute() / self.run.run_id

    @property
    def run_file(self) -> Path:
        """The run file."""
        return self.directory / "run.json"

    def setup(self) -> LaunchSetup:
        """Launcher and interpreter, found once."""
        if self._setup is None:
            self._setup = self._execution.setup()
        return self._setup

    def note_launcher(self) -> None:
        """Write launcher and MPI library into the run's environment."""
        found = facts_of(self.setup())
        self.run = replace(self.run, environment={**self.run.environment, **found})

    def check(self, options: Options, plan: Plan) -> None:
        """Refuse what this machine can't run, before anything is started."""
        check_results_dir(options.results_dir)
        self._io_traces.claim(options, plan)
        self._find_temporary_directory(options)
        check_plan(options, plan, self.setup(), self._environ)
        self.argv(options, plan, self.directory)  # refuses launcher parameters that contradict it

    def _find_temporary_directory(self, options: Options) -> None:
        """Have the launcher make its files where it can, once; the ranks' image has its own."""
        if self._has_tmpdir or options.exec_type != "mpi":
            return
        self._has_tmpdir = True
        check_shared_memory(self.setup())
        path, said = find_temporary_directory(
            self._environ, options.results_dir, self.setup().family
        )
        if path is not None and said is not None:
            self._environ = {**self._environ, "TMPDIR": str(path)}
            self._progress.noted(said)

    def survey(self, options: Options, layout: RankLayout, *, again: bool = False) -> Survey | None:
        """What the hosts are; None: all are this one.

        Asked once; a while later also if one was lost meanwhile, or with ``again``, for
        what is free changes.
        """
        names = tuple(host.name for host in layout.hosts)
        if not any(map(self._execution.access.is_linked, names)):
            return None
        setup = self.setup()
        if self._cluster is None:
            self._cluster = Cluster(
                self.run.run_id,
                self._execution.access,
                setup.python,
                self._for_agents(),
                self._patience,
                leaves=leftovers_of(self._registry.launchers.values()),
            )
        needs_directory = self._registry.backend(options.backend).traits.directory
        question = HostQuestion(
            cache_dir=options.cache_dir if needs_directory else None,
            programs=() if setup.daemon is None else (setup.daemon,),
            gpus=wants_devices(options),
        )
        key = (names, question, options.keep)
        known = self._surveys.get(key)
        if known is None or (known.is_old() and (again or self._cluster.lost(names))):
            with self._reporting_waits():
                found = self._cluster.survey(names, question, keep=options.keep)
            found = found.with_problems(library_problems(setup.mpi_library, found))
            self._surveys[key] = found
            if known is None or found.problems or known.problems:
                self._progress.surveyed(found)
            self._note_hosts(found)
        return self._surveys[key]

    def refusal(self, options: Options, plan: Plan, *, again: bool = False) -> str | None:
        """Why hosts can't run the plan, a line each; None: nothing stands against it."""
        survey = self.survey(options, plan.layout, again=again)
        if survey is None:
            return None
        lines = [
            f"host {host}: {text}"
            for host, texts in host_problems(options, plan, survey).items()
            for text in texts
        ]
        return "\n  ".join(lines) or None

    def _note_hosts(self, survey: Survey) -> None:
        """Write what the hosts are into the run's environment."""
        known = self.run.environment.get("host_facts", {})
        facts = {host: facts.to_json() for host, facts in survey.facts.items()}
        hosts = dict.fromkeys([*self.run.environment["hosts"], *survey.names])
        found = {"hosts": list(hosts), "host_facts": {**known, **facts}}
        self.run = replace(self.run, environment={**self.run.environment, **found})

    def argv(self, options: Options, plan: Plan, directory: Path) -> list[str]:
        """The exact command of one trial."""
        return self._execution.shown(self._launcher_argv(options, plan, directory), plan, directory)

    def _launcher_argv(self, options: Options, plan: Plan, directory: Path) -> list[str]:
        hosts = tuple((host.name, host.ranks) for host in plan.layout.hosts)
        local = frozenset(name for name, _ranks in hosts if is_local(name))
        setup = self.setup()
        remote = [name for name, _ranks in hosts if name not in local]
        job = LaunchJob(
            hosts=hosts,
            controller_host=socket.gethostname() if remote else launcher_name(hosts[0][0]),
            local_hosts=local,
            program=(
                setup.python, "-m", "mpi4py", "-m", "pytest_kvcache.ranks.worker",
                str(directory), str(plan.world_size),
            ),
            env={
                **_RANK_ENVIRONMENT,
                **self._library_choice(),
                **self._mpi_settings(),
                MARKER_VARIABLE: plan.run_id,
            },
            params=options.mpi_params,
            allow_run_as_root=options.allow_run_as_root or setup.as_root,
            remote_shell=self._execution.remote_shell(remote),
            remote_shell_script=str(directory / SHELL_SCRIPT) if remote else "",
        )  # fmt: skip
        return setup.launcher.argv(job)

    def run_case(
        self, options: Options, case: Case, path: PathOfSearch | None = None
    ) -> CaseResult:
        """All trials of a case, once: asked again, it gives the same result.

        ``path`` is how its users were searched for. An interruption is remembered as the case's
        failure before it goes on.
        """
        question = _Question.of(options, case)
        if question in self._done:
            return self._done[question]
        looks = self._looks(options)
        result = CaseResult(plan=case.plan, looks=looks, metrics=options.metrics, path=path)
        traced = self._io_traces.claim(options, case.plan)
        io_trace = None if traced is None else IoTraceFile(traced, case.plan)
        directory = self._new_directory(case.plan)
        beside = None if case.plan.interference is None else self._without_stores(options, case)
        try:
            trials = looks[-1]
            for index in range(trials):
                self._check_hosts(options, case.plan, again=index == 0)
                if beside is None:
                    self._progress.trial_started(result, index, trials)
                    trial = self._run_trial(options, case, index, directory, io_trace)
                else:
                    ours = _Side(case, directory, result)
                    trial = self._run_pair(options, ours, beside, index, trials)
                result = self._keep(question, result.with_trial(trial))
                self._progress.trial_finished(result, trial)
                if not trial.ok or (index + 1 in looks and self._is_settled(options, result)):
                    break
        except BaseException as error:
            trial = _cut_short(error, len(result.trials), options.trials)
            result = self._keep(question, result.with_trial(trial))
            if not isinstance(error, KVCacheError):
                raise
        finally:
            if io_trace is not None:
                result = self._keep(question, _with_trace(result, io_trace))
        return result

    def _without_stores(self, options: Options, case: Case) -> _Side:
        """The case of the same loads alone; its launches are kept like any other's."""
        plan = without_stores(case.plan)
        result = CaseResult(plan=plan, looks=self._looks(options), metrics=options.metrics)
        return _Side(replace(case, plan=plan), self._new_directory(plan), result)

    def _run_pair(
        self, options: Options, ours: _Side, beside: _Side, index: int, trials: int
    ) -> TrialResult:
        """A trial of two launches, which take turns in being first. One that fails fails both."""
        ended = {}
        sides = [ours, beside] if is_with_stores_first(index) else [beside, ours]
        for number, side in enumerate(sides):
            try:
                self._progress.trial_started(side.result, 2 * index + number, 2 * trials)
                trial = self._run_trial(options, side.case, index, side.directory, None)
            except BaseException as error:
                if side is beside:  # what it left behind lies beside the run file
                    self._keep_beside(options, beside, _cut_short(error, index, options.trials))
                raise
            if side is beside:
                self._keep_beside(options, beside, trial)
            if not trial.ok:
                return trial if side is ours else _failed_beside(trial)
            ended[side.case.plan.interference] = trial
            if not number:
                self._progress.side_finished()
        return paired(ended["with-stores"], ended["without-stores"])

    def _keep_beside(self, options: Options, beside: _Side, trial: TrialResult) -> None:
        question = _Question.of(options, beside.case)
        beside.result = self._keep(question, beside.result.with_trial(trial))

    def fail_case(self, options: Options, case: Case, path: PathOfSearch, error: str) -> CaseResult:
        """A case that is not launched, for the search for its users found none."""
        looks = self._looks(options)
        result = CaseResult(plan=case.plan, looks=looks, metrics=options.metrics, path=path)
        trial = TrialResult(index=0, error=error)
        return self._keep(_Question.of(options, case), result.with_trial(trial))

    def _check_hosts(self, options: Options, plan: Plan, *, again: bool) -> None:
        """Have all hosts for this run alone; PreflightError if one can't be used."""
        if any(is_local(host.name) for host in plan.layout.hosts):
            self.take_lock()
        refusal = self.refusal(options, plan, again=again)
        if refusal is not None:
            first, *others = refusal.splitlines()
            more = f" (and {len(others)} more)" if others else ""
            raise PreflightError("\n".join([f"preflight: {first}{more}", *others]))

    def _new_directory(self, plan: Plan) -> Path:
        """Where this case's trials go; other options may give another case of the same name."""
        names = [
            plan.case,
            *(f"{plan.case}-{number}" for number in range(2, 1 + 2 + len(self._done))),
        ]
        return next(self.directory / name for name in names if not (self.directory / name).exists())

    def unsettled(self) -> list[tuple[CaseResult, float]]:
        """The cases that ended before their interval was narrow enough, and the ratio to reach."""
        return [
            (case, question.target_ci)
            for question, case in self._done.items()
            if question.target_ci is not None
            and case.plan.interference != "without-stores"  # ends with the case it goes with
            and case.error is None
            and not _is_narrow(case, self._options.metrics, question.target_ci)
        ]

    def close(self) -> None:
        """Give the hosts back."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _library_choice(self) -> dict[str, str]:
        """How the user tells mpi4py which MPI library to load: so on every host."""
        return {name: self._environ[name] for name in _LIBRARY_CHOICE if name in self._environ}

    def _for_agents(self) -> dict[str, str]:
        """What the agents on other hosts are to have of this environment."""
        given = self._environ.get(DIRECTORY_VARIABLE)
        return self._library_choice() | ({DIRECTORY_VARIABLE: given} if given else {})

    def _mpi_settings(self) -> dict[str, str]:
        """Settings of the MPI library that the ranks load, unless the user has made his own."""
        return {
            name: value
            for library in libraries_of(self._registry.launchers.values())
            if library.pattern.search(self.setup().mpi_library)
            for name, value in library.settings.items()
            if name not in self._environ
        }

    def _looks(self, options: Options) -> tuple[int, ...]:
        """The numbers of trials after which a case may end."""
        low, high = options.trials.low, options.trials.high
        if self._max_trials is not None:
            low, high = min(low, self._max_trials), min(high, self._max_trials)
        return planned_looks(low, high)

    def _is_settled(self, options: Options, case: CaseResult) -> bool:
        """Whether all is known that was asked for: by the gates, and by the interval."""
        target_ci = options.target_ci
        narrow = target_ci is None or _is_narrow(case, options.metrics, target_ci)
        return narrow and self._gates_can_decide(case)

    def take_lock(self) -> None:
        """Have this host for the run alone; PreflightError names who has it.

        Where an agent stands for it, that one has the lock.
        """
        if self._lock is None and not self._execution.access.is_linked(socket.gethostname()):
            lock = HostLock(socket.gethostname(), run_id=self.run.run_id)
            with self._reporting_waits():
                lock.acquire_patiently(self._patience)
            self._lock = lock

    @contextmanager
    def _reporting_waits(self) -> Iterator[None]:
        """Say that it is over, if there was something to wait for."""
        waited_s = self._patience.waited_s
        try:
            yield
        finally:
            if self._patience.waited_s > waited_s:
                self._progress.waited()

    def _keep(self, question: _Question, case: CaseResult) -> CaseResult:
        """Write it into the run file, beside what other questions of the same plan gave."""
        case = replace(case, verdicts=evaluate_case(case))
        self._done[question] = case
        self.run = replace(self.run, cases=tuple(self._done.values()))
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.run_file, self.run.to_json())
        return case

    def _run_trial(
        self,
        options: Options,
        case: Case,
        index: int,
        case_directory: Path,
        io_trace: IoTraceFile | None,
    ) -> TrialResult:
        plan = case.plan.for_trial(index)
        directory = case_directory / f"trial-{index + 1}"  # as people count
        directory.mkdir(parents=True)
        write_json(directory / "plan.json", plan.to_json())
        if case.trace is not None:
            case.trace.save(directory / "trace.npz")
        if case.secrets:
            write_secrets(directory, case.secrets)
        command = self._launcher_argv(options, plan, directory)
        launch = Launch(
            self._execution.prepare(command, plan, directory),
            plan,
            directory,
            cleanup=self._execution.cleanup(plan, directory),
            families=tuple(self._registry.launchers.values()),
            cluster=None if self.survey(options, plan.layout) is None else self._cluster,
            on_event=self._progress.event,
        )
        try:
            record = launch.record(self._environ)
            seen = ControllerRecord(
                looks=self._looks(options),
                controller_least_s=record.clock.controller_least_s,
                controller_most_s=record.clock.controller_most_s,
            )
            write_json(directory / "controller.json", seen.to_json())
            trial = _judged(plan, record)
            if io_trace is not None and _storage_error(record) is None:
                io_trace.add(plan, directory)
        except (LaunchError, ResultError) as error:
            trial = TrialResult(index=index, error=str(error))
        finally:
            (directory / "trace.npz").unlink(missing_ok=True)
            for rank in range(plan.np):
                (directory / spool_name(rank)).unlink(missing_ok=True)
            take_secrets(directory)  # the ranks may never have come to that
        return replace(trial, sources=self._sources(directory))

    def _sources(self, directory: Path) -> dict[str, str]:
        """What a trial left behind, by its path beside the run file: SHA-256 of each."""
        paths = [directory / name for name in SOURCES]
        return {
            path.relative_to(self.directory).as_posix(): hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
            for path in paths
            if path.is_file()
        }


@dataclass(slots=True)
class _Side:
    """One of the two launches of each trial: of which case, where, and what came of it so far."""

    case: Case
    directory: Path
    result: CaseResult


def _failed_beside(alone: TrialResult) -> TrialResult:
    """The trial whose launch without stores failed."""
    return TrialResult(index=alone.index, error=f"its launch without stores failed: {alone.error}")


def _with_trace(result: CaseResult, io_trace: IoTraceFile) -> CaseResult:
    """The case when its I/O trace has its name; where that fails, so does the last trial."""
    try:
        io_trace.finish()
    except ResultError as error:
        *before, last = result.trials
        failed = replace(last, error=last.error or str(error))
        return replace(result, trials=(*before, failed))
    return result


def _cut_short(error: BaseException, done: int, trials: Trials) -> TrialResult:
    """The trial that an exception ended: a fault of its own, or the user's wish to stop.

    What a limit of time has ended is a fault: slow storage may be the reason.
    """
    if isinstance(error, KVCacheError):
        return TrialResult(index=done, error=str(error))
    name = type(error).__name__
    if isinstance(error, (KeyboardInterrupt, SystemExit)) or name == _PYTESTS_EXIT:
        limit = trials.high if trials.low == trials.high else f"at most {trials.high}"
        text = (
            f"interrupted after {done} of {limit} trials ({name}); nothing can be said of trial"
            f" {done + 1}, which had not ended"
        )
        return TrialResult(index=done, error=text, interrupted=True)
    words = str(error).split("\n", maxsplit=1)[0]
    text = f"trial {done + 1} was ended from outside ({name}: {words})"
    if "timeout" in words.lower():
        text += (
            "; if that is pytest-timeout's limit, give the test a longer one of its own:"
            " @pytest.mark.timeout(SECONDS), or 0 for none: a launch has --kv-deadline"
        )
    return TrialResult(index=done, error=text)


def _execution(
    options: Options, registry: Registry, run_id: str, environ: Mapping[str, str]
) -> Execution:
    if options.exec_type == "docker":
        return ContainerExecution(options, run_id, environ)
    return BareExecution(options, registry, environ)


def _is_narrow(case: CaseResult, metrics: Sequence[str], target_ci: float) -> bool:
    """Whether the interval of every metric is within ``target_ci`` of its mean."""
    for series in map(case.series, possible(metrics, case.plan)):
        interval = None if series is None else series.ci95
        if series is None or interval is None:
            return False
        if (interval[1] - interval[0]) / 2 > target_ci * abs(series.mean):
            return False
    return True


def _judged(plan: Plan, record: TrialRecord) -> TrialResult:
    """A trial's result: its data, its verdicts, and what makes it fail."""
    trial, verdicts = evaluate_trial(record, plan)
    invalid = [v for v in verdicts if v.severity == "invalid" and not plan.allows(v.code)]
    error = _storage_error(record)
    if error is None and invalid:
        first = invalid[0]
        error = f"{first.code}: {first.text} (--kv-allow-invalid reports it all the same)"
    return TrialResult(
        index=plan.trial, error=error, verdicts=verdicts, measured=trial,
        withholds=withholds(verdicts, plan),
    )  # fmt: skip


def _storage_error(record: TrialRecord) -> str | None:
    for rank in record.ranks:
        if rank.error is not None or rank.cleanup_error is not None:
            return f"rank {rank.rank} on host {rank.host}: {_what_failed(rank)}"
    return idle_error(record.ranks)


def _what_failed(rank: RankResult) -> str:
    failed = rank.read_failed + rank.write_failed
    if rank.error is None:
        return f"clean-up failed: {rank.cleanup_error}"
    if not failed:  # a delete, say: no operation that is counted
        return rank.error
    return f"{format_count(failed, 'failed operation')}, the first: {rank.error}"
