"""The pytest11 entry point: options in, items parametrised, report out.

``pytest.Config`` is read in ``read_options`` and nowhere else; after it only ``Options``
exists. Usage errors of the package become ``pytest.UsageError`` here. Imports neither
pytest-benchmark nor MPI. This module is imported by every pytest session of an
environment, so what needs numpy is imported where a benchmark is about to run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_kvcache import benchmarktables, newhooks, otherplugins, typos
from pytest_kvcache.closing import write_report, write_the_rest
from pytest_kvcache.errors import OptionError, PreflightError, UnavailableError
from pytest_kvcache.faultledger import FaultLedger
from pytest_kvcache.fixture import (
    BENCHMARK_SESSION_KEY,
    FAULTS_KEY,
    MAKE_BENCHMARK_SESSION_KEY,
    OPTIONS_KEY,
    REPLAY_CLOCK_KEY,
    SELECTED_KEY,
    ReplayClock,
    Selected,
    benchmark_session_of,
    compared_by_benchmark,
    is_xdist_worker,
    kvcache,
    verbosity_of,
)
from pytest_kvcache.gateitems import GateItem, Gates
from pytest_kvcache.hosts.hostlist import explain_swallowed_path
from pytest_kvcache.options.asked import typed_flags
from pytest_kvcache.options.options import (
    OPTIONS,
    OptionSpec,
    Origin,
    build_options,
    describe_given,
)
from pytest_kvcache.showable import encoding_of, showable
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.planner import CaseName
    from pytest_kvcache.session import BenchmarkSession

__all__ = ["kvcache"]  # the fixture is found in this module

# Where pytest looks, in its order, and what makes the file count.
_CONFIGURATIONS = (
    ("pytest.toml", ""),
    (".pytest.toml", ""),
    ("pytest.ini", ""),
    (".pytest.ini", ""),
    ("pyproject.toml", "[tool.pytest"),
    ("tox.ini", "[pytest]"),
    ("setup.cfg", "[tool:pytest]"),
)
_GATES = frozenset({"compare", "fail", "slo"})  # which an ini may close for a whole checkout
_GROUP = "storage benchmark for LLM KV caches (pytest-kvcache)"


@contextmanager
def usage_errors() -> Iterator[None]:
    """What the user can mend before a launch exits with 4, in one sentence."""
    try:
        yield
    except (OptionError, PreflightError) as error:
        raise pytest.UsageError(str(error)) from error


# --- options -----------------------------------------------------------------------------


class _HostsAction(argparse.Action):
    """Hosts in every form; the last one given wins; explains a swallowed test path."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002  argparse's signature
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002  argparse's signature
    ) -> None:
        words = [str(value) for value in values or ()]
        problem = explain_swallowed_path(words, lambda name: Path(name).is_dir())
        if problem is not None:
            raise argparse.ArgumentError(self, problem)
        setattr(namespace, self.dest, words)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare our pytest-side hooks."""
    pluginmanager.add_hookspecs(newhooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the whole table, each option with its ini twin; None means not given."""
    group = parser.getgroup("kvcache", _GROUP, after="benchmark")
    for spec in OPTIONS:
        text = spec.help if spec.later is None else argparse.SUPPRESS
        settings: dict[str, Any] = {"dest": spec.ini, "default": None, "help": text}
        if spec.kind == "flag":
            settings |= {"action": "store_const", "const": "true"}
        else:
            settings["metavar"] = spec.metavar
        if spec.kind == "hosts":
            settings |= {"action": _HostsAction, "nargs": "+"}
        elif spec.kind == "repeat":
            settings["action"] = "append"
        group.addoption(spec.flag, **settings)
        if spec.later is None:
            parser.addini(spec.ini, text.replace("%%", "%"), type="string", default=None)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Refuse options that nobody knows; a conftest may have brought some that it does."""
    typos.register_later_keys(early_config, parser)
    yield
    typos.check_words(early_config, parser, args)


def _given(config: pytest.Config, spec: OptionSpec) -> tuple[str | Sequence[str], Origin] | None:
    value = config.getoption(spec.ini)
    if value is not None:
        return value, "command line"
    if spec.later is not None and spec.ini not in typos.ini_keys(config):
        return None
    try:
        text = config.getini(spec.ini)
    except ValueError as error:  # loaded by a conftest, after the file was read
        raise UnavailableError(spec.ini, "given", str(spec.later)) from error
    if not text:
        return None
    return _of_ini(spec, text), "ini"


def _of_ini(spec: OptionSpec, text: str | Sequence[str]) -> str | Sequence[str]:
    """What an ini file gives, which has one of several things per line (or a TOML list)."""
    lines = text.splitlines() if isinstance(text, str) else [str(part) for part in text]
    lines = [line.strip() for line in lines if line.strip()]
    if spec.kind == "hosts":
        return [word for line in lines for word in line.split()]
    if spec.kind == "repeat":
        return lines
    if spec.takes_list:
        return ",".join(line.removesuffix(",").rstrip() for line in lines)
    return text if isinstance(text, str) else " ".join(lines)


def read_options(config: pytest.Config) -> Options:
    """``pytest.Config`` → ``Options``: command line over ini over default."""
    given = {spec.name: _given(config, spec) for spec in OPTIONS}
    return build_options({name: value for name, value in given.items() if value is not None})


def refuse_xdist(config: pytest.Config, options: Options) -> None:
    """Parallel workers would launch at the same time and measure each other.

    A worker need not refuse: its controller has, and the fixture does.
    """
    spread = (
        config.getoption("numprocesses", default=None)
        or config.getoption("dist", default="no") != "no"
    )
    if not spread or is_xdist_worker(config):
        return
    for spec in OPTIONS:
        origin = options.origins.get(spec.name)
        if (origin == "command line" and spec.selects) or (origin and spec.name in _GATES):
            raise OptionError(
                f"{spec.ini if origin == 'ini' else spec.flag} is given together with xdist's"
                " -n; a benchmark runs alone, drop the -n (or use -n 0)"
            )


def _refuse_stolen_root(config: pytest.Config) -> None:
    """An option's path must not have cost us the configuration.

    pytest looks for its root before it knows a plugin's options, so that in
    ``--kv-trace FILE`` the file counts as a test path and may move the root away from
    the working directory's configuration. With ``=`` it does not.
    """
    here = config.invocation_params.dir
    mine = next((found for place in (here, *here.parents) if (found := _configured(place))), None)
    if mine is None or config.option.inifilename or config.inipath == mine:
        return
    words = [str(word) for word in config.invocation_params.args]
    for flag, value in itertools.pairwise(words):
        takes_value = any(spec.flag == flag and spec.kind != "flag" for spec in OPTIONS)
        if takes_value and (here / value).exists():
            raise OptionError(
                f"{flag} {value} made pytest take {config.rootpath} for the root of the tests and"
                f" lose the configuration in {mine}; write {flag}={value}"
            )


def _configured(directory: Path) -> Path | None:
    """The file in ``directory`` that configures pytest."""
    for name, section in _CONFIGURATIONS:
        path = directory / name
        if path.is_file() and section in path.read_text(encoding="utf-8", errors="replace"):
            return path
    return None


# --- session -----------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """``--kv-datasize`` calculates instead of running tests."""
    if config.option.help or config.option.version:
        return None
    with usage_errors():
        typos.check_ini(config)
        options = read_options(config)
        if not options.datasize:
            return None
        from pytest_kvcache.report.datasize import Screen, datasize_report  # noqa: PLC0415  likewise

        screen = Screen.of(sys.stdout, os.environ)
        report = showable(datasize_report(options, screen), encoding_of(sys.stdout))
        sys.stdout.write(report + "\n")
    return int(pytest.ExitCode.OK)


def pytest_configure(config: pytest.Config) -> None:
    """Read and validate everything that was given."""
    clock = ReplayClock()
    config.stash[REPLAY_CLOCK_KEY] = clock
    config.stash[SELECTED_KEY] = Selected()
    config.stash[FAULTS_KEY] = FaultLedger()
    config.pluginmanager.register(config.stash[FAULTS_KEY], "kvcache-faults")
    if config.option.help:
        return
    with usage_errors():
        options = read_options(config)
        refuse_xdist(config, options)
        _refuse_stolen_root(config)
        if typed_flags(options):  # what is refused here leaves the other plugins' ends alone
            otherplugins.check_outputs(config)
        config.stash[OPTIONS_KEY] = options
        config.stash[MAKE_BENCHMARK_SESSION_KEY] = lambda: _make_benchmark_session(config, options)
        config.pluginmanager.register(Gates(config), "pytest_kvcache.gateitems")
        if options.texts and not is_xdist_worker(config):
            benchmark_session_of(config)  # unknown names are an error of usage, not of collection


def _make_benchmark_session(config: pytest.Config, options: Options) -> BenchmarkSession:
    from pytest_kvcache.session import BenchmarkSession  # noqa: PLC0415  see the module's docstring
    from pytest_kvcache.terminal import TerminalProgress  # noqa: PLC0415  likewise

    def modify_plan(plan: Plan) -> Plan:
        changed = config.hook.pytest_kvcache_modify_plan(config=config, plan=plan)
        return plan if changed is None else changed

    return BenchmarkSession(
        options,
        command=("pytest", *config.invocation_params.args),
        progress=TerminalProgress(config),
        modify_plan=modify_plan,
        max_trials=1 if config.getoption("benchmark_disable", default=False) else None,
    )


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    """The header: what was given, and where."""
    options = config.stash[OPTIONS_KEY]
    if not options.texts:
        return None
    benchmark_session = config.stash.get(BENCHMARK_SESSION_KEY, None)
    return describe_given(
        options, str if benchmark_session is None else benchmark_session.secrets.mask
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per (case, metric)."""
    if {"kv_case", "kv_metric"} <= set(metafunc.fixturenames):
        benchmark_session = benchmark_session_of(metafunc.config)
        pairs = [
            (name, metric)
            for name in benchmark_session.names
            for metric in benchmark_session.options.metrics
        ]
        ids = [f"{name}-{metric}" for name, metric in pairs]
        metafunc.parametrize(("kv_case", "kv_metric"), pairs, ids=ids)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Our items are timed by the replay clock; only the closest marker counts, so merge.

    They are benchmarks to ``--benchmark-only`` as well, though they ask for the fixture only
    when they run.
    """
    ours = [item for item in items if "kvcache" in _fixtures(item)]
    recorded = otherplugins.is_recorded(config)
    if ours:
        with usage_errors():
            otherplugins.check_place(config)
    for item in ours:
        if recorded:
            closest = item.get_closest_marker("benchmark")
            kwargs = dict(closest.kwargs) if closest else {}
            kwargs["timer"] = config.stash[REPLAY_CLOCK_KEY]
            item.add_marker(pytest.mark.benchmark(**kwargs), append=False)
        if config.getoption("benchmark_skip", default=False):
            item.add_marker(pytest.mark.skip(reason="--benchmark-skip is active"))
    named = [names for names in map(_fixtures, ours) if recorded and "benchmark" not in names]
    for names in named:
        names.append("benchmark")
    yield
    for names in named:
        names.remove("benchmark")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what was asked for and left out again."""
    for item in items:
        item.config.stash[SELECTED_KEY].deselected += "kvcache" in _fixtures(item)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count what is going to run."""
    selected = session.config.stash[SELECTED_KEY]
    selected.benchmarks = sum("kvcache" in _fixtures(item) for item in session.items)
    tests = sum(not isinstance(item, GateItem) for item in session.items)
    selected.others = tests - selected.benchmarks
    selected.is_known = not session.testsfailed


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


def _cases(items: Sequence[pytest.Item]) -> list[CaseName]:
    """The cases of these items, each once."""
    found: dict[str, CaseName] = {
        item.callspec.id: cast("CaseName", item.callspec.params["kv_case"])
        for item in items
        if isinstance(item, pytest.Function) and "kv_case" in _fixtures(item)
    }
    return list(dict.fromkeys(found.values()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Check every case before the first one starts; ``--kv-dry-run`` ends here."""
    config = session.config
    if is_xdist_worker(config):
        return None  # the fixture refuses there
    goes_on = config.option.continue_on_collection_errors
    if config.option.collectonly or (session.testsfailed and not goes_on):
        return None
    running = [item for item in session.items if "kvcache" in _fixtures(item)]
    running = [item for item in running if not any(item.iter_markers("skip"))]
    dry_run = config.stash[OPTIONS_KEY].dry_run
    if not running and not dry_run:
        return None
    benchmark_session = benchmark_session_of(config)
    cases = _cases(running)
    with usage_errors():
        compared = compared_by_benchmark(config)
        otherplugins.check_outputs(config)
        otherplugins.check_comparison(config, compared)
        benchmark_session.check(cases, compared)
    if dry_run:
        _write(config, _dry_lines(config, benchmark_session, running, cases))
        return True
    for item in running:
        if "kv_case" in _fixtures(item):
            (name,) = _cases([item])
            otherplugins.give_time(config, item, benchmark_session.limit_s(name))
    return None


def _dry_lines(
    config: pytest.Config,
    benchmark_session: BenchmarkSession,
    running: Sequence[pytest.Item],
    cases: Sequence[CaseName],
) -> Iterator[str]:
    for name in cases:
        yield ""
        yield from benchmark_session.dry_run(name, whole=verbosity_of(config) > 0)
    own = sum("kv_case" not in _fixtures(item) for item in running)
    if own:
        yield (
            f"{format_count(own, 'test')} with kvcache.run() not looked at: what they launch is"
            " known when they run"
        )


def _write(config: pytest.Config, lines: Iterable[str]) -> None:
    """On the terminal, or on stdout where pytest has none."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for text in lines:
        line = showable(text, encoding_of(sys.__stdout__))
        if reporter is None:
            sys.stdout.write(line + "\n")
        else:
            reporter.write_line(line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Give the host back; then see to it that somebody says so."""
    try:
        _finish(session)
        return (yield)
    finally:
        write_the_rest(session.config)


def _finish(session: pytest.Session) -> None:
    benchmark_session = session.config.stash.get(BENCHMARK_SESSION_KEY, None)
    if benchmark_session is None or is_xdist_worker(session.config):
        return
    benchmark_session.controller.close()
    if benchmark_session.refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    run = benchmark_session.controller.run
    if run.cases:
        session.config.hook.pytest_kvcache_run_finished(config=session.config, run=run)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last chance: another plugin's end of the session may have come before ours."""
    benchmark_session = config.stash.get(BENCHMARK_SESSION_KEY, None)
    if benchmark_session is not None:
        benchmark_session.controller.close()
    write_the_rest(config)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Drop the clock rate of the moment, by which no machine would be the same twice."""
    if BENCHMARK_SESSION_KEY in config.stash:
        for name in ("hz_actual", "hz_actual_friendly"):
            machine_info.get("cpu", {}).pop(name, None)


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_benchmark_group_stats(
    config: pytest.Config,
) -> Generator[None, benchmarktables.Groups, benchmarktables.Groups]:
    """pytest-benchmark's tables of our metrics are shown to those who ask for them."""
    groups = yield
    shown = benchmarktables.asks_for_tables(config)
    return groups if shown else benchmarktables.without_ours(groups)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_scale_unit(
    config: pytest.Config, unit: str, benchmarks: list[dict[str, Any]]
) -> tuple[str, float] | None:
    """Columns in the units that our entries' names say, unless the user wants another."""
    if config.getoption("benchmark_time_unit", default=None):
        return None
    return benchmarktables.scale(unit, benchmarks)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Our own table, the gates, and where the run file is: before others may fail."""
    write_report(terminalreporter, config)
