"""Plans that tests make from options; not a test module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.plan.building import (
    CaseFacts,
    build_plan,
)
from pytest_kvcache.workloads.protocol import Need
from tests.factories import (
    SMALL,
    make_trace_plan,
    traits_of,
)

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan

OPEN_LOOP: dict[str, Any] = {"request_rate": 4.0, "arrival": "poisson"}
LAYOUT = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=2),))
TRACE = make_trace_plan(
    name="small", requests=3, speedup=1.0, one_rank_hit_ratio=0.5, partitioned_hit_ratio=0.4
)


def facts(**changes: Any) -> CaseFacts:
    """What was found of a case: room without an end, and a need of 1,000 blocks."""
    values: dict[str, Any] = {
        "run_id": "run",
        "version": "1.0",
        "need": Need(working_set_blocks=1_000),
        "available_bytes": None,
        "sharers": 2,
        "trace": None,
    }
    return CaseFacts(**values | changes)


def plan_of(asked: Options, **changes: Any) -> Plan:
    """The plan of these options, of a small model on two ranks; ``changes`` of the facts."""
    block_tokens = changes.pop("block_tokens", 256)
    model = changes.pop("model", SMALL)
    return build_plan(
        asked,
        scenario="trace" if changes.get("trace") else "mixed",
        model=model,
        layout=LAYOUT,
        block_tokens=block_tokens,
        traits=traits_of(asked.backend),
        facts=facts(**changes),
    )
