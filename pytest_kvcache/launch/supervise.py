"""Run one launch: start it, watch it, end it, and leave no process of it behind.

Controller side; imports neither pytest nor mpi4py. It knows processes, not MPI.

A rank in a system call or a sleep does not notice that mpirun was killed, and what a
rank started outlives even a clean exit. So what is left of a launch's processes
(processes.py) on this machine is killed whatever the end was.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from pytest_kvcache.errors import LaunchError
from pytest_kvcache.hosts.processes import MARKER_VARIABLE, LaunchProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

EndedBy: TypeAlias = Literal["exit", "deadline", "stopped"]

_TAIL_BYTES = 512 * 1024
_KILL_POLL_S = 0.01
_FIRST_POLL_S = 0.005
# Terminal control: CSI sequences (colours), OSC sequences (titles), single escapes.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
# What is left of control characters; Open MPI 5 prints a NUL when a rank aborts.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Runs in the child: the launcher gets SIGTERM when the controller's main thread dies
# (PR_SET_PDEATHSIG is 1, and outlives exec), also if that happened just before. A
# preexec_fn would run Python between fork and exec, which threads can deadlock. Python
# ignores SIGPIPE and SIGXFSZ; the launcher must not inherit that.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGTERM))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the controller is gone")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""


class StopLaunch(Exception):  # noqa: N818 - a request like StopIteration, no failure of its own
    """Raised by ``on_poll`` to end the launch early; its text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchExit:
    """How a launch ended. Exit code 0 alone proves nothing about the ranks."""

    exit_code: int | None
    """The launcher's own; negative: it died of that signal; None: it was ended by us."""
    ended_by: EndedBy
    elapsed_s: float
    reason: str = ""
    """The text of the ``StopLaunch``."""
    survivors: tuple[int, ...] = ()
    """Processes that even SIGKILL did not end in time: stuck in the kernel."""


def supervise(
    argv: Sequence[str],
    *,
    log_path: Path,
    cwd: Path,
    env: Mapping[str, str],
    deadline_s: float,
    on_poll: Callable[[], None],
    marker: str,
    poll_s: float = 0.1,
    grace_s: float = 5.0,
) -> LaunchExit:
    """Run ``argv`` to its end, its deadline or a stop; no process of it is left then.

    Call it from the main thread. stdin is empty; stdout and stderr are appended to
    ``log_path``. ``on_poll`` is called every ``poll_s`` or sooner while the launch runs.
    Every process gets ``marker`` into its environment.
    A launch that must end is sent SIGTERM, and SIGKILL after ``grace_s``; so it is on any
    exception, ``KeyboardInterrupt`` included, which is then raised again. SIGTERM to this
    process counts as ``KeyboardInterrupt`` meanwhile.

    Raises ``LaunchError`` if the launch can't be started.
    """
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise ValueError(f"deadline_s is {deadline_s}; it must be finite and above 0")
    members = LaunchProcesses(marker=marker)
    started_s = time.monotonic()
    process = None
    with _sigterm_interrupts(), log_path.open("ab") as log:
        try:
            process = _start(argv, log, cwd, {**env, MARKER_VARIABLE: members.marker})
            members.session = process.pid
            ended_by, reason = _watch(process, started_s + deadline_s, on_poll, poll_s)
        finally:
            survivors = _end(process, members, grace_s, log)
    return LaunchExit(
        exit_code=process.returncode if ended_by == "exit" else None,
        ended_by=ended_by,
        elapsed_s=time.monotonic() - started_s,
        reason=reason,
        survivors=survivors,
    )


def tail_lines(path: Path, n: int) -> list[str]:
    """Return the last ``n`` lines of a log for people, without terminal control.

    Reads at most 512 KiB from the end; an absent file has no lines.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    shown = _CONTROL.sub("", _ANSI.sub("", text))
    lines = [line.rstrip() for line in shown.splitlines()]
    return lines[-n:] if n > 0 else []


def _start(
    argv: Sequence[str], log: BinaryIO, cwd: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    if not os.access(argv[0], os.X_OK) or not Path(argv[0]).is_absolute():
        raise LaunchError(
            f"the launcher {argv[0]} can't be started; it must be an executable file, given by"
            f" its absolute path",
            argv=argv,
        )
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    try:
        return subprocess.Popen(
            [*wrapper, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"{argv[0]} can't be started: {error}", argv=argv) from error


def _watch(
    process: subprocess.Popen[bytes],
    deadline_at_s: float,
    on_poll: Callable[[], None],
    poll_s: float,
) -> tuple[EndedBy, str]:
    pause_s = _FIRST_POLL_S  # grows to poll_s: a launch that fails at once is reported at once
    while not _has_ended(process):
        try:
            on_poll()
        except StopLaunch as stop:
            return "stopped", str(stop)
        left_s = deadline_at_s - time.monotonic()
        if left_s <= 0:
            return "deadline", ""
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, poll_s)
    return "exit", ""


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Look without reaping: until it is reaped, nobody else can get its session's id."""
    try:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, process.pid, flags) is not None
    except ChildProcessError:
        return True


def _end(
    process: subprocess.Popen[bytes] | None, members: LaunchProcesses, grace_s: float, log: BinaryIO
) -> tuple[int, ...]:
    """End what still runs, gently first; return what could not be killed.

    ``process`` is None if starting it was interrupted or failed.
    """
    try:
        if process is not None and not _has_ended(process):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            _wait_until_ended(process, grace_s)
    finally:  # also if the wait is interrupted once more
        survivors = members.kill()
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_KILL_POLL_S)
    if survivors:
        text = f"[kv] could not kill {', '.join(map(str, survivors))}: stuck in the kernel\n"
        log.write(text.encode())
    return survivors


def _wait_until_ended(process: subprocess.Popen[bytes], limit_s: float) -> None:
    until_s = time.monotonic() + limit_s
    while not _has_ended(process) and time.monotonic() < until_s:
        time.sleep(_KILL_POLL_S)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Turn SIGTERM into ``KeyboardInterrupt`` for a while; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _raise_interrupt(signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"received {signal.Signals(signum).name}")
