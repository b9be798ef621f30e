"""What io_uring and libaio have in common: calls on files by slot, buffers by address.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a queue can be asked to do with a file.
READ, WRITE, DATASYNC, DROP_CACHE, OPEN, CLOSE, UNLINK = range(7)


def address_of(buffer: memoryview) -> int:
    """Where a writable buffer begins; 0 for an empty one."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer.nbytes else 0


class Queue(Protocol):
    """Calls on files that the kernel carries out by itself, at most one per slot at a time.

    Belongs to one thread; there is no lock.
    """

    @property
    def notes(self) -> Sequence[str]:
        """What people should know about it: what the kernel refused, and what that costs."""
        ...

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Tell the kernel the slots' buffers: the nth is slot n's; once, before anything else."""
        ...

    def prepare(  # noqa: PLR0917 - keywords cost
        self, slot: int, operation: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        """Say what the slot's next call on an open file is; costs no system call.

        READ and WRITE move ``length`` bytes of the slot's buffer from byte ``skip`` on.
        """
        ...

    def prepare_path(self, slot: int, operation: int, path: bytes, flags: int = 0) -> None:
        """Say that the slot's next call opens (with these flags) or unlinks a file."""
        ...

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        """Begin the calls of these slots, as many as the kernel takes; returns how many.

        With a timeout and all begun: return when there is an answer, or after that time,
        or when a signal came.
        """
        ...

    def peek(self) -> bool:
        """Whether there are answers; costs no system call where there are none and that is safe.

        What comes later than this is left for the next look: a stamp read in between is not
        too early for any that `harvest` returns.
        """
        ...

    def harvest(self) -> Sequence[tuple[int, int]]:
        """Each slot that is through with its call, and the answer, of what `peek` has seen."""
        ...

    def close(self) -> None:
        """Give back all that was taken of the kernel; nothing is in flight any more."""
        ...
