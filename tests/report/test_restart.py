"""What people read of a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.report.progress import Outlook, progress_line
from pytest_kvcache.report.restart import describe_found
from pytest_kvcache.report.scaling import report_scaling
from pytest_kvcache.report.tables import report_run
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.canned import run_of
from tests.factories import restart_result, sound_restart_plan, sound_restart_record, watched

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

METRICS = ("run.s", "restart.objects_per_s")


def case_of(plan: Plan, **changes: Any) -> CaseResult:
    ranks = [restart_result(rank, **changes) for rank in range(plan.np)]
    record = replace(sound_restart_record(plan, ranks), ranks=watched(ranks))
    measured, verdicts = evaluate_trial(record, plan)
    trial = TrialResult(index=0, error=None, verdicts=verdicts, measured=measured)
    return CaseResult(plan=plan, trials=(trial,), metrics=METRICS)


def shown(case: CaseResult) -> str:
    return " ".join(report_run(run_of(case), METRICS).split())


def test_a_scan_is_told_with_its_objects_directories_and_what_the_disks_were_asked_for() -> None:
    text = shown(case_of(sound_restart_plan(np=2), device_read_bytes=1 << 20))
    assert "2 ranks restarted (chat, small): what they had stored was found again within" in text
    assert "16.67 objects/s. To be read with WARM_METADATA." in text
    assert "last trial: 1,000 objects of 62.5 MiB found again, by a stat of each;" in text
    assert "514 directories read, which took 1.5" in text
    assert "the kernel read 2 MiB of devices for it" in text
    assert "restart.p99_ms ms" in text
    for absent in ("requests", "hit_ratio", "GiB/s", "verified"):
        assert absent not in text


def test_lookups_are_told_with_their_threads() -> None:
    plan = sound_restart_plan(restart_by="lookups", engine="aibrix-shfs", lookup="all")
    case = case_of(plan, restart_directories=None, restart_listing_s=None, device_read_bytes=None)
    (trial,) = case.measured
    text = describe_found(plan, trial)
    assert "found again, by a lookup of each, in 8 threads per rank; at most" in text
    assert "the kernel read" not in text


def test_the_live_line_counts_what_was_found() -> None:
    outlook = Outlook(sound_restart_plan(), 3)
    outlook.start(0, 0.0)
    outlook.enter("window", 1.0)
    event = {
        "event": "progress", "phase": "window", "t_s": 2.0, "completed": 1_234, "recent": None,
        "free_bytes": None, "prompt_blocks": 0, "hit_blocks": 0, "cached_bytes": 0,
    }  # fmt: skip
    line = progress_line(outlook, event, now_s=2.0, width=100)
    assert "window 1 s" in line
    assert "1,234 found" in line
    assert "hit" not in line


def test_ranks_that_find_as_much_each_scale() -> None:
    cases = [case_of(sound_restart_plan(np=np)) for np in (1, 2)]
    text = report_scaling(cases, METRICS)
    assert "restart.objects_per_s" in text
    assert "2x" in text
    assert "100%" in text
