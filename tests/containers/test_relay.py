"""The holder of containers and the agent inside, with shells in place of engine and ssh."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.launch.containers.command import (
    RelayConfig,
    Remote,
    held_argv,
    relay_argv,
    rsh_agent_argv,
)
from pytest_kvcache.launch.containers.rshagent import AGENT_VARIABLE, LOST_EXIT
from tests.site import PATIENCE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AGENT = shlex.join(rsh_agent_argv(sys.executable))
# What it is given is a line for the shell of the other host.
REMOTE_SHELL = ("/bin/sh", "-c", 'eval "$1"', "ssh")


def config(script: str) -> RelayConfig:
    """A launcher that is a shell script, and n1 reached by a shell."""
    run = tuple(held_argv(sys.executable, PATIENCE_S, []))
    return RelayConfig(
        argv=tuple(held_argv(sys.executable, PATIENCE_S, ["/bin/sh", "-c", script])),
        remotes={"n1": Remote(shell=REMOTE_SHELL, run=run)},
    )


@contextmanager
def relay(tmp_path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    file = tmp_path / "relay.json"
    file.write_text(json.dumps(config(script).to_json()))
    with subprocess.Popen(
        relay_argv(sys.executable, file),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, text


def started_here(tmp_path: Path) -> list[int]:
    """The pids that the scripts have written down."""
    return [int(path.name) for path in tmp_path.glob("[0-9]*")]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_launcher_reaches_the_other_host_through_the_agent(tmp_path: Path) -> None:
    with relay(tmp_path, f"{AGENT} n1 'echo out; echo err >&2'; echo ended $?") as process:
        assert ended(process) == (0, "out\nerr\nended 0\n")


def test_the_words_of_a_command_come_as_they_were(tmp_path: Path) -> None:
    command = """printf '<%s>' "a  b" 'c"d' '$HOME'; exit 0"""
    with relay(tmp_path, f"{AGENT} n1 {shlex.quote(command)}") as process:
        assert ended(process) == (0, """<a  b><c"d><$HOME>""")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("command", "code", "reported"),
    [
        ("exit 3", 3, "exit code 3"),
        ("kill -9 $PPID", 137, "it was killed (exit code 137)"),
        ("exit 125", 125, "the engine refused to start it (exit code 125)"),
    ],
)
def test_how_a_remote_container_ended_is_reported(
    tmp_path: Path, command: str, code: int, reported: str
) -> None:
    with relay(tmp_path, f"{AGENT} n1 {shlex.quote(command)}; echo ended $?") as process:
        found, text = ended(process)
    assert found == 0
    assert f"kvcache: the container on host n1 ended: {reported}\n" in text
    assert f"ended {code}\n" in text


def test_its_exit_code_is_the_launchers(tmp_path: Path) -> None:
    with relay(tmp_path, "exit 5") as process:
        assert ended(process) == (5, "")


def test_an_unknown_host_and_a_wrong_key_are_refused(tmp_path: Path) -> None:
    wrong = f'{AGENT_VARIABLE}="${{{AGENT_VARIABLE}%:*}}:0"'
    script = f"{AGENT} n2 'echo n2'; echo $?; {wrong} {AGENT} n1 'echo n1'; echo $?"
    with relay(tmp_path, script) as process:
        assert ended(process) == (0, f"{LOST_EXIT}\n{LOST_EXIT}\n")


def test_an_agent_whose_holder_is_gone_says_so() -> None:
    environ = {**os.environ, AGENT_VARIABLE: "pytest-kvcache-nobody:0"}
    done = subprocess.run(
        [*rsh_agent_argv(sys.executable), "n1", "true"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == LOST_EXIT
    assert re.fullmatch(
        r"kvcache: host n1 can't be reached from this container: .*refused\n", done.stderr
    )


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_holder(tmp_path: Path, number: signal.Signals) -> None:
    sleep = f"touch {tmp_path}/$$; exec sleep 300"
    with relay(tmp_path, f"{AGENT} n1 '{sleep}' & {sleep}") as process:
        wait_for(lambda: len(started_here(tmp_path)) == 2)
        process.send_signal(number)
        process.wait(PATIENCE_S)
        for pid in started_here(tmp_path):
            wait_for(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


@pytest.mark.thorough
def test_a_remote_container_ends_with_the_agent_that_asked_for_it(tmp_path: Path) -> None:
    script = f"timeout 1 {AGENT} n1 'touch {tmp_path}/$$; exec sleep 300'; exec sleep 300"
    with relay(tmp_path, script) as process:
        wait_for(lambda: started_here(tmp_path))
        (pid,) = started_here(tmp_path)
        wait_for(lambda: is_gone(pid))
        assert process.poll() is None
