"""All verdicts on a trial, from its data and its plan. Pure.

Severities are fixed by the run file's documentation: ``invalid`` fails the trial unless
``--kv-allow-invalid`` is given, ``warning`` is shown. One module per question beside this
one; each of their functions yields what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.verdicts.load import whether_the_load_was_right
from pytest_kvcache.results.verdicts.storage import (
    where_the_bytes_went,
    whether_it_is_proven,
    whether_others_used_it,
)
from pytest_kvcache.results.verdicts.surroundings import (
    whether_calls_were_wrapped,
    whether_clocks_agree,
    whether_something_held_it_up,
    whether_the_harness_was_fast,
    whether_transfers_were_in_flight,
)
from pytest_kvcache.results.verdicts.window import whether_the_window_holds

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


def _judge(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    yield from where_the_bytes_went(trial, plan)
    yield from whether_it_is_proven(trial)
    yield from whether_others_used_it(trial)
    yield from whether_the_window_holds(trial, plan)
    yield from whether_the_load_was_right(trial, plan)
    yield from whether_the_harness_was_fast(trial)
    yield from whether_transfers_were_in_flight(trial, plan)
    yield from whether_calls_were_wrapped(trial)
    yield from whether_clocks_agree(trial)
    yield from whether_something_held_it_up(trial)
