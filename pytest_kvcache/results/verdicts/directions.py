"""Reads and writes apart: what was compared with what, and whether it agrees. Pure.

A process's own counters tell what the kernel asked devices for on its behalf; a disk's
counters tell what it moved, for whomever. Either disproves. The process's proves where its
I/O goes straight to a disk: a loop device or a cache device may answer from memory what it
took for I/O, and buffered writes are counted when a page gets dirty. Elsewhere the disk's
is the only witness, and believed if others can't have moved what it counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.devicegroups import BELIEVED_SHARE, DeviceGroup
from pytest_kvcache.system.devicechain import DeviceChain
from pytest_kvcache.system.mountoptions import asks_for_flushes
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MOVED_SHARE = 0.9  # of the bytes asked for that a device must have moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Reads, or writes.

    ``process_share`` and ``device_share`` are the least share of what was asked for that
    the kernel counted for a rank, and that the disks of a group moved; None: not counted.
    ``against`` is a code that speaks against it, ``why`` in words; None: it is proven, or
    ``asked`` is false and there is nothing to prove.
    """

    asked: bool
    process_share: float | None = None
    device_share: float | None = None
    against: str | None = None
    why: str | None = None

    @property
    def verdict(self) -> str | None:
        """What the run file says of this direction."""
        return self.against or ("PROVEN" if self.asked else None)

    def to_json(self) -> dict[str, Any]:
        """As in the run file."""
        told = asdict(self)
        return {name: told[name] for name in ("process_share", "device_share", "why")} | {
            "verdict": self.verdict
        }


def reads_of(data: Mapping[str, Any]) -> Direction:
    """Whether the reads reached a device."""
    ranks = [rank for rank in data["ranks"] if rank["requested_read_bytes"]]
    groups = _groups(data)
    process = _least(
        rank["device_read_bytes"] / rank["requested_read_bytes"]
        for rank in ranks
        if _counts(rank, "read")
    )
    device = _least(map(_read_share, groups))
    return _judged(
        bool(ranks), process, device, code="CACHED_READS",
        cached=_cached_reads(process, device),
        unproven=_unproven_reads(ranks, groups),
    )  # fmt: skip


def writes_of(data: Mapping[str, Any]) -> Direction:
    """Whether the writes reached a device, as far as anything promised that."""
    ranks = [rank for rank in data["ranks"] if rank["requested_write_bytes"]]
    groups = _groups(data)
    weak = {rank["host"] for rank in ranks if not _is_durable(rank)}
    device = _least(map(_written_share, groups))
    promised = _least(_written_share(group) for group in groups if not weak & set(group.hosts))
    process = _least(
        rank["device_write_bytes"] / rank["requested_write_bytes"]
        for rank in ranks
        if _is_durable(rank) and _counts(rank, "write")
    )
    return _judged(
        bool(ranks), process, device, code="CACHED_WRITES",
        cached=sync_fault(data) or _cached_writes(process, promised),
        unproven=_unproven_writes(ranks, groups),
    )  # fmt: skip


def _read_share(group: DeviceGroup) -> float | None:
    asked = group.requested_read_bytes
    return group.moved.read_bytes / asked if asked else None


def _written_share(group: DeviceGroup) -> float | None:
    asked = group.requested_write_bytes
    return group.moved.write_bytes / asked if asked else None


def sync_fault(data: Mapping[str, Any]) -> str | None:
    """What the probe of a sync found before the window; None: nothing, or it was not made."""
    for rank in data["ranks"]:
        probe = (rank["device"] or {}).get("sync_probe")
        if probe is None or _is_memory(rank):
            continue
        wrote, unsynced = probe["device_write_bytes"], probe["unsynced_bytes"]
        if wrote is not None and wrote < MOVED_SHARE * probe["bytes"]:
            return (
                f"a sync on {rank['host']} returned without the device having written: of"
                f" {probe['bytes']} bytes it wrote {wrote}"
            )
        if unsynced and not _keeps_dirty(rank):
            return (
                f"a sync on {rank['host']} returned while {unsynced} of {probe['bytes']} bytes"
                " were in memory only"
            )
    return None


def _counts(rank: Mapping[str, Any], kind: str) -> bool:
    """Whether the kernel counts what is read, or written, for the rank."""
    facts = rank["filesystem"]
    return bool(facts) and facts["counts_io"] and rank[f"device_{kind}_bytes"] is not None


def _judged(
    asked: bool,  # noqa: FBT001  the first of what a direction is made of
    process: float | None,
    device: float | None,
    *,
    code: str,
    cached: str | None,
    unproven: Iterator[str],
) -> Direction:
    why = cached if asked else None
    against = code if why else None
    if asked and why is None:
        why = "; ".join(dict.fromkeys(unproven)) or None
        against = "UNPROVEN" if why else None
    return Direction(
        asked=asked, process_share=process, device_share=device, against=against, why=why
    )


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


def _unproven_reads(
    ranks: Sequence[Mapping[str, Any]], groups: Sequence[DeviceGroup]
) -> Iterator[str]:
    for rank in ranks:
        if _counts(rank, "read") and _is_straight(rank):
            continue
        group = _group_of(rank, groups)
        if group is not None:
            yield from _unbelieved(group, "read")
        elif _counts(rank, "read"):
            yield "no counter of a disk tells what the layers above it answered from memory"
        else:
            yield "the kernel keeps no byte counter for this storage"
    yield from _unseen(ranks)


def _unproven_writes(
    ranks: Sequence[Mapping[str, Any]], groups: Sequence[DeviceGroup]
) -> Iterator[str]:
    for rank in ranks:
        group = _group_of(rank, groups)
        if not _is_durable(rank):
            yield (
                "buffered without a sync: nothing promises that what was written has left the"
                " page cache"
            )
        elif group is None:
            yield "no device's counter tells what was written"
        elif not (rank["io_mode"] == "direct" and _counts(rank, "write") and _is_straight(rank)):
            yield from _unbelieved(group, "write")
        if not _outlasts_power(rank):
            yield (
                "mounted without barriers, a sync does not have the device write out its own cache:"
                " nothing promises that what was synced outlasts a loss of power"
            )
    yield from _unseen(ranks)


def _unseen(ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What of a storage with counters lies out of sight."""
    for rank in ranks:
        facts = rank["filesystem"]
        if facts and not facts["is_network"] and facts["unseen"]:
            yield facts["unseen"]


def _group_of(rank: Mapping[str, Any], groups: Sequence[DeviceGroup]) -> DeviceGroup | None:
    return next((group for group in groups if rank["host"] in group.hosts), None)


def _is_straight(rank: Mapping[str, Any]) -> bool:
    return DeviceChain.from_json(rank["filesystem"]["chain"]).is_straight


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


def _is_durable(rank: Mapping[str, Any]) -> bool:
    return bool(rank["sync"] == "data" or rank["io_mode"] == "direct")


def _outlasts_power(rank: Mapping[str, Any]) -> bool:
    """Whether a sync, if there is one, has the device write out its own cache."""
    options = (rank["filesystem"] or {}).get("options", "")
    return rank["sync"] != "data" or asks_for_flushes(options)


def _is_memory(rank: Mapping[str, Any]) -> bool:
    return bool(rank["filesystem"] and rank["filesystem"]["memory_at_end"])


def _keeps_dirty(rank: Mapping[str, Any]) -> bool:
    """Whether pages stay dirty after a sync that wrote them into the journal."""
    return "data=journal" in rank["filesystem"]["options"].split(",")


def _groups(data: Mapping[str, Any]) -> list[DeviceGroup]:
    return [DeviceGroup.from_json(group) for group in data["proof"]["devices"]]


def _least(shares: Iterable[float | None]) -> float | None:
    return min((share for share in shares if share is not None), default=None)
