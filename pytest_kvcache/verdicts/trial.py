"""All verdicts on a trial, from its data and its plan. Pure.

Severities are fixed by the run file's documentation: ``invalid`` fails the trial unless
``--kv-allow-invalid`` is given, ``warning`` is shown. One module per question beside this
one; each of their functions yields what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results import Verdict, trial_data
from pytest_kvcache.verdicts.load import whether_the_load_was_right
from pytest_kvcache.verdicts.storage import where_the_bytes_went, whether_reads_were_real
from pytest_kvcache.verdicts.surroundings import (
    whether_calls_were_wrapped,
    whether_clocks_agree,
    whether_something_held_it_up,
    whether_the_harness_was_fast,
)
from pytest_kvcache.verdicts.window import whether_the_window_holds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.plan import Plan
    from pytest_kvcache.trialrecord import RankResult, TrialRecord

_NO_STORAGE_CODES = ("TMPFS", "NOT_STORAGE")  # stand against it whatever was read
_READ_CODES = ("CACHED_READS", "UNPROVEN")


def evaluate_trial(record: TrialRecord, plan: Plan) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
    """A trial's part of the run file and all verdicts on it, from the ranks' records alone."""
    data = trial_data(record, plan)
    verdicts = _judge(data, plan)
    codes = {verdict.code for verdict in verdicts}
    data["proof"]["verdict"] = _proof_verdict(codes, data["proof"]["requested_read_bytes"])
    return data, verdicts


def _proof_verdict(codes: set[str], read_bytes: int) -> str | None:
    """What stands against the reads, else PROVEN; None: there was no read to prove."""
    against = _NO_STORAGE_CODES + _READ_CODES if read_bytes else _NO_STORAGE_CODES
    otherwise = "PROVEN" if read_bytes else None
    return next((code for code in against if code in codes), otherwise)


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
        *whether_reads_were_real(data),
        *whether_the_window_holds(data, plan),
        *whether_the_load_was_right(data, plan),
        *whether_the_harness_was_fast(data),
        *whether_calls_were_wrapped(data),
        *whether_clocks_agree(data),
        *whether_something_held_it_up(data),
    ]
    return tuple(found)
