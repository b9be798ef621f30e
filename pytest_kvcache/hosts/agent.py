"""The agent on a host: ``python -m pytest_kvcache.hosts.agent``, started over ssh or by srun.

It answers what the controller asks, one JSON object per line, holds the host's lock, and
cleans up: when the controller is gone or silent, it ends what the run
has left here, so that a host that is cut off cleans itself up. Runs for the whole run,
asleep between two lines. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.backends.posix.cachedir import remove_run_dir
from pytest_kvcache.errors import KVCacheError, PreflightError, StorageError
from pytest_kvcache.hosts.facts import HostQuestion, collect, put_mark, remove_mark, see_marks
from pytest_kvcache.hosts.lock import HostLock
from pytest_kvcache.hosts.processes import LaunchProcesses, describe_process
from pytest_kvcache.hosts.sessiondirs import SessionDirs
from pytest_kvcache.hosts.sharedmemory import Segments
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS
from pytest_kvcache.launchers.family import Leftovers
from pytest_kvcache.system.cgroups import Groups, MemoryKills
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPLY_MARK: Final = "kvcache-agent "
"""What replies begin with; whatever else a login prints is not ours."""
SILENCE_S: Final = 20.0
"""How long the controller may be silent; it speaks every second."""

_READ_BYTES = 65536
_LAST_CLEAN_UP_S = 60.0  # a storage that hangs must not keep the agent for ever
_RETRY_S = 0.1
_PREDECESSOR_S = 5.0


@dataclass(slots=True)
class HostCleanup:
    """What the run owns on this host, and how it is ended."""

    run_id: str
    cache_dir: str | None
    keep: bool
    lock: HostLock
    sees_ranks: bool = True
    leaves: Leftovers = BUILT_IN_LEFTOVERS
    segments: Segments = field(default_factory=Segments.now)
    sessions: SessionDirs = field(default_factory=SessionDirs.now)

    @classmethod
    def begin(
        cls,
        *,
        run_id: str,
        cache_dir: str | None,
        keep: bool,
        sees_ranks: bool = True,
        locks: bool = True,
        leaves: Leftovers = BUILT_IN_LEFTOVERS,
    ) -> HostCleanup:
        """Take the host's lock, unless the controller itself has it; PreflightError names who has.

        In a container (``sees_ranks`` is false) pids mean nothing to others, nor theirs here.
        """
        lock = HostLock(socket.gethostname(), run_id=run_id, in_container=not sees_ranks)
        if locks:
            _acquire(lock, run_id, kills=sees_ranks)
        return cls(
            run_id=run_id, cache_dir=cache_dir, keep=keep, lock=lock, sees_ranks=sees_ranks,
            leaves=leaves,
            segments=Segments.now(patterns=leaves.segments),
            sessions=SessionDirs.now(kinds=leaves.files),
        )  # fmt: skip

    def clean_up(self) -> list[str]:
        """End the run's processes, remove its files; return what could not be ended."""
        left: tuple[int, ...] = ()
        if self.sees_ranks:  # else they end with their container
            left = LaunchProcesses(marker=self.run_id, leaves=self.leaves).kill()
            self.segments.remove_new()
            self.sessions.remove_new()
        # What is stuck in the storage would be joined by us; the ranks' cleanup helper removes it
        # then.
        if self.cache_dir is not None and not self.keep and not left:
            remove_run_dir(self.cache_dir, self.run_id)
        return [describe_process(pid) for pid in left]


def _acquire(lock: HostLock, run_id: str, *, kills: bool) -> None:
    """Take the lock, also from an agent of this very run that was cut off and still has it.

    Where it is in another container (``kills`` is false), its patience ends it soon.
    """
    until_s = time.monotonic() + _PREDECESSOR_S
    while True:
        try:
            lock.acquire()
        except PreflightError:
            holder = lock.holder()
            if holder.get("run_id") != run_id or time.monotonic() > until_s:
                raise
            if kills:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(int(holder["pid"]), signal.SIGKILL)
                LaunchProcesses(marker=run_id).kill()  # and what it was to clean up
            time.sleep(_RETRY_S)
        else:
            return


class Agent:
    """Reads requests, answers each from a thread of its own: one that hangs stops no other."""

    def __init__(self, reply: Callable[[Mapping[str, Any]], None]) -> None:
        self._reply = reply
        self._cleanup: HostCleanup | None = None
        self._stage = "starting"
        self._marks: list[str] = []
        self._actions: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "facts": self._facts,
            "claim": self._claim,
            "mark": self._mark,
            "see": lambda what: see_marks(what["directory"], what["names"]),
            "unmark": lambda _what: self._unmark(),
            "ranks": lambda what: self._processes(what).ranks_begun(),
            "memory kills": lambda _what: asdict(MemoryKills.now(Groups.of_process())),
            "orphans": lambda what: self._processes(what).orphans(),
            "watch": self._watch,
            "clean up": lambda _what: self._cleanup.clean_up() if self._cleanup else [],
        }

    def receive(self, line: str) -> None:
        """One line of the controller; a ping is answered at once."""
        request = json.loads(line)
        if request["do"] == "ping":
            self._reply({"id": request["id"], "stage": self._stage})
            return
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            value = self._actions[request["do"]](request)
        except (KVCacheError, OSError) as error:
            self._reply({"id": request["id"], "error": str(error)})
        else:
            self._reply({"id": request["id"], "value": value})

    def _facts(self, what: Mapping[str, Any]) -> dict[str, Any]:
        return collect(HostQuestion.from_json(what["question"]), self._note).to_json()

    def _note(self, stage: str) -> None:
        self._stage = stage

    def _claim(self, what: Mapping[str, Any]) -> None:
        """Claim the host for a run, once per agent; the directory and what is kept may change."""
        if self._cleanup is None:
            self._cleanup = HostCleanup.begin(
                run_id=what["run_id"],
                cache_dir=what["cache_dir"],
                keep=what["keep"],
                sees_ranks=what.get("sees_ranks", True),
                locks=what.get("locks", True),
                leaves=Leftovers.from_json(what["leaves"]),
            )
        self._cleanup.cache_dir, self._cleanup.keep = what["cache_dir"], what["keep"]

    def _processes(self, what: Mapping[str, Any]) -> LaunchProcesses:
        """The processes of a launch, with daemons as the claiming run's launchers call them."""
        leaves = BUILT_IN_LEFTOVERS if self._cleanup is None else self._cleanup.leaves
        return LaunchProcesses(marker=what["run_id"], leaves=leaves)

    def _watch(self, what: Mapping[str, Any]) -> None:
        """Report the end of each of these processes, in the order in which they end."""
        waiting = select.poll()
        pids = {}
        for pid in what["pids"]:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._reply({"id": -1, "gone": pid})
            else:
                pids[fd] = pid
                waiting.register(fd, select.POLLIN)
        while pids:
            for fd, _event in waiting.poll():
                waiting.unregister(fd)
                os.close(fd)
                self._reply({"id": -1, "gone": pids.pop(fd)})

    def _mark(self, what: Mapping[str, Any]) -> str:
        path = put_mark(what["directory"], what["token"])
        self._marks.append(path)
        return os.path.basename(path)  # noqa: PTH119  as text

    def _unmark(self) -> None:
        while self._marks:
            remove_mark(self._marks.pop())

    def leave(self) -> None:
        """The controller has gone: clean up, and give the host back."""
        self._unmark()
        if self._cleanup is None:
            return
        until_s = time.monotonic() + _LAST_CLEAN_UP_S
        while time.monotonic() < until_s:
            try:
                self._cleanup.clean_up()
            except StorageError:  # a rank that is dying has just written something more
                time.sleep(_RETRY_S)
            else:
                break
        self._cleanup.lock.release()


def _serve(agent: Agent, fd: int) -> None:
    """Until the controller closes the connection, or has been silent for too long."""
    pending = b""
    while select.select([fd], [], [], SILENCE_S)[0]:
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            agent.receive(line.decode())


def _hang_up(*_: object) -> None:
    """Read as if the controller had closed the connection."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def main() -> None:
    """Serve the controller until it goes, then clean up."""
    signal.signal(signal.SIGTERM, _hang_up)  # Slurm's, some seconds before it kills
    writing = threading.Lock()

    def reply(answer: Mapping[str, Any]) -> None:
        with writing:
            os.write(1, f"{REPLY_MARK}{json.dumps(answer)}\n".encode())

    agent = Agent(reply)
    reply({"id": 0, "value": VERSION})
    try:
        _serve(agent, 0)
    finally:
        # In a thread: nothing that hangs here may keep the agent.
        last = threading.Thread(target=agent.leave, daemon=True)
        last.start()
        last.join(_LAST_CLEAN_UP_S)
    os._exit(0)  # threads that hang in a storage would be waited for


if __name__ == "__main__":
    main()
