from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.access import LauncherAccess, SshAccess
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.launch.execution import SHELL_SCRIPT, BareExecution
from pytest_kvcache.registry import build_registry
from tests.factories import make_plan, options

if TYPE_CHECKING:
    from pathlib import Path

# Says what Slurm's own would.
SRUN = """#!/bin/sh
case $1 in
--version) echo slurm-wlm 22.05.8;;
--mpi=list) printf 'MPI plugin types are...\\n\\tnone\\n\\tpmix\\n\\tpmi2\\n';;
esac
"""
OTHER = "192.0.2.1"


@pytest.fixture
def srun(tmp_path: Path) -> str:
    path = tmp_path / "bin" / "srun"
    path.parent.mkdir()
    path.write_text(SRUN)
    path.chmod(0o755)
    return str(path)


def execution(**texts: str | list[str]) -> BareExecution:
    """One that has found what it needs."""
    node = socket.gethostname().partition(".")[0]
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": node, "PATH": os.environ["PATH"]}
    found = BareExecution(options(**texts), build_registry(), allocation)
    found.setup()
    return found


def prepared(execution: BareExecution, directory: Path) -> list[str]:
    """The files of a launch on another host."""
    directory.mkdir(exist_ok=True)
    plan = make_plan(layout=RankLayout(hosts=(HostRanks(name=OTHER, ranks=2),)))
    assert execution.prepare(["launcher"], plan, directory) == ["launcher"]
    return [path.name for path in directory.iterdir()]


def test_under_srun_hosts_are_reached_by_srun_and_nothing_else(srun: str, tmp_path: Path) -> None:
    found = execution(mpi_bin=srun)
    assert isinstance(found.access, LauncherAccess)
    assert found.access.argv(OTHER, ["true"], {})[0] == srun
    assert found.remote_shell([OTHER]) == ()
    assert prepared(found, tmp_path / "trial") == []


def test_under_srun_hosts_are_reached_by_ssh_if_the_user_says_so(srun: str, tmp_path: Path) -> None:
    found = execution(mpi_bin=srun, ssh="/bin/echo")
    assert isinstance(found.access, SshAccess)
    assert found.remote_shell([OTHER])[0] == "/bin/echo"
    assert prepared(found, tmp_path / "trial") == [SHELL_SCRIPT]


def test_other_launchers_have_hosts_reached_by_ssh() -> None:
    found = execution(ssh="/bin/echo")
    assert isinstance(found.access, SshAccess)
    assert found.remote_shell([]) == ()
