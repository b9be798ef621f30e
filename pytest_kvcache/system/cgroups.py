"""What the control groups of this process allow, and what the kernel counts in them.

Version 1, version 2 and both at once (hybrid). A limit holds for every group below the one
it was set on, so all are looked at from the process's own up to the visible root. Reads
/proc and the mounted hierarchies only; imports neither pytest nor MPI. See cgroups(7) and
the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pytest_kvcache.system.kernelfile import kernel_number, kernel_text
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_V1_NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 where there is no limit
_V1_IO = {
    "blkio.throttle.read_bps_device": "read_bytes_per_s",
    "blkio.throttle.write_bps_device": "write_bytes_per_s",
    "blkio.throttle.read_iops_device": "reads_per_s",
    "blkio.throttle.write_iops_device": "writes_per_s",
}
_V2_IO = {
    "rbps": "read_bytes_per_s",
    "wbps": "write_bytes_per_s",
    "riops": "reads_per_s",
    "wiops": "writes_per_s",
}
# Pages of files: the kernel takes them back before it kills, as it counts them in MemAvailable.
_V1_RECLAIMABLE = ("total_inactive_file", "total_active_file")
_V2_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """A process's groups by what controls them, its own first; empty where there are none.

    ``v1`` has one path per controller, ``v2`` is the one of the unified hierarchy.
    """

    v1: Mapping[str, tuple[Path, ...]]
    v2: tuple[Path, ...]

    @classmethod
    def of_process(cls, proc: str = "/proc/self") -> Groups:
        """The groups of the process, as far as they can be seen from where it is."""
        try:
            membership = (Path(proc) / "cgroup").read_text(encoding="utf-8")
            mounts = (Path(proc) / "mountinfo").read_text(encoding="utf-8")
        except OSError:  # a kernel without control groups, or /proc is hidden
            return cls(v1={}, v2=())
        return parse_groups(membership, mounts)


def parse_groups(membership: str, mountinfo: str) -> Groups:
    """The groups by the texts of /proc/<pid>/cgroup and mountinfo."""
    mounted = list(_mounted(mountinfo))
    v1: dict[str, tuple[Path, ...]] = {}
    v2: tuple[Path, ...] = ()
    for line in membership.splitlines():
        _number, controllers, path = line.split(":", 2)
        names = set(filter(None, controllers.split(",")))
        for options, root, mount_point in mounted:
            if not names and options is None:
                v2 = v2 or _upwards(path, root, mount_point)
            elif names and options is not None and names <= options:
                for name in names:
                    v1.setdefault(name, _upwards(path, root, mount_point))
    return Groups(v1=v1, v2=v2)


def _mounted(mountinfo: str) -> Iterator[tuple[set[str] | None, str, Path]]:
    """Every hierarchy: its controllers (None: version 2), what of it is mounted, and where."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _id, _parent, _device, root, mount_point, *_rest = before.split(" ")
        fs_type, _source, options = (*after.split(" "), "", "")[:3]
        if fs_type in ("cgroup", "cgroup2"):
            known = None if fs_type == "cgroup2" else set(options.split(","))
            yield known, root, Path(mount_point)


def _upwards(path: str, root: str, mount_point: Path) -> tuple[Path, ...]:
    """Directories from the group to the mount point; a group not below it is its root to us.

    In a container the hierarchy may be mounted from the container's own group on, or the
    path may be told as seen from outside.
    """
    group = PurePosixPath(path)
    inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    own = mount_point / inside
    found = [own, *own.parents][: len(inside.parts) + 1]
    return tuple(directory for directory in found if directory.is_dir())


# --- limits ----------------------------------------------------------------------------------


def cpu_quota_cores(groups: Groups) -> float | None:
    """The least quota over its period along the path: so many cores; None: no quota."""
    quotas = [
        *(_v1_quota(group) for group in groups.v1.get("cpu", ())),
        *(_v2_quota(group) for group in groups.v2),
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _v1_quota(group: Path) -> float | None:
    quota_us = kernel_number(group / "cpu.cfs_quota_us")
    period_us = kernel_number(group / "cpu.cfs_period_us")
    if quota_us is None or not period_us or quota_us < 0:
        return None
    return quota_us / period_us


def _v2_quota(group: Path) -> float | None:
    quota, period = (*(kernel_text(group / "cpu.max") or "").split(), "", "")[:2]
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """The group along the path that leaves least: what it allows, and what is left of that."""

    limit_bytes: int
    free_bytes: int


def memory_limit(groups: Groups) -> MemoryLimit | None:
    """The tightest limit; None: there is none, or none that can be seen."""
    found = [
        *(_v1_memory(group) for group in groups.v1.get("memory", ())),
        *(_v2_memory(group) for group in groups.v2),
    ]
    limits = [limit for limit in found if limit is not None]
    return min(limits, key=lambda limit: limit.free_bytes, default=None)


def _v1_memory(group: Path) -> MemoryLimit | None:
    limit_bytes = kernel_number(group / "memory.limit_in_bytes")
    if limit_bytes is None or limit_bytes >= _V1_NO_LIMIT:
        return None
    return _left(group, limit_bytes, "memory.usage_in_bytes", _V1_RECLAIMABLE)


def _v2_memory(group: Path) -> MemoryLimit | None:
    limit_bytes = kernel_number(group / "memory.max")
    if limit_bytes is None:
        return None
    return _left(group, limit_bytes, "memory.current", _V2_RECLAIMABLE)


def _left(group: Path, limit_bytes: int, usage: str, names: tuple[str, ...]) -> MemoryLimit:
    used_bytes = kernel_number(group / usage) or 0
    counts = _fields(group / "memory.stat")
    held_bytes = max(0, used_bytes - sum(counts.get(name, 0) for name in names))
    return MemoryLimit(limit_bytes=limit_bytes, free_bytes=max(0, limit_bytes - held_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """What a group allows on one device (``major:minor``); None: no limit of that kind."""

    device: str
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    reads_per_s: int | None = None
    writes_per_s: int | None = None


def io_limits(groups: Groups) -> tuple[IoLimit, ...]:
    """What the path allows on each device: of several limits the least counts."""
    least: dict[str, dict[str, int]] = {}
    for device, name, limit in (*_v1_io(groups), *_v2_io(groups)):
        known = least.setdefault(device, {})
        known[name] = min(limit, known.get(name, limit))
    return tuple(IoLimit(device=device, **least[device]) for device in sorted(least))


def _v1_io(groups: Groups) -> Iterator[tuple[str, str, int]]:
    for group in groups.v1.get("blkio", ()):
        for file, name in _V1_IO.items():
            for line in (kernel_text(group / file) or "").splitlines():
                device, _, limit = line.partition(" ")
                if limit.isdecimal():
                    yield device, name, int(limit)


def _v2_io(groups: Groups) -> Iterator[tuple[str, str, int]]:
    for group in groups.v2:
        for line in (kernel_text(group / "io.max") or "").splitlines():
            device, *limits = line.split()
            for key, _, limit in (pair.partition("=") for pair in limits):
                if key in _V2_IO and limit.isdecimal():
                    yield device, _V2_IO[key], int(limit)


# --- what is counted -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """A group's quota: periods so far, those in which it was stopped, and for how long.

    ``throttled_s`` is summed over the cores on which the group was stopped.
    """

    periods: int
    throttled_periods: int
    throttled_s: float


def cpu_throttling(groups: Groups) -> tuple[Throttling, ...]:
    """The throttling of every group along the path that can be, its own first."""
    paths = (*groups.v1.get("cpu", ()), *groups.v2)
    return tuple(_throttling(counts) for counts in (_fields(path / "cpu.stat") for path in paths)
                 if "nr_throttled" in counts)  # fmt: skip


def _throttling(counts: Mapping[str, int]) -> Throttling:
    v1_s = counts.get("throttled_time", 0) / 1e9
    return Throttling(
        periods=counts.get("nr_periods", 0),
        throttled_periods=counts["nr_throttled"],
        throttled_s=counts["throttled_usec"] / 1e6 if "throttled_usec" in counts else v1_s,
    )


def memory_limit_hits(groups: Groups) -> int | None:
    """How often memory had to be taken back to stay below a limit of the path; None: unlimited."""
    counts = [
        *(_v1_hits(group) for group in groups.v1.get("memory", ())),
        *(_v2_hits(group) for group in groups.v2),
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _v1_hits(group: Path) -> int | None:
    return None if _v1_memory(group) is None else kernel_number(group / "memory.failcnt")


def _v2_hits(group: Path) -> int | None:
    """Hits of the group's own limits; memory.events counts those of all groups below as well."""
    if kernel_number(group / "memory.max") is None and kernel_number(group / "memory.high") is None:
        return None
    counts = _fields(group / "memory.events.local") or _fields(group / "memory.events")
    return counts.get("high", 0) + counts.get("max", 0) if counts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKills:
    """Processes that the kernel has killed for memory so far; None: it does not count them.

    ``in_group`` are those of this process's own group, whose tightest limit is
    ``limit_bytes``.
    """

    in_group: int | None
    on_machine: int | None
    limit_bytes: int | None

    @classmethod
    def now(cls, groups: Groups, vmstat: str = "/proc/vmstat") -> MemoryKills:
        """What the kernel has counted at this moment."""
        own = [
            *(_fields(group / "memory.oom_control") for group in groups.v1.get("memory", ())[:1]),
            *(_fields(group / "memory.events") for group in groups.v2[:1]),
        ]
        limit = memory_limit(groups)
        return cls(
            in_group=next((counts["oom_kill"] for counts in own if "oom_kill" in counts), None),
            on_machine=_fields(Path(vmstat)).get("oom_kill"),
            limit_bytes=None if limit is None else limit.limit_bytes,
        )

    def since(self, earlier: MemoryKills) -> str | None:
        """What the kernel has done in between, in words; None: it has killed nobody."""
        killed = _risen(earlier.in_group, self.in_group)
        if killed:
            limit = self.limit_bytes
            shown = "" if limit is None else f" ({limit_words(format_bytes(limit))})"
            return f"killed {_processes(killed)} for memory{shown}"
        killed = _risen(earlier.on_machine, self.on_machine)
        return f"killed {_processes(killed)} for memory" if killed else None


def limit_words(limit: str) -> str:
    """How a limit is named in a sentence."""
    return f"its control group allows {limit}"


def _risen(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, after - before)


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count != 1)}"


def memory_pressure_s(groups: Groups) -> float | None:
    """How long some process of the group has waited for memory so far; None: not known."""
    return next((pressure_s(str(group / "memory.pressure")) for group in groups.v2), None)


def pressure_s(path: str = "/proc/pressure/memory") -> float | None:
    """The machine's pressure: ``some``, in the kernel's Documentation/accounting/psi.rst."""
    for line in (kernel_text(path) or "").splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


# --- reading ---------------------------------------------------------------------------------


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number; empty where the file is not there."""
    pairs = (line.partition(" ") for line in (kernel_text(path) or "").splitlines())
    return {name: int(number) for name, _, number in pairs if number.isdecimal()}
