"""What a host's disks moved around a run, and whether its sync is one. Rank-side.

The first rank of each host watches the disks at the end of its chain: for a moment before
the ramp, when no rank of the run does I/O, from the start of the run until the last rank
has drained, and for a moment after that. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.blockstat import (
    DeviceReport,
    DiskCounters,
    SyncProbe,
    largest_request_bytes,
    machine_id,
    read_counters,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.system.blockstat import BlockCounters
    from pytest_kvcache.system.devicechain import DeviceChain

QUIET_S = 0.5
PROBE_BYTES = 4 << 20
_CACHESTAT = 451  # of all architectures, since Linux 6.5
_DIRTY, _WRITEBACK, _FIELDS = 1, 2, 5  # of struct cachestat
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DeviceWatch:
    """Counters of the disks below one directory; `look`, `probe_sync`, `begin`, `end`, `look`."""

    def __init__(
        self,
        chain: DeviceChain,
        directory: str,
        *,
        read: Callable[[str], BlockCounters | None] = read_counters,
    ) -> None:
        self._chain = chain
        self._directory = directory
        self._read = read
        self._quiet: dict[str, BlockCounters] = {}
        self._quiet_s = 0.0
        self._after: dict[str, BlockCounters] = {}
        self._after_s = 0.0
        self._before: dict[str, BlockCounters] = {}
        self._run: dict[str, BlockCounters] = {}
        self._began_ns = 0
        self._run_s = 0.0
        self._sync_probe: SyncProbe | None = None

    def look(self, for_s: float = QUIET_S, *, durable: bool) -> None:
        """Before the run: all that is others', if the population is ``durable`` by now."""
        self._quiet, self._quiet_s = self._looked(for_s, durable=durable)

    def look_again(self, for_s: float = QUIET_S, *, durable: bool) -> None:
        """After the run: who began in it is still there."""
        self._after, self._after_s = self._looked(for_s, durable=durable)

    def _looked(self, for_s: float, *, durable: bool) -> tuple[dict[str, BlockCounters], float]:
        """Count for a moment in which no rank of the run does I/O."""
        if durable:
            self._commit()
        began_ns, before = time.monotonic_ns(), self._sample()  # the span holds all it counts
        time.sleep(for_s)
        moved = _difference(self._sample(), before)
        span_s = (time.monotonic_ns() - began_ns) / 1e9
        return _within(span_s, moved), span_s

    def _commit(self) -> None:
        """The journal writes now what it would else write while others are looked for."""
        with suppress(OSError):  # not every filesystem can sync a directory
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def probe_sync(self, sync: Callable[[int], None] = os.fdatasync) -> None:
        """Write through the page cache, sync as backends do, and see what that did.

        Nothing, where the filesystem has no room for it. StorageError if it can't be
        written.
        """
        path = Path(self._directory, f"sync-probe-{token_hex(8)}")  # hosts may share it
        try:
            with path.open("w+b", buffering=0) as file:
                before = self._sample()  # before the write: a sync of others may take it along
                file.write(os.urandom(PROBE_BYTES))
                sync(file.fileno())
                moved = _difference(self._sample(), before)
                unsynced = unsynced_bytes(file.fileno(), PROBE_BYTES)
            path.unlink()
        except OSError as error:
            if error.errno in _FULL:
                path.unlink(missing_ok=True)
                return
            raise StorageError(f"can't probe the sync with {path}: {error.strerror}") from error
        is_known = self._is_known(moved)
        self._sync_probe = SyncProbe(
            bytes=PROBE_BYTES,
            device_write_bytes=sum(c.write_bytes for c in moved.values()) if is_known else None,
            unsynced_bytes=unsynced,
        )

    def begin(self) -> None:
        """Begin to count: the run starts."""
        self._began_ns, self._before = time.monotonic_ns(), self._sample()  # likewise

    def end(self) -> None:
        """Count no further: all ranks have drained."""
        moved = _difference(self._sample(), self._before)
        self._run_s = (time.monotonic_ns() - self._began_ns) / 1e9
        self._run = _within(self._run_s, moved)

    def report(self) -> DeviceReport:
        """What was seen; no disks where not all that matter are counted."""
        is_known = all(map(self._is_known, (self._quiet, self._run, self._after)))
        return DeviceReport(
            machine=machine_id(),
            quiet_s=self._quiet_s,
            run_s=self._run_s,
            after_s=self._after_s,
            disks=tuple(map(self._disk, self._chain.disks)) if is_known else (),
            sync_probe=self._sync_probe,
        )

    def _disk(self, name: str) -> DiskCounters:
        return DiskCounters(
            name=name,
            largest_request_bytes=largest_request_bytes(name),
            quiet=self._quiet[name],
            run=self._run[name],
            after=self._after[name],
        )

    def _is_known(self, counters: Mapping[str, BlockCounters]) -> bool:
        """Whether these are the counters of all that keeps the bytes."""
        chain = self._chain
        known = bool(chain.disks) and chain.unseen is None and not chain.memory
        return known and set(counters) == set(chain.disks)

    def _sample(self) -> dict[str, BlockCounters]:
        found = {name: self._read(name) for name in self._chain.disks}
        return {name: counters for name, counters in found.items() if counters is not None}


def unsynced_bytes(fd: int, length: int) -> int | None:
    """Bytes of a file that are in the page cache only; None where cachestat(2) is not there.

    What a sync leaves behind is seen here whatever else the device writes meanwhile.
    """
    span = (ctypes.c_uint64 * 2)(0, length)
    answer = (ctypes.c_uint64 * _FIELDS)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(_CACHESTAT), fd, span, answer, 0):
        return None
    return int(answer[_DIRTY] + answer[_WRITEBACK]) * mmap.PAGESIZE


def _within(span_s: float, moved: Mapping[str, BlockCounters]) -> dict[str, BlockCounters]:
    """Nothing is busy for longer than there was time.

    Where two processors begin a request in the same moment, the kernel may count all the time
    that the device was idle before as busy (update_io_ticks in block/blk-core.c: it looks for
    requests in flight after it has taken the time since the last one, and finds the other's).
    """
    return {name: replace(of, busy_s=min(of.busy_s, span_s)) for name, of in moved.items()}


def _difference(
    now: Mapping[str, BlockCounters], before: Mapping[str, BlockCounters]
) -> dict[str, BlockCounters]:
    return {name: now[name].since(before[name]) for name in now if name in before}
