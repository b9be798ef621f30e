"""The first process of a container: runs one command, and ends when its holder is gone.

``python -m pytest_kvcache.launch.containers.init LIMIT_S COMMAND…``. Its standard input is held
open by whoever wants the container to live. When that ends (the engine's client was
killed, the ssh connection broke, the controller died), or after ``LIMIT_S`` seconds, the
command is ended; and when the first process of a container ends, the kernel ends all
others. Rank-side; next to nothing is imported, because it has to start fast.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_kvcache.hosts.processes import LaunchProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELD_VARIABLE = "PYTEST_KVCACHE_HELD"
"""Carried by the command and its ranks, not by the cleanup helpers, which outlive them."""
LIMIT_EXIT = 124
"""Exit code after ``LIMIT_S``, as of timeout(1)."""
DETACHED_EXIT = 128 + signal.SIGTERM
"""Exit code when the holder detached, or a signal came; 137 is left to a container's kill."""
_GRACE_S = 3.0  # from SIGTERM to SIGKILL
_TIDY_S = 20.0  # for what the command left behind: cleanup helpers at work
_POLL_S = 0.02
_STDIN = 0
_SIGNALLED = 128
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(limit_s: float, command: Sequence[str]) -> int:
    """Run the command; return its exit code, as a shell would tell it."""
    until_s = time.monotonic() + limit_s
    held = uuid.uuid4().hex
    signals = _signal_pipe()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, HELD_VARIABLE: held},
        start_new_session=True,
    )
    code = _watch(child, signals, until_s)
    # Ranks that the command left: stopped ones, or in a session of their own.
    LaunchProcesses(marker=held, variable=HELD_VARIABLE).kill()
    _wait(_no_child_left, _TIDY_S)
    return code


def _signal_pipe() -> int:
    """A descriptor that becomes readable at every signal that matters.

    The kernel drops those that the first process of a container has no handler for.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*_END_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda _signum, _frame: None)
    return reader


def _watch(child: subprocess.Popen[bytes], signals: int, until_s: float) -> int:
    """Wait for the command's end, or bring it about."""
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while (code := child.poll()) is None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            _end(child)
            return LIMIT_EXIT
        ready = {fd for fd, _events in poll.poll(left_s * 1000)}
        if _is_detached(ready) or _has_end_signal(signals, ready):
            _end(child)
            return DETACHED_EXIT
    return code if code >= 0 else _SIGNALLED - code


def _is_detached(ready: set[int]) -> bool:
    return _STDIN in ready and not os.read(_STDIN, 4096)


def _has_end_signal(signals: int, ready: set[int]) -> bool:
    return signals in ready and not set(_END_SIGNALS).isdisjoint(os.read(signals, 64))


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    if not _wait(lambda: child.poll() is not None, _GRACE_S):
        child.kill()
        child.wait()


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    until_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(_POLL_S)
    return True


def _no_child_left() -> bool:
    """Reap what has ended; a container's orphans are the children of its first process."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
