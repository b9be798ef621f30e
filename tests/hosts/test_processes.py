from __future__ import annotations

import os
import platform
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.processes import MARKER_VARIABLE, LaunchProcesses, describe_process
from tests.factories import PATIENCE_S, wait_for
from tests.neighbours import end, is_alive, rank_command, wait_until_marked, was_killed

if TYPE_CHECKING:
    from tests.neighbours import Neighbours

# Starts what it is told with the marker, as a launcher's daemon does: it has none itself.
DAEMON = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())
environ = {**os.environ, sys.argv[2]: sys.argv[3]}
child = subprocess.Popen(sys.argv[4:], env=environ, stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


# As a killed process whose other thread hangs in the kernel: the first one is dead.
HEADLESS = """
import ctypes, os, platform, threading
threading.Thread(target=lambda: os.read(0, 1)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


class Daemon:
    """A process of a daemon's name, and its child that carries the marker."""

    def __init__(self, name: str, marker: str, command: list[str]) -> None:
        argv = [sys.executable, "-c", DAEMON, name, MARKER_VARIABLE, marker, *command]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline())
        wait_until_marked(self.child)


@pytest.fixture
def marker(neighbours: Neighbours) -> str:
    return neighbours.run_id


def processes(marker: str, session: int | None = None) -> LaunchProcesses:
    return LaunchProcesses(marker=marker, session=session)


def test_the_processes_of_a_launch_are_known_by_its_marker(neighbours: Neighbours) -> None:
    ours, other = neighbours.marked(), neighbours.marked(f"{neighbours.run_id}-2")
    assert processes(neighbours.run_id).alive() == (ours.pid,)
    assert processes(neighbours.run_id).kill() == ()
    assert was_killed(ours)
    assert is_alive(other.pid)
    end(other)


def test_the_processes_of_its_session_are_the_launchers_marked_or_not() -> None:
    leader = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    found = processes(uuid.uuid4().hex, leader.pid)
    assert found.alive() == (leader.pid,)
    found.kill()
    assert leader.wait(PATIENCE_S) == -9


def test_without_a_session_no_process_is_of_the_kernels(marker: str) -> None:
    # A session of 0 would be that of every kernel thread.
    assert processes(marker).alive() == ()


@pytest.mark.parametrize("name", ["prted", "orted", "hydra_pmi_proxy", "hydra_bstrap_proxy"])
def test_a_daemon_is_known_by_its_children(marker: str, name: str) -> None:
    daemon = Daemon(name, marker, ["sleep", "1000"])
    found = processes(marker)
    assert set(found.alive()) == {daemon.child, daemon.process.pid}
    found.kill()
    assert was_killed(daemon.process)
    wait_for(lambda: not is_alive(daemon.child))


def test_a_daemon_is_remembered_when_its_children_are_gone(marker: str) -> None:
    daemon = Daemon("prted", marker, ["sleep", "1000"])
    found = processes(marker)
    found.alive()
    os.kill(daemon.child, 9)
    wait_for(lambda: found.alive() == (daemon.process.pid,))
    assert processes(marker).alive() == ()  # nobody else can know
    end(daemon.process)
    assert found.alive() == ()


def test_a_parent_that_is_no_daemon_is_left_alone(marker: str) -> None:
    shell = Daemon("bash", marker, ["sleep", "1000"])
    assert processes(marker).alive() == (shell.child,)
    processes(marker).kill()
    assert is_alive(shell.process.pid)
    end(shell.process)


def test_only_processes_of_the_ranks_module_are_ranks(neighbours: Neighbours) -> None:
    other, rank = neighbours.marked(), neighbours.marked_rank()
    foreign = neighbours.marked("another", rank_command())
    assert processes(neighbours.run_id).ranks() == 1
    end(other, rank, foreign)
    assert processes(neighbours.run_id).ranks() == 0


def test_ranks_of_a_daemon_are_no_orphans_until_it_is_gone(marker: str) -> None:
    daemon = Daemon("prted", marker, rank_command())
    assert (processes(marker).ranks(), processes(marker).orphans()) == (1, 0)
    end(daemon.process)
    processes(marker).kill()


def test_ranks_of_slurm_are_no_orphans_and_its_daemon_is_left_alone(marker: str) -> None:
    slurm = Daemon("slurmstepd", marker, rank_command())
    assert processes(marker).orphans() == 0
    processes(marker).kill()
    assert is_alive(slurm.process.pid)
    end(slurm.process)


def test_a_rank_whose_parent_is_no_daemon_is_an_orphan(marker: str) -> None:
    shell = Daemon("sshd", marker, rank_command())
    assert processes(marker).orphans() == 1
    end(shell.process)
    processes(marker).kill()


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the number of exit(2) is not known"
)
def test_a_process_whose_first_thread_is_dead_is_alive_while_another_is(marker: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEADLESS, "pytest_kvcache.ranks.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, MARKER_VARIABLE: marker},
    )
    try:
        state = Path(f"/proc/{process.pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z")
        assert processes(marker).alive() == (process.pid,)
        assert processes(marker).ranks() == 1
        assert describe_process(process.pid).startswith(f"pid {process.pid} (")
    finally:
        process.communicate(b"x")
    assert processes(marker).alive() == ()


def test_what_can_not_be_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    monkeypatch.setattr(os, "kill", lambda *_what: None)  # as in uninterruptible sleep
    monkeypatch.setattr("pytest_kvcache.hosts.processes._KILL_WAIT_S", 0.05)
    assert processes(uuid.uuid4().hex, sleeper.pid).kill() == (sleeper.pid,)
    wait_for(lambda: describe_process(sleeper.pid) == f"pid {sleeper.pid} (sleep)")
    monkeypatch.undo()
    sleeper.send_signal(19)
    wait_for(lambda: describe_process(sleeper.pid) == f"pid {sleeper.pid} (sleep, stopped)")
    end(sleeper)
    assert describe_process(sleeper.pid) == f"pid {sleeper.pid}"


def test_a_process_whose_name_has_brackets_and_spaces_is_read_rightly(
    marker: str, tmp_path: Path
) -> None:
    program = tmp_path / "a) R 1 1"
    program.symlink_to("/bin/sleep")
    odd = subprocess.Popen([program, "1000"], env={**os.environ, MARKER_VARIABLE: marker})
    wait_until_marked(odd.pid)
    assert processes(marker).alive() == (odd.pid,)
    assert describe_process(odd.pid) == f"pid {odd.pid} (a) R 1 1)"
    end(odd)
