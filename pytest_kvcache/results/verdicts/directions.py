"""Reads and writes apart: what was compared with what, and whether it agrees. Pure.

A process's own counters tell what the kernel asked devices for on its behalf; a disk's
counters tell what it moved, for whomever. Either disproves. The process's proves where its
I/O goes straight to a disk: a loop device or a cache device may answer from memory what it
took for I/O, and buffered writes are counted when a page gets dirty. Elsewhere the disk's
is the only witness, and believed if others can't have moved what it counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.devicegroups import (
    BELIEVED_SHARE,
    DeviceGroup,
    is_durable,
    journals_data,
)
from pytest_kvcache.results.trial import Direction
from pytest_kvcache.system.mountoptions import asks_for_flushes
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_kvcache.results.record import RankResult

_WORST_FIRST = ("CACHED_READS", "CACHED_WRITES", "UNPROVEN", "PROVEN")
MOVED_SHARE = 0.9  # of the bytes asked for that a device must have moved


def directions_of(
    ranks: Sequence[RankResult], groups: Sequence[DeviceGroup]
) -> tuple[Direction, Direction]:
    """Reads and writes apart; where there is no storage, nothing is compared."""
    reads, writes = reads_of(ranks, groups), writes_of(ranks, groups)
    elsewhere = no_storage(ranks)
    if elsewhere is None:
        return reads, writes
    both = [Direction(verdict=way.verdict and elsewhere) for way in (reads, writes)]
    return both[0], both[1]


def no_storage(ranks: Sequence[RankResult]) -> str | None:
    """What the bytes of some rank went to instead of a storage, as a code; None: nothing."""
    if any(_is_memory(rank) for rank in ranks):
        return "TMPFS"
    return None if all(rank.is_storage for rank in ranks) else "NOT_STORAGE"


def worst_of(ranks: Sequence[RankResult], reads: Direction, writes: Direction) -> str | None:
    """What stands against the worse of the two, else PROVEN; None: nothing was moved."""
    given = {reads.verdict, writes.verdict}
    worst = next((code for code in _WORST_FIRST if code in given), None)
    return no_storage(ranks) or worst


def reads_of(ranks: Sequence[RankResult], groups: Sequence[DeviceGroup]) -> Direction:
    """Whether the reads reached a device."""
    asked = [rank for rank in ranks if rank.requested_read_bytes]
    process = _least(
        rank.device_read_bytes / rank.requested_read_bytes
        for rank in asked
        if rank.device_read_bytes is not None and _counts_io(rank)
    )
    device = _least(map(_read_share, groups))
    return _judged(
        bool(asked), process, device, code="CACHED_READS",
        cached=_cached_reads(process, device),
        unproven=_unproven_reads(asked, groups),
    )  # fmt: skip


def writes_of(ranks: Sequence[RankResult], groups: Sequence[DeviceGroup]) -> Direction:
    """Whether the writes reached a device, as far as anything promised that."""
    asked = [rank for rank in ranks if rank.requested_write_bytes]
    weak = {rank.host for rank in asked if not is_durable(rank)}
    device = _least(map(_written_share, groups))
    promised = _least(_written_share(group) for group in groups if not weak & set(group.hosts))
    process = _least(
        rank.device_write_bytes / rank.requested_write_bytes
        for rank in asked
        if is_durable(rank) and rank.device_write_bytes is not None and _counts_io(rank)
    )
    return _judged(
        bool(asked), process, device, code="CACHED_WRITES",
        cached=sync_fault(ranks) or _cached_writes(process, promised),
        unproven=_unproven_writes(asked, groups),
    )  # fmt: skip


def _read_share(group: DeviceGroup) -> float | None:
    asked = group.requested_read_bytes
    return group.moved.read_bytes / asked if asked else None


def _written_share(group: DeviceGroup) -> float | None:
    asked = group.requested_write_bytes
    return group.moved.write_bytes / asked if asked else None


def sync_fault(ranks: Sequence[RankResult]) -> str | None:
    """What the probe of a sync found before the window; None: nothing, or it was not made."""
    for rank in ranks:
        probe = None if rank.device is None else rank.device.sync_probe
        if probe is None or _is_memory(rank):
            continue
        wrote, unsynced = probe.device_write_bytes, probe.unsynced_bytes
        if wrote is not None and wrote < MOVED_SHARE * probe.bytes:
            return (
                f"a sync on {rank.host} returned without the device having written: of"
                f" {probe.bytes} bytes it wrote {wrote}"
            )
        if unsynced and not (rank.filesystem and journals_data(rank.filesystem)):
            return (
                f"a sync on {rank.host} returned while {unsynced} of {probe.bytes} bytes"
                " were in memory only"
            )
    return None


def _counts_io(rank: RankResult) -> bool:
    """Whether the kernel counts what is read, or written, for the rank."""
    return rank.filesystem is not None and rank.filesystem.counts_io


def _judged(
    asked: bool,  # noqa: FBT001  the first of what a direction is made of
    process: float | None,
    device: float | None,
    *,
    code: str,
    cached: str | None,
    unproven: Iterator[str],
) -> Direction:
    if not asked:
        return Direction(process_share=process, device_share=device)
    why = cached or "; ".join(dict.fromkeys(unproven)) or None
    verdict = code if cached else "UNPROVEN" if why else "PROVEN"
    return Direction(process_share=process, device_share=device, why=why, verdict=verdict)


def _cached_reads(process: float | None, device: float | None) -> str | None:
    if process is not None and process < MOVED_SHARE:
        return f"the device moved {process:.0%} of the bytes that a rank read"
    if device is not None and device < MOVED_SHARE:
        return f"the device moved {device:.0%} of the bytes that were read through it"
    return None


def _cached_writes(process: float | None, device: float | None) -> str | None:
    """A write that the kernel did not even begin has not reached a device either."""
    if process is not None and process < MOVED_SHARE:
        return f"the kernel wrote {process:.0%} of the bytes that a rank wrote"
    if device is not None and device < MOVED_SHARE:
        return f"the device wrote {device:.0%} of the bytes that were written"
    return None


def _unproven_reads(ranks: Sequence[RankResult], groups: Sequence[DeviceGroup]) -> Iterator[str]:
    for rank in ranks:
        counted = _counts_io(rank) and rank.device_read_bytes is not None
        if counted and _is_straight(rank):
            continue
        group = _group_of(rank, groups)
        if group is not None:
            yield from _unbelieved(group, "read")
        elif counted:
            yield "no counter of a disk tells what the layers above it answered from memory"
        else:
            yield "the kernel keeps no byte counter for this storage"
    yield from _unseen(ranks)


def _unproven_writes(ranks: Sequence[RankResult], groups: Sequence[DeviceGroup]) -> Iterator[str]:
    for rank in ranks:
        group = _group_of(rank, groups)
        counted = _counts_io(rank) and rank.device_write_bytes is not None
        if not is_durable(rank):
            yield (
                "buffered without a sync: nothing promises that what was written has left the"
                " page cache"
            )
        elif group is None:
            yield "no device's counter tells what was written"
        elif not (rank.io_mode == "direct" and counted and _is_straight(rank)):
            yield from _unbelieved(group, "write")
        if not _outlasts_power(rank):
            yield (
                "mounted without barriers, a sync does not have the device write out its own cache:"
                " nothing promises that what was synced outlasts a loss of power"
            )
    yield from _unseen(ranks)


def _unseen(ranks: Sequence[RankResult]) -> Iterator[str]:
    """What of a storage with counters lies out of sight."""
    for rank in ranks:
        facts = rank.filesystem
        if facts is not None and not facts.is_network and facts.chain.unseen:
            yield facts.chain.unseen


def _group_of(rank: RankResult, groups: Sequence[DeviceGroup]) -> DeviceGroup | None:
    return next((group for group in groups if rank.host in group.hosts), None)


def _is_straight(rank: RankResult) -> bool:
    return rank.filesystem is not None and rank.filesystem.chain.is_straight


def _unbelieved(group: DeviceGroup, kind: str) -> Iterator[str]:
    """Why the disks' counters, the only ones that tell, may be those of others' I/O."""
    disks, verb = "+".join(group.disks), "read" if kind == "read" else "wrote"
    moved, most = getattr(group.moved, f"{kind}_bytes"), getattr(group, f"most_{kind}_bytes")
    if moved > BELIEVED_SHARE * most:
        yield (
            f"others used {disks}, which {verb} {format_bytes(moved)} where at most"
            f" {format_bytes(most)} can be ours; ours can't be told apart"
        )
        return
    others = max(_per_s(group, "quiet", kind), _per_s(group, "after", kind)) * group.span_s
    if moved - others < MOVED_SHARE * getattr(group, f"requested_{kind}_bytes"):
        yield (
            f"others used {disks} before or after the run, and may have {verb} during it"
            f" {format_bytes(round(others))} of {format_bytes(moved)}; ours can't be told apart"
        )


def _per_s(group: DeviceGroup, when: str, kind: str) -> float:
    span_s = getattr(group, f"{when}_s")
    return getattr(getattr(group, when), f"{kind}_bytes") / span_s if span_s else 0.0


def _outlasts_power(rank: RankResult) -> bool:
    """Whether a sync, if there is one, has the device write out its own cache."""
    options = "" if rank.filesystem is None else rank.filesystem.options
    return rank.sync != "data" or asks_for_flushes(options)


def _is_memory(rank: RankResult) -> bool:
    return rank.filesystem is not None and rank.filesystem.memory_at_end is not None


def _least(shares: Iterable[float | None]) -> float | None:
    return min((share for share in shares if share is not None), default=None)
