"""Runs on the nodes of a Slurm that these tests start: srun reaches them, and nothing else can."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.launchers import Column
from tests.cluster.session import CACHE_DIR, Session, by_ssh
from tests.cluster.slurm import DAEMONS, STEP, Slurm, why_no_slurm
from tests.cluster.test_faults import SOON_S, left_on
from tests.site import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.cluster import Cluster

COLUMN = Column(name="srun", launcher="srun", running="", daemon="", needs=(), exports=False)
ALLOCATION = ("salloc", "--quiet", "--nodes=3", "--ntasks=3")


@pytest.fixture
def slurm(cluster: Cluster) -> Slurm:
    """Slurm on all hosts; the others have no sshd any more."""
    if (reason := why_no_slurm()) is not None:
        pytest.skip(reason)
    found = Slurm(cluster)
    found.start()
    tried = cluster.run(
        "n0", ["salloc", "--quiet", "srun", "--mpi=pmix", "true"], env=found.environ
    )
    if tried.returncode != 0:  # Debian's wants the file of libpmix-dev
        pytest.skip(f"srun can't do --mpi=pmix here: {tried.stderr.strip()}")
    for host in ("n1", "n2"):
        cluster.stop_sshd(host)
    return found


def session(slurm: Slurm, *args: str, allocation: Sequence[str] = ALLOCATION) -> Session:
    """pytest on n0, in an allocation of all nodes, that is told of no way to the hosts."""
    cluster = slurm.cluster
    without = (by_ssh(cluster),)
    return Session(cluster, args, COLUMN, slurm.environ, without, within=allocation)


def left(slurm: Slurm, *hosts: str) -> list[str]:
    """What a run left on hosts, on all by default; Slurm's process of a step ends after it."""
    cluster, names = slurm.cluster, hosts or slurm.cluster.names
    wait_for(lambda: not any(p.name == STEP for name in names for p in cluster.processes(name)))
    found = left_on(cluster, *names)
    return [what for what in found if not any(f"name='{name}'" in what for name in DAEMONS)]


def passed(slurm: Slurm, *args: str, allocation: Sequence[str] = ALLOCATION) -> dict[str, Any]:
    """The only trial of a run that passed and left nothing."""
    found = session(slurm, "--kv-trials=1", *args, allocation=allocation)
    text = found.end()
    assert found.process.returncode == pytest.ExitCode.OK, text
    assert left(slurm) == []
    (trial,) = found.trials()
    return trial


def test_ranks_run_on_other_nodes_without_ssh(slurm: Slurm) -> None:
    trial = passed(slurm, "--kv-hosts", "n1", "n2", "--kv-np=4")
    assert [rank["host"] for rank in trial["ranks"]] == ["n1", "n1", "n2", "n2"]
    for host in ("n1", "n2"):
        assert trial["proof"]["filesystem"][host]["mount_point"] == CACHE_DIR


def test_the_controllers_node_may_be_one_of_them_and_pytest_a_step(slurm: Slurm) -> None:
    within = (*ALLOCATION, "srun", "-N1", "-n1", "--nodelist=n0", "--chdir=/tmp")
    trial = passed(slurm, "--kv-hosts", "n2", "n0", "--kv-np=3", allocation=within)
    assert sorted(rank["host"] for rank in trial["ranks"]) == ["n0", "n0", "n2"]


def test_a_node_without_the_cache_directory_is_named_before_the_launch(slurm: Slurm) -> None:
    slurm.cluster.hide("n2", "/mnt")
    found = session(slurm, "--kv-hosts", "n1", "n2", "--kv-np=2")
    text = found.end()
    slurm.cluster.reveal("n2", "/mnt")
    assert found.process.returncode == pytest.ExitCode.TESTS_FAILED, text
    (trial,) = found.trials()
    assert f"host n2: --kv-cache-dir is {CACHE_DIR}, which does not exist" in trial["error"]
    assert "host n1" not in trial["error"]
    assert left(slurm) == []


def test_a_rank_that_is_killed_fails_its_trial(slurm: Slurm) -> None:
    args = ("--kv-hosts", "n1", "n2", "--kv-np=2", "--kv-trials=2", "--kv-duration=2")
    found = session(slurm, *args)
    found.wait_for_phase("window", trial=1)
    began_s = time.monotonic()
    slurm.cluster.kill("n2", found.find("n2", "pytest_kvcache.ranks.worker").pid, signal.SIGKILL)
    assert found.wait_for_trials(2) - began_s < SOON_S
    text = found.end()
    finished, failed = found.trials()
    assert finished["ok"], text
    cause = failed["error"].splitlines()[0]
    assert "rank 1" in cause, failed["error"]
    assert "host n2" in cause, failed["error"]
    assert left(slurm) == []


def test_nothing_stays_when_pytest_is_killed_and_the_allocation_ends_with_it(slurm: Slurm) -> None:
    cluster = slurm.cluster
    found = session(slurm, "--kv-hosts", "n1", "n2", "--kv-np=2", "--kv-duration=30")
    found.wait_for_phase("window", trial=0)
    (pytest_itself,) = (
        process
        for process in cluster.processes("n0")
        if "pytest_kvcache.suite" in process.argv and process.name != "salloc"
    )
    cluster.kill("n0", pytest_itself.pid)
    found.end()
    wait_for(lambda: left(slurm, "n1", "n2") == [])
