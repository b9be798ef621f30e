"""Other hosts that are none: their agents run on this machine, and no ssh is called.

Not a test module. The hosts are called by addresses for documentation (RFC 5737), which
are nobody's, and for which no name server is asked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.hosts.agent import REPLY_MARK
from pytest_kvcache.hosts.processes import MARKER_VARIABLE
from pytest_kvcache.version import VERSION
from tests.factories import PATIENCE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

N1, N2, N3 = "203.0.113.1", "203.0.113.2", "203.0.113.3"
AGENT = Path(__file__).parent / "plugins" / "kvcache_test_agent.py"
PYTHON = sys.executable

# Drops the host's name, runs the rest as sshd would, and knows of no configuration.
SSH = """
[ "$1" = -G ] && exit 1
host=$1; shift
mkdir -p '{home}'/$host
export KVCACHE_TEST_HOST={name}-$host KVCACHE_TEST_HOME='{home}'/$host
exec sh -c "$*"
"""


@dataclass
class Neighbours:
    """Hosts below a directory; their names are of this test only."""

    directory: Path
    fake_python: str
    name: str = field(default_factory=lambda: f"host-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.ssh = self.program("ssh", SSH.format(home=self.directory, name=self.name))
        run = f'KVCACHE_TEST_PYTHON={self.fake_python} exec {PYTHON} {AGENT} "$@"'
        self.python = self.program("python", run)
        self.run_id = uuid.uuid4().hex

    def program(self, name: str, body: str) -> str:
        """An executable shell script."""
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def home(self, host: str = N1) -> Path:
        """Where a host keeps what belongs to it alone."""
        path = self.directory / host
        path.mkdir(exist_ok=True)
        return path

    def lock(self, host: str = N1) -> Path:
        """The file of a host's lock."""
        return self.home(host) / f"pytest-kvcache.{self.name}-{host}.lock"

    def agent(self, host: str = N1) -> AgentProcess:
        """An agent that the test itself talks to."""
        return AgentProcess([self.ssh, host, f"exec {self.python}"])

    def marked(
        self, run_id: str | None = None, command: Sequence[str] = ("sleep", "1000")
    ) -> subprocess.Popen[bytes]:
        """A process of the run that sleeps, as a rank in a hanging storage would."""
        environ = {**os.environ, MARKER_VARIABLE: run_id or self.run_id}
        process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE)
        wait_until_marked(process.pid)
        return process

    def marked_rank(self) -> subprocess.Popen[bytes]:
        """A process of the run that looks like a rank."""
        return self.marked(command=rank_command())


class AgentProcess:
    """An agent's process and its pipes, spoken to line by line."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self._pending = b""
        self._number = 0
        self.greeting = self.reply()

    def reply(self) -> dict[str, Any]:
        """The next line it says."""
        until_s = time.monotonic() + PATIENCE_S
        while b"\n" not in self._pending:
            left_s = max(0.0, until_s - time.monotonic())
            assert select.select([self._stdout], [], [], left_s)[0], "the agent says nothing"
            chunk = os.read(self._stdout.fileno(), 65536)
            assert chunk, "the agent has ended"
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        text = line.decode()
        assert text.startswith(REPLY_MARK)
        answer: dict[str, Any] = json.loads(text.removeprefix(REPLY_MARK))
        return answer

    def send(self, do: str, **what: Any) -> int:
        """Say something; return its number."""
        self._number += 1
        self._stdin.write(f"{json.dumps({'id': self._number, 'do': do, **what})}\n".encode())
        self._stdin.flush()
        return self._number

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Say something, and wait for the answer to that."""
        number = self.send(do, **what)
        answer = self.reply()
        assert answer["id"] == number
        return answer

    def lose_patience(self) -> None:
        """Let it give up a moment after this."""
        self.process.send_signal(signal.SIGUSR1)
        self.ask("ping")

    def hang_up(self) -> int:
        """Close the connection, and wait for its end; return the exit code."""
        self._stdin.close()
        code = self.process.wait(PATIENCE_S)
        self._stdout.close()
        return code

    def discard(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        if not self._stdout.closed:
            self.hang_up()


def rank_command() -> list[str]:
    """What sleeps until its input ends, with the arguments of a rank's process."""
    return [
        "sh",
        "-c",
        "read -r line",
        "python",
        "-m",
        "mpi4py",
        "-m",
        "pytest_kvcache.ranks.worker",
    ]


def greeting(version: str = VERSION) -> str:
    """A shell command that says what an agent says when it comes up."""
    return f"""echo '{REPLY_MARK}{{"id": 0, "value": "{version}"}}'"""


def wait_until_marked(pid: int) -> None:
    """A process that is just being started has no environment yet."""
    wait_for(lambda: MARKER_VARIABLE.encode() in Path(f"/proc/{pid}/environ").read_bytes())


def is_alive(pid: int) -> bool:
    """Whether it runs, or sleeps; a process that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def end(*processes: subprocess.Popen[bytes]) -> None:
    """End and reap what a test has started."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def was_killed(process: subprocess.Popen[bytes]) -> bool:
    """Wait for its end, and reap it."""
    process.communicate(timeout=PATIENCE_S)
    return process.returncode == -signal.SIGKILL
