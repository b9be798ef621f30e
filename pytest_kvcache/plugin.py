"""The pytest11 entry point: options in, items parametrised, report out.

``pytest.Config`` is read in ``read_options`` and nowhere else; after it only ``Options``
exists. Usage errors of the package become ``pytest.UsageError`` here. Imports neither
pytest-benchmark nor MPI. This module is imported by every pytest session of an
environment, so what needs numpy is imported where a benchmark is about to run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_kvcache import newhooks
from pytest_kvcache.compare import gate_table, stock_table
from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.fixture import (
    BENCH_KEY,
    MAKE_BENCH_KEY,
    OPTIONS_KEY,
    REPLAY_CLOCK_KEY,
    ReplayClock,
    bench_of,
    compared_by_benchmark,
    is_xdist_worker,
    kvcache,
)
from pytest_kvcache.gates import Gates
from pytest_kvcache.hosts import explain_swallowed_path
from pytest_kvcache.options import OPTIONS, OptionSpec, Origin, build_options, describe_given

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.bench import Bench
    from pytest_kvcache.options import Options
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.planning import CaseName

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
        text = spec.help if spec.later is None else f"{spec.help} [partly or not available yet]"
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
        parser.addini(spec.ini, text.replace("%%", "%"), type="string", default=None)


def _given(config: pytest.Config, spec: OptionSpec) -> tuple[str | Sequence[str], Origin] | None:
    value = config.getoption(spec.ini)
    if value is not None:
        return value, "command line"
    text = config.getini(spec.ini)
    if not text:
        return None
    if spec.kind == "hosts":
        return str(text).split(), "ini"
    return ([str(text)] if spec.kind == "repeat" else str(text)), "ini"


def read_options(config: pytest.Config) -> Options:
    """``pytest.Config`` → ``Options``: command line over ini over default."""
    given = {spec.name: _given(config, spec) for spec in OPTIONS}
    return build_options({name: value for name, value in given.items() if value is not None})


def _refuse_xdist(config: pytest.Config, options: Options) -> None:
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
        options = read_options(config)
        if not options.datasize:
            return None
        from pytest_kvcache.sizing import datasize_report  # noqa: PLC0415  likewise

        sys.stdout.write(datasize_report(options) + "\n")
    return int(pytest.ExitCode.OK)


def pytest_configure(config: pytest.Config) -> None:
    """Read and validate everything that was given."""
    clock = ReplayClock()
    config.stash[REPLAY_CLOCK_KEY] = clock
    if config.option.help:
        return
    with usage_errors():
        options = read_options(config)
        _refuse_xdist(config, options)
        _refuse_stolen_root(config)
        config.stash[OPTIONS_KEY] = options
        config.stash[MAKE_BENCH_KEY] = lambda: _make_bench(config, options)
        config.pluginmanager.register(Gates(config), "pytest_kvcache.gates")
        if options.texts and not is_xdist_worker(config):
            bench_of(config)  # unknown names are an error of usage, not of collection


def _make_bench(config: pytest.Config, options: Options) -> Bench:
    from pytest_kvcache.bench import Bench  # noqa: PLC0415  see the module's docstring
    from pytest_kvcache.terminal import TerminalProgress  # noqa: PLC0415  likewise

    def modify_plan(plan: Plan) -> Plan:
        changed = config.hook.pytest_kvcache_modify_plan(config=config, plan=plan)
        return plan if changed is None else changed

    return Bench(
        options,
        command=("pytest", *config.invocation_params.args),
        progress=TerminalProgress(config),
        modify_plan=modify_plan,
        max_trials=1 if config.getoption("benchmark_disable", default=False) else None,
    )


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    """What was given, and where."""
    options = config.stash[OPTIONS_KEY]
    return describe_given(options) if options.texts else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per (case, metric)."""
    if {"kv_case", "kv_metric"} <= set(metafunc.fixturenames):
        bench = bench_of(metafunc.config)
        pairs = [(name, metric) for name in bench.names for metric in bench.options.metrics]
        ids = [f"{name}-{metric}" for name, metric in pairs]
        metafunc.parametrize(("kv_case", "kv_metric"), pairs, ids=ids)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Our items are timed by the replay clock; only the closest marker counts, so merge."""
    for item in items:
        if "kvcache" in _fixtures(item):
            closest = item.get_closest_marker("benchmark")
            kwargs = dict(closest.kwargs) if closest else {}
            kwargs["timer"] = config.stash[REPLAY_CLOCK_KEY]
            item.add_marker(pytest.mark.benchmark(**kwargs), append=False)
            if config.getoption("benchmark_skip", default=False):
                item.add_marker(pytest.mark.skip(reason="--benchmark-skip is active"))


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else ()


def _cases(items: Sequence[pytest.Item]) -> list[CaseName]:
    """The cases of all items that are going to run, each once."""
    found: dict[str, CaseName] = {
        item.callspec.id: cast("CaseName", item.callspec.params["kv_case"])
        for item in items
        if isinstance(item, pytest.Function)
        and "kv_case" in _fixtures(item)
        and not any(item.iter_markers("skip"))
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
    cases = _cases(session.items)
    if not cases and not config.stash[OPTIONS_KEY].dry_run:
        return None
    bench = bench_of(config)
    with usage_errors():
        bench.check(cases, compared_by_benchmark(config))
    if not bench.options.dry_run:
        return None
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("")
        for name in cases:
            for line in bench.dry_run(name):
                reporter.write_line(line)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give the host back."""
    bench = session.config.stash.get(BENCH_KEY, None)
    if bench is None or is_xdist_worker(session.config):
        return
    bench.controller.close()
    if bench.refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    run = bench.controller.run
    if run.cases:
        session.config.hook.pytest_kvcache_run_finished(config=session.config, run=run)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Drop the clock rate of the moment, by which no machine would be the same twice."""
    if BENCH_KEY in config.stash:
        for name in ("hz_actual", "hz_actual_friendly"):
            machine_info.get("cpu", {}).pop(name, None)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Our own table, the gates, and where the run file is."""
    bench = config.stash.get(BENCH_KEY, None)
    if bench is None or not bench.controller.run.cases:
        return
    from pytest_kvcache.report import report_run  # noqa: PLC0415  see the module's docstring

    terminalreporter.section("kvcache", sep="-")
    terminalreporter.write_line(report_run(bench.controller.run, bench.options.metrics))
    for line in bench.unsettled():
        terminalreporter.write_line(line)
    table = gate_table(
        [*bench.compared(), *bench.judge()],
        differences=bench.differing(),
        untold=bench.untold(),
        session=bench.baseline_session,
    )
    stock = stock_table(bench.stock_differences(compared_by_benchmark(config)))
    for text in filter(None, (table, stock)):
        terminalreporter.write_line("")
        terminalreporter.write_line(text)
    terminalreporter.write_line("")
    terminalreporter.write_line(f"run file: {_shown(bench.controller.run_file, config)}")


def _shown(path: Path, config: pytest.Config) -> str:
    here = config.invocation_params.dir
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
