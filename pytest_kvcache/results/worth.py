"""Whether the storage pays: GPUs saved, the turning point, cost, energy and wear. Pure.

Computing n tokens takes n ÷ rate, with the rate of the GPUs that share a rank's model; a load
pays if it takes less. What the user does not say (a rate, a cost, a power) has no figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.measure.worth import added, turning_tokens
from pytest_kvcache.phases import PHASES
from pytest_kvcache.results.trial import Worth
from pytest_kvcache.units import GIB, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult

_DAY_S: Final = 86_400.0
_HOUR_S: Final = 3_600.0
_MILLION: Final = 1e6


def worth_of(
    ranks: Sequence[RankResult],
    spans_s: Sequence[float],
    counted: Counters,
    load: Histogram,
    plan: Plan,
) -> Worth:
    """Of a trial; ``spans_s`` are what the ranks' requests arrived in, ``load`` their loads.

    A rank stands for one of the GPUs that share a model, so that its tokens are a part of theirs.
    """
    lengths = added(rank.load_lengths for rank in ranks)
    hit_per_s = _rate([_hit_tokens(rank, plan) for rank in ranks], spans_s)
    own_per_s = None if hit_per_s is None else hit_per_s / plan.tensor_parallel
    return Worth(
        **_of_computing(ranks, spans_s, counted, load, plan),
        turning_tokens=turning_tokens(lengths),
        cost_per_mtok=_per_million(plan.cost_per_hour, _HOUR_S, own_per_s),
        joules_per_mtok=_per_million(plan.power_w, 1.0, own_per_s),
        dwpd=_daily_writes(counted, spans_s, plan),
        lengths=lengths,
    )


def _daily_writes(counted: Counters, spans_s: Sequence[float], plan: Plan) -> float | None:
    """How often a day the capacity is written, at the speed of the window; None: nothing was."""
    written_bytes, window_s = counted.write_bytes + counted.demote_bytes, min(spans_s)
    if not written_bytes or window_s <= 0:
        return None
    return written_bytes / window_s * _DAY_S / (plan.capacity_bytes * plan.np)


_UNKNOWN: Final = (
    "useful_hit_ratio", "gpus_saved", "gpus_busy", "turning_gib_per_s", "load_gib_per_s",
)  # fmt: skip


def _of_computing(
    ranks: Sequence[RankResult],
    spans_s: Sequence[float],
    counted: Counters,
    load: Histogram,
    plan: Plan,
) -> Mapping[str, Any]:
    """What follows from the rate of prefill; nothing is known without one."""
    per_s = plan.recompute_tokens_per_s
    if per_s is None:
        return dict.fromkeys(_UNKNOWN)
    asked = [_asked_tokens(rank, plan) for rank in ranks]
    loads = PHASES[plan.phase].loads
    missed = [
        tokens - loads * _hit_tokens(rank, plan) for rank, tokens in zip(ranks, asked, strict=True)
    ]
    saved_per_s = _rate([rank.useful_tokens or 0 for rank in ranks], spans_s)
    missed_per_s = _rate(missed, spans_s)
    token_gib = plan.model.shard_bytes_per_token(plan.tensor_parallel) / GIB
    alike = not plan.unlike_parts  # else a load reads less than all its tokens take
    loaded_gib = (counted.loaded_tokens or 0) * token_gib
    return {
        "useful_hit_ratio": ratio(counted.useful_tokens or 0, sum(asked)) if loads else None,
        "gpus_saved": saved_per_s / per_s if loads and saved_per_s is not None else None,
        "gpus_busy": None if missed_per_s is None else missed_per_s / per_s,
        "turning_gib_per_s": per_s * token_gib if alike else None,
        "load_gib_per_s": ratio(loaded_gib, load.sum_ns / 1e9) if alike and load.count else None,
    }


def _asked_tokens(rank: RankResult, plan: Plan) -> int:
    """What had to be loaded or computed: prompts, and what lies beside them."""
    return rank.arrived_tokens + rank.beside_blocks * plan.block_tokens


def _hit_tokens(rank: RankResult, plan: Plan) -> int:
    """Of these, those that were found."""
    return rank.hit_tokens + rank.beside_hit_blocks * plan.block_tokens


def _rate(tokens: Sequence[int], spans_s: Sequence[float]) -> float | None:
    """Of all ranks per second, each over its own span; None where one has none."""
    if min(spans_s) <= 0:
        return None
    return sum(count / span_s for count, span_s in zip(tokens, spans_s, strict=True))


def _per_million(per_span: float | None, span_s: float, tokens_per_s: float | None) -> float | None:
    """What a million tokens take of something that goes on all the time; None: none were hit."""
    if per_span is None or not tokens_per_s:
        return None
    return per_span / span_s / tokens_per_s * _MILLION
