"""The first process of a container, run as an ordinary one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.launch.containers.init import DETACHED_EXIT, HELD_VARIABLE, LIMIT_EXIT
from tests.site import PATIENCE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

INIT = (sys.executable, "-m", "pytest_kvcache.launch.containers.init")
SLEEP = "import time; time.sleep(300)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@contextmanager
def held(*command: str, limit_s: float = PATIENCE_S) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` under an init whose standard input this test holds."""
    argv = [*INIT, str(limit_s), *command]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def child_of(process: subprocess.Popen[bytes]) -> int:
    """The pid of the command, once it runs."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text().split())
    return int(children.read_text().split()[0])


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("program", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_it_ends_as_its_command_does(program: str, code: int) -> None:
    with held("sh", "-c", program) as process:
        assert process.wait(PATIENCE_S) == code


@pytest.mark.thorough
@pytest.mark.parametrize("program", [SLEEP, STUBBORN])
def test_the_command_ends_when_its_holder_lets_go(program: str) -> None:
    with held(sys.executable, "-c", program) as process:
        pid = child_of(process)
        time.sleep(0.3)  # until the stubborn one ignores signals
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == DETACHED_EXIT
        assert not is_alive(pid)


def test_what_is_written_to_it_ends_nothing() -> None:
    with held("sleep", "0.5") as process:
        assert process.stdin is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_ends_when_it_is_told_to_end(number: signal.Signals) -> None:
    with held("sleep", "300") as process:
        pid = child_of(process)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == DETACHED_EXIT
        assert not is_alive(pid)


def test_the_command_ends_at_its_limit() -> None:
    with held("sleep", "300", limit_s=0.3) as process:
        assert process.wait(PATIENCE_S) == LIMIT_EXIT


def test_what_the_command_left_is_killed_wherever_it_went() -> None:
    with held("sh", "-c", "setsid sleep 300 & echo $!") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.wait(PATIENCE_S) == 0
        wait_for(lambda: not is_alive(pid))


@pytest.mark.thorough
def test_what_has_dropped_the_mark_is_let_live() -> None:
    loose = "echo $$; exec sleep 300 >/dev/null"
    command = f"env -u {HELD_VARIABLE} setsid sh -c '{loose}' & sleep 1"
    with held("sh", "-c", command) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            assert process.wait(PATIENCE_S) == 0
            assert is_alive(pid)
        finally:
            os.kill(pid, signal.SIGKILL)
