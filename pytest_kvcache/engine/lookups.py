"""Asking the storage what it has, before anything is loaded: a call per block, by threads.

Rank-side; imports neither pytest nor MPI. The index has decided already which blocks are read;
so the answers change nothing, but that a block which the index has and the storage has not ends
the run.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import LooksUp
    from pytest_kvcache.engine.requests import InFlightRequest


_PER_THREAD = 2  # questions: one is asked, and one comes next


class Question(NamedTuple):
    """What a request asks for: names that must be there, then names that need not be."""

    inflight: InFlightRequest
    stored: Sequence[str]
    others: Sequence[str]


class PrefixQuestion(NamedTuple):
    """How many leading ones of these there are; ``to_first_miss``: what follows is not asked for.

    Where others store and delete as well, nobody knows before.
    """

    inflight: InFlightRequest
    keys: Sequence[str]
    to_first_miss: bool


class Answer(NamedTuple):
    """What came of it, and between which moments; ``found`` of what was asked for is there.

    Of a prefix the first ``leading`` are.
    """

    inflight: InFlightRequest
    started_ns: int
    done_ns: int
    asked: int
    found: int
    error: str | None
    leading: int = 0


class Lookups:
    """Asks with ``threads``; 0: ``answers_at_once``, where nothing waits beside other calls.

    ``open`` questions have not been answered. ``wake`` is called, by a thread, when one is.
    """

    def __init__(
        self,
        backend: LooksUp,
        threads: int,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.first_error: str | None = None
        self.open = 0
        self.answers_at_once = not threads
        self._backend = backend
        self._wake = wake
        self._clock = clock
        self._asked: SimpleQueue[Question | PrefixQuestion | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer | BaseException] = SimpleQueue()
        self._began_ns = [0] * threads  # of the calls that each thread makes; 0: none
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name="kvcache-lookup", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def has_room(self) -> bool:
        """Whether a question would be taken up soon."""
        return self.open < _PER_THREAD * max(1, len(self._threads))

    def submit(self, question: Question | PrefixQuestion) -> None:
        """Ask; the answer is there at some later ``reap``, or at the next one."""
        self.open += 1
        if self._threads:
            self._asked.put(question)
        else:
            self._answers.put(self._answered(question))

    def reap(self) -> list[Answer]:
        """All answers that there are."""
        found = []
        for _ in range(self._answers.qsize()):
            answer = self._answers.get()
            if isinstance(answer, BaseException):
                raise answer
            self.open -= 1
            if self.first_error is None:
                self.first_error = answer.error
            found.append(answer)
        return found

    def leave(self) -> list[InFlightRequest]:
        """Forget what no thread has begun; return whose questions those were."""
        left = []
        while True:
            try:
                question = self._asked.get_nowait()
            except Empty:
                break
            if question is not None:
                self.open -= 1
                left.append(question.inflight)
        return left

    def longest_wait_ns(self, now_ns: int) -> int:
        """For how long the oldest question under way has been waited for; 0: none is."""
        begun = [began_ns for began_ns in self._began_ns if began_ns]
        return max(0, now_ns - min(begun)) if begun else 0

    def close(self) -> None:
        """Let what is under way end, and the threads with it."""
        self.leave()
        for _thread in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, number: int) -> None:
        """One thread's life: take questions, ask, report the answers."""
        try:
            while (question := self._asked.get()) is not None:
                self._began_ns[number] = self._clock()
                answer = self._answered(question)
                self._began_ns[number] = 0
                self._answers.put(answer)
                self._wake()
        except BaseException as error:  # noqa: BLE001  the loop raises it again
            self._answers.put(error)
            self._wake()

    def _answered(self, question: Question | PrefixQuestion) -> Answer:
        if isinstance(question, PrefixQuestion):
            return self._answered_prefix(question)
        inflight, stored, others = question
        keys = [*stored, *others]
        began = self._clock()
        try:
            found = self._backend.look_up(keys)
            error = _missing(stored, found)
            count = sum(found)
        except StorageError as problem:
            error, count = str(problem), 0
        return Answer(inflight, began, self._clock(), len(keys), count, error)

    def _answered_prefix(self, question: PrefixQuestion) -> Answer:
        inflight, keys, to_first_miss = question
        began = self._clock()
        found: list[bool] = []
        error = None
        try:
            if to_first_miss:
                for key in keys:
                    found += self._backend.look_up([key])
                    if not found[-1]:
                        break
            else:
                found += self._backend.look_up(keys)
        except StorageError as problem:
            error = str(problem)
        leading = [*found, False].index(False)
        return Answer(inflight, began, self._clock(), len(found), sum(found), error, leading)


def _missing(stored: Sequence[str], found: Sequence[bool]) -> str | None:
    """What to say of the first object that was stored and is not there."""
    for key, there in zip(stored, found, strict=False):
        if not there:
            return (
                f"a lookup does not find object {key}, which was stored and not deleted; look for"
                " what else deletes in the cache directory, or for a filesystem that forgets"
            )
    return None
