"""Metrics that a planned case can't have: nothing is expected that no storage could give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.plan.possible import possible, why_impossible
from tests.factories import make_plan, make_trace_plan

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

OF_HITS = ("cache.hit_ratio", "cache.hit_token_ratio", "load.p95_ms", "request.mean_ms")
OF_READS = ("read.p95_ms", "read.gib_per_s", "run.read_gib_per_s")
OF_ALL = ("write.p95_ms", "write.gib_per_s", "run.s", "cpu_write.mean_ms")


def replay(*, ids: Any = "none", cycles: int = 1, **changes: Any) -> Plan:
    trace = make_trace_plan(ids=ids, cycles=cycles)
    return make_plan(scenario="trace", trace=trace, users=None, **changes)


def test_lengths_alone_have_no_hits_and_no_reads() -> None:
    assert possible([*OF_HITS, *OF_READS, *OF_ALL], replay()) == list(OF_ALL)
    assert why_impossible("read.p95_ms", replay()) == (
        "t.jsonl tells lengths alone, so that no prompt finds what another stored"
    )


def test_lengths_alone_that_are_read_again_have_reads_but_no_hits() -> None:
    again = replay(reread_factor=0.5)
    assert possible(OF_READS, again) == list(OF_READS)
    assert possible(OF_HITS, again) == []


@pytest.mark.parametrize("plan", [replay(cycles=2), replay(ids="prefix"), make_plan()])
def test_what_can_be_found_again_leaves_out_nothing(plan: Plan) -> None:
    assert possible(OF_HITS + OF_READS, plan) == list(OF_HITS + OF_READS)


def test_an_io_trace_has_no_tokens_that_could_be_worth_anything() -> None:
    operations = replay(ids="objects")
    assert possible(["worth.gpus_saved", "worth.dwpd", "load.p95_ms"], operations) == [
        "worth.dwpd", "load.p95_ms",
    ]  # fmt: skip
    assert why_impossible("worth.cost_per_mtok", operations) == (
        "t.jsonl tells operations and their bytes, and no tokens"
    )


def test_what_a_phase_never_makes_comes_first() -> None:
    why = why_impossible("read.p95_ms", replay(phase="prefill"))
    assert why == "--kv-phase=prefill makes no reads"
