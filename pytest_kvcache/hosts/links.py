"""The controller's connections to the agents of a run's hosts, one ssh or srun each.

A host that is this machine is answered for by an agent in this process, without one.
A thread of its own reads what they answer and sends them a sign of life every second,
whatever the controller is busy with. Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import selectors
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from pytest_kvcache.commands import NOT_FOUND_EXITS
from pytest_kvcache.hosts.agent import REPLY_MARK, Agent
from pytest_kvcache.hosts.remoteshell import SSH_FAILED_EXIT, unreachable
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_PING_S = 1.0
_SILENT_S = 8.0  # after which a host that was there is given up
_START_S = 20.0  # for ssh or srun, and the interpreter there
_POLL_S = 0.2
_AWAY_S = 2.0
_READ_BYTES = 65536
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ of Python 3.10
_TAIL_BYTES = 4096
_CLOSE_S = 2.0
_FILES = 256  # of this process, but for its connections
_FILES_PER_HOST = 4
_STEP_ENDED = re.compile(r"srun: error: \S+: task 0: ")  # before or after what the task said


# (host, exit code, standard error) → why nothing was started there; None: not known.
Explain: TypeAlias = "Callable[[str, int, str], str | None]"


def _no_explanation(_host: str, _exit_code: int, _errors: str) -> str | None:
    return None


@dataclass(slots=True)
class HostLink:
    """One host's connection. ``lost`` says why there is none, None while there is one."""

    host: str
    program: Sequence[str]
    process: subprocess.Popen[bytes] | None
    explain: Explain = _no_explanation
    agent: Agent | None = None
    """Of this process, which answers in place of one that is reached by ``process``."""
    last_received_s: float = field(default_factory=time.monotonic)
    version: str | None = None
    lost: str | None = None
    stage: str = "starting"
    answers: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    ends: list[tuple[float, int]] = field(default_factory=list)
    output: bytes = b""
    errors: bytes = b""

    def receive(self, line: bytes) -> None:
        """One line of the host's standard output; only the agent's own count."""
        text = line.decode(errors="replace")
        if not text.startswith(REPLY_MARK):
            return
        try:
            answer = json.loads(text.removeprefix(REPLY_MARK))
        except ValueError:  # torn; who waits for it will say that there was no answer
            return
        self.take(answer)

    def take(self, answer: Mapping[str, Any]) -> None:
        """What the agent says: its version, what it is doing, a process's end, an answer."""
        if answer["id"] == 0:
            self.version = answer["value"]
        elif "gone" in answer:
            self.ends.append((time.monotonic(), answer["gone"]))
        elif "stage" in answer:
            self.stage = answer["stage"]
        elif answer["id"] > 0:
            self.answers[answer["id"]] = answer

    def send(self, request: Mapping[str, Any]) -> None:
        """Write one line; a host that does not read is noticed by its silence."""
        if self.agent is not None:
            self.agent.receive(json.dumps(request))
        if self.process is None or self.lost is not None:
            return
        assert self.process.stdin is not None
        line = f"{json.dumps(request)}\n".encode()
        with suppress(BlockingIOError, BrokenPipeError):
            if os.write(self.process.stdin.fileno(), line) < len(line):
                self.lost = (
                    f"can't be sent {len(line)} bytes at once; raise fs.pipe-max-size here, or"
                    " name fewer hosts"
                )

    def streams(self) -> tuple[IO[bytes], ...]:
        """What the host says: its output, its errors; none without a connection."""
        if self.process is None:
            return ()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        return self.process.stdout, self.process.stderr

    def hang_up(self) -> None:
        """Close our side: the agent cleans up and ends."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()

    def kill(self) -> None:
        """Kill the connection's process at once."""
        if self.process is not None:
            self.process.kill()

    def discard(self, until_s: float = 0.0) -> bool:
        """Leave no process and no pipe of it here; whether it ended by itself until then."""
        if self.process is None:
            return True
        self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=max(0.0, until_s - time.monotonic()))
        ended = self.process.returncode is not None
        self.process.kill()
        self.process.wait()
        for stream in self.streams():
            stream.close()
        return ended

    def last_error(self) -> str:
        """The last line on standard error, for people."""
        lines = [line.strip() for line in self.errors.decode(errors="replace").splitlines()]
        return next(
            (line for line in reversed(lines) if line and not _STEP_ENDED.match(line)),
            "no message",
        )

    def why_ended(self, exit_code: int) -> str:
        """What the end of the connection means, with what helps."""
        message, python = self.last_error(), self.program[0]
        known = self.explain(self.host, exit_code, self.errors.decode(errors="replace"))
        if known is not None and self.version is None:
            return known
        if exit_code == SSH_FAILED_EXIT and self.version is None:
            return unreachable(self.host, message)
        if self.version:
            return f"the connection to it broke (exit code {exit_code}: {message})"
        return self._why_not_begun(exit_code, message, python)

    def _why_not_begun(self, exit_code: int, message: str, python: str) -> str:
        if not exit_code:
            return (
                f"nothing was run there, and no error told ({message}); --kv-ssh must run the"
                " command"
                " it is given and pass standard input on"
            )
        if "No module named" in message:
            return (
                f"has no fitting pytest-kvcache in {python} ({message}); install this version there"
            )
        if exit_code in NOT_FOUND_EXITS:
            return (
                f"has no {python} ({message}); install Python and pytest-kvcache at the same path"
                " on"
                " every host, or name the path by --kv-python"
            )
        return (
            f"its agent ended with exit code {exit_code} ({message}); see what {python} lacks there"
        )


def _allow_files(hosts: int) -> None:
    """Three pipes per host soon exceed the usual 1,024 files; the hard limit is far above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES + _FILES_PER_HOST * hosts
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _start(host: str, command: Sequence[str], program: Sequence[str], explain: Explain) -> HostLink:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the controller, who ends them
        )
    except OSError as error:
        why = f"can't be reached: {command[0]} can't be started ({error.strerror})"
        return HostLink(host, program, None, lost=why)
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
    assert process.stdin is not None
    with suppress(OSError):  # as the kernel allows: a request names every host
        fcntl.fcntl(process.stdin.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
    return HostLink(host, program, process, explain)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host answered: a value, or the reason why there is none."""

    value: Any = None
    problem: str | None = None


class HostLinks:
    """All connections; ``close`` them, or leave it to the end of this process."""

    def __init__(self, explain: Explain = _no_explanation) -> None:
        self._explain = explain
        self._links: dict[str, HostLink] = {}
        self._changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._next_id = 1
        self._pinged_s = 0.0
        self._looked_s = time.monotonic()
        self._closing = False
        self._thread: threading.Thread | None = None

    def open(self, commands: Mapping[str, Sequence[str]], program: Sequence[str]) -> None:
        """Connect to the hosts that have no connection; ``commands`` start their agents.

        ``program`` is what the command runs there, for messages. Returns at once.
        """
        _allow_files(len(self._links) + len(commands))
        for host, command in commands.items():
            known = self._links.get(host)
            if known is not None and known.lost is None:
                continue
            if known is not None:
                self._forget(known)
            self._add(_start(host, command, program, self._explain))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvcache-hosts", daemon=True)
            self._thread.start()

    def refuse(self, problems: Mapping[str, str]) -> None:
        """Hosts that can't be connected to, and why; one that is connected stays so."""
        for host, problem in problems.items():
            known = self._links.get(host)
            if known is None or known.lost is not None:
                if known is not None:
                    self._forget(known)
                self._add(HostLink(host, (), None, lost=problem))

    def answer_here(self, hosts: Iterable[str]) -> None:
        """Have an agent of this process answer for hosts that need no connection."""
        for host in hosts:
            if host not in self._links:
                link = HostLink(host, (), None, version=VERSION)
                link.agent = Agent(partial(self._take, link))
                self._add(link)

    def _take(self, link: HostLink, answer: Mapping[str, Any]) -> None:
        with self._changed:
            link.take(answer)
            self._changed.notify_all()

    def _add(self, link: HostLink) -> None:
        with self._changed:
            self._links[link.host] = link
            if link.process is None:
                return
            for kind, stream in zip(("output", "errors"), link.streams(), strict=True):
                self._selector.register(stream, selectors.EVENT_READ, (link, kind))

    def _forget(self, link: HostLink) -> None:
        with self._changed:
            for stream in link.streams():
                with suppress(KeyError):  # it has ended, and been taken out then
                    self._selector.unregister(stream)
        link.discard()

    def version(self, host: str) -> str | None:
        """The package's version there, as its agent said when it came up; None: it did not."""
        return self._links[host].version

    def ask(self, requests: Mapping[str, Mapping[str, Any]], timeout_s: float) -> dict[str, Answer]:
        """Ask hosts at the same time; every host has an answer or a problem."""
        until_s = time.monotonic() + timeout_s
        waiting: dict[str, int] = {}
        with self._changed:
            for host, request in requests.items():
                waiting[host] = self._next_id
                self._links[host].send({"id": self._next_id, **request})
                self._next_id += 1
            self._changed.wait_for(
                lambda: all(self._is_settled(host, number) for host, number in waiting.items()),
                timeout=max(0.0, until_s - time.monotonic()),
            )
            return {
                host: self._answer(self._links[host], number, timeout_s)
                for host, number in waiting.items()
            }

    def _is_settled(self, host: str, number: int) -> bool:
        link = self._links[host]
        return number in link.answers or link.lost is not None

    def _answer(self, link: HostLink, number: int, timeout_s: float) -> Answer:
        answer = link.answers.pop(number, None)
        if answer is not None:
            return Answer(answer.get("value"), answer.get("error"))
        if link.lost is not None:
            return Answer(problem=link.lost)
        return Answer(
            problem=f"gave no answer within {timeout_s:g} s while {link.stage}; look for a storage"
            " that hangs there"
        )

    def lost(self, hosts: Sequence[str]) -> dict[str, str]:
        """The hosts, of these, whose connection has ended, and why."""
        with self._changed:
            found = {host: self._links[host].lost for host in hosts if host in self._links}
        return {host: why for host, why in found.items() if why is not None}

    def send(self, host: str, request: Mapping[str, Any]) -> None:
        """Send a request that needs no answer."""
        with self._changed:
            self._links[host].send({"id": -1, **request})

    def ends(self) -> list[tuple[float, str, int]]:
        """(when it was reported, host, pid) of watched processes that have ended."""
        with self._changed:
            return [
                (at_s, link.host, pid) for link in self._links.values() for at_s, pid in link.ends
            ]

    def forget_ends(self) -> None:
        """Forget the ends of processes: another launch begins."""
        with self._changed:
            for link in self._links.values():
                link.ends.clear()

    def close(self) -> list[str]:
        """Let the agents clean up and end; none of the processes that led there is left.

        Return the hosts whose agent was there once and did not end as it should.
        """
        with self._changed:
            self._closing = True
            links = list(self._links.values())
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for link in links:
            link.hang_up()
        until_s = time.monotonic() + _CLOSE_S
        ended = {link.host: link.discard(until_s) for link in links}
        self._selector.close()
        return [link.host for link in links if link.version and (link.lost or not ended[link.host])]

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            ready = self._selector.select(_POLL_S)
            with self._changed:
                for key, _events in ready:
                    link, kind = key.data
                    self._read(link, kind, key.fd)
                self._notice_silence()
                self._changed.notify_all()

    def _read(self, link: HostLink, kind: str, fd: int) -> None:
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            self._selector.unregister(fd)
            if kind == "output":
                self._end(link)
            return
        if kind == "errors":
            link.errors = (link.errors + chunk)[-_TAIL_BYTES:]
            return
        link.last_received_s = time.monotonic()
        *lines, link.output = (link.output + chunk).split(b"\n")
        for line in lines:
            link.receive(line)

    def _end(self, link: HostLink) -> None:
        """The host has closed its side: its exit code and last words say why."""
        assert link.process is not None
        try:
            exit_code = link.process.wait(timeout=_CLOSE_S)
        except subprocess.TimeoutExpired:
            link.process.kill()
            exit_code = link.process.wait()
        assert link.process.stderr is not None
        with suppress(BlockingIOError):
            while chunk := os.read(link.process.stderr.fileno(), _READ_BYTES):
                link.errors = (link.errors + chunk)[-_TAIL_BYTES:]
        link.lost = link.lost or link.why_ended(exit_code)

    def _notice_silence(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > _AWAY_S:  # this process was stopped, not the hosts
            for link in self._links.values():
                link.last_received_s = now_s
        self._looked_s = now_s
        pings = now_s - self._pinged_s >= _PING_S
        if pings:
            self._pinged_s = now_s
        for link in self._links.values():
            limit_s = _SILENT_S if link.version else _START_S
            if link.lost is None and link.process and now_s - link.last_received_s > limit_s:
                link.lost = f"has not answered for {limit_s:g} s; look at its network"
                link.kill()
            elif pings and link.version and link.lost is None:
                link.send({"id": -1, "do": "ping"})
