from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.launchers.detect import check_library, identify
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.launchers.hydra import FAMILY, HydraLauncher
from pytest_kvcache.launchers.protocol import LaunchJob

if TYPE_CHECKING:
    from collections.abc import Mapping


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("n1", 4), ("n2", 4)),
        "controller_host": "n0",
        "local_hosts": frozenset(),
        "program": ("/venv/bin/python", "-m", "mpi4py", "x.py"),
        "env": {"PYTHONPATH": "/a:/b c", "EMPTY": ""},
        "params": ("-l",),
        "allow_run_as_root": True,
        "remote_shell": ("/usr/bin/ssh",),
    }
    return LaunchJob(**{**values, **changes})


def argv(changed: LaunchJob) -> list[str]:
    return HydraLauncher(path="/opt/mpich/bin/mpiexec").argv(changed)


def test_hydra_on_several_hosts() -> None:
    assert argv(job()) == [
        "/opt/mpich/bin/mpiexec",
        "-hosts",
        "n0:1,n1:4,n2:4",
        "-wdir",
        "/",
        "-launcher",
        "ssh",
        "-launcher-exec",
        "/usr/bin/ssh",
        "-genv",
        "PYTHONPATH",
        "/a:/b c",
        "-genv",
        "EMPTY",
        "",
        "-l",
        "-n",
        "9",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


def test_hydra_on_one_host() -> None:
    local = job(
        hosts=(("localhost", 2),),
        controller_host="localhost",
        local_hosts=frozenset({"localhost"}),
        env={},
        params=(),
        remote_shell=(),
    )

    assert argv(local) == [
        "/opt/mpich/bin/mpiexec",
        "-hosts",
        "localhost:3",
        "-n",
        "3",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


@pytest.mark.parametrize("loopback", ["localhost", "127.0.0.1", "127.0.1.1"])
def test_loopback_name_beside_other_hosts_is_refused(loopback: str) -> None:
    with pytest.raises(ValueError, match=f"controller_host is {loopback}; .* own name"):
        argv(job(controller_host=loopback))


@pytest.mark.parametrize("params", ["-launcher rsh", "-launcher-exec /x", "-bootstrap rsh"])
def test_launcher_chosen_by_the_user_beats_ours(params: str) -> None:
    command = argv(job(params=tuple(params.split())))

    assert "/usr/bin/ssh" not in command
    assert " ".join(command).count("-launcher ") == params.count("-launcher ")


def test_users_variable_comes_last_which_is_the_one_that_counts() -> None:
    command = argv(job(params=("-genv", "EMPTY", "full")))

    assert command.index("full") > command.index("EMPTY")


def test_remote_shell_with_arguments_is_called_by_a_script() -> None:
    words = argv(job(remote_shell=("ssh", "-F", "x"), remote_shell_script="/run/remote-shell"))
    assert words[words.index("-launcher-exec") + 1] == "/run/remote-shell"


@pytest.mark.parametrize("params", ["-n 8", "-np 8", "-hosts n9", "-f h", "-ppn 2"])
def test_parameter_that_moves_ranks_is_refused(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        argv(job(params=tuple(params.split())))


ALLOCATION = {"SLURM_JOB_ID": "7"}


def single_host(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("localhost", 2),),
        "controller_host": "localhost",
        "local_hosts": frozenset({"localhost"}),
        "env": {},
        "params": (),
        "remote_shell": (),
    }
    return job(**{**values, **changes})


def in_allocation(changed: LaunchJob, environ: Mapping[str, str] = ALLOCATION) -> list[str]:
    return HydraLauncher(path="/opt/mpich/bin/mpiexec", environ=environ).argv(changed)


def test_hydra_on_one_host_of_an_allocation_starts_the_ranks_itself() -> None:
    assert in_allocation(single_host()) == [
        "/opt/mpich/bin/mpiexec",
        "-hosts",
        "localhost:3",
        "-launcher",
        "fork",
        "-n",
        "3",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {"PBS_JOBID": "7.head", "PBS_NODEFILE": "/n"},
        {"PE_HOSTFILE": "/pe"},
        {"LSB_MCPU_HOSTS": "n1 4"},
        {"COBALT_NODEFILE": "/n"},
    ],
    ids=" ".join,
)
def test_every_batch_system_leaves_hydra_alone(environ: dict[str, str]) -> None:
    for changed in (single_host(), job(remote_shell=())):
        assert in_allocation(changed, environ) == in_allocation(changed)
        assert intel(changed, environ) == intel(changed, ALLOCATION)
        assert "-launcher" in intel(changed, environ)


def test_hydra_on_several_hosts_of_an_allocation_reaches_them_by_ssh() -> None:
    changed = job(remote_shell=())
    inside = in_allocation(changed)

    assert inside[5:7] == ["-launcher", "ssh"]
    assert inside[:5] + inside[7:] == argv(changed)


@pytest.mark.parametrize(
    "changed",
    [
        job(),
        job(remote_shell=(), params=("-bootstrap", "slurm")),
        single_host(params=("-launcher", "slurm")),
        single_host(remote_shell=("/usr/bin/ssh",)),
    ],
)
def test_hydra_keeps_another_launcher_in_an_allocation(changed: LaunchJob) -> None:
    assert in_allocation(changed) == argv(changed)


INTEL = "/opt/intel/bin/mpiexec.hydra"


def intel(changed: LaunchJob, environ: Mapping[str, str] | None = None) -> list[str]:
    return HydraLauncher(path=INTEL, flavour="intel", environ=environ or {}).argv(changed)


def test_intel_on_several_hosts() -> None:
    assert intel(job()) == [
        INTEL,
        "-wdir",
        "/",
        "-launcher",
        "ssh",
        "-launcher-exec",
        "/usr/bin/ssh",
        "-genv",
        "I_MPI_PIN",
        "off",
        "-genv",
        "PYTHONPATH",
        "/a:/b c",
        "-genv",
        "EMPTY",
        "",
        "-l",
        "-host",
        "n0",
        "-n",
        "1",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
        ":",
        "-host",
        "n1",
        "-n",
        "4",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
        ":",
        "-host",
        "n2",
        "-n",
        "4",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


@pytest.mark.parametrize(("environ", "launcher"), [({}, []), (ALLOCATION, ["-launcher", "fork"])])
def test_intel_on_one_host(environ: dict[str, str], launcher: list[str]) -> None:
    assert intel(single_host(), environ) == [
        INTEL,
        *launcher,
        "-genv",
        "I_MPI_PIN",
        "off",
        "-host",
        "localhost",
        "-n",
        "3",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


@pytest.mark.parametrize(
    ("params", "environ"),
    [
        ("-genv I_MPI_PIN_DOMAIN core", {}),
        ("-bind-to core", {}),
        ("", {"I_MPI_PIN": "on"}),
        ("", {"I_MPI_PIN_PROCESSOR_LIST": "0,1"}),
    ],
)
def test_ranks_that_the_user_pins_stay_pinned_under_intel(
    params: str, environ: dict[str, str]
) -> None:
    assert "off" not in intel(single_host(params=tuple(params.split())), environ)


@pytest.mark.parametrize("params", ["-ppn 2", "-machinefile f", "-hosts-group n[1-2]", "-rr"])
def test_parameter_that_moves_ranks_is_refused_under_intel(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        intel(job(params=tuple(params.split())))


RANK = """
import os, pathlib, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
text = f"{world.size} {len(os.sched_getaffinity(0))} {os.environ['ODD']}"
pathlib.Path(sys.argv[1], str(world.rank)).write_text(text)
"""


@pytest.mark.mpi
def test_the_installed_hydra_starts_one_world_and_pins_nobody(tmp_path: Path) -> None:
    """With the wheels of MPICH or Intel MPI; the usual environment has Open MPI's."""
    programs = [Path(sys.prefix, "bin", name) for name in ("mpiexec.hydra", "mpiexec")]
    path = next((str(program) for program in programs if program.exists()), None)
    library = mpi_library(sys.executable)
    found = path and identify(path, FAMILIES, library=library, environ=os.environ)
    if not found or found[0] != "hydra":
        pytest.skip(f"no hydra in {sys.prefix}/bin: install the wheel mpich or impi-rt")
    check_library(found[1], FAMILY)
    changed = single_host(
        program=(sys.executable, "-m", "mpi4py", "-c", RANK, str(tmp_path)),
        env={"ODD": "a,b c;d=$e'\""},
    )

    command = FAMILY.make(found[1]).argv(changed)
    subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=True)

    cores = len(os.sched_getaffinity(0))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(rank): f"3 {cores} a,b c;d=$e'\"" for rank in range(3)
    }
