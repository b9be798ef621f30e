from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.hosts import HostRanks, RankLayout
from pytest_kvcache.localhost import available_disk_bytes
from pytest_kvcache.options import Options, build_options
from pytest_kvcache.preflight import LaunchSetup, check_plan, check_results_dir, find_setup
from pytest_kvcache.registry import build_registry
from tests.factories import make_plan
from tests.site import runs_as_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.launchers.protocol import LaunchJob
    from pytest_kvcache.plan import Plan

ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class FakeLauncher:
    flavour: str = "openmpi-5"

    def argv(self, job: LaunchJob) -> list[str]:
        return list(job.program)


def setup_of(flavour: str = "openmpi-5") -> LaunchSetup:
    return LaunchSetup(
        launcher=FakeLauncher(flavour),
        launcher_path="/bin/mpirun",
        launcher_version="5.0.11",
        mpi_library="Open MPI v5.0.11",
        python="/bin/python",
    )


def typed(**texts: Any) -> Options:
    return build_options(
        {name: (text, "command line") for name, text in {"oversubscribe": "true", **texts}.items()}
    )


def check(plan: Plan, flavour: str = "hydra", **texts: Any) -> None:
    check_plan(typed(**texts), plan, setup_of(flavour), {})


def ranks(count: int, name: str = "127.0.0.1") -> RankLayout:
    return RankLayout(hosts=(HostRanks(name=name, ranks=count),))


# --- what is found --------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, says: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
        path.chmod(0o755)
        return str(path)

    return write


def found(mpirun: str, python: str) -> LaunchSetup:
    options = typed(mpi_bin=mpirun, python=python)
    return find_setup(options, build_registry(), {"PATH": "/nowhere"})


def test_launcher_library_and_interpreter_are_found(program: Callable[[str, str], str]) -> None:
    mpirun = program("mpirun", "mpirun (Open MPI) 5.0.11")
    python = program("python", "mpi-library: Open MPI v5.0.11, package: x")
    setup = found(mpirun, python)
    assert setup.launcher.flavour == "openmpi-5"
    assert (setup.launcher_path, setup.launcher_version) == (mpirun, "5.0.11")
    assert (setup.mpi_library, setup.python) == ("Open MPI v5.0.11, package: x", python)


def test_a_launcher_of_another_family_than_the_library_is_refused(
    program: Callable[[str, str], str],
) -> None:
    mpirun = program("mpirun", "HYDRA build details:\n    Version:   5.0.2")
    with pytest.raises(PreflightError, match=r"hydra 5\.0\.2.*both must be MPICH"):
        found(mpirun, program("python", "mpi-library: Open MPI v5.0.11"))


def test_a_launcher_of_a_plugin_is_not_looked_for_on_the_disk(
    program: Callable[[str, str], str],
) -> None:
    python = program("python", "mpi-library: Open MPI v5.0.11")
    registry = replace(build_registry(), launchers={"flux": lambda _environ: FakeLauncher("flux")})
    setup = find_setup(typed(mpi_bin="flux", python=python), registry, {"PATH": ""})
    assert (setup.launcher.flavour, setup.launcher_path) == ("flux", "flux")


def test_an_interpreter_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-python is 'nope'; it must be an interpreter"):
        find_setup(typed(python="nope"), build_registry(), {"PATH": ""})


def test_the_interpreter_is_this_one_unless_told_otherwise(
    program: Callable[[str, str], str], mpirun: str
) -> None:
    del program
    setup = find_setup(typed(mpi_bin=mpirun), build_registry(), {"PATH": ""})
    assert setup.python == sys.executable


def test_a_relative_interpreter_becomes_an_absolute_path(
    program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mpirun = program("mpirun", "mpirun (Open MPI) 5.0.11")
    python = program("python", "mpi-library: Open MPI v5.0.11")
    monkeypatch.chdir(Path(python).parent)
    assert found(mpirun, "./python").python == python


# --- the results directory ------------------------------------------------------------------


def test_a_results_directory_may_be_made_later(tmp_path: Path) -> None:
    check_results_dir(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("below", ["", "/deeper", "/deeper/still"])
def test_a_results_directory_at_or_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"--kv-results-dir is .*file is no directory"):
        check_results_dir(f"{tmp_path}/file{below}")


def test_a_results_directory_may_be_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    check_results_dir(str(tmp_path / "link"))


def test_a_link_that_leads_nowhere_is_no_results_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OptionError, match="--kv-results-dir"):
        check_results_dir(str(tmp_path / "link"))


def test_a_relative_results_directory_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=f"{tmp_path}/results is no directory"):
        check_results_dir("results")


# --- the plan on this machine ---------------------------------------------------------------


def test_a_plan_that_this_machine_can_run_passes() -> None:
    check(make_plan(np=2))


def test_root_needs_a_word_of_the_user_for_open_mpi() -> None:
    if not runs_as_root():
        pytest.skip("this is not root")
    for flavour in ("openmpi-4", "openmpi-5"):
        with pytest.raises(PreflightError, match=r"this is root.*--kv-allow-run-as-root"):
            check(make_plan(), flavour)
        check(make_plan(), flavour, allow_run_as_root="true")
    check(make_plan(), "hydra")


def test_root_may_be_allowed_by_open_mpis_own_two_variables() -> None:
    if not runs_as_root():
        pytest.skip("this is not root")
    check_plan(typed(), make_plan(), setup_of(), ROOT_VARIABLES)
    for name in ROOT_VARIABLES:
        one = {name: "1"}
        with pytest.raises(PreflightError, match="this is root"):
            check_plan(typed(), make_plan(), setup_of(), one)


def test_ranks_are_counted_against_cores_without_the_coordinator() -> None:
    cores = len(os.sched_getaffinity(0))
    check(make_plan(layout=ranks(cores)), oversubscribe="false")
    with pytest.raises(PreflightError, match=f"{cores + 1} ranks.*--kv-oversubscribe"):
        check(make_plan(layout=ranks(cores + 1)), oversubscribe="false")
    check(make_plan(layout=ranks(cores + 1)))


def test_ranks_of_two_names_of_this_machine_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    names = ("127.0.0.1", "localhost")
    layout = RankLayout(hosts=tuple(HostRanks(name=name, ranks=cores) for name in names))
    with pytest.raises(PreflightError, match="--kv-oversubscribe"):
        check(make_plan(layout=layout), oversubscribe="false")


def test_the_cap_that_was_asked_for_must_be_free(tmp_path: Path) -> None:
    page = make_plan().stored_bytes
    blocks = int(0.9 * available_disk_bytes(str(tmp_path))) // page
    plan = make_plan(backend="file", cache_dir=str(tmp_path), need_blocks=10 * blocks)
    check(replace(plan, capacity_blocks=blocks // 2), storage_capacity_gb="1")
    too_much = replace(plan, capacity_blocks=2 * blocks)
    with pytest.raises(PreflightError, match=r"--kv-storage-capacity-gb lets 1 ranks store"):
        check(too_much, storage_capacity_gb="1")
    check(replace(too_much, need_blocks=10), storage_capacity_gb="1")


def test_what_ranks_need_on_a_host_is_the_sum(tmp_path: Path) -> None:
    page = make_plan().stored_bytes
    blocks = int(0.9 * available_disk_bytes(str(tmp_path))) // page
    plan = make_plan(
        backend="file", cache_dir=str(tmp_path), need_blocks=blocks, layout=ranks(3),
        capacity_blocks=blocks // 2,
    )  # fmt: skip
    with pytest.raises(PreflightError, match="lets 3 ranks store"):
        check(plan, storage_capacity_gb="1")


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_what_is_not_on_disk_needs_no_disk(backend: str) -> None:
    check(make_plan(backend=backend, capacity_blocks=10), storage_capacity_gb="1")


def test_memory_of_a_memory_backend_counts() -> None:
    plan = make_plan(backend="memory", capacity_blocks=1 << 40)
    with pytest.raises(PreflightError, match=r"1 ranks need .* of memory on one host"):
        check(plan)
    check(make_plan(backend="null", capacity_blocks=1 << 40))


def test_the_names_of_this_machine_are_local() -> None:
    check(make_plan(layout=ranks(1, socket.gethostname())))
