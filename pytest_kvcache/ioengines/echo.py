"""A kernel's queue without a kernel: every call has moved all its bytes as soon as it begins.

Rank side: imports neither pytest nor MPI. What is left of a ring engine before it is what
the engine itself costs; calibration measures that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.kernel import WRITE
from pytest_kvcache.ioengines.ringslabs import SlabEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.ioengines.protocol import IoEngineName


class EchoQueue:
    """Answers what a storage would that needs no time (implements ``kernel.Queue``)."""

    notes: Sequence[str] = ()

    def __init__(self, slots: int) -> None:
        self._answers = [0] * slots
        self._ended: list[tuple[int, int]] = []

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Do nothing: no byte is moved."""

    def prepare(  # noqa: PLR0917 - keywords cost
        self,
        slot: int,
        operation: int,
        fd: int,  # noqa: ARG002 - the kernel's
        position: int = 0,  # noqa: ARG002
        length: int = 0,
        skip: int = 0,  # noqa: ARG002
    ) -> None:
        """Note the answer that there will be."""
        self._answers[slot] = length if operation <= WRITE else 0

    def prepare_path(self, slot: int, operation: int, path: bytes, flags: int = 0) -> None:  # noqa: ARG002
        """Note that the call goes well."""
        self._answers[slot] = 0

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:  # noqa: ARG002
        """Answer all at once; nothing is ever waited for."""
        answers = self._answers
        self._ended += [(slot, answers[slot]) for slot in slots]
        return len(slots)

    def peek(self) -> bool:
        """Whether there are answers."""
        return bool(self._ended)

    def harvest(self) -> Sequence[tuple[int, int]]:
        """Take the answers."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Do nothing."""


class _Nowhere:
    """Room for every object, without a file (implements ``Slabs``)."""

    host = "nowhere"
    buffered = False

    def locate(self, key: str, offset: int, length: int, *, write: bool) -> tuple[int, int]:  # noqa: ARG002
        return -1, offset

    def locate_object(self, action: str, key: str) -> tuple[int, int, int]:  # noqa: ARG002
        return -1, 0, 0

    def wrote(self, key: str, offset: int, length: int) -> None:
        """Note nothing of a write."""

    def delete(self, key: str) -> None:
        """Free nothing of an object."""

    def failure(self, action: str, key: str, error: OSError) -> StorageError:
        return StorageError(f"can't {action} {key}: {error.strerror}")

    def short(self, action: str, key: str, offset: int, wanted: int, got: int) -> StorageError:
        return StorageError(f"short {action} of {key} at {offset}: {got} of {wanted} bytes")


def echo_engine(name: IoEngineName, depth: int) -> SlabEngine:
    """The ring engine of that name before no kernel and no storage."""
    return SlabEngine(name, _Nowhere(), depth, EchoQueue)
