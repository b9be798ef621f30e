from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.protocol import LaunchJob

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MPIRUN = "/venv/bin/mpirun"


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("127.0.0.1", 2),),
        "controller_host": "localhost",
        "local_hosts": frozenset({"127.0.0.1"}),
        "program": (
            "/venv/bin/python",
            "-m",
            "mpi4py",
            "-m",
            "pytest_kvcache.ranks.worker",
            "/run 1",
        ),
        "env": {},
        "params": (),
        "allow_run_as_root": False,
    }
    return LaunchJob(**{**values, **changes})


def argv(
    changed: LaunchJob,
    flavour: Literal["openmpi-5", "openmpi-4"] = "openmpi-5",
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    return OpenMPILauncher(path=MPIRUN, flavour=flavour, environ=environ or {}).argv(changed)


def words(command: list[str]) -> str:
    return " ".join(command)


def test_open_mpi_5_on_one_host() -> None:
    assert argv(job()) == [
        "/venv/bin/mpirun",
        "--host",
        "localhost:3",
        "--map-by",
        "slot",
        "--bind-to",
        "none",
        "--mca",
        "pml",
        "ob1",
        "--mca",
        "btl",
        "self,sm,tcp",
        "--prtemca",
        "plm_ssh_agent",
        "/venv/bin/mpirun",
        "-n",
        "3",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "-m",
        "pytest_kvcache.ranks.worker",
        "/run 1",
    ]


def full_job() -> LaunchJob:
    return job(
        hosts=(("n1", 4), ("n2", 4)),
        controller_host="n0",
        local_hosts=frozenset(),
        env={"PYTHONPATH": "/a:/b c", "EMPTY": ""},
        params=("--tag-output",),
        allow_run_as_root=True,
        remote_shell=("ssh", "-F", "/etc/ssh.conf"),
        program=("/venv/bin/python", "x.py"),
    )


def test_open_mpi_5_on_several_hosts() -> None:
    assert argv(full_job()) == [
        "/venv/bin/mpirun",
        "--allow-run-as-root",
        "--host",
        "n0:1,n1:4,n2:4",
        "--map-by",
        "slot",
        "--bind-to",
        "none",
        "--wdir",
        "/",
        "--mca",
        "pml",
        "ob1",
        "--mca",
        "btl",
        "self,sm,tcp",
        "--prtemca",
        "plm_ssh_agent",
        "ssh -F /etc/ssh.conf",
        "--prtemca",
        "plm_ssh_no_tree_spawn",
        "1",
        "-x",
        "PYTHONPATH=/a:/b c",
        "-x",
        "EMPTY=",
        "--tag-output",
        "-n",
        "9",
        "/venv/bin/python",
        "x.py",
    ]


def test_open_mpi_4_on_several_hosts() -> None:
    assert argv(full_job(), flavour="openmpi-4") == [
        "/venv/bin/mpirun",
        "--allow-run-as-root",
        "--host",
        "n0:1,n1:4,n2:4",
        "--map-by",
        "slot",
        "--bind-to",
        "none",
        "--wdir",
        "/",
        "--mca",
        "pml",
        "ob1",
        "--mca",
        "btl",
        "self,vader,tcp",
        "--mca",
        "plm_rsh_agent",
        "ssh -F /etc/ssh.conf",
        "--mca",
        "plm_rsh_no_tree_spawn",
        "1",
        "-x",
        "PYTHONPATH=/a:/b c",
        "-x",
        "EMPTY=",
        "--tag-output",
        "-n",
        "9",
        "/venv/bin/python",
        "x.py",
    ]


@pytest.mark.parametrize(
    ("params", "ours"),
    [
        ("--map-by core", "--map-by slot"),
        ("-map-by core", "--map-by slot"),
        ("--map-by=core", "--map-by slot"),
        ("--rankfile ranks.txt", "--map-by slot"),
        ("--bind-to core", "--bind-to none"),
        ("-bind-to core", "--bind-to none"),
        ("--bind-to=core", "--bind-to none"),
        ("--mca pml ucx", "--mca pml ob1"),
        ("-mca pml ucx", "--mca pml ob1"),
        ("--mca=pml ucx", "--mca pml ob1"),
        ("--omca pml ucx", "--mca pml ob1"),
        ("--gmca btl tcp,self", "--mca btl self,sm,tcp"),
        (
            "--prtemca plm_ssh_agent rsh",
            "--prtemca plm_ssh_agent ssh --prtemca plm_ssh_no_tree_spawn 1",
        ),
        ("-x LEVEL=9", "-x LEVEL=1"),
        ("-x LEVEL", "-x LEVEL=1"),
    ],
)
def test_user_parameter_beats_our_default(params: str, ours: str) -> None:
    rest = {"env": {"LEVEL": "1", "OTHER": "2"}, "remote_shell": ("ssh",)}
    without = words(argv(job(**rest)))
    given = words(argv(job(params=tuple(params.split()), **rest)))

    assert ours in without
    assert ours not in given
    assert given.replace(f" {params}", "") == without.replace(f" {ours}", "")


@pytest.mark.parametrize("key", ["pml", "btl"])
def test_transport_chosen_in_the_environment_beats_our_default(key: str) -> None:
    assert f"--mca {key}" in words(argv(job()))
    assert f"--mca {key}" not in words(argv(job(), environ={f"OMPI_MCA_{key}": "ucx"}))


ALLOCATION = {"SLURM_JOB_ID": "7"}
# What a job's processes see of its batch system, and what keeps Open MPI from following it.
JOBS: dict[str, tuple[dict[str, str], str, str]] = {
    "slurm": (ALLOCATION, "^slurm", ""),
    "slurm, the older name": ({"SLURM_JOBID": "7"}, "^slurm", ""),
    "pbs": (
        {"PBS_JOBID": "7.head", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODEFILE": "/n"},
        "^pbs,tm",
        "",
    ),
    "pbs, cut down": ({"PBS_JOBID": "7.head"}, "^pbs,tm", ""),
    "pbs as Slurm imitates it": ({**ALLOCATION, "PBS_JOBID": "7"}, "^slurm,pbs,tm", ""),
    "grid engine": ({"PE_HOSTFILE": "/pe", "JOB_ID": "7"}, "^gridengine", "qrsh"),
    "lsf": ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "n1 4"}, "^lsf", ""),
    "lsf, its affinity file": ({"LSB_AFFINITY_HOSTFILE": "/a"}, "^lsf", ""),
    "loadleveler": ({"LOADL_STEP_ID": "n1.7.0"}, "^loadleveler", "llspawn"),
    "flux": ({"FLUX_JOB_ID": "f7"}, "^flux", ""),
    "alps": ({"BATCH_PARTITION_ID": "7"}, "^alps", ""),
}


@pytest.mark.parametrize(
    ("flavour", "option", "starter"),
    [("openmpi-5", "--prtemca", "ssh"), ("openmpi-4", "--mca", "rsh")],
)
@pytest.mark.parametrize("kind", JOBS)
def test_hosts_and_slots_are_ours_in_the_job_of_a_batch_system(
    kind: str, flavour: Literal["openmpi-5", "openmpi-4"], option: str, starter: str
) -> None:
    environ, ras, agent = JOBS[kind]
    disabled = f" {option} plm_{starter}_disable_{agent} 1" if agent else ""
    one = f"{option} ras {ras}{disabled}"
    several = f"{option} ras {ras} {option} plm {starter}{disabled}"
    for changed, ours in ((job(), one), (full_job(), several)):
        inside = words(argv(changed, flavour, environ))
        assert f" {ours} " in inside
        assert inside.replace(f" {ours}", "") == words(argv(changed, flavour))


@pytest.mark.parametrize(
    ("params", "environ"),
    [
        ("--prtemca plm slurm --map-by slot:OVERSUBSCRIBE", {}),
        ("--prtemca ras slurm", {}),
        ("", {"PRTE_MCA_plm": "slurm"}),
        ("", {"PRTE_MCA_ras": "slurm"}),
        ("--prtemca ras pbs", {"PBS_JOBID": "7"}),
    ],
)
def test_the_users_way_to_start_in_an_allocation_beats_ours(
    params: str, environ: dict[str, str]
) -> None:
    changed = job(params=tuple(params.split()))

    assert argv(changed, environ={**ALLOCATION, **environ}) == argv(changed)


def test_root_is_allowed_once_when_the_user_says_it_too() -> None:
    command = argv(job(params=("--allow-run-as-root",), allow_run_as_root=True))

    assert command.count("--allow-run-as-root") == 1


@pytest.mark.parametrize("params", ["-n 8", "-np 8", "-N 2", "--host n9", "--hostfile h", "-H n9"])
def test_parameter_that_moves_ranks_is_refused(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        argv(job(params=tuple(params.split())))


@pytest.mark.parametrize("word", ["a b", "Proxy=n0:22", ""])
def test_remote_shell_that_open_mpi_would_tear_is_refused(word: str) -> None:
    with pytest.raises(OptionError, match=r"--kv-ssh has the word .* give the script's path"):
        argv(job(remote_shell=("ssh", "-o", word)))


RANK = """
import os, pathlib, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
text = f"{world.size} {os.environ['LEVEL']} {os.environ['ODD']}"
pathlib.Path(sys.argv[1], str(world.rank)).write_text(text)
"""


def run_real(mpirun: str, directory: Path, ranks: int, *params: str) -> list[str]:
    """Run ``ranks`` workers; return what the processes wrote, in world order."""
    launcher = OpenMPILauncher(path=mpirun, flavour="openmpi-5", environ={})
    command = launcher.argv(
        job(
            hosts=(("127.0.0.1", ranks),),
            program=(sys.executable, "-m", "mpi4py", "-c", RANK, str(directory)),
            env={"LEVEL": "1", "ODD": "a,b c;d=$e'\""},
            params=params,
            allow_run_as_root=os.geteuid() == 0,
        )
    )
    subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=True)
    return [path.read_text() for path in sorted(directory.iterdir(), key=lambda p: int(p.name))]


@pytest.mark.mpi
def test_explicit_slots_need_no_oversubscribe(mpirun: str, tmp_path: Path) -> None:
    ranks = 2 * (os.cpu_count() or 1)

    written = run_real(mpirun, tmp_path, ranks)

    assert written == [f"{ranks + 1} 1 a,b c;d=$e'\""] * (ranks + 1)


@pytest.mark.mpi
def test_mpirun_accepts_what_the_user_sets_instead_of_us(mpirun: str, tmp_path: Path) -> None:
    params = "--map-by core:oversubscribe --bind-to core:overload-allowed --mca pml ob1"
    written = run_real(
        mpirun, tmp_path, 1, *params.split(), "--mca", "btl", "self,tcp", "-x", "LEVEL=9"
    )

    assert written == ["2 9 a,b c;d=$e'\""] * 2


@pytest.mark.mpi
@pytest.mark.parametrize(
    "kind", ["slurm", "pbs", "pbs in a container", "grid engine", "loadleveler"]
)
def test_mpirun_starts_the_coordinator_too_in_a_job_that_has_no_slot_for_it(
    mpirun: str, tmp_path: Path, kind: str
) -> None:
    name = socket.gethostname()
    (tmp_path / "nodes").write_text(f"{name}\n")
    (tmp_path / "pe").write_text(f"{name} 1 all.q@{name} UNDEFINED\n")
    pbs = {"PBS_JOBID": "7.head", "PBS_ENVIRONMENT": "PBS_BATCH"}
    environ = {
        "slurm": {"SLURM_JOBID": "7", "SLURM_NODELIST": name, "SLURM_TASKS_PER_NODE": "1"},
        "pbs": {**pbs, "PBS_NODEFILE": str(tmp_path / "nodes")},
        "pbs in a container": {**pbs, "PBS_NODEFILE": str(tmp_path / "not seen from here")},
        "grid engine": {
            "SGE_ROOT": "/none",
            "ARC": "lx-amd64",
            "JOB_ID": "7",
            "PE_HOSTFILE": str(tmp_path / "pe"),
        },
        "loadleveler": {"LOADL_STEP_ID": "n1.7.0"},
    }[kind]
    launcher = OpenMPILauncher(path=mpirun, flavour="openmpi-5", environ=environ)
    changed = job(
        hosts=(("localhost", 2),),
        controller_host="localhost",
        local_hosts=frozenset({"localhost"}),
        program=("/bin/echo", "one more"),
        env={},
        allow_run_as_root=os.geteuid() == 0,
    )
    command = launcher.argv(changed)
    tries = [command]
    if shutil.which("ssh") is not None:  # a path with a space can't be an agent of ours
        at = command.index("plm_ssh_agent")
        tries.append(command[: at - 1] + command[at + 2 :])

    for tried in tries:
        done = subprocess.run(
            tried,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.count("one more") == 3, (tried, done.stdout, done.stderr)
