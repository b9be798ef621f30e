"""Where the bytes went: verdicts on the storage itself, and on what proves it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.plan import Plan

_MOVED_SHARE = 0.9  # of the bytes asked for that the device must have moved


def where_the_bytes_went(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """No storage, memory, or a virtual disk."""
    if not _is_storage(data):
        yield Verdict.of(
            "NOT_STORAGE",
            f"the backend {plan.backend} is no storage; this measures the harness, use"
            " --kv-backend=file for a result",
        )
    filesystems = _filesystems(data)
    memory = [facts for facts in filesystems if facts["is_tmpfs"]]
    if memory:
        yield Verdict.of(
            "TMPFS",
            f"{plan.cache_dir} on {_hosts(memory)} is {memory[0]['type']}, which is memory;"
            " choose a --kv-cache-dir on the storage",
        )
    virtual = [facts for facts in filesystems if facts["virtual"] and not facts["is_tmpfs"]]
    if virtual:
        yield Verdict.of(
            "VIRTUAL_DISK",
            f"the disk of {_hosts(virtual)} is virtual; a cache below this machine can't"
            " be excluded from inside",
        )


def _filesystems(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [facts for facts in data["proof"]["filesystem"].values() if facts is not None]


def _is_storage(data: Mapping[str, Any]) -> bool:
    return all(rank["is_storage"] for rank in data["ranks"])


def _hosts(filesystems: Sequence[Mapping[str, Any]]) -> str:
    """Whose filesystems they are, in few words."""
    first, more = filesystems[0]["host"], len(filesystems) - 1
    return f"{first} and {more} more" if more else str(first)


def whether_reads_were_real(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """Rank by rank: one that reads ahead must not stand in for one that reads a cache."""
    if not _is_storage(data):
        return
    ranks = [r for r in data["ranks"] if not (r["filesystem"] and r["filesystem"]["is_tmpfs"])]
    counted = [rank for rank in ranks if _is_counted(rank)]
    if len(counted) < len(ranks):
        yield Verdict.of(
            "UNPROVEN",
            "the kernel keeps no byte counter for this storage; whether reads reached the"
            " device is not proven",
        )
    shares = [
        rank["device_read_bytes"] / rank["requested_read_bytes"]
        for rank in counted
        if rank["requested_read_bytes"]
    ]
    if shares and min(shares) < _MOVED_SHARE:
        yield Verdict.of(
            "CACHED_READS",
            f"the device moved {min(shares):.0%} of the bytes that a rank read; the rest"
            " came out of a cache, use --kv-io=direct or more data than memory",
        )


def _is_counted(rank: Mapping[str, Any]) -> bool:
    facts = rank["filesystem"]
    return bool(facts) and facts["counts_io"] and rank["device_read_bytes"] is not None
