from __future__ import annotations

import pytest

from pytest_kvcache.hosts.access import LauncherAccess
from pytest_kvcache.launchers.srun import SrunReach

PROGRAM = ["/venv/bin/python", "-m", "pytest_kvcache.hosts.agent"]
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-2]"}
ENDED = "srun: error: n2: task 0: Exited with exit code 1\n"


@pytest.fixture
def access() -> LauncherAccess:
    return LauncherAccess(SrunReach("/usr/bin/srun", ALLOCATION))


def test_srun_starts_a_program_on_a_node_of_the_allocation(access: LauncherAccess) -> None:
    assert access.argv("n2.site.org", PROGRAM, {"MPI4PY_LIBMPI": "/opt/a,b.so"}) == [
        "/usr/bin/srun",
        "-N1",
        "-n1",
        "--nodelist=n2",
        "--overlap",
        "--overcommit",
        "--mpi=none",
        "--cpu-bind=none",
        "--export=ALL",
        "--chdir=/",
        "--quiet",
        "/usr/bin/env",
        "MPI4PY_LIBMPI=/opt/a,b.so",
        "/venv/bin/python",
        "-m",
        "pytest_kvcache.hosts.agent",
    ]


def test_a_host_that_is_no_node_is_left_to_srun_to_refuse(access: LauncherAccess) -> None:
    assert "--nodelist=n7.site.org" in access.argv("n7.site.org", PROGRAM, {})


def test_only_this_machine_needs_no_step(access: LauncherAccess) -> None:
    assert not access.is_linked("localhost")
    assert access.is_linked("192.0.2.1")
    assert access.is_linked("192.0.2.1")  # known by now
    assert access.prepare(["192.0.2.1"], "/mnt/kv") == {}
    assert access.sees_ranks


@pytest.mark.parametrize(
    ("host", "errors", "said"),
    [
        (
            "n7",
            (
                "srun: error: Unable to create step for job 7: Requested node configuration is not"
                " available\n"
            ),
            (
                "is no node of the Slurm allocation (n0, n1, n2), and srun reaches its nodes only;"
                " name one of those, or another way there by --kv-ssh"
            ),
        ),
        (
            "n2",
            (
                "srun: error: Task launch for StepId=7.0 failed on node n2: Communication"
                " connection failure\n"
                "srun: error: Application launch failed: Communication connection failure\n"
            ),
            (
                "does not answer Slurm (Application launch failed: Communication connection"
                " failure); see 'scontrol show node n2', and leave it out or ask for another"
                " allocation"
            ),
        ),
        (
            "n2.site.org",
            "salloc: error: Node failure on n2\nsrun: error: Slurm job 7 has expired\n",
            (
                "does not answer Slurm (Slurm job 7 has expired);"
                " see 'scontrol show node n2', and leave it out or ask for another allocation"
            ),
        ),
        (
            "n2",
            "srun: error: Unable to create step for job 7: Access/permission denied\n",
            (
                "can't be reached by srun (Unable to create step for job 7: Access/permission"
                " denied); see to it that 'srun --overlap -N1 -n1 -w n2 true' works in this"
                " allocation, or name another way there by --kv-ssh"
            ),
        ),
        ("n2", f"python: No module named 'pytest_kvcache'\n{ENDED}", None),
        ("n2", f"{ENDED}/usr/bin/env: '/venv/bin/python': No such file or directory\n", None),
        ("n2", "srun: cluster configuration lacks support for cpu binding\n", None),
        ("n2", "", None),
    ],
)
def test_what_srun_says_becomes_one_sentence(
    access: LauncherAccess, host: str, errors: str, said: str | None
) -> None:
    assert access.explain(host, 1, errors) == said
