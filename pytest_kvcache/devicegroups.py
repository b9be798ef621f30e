"""What the disks below a run moved, and how much of it the run itself asked for. Pure.

Imports neither pytest nor MPI. Ranks whose storage has a disk in common are one group:
those of a host, and those of several hosts that are namespaces or containers of one
machine. What a disk moved beyond what its group asked for was others' doing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.blockstat import BlockCounters
from pytest_kvcache.devicechain import DeviceChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_kvcache.plan import Plan
    from pytest_kvcache.trialrecord import RankResult

# Blocks that a filesystem writes beside the data, at most, for an object that is stored or
# removed: inode, directory, bitmap and extents, into the journal and then in place; with a
# journal's descriptor and commit each time there is a sync, else many objects share them.
# Seen on ext4: 36 KiB for a file that is synced, 1 KiB for one that is not.
METADATA_BLOCKS = 4
SYNCED_METADATA_BLOCKS = 16
_BLOCK_BYTES = 4096
_COLD_READS = 4  # inode, directory, bitmap and extent blocks of an object's file


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What others did to a group's disks during the run; None: it can't be told apart.

    ``quiet`` is per second, in the moment before the ramp in which no rank did I/O.
    """

    read_bytes: int
    write_bytes: int | None
    operations: int | None
    quiet_bytes_per_s: float
    quiet_operations_per_s: float
    quiet_busy_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Disks, and the ranks' hosts that are on them.

    ``span_s`` is what the counters cover, ``moved`` what all disks moved in it, and
    ``quiet`` in the ``quiet_s`` before; ``requested_…`` what the ranks asked for,
    ``own_read_bytes`` what they really caused. ``piece_bytes`` are in one request of a long
    transfer at least (None: not known). ``foreign`` is the rest, less what a filesystem may
    write for them beside the data.
    """

    hosts: tuple[str, ...]
    disks: tuple[str, ...]
    span_s: float
    moved: BlockCounters
    quiet_s: float
    quiet: BlockCounters
    piece_bytes: int | None
    requested_read_bytes: int
    requested_write_bytes: int
    own_read_bytes: int
    foreign: Foreign

    def to_json(self) -> dict[str, Any]:
        """As in the run file."""
        return asdict(self) | {"hosts": list(self.hosts), "disks": list(self.disks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceGroup:
        """The inverse of ``to_json``."""
        return cls(
            **{
                **data,
                "hosts": tuple(data["hosts"]),
                "disks": tuple(data["disks"]),
                "moved": BlockCounters.from_json(data["moved"]),
                "quiet": BlockCounters.from_json(data["quiet"]),
                "foreign": Foreign(**data["foreign"]),
            }
        )


def device_groups(ranks: Sequence[RankResult], plan: Plan) -> tuple[DeviceGroup, ...]:
    """All groups of disks whose counters are known, in the order of their first ranks."""
    watches = {rank.host: rank.device for rank in ranks if rank.device and rank.device["disks"]}
    return tuple(_group(hosts, watches, ranks, plan) for hosts in _sharing(watches))


def is_durable(rank: RankResult) -> bool:
    """Whether the rank's writes are said to have reached the storage when they are done."""
    return rank.sync == "data" or rank.io_mode == "direct"


def _sharing(watches: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Hosts in groups that have a disk in common."""
    groups: list[tuple[set[tuple[str, str]], list[str]]] = []
    for host, watch in watches.items():
        disks, hosts = {(watch["machine"] or host, disk["name"]) for disk in watch["disks"]}, [host]
        for other in [group for group in groups if group[0] & disks]:
            groups.remove(other)
            disks, hosts = disks | other[0], other[1] + hosts
        groups.append((disks, hosts))
    return [hosts for _disks, hosts in groups]


def _group(
    hosts: list[str],
    watches: Mapping[str, Mapping[str, Any]],
    ranks: Sequence[RankResult],
    plan: Plan,
) -> DeviceGroup:
    """Each disk by the watch that covers most."""
    longest = sorted((watches[host] for host in hosts), key=lambda watch: watch["run_s"])
    disks = {disk["name"]: disk for watch in longest for disk in watch["disks"]}
    own = [rank for rank in ranks if rank.host in hosts]
    moved = _total(disk["run"] for disk in disks.values())
    quiet, quiet_s = _total(disk["quiet"] for disk in disks.values()), longest[-1]["quiet_s"]
    piece_bytes = _least(disk["largest_request_bytes"] for disk in disks.values())
    return DeviceGroup(
        hosts=tuple(hosts),
        disks=tuple(disks),
        span_s=longest[-1]["run_s"],
        moved=moved,
        quiet_s=quiet_s,
        quiet=quiet,
        piece_bytes=piece_bytes,
        requested_read_bytes=sum(rank.requested_read_bytes for rank in own),
        requested_write_bytes=sum(rank.requested_write_bytes for rank in own),
        own_read_bytes=sum(map(_read_bytes, own)),
        foreign=_foreign(own, plan, moved, quiet, quiet_s=quiet_s, piece_bytes=piece_bytes),
    )


def _total(counters: Iterable[Mapping[str, Any]]) -> BlockCounters:
    known = [BlockCounters.from_json(each) for each in counters]
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
    counts = bool(rank.filesystem and rank.filesystem["counts_io"])
    if rank.device_read_bytes is None or not counts:
        return rank.requested_read_bytes
    return max(rank.device_read_bytes, rank.requested_read_bytes)


def _foreign(
    ranks: Sequence[RankResult],
    plan: Plan,
    moved: BlockCounters,
    quiet: BlockCounters,
    *,
    quiet_s: float,
    piece_bytes: int | None,
) -> Foreign:
    plain = all(_is_plain(rank) for rank in ranks)
    durable = all(is_durable(rank) for rank in ranks)
    changed = sum(_changed_objects(rank, plan) for rank in ranks)
    populated = sum(rank.populated_blocks for rank in ranks) * plan.objects_per_block
    synced = any(rank.sync == "data" for rank in ranks)
    beside = (SYNCED_METADATA_BLOCKS if synced else METADATA_BLOCKS) * (changed + populated)
    written = sum(rank.requested_write_bytes for rank in ranks) + beside * _BLOCK_BYTES
    direct = all(rank.io_mode == "direct" for rank in ranks)
    operations = None
    if plain and direct and durable and piece_bytes is not None:
        most = _most_operations(ranks, plan, piece_bytes) + beside
        operations = max(0, moved.read_ops + moved.write_ops - most)
    others = _quietly(quiet, beside if durable else None)
    return Foreign(
        read_bytes=max(0, moved.read_bytes - sum(map(_read_bytes, ranks))),
        write_bytes=max(0, moved.write_bytes - written) if plain and durable else None,
        operations=operations,
        quiet_bytes_per_s=_per_s(others.read_bytes + others.write_bytes, quiet_s),
        quiet_operations_per_s=_per_s(others.read_ops + others.write_ops, quiet_s),
        quiet_busy_ratio=_per_s(others.busy_s, quiet_s),
    )


def _per_s(value: float, span_s: float) -> float:
    return value / span_s if span_s else 0.0


def _quietly(found: BlockCounters, beside: int | None) -> BlockCounters:
    """Others' I/O before the ramp.

    ``beside`` are blocks that the filesystem may still have to write for the population;
    None: its data as well, so that no write is known to be others'.
    """
    written = 0 if beside is None else max(0, found.write_bytes - beside * _BLOCK_BYTES)
    ops = found.write_ops if written else 0
    foreign = found.read_ops + ops
    return BlockCounters(
        read_ops=found.read_ops,
        read_bytes=found.read_bytes,
        write_ops=ops,
        write_bytes=written,
        busy_s=found.busy_s * foreign / max(1, found.read_ops + found.write_ops),
    )


def _is_plain(rank: RankResult) -> bool:
    """Whether what the rank writes is written once, and nothing more than metadata with it."""
    if rank.filesystem is None or "data=journal" in rank.filesystem["options"].split(","):
        return False
    return DeviceChain.from_json(rank.filesystem["chain"]).is_plain


def _changed_objects(rank: RankResult, plan: Plan) -> int:
    """Objects that the rank stored or removed during the run."""
    stored = rank.requested_write_bytes // plan.object_stored_bytes
    return stored + rank.evictions * plan.objects_per_block


def _most_operations(ranks: Sequence[RankResult], plan: Plan, piece_bytes: int) -> int:
    """Requests that a device gets for the ranks' direct transfers, at most.

    The kernel cuts a transfer into pieces; one more where it crosses the end of an extent.
    """
    pieces = -(-min(plan.chunk_bytes, plan.object_stored_bytes) // piece_bytes) + 1
    transfers = -(-plan.object_stored_bytes // plan.chunk_bytes)
    moved = sum(rank.requested_read_bytes + rank.requested_write_bytes for rank in ranks)
    objects = -(-moved // plan.object_stored_bytes)
    return objects * (transfers * pieces + _COLD_READS)
