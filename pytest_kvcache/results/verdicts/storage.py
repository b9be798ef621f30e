"""Where the bytes went: verdicts on the storage itself, and on what proves it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.directions import no_storage
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.devicegroups import DeviceGroup
    from pytest_kvcache.results.trial import Trial
    from pytest_kvcache.system.filesystem import FilesystemFacts

# Others' share of a device, from which on it is reported. Below are what a system writes anyway
# (logs, a journal's commits) and what our own estimate of metadata and of cut requests is off.
_BUSY_SHARE = 0.05
_BUSY_BYTES_PER_S = 1 << 20  # and no share of next to nothing
_BUSY_OPERATIONS_PER_S = 20.0


def check_storage(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """No storage, memory, or a virtual disk."""
    if not trial.is_storage:
        yield Verdict.of(
            "NOT_STORAGE",
            f"the backend {plan.backend} is no storage; this measures the harness, use"
            " --kv-backend=file for a result",
        )
    filesystems = trial.proof.filesystems
    memory = [facts for facts in filesystems if facts.memory_at_end is not None]
    if memory:
        yield Verdict.of(
            "TMPFS",
            f"{plan.cache_dir} on {_hosts(memory)} is {memory[0].memory_at_end}, which is"
            " memory; choose a --kv-cache-dir on the storage",
        )
    virtual = [facts for facts in filesystems if facts.virtual and facts not in memory]
    if virtual:
        yield Verdict.of(
            "VIRTUAL_DISK",
            f"the disk of {_hosts(virtual)} is virtual; a cache below this machine can't"
            " be excluded from inside",
        )


def _hosts(filesystems: Sequence[FilesystemFacts]) -> str:
    """Whose filesystems they are, in few words."""
    first, more = filesystems[0].host, len(filesystems) - 1
    return f"{first} and {more} more" if more else first


def check_io_accounting(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Reads and writes apart; rank by rank and device by device.

    One that reads ahead must not stand in for one that reads a cache.
    """
    if no_storage(trial.ranks) is not None:
        return
    reads, writes = trial.proof.reads, trial.proof.writes
    if reads.verdict == "CACHED_READS":
        yield Verdict.of(
            "CACHED_READS",
            f"{reads.why}; the rest came out of a cache, {_out_of_caches(trial, plan)}",
        )
    if writes.verdict == "CACHED_WRITES":
        yield Verdict.of(
            "CACHED_WRITES",
            f"{writes.why}; look for a preloaded library (LD_PRELOAD), a filesystem that takes"
            " O_DIRECT and caches all the same, a loop device without direct I/O",
        )
    unproven = [
        f"{name}: {way.why}"
        for name, way in (("reads", reads), ("writes", writes))
        if way.verdict == "UNPROVEN"
    ]
    if unproven:
        yield Verdict.of("UNPROVEN", "not proven to have reached a device: " + "; ".join(unproven))


def _out_of_caches(trial: Trial, plan: Plan) -> str:
    if trial.proof.io_mode == "direct":
        return (
            "although the files are opened for direct I/O: look for a loop device without it, a"
            " filesystem that ignores it or a preloaded library, or use more data than memory"
        )
    if plan.never_direct:
        return f"use more data than memory (--kv-io=direct does not go with {plan.engine})"
    return "use --kv-io=direct or more data than memory"


def check_other_users(trial: Trial) -> Iterator[Verdict]:
    """Foreign I/O on the disks: during the run, and in the moments around it."""
    if no_storage(trial.ranks) is not None:
        return
    group = busy_group(trial)
    if group is not None:
        yield Verdict.of(
            "BUSY_DEVICE",
            f"others used {'+'.join(group.disks)} of {group.hosts[0]} as well:"
            f" {'; '.join(_used_by_others(group, trial))}; this is the speed of a device under"
            " their load, stop them or take a device of your own",
        )


def busy_group(trial: Trial) -> DeviceGroup | None:
    """The first group of disks that others used as well."""
    groups = trial.proof.devices
    return next((group for group in groups if any(_used_by_others(group, trial))), None)


def _used_by_others(group: DeviceGroup, trial: Trial) -> Iterator[str]:
    if trial.restart is None:  # its metadata is read of the disks, and no byte of it was asked for
        yield from _during(group)
    yield from _around(group)


def _during(group: DeviceGroup) -> Iterator[str]:
    foreign, moved = group.foreign, group.moved
    both = (foreign.read_bytes or 0) + (foreign.write_bytes or 0)
    if _is_much(both, moved.read_bytes + moved.write_bytes, _BUSY_BYTES_PER_S * group.span_s):
        share = both / (moved.read_bytes + moved.write_bytes)
        yield f"{format_bytes(both)} during the run, {share:.0%} of its bytes"
    operations, all_operations = foreign.operations or 0, moved.read_ops + moved.write_ops
    if _is_much(operations, all_operations, _BUSY_OPERATIONS_PER_S * group.span_s):
        share = operations / all_operations
        yield f"at least {operations} operations during the run, {share:.0%} of its operations"


def _around(group: DeviceGroup) -> Iterator[str]:
    """While no rank did I/O. Operations alone are none to speak of: they must take time."""
    foreign, moved = group.foreign, group.moved
    run_bytes_per_s = (moved.read_bytes + moved.write_bytes) / group.span_s
    per_s = foreign.quiet_operations_per_s
    if _is_much(foreign.quiet_bytes_per_s, run_bytes_per_s, _BUSY_BYTES_PER_S) or (
        per_s >= _BUSY_OPERATIONS_PER_S and foreign.quiet_busy_ratio >= _BUSY_SHARE
    ):
        yield (
            f"{format_bytes(round(foreign.quiet_bytes_per_s))}/s and {per_s:.0f} operations/s"
            f" before or after it, {foreign.quiet_busy_ratio:.0%} of the time"
        )


def _is_much(part: float, whole: float, least: float) -> bool:
    return part >= least and part >= _BUSY_SHARE * whole
