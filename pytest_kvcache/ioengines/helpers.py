"""Threads for the few calls on files that libaio can't carry out: open, close, unlink, fadvise.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue

from pytest_kvcache.ioengines.kernel import CLOSE, OPEN, UNLINK

_MODE = 0o600
_ONE = (1).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Job:
    """A call that blocks, for one slot."""

    slot: int
    operation: int
    fd: int = -1
    position: int = 0
    length: int = 0
    path: bytes = b""
    flags: int = 0

    def run(self) -> int:
        """Make the call; the answer is the kernel's, a negative errno for an error."""
        answer = 0
        try:
            if self.operation == OPEN:
                answer = os.open(self.path, self.flags, _MODE)
            elif self.operation == CLOSE:
                os.close(self.fd)
            elif self.operation == UNLINK:
                os.unlink(self.path)  # noqa: PTH108 - a Path costs more than the call
            else:
                os.posix_fadvise(self.fd, self.position, self.length, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            answer = -(error.errno or 0)
        return answer


class Helpers:
    """``count`` threads, started with the first job; ``bell`` is an eventfd that rings for each.

    `answers` is filled by them and emptied by the loop.
    """

    def __init__(self, count: int, bell: int) -> None:
        self.answers: deque[tuple[int, int]] = deque()
        self._count = count
        self._bell = bell
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def do(self, job: Job) -> None:
        """Hand a job to the helpers."""
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name="kvcache-files", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let them finish what they have, and end them."""
        for _ in self._threads:
            self._jobs.put(None)
        while self._threads:
            self._threads.pop().join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.answers.append((job.slot, job.run()))
            os.write(self._bell, _ONE)
