"""io_uring by system calls: a ring of calls that the kernel takes, a ring of its answers.

Rank side: imports neither pytest nor MPI. See io_uring(7), io_uring_setup(2) and
io_uring_enter(2); numbers and layouts are those of linux/io_uring.h. The kernel's words are
read and written without barriers: `system.kernelqueues.ordered_memory` tells where that is right.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING, Literal

from pytest_kvcache.ioengines.kernel import (
    CLOSE,
    DATASYNC,
    DROP_CACHE,
    OPEN,
    READ,
    UNLINK,
    WRITE,
    address_of,
)
from pytest_kvcache.system.kernelqueues import refused, set_up_uring, system_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.system.kernelqueues import SystemCall

# The same on every machine.
IO_URING_ENTER, IO_URING_REGISTER = 426, 427

_SQ_OFFSETS, _CQ_OFFSETS = slice(10, 20), slice(20, 30)
_MMAP_ENTRIES = 0x10000000
_ENTRY_BYTES, _ENTRY_WORDS, _ANSWER_BYTES, _ANSWER_WORDS = 64, 8, 16, 4
_GET_EVENTS, _TIMEOUT_ARG = 1 << 0, 1 << 3
_REGISTER_BUFFERS, _REGISTER_WORKERS = 0, 19
_READ_FIXED, _WRITE_FIXED = 4, 5
_CODES = {READ: 22, WRITE: 23, DATASYNC: 3, DROP_CACHE: 24, OPEN: 18, CLOSE: 19, UNLINK: 36}
_HERE = 0xFFFFFF9C  # AT_FDCWD, as 32 bits: paths are whole
_MODE = 0o600
_ADVICE = {DATASYNC: 1, DROP_CACHE: os.POSIX_FADV_DONTNEED}  # IORING_FSYNC_DATASYNC
_32_BITS = 0xFFFFFFFF
_SIGN = 0x80000000
_NS_PER_S = 1_000_000_000
# What the kernel answers where nothing is wrong: it was interrupted, the time is over, it is
# short of memory, or it wants its answers to be taken first.
_AGAIN = frozenset((-errno.EINTR, -errno.ETIME, -errno.EAGAIN, -errno.EBUSY))


class Ring:
    """An io_uring of at least ``slots`` entries; raises OSError where there can be none.

    Entry i belongs to slot i. See `kernel.Queue`, which it is.
    """

    def __init__(self, slots: int, *, call: SystemCall = system_call) -> None:
        self.notes: list[str] = []
        self._call = call
        self._fd, params = set_up_uring(max(1, slots), call)
        self._views: list[memoryview] = []
        self._maps: list[mmap.mmap] = []
        try:
            self._map(params)
        except BaseException:
            self.close()
            raise
        self._paths: list[object] = [None] * self._entries
        self._buffers: list[memoryview] = []
        self._addresses = [0] * self._entries
        self._pinned = [0] * self._entries  # the number of the slot's buffer among those pinned
        self._codes = _CODES
        for slot in range(self._entries):
            self._calls[slot * _ENTRY_WORDS + 4] = slot  # what an answer is known by
        # A relative time, and the structure that io_uring_enter takes it in.
        self._time = (ctypes.c_int64 * 2)()
        self._argument = (ctypes.c_uint64 * 3)(0, 0, ctypes.addressof(self._time))
        self._argument_address = ctypes.addressof(self._argument)
        self._argument_bytes = ctypes.sizeof(self._argument)
        self._take_workers(slots)

    def _map(self, params: tuple[int, ...]) -> None:
        self._entries, answers = params[0], params[1]
        sq, cq = params[_SQ_OFFSETS], params[_CQ_OFFSETS]
        order_begin, answers_begin = sq[6], cq[5]
        size = max(order_begin + 4 * self._entries, answers_begin + _ANSWER_BYTES * answers)
        self._words = self._mapped(0, size + -size % 4, "I")
        self._calls = self._mapped(_MMAP_ENTRIES, _ENTRY_BYTES * self._entries, "Q")
        self._sq_head, self._sq_tail = sq[0] // 4, sq[1] // 4
        self._order, self._mask = order_begin // 4, self._entries - 1
        self._cq_head, self._cq_tail = cq[0] // 4, cq[1] // 4
        self._answers, self._answer_mask = answers_begin // 4, answers - 1
        self._tail = self._words[self._sq_tail]
        self._seen = self._known = self._words[self._cq_head]

    def _mapped(self, offset: int, size: int, code: Literal["I", "Q"]) -> memoryview:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        area = mmap.mmap(self._fd, size, flags=flags, offset=offset)
        self._maps.append(area)
        whole = memoryview(area)
        words = whole.cast(code)
        self._views += [words, whole]
        return words

    def _take_workers(self, slots: int) -> None:
        """Calls that can't be begun at once go to kernel threads: as many as there are slots.

        By default there are four per processor, which would be the depth really reached.
        """
        most = (ctypes.c_uint32 * 2)(max(1, slots), 0)
        answer = self._call(
            IO_URING_REGISTER, self._fd, _REGISTER_WORKERS, ctypes.addressof(most), 2
        )
        if answer < 0:
            self.notes.append(
                "the kernel keeps its own limit of io_uring workers"
                f" ({os.strerror(-answer)}): calls that block may reach less than the queue depth"
            )

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Pin the buffers: the kernel need not look them up in each call."""
        self._buffers = list(buffers)
        self._addresses = [address_of(buffer) for buffer in buffers]
        held = [slot for slot, address in enumerate(self._addresses) if address]
        if not held:
            return
        vectors = (ctypes.c_uint64 * (2 * len(held)))()
        for number, slot in enumerate(held):
            vectors[2 * number] = self._addresses[slot]
            vectors[2 * number + 1] = buffers[slot].nbytes
        answer = self._call(
            IO_URING_REGISTER, self._fd, _REGISTER_BUFFERS, ctypes.addressof(vectors), len(held)
        )
        if answer < 0:
            total = sum(buffer.nbytes for buffer in buffers)
            self.notes.append(
                f"the kernel did not take {total} bytes of buffers in advance"
                f" ({os.strerror(-answer)}; ulimit -l bounds them): each call looks them up"
            )
            return
        self._codes = _CODES | {READ: _READ_FIXED, WRITE: _WRITE_FIXED}
        for number, slot in enumerate(held):
            self._pinned[slot] = number

    def prepare(  # noqa: PLR0917 - keywords cost
        self, slot: int, operation: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        """Fill the slot's entry."""
        calls, word = self._calls, slot * _ENTRY_WORDS
        calls[word] = self._codes[operation] | fd << 32
        calls[word + 1] = position
        if operation <= WRITE:  # READ or WRITE
            calls[word + 2] = self._addresses[slot] + skip
            calls[word + 3] = length
            calls[word + 5] = self._pinned[slot]
        else:
            calls[word + 2] = 0
            calls[word + 3] = length | _ADVICE.get(operation, 0) << 32
            calls[word + 5] = 0

    def prepare_path(self, slot: int, operation: int, path: bytes, flags: int = 0) -> None:
        """Fill the slot's entry; the path is kept until the next one."""
        self._paths[slot] = kept = ctypes.create_string_buffer(path)
        calls, word = self._calls, slot * _ENTRY_WORDS
        calls[word] = _CODES[operation] | _HERE << 32
        calls[word + 1] = 0
        calls[word + 2] = ctypes.addressof(kept)
        calls[word + 3] = (_MODE | flags << 32) if operation == OPEN else 0
        calls[word + 5] = 0

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        """Publish the entries of these slots and call io_uring_enter once."""
        words, order, mask, begin = self._words, self._order, self._mask, self._tail
        tail = begin
        for slot in slots:
            words[order + (tail & mask)] = slot
            tail += 1
        words[self._sq_tail] = tail & _32_BITS
        if timeout_ns is None:
            answer = self._call(IO_URING_ENTER, self._fd, len(slots))
        else:
            self._time[0], self._time[1] = divmod(max(0, timeout_ns), _NS_PER_S)
            answer = self._call(
                IO_URING_ENTER, self._fd, len(slots), 1, _GET_EVENTS | _TIMEOUT_ARG,
                self._argument_address, self._argument_bytes,
            )  # fmt: skip
        # What it took is what its head says; what it left is not begun: it is taken back.
        self._tail = words[self._sq_head]
        if self._tail != tail & _32_BITS:
            words[self._sq_tail] = self._tail
        if answer < 0 and answer not in _AGAIN:
            raise refused("io_uring_enter", answer)
        return (self._tail - begin) & _32_BITS

    def peek(self) -> bool:
        """Whether the kernel has written answers since the last harvest."""
        self._known = self._words[self._cq_tail]
        return self._known != self._seen

    def harvest(self) -> list[tuple[int, int]]:
        """Take the answers that are there."""
        words, base, mask = self._words, self._answers, self._answer_mask
        seen, known = self._seen, self._known
        found = []
        while seen != known:
            word = base + (seen & mask) * _ANSWER_WORDS
            answer = words[word + 2]
            found.append((words[word], answer if answer < _SIGN else answer - (_SIGN << 1)))
            seen = (seen + 1) & _32_BITS
        self._seen = seen
        words[self._cq_head] = seen
        return found

    def close(self) -> None:
        """Unmap and close the ring; may be called again."""
        while self._views:
            self._views.pop().release()
        while self._maps:
            self._maps.pop().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
