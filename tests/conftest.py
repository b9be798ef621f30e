"""What all tests share: a place to call pytest in, and the machine for oneself."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache.session  # noqa: F401  numpy can't be imported twice, so before pytester drops it
from pytest_kvcache.hosts.lock import HostLock
from pytest_kvcache.hosts.processes import LaunchProcesses
from tests.desk import Desk
from tests.neighbours import Neighbours
from tests.site import PLUGINS, Site, machine_to_oneself

if TYPE_CHECKING:
    from collections.abc import Iterator


sys.path.append(str(Path(__file__).parents[1]))  # for benchmarks, behind an installed package


# How many examples a law is tried with: "few" for an interpreter that is not the first one
# to try it. Always the same ones, for a gate that is red by chance helps nobody; hypothesis's
# own profile, "default", looks for others (tox -e thorough). How long a busy machine takes
# to find an example says nothing about the law.
# The main job of the checkout loads this file as well, and works without the tests' extra.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    for profile, examples in (("few", 10), ("plain", 25)):
        settings.register_profile(
            profile,
            max_examples=examples,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile("plain")


def pytest_configure() -> None:
    """A script's background jobs ignore SIGINT; the sessions that tests interrupt must not."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Laws, tables, pages and refusals that no version of Python or pytest changes; most of the
# time. Single tests of other modules are marked there.
_ONCE = frozenset(
    {
        "backends/posix/test_allocator",
        "backends/posix/test_file",
        "backends/posix/test_slab",
        "backends/test_contract",
        "cache/test_index",
        "cache/test_tiers",
        "containers/test_init",
        "containers/test_relay",
        "engine/test_corruption",
        "engine/test_engine",
        "gates/test_compare",
        "hosts/test_agent",
        "hosts/test_cluster",
        "hosts/test_links",
        "ioengines/test_contract",
        "launch/test_runner",
        "launch/test_supervise",
        "launch/test_trial",
        "measure/test_steadiness",
        "measure/test_series",
        "ranks/test_calibration",
        "ranks/test_rank",
        "report/test_picture",
        "results/test_invariants",
        "results/test_verdicts",
        "results/test_verify",
        "system/test_clocks",
        "test_bad_input",
        "test_capabilities",
        "test_docs",
        "test_gates",
        "test_github_actions",
        "traces/test_partition",
        "traces/test_reuse",
    }
)
_MINUTES = ("cluster", "containers", "lengthy", "thorough")
# A session of pytest or a launch is a second or more. Those of plain pytest: one of each kind.
_FIRST = frozenset({"test_fixture", "test_plugin", "test_run_mpi"})
# What sees most of pytest and pytest-benchmark, and so of what differs between their versions.
_OF_VERSIONS = frozenset(
    {"test_benchmark_options", "test_fixture", "test_otherplugins", "test_plugin", "test_selection"}
)
_THOROUGH = frozenset(
    {"test_faults_mpi", "launch/test_runner", "results/test_verify"}
)  # every number of a file; every fault


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is tested once; what takes minutes runs where somebody asks for it."""
    left_out = []
    for item in items:
        calls_pytest = isinstance(item, pytest.Function) and "site" in item.fixturenames
        is_law = item.get_closest_marker("thorough") and not calls_pytest
        if _place(item) in _ONCE or is_law:
            item.add_marker("once")
        if _place(item) in _THOROUGH or (calls_pytest and _place(item) not in _FIRST):
            item.add_marker("thorough")
        if _place(item) in _OF_VERSIONS:
            item.add_marker("versions")
        if isinstance(item, pytest.Function) and hasattr(item.obj, "is_hypothesis_test"):
            item.add_marker("law")
        if any(map(item.get_closest_marker, _MINUTES)) and not _is_asked(config):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        left = set(left_out)
        items[:] = [item for item in items if item not in left]


def pytest_report_collectionfinish(
    config: pytest.Config, items: list[pytest.Item]
) -> list[str] | None:
    """Say what was left out, for pytest counts it only; the benchmark alone has no tests."""
    here = Path(__file__).parent
    if _is_asked(config) or not any(here in item.path.parents for item in items):
        return None
    return [f"left out: what takes minutes, pytest -m '{' or '.join(_MINUTES)}'"]


def _place(item: pytest.Item) -> str:
    """Where a test's module is, counted from this folder, without its suffix."""
    here = Path(__file__).parent
    path = item.path.relative_to(here) if here in item.path.parents else item.path
    return path.with_suffix("").as_posix()


def _is_asked(config: pytest.Config) -> bool:
    """Whether somebody chose tests by a marker or a path."""
    by_path = config.args_source is pytest.Config.ArgsSource.ARGS
    return bool(config.option.markexpr) or by_path


ANSWER = "mpi-library: Open MPI v5.0.11, package: of a test"


@pytest.fixture
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that knows which MPI library it would load, and nothing else."""
    path = tmp_path_factory.mktemp("interpreter") / "python"
    path.write_text(f"#!/bin/sh\necho '{ANSWER}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def site(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, fake_python: str
) -> Iterator[Site]:
    """An empty directory to call pytest in, on a host of its own name.

    The name keeps it apart from benchmarks that run at the same time: the lock of the
    host is taken by name.
    """
    # With CI set pytest repeats whole messages in its short summary.
    for name in ("PYTEST_ADDOPTS", "FORCE_COLOR", "PY_COLORS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    for name in [n for n in os.environ if n.startswith(("KVCACHE_TEST_", "PYTEST_XDIST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGINS), *_python_path()]))
    monkeypatch.syspath_prepend(PLUGINS)
    name = f"host-{uuid.uuid4().hex[:12]}"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setenv("KVCACHE_TEST_HOST", name)  # for canned ranks in other processes
    yield Site(pytester, fake_python)
    HostLock(name, run_id="").path.unlink(missing_ok=True)  # of a session that was killed


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_python: str) -> Iterator[Desk]:
    """An empty directory in which options are checked as before a launch, by no session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PLUGINS)
    name = f"host-{uuid.uuid4().hex[:12]}"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    yield Desk(tmp_path, fake_python)
    HostLock(name, run_id="").path.unlink(missing_ok=True)


def _python_path() -> list[str]:
    found = os.environ.get("PYTHONPATH", "")
    return [found] if found else []


@pytest.fixture
def neighbours(tmp_path: Path, fake_python: str) -> Iterator[Neighbours]:
    """Other hosts, without a network."""
    neighbours = Neighbours(tmp_path, fake_python)
    yield neighbours
    LaunchProcesses(marker=neighbours.run_id).kill()  # only a failed test leaves any


@pytest.fixture(scope="session")
def mpirun() -> str:
    """The launcher of this interpreter's environment; without one the test is skipped."""
    path = Path(sys.prefix, "bin", "mpirun")
    if not path.exists():
        pytest.skip(f"no {path}: pip install 'pytest-kvcache[mpi]'")
    return str(path)


@pytest.fixture
def real_site(mpirun: str, site: Site) -> Iterator[Site]:
    """A site whose ranks are real."""
    del mpirun
    with machine_to_oneself():
        yield site
