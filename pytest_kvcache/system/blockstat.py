"""What a block device has moved since the machine started. Parsing is pure.

Reads sysfs only. Imports neither pytest nor MPI.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.system.kernelfile import kernel_number, kernel_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECTOR_BYTES = 512  # of these counters, whatever the device's own sectors are
_SEGMENT_BYTES = 4096  # at least, where no pages of a buffer are neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounters:
    """Requests completed by a device, their bytes, and the time that it had any.

    Of all processes, the kernel's own I/O included. Requests are counted as the device
    got them: after the kernel has cut and merged what was asked for.
    """

    read_ops: int
    read_bytes: int
    write_ops: int
    write_bytes: int
    busy_s: float

    def since(self, earlier: BlockCounters) -> BlockCounters:
        """What was moved after ``earlier``."""
        return BlockCounters(
            **{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCounters:
    """What one disk moved in the moment before a run, in the run, and in the moment after it.

    ``largest_request_bytes`` is what it gets in one request at least, of a long transfer.
    """

    name: str
    largest_request_bytes: int | None
    quiet: BlockCounters
    run: BlockCounters
    after: BlockCounters

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DiskCounters:
        """The inverse of ``asdict``."""
        spans = {name: BlockCounters(**data[name]) for name in ("quiet", "run", "after")}
        return cls(**{**data, **spans})


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProbe:
    """What a sync of so many bytes, written through the page cache, did; None: not known."""

    bytes: int
    device_write_bytes: int | None
    unsynced_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """What the first rank of a host saw of the disks below its directory, and for how long.

    No ``disks`` where not all that matter are counted.
    """

    machine: str | None
    quiet_s: float
    run_s: float
    after_s: float
    disks: tuple[DiskCounters, ...]
    sync_probe: SyncProbe | None

    def to_json(self) -> dict[str, Any]:
        """The report as it stands in a rank's record."""
        data = asdict(self)
        return {**data, "disks": list(data["disks"])}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceReport:
        """The inverse of ``to_json``."""
        probe = data["sync_probe"]
        parts = {
            "disks": tuple(map(DiskCounters.from_json, data["disks"])),
            "sync_probe": None if probe is None else SyncProbe(**probe),
        }
        return cls(**{**data, **parts})


def parse_stat(text: str) -> BlockCounters | None:
    """Parse /sys/block/<name>/stat (Documentation/block/stat.rst); None: it is none."""
    values = text.split()
    try:
        numbers = [int(value) for value in values[:11]]
        return BlockCounters(
            read_ops=numbers[0],
            read_bytes=numbers[2] * _SECTOR_BYTES,
            write_ops=numbers[4],
            write_bytes=numbers[6] * _SECTOR_BYTES,
            busy_s=numbers[9] / 1e3,
        )
    except (ValueError, IndexError):
        return None


def read_counters(name: str, sys_block: str = "/sys/class/block") -> BlockCounters | None:
    """A device's counters now; None where the kernel does not count, or sysfs is not there."""
    directory = Path(sys_block) / name
    if kernel_number(directory / "queue" / "iostats") == 0:
        return None
    return parse_stat(kernel_text(directory / "stat") or "")


def largest_request_bytes(name: str, sys_block: str = "/sys/class/block") -> int | None:
    """What the device gets in one request at least, of a long transfer; None: not known."""
    queue = Path(sys_block) / name / "queue"
    kib, segments = kernel_number(queue / "max_sectors_kb"), kernel_number(queue / "max_segments")
    if not kib or not segments:
        return None
    return min(kib * 1024, segments * _SEGMENT_BYTES)


def machine_id() -> str | None:
    """This boot of this machine: namespaces and containers of it have the same devices."""
    return kernel_text("/proc/sys/kernel/random/boot_id")
