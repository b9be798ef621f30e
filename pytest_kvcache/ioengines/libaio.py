"""Linux's older asynchronous I/O (io_setup(2), what libaio calls), by system calls.

Rank side: imports neither pytest nor MPI. It moves bytes and syncs; opening, closing and
unlinking it can't, so those go to a few threads (helpers.py), which wake the loop through an
eventfd that the same context polls. Buffered transfers it carries out at once, in io_submit:
the probe of asynchrony finds that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
from typing import TYPE_CHECKING

from pytest_kvcache.ioengines.helpers import Helpers, Job
from pytest_kvcache.ioengines.kernel import DATASYNC, READ, WRITE, address_of
from pytest_kvcache.system.kernelqueues import aio_numbers, refused, set_up_aio, system_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.system.kernelqueues import SystemCall

_CODES = {READ: 0, WRITE: 1, DATASYNC: 3}
_POLL = 5
_BLOCK_BYTES, _BLOCK_WORDS, _EVENT_WORDS = 64, 8, 4
_SIGN = 1 << 63
_NS_PER_S = 1_000_000_000
_HELPERS = 4
# The head of the ring of events that the kernel maps: id, nr, head, tail, magic.
_RING_MAGIC = 0xA10A10A1
_HEAD, _TAIL, _MAGIC = 2, 3, 4
# Nothing is wrong: interrupted, or the context is full for the moment.
_AGAIN = frozenset((-errno.EINTR, -errno.EAGAIN))


class Context:
    """A context for ``depth`` calls in flight of ``slots``; raises OSError where there can be none.

    See `kernel.Queue`, which it is. Block i belongs to slot i, one more to the bell.
    """

    def __init__(self, slots: int, depth: int, *, call: SystemCall = system_call) -> None:
        self.notes: list[str] = []
        self._call = call
        _, self._destroy, self._submit, self._getevents = aio_numbers()
        self._blocks = (ctypes.c_uint64 * (_BLOCK_WORDS * (slots + 1)))()
        self._base = ctypes.addressof(self._blocks)
        self._words = memoryview(self._blocks).cast("B").cast("Q")
        self._pointers = (ctypes.c_uint64 * (slots + 1))()
        self._pointers_address = ctypes.addressof(self._pointers)
        self._events = (ctypes.c_uint64 * (_EVENT_WORDS * (slots + 1)))()
        self._events_address = ctypes.addressof(self._events)
        self._bell_number = slots
        self._time = (ctypes.c_int64 * 2)()
        self._time_address = ctypes.addressof(self._time)
        self._buffers: list[memoryview] = []
        self._addresses = [0] * slots
        self._jobs: list[Job | None] = [None] * slots
        self._answers: list[tuple[int, int]] = []
        self._helped = 0  # jobs that the helpers have not answered yet
        self._polled = False
        self._ring: memoryview | None = None
        self._context = set_up_aio(depth + 1, call)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._helpers = Helpers(_HELPERS, self._bell)
        self._map_events()

    def _map_events(self) -> None:
        """Look at the head and tail of the kernel's ring, if they are where they should be."""
        if platform.machine() != "x86_64":
            return
        head = (ctypes.c_uint32 * 8).from_address(self._context)
        if head[_MAGIC] == _RING_MAGIC:
            self._ring = memoryview(head).cast("B").cast("I")

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Remember where the buffers are."""
        self._buffers = list(buffers)
        self._addresses = [address_of(buffer) for buffer in buffers]

    def prepare(  # noqa: PLR0917 - keywords cost
        self, slot: int, operation: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        """Fill the slot's block, or note what a helper is to do."""
        code = _CODES.get(operation)
        if code is None:
            self._jobs[slot] = Job(slot, operation, fd=fd, position=position, length=length)
            return
        self._jobs[slot] = None
        address = self._addresses[slot] + skip if operation <= WRITE else 0
        self._fill(slot, code, fd, address, length, position)

    def prepare_path(self, slot: int, operation: int, path: bytes, flags: int = 0) -> None:
        """Note what a helper is to do."""
        self._jobs[slot] = Job(slot, operation, path=path, flags=flags)

    def _fill(  # noqa: PLR0917 - keywords cost
        self, number: int, code: int, fd: int, address: int, length: int, position: int
    ) -> None:
        words, word = self._words, number * _BLOCK_WORDS
        words[word] = number
        words[word + 2] = code | fd << 32
        words[word + 3] = address
        words[word + 4] = length
        words[word + 5] = position

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        """Call io_submit as often as it takes, then io_getevents if there is a time to wait."""
        begun = self._begin(slots)
        if self._helped and not self._polled:
            self._poll_the_bell()
        if timeout_ns is not None and begun == len(slots) and not self._answers:
            self._take_events(1, timeout_ns)
        return begun

    def _begin(self, slots: Sequence[int]) -> int:
        jobs, pointers, base = self._jobs, self._pointers, self._base
        own = [slot for slot in slots if jobs[slot] is None]
        for place, slot in enumerate(own):
            pointers[place] = base + _BLOCK_BYTES * slot
        taken = self._submit_blocks(own)
        begun = len(slots) if taken == len(own) else slots.index(own[taken])
        if len(own) != len(slots):
            for job in [jobs[slot] for slot in slots[:begun]]:
                if job is not None:
                    self._helped += 1
                    self._helpers.do(job)
        return begun

    def _submit_blocks(self, own: Sequence[int]) -> int:
        """How many of the blocks that are pointed at have begun, or failed at once."""
        count, taken = len(own), 0
        while taken < count:
            answer = self._call(
                self._submit, self._context, count - taken, self._pointers_address + 8 * taken
            )
            if answer > 0:
                taken += answer
            elif answer in _AGAIN or not answer:
                break
            else:  # of the first one: the others were not looked at
                self._answers.append((own[taken], answer))
                taken += 1
        return taken

    def _poll_the_bell(self) -> None:
        """Have the context answer when a helper rings."""
        self._fill(self._bell_number, _POLL, self._bell, select.POLLIN, 0, 0)
        pointer = ctypes.c_uint64(self._base + _BLOCK_BYTES * (self._bell_number))
        answer = self._call(self._submit, self._context, 1, ctypes.addressof(pointer))
        if answer < 0:
            raise refused("io_submit (of a poll, for which Linux 4.19 is needed)", answer)
        self._polled = True

    def _take_events(self, fewest: int, timeout_ns: int) -> None:
        self._time[0], self._time[1] = divmod(max(0, timeout_ns), _NS_PER_S)
        count = self._call(
            self._getevents, self._context, fewest, self._bell_number + 1, self._events_address,
            self._time_address,
        )  # fmt: skip
        if count < 0:
            if count in _AGAIN:
                return
            raise refused("io_getevents", count)
        events = self._events
        for word in range(0, count * _EVENT_WORDS, _EVENT_WORDS):
            number, answer = events[word], events[word + 2]
            if number == self._bell_number:
                self._polled = False
                os.read(self._bell, 8)
            else:
                self._answers.append((number, answer if answer < _SIGN else answer - (_SIGN << 1)))

    def peek(self) -> bool:
        """Whether there are answers; elsewhere than on x86 that costs a system call."""
        ring = self._ring
        if ring is None or ring[_HEAD] != ring[_TAIL]:
            self._take_events(0, 0)
        if self._helped:
            done = self._helpers.answers
            while done:
                self._answers.append(done.popleft())
                self._helped -= 1
        return bool(self._answers)

    def harvest(self) -> list[tuple[int, int]]:
        """Take all answers there are."""
        found, self._answers = self._answers, []
        return found

    def close(self) -> None:
        """Destroy the context, for which the kernel waits for what is in flight."""
        self._helpers.close()
        if self._ring is not None:
            self._ring.release()
            self._ring = None
        if self._context:
            self._call(self._destroy, self._context)
            self._context = 0
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1
