"""The processes of a host of the test cluster, seen from the machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

NS_GET_PARENT = 0xB702  # <linux/nsfs.h>
PROC = Path("/proc")
START_S = 10.0  # how long nsenter may take to start its command


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process: its pid is that of the machine, its state the letter that ps prints."""

    pid: int
    pid_inside: int
    argv: tuple[str, ...]
    state: str
    name: str


class HostProcess(subprocess.Popen[str]):
    """A command on a host, started through nsenter; signals go to the command itself.

    `pid` is nsenter's, which waits for the command and ends as it does: with its exit
    code, or of its signal. The command has no parent in its host (getppid() is 0).
    """

    _inside: int | None = None

    def wait_started(self) -> None:
        """Wait until the command is on its host, or has ended."""
        until_s = time.monotonic() + START_S
        while self._inside is None and self.poll() is None:
            self._inside = next(iter(children(self.pid)), None)
            assert time.monotonic() < until_s, f"{self.args!r} does not start"
            time.sleep(0.002)

    @property
    def inside(self) -> int:
        """The pid of the command, in the machine's numbering."""
        if self._inside is None:
            raise ProcessLookupError(f"{self.args!r} had ended before it was seen")
        return self._inside

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; none if it has ended."""
        if self.poll() is None:
            os.kill(self.inside, sig)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:  # a failed test must not wait for it
            self.kill()
        super().__exit__(kind, error, traceback)


def children(pid: int) -> list[int]:
    """The children of a process with one thread."""
    try:
        return [int(word) for word in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def members(init_pid: int) -> list[Process]:
    """The processes of the pid namespace of process 1, and of those below it; not itself."""
    wanted = (PROC / f"{init_pid}/ns/pid").stat().st_ino
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == init_pid:
            continue
        try:
            if wanted in pid_namespaces(entry):
                found.append(read_process(entry))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended meanwhile, or is one that not even root may look at
    return sorted(found, key=lambda process: process.pid)


def pid_namespaces(entry: Path) -> set[int]:
    """The pid namespaces that a process is in, from its own up to the machine's."""
    found = set()
    fd = os.open(entry / "ns/pid", os.O_RDONLY)
    while True:
        found.add(os.fstat(fd).st_ino)
        try:
            parent = fcntl.ioctl(fd, NS_GET_PARENT)
        except PermissionError:  # the one that this process is in
            return found
        finally:
            os.close(fd)
        fd = parent


def read_process(entry: Path) -> Process:
    """What /proc says of a process."""
    status = dict(
        line.split(":\t", maxsplit=1)
        for line in (entry / "status").read_text().splitlines()
        if ":\t" in line
    )
    words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
    return Process(
        pid=int(entry.name),
        pid_inside=int(status["NSpid"].split()[1]),
        argv=tuple(os.fsdecode(word) for word in words),
        state=status["State"][0],
        name=status["Name"],
    )
