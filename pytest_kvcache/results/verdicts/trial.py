"""All verdicts on a trial, from its data and its plan. Pure.

Severities are fixed by the run file's documentation: ``invalid`` fails the trial unless
``--kv-allow-invalid`` is given, ``warning`` is shown. One module per question beside this
one; each of their functions yields what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.verdicts.load import check_arrivals, check_load
from pytest_kvcache.results.verdicts.mlperf import check_submission
from pytest_kvcache.results.verdicts.restart import check_metadata
from pytest_kvcache.results.verdicts.search import check_confirmed
from pytest_kvcache.results.verdicts.storage import (
    check_io_accounting,
    check_other_users,
    check_storage,
)
from pytest_kvcache.results.verdicts.surroundings import (
    check_asynchronous,
    check_client_bound,
    check_clocks,
    check_preloaded,
    check_throttled,
    check_traced,
    whether_stamps_were_late,
)
from pytest_kvcache.results.verdicts.window import check_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.results.trial import Trial
    from pytest_kvcache.results.verdictcodes import Verdict


def evaluate_trial(record: TrialRecord, plan: Plan) -> tuple[Trial, tuple[Verdict, ...]]:
    """What a trial measured, and all verdicts on it, from the ranks' record alone."""
    trial = trial_of(record, plan)
    return trial, verdicts_on(trial, plan)


def verdicts_on(trial: Trial, plan: Plan) -> tuple[Verdict, ...]:
    """All verdicts on a trial of this plan."""
    return tuple(_judge(trial, plan))


def idle_error(ranks: Sequence[RankResult]) -> str | None:
    """Why a trial fails whose storage did nothing for a rank, None if it worked for all.

    Those that worked can't stand for one that did not: a result of two ranks would be
    one of one. A restart works on objects' names.
    """
    if all(rank.restart_count for rank in ranks):
        return None
    idle = [rank for rank in ranks if not rank.read_count + rank.write_count + rank.demote_count]
    if not idle:
        return None
    if len(idle) == len(ranks) and ranks[0].cpu_hit_blocks is ranks[0].gpu_hit_blocks is None:
        return (
            "the storage tier completed no operation in the window; lengthen --kv-duration, add"
            " --kv-num-users or raise --kv-request-rate, or use shorter blocks (--kv-block-tokens)"
        )
    if len(idle) == len(ranks):
        return (
            "the storage tier completed no operation in the window: memory tiers held all that was"
            " asked for; lower --kv-cpu-mem-gb and --kv-gpu-mem-gb, or add users (--kv-num-users)"
            " whose contexts do not fit"
        )
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    return (
        f"rank {idle[0].rank} on host {idle[0].host}{more} completed no operation in the window,"
        " which others did; lengthen --kv-duration, use fewer ranks, or shorter blocks"
        " (--kv-block-tokens)"
    )


def _judge(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    yield from check_storage(trial, plan)
    yield from check_io_accounting(trial, plan)
    yield from check_other_users(trial)
    yield from check_metadata(trial, plan)
    yield from check_window(trial, plan)
    if not plan.restarts:  # which asks for nothing that could be too much, or too little
        yield from check_load(trial, plan)
        yield from check_arrivals(trial, plan)
    yield from check_client_bound(trial)
    yield from check_asynchronous(trial, plan)
    yield from whether_stamps_were_late(trial)
    yield from check_preloaded(trial)
    yield from check_clocks(trial)
    yield from check_throttled(trial)
    yield from check_traced(trial)
    yield from check_submission(plan)
    yield from check_confirmed(trial, plan)
