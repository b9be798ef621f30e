"""All verdicts on a trial, from its data and its plan. Pure.

Severities are fixed by the run file's documentation: ``invalid`` fails the trial unless
``--kv-allow-invalid`` is given, ``warning`` is shown. One module per question beside this
one; each of their functions yields what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.trial import Verdict, trial_data
from pytest_kvcache.results.verdicts.directions import Direction, reads_of, writes_of
from pytest_kvcache.results.verdicts.load import whether_the_load_was_right
from pytest_kvcache.results.verdicts.storage import (
    is_memory,
    is_storage,
    where_the_bytes_went,
    whether_it_is_proven,
    whether_others_used_it,
)
from pytest_kvcache.results.verdicts.surroundings import (
    whether_calls_were_wrapped,
    whether_clocks_agree,
    whether_something_held_it_up,
    whether_the_harness_was_fast,
)
from pytest_kvcache.results.verdicts.window import whether_the_window_holds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord

_AGAINST = ("CACHED_READS", "CACHED_WRITES", "UNPROVEN")  # the worst first


def evaluate_trial(record: TrialRecord, plan: Plan) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
    """A trial's part of the run file and all verdicts on it, from the ranks' records alone."""
    data = trial_data(record, plan)
    verdicts = _judge(data, plan)
    data["proof"].update(_proof_verdicts(data))
    return data, verdicts


def _proof_verdicts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and writes apart, and what stands against the worse of them, else PROVEN."""
    reads, writes = reads_of(data), writes_of(data)
    no_storage = "TMPFS" if is_memory(data) else None if is_storage(data) else "NOT_STORAGE"
    if no_storage is not None:
        reads, writes = (
            Direction(asked=way.asked, against=no_storage if way.asked else None)
            for way in (reads, writes)
        )
    given = {reads.verdict, writes.verdict}
    proven = "PROVEN" if "PROVEN" in given else None
    worst = next((code for code in _AGAINST if code in given), proven)
    return {
        "reads": reads.to_json(),
        "writes": writes.to_json(),
        "verdict": no_storage or worst,
    }


def idle_error(ranks: Sequence[RankResult]) -> str | None:
    """Why a trial fails whose storage did nothing for a rank, None if it worked for all.

    Those that worked can't stand for one that did not: a result of two ranks would be
    one of one.
    """
    idle = [rank for rank in ranks if not rank.read_count + rank.write_count]
    if not idle:
        return None
    if len(idle) == len(ranks):
        return (
            "the storage tier completed no operation in the window; lengthen --kv-duration, add"
            " --kv-num-users or raise --kv-request-rate, or use shorter blocks (--kv-block-tokens)"
        )
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    return (
        f"rank {idle[0].rank} on host {idle[0].host}{more} completed no operation in the window,"
        " which others did; lengthen --kv-duration, use fewer ranks, or shorter blocks"
        " (--kv-block-tokens)"
    )


def _judge(data: Mapping[str, Any], plan: Plan) -> tuple[Verdict, ...]:
    found = [
        *where_the_bytes_went(data, plan),
        *whether_it_is_proven(data),
        *whether_others_used_it(data),
        *whether_the_window_holds(data, plan),
        *whether_the_load_was_right(data, plan),
        *whether_the_harness_was_fast(data),
        *whether_calls_were_wrapped(data),
        *whether_clocks_agree(data),
        *whether_something_held_it_up(data),
    ]
    return tuple(found)
