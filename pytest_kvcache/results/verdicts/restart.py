"""Whether a restart found its metadata where one after a crash would. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.directions import no_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.results.trial import Trial


def check_metadata(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Names and sizes that were in memory, of these hosts or of a file server, or may have been."""
    if not plan.restarts or no_storage(trial.ranks) is not None:
        return
    if not plan.drop_caches:
        yield Verdict.of(
            "WARM_METADATA",
            "what the hosts know of files and directories was warm from storing the objects just"
            " before, so that this is a restart of the process alone, and hardly of the storage: a"
            " host that comes back knows nothing; --kv-drop-caches, as root, has them forget it",
        )
    elif any(facts.is_network for facts in trial.proof.filesystems):
        yield Verdict.of(
            "WARM_METADATA",
            "the hosts had forgotten what they knew of files and directories, but what the file"
            " server has in memory can't be dropped from here: its own restart may take longer",
        )
    elif doubt := next(_doubts(trial.ranks), None):
        yield Verdict.of("WARM_METADATA", f"caches were dropped, but {doubt}")


def _doubts(ranks: Sequence[RankResult]) -> Iterator[str]:
    """What speaks against the hosts having forgotten, of each; ranks of one help each other."""
    for host in dict.fromkeys(rank.host for rank in ranks if rank.restart_count):
        here = [rank for rank in ranks if rank.host == host]
        facts = [rank.filesystem for rank in here if rank.filesystem is not None]
        unseen = next((each.chain.unseen for each in facts if each.chain.unseen), None)
        counted = [rank.device_read_bytes for rank in here if rank.device_read_bytes is not None]
        if unseen is not None:
            yield (
                f"what is still in memory of files and directories can't be told on {host}"
                f" ({unseen}): this may be a restart of the process alone"
            )
        elif len(counted) < len(here) or not all(each.counts_io for each in facts):
            yield (
                f"the kernel counts nothing that tells whether {host} read its files and"
                " directories of a device: this may be a restart of the process alone"
            )
        elif not sum(counted):
            objects = sum(rank.restart_count or 0 for rank in here)
            yield (
                f"{host} read nothing of any device while it looked at {objects:,} objects: they"
                " were in memory all the same, and this is a restart of the process alone; look"
                " for what else holds these files open, or for a filesystem with a cache of its own"
            )
