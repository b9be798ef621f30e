"""Whether a queue of the kernel is asynchronous on this filesystem: tried, not assumed.

Rank side: imports neither pytest nor MPI. Some filesystems carry a transfer out while it is
being submitted: buffered files under libaio, writes that make a file longer under libaio,
whatever is in memory. So as many transfers as the run has in flight, of its size, are
submitted in the rank's own directory, as its store opens files, and it is counted how many
were still under way when that call returned.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.slabfile import reserve
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.ioengines.kernel import Queue

# What the probe moves at most: seconds before the run, and room beside the data.
MOST_TRANSFERS, _MOST_BYTES, _LARGEST_BYTES = 64, 128 * 2**20, 16 * 2**20
_ROOM_SHARE = 4  # the part of what is free that the probe may take is one over this
_PAIRS = 8
# A loop that loses its core between submitting and looking finds all done. What carries
# transfers out while they are submitted never has one under way, however often it is asked.
_ROUNDS = 3
_A_SECOND_NS, _PATIENCE_NS = 1_000_000_000, 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """What is tried: where, how files are opened, how much.

    ``one_file``: all transfers go to a file whose space is set aside, as those of slabs do;
    else each goes to a new file of its own.
    """

    directory: str
    flags: int
    one_file: bool
    transfers: int
    transfer_bytes: int

    @classmethod
    def of(
        cls, *, directory: str, direct: bool, one_file: bool, depth: int, transfer_bytes: int
    ) -> ProbePlan:
        """Plan as many and as large transfers as the run has, as long as that is no burden."""
        status = os.statvfs(directory)
        room = min(_MOST_BYTES, status.f_bavail * status.f_frsize // _ROOM_SHARE)
        size = min(transfer_bytes, _LARGEST_BYTES, max(PAGE_BYTES, room // 2))
        size = max(PAGE_BYTES, size - size % PAGE_BYTES) if direct else size
        return cls(
            directory=directory,
            flags=os.O_DIRECT if direct else 0,
            one_file=one_file,
            transfers=max(1, min(depth, MOST_TRANSFERS, room // size)),
            transfer_bytes=size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """How many of a batch were under way when its submission had returned.

    ``device`` is how many requests the block device had then, of all processes; None where
    the kernel does not tell. ``pairs``, of `_PAIRS`: how often two transfers that were
    submitted alone were both under way; a fast device may have done half of a batch before
    all of it is submitted. None: not asked, for the batch was proof enough.
    """

    kind: str
    transfers: int
    transfer_bytes: int
    under_way: int
    device: int | None
    pairs: int | None
    submit_ns: int
    all_ns: int

    @property
    def asynchronous(self) -> bool:
        """Whether the kernel works on several transfers while the loop goes on."""
        if self.under_way == self.transfers:
            return True
        return self.pairs is not None and 2 * self.pairs > _PAIRS

    @property
    def share(self) -> str:
        """The share as part of a sentence: ``16 of 16 reads``."""
        pairs = "" if self.pairs is None else f" (submitted two by two, both {self.pairs} times of"
        pairs += "" if self.pairs is None else f" {_PAIRS})"
        return f"{self.under_way} of {self.transfers} {self.kind}{pairs}"


def seen(results: Sequence[ProbeResult]) -> str:
    """What was seen, as one sentence."""
    shares = " and ".join(result.share for result in results)
    counts = [result.device for result in results if result.device is not None]
    device = f"; the device was at {' and '.join(map(str, counts))} requests" if counts else ""
    size = format_bytes(results[0].transfer_bytes)
    return f"{shares} of {size} were under way when all had been submitted{device}"


def probe(queue: Queue, plan: ProbePlan) -> tuple[ProbeResult, ProbeResult]:
    """Write and read, see what the kernel does, and compare what came back.

    Raises OSError where a transfer fails or brings something else than was written. The queue
    is new and has `ProbePlan.transfers` slots.
    """
    size, count = plan.transfer_bytes, plan.transfers
    stride = size + -size % PAGE_BYTES
    room = memoryview(mmap.mmap(-1, count * stride))
    buffers = [room[number * stride : number * stride + size] for number in range(count)]
    queue.register(buffers)
    with ExitStack() as stack:
        files, places = _files(plan, stack)
        tries = _Tries(queue, plan, files, places)
        for number, buffer in enumerate(buffers):
            buffer[:] = _pattern(number, size)
        written = tries.result(kernel.WRITE)
        for fd in set(files):
            os.fdatasync(fd)
        for buffer in buffers:
            buffer[:] = bytes(size)
        read = tries.result(kernel.READ)
        for number, buffer in enumerate(buffers):
            if buffer != _pattern(number, size):
                raise OSError(
                    errno.EIO, "a read of the probe brought something else than was written"
                )
        return written, read


def _pattern(number: int, size: int) -> bytes:
    word = (number * 0x9E3779B97F4A7C15 + 1) % 2**64
    return (word.to_bytes(8, "little") * (size // 8 + 1))[:size]


def _files(plan: ProbePlan, stack: ExitStack) -> tuple[list[int], list[int]]:
    """Descriptor and position of each transfer; the files go when the stack does."""
    files: list[int] = []
    for number in range(1 if plan.one_file else plan.transfers):
        path = Path(plan.directory) / f"engine-probe-{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | plan.flags, 0o600)
        stack.callback(path.unlink)
        stack.callback(os.close, fd)
        files.append(fd)
    if not plan.one_file:
        return files, [0] * plan.transfers
    length = plan.transfers * plan.transfer_bytes
    if not reserve(files[0], 0, length):
        os.ftruncate(files[0], length)
    return files * plan.transfers, list(range(0, length, plan.transfer_bytes))


class _Tries:
    """Batches of one kind of transfer."""

    def __init__(
        self, queue: Queue, plan: ProbePlan, files: Sequence[int], places: Sequence[int]
    ) -> None:
        self._queue = queue
        self._plan = plan
        self._files = files
        self._places = places

    def result(self, call: int) -> ProbeResult:
        """What a batch of all, and if need be pairs, showed."""
        count = self._plan.transfers
        under_way, device, submit_ns, all_ns = self._batch(call, count)
        pairs = None
        if under_way < count and count > 1:
            for _ in range(_ROUNDS):
                pairs = sum(self._batch(call, 2)[0] == 2 for _ in range(_PAIRS))  # noqa: PLR2004
                if 2 * pairs > _PAIRS:
                    break
        return ProbeResult(
            kind="writes" if call == kernel.WRITE else "reads",
            transfers=count, transfer_bytes=self._plan.transfer_bytes,
            under_way=under_way, device=device, pairs=pairs, submit_ns=submit_ns, all_ns=all_ns,
        )  # fmt: skip

    def _batch(self, call: int, count: int) -> tuple[int, int | None, int, int]:
        """How many were under way, here and in the device, and how long it took."""
        size = self._plan.transfer_bytes
        if call == kernel.WRITE and not self._plan.one_file:
            for fd in self._files[:count]:
                os.ftruncate(fd, 0)  # as new again
        if call == kernel.READ:  # what is in the page cache is there at once
            for fd in set(self._files):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for slot in range(count):
            self._queue.prepare(slot, call, self._files[slot], self._places[slot], size)
        left = list(range(count))
        began = time.monotonic_ns()
        self._submit(left, began)
        submitted = time.monotonic_ns()
        self._take(left, size)
        under_way = len(left)
        device = requests_in_device(self._files[0], call) if left else 0
        while left:
            self._queue.enter((), _A_SECOND_NS)
            self._take(left, size)
            _hurry(began)
        return under_way, device, submitted - began, time.monotonic_ns() - began

    def _submit(self, slots: Sequence[int], began: int) -> None:
        begun = 0
        while begun < len(slots):
            begun += self._queue.enter(slots[begun:], None)
            _hurry(began)

    def _take(self, left: list[int], size: int) -> None:
        if not self._queue.peek():
            return
        for slot, answer in self._queue.harvest():
            if answer < 0:
                raise OSError(-answer, os.strerror(-answer))
            if answer != size:
                raise OSError(errno.EIO, f"a transfer of the probe moved {answer} of {size} bytes")
            left.remove(slot)


def _hurry(began_ns: int) -> None:
    if time.monotonic_ns() - began_ns > _PATIENCE_NS:
        raise OSError(errno.ETIMEDOUT, f"the probe took longer than {_PATIENCE_NS // 10**9} s")


def requests_in_device(fd: int, call: int, sys_block: str = "/sys/dev/block") -> int | None:
    """How many reads or writes the device under an open file is at; None: not known."""
    device = os.fstat(fd).st_dev
    path = Path(sys_block) / f"{os.major(device)}:{os.minor(device)}" / "inflight"
    try:
        reads, writes = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(writes if call == kernel.WRITE else reads)
