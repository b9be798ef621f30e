"""What a trial with memory tiers says, and what it can't say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.cache.tiers import TIER_POLICIES, TierPolicy
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, tier_sections
from pytest_kvcache.report.tables import report_run
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.figures import headroom_of, trial_of
from pytest_kvcache.results.invariants import check_record, record_faults
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.canned import case_of, run_of
from tests.factories import (
    PAGE,
    SMALL,
    make_plan,
    memory_tiers,
    record_of,
    registry_of,
    run_rank,
    tireless_scenarios,
)

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.tiers import MemoryTier
    from pytest_kvcache.results.record import TrialRecord


def run(policy: TierPolicy, *tiers: MemoryTier, **changes: Any) -> tuple[Plan, TrialRecord]:
    """What two ranks leave that dialogues have kept busy for a moment."""
    plan = make_plan(
        np=2, duration_s=0.3, capacity_blocks=150, tiers=tiers, tier_policy=policy, **changes,
    )  # fmt: skip
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios(50))
    ranks = [run_rank(plan, registry, rank=rank) for rank in range(2)]
    return plan, record_of(plan, ranks)


BOTH = (*memory_tiers("gpu", blocks=20), *memory_tiers("cpu", blocks=40))
INDEX = memory_tiers("cpu", kind="index", blocks=40)


@cache
def through() -> tuple[Plan, TrialRecord]:
    """One such run, for those that look at it only."""
    return run("write-through", *BOTH)


@pytest.mark.parametrize("policy", TIER_POLICIES)
@pytest.mark.parametrize("tiers", [BOTH, BOTH[:1], INDEX], ids=["both", "gpu", "index"])
def test_what_ranks_with_tiers_find_contradicts_nothing(
    policy: TierPolicy, tiers: tuple[MemoryTier, ...]
) -> None:
    plan, record = run(policy, *tiers)
    check_record(record, plan)
    data = trial_of(record, plan).to_json()
    there = tier_sections(plan.tiers, policy)
    for section in ("demote", *MEMORY_SECTIONS):
        assert (data[section] is not None) == (section in there)
    found = data["cache"]["tiers"]
    names = [tier.name for tier in tiers]
    assert [name for name, tier in found.items() if tier is not None] == [*names, "storage"]
    assert found["storage"]["hit_blocks"] > 0
    assert (
        sum(found[name]["hit_blocks"] for name in (*names, "storage"))
        == (data["cache"]["hit_blocks"])
    )
    moved = "demoted_in_bytes" if policy == "demote" else "promoted_in_bytes"
    assert any(tier[moved] > 0 for tier in found.values() if tier is not None and moved in tier)
    if policy == "demote":
        assert 0 < data["demote"]["bytes"] <= found["storage"]["demoted_in_bytes"]


@pytest.mark.parametrize("policy", TIER_POLICIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "decode", "users": 3},
        {"phase": "prefill"},
        {"sync": "data"},
        {"object_layout": "layer", "model": replace(SMALL, layers=3)},
        {"io_engine": "threads"},
    ],
    ids=["decode", "prefill", "sync", "layers", "threads"],
)
def test_tiers_go_with_whatever_else_is_asked(policy: TierPolicy, changes: dict[str, Any]) -> None:
    plan, record = run(policy, *BOTH, **changes)
    check_record(record, plan)
    trial = trial_of(record, plan)
    assert trial.counters.corrupt == 0
    assert not [rank.error for rank in record.ranks if rank.error]
    hits = (trial.counters.gpu_hit_blocks or 0) + (trial.counters.cpu_hit_blocks or 0)
    reads = [section.count for section in (trial.gpu_read, trial.cpu_read) if section is not None]
    assert hits > 0
    assert (sum(reads) > 0) == (plan.phase != "prefill")
    if plan.phase == "decode":
        assert trial.counters.storage_stored_blocks == 0


def test_there_is_a_metric_of_each_tier_s_share_of_the_prompts() -> None:
    plan, record = run("write-through", *BOTH)
    trial = trial_of(record, plan)
    shares = [METRICS[f"cache.{tier}_hit_ratio"].of(trial) for tier in ("gpu", "cpu", "storage")]
    assert None not in shares
    whole = METRICS["cache.hit_ratio"].of(trial)
    assert sum(share for share in shares if share is not None) == pytest.approx(whole)
    alone = trial_of(record, replace(plan, tiers=BOTH[1:]))
    assert METRICS["cache.gpu_hit_ratio"].of(alone) is None
    assert METRICS["gpu_read.mean_ms"].of(alone) is None
    assert METRICS["demote.gib_per_s"].of(trial) is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cpu_hit_blocks": None}, "cpu_hit_blocks is None; by the plan's tiers it must not be"),
        ({"gpu_failed": None}, "gpu_failed is None; by the plan's tiers it must not be null"),
        ({"cpu_demote_bytes": 0}, "cpu_demote_bytes is 0; by the plan's tiers it must be null"),
        ({"cpu_read_bytes": None}, "cpu_read_bytes is None; by the plan's tiers it must not be"),
        ({"cpu_bytes": 1 << 40}, "cpu_bytes is 1099511627776; it must be at most the tier's"),
        ({"gpu_blocks": 1 << 40}, "gpu_blocks is 1099511627776; it must be at most gpu_bytes"),
        ({"memory_tiers_s": None}, "memory_tiers_s is None; by the plan it must not be null"),
        ({"memory_tiers_s": 99.0}, "memory_tiers_s is 99.0; the rank ran shorter than that"),
        ({"demote_failed": 1}, "demote_failed is 1; it must be 0, as the plan has no tier to"),
        ({"storage_hit_blocks": 0}, "(storage) blocks; together that must be hit_blocks, "),
    ],
)
def test_what_a_tier_can_not_have_is_named(changes: dict[str, Any], fault: str) -> None:
    plan, record = through()
    ranks = (replace(record.ranks[0], **changes), *record.ranks[1:])
    reported = list(record_faults(replace(record, ranks=ranks), plan))
    assert any(fault in sentence for sentence in reported), reported


def test_what_memory_tiers_take_of_a_rank_s_time_is_no_headroom() -> None:
    plan, record = through()
    whole = replace(record.ranks[0], null_ops_per_s=1e6)
    taken_s = 0.75 * (whole.drained_s - whole.start_s)
    assert whole.memory_tiers_s is not None
    assert whole.memory_tiers_s > 0
    free, busy = (
        headroom_of(replace(whole, memory_tiers_s=seconds), plan.duration_s or 0.0)
        for seconds in (0.0, taken_s)
    )
    assert free is not None
    slow = replace(record, ranks=tuple(replace(r, null_ops_per_s=1.0) for r in record.ranks))
    _trial, verdicts = evaluate_trial(slow, plan)
    (reported,) = (verdict.text for verdict in verdicts if verdict.code == "CLIENT_BOUND")
    assert "; memory tiers took " in reported
    assert busy == pytest.approx(free / 4)


def test_what_is_timed_in_memory_has_moved_bytes() -> None:
    plan, record = through()
    ranks = tuple(replace(rank, cpu_read_bytes=0) for rank in record.ranks)
    (reported,) = record_faults(replace(record, ranks=ranks), plan)
    assert reported.startswith("cpu_read has ")
    assert reported.endswith(" operations of 0 bytes; each moves some")


def test_without_tiers_nothing_is_said_of_any() -> None:
    plan, record = run("write-through")
    check_record(record, plan)
    cache = trial_of(record, plan).to_json()["cache"]
    assert (cache["tiers"]["gpu"], cache["tiers"]["cpu"]) == (None, None)
    storage = cache["tiers"]["storage"]
    assert storage["hit_blocks"] == cache["hit_blocks"] > 0
    assert storage["demoted_in_bytes"] == 0
    # In the whole run, of which the window is a part; each block lies in a page of its own.
    written = sum(rank.requested_write_bytes for rank in record.ranks)
    assert storage["stored_blocks"] * PAGE == written
    assert storage["stored_blocks"] >= sum(rank.write_count for rank in record.ranks) > 0
    (reported, *_more) = record_faults(
        replace(record, ranks=(replace(record.ranks[0], cpu_failed=0), *record.ranks[1:])), plan
    )
    assert "cpu_failed is 0; by the plan's tiers it must be null" in reported


# -- for people ----------------------------------------------------------------------------


def shown(plan: Plan, record: TrialRecord) -> str:
    measured, verdicts = evaluate_trial(record, plan)
    trial = TrialResult(index=0, error=None, verdicts=verdicts, measured=measured)
    return report_run(run_of(case_of(plan, trial)), ["cache.hit_ratio"])


def test_a_table_says_which_tier_served_how_much_of_the_prompts() -> None:
    plan, record = through()
    text = shown(plan, record)
    rows = [line for line in text.splitlines() if line.startswith(("  gpu (", "  cpu (", "  stor"))]
    assert [row.split("  ")[1] for row in rows] == ["gpu (simulated)", "cpu (memory)",
                                                    "storage (null)"]  # fmt: skip
    measured = trial_of(record, plan)
    for row, name in zip(rows, ("gpu", "cpu", "storage"), strict=True):
        tier = getattr(measured.cache.tiers, name)
        assert f" {tier.hit_ratio:.2%} " in row
        assert f" {getattr(measured.counters, f'{name}_stored_blocks'):,} " in row
    assert max(map(len, text.splitlines())) < 80


def test_a_table_says_that_an_index_holds_no_bytes() -> None:
    assert "cpu (index only: holds no bytes)" in shown(*run("demote", *INDEX))
    assert "holds no bytes" not in shown(*run("write-through"))


@pytest.mark.parametrize(
    ("policy", "metric", "reason"),
    [
        ("demote", "write.gib_per_s", "with --kv-tier-policy=demote new blocks enter memory"),
        ("demote", "read.gib_per_s", "memory tiers held what was asked for; lower --kv-cpu-mem-gb"),
        ("write-through", "write.gib_per_s", "memory tiers held what was asked for"),
    ],
)
def test_why_the_storage_did_nothing_of_a_kind_is_said(
    policy: TierPolicy, metric: str, reason: str
) -> None:
    plan, record = run("write-through", *INDEX)
    trial, _verdicts = evaluate_trial(record, plan)
    nothing = replace(
        trial,
        read=replace(trial.read, gib_per_s=None),
        write=replace(trial.write, gib_per_s=None),
    )
    asked = replace(plan, tier_policy=policy)
    case = case_of(asked, TrialResult(index=0, error=None, measured=nothing))
    assert reason in why_absent(case, metric)
