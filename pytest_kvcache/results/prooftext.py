"""What a proof compared with what, in words. Controller side; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.devicegroups import BELIEVED_SHARE
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.results.devicegroups import DeviceGroup
    from pytest_kvcache.results.trial import Direction, Proof, Trial

_VERBS = {"read": "read", "write": "wrote"}
_MOST_OF_IT = 0.9


def describe_io(trial: Trial) -> str:
    """How files were read and written; a backend without any has nothing to sync."""
    if trial.proof.io_mode == "none":
        return "no file I/O"
    return f"{trial.proof.io_mode} I/O, sync {trial.proof.sync}"


def describe_proof(trial: Trial) -> str:
    """Reads and writes apart: how much was asked for, who counted what share, the verdict.

    ``reads: 12.3 GiB (1.2 GiB of them distinct), of which the kernel counted 100% for the
    ranks and vda read 101%: PROVEN; writes: …``.
    """
    return "; ".join(_directions(trial)) or "nothing was read or written"


def _directions(trial: Trial) -> Iterator[str]:
    counted, proof = trial.counters, trial.proof
    for kind, asked, direction in (
        ("read", counted.requested_read_bytes, proof.reads),
        ("write", counted.requested_write_bytes, proof.writes),
    ):
        if asked:
            compared = " and ".join(_shares(kind, direction, proof)) or "nobody counted any"
            yield (
                f"{kind}s: {format_bytes(asked)}{_distinct(kind, counted)}, {compared}:"
                f" {direction.verdict}"
            )


def _distinct(kind: str, counted: Counters) -> str:
    distinct = counted.distinct_read_bytes
    return f" ({format_bytes(distinct)} of them distinct)" if kind == "read" and distinct else ""


def _shares(kind: str, direction: Direction, proof: Proof) -> Iterator[str]:
    """The shares that were counted; of several ranks or groups of disks, the least."""
    beyond = _beyond(kind, direction.device_share, proof)
    # Where a disk did others' work too, its own count is no proof of direct writes.
    is_witness = kind == "read" or (beyond and proof.io_mode == "direct")
    if direction.process_share is not None and is_witness:
        yield f"the kernel counted {direction.process_share:.0%} for the ranks"
    if direction.device_share is not None:
        names = dict.fromkeys(name for group in proof.devices for name in group.disks)
        first, more = next(iter(names)), len(names) - 1
        disks = f"{first} and {more} more disks" if more > 1 else "+".join(names)
        yield f"{disks} {_VERBS[kind]} {beyond or format(direction.device_share, '.0%')}"


def _beyond(kind: str, share: float | None, proof: Proof) -> str:
    """What was moved beyond what was asked for, and whose that is; empty if it is not much.

    A filesystem writes beside the data, and what of the rest can't be its doing is others'.
    """
    asked = [group for group in proof.devices if _requested(kind, group)]
    if share is None or share <= BELIEVED_SHARE:
        return ""
    group = min(asked, key=lambda group: _share(kind, group))
    excess = _moved(kind, group) - _requested(kind, group)
    theirs = group.foreign.read_bytes if kind == "read" else group.foreign.write_bytes
    foreign = theirs or 0
    whose = "overhead and others'" if foreign else "overhead or others'"
    if foreign >= _MOST_OF_IT * excess:
        whose = "others'"
    return f"all of it and {share - 1:.0%} more ({whose})"


def _share(kind: str, group: DeviceGroup) -> float:
    return _moved(kind, group) / _requested(kind, group)


def _moved(kind: str, group: DeviceGroup) -> int:
    return group.moved.read_bytes if kind == "read" else group.moved.write_bytes


def _requested(kind: str, group: DeviceGroup) -> int:
    return group.requested_read_bytes if kind == "read" else group.requested_write_bytes
