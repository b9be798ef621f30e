"""Real ranks in a real allocation of a Slurm of one node, which these tests start themselves."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.launch.diagnosis import cause_of_death
from pytest_kvcache.launchers.detect import find_launcher, identify
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.launchers.protocol import LaunchJob
from tests.site import (
    PATIENCE_S,
    PLUGINS,
    PYTEST,
    SMALL,
    SUITE,
    free_ports,
    machine_to_oneself,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

pytestmark = pytest.mark.mpi

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sinfo")
SBIN = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
NODE = socket.gethostname().partition(".")[0]
CONFIGURATION = """
ClusterName=kvcache
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
# Writes what it sees into a file of its own, named by its world rank.
RANK = """
import os, pathlib, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
text = f"{world.size} {MPI.Get_processor_name()} {os.environ['ODD']}"
pathlib.Path(sys.argv[1], str(world.rank)).write_text(text)
"""
DIES = """
import os, signal
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
MPI.COMM_WORLD.Barrier()
"""
SLEEPS = """
import os, pathlib, sys, time
from mpi4py import MPI
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(300)
"""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs; ``environ`` is what its commands need."""

    environ: Mapping[str, str]

    def inside(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in an allocation of a single task."""
        return subprocess.run(
            ["salloc", "--quiet", "--ntasks=1", *command],
            env={**self.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            **options,
        )


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Munge and Slurm in a directory of their own, on free ports; ended at the end."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)}: install slurmctld, slurmd, slurm-client and munge")
    # The socket's path must be short. Others' tests must not find it in the way.
    with tempfile.TemporaryDirectory(prefix="kvs-") as name, ExitStack() as daemons:
        directory = Path(name)
        environ = {**os.environ, "PATH": SBIN, "SLURM_CONF": f"{directory}/slurm.conf"}
        for own in [own for own in environ if own.startswith("SLURM_") and own != "SLURM_CONF"]:
            del environ[own]
        configure(directory)
        for command in (munged(directory), ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemons.enter_context(running(command, directory, environ))
        wait_for(lambda: "idle" in asked(["sinfo", "--noheader", "--format=%t"], environ))
        yield Slurm(environ=environ)


def configure(directory: Path) -> None:
    for name in ("state", "spool"):
        (directory / name).mkdir()
    controller_port, node_port = free_ports(2)
    text = CONFIGURATION.format(
        node=NODE,
        controller_port=controller_port,
        node_port=node_port,
        user=getpass.getuser(),
        directory=directory,
    )
    (directory / "slurm.conf").write_text(text)
    key = directory / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)


def munged(directory: Path) -> list[str]:
    return [
        "munged", "--foreground", "--force", f"--socket={directory}/munge",
        f"--key-file={directory}/key", f"--pid-file={directory}/munged.pid",
        f"--seed-file={directory}/seed",
    ]  # fmt: skip


@contextmanager
def running(command: Sequence[str], directory: Path, environ: Mapping[str, str]) -> Iterator[None]:
    with (
        (directory / f"{command[0]}.log").open("wb") as log,
        subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as daemon,
    ):
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait(PATIENCE_S)


def asked(command: Sequence[str], environ: Mapping[str, str]) -> str:
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    ).stdout


@pytest.fixture(scope="module")
def step(slurm: Slurm) -> Slurm:
    """A Slurm whose srun starts ranks with the MPI library of this interpreter."""
    argv = srun_argv(slurm, "pass")
    mpi = next(word for word in argv if word.startswith("--mpi="))
    tried = slurm.inside("srun", mpi, "true")
    if "plugin" in tried.stdout:  # Debian's wants the file of libpmix-dev
        pytest.skip(f"srun can't do {mpi} here: {tried.stdout.splitlines()[0]}")
    assert tried.returncode == 0, tried.stdout
    return slurm


def srun_argv(slurm: Slurm, program: str, *arguments: str) -> list[str]:
    """Our command for a coordinator and two ranks that run a Python program."""
    environ = {**slurm.environ, "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": NODE}
    library = mpi_library(sys.executable)
    path = find_launcher("srun", prefix="/nowhere", path=environ["PATH"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environ["SLURM_CONF"])
        name, found = identify(path, FAMILIES, library=library, environ=environ)
        launcher = FAMILIES[name].make(found)
    job = LaunchJob(
        hosts=(("127.0.0.1", 2),),
        controller_host="127.0.0.1",
        local_hosts=frozenset({"127.0.0.1"}),
        program=(sys.executable, "-m", "mpi4py", "-c", program, *arguments),
        env={"ODD": "a,b c;d=$e'\""},
        params=(),
        allow_run_as_root=True,
    )
    try:
        return launcher.argv(job)
    except OptionError as error:
        pytest.skip(str(error))


# --- srun -------------------------------------------------------------------------------------


def test_srun_starts_more_ranks_than_tasks_of_the_allocation_as_one_world(
    step: Slurm, tmp_path: Path
) -> None:
    done = step.inside(*srun_argv(step, RANK, str(tmp_path)))

    assert done.returncode == 0, done.stdout
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(rank): f"3 {socket.gethostname()} a,b c;d=$e'\"" for rank in range(3)
    }


def test_a_rank_that_dies_under_srun_is_named(step: Slurm) -> None:
    done = step.inside(*srun_argv(step, DIES))

    assert done.returncode != 0
    cause = cause_of_death(done.stdout.splitlines(), [])
    assert cause == f"rank 1 on host {NODE} ended with 'Killed'", done.stdout


def test_no_rank_outlives_a_killed_srun(step: Slurm, tmp_path: Path) -> None:
    kept = tmp_path / "srun.pid"
    shell = f'echo $$ > "{kept}"; exec "$@"'
    command = ["sh", "-c", shell, "sh", *srun_argv(step, SLEEPS, str(tmp_path))]
    with subprocess.Popen(
        ["salloc", "--quiet", "--ntasks=1", *command],
        env={**step.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as allocation:
        wait_for(lambda: len(list(tmp_path.glob("[0-9]*"))) == 3)
        pids = [int(path.name) for path in tmp_path.glob("[0-9]*")]
        os.kill(int(kept.read_text()), signal.SIGKILL)
        wait_for(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))
        allocation.wait(PATIENCE_S)


# --- benchmarks -------------------------------------------------------------------------------


def benchmark(slurm: Slurm, directory: Path, *options: str, inside: bool = True) -> Any:
    """Two ranks in an allocation of one task; without one if not ``inside``."""
    command = [
        sys.executable, "-m", "pytest", *PYTEST, *SUITE, *SMALL,
        f"--kv-cache-dir={directory}", "--kv-results-dir=results", *options,
    ]  # fmt: skip
    environ = {**slurm.environ, "PYTHONPATH": str(PLUGINS), "NO_COLOR": "1"}
    with machine_to_oneself():
        if inside:
            return Slurm(environ=environ).inside(*command, cwd=directory)
        return subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip


def launcher_of_the_run(directory: Path) -> str:
    (path,) = directory.glob("results/*/run.json")
    run = json.loads(path.read_text())
    (case,) = run["cases"]
    (trial,) = case["trials"]
    assert trial["ok"], trial["error"]
    assert len(trial["ranks"]) == 2
    return str(run["environment"]["launcher"])


def test_a_benchmark_runs_under_srun(step: Slurm, tmp_path: Path) -> None:
    done = benchmark(step, tmp_path, "--kv-mpi-bin=srun")

    assert done.returncode == 0, done.stdout
    assert "/srun (" in launcher_of_the_run(tmp_path)


def test_a_benchmark_runs_under_mpirun_in_an_allocation(
    slurm: Slurm, mpirun: str, tmp_path: Path
) -> None:
    done = benchmark(slurm, tmp_path)

    assert done.returncode == 0, done.stdout
    assert mpirun in launcher_of_the_run(tmp_path)


def test_srun_outside_an_allocation_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    done = benchmark(slurm, tmp_path, "--kv-mpi-bin=srun", inside=False)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "this is no Slurm allocation (SLURM_JOB_ID is not set); run pytest" in done.stderr
