"""The ``kvcache`` fixture; the only module that touches pytest-benchmark.

pytest-benchmark times a callable with a timer of our choice. Our latencies were measured
on the ranks, so the timer is a clock that we set: the callable moves it forward by the
trial's value, one round per trial, which makes StdDev the noise between trials.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_kvcache.errors import KVCacheError, OptionError, did_you_mean
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.options import (
    OPTIONS,
    build_options,
    describe_value,
)
from pytest_kvcache.plan.possible import why_impossible
from pytest_kvcache.results.absence import why_absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_kvcache.faultledger import FaultLedger
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.otherplugins import StockGate
    from pytest_kvcache.plan.planner import CaseName
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.session import BenchmarkSession

BENCHMARK_SESSION_KEY: pytest.StashKey[BenchmarkSession] = pytest.StashKey()
MAKE_BENCHMARK_SESSION_KEY: pytest.StashKey[Callable[[], BenchmarkSession]] = pytest.StashKey()
OPTIONS_KEY: pytest.StashKey[Options] = pytest.StashKey()
COMPARED_KEY: pytest.StashKey[list[Mapping[str, Any]]] = pytest.StashKey()
FAULTS_KEY: pytest.StashKey[FaultLedger] = pytest.StashKey()
STOCK_GATE_KEY: pytest.StashKey[StockGate] = pytest.StashKey()


class Selected:
    """How many of a session's tests are benchmarks: selected, and deselected.

    ``is_known`` once everything was collected without an error.
    """

    def __init__(self) -> None:
        self.benchmarks = self.others = self.deselected = 0
        self.is_known = False


SELECTED_KEY: pytest.StashKey[Selected] = pytest.StashKey()


def benchmark_session_of(config: pytest.Config) -> BenchmarkSession:
    """The session's benchmark, made when it is first asked for."""
    if BENCHMARK_SESSION_KEY not in config.stash:
        config.stash[BENCHMARK_SESSION_KEY] = config.stash[MAKE_BENCHMARK_SESSION_KEY]()
    return config.stash[BENCHMARK_SESSION_KEY]


def compared_by_benchmark(config: pytest.Config) -> list[Mapping[str, Any]]:
    """What ``--benchmark-compare`` compares with."""
    return config.stash.get(COMPARED_KEY, [])


def verbosity_of(config: pytest.Config) -> int:
    """0, more with ``-v``, less with ``-q``; 0 where no terminal plugin has such options."""
    return int(config.getoption("verbose", default=0))


def is_xdist_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that run tests at the same time."""
    return hasattr(config, "workerinput")


class ReplayClock:
    """A timer that shows what it was set to, and otherwise the real time."""

    __name__ = "kvcache-replay"  # pytest-benchmark prints a timer's name

    def __init__(self) -> None:
        self.now_s: float | None = None

    def __call__(self) -> float:
        """The time in seconds; only differences mean something."""
        return time.perf_counter() if self.now_s is None else self.now_s


REPLAY_CLOCK_KEY: pytest.StashKey[ReplayClock] = pytest.StashKey()


class Run:
    """A case that ran: what ``kvcache.run()`` gives to a test."""

    def __init__(self, result: CaseResult) -> None:
        self.result = result

    def metric(self, name: str) -> float:
        """The median over all trials; fails the test if a trial does not have it."""
        if name not in METRICS:
            _fail(f"{name!r} is no metric{did_you_mean(name, METRICS)}; docs/results.md has all")
        series = self.result.series(name)
        if series is None:
            _fail(f"{why_absent(self.result, name)} ({name} of {self.result.name})")
        return series.median


class KVCache:
    """Runs cases from a test; ``kvcache`` is one per test, all share one launch per case."""

    def __init__(self, request: pytest.FixtureRequest, session: BenchmarkSession) -> None:
        self._request = request
        self._session = session

    def run(self, *, label: str | None = None, **overrides: Any) -> Run:
        """Run one case with the session's options, some of them overridden by name.

        ``kvcache.run(scenario="agent", model="llama3.1-70b-instruct", np=4, duration=30)``;
        names are the options' without ``--kv-``, with underscores. The case must be one:
        a list of counts, scenarios or models is refused. Fails the test if a trial fails.
        ``label`` goes into the case's name, so that two cases that differ in other options
        than these three have names of their own, and baselines.
        """
        from pytest_kvcache.plan.planner import name_cases  # noqa: PLC0415  see plugin.py

        options = self._override(overrides) if overrides else self._session.options
        try:
            names = name_cases(options, self._session.registry)
            if len(names) != 1:
                listed = ", ".join(map(str, names))
                raise OptionError(f"kvcache.run() runs one case, the options ask for {listed}")
            if options.wait:
                self._session.reserve(names)
            name = replace(names[0], label=label)
            case = self._session.plan(name, options)
            self._session.controller.note_launcher()
            self._session.controller.check(options, case.plan)
        except KVCacheError as error:
            _fail(str(error))
        self._session.asked.note(overrides)
        return Run(self._finished(self._session.run(name, options)))

    def record(self, name: CaseName, metric: str) -> None:
        """Run the case (once for all of its metrics) and record one metric.

        Where pytest-benchmark is switched off, the case runs and is recorded nowhere else
        than in the run file.
        """
        spec = METRICS[metric]
        impossible = why_impossible(metric, self._session.plan(name).plan)
        if impossible is not None:
            pytest.skip(f"{metric}: {impossible}")
        benchmark = _recorder(self._request)
        self._session.asked.note(())
        result = self._finished(self._session.run(name))
        series = result.series(metric)
        if series is None:
            _fail(f"{why_absent(result, metric)} ({metric} of {result.name})")
        if benchmark is None:
            return
        provenance = self._session.controller.run.provenance(result)
        compared = compared_by_benchmark(self._request.config)
        refusal = self._session.stock_refusal(compared, f"{result.name}-{metric}", provenance)
        if refusal is not None:
            _fail(refusal)
        benchmark.name = f"{result.name}-{spec.round_name}"
        benchmark.fullname = f"{result.name}-{metric}"
        benchmark.group = benchmark.group or spec.round_name
        benchmark.extra_info.update(
            case=result.name,
            metric=metric,
            plan_digest=result.plan_digest,
            **provenance.to_json(),
            **series.to_json(),
        )
        try:
            rounds_s = [spec.round_s(value) for value in series.values]
        except KVCacheError as error:
            _fail(str(error))
        replay(benchmark, self._request.config.stash[REPLAY_CLOCK_KEY], rounds_s)
        stock = self._request.config.stash.get(STOCK_GATE_KEY, None)
        if stock is not None and benchmark.stats is not None:  # None: --benchmark-disable
            stock.judge(benchmark.fullname, benchmark.stats)

    def _override(self, overrides: dict[str, Any]) -> Options:
        given = dict(self._session.options.texts)
        known = {spec.name: spec for spec in OPTIONS}
        try:
            for name, value in overrides.items():
                if name in known and known[name].of_session:
                    raise OptionError(
                        f"{known[name].flag} is decided for the whole session; give it"
                        " on the command line or in an ini, not to kvcache.run()"
                    )
                text = describe_value(value)
                if name in known and known[name].kind in ("hosts", "repeat"):
                    text = [text] if isinstance(text, str) else text
                elif not isinstance(text, str):
                    text = ",".join(text)
                given[name] = (text, "call")
            return build_options(given)
        except KVCacheError as error:
            _fail(str(error))

    def _finished(self, result: CaseResult) -> CaseResult:
        """The result of a case that may be used; a fault is reported in full once."""
        if result.error is not None:
            faults = self._request.config.stash[FAULTS_KEY]
            _fail(faults.text(result, self._request.node.nodeid))
        return result


def _fail(text: str) -> NoReturn:
    """Fail the test with this text alone, whatever exception led to it."""
    raise pytest.fail.Exception(text, pytrace=False) from None


def _recorder(request: pytest.FixtureRequest) -> Any | None:
    """pytest-benchmark's fixture, still unused; None: that plugin is switched off.

    Asked for by name, not by parameter: another ``benchmark`` is refused before anything
    is launched, and without any the case runs all the same.
    """
    try:
        found = request.getfixturevalue("benchmark")
    except pytest.FixtureLookupError:
        return None
    kind = type(found)
    if kind.__module__.partition(".")[0] != "pytest_benchmark":
        _fail(
            f"the fixture benchmark is {kind.__module__}.{kind.__qualname__}, which is not"
            " pytest-benchmark's; run the storage benchmark without the plugin (or the conftest)"
            " that defines it, or with -p no:benchmark and no such fixture"
        )
    found.skipped = True  # a case that fails leaves it unused, and says so itself
    return found


def replay(benchmark: Any, clock: ReplayClock, rounds_s: Sequence[float]) -> None:
    """Make pytest-benchmark record exactly these rounds.

    It calls once more, without recording it, where a profile is asked for.
    """
    values: Iterator[float] = iter(rounds_s)

    def reset() -> None:
        clock.now_s = 0.0  # from 0 the difference of two readings is exact

    def advance() -> None:
        clock.now_s = next(values, rounds_s[-1])

    try:
        benchmark.pedantic(advance, setup=reset, rounds=len(rounds_s), iterations=1)
    finally:
        clock.now_s = None


@pytest.fixture
def kvcache(request: pytest.FixtureRequest) -> KVCache:
    """Run KV-cache benchmark cases from a test: ``kvcache.run(np=2).metric("read.p95_ms")``."""
    if is_xdist_worker(request.config):
        pytest.fail("a benchmark runs alone; drop xdist's -n (or use -n 0)", pytrace=False)
    return KVCache(request, benchmark_session_of(request.config))
