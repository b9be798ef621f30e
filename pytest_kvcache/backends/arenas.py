"""Memory of one piece in which a tier keeps its objects: this process's, or a device's.

Rank side: imports neither pytest nor MPI; torch and CuPy only where one of them is asked for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from pytest_kvcache.backends.protocol import PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

Run: TypeAlias = tuple[int, int]
"""Pages that lie side by side: the first one, and how many there are."""


class Arena(Protocol):
    """Memory that was touched when it was made; a copy is over when the call returns."""

    def put(self, begin: int, source: NDArray[np.uint8]) -> None:
        """Copy ``source`` to byte ``begin``."""
        ...

    def get(self, begin: int, target: NDArray[np.uint8]) -> None:
        """Fill ``target`` from byte ``begin``."""
        ...


class HostArena:
    """Memory of this process; numpy copies, because it releases the GIL."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = np.empty(size_bytes, np.uint8)
        self._memory[::PAGE_BYTES] = 1  # or page faults would be timed

    def put(self, begin: int, source: NDArray[np.uint8]) -> None:
        """Copy ``source`` to byte ``begin``."""
        self._memory[begin : begin + source.size] = source

    def get(self, begin: int, target: NDArray[np.uint8]) -> None:
        """Fill ``target`` from byte ``begin``."""
        target[:] = self._memory[begin : begin + target.size]


class TorchArena:
    """Memory of a device of torch, ``cuda:0`` or ``cpu``; the source is pageable memory."""

    def __init__(self, size_bytes: int, device: str) -> None:
        self._torch: Any = import_module("torch")
        self._memory = self._torch.zeros(size_bytes, dtype=self._torch.uint8, device=device)
        self._wait()

    def put(self, begin: int, source: NDArray[np.uint8]) -> None:
        """Copy ``source`` to byte ``begin``."""
        self._memory[begin : begin + source.size].copy_(self._torch.from_numpy(source))
        self._wait()

    def get(self, begin: int, target: NDArray[np.uint8]) -> None:
        """Fill ``target`` from byte ``begin``."""
        self._torch.from_numpy(target).copy_(self._memory[begin : begin + target.size])
        self._wait()

    def _wait(self) -> None:
        """Return when the device has done what it was told to."""
        if self._memory.is_cuda:
            self._torch.cuda.current_stream(self._memory.device).synchronize()


class CupyArena:
    """Memory of a device of CuPy, by its number; the source is pageable memory."""

    def __init__(self, size_bytes: int, device: int) -> None:
        self._cupy: Any = import_module("cupy")
        self._device = self._cupy.cuda.Device(device)
        with self._device:
            self._memory = self._cupy.zeros(size_bytes, dtype=self._cupy.uint8)
            self._wait()

    def put(self, begin: int, source: NDArray[np.uint8]) -> None:
        """Copy ``source`` to byte ``begin``."""
        with self._device:
            self._memory[begin : begin + source.size].set(source)
            self._wait()

    def get(self, begin: int, target: NDArray[np.uint8]) -> None:
        """Fill ``target`` from byte ``begin``."""
        with self._device:
            self._memory[begin : begin + target.size].get(out=target)
            self._wait()

    def _wait(self) -> None:
        """Return when the device has done what it was told to."""
        self._cupy.cuda.get_current_stream().synchronize()


class FreePages:
    """Which pages of an arena are free, as runs of which no two touch.

    Pages that are given back join their neighbours. A demand takes the shortest run that is
    long enough or, where none is, several: it is met as long as enough pages are free,
    whatever the sizes before it were. Not safe to call from several threads.
    """

    def __init__(self, pages: int) -> None:
        self.free = 0
        self._by_length: list[Run] = []  # (length, first), sorted
        self._lengths: dict[int, int] = {}  # of a run, by its first page
        self._firsts: dict[int, int] = {}  # of a run, by the page behind it
        if pages:
            self._insert(0, pages)

    def take(self, pages: int) -> list[Run] | None:
        """Return runs of so many pages together; None: so many are not free."""
        if pages > self.free:
            return None
        taken: list[Run] = []
        while pages:
            place = bisect_left(self._by_length, (pages, 0))
            length, first = self._by_length[min(place, len(self._by_length) - 1)]
            self._remove(first, length)
            wanted = min(pages, length)
            if length > wanted:
                self._insert(first + wanted, length - wanted)
            taken.append((first, wanted))
            pages -= wanted
        return taken

    def give_back(self, runs: list[Run]) -> None:
        """Make these pages free again."""
        for begin, pages in runs:
            first, length = begin, pages
            if (before := self._firsts.get(first)) is not None:
                joined = self._lengths[before]
                self._remove(before, joined)
                first, length = before, length + joined
            if (after := self._lengths.get(first + length)) is not None:
                self._remove(first + length, after)
                length += after
            self._insert(first, length)

    def _insert(self, first: int, length: int) -> None:
        insort(self._by_length, (length, first))
        self._lengths[first] = length
        self._firsts[first + length] = first
        self.free += length

    def _remove(self, first: int, length: int) -> None:
        del self._by_length[bisect_left(self._by_length, (length, first))]
        del self._lengths[first], self._firsts[first + length]
        self.free -= length
