"""What the disks below a run moved, and how much of it the run itself asked for. Pure.

Imports neither pytest nor MPI. Ranks whose storage has a disk in common are one group:
those of a host, and those of several hosts that are namespaces or containers of one
machine. What a disk moved beyond what its group asked for was others' doing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.system.blockstat import BlockCounters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.system.blockstat import DeviceReport
    from pytest_kvcache.system.filesystem import FilesystemFacts

# Blocks that a filesystem writes beside the data, at most, for an object that is stored or
# removed: inode, directory, bitmap and extents, into the journal and then in place; with a
# journal's descriptor and commit each time there is a sync, else many objects share them.
# Seen on ext4: 36 KiB for a file that is synced, 1 KiB for one that is not.
METADATA_BLOCKS = 4
SYNCED_METADATA_BLOCKS = 16
# Requests that they come in: neighbours are merged, and a journal is written in one go.
_METADATA_OPERATIONS = 1
_SYNCED_METADATA_OPERATIONS = 4
_BLOCK_BYTES = 4096
BELIEVED_SHARE = 1.1  # of what can be ours; what a disk moved beyond that isn't


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What others did to a group's disks during the run; None: it can't be told apart.

    ``quiet`` is per second, in the moment before the ramp in which no rank did I/O, or, if
    that is more, what was read in the one after the drain.
    """

    read_bytes: int | None
    write_bytes: int | None
    operations: int | None
    quiet_bytes_per_s: float
    quiet_operations_per_s: float
    quiet_busy_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Disks, and the ranks' hosts that are on them.

    ``span_s`` is what the counters cover, ``moved`` what all disks moved in it, and
    ``quiet`` in the ``quiet_s`` before, ``after`` in the ``after_s`` that followed;
    ``requested_…`` what the ranks asked for, ``most_…`` what the disks can have moved for
    them: what is read ahead, copies, what a filesystem writes beside the data. ``piece_bytes``
    are in one request of a long transfer at least (None: not known). ``foreign`` is the rest.
    """

    hosts: tuple[str, ...]
    disks: tuple[str, ...]
    span_s: float
    moved: BlockCounters
    quiet_s: float
    quiet: BlockCounters
    after_s: float
    after: BlockCounters
    piece_bytes: int | None
    requested_read_bytes: int
    requested_write_bytes: int
    most_read_bytes: int
    most_write_bytes: int
    foreign: Foreign


def device_groups(ranks: Sequence[RankResult], plan: Plan) -> tuple[DeviceGroup, ...]:
    """All groups of disks whose counters are known, in the order of their first ranks."""
    watches = {rank.host: rank.device for rank in ranks if rank.device and rank.device.disks}
    return tuple(_group(hosts, watches, ranks, plan) for hosts in _sharing(watches))


def is_durable(rank: RankResult) -> bool:
    """Whether the rank's writes are said to have reached the storage when they are done."""
    return rank.sync == "data" or rank.io_mode == "direct"


def _sharing(watches: Mapping[str, DeviceReport]) -> list[list[str]]:
    """Hosts in groups that have a disk in common."""
    groups: list[tuple[set[tuple[str, str]], list[str]]] = []
    for host, watch in watches.items():
        disks, hosts = {(watch.machine or host, disk.name) for disk in watch.disks}, [host]
        for other in [group for group in groups if group[0] & disks]:
            groups.remove(other)
            disks, hosts = disks | other[0], other[1] + hosts
        groups.append((disks, hosts))
    return [hosts for _disks, hosts in groups]


def _group(
    hosts: list[str],
    watches: Mapping[str, DeviceReport],
    ranks: Sequence[RankResult],
    plan: Plan,
) -> DeviceGroup:
    """Each disk by the watch that covers most."""
    longest = sorted((watches[host] for host in hosts), key=lambda watch: watch.run_s)
    disks = {disk.name: disk for watch in longest for disk in watch.disks}
    own = [rank for rank in ranks if rank.host in hosts]
    seen = _Seen(
        span_s=longest[-1].run_s,
        moved=_total(disk.run for disk in disks.values()),
        quiet_s=longest[-1].quiet_s,
        quiet=_total(disk.quiet for disk in disks.values()),
        after_s=longest[-1].after_s,
        after=_total(disk.after for disk in disks.values()),
        piece_bytes=_least(disk.largest_request_bytes for disk in disks.values()),
    )
    most_read_bytes, most_write_bytes = _most_bytes(own, plan)
    return DeviceGroup(
        hosts=tuple(hosts),
        disks=tuple(disks),
        span_s=seen.span_s,
        moved=seen.moved,
        quiet_s=seen.quiet_s,
        quiet=seen.quiet,
        after_s=seen.after_s,
        after=seen.after,
        piece_bytes=seen.piece_bytes,
        requested_read_bytes=sum(rank.requested_read_bytes for rank in own),
        requested_write_bytes=sum(rank.requested_write_bytes for rank in own),
        most_read_bytes=most_read_bytes,
        most_write_bytes=most_write_bytes,
        foreign=_foreign(own, plan, seen, (most_read_bytes, most_write_bytes)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The disks of a group together."""

    span_s: float
    moved: BlockCounters
    quiet_s: float
    quiet: BlockCounters
    after_s: float
    after: BlockCounters
    piece_bytes: int | None


def _total(counters: Iterable[BlockCounters]) -> BlockCounters:
    known = list(counters)
    return BlockCounters(
        read_ops=sum(each.read_ops for each in known),
        read_bytes=sum(each.read_bytes for each in known),
        write_ops=sum(each.write_ops for each in known),
        write_bytes=sum(each.write_bytes for each in known),
        busy_s=max((each.busy_s for each in known), default=0.0),
    )


def _least(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return min((size for size in known if size is not None), default=None) if all(known) else None


def _read_bytes(rank: RankResult) -> int:
    """What the kernel read for the rank (that includes what is read ahead), or was asked for."""
    if rank.device_read_bytes is None or not _counts_io(rank):
        return rank.requested_read_bytes
    return max(rank.device_read_bytes, rank.requested_read_bytes)


def _counts_io(rank: RankResult) -> bool:
    return rank.filesystem is not None and rank.filesystem.counts_io


def _most_bytes(ranks: Sequence[RankResult], plan: Plan) -> tuple[int, int]:
    """What disks read, and wrote, for the ranks, as far as that can be ours."""
    read, written = sum(map(_read_bytes, ranks)), 0
    for rank in ranks:
        copies = _copies(rank)
        changed = _changed_objects(rank, plan)
        data_bytes = rank.requested_write_bytes
        if not is_durable(rank):  # the population may not have left the page cache before
            data_bytes += rank.populated_blocks * plan.stored_bytes
            changed += rank.populated_blocks * plan.objects_per_block
        written += copies * (data_bytes + _most_beside_bytes(changed, rank, plan))
        if copies > 1:  # parity: old data is read to write new
            read += copies * data_bytes
    return read, written


def _most_beside_bytes(changed_objects: int, rank: RankResult, plan: Plan) -> int:
    """What is written beside the data of objects that were stored or removed, at most."""
    files, names_bytes = changed_objects, 0
    if plan.in_buckets:
        files = 2 * -(-changed_objects // plan.bucket_blocks)
        names_bytes = changed_objects * (plan.disk_bytes_per_block - plan.stored_bytes)
    blocks = SYNCED_METADATA_BLOCKS if rank.sync == "data" else METADATA_BLOCKS
    return files * blocks * _BLOCK_BYTES + names_bytes


def _copies(rank: RankResult) -> int:
    """How often what a rank writes may be written: to each disk, and into a journal of data."""
    links = () if rank.filesystem is None else rank.filesystem.chain.links
    ends = max(1, len([link for link in links if link.end == "disk"]))
    journal = rank.filesystem is not None and journals_data(rank.filesystem)
    return 2 * ends if journal else ends


def journals_data(filesystem: FilesystemFacts) -> bool:
    """Whether pages stay dirty after a sync that wrote them into the journal."""
    return "data=journal" in filesystem.options.split(",")


def _foreign(
    ranks: Sequence[RankResult], plan: Plan, seen: _Seen, most_bytes: tuple[int, int]
) -> Foreign:
    moved = seen.moved
    plain = all(map(_is_plain, ranks))
    durable = all(map(is_durable, ranks))
    direct = all(rank.io_mode == "direct" for rank in ranks)
    operations = None
    if plain and direct and seen.piece_bytes is not None:
        most = _most_operations(ranks, plan, seen.piece_bytes)
        operations = max(0, moved.read_ops + moved.write_ops - most)
    before = _others(seen.quiet, seen.quiet_s, writes=durable)
    after = _others(seen.after, seen.after_s, writes=False)
    return Foreign(
        read_bytes=_beyond(moved.read_bytes, most_bytes[0], exact=all(map(_knows_reads, ranks))),
        write_bytes=_beyond(moved.write_bytes, most_bytes[1], exact=plain and durable),
        operations=operations,
        quiet_bytes_per_s=max(before[0], after[0]),
        quiet_operations_per_s=max(before[1], after[1]),
        quiet_busy_ratio=max(before[2], after[2]),
    )


def _beyond(moved: int, most: int, *, exact: bool) -> int | None:
    """What can't be ours; where ours is not known exactly, at least so much, or None."""
    if exact:
        return max(0, moved - most)
    return int(max(0.0, moved - BELIEVED_SHARE * most)) or None


def _others(found: BlockCounters, span_s: float, *, writes: bool) -> tuple[float, float, float]:
    """Bytes, operations and busy time per second while no rank did I/O.

    Without ``writes`` of reads only: what was written may be ours, out of the page cache or
    by a filesystem in its own time.
    """
    if not span_s:
        return 0.0, 0.0, 0.0
    ops, size, busy_s = found.read_ops, found.read_bytes, found.busy_s
    if writes:
        ops, size = ops + found.write_ops, size + found.write_bytes
    else:
        busy_s *= ops / max(1, ops + found.write_ops)
    return size / span_s, ops / span_s, busy_s / span_s


def _is_plain(rank: RankResult) -> bool:
    """Whether what the rank writes is written once, and nothing more than metadata with it."""
    if rank.filesystem is None or journals_data(rank.filesystem):
        return False
    return rank.filesystem.chain.is_plain


def _knows_reads(rank: RankResult) -> bool:
    """Whether what disks read for the rank is known to the byte."""
    if rank.filesystem is None or not rank.filesystem.chain.is_straight:
        return False
    counted = rank.device_read_bytes is not None and _counts_io(rank)
    return counted or rank.io_mode == "direct"


def _changed_objects(rank: RankResult, plan: Plan) -> int:
    """Objects that the rank stored or removed during the run."""
    return rank.requested_writes + rank.evictions * plan.objects_per_block


def _most_operations(ranks: Sequence[RankResult], plan: Plan, piece_bytes: int) -> int:
    """Requests that a device gets for the ranks' direct transfers, at most.

    The kernel cuts a transfer into pieces; one more where it crosses the end of an extent,
    which no page does. What it knows not of an object's place it reads once.
    """
    size = min(plan.chunk_bytes, plan.object_stored_bytes)
    transfers = sum(rank.requested_transfers for rank in ranks)
    moved = sum(rank.requested_read_bytes + rank.requested_write_bytes for rank in ranks)
    pieces = min(transfers * -(-size // piece_bytes), transfers + moved // piece_bytes)
    extents = transfers if size > _BLOCK_BYTES else 0
    beside = sum(
        _changed_objects(rank, plan)
        * (_SYNCED_METADATA_OPERATIONS if rank.sync == "data" else _METADATA_OPERATIONS)
        for rank in ranks
    )
    return pieces + extents + sum(rank.distinct_reads for rank in ranks) + beside
