"""Whether a restart found its metadata where one after a crash would. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.directions import no_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial


def check_metadata(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Names and sizes that were in memory, of these hosts or of a file server."""
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
