"""What a scenario that reproduces another benchmark's I/O is not. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.options.table import flag_of
from pytest_kvcache.plan.wholeobjects import changed_values
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.workloads.mlperf import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan


def check_submission(plan: Plan) -> Iterator[Verdict]:
    """Whoever reads the result must not take it for one of the benchmark's own."""
    family = FAMILIES.get(plan.scenario)
    if family is None:
        return
    option = f"option {family.option.number} of the MLPerf Storage KV cache benchmark"
    changed = changed_values(plan, family)
    if changed:
        what = f"is made after {option} and differs from it in {', '.join(map(flag_of, changed))}"
    else:
        rules = "by its rules for closed runs" if plan.closed else "with its values"
        what = f"does what {option} does to the storage, {rules}"
    yield Verdict.of(
        "NO_SUBMISSION",
        f"{plan.scenario} {what}; this is no MLPerf submission, and no result of that benchmark:"
        f" {_offered(plan)}",
    )


def _offered(plan: Plan) -> str:
    """How requests come here, which is not how they come there."""
    if plan.request_rate is not None:
        return f"here {plan.request_rate:g} requests come per second, as --kv-request-rate has it"
    if plan.requests is not None:
        return "here users take turns without thinking, and there is no window of time"
    return "here a user waits for its answer before it asks again"
