"""What a proof compared with what, in words. Controller side; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.devicegroups import BELIEVED_SHARE
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VERBS = {"read": "read", "write": "wrote"}
_MOST_OF_IT = 0.9


def describe_io(proof: Mapping[str, Any]) -> str:
    """How files were read and written; a backend without any has nothing to sync."""
    if proof["io_mode"] == "none":
        return "no file I/O"
    return f"{proof['io_mode']} I/O, sync {proof['sync']}"


def describe_proof(proof: Mapping[str, Any]) -> str:
    """Reads and writes apart: how much was asked for, who counted what share, the verdict.

    ``reads: 12.3 GiB (1.2 GiB of them distinct), of which the kernel counted 100% for the
    ranks and vda read 101%: PROVEN; writes: …``.
    """
    return "; ".join(_directions(proof)) or "nothing was read or written"


def _directions(proof: Mapping[str, Any]) -> Iterator[str]:
    for kind in _VERBS:
        asked = proof[f"requested_{kind}_bytes"]
        if asked:
            told = proof[f"{kind}s"]
            compared = " and ".join(_shares(kind, told, proof)) or "nobody counted any"
            verdict = str(told["verdict"])
            yield f"{kind}s: {format_bytes(asked)}{_distinct(kind, proof)}, {compared}: {verdict}"


def _distinct(kind: str, proof: Mapping[str, Any]) -> str:
    distinct = proof["distinct_read_bytes"]
    return f" ({format_bytes(distinct)} of them distinct)" if kind == "read" and distinct else ""


def _shares(kind: str, told: Mapping[str, Any], proof: Mapping[str, Any]) -> Iterator[str]:
    """Of several ranks or groups of disks, the least."""
    beyond = _beyond(kind, told["device_share"], proof)
    # Where a disk did others' work too, its own count is no proof of direct writes.
    is_witness = kind == "read" or (beyond and proof["io_mode"] == "direct")
    if told["process_share"] is not None and is_witness:
        yield f"the kernel counted {told['process_share']:.0%} for the ranks"
    if told["device_share"] is not None:
        names = dict.fromkeys(name for group in proof["devices"] for name in group["disks"])
        first, more = next(iter(names)), len(names) - 1
        disks = f"{first} and {more} more disks" if more > 1 else "+".join(names)
        yield f"{disks} {_VERBS[kind]} {beyond or format(told['device_share'], '.0%')}"


def _beyond(kind: str, share: float | None, proof: Mapping[str, Any]) -> str:
    """What was moved beyond what was asked for, and whose that is; empty if it is not much.

    A filesystem writes beside the data, and what of the rest can't be its doing is others'.
    """
    asked = [group for group in proof["devices"] if group[f"requested_{kind}_bytes"]]
    if share is None or share <= BELIEVED_SHARE:
        return ""
    group = min(asked, key=lambda group: _share(kind, group))
    excess = group["moved"][f"{kind}_bytes"] - group[f"requested_{kind}_bytes"]
    foreign = group["foreign"][f"{kind}_bytes"] or 0
    whose = "overhead and others'" if foreign else "overhead or others'"
    if foreign >= _MOST_OF_IT * excess:
        whose = "others'"
    return f"all of it and {share - 1:.0%} more ({whose})"


def _share(kind: str, group: Mapping[str, Any]) -> float:
    return float(group["moved"][f"{kind}_bytes"] / group[f"requested_{kind}_bytes"])
