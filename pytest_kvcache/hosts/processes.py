"""The processes of a launch on one machine: known by a marker, whoever started them.

What a launch leaves behind was measured. Open MPI 5's ranks share mpirun's session but
have process groups of their own; MPICH's have sessions of their own; on other hosts all
are the launcher's daemon's, which ssh started; under srun they are Slurm's everywhere. So
they are known by a marker in their environment, by the launcher's session where there is
one, and daemons by their children.
Reads /proc; imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_kvcache.launchers.family import Leftovers

MARKER_VARIABLE = "PYTEST_KVCACHE_LAUNCH"
"""Environment variable that every process of a launch carries: the run's id."""

_KILL_WAIT_S = 5.0
_KILL_POLL_S = 0.01
_QUIET_SCANS = 2
_RANK_MODULE = b"pytest_kvcache.ranks.worker"
_NAME_BYTES = 15  # of a process's name, which the kernel cuts
_DEAD = (b"Z", b"X")


@dataclass(frozen=True, slots=True)
class _Stat:
    """What proc_pid_stat(5) says of a process."""

    task: str
    """Where below /proc it can be read; a living thread's where the first thread is dead."""
    name: bytes
    state: bytes
    parent: int
    session: int
    started: bytes

    @classmethod
    def of(cls, pid: int) -> _Stat | None:
        """The stat of a process; None: it is gone, or dead."""
        first = cls._of_task(str(pid))
        if first is None or first.state not in _DEAD:
            return first
        # A thread stuck in the kernel outlives SIGKILL, and the first thread's death.
        others = (cls._of_task(task) for task in _threads(pid))
        return next((stat for stat in others if stat and stat.state not in _DEAD), None)

    @classmethod
    def _of_task(cls, task: str) -> _Stat | None:
        try:
            before, _, after = Path(f"/proc/{task}/stat").read_bytes().rpartition(b")")
        except OSError:
            return None
        fields = after.split()
        name = before.partition(b"(")[2]
        return cls(task, name, fields[0], int(fields[1]), int(fields[3]), fields[19])


@dataclass(slots=True)
class LaunchProcesses:
    """The processes that carry ``marker`` or are of ``session``, wherever they moved to.

    ``leaves`` names what launchers start on other hosts, to which ssh gives no environment
    of ours, and what else has ranks as children.
    """

    marker: str
    session: int | None = None
    leaves: Leftovers = BUILT_IN_LEFTOVERS
    variable: str = MARKER_VARIABLE
    """Of the environment: what holds the marker."""
    _daemons: dict[int, bytes] = field(default_factory=dict)

    def kill(self) -> tuple[int, ...]:
        """Kill all of them, and those they start meanwhile; return what is left."""
        until_s, quiet = time.monotonic() + _KILL_WAIT_S, 0
        while quiet < _QUIET_SCANS:  # a process in the middle of an exec has no environment
            alive = self.alive()
            if alive and time.monotonic() > until_s:
                return alive
            for pid in alive:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            quiet = 0 if alive else quiet + 1
            time.sleep(_KILL_POLL_S)
        return ()

    def alive(self) -> tuple[int, ...]:
        """Return the pids of the members that are not dead yet."""
        members = {pid: stat for pid, stat in _all().items() if self._has(stat)}
        for stat in members.values():
            self._remember_daemon(stat.parent)
        daemons = (pid for pid, started in self._daemons.items() if _started(pid) == started)
        return tuple(dict.fromkeys((*members, *daemons)))

    def ranks(self) -> int:
        """How many of them are ranks, the coordinator included."""
        return len(self._ranks())

    def ranks_begun(self) -> int | None:
        """How many ranks run; None where there is neither one nor a daemon that could start one."""
        found = self.ranks()
        begun = found or any(self._is_daemon(stat) for stat in _all().values())
        return found if begun else None

    def reaches(self, host: str) -> bool:
        """Whether one that the launcher has started here names ``host``: its way there."""
        members = {pid: stat for pid, stat in _all().items() if self._has(stat)}
        word = host.encode()
        return any(
            stat.parent in members and word in _bytes_of(stat.task, "cmdline").split(b"\0")
            for stat in members.values()
        )

    def orphans(self) -> int:
        """How many ranks have lost the daemon that started them."""
        parents = [_Stat.of(stat.parent) for stat in self._ranks().values()]
        others = _as_processes(self.leaves.parents)
        return sum(
            parent is None or not (self._is_daemon(parent) or parent.name in others)
            for parent in parents
        )

    def _ranks(self) -> dict[int, _Stat]:
        return {
            pid: stat
            for pid, stat in _all().items()
            if _RANK_MODULE in _bytes_of(stat.task, "cmdline").split(b"\0") and self._has(stat)
        }

    def _has(self, stat: _Stat) -> bool:
        if stat.session == self.session:
            return True
        marker = f"{self.variable}={self.marker}".encode()
        return marker in _bytes_of(stat.task, "environ").split(b"\0")

    def _remember_daemon(self, pid: int) -> None:
        stat = _Stat.of(pid)
        if stat is not None and self._is_daemon(stat):
            self._daemons[pid] = stat.started

    def _is_daemon(self, stat: _Stat) -> bool:
        return stat.name in _as_processes(self.leaves.daemons)


def is_alive(pid: int) -> bool:
    """Whether there is such a process: one that only waits to be reaped is none any more."""
    return _Stat.of(pid) is not None


def is_running(names: Collection[str]) -> bool:
    """Whether a process of one of these names runs here, whoever started it."""
    wanted = _as_processes(names)
    return any(stat.name in wanted for stat in _all().values())


def _as_processes(names: Collection[str]) -> set[bytes]:
    """The names as the kernel has them."""
    return {name[:_NAME_BYTES].encode() for name in names}


def describe_process(pid: int) -> str:
    """``pid 12 (python, in uninterruptible sleep)``, for people."""
    stat = _Stat.of(pid)
    if stat is None:
        return f"pid {pid}"
    name = stat.name.decode(errors="replace")
    states = {b"D": "in uninterruptible sleep", b"T": "stopped", b"t": "traced"}
    state = states.get(stat.state)
    return f"pid {pid} ({name}{f', {state}' if state else ''})"


def _all() -> dict[int, _Stat]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid: stat for pid in pids if (stat := _Stat.of(pid)) is not None}


def _started(pid: int) -> bytes | None:
    stat = _Stat.of(pid)
    return None if stat is None else stat.started


def _threads(pid: int) -> list[str]:
    """Where below /proc its threads are."""
    try:
        return [f"{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
    except OSError:
        return []


def _bytes_of(task: str, name: str) -> bytes:
    """A file of the process; empty if it has gone or is another user's."""
    try:
        return Path(f"/proc/{task}/{name}").read_bytes()
    except OSError:
        return b""
