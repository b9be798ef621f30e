"""Every fault of the table, on real hosts: what is said, how soon, and what is left."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.faults import BAD, DEADLINE_S, FAULTS, RANK, Fault
from tests.cluster.launchers import COLUMNS, Column, chosen
from tests.cluster.session import Session

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.conftest import NewCluster
    from tests.cluster.faulttable import FaultTable

SOON_S = 15.0  # what a fault may take to fail its case
SELF_CLEANING_S = 60.0  # what a host that is cut off may take to clean itself up
CASES = ("--kv-hosts", "n1", "n2", "--kv-np=2,3", "--kv-trials=2")


@pytest.fixture(params=COLUMNS, ids=lambda column: column.name)
def column(request: pytest.FixtureRequest) -> Column:
    wanted: Column = request.param
    if wanted not in chosen():
        pytest.skip(f"takes minutes: KVCACHE_TEST_LAUNCHERS='{wanted.name}', or tox -e faults")
    reason = wanted.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return wanted


@pytest.fixture
def scene(new_cluster: NewCluster, column: Column) -> Cluster:
    del column  # where it is not there, no cluster is made
    return new_cluster(private_bytes={BAD: 256 << 20})


def left_on(cluster: Cluster, *hosts: str) -> list[str]:
    """What is on these hosts and has to do with a run, but for its results."""
    found = []
    for host in hosts:
        left = cluster.leftovers(host)
        temporary = [
            name for name in left.temporary if not name.startswith(("results", ".benchmarks"))
        ]
        names = (*left.shared_memory, *left.cache, *temporary)
        found += [f"{host}: {what}" for what in (*left.processes, *names)]
    return [what for what in found if "kvcache-test-fault" not in what and "ballast" not in what]


def wait_until_nothing_is_left_on(cluster: Cluster, *hosts: str) -> None:
    """Hosts clean themselves up; fail the test with what is still there if they don't."""
    until_s = time.monotonic() + SELF_CLEANING_S
    while left := left_on(cluster, *hosts):
        assert time.monotonic() < until_s, f"still there after {SELF_CLEANING_S} s: {left}"
        time.sleep(0.1)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fails_its_trial_soon_and_leaves_nothing(
    scene: Cluster, fault: Fault, column: Column, fault_table: FaultTable
) -> None:
    session = Session(scene, (*CASES, *fault.args), column)
    if fault.phase is None:
        session.wait_for_trials(1)
    else:
        session.wait_for_phase(fault.phase, trial=1)
    began_s = time.monotonic()
    fault.inject(session)
    took_s = session.wait_for_trials(2) - began_s
    if fault.cut:  # the next case can't use it either; it must clean itself up
        text = session.end()
        wait_until_nothing_is_left_on(scene, BAD)
    fault.mend(session)
    text = text if fault.cut else session.end()
    finished, failed = session.trials()
    cause = failed["error"].splitlines()[0]
    fault_table.note(fault.name, column.name, took_s, cause)
    assert finished["ok"], finished["error"]
    assert re.search(fault.said, cause), failed["error"]
    assert "last lines of " in failed["error"] or failed.get("read"), failed["error"]
    assert took_s < SOON_S + (DEADLINE_S if fault.hangs else 0), text
    rest = [trial["ok"] for trial in session.trials(case=1)]
    assert rest in _then(fault), text
    # What ssh was still starting on another host when all was ended, ends itself.
    wait_until_nothing_is_left_on(scene, *scene.names)


def _then(fault: Fault) -> list[list[bool]]:
    """How the next case may go: a fault that is there until it is mended may hit it, too."""
    if fault.cut:
        return [[False]]
    return [[True, True], *([[False]] if fault.lasts or fault.phase is None else [])]


def test_a_slow_host_is_reported_by_name(scene: Cluster, column: Column) -> None:
    scene.path(BAD, "/tmp/kvcache-test-fault").write_text("slow")
    args = (
        "--kv-plugin=kvcache_test_faults",
        "--kv-backend=faulty",
        "--kv-trials=1",
        "--kv-duration=3",
    )
    session = Session(scene, ("--kv-hosts", "n1", "n2", "--kv-np=2", *args), column)
    session.end()
    (trial,) = session.trials()
    verdicts = {verdict["code"]: verdict for verdict in trial["verdicts"]}
    assert verdicts["SKEWED"]["severity"] == "invalid"
    assert BAD in verdicts["SKEWED"]["text"]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_is_ended_leaves_nothing_on_any_host(
    scene: Cluster, column: Column, sig: signal.Signals, fault_table: FaultTable
) -> None:
    session = Session(scene, (*CASES, "--kv-duration=60"), column)
    session.wait_for_phase("window", trial=0)
    began_s = time.monotonic()
    session.kill(sig)
    session.end()
    wait_until_nothing_is_left_on(scene, *scene.names)
    took_s = time.monotonic() - began_s
    fault_table.note(f"pytest ended by {sig.name}", column.name, took_s, "(time until all is gone)")
    if sig != signal.SIGKILL:
        (trial,) = session.trials()
        assert "interrupted" in trial["error"]


EARLY_EXIT = """#!/bin/sh
case "$*" in *pytest_kvcache.ranks.worker*) exit 0;; esac
exec {python} "$@"
"""


def test_ranks_that_end_before_they_are_together_are_reported_by_host(
    scene: Cluster, column: Column, fault_table: FaultTable
) -> None:
    """A launcher waits for such ranks for ever, in silence."""
    wrapper = scene.directory / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {column.python} "$@"\n')
    wrapper.chmod(0o755)
    broken = scene.directory / "broken"
    broken.write_text(EARLY_EXIT.format(python=column.python))
    broken.chmod(0o755)
    scene.hide(BAD, wrapper, behind=broken)
    began_s = time.monotonic()
    session = Session(scene, (*CASES, f"--kv-python={wrapper}"), column)
    session.wait_for_trials(1)
    took_s = time.monotonic() - began_s
    scene.reveal(BAD, wrapper)
    text = session.end()
    (failed,) = session.trials()
    cause = failed["error"].splitlines()[0]
    fault_table.note("rank exits 0 before MPI_Init", column.name, took_s, cause)
    assert re.search(rf"0 of 1 rank processes run on {BAD}|{RANK}", cause), failed["error"]
    assert took_s < SOON_S + 5, text  # the session's own start is in it
    assert left_on(scene, *scene.names) == []
