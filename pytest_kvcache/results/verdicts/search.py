"""Whether the answer of a search for users holds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.results.verdictcodes import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial


def check_confirmed(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """The load that a search has found must keep the objectives when it is launched again."""
    if not plan.search or plan.search_step or trial.users.per_rank is not None:
        return
    values = {rule: METRICS[rule.metric].of(trial) for rule in map(parse_slo, plan.search)}
    broken = ", ".join(
        f"{rule} ({'no such value' if value is None else f'it is {value:.4g}'})"
        for rule, value in values.items()
        if not rule.keeps(value)
    )
    yield Verdict.of(
        "UNCONFIRMED",
        f"{plan.users:,} users per rank kept the objectives in the search, and launched again they"
        f" do not: {broken}; lengthen --kv-duration, or look for what disturbs the storage",
    )
