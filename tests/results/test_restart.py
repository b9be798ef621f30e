"""A restart in its record: what can't be, what it comes to, what stands against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import record_faults
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial, idle_error
from tests.factories import (
    FILESYSTEM,
    rank_result,
    restart_result,
    sound_plan,
    sound_record,
    sound_restart_plan,
    sound_restart_record,
    watched,
)

LOOKUPS: dict[str, Any] = {"restart_directories": None, "restart_listing_s": None}


def faults(plan: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Those of a record of one rank that differs from a sound one in this."""
    planned = sound_restart_plan(**plan or {})
    record = sound_restart_record(planned, [restart_result(0)])
    ranks = watched([restart_result(0, **changes)])
    return [
        fault.removeprefix("rank 0 on host test-host: ")
        for fault in record_faults(replace(record, ranks=ranks), planned)
    ]


def codes_of(record: Any, plan: Any) -> dict[str, str]:
    _trial, verdicts = evaluate_trial(record, plan)
    return {verdict.code: verdict.text for verdict in verdicts}


def test_a_sound_record_has_no_fault() -> None:
    assert faults() == []
    assert faults({"restart_by": "lookups"}, **LOOKUPS) == []


@pytest.mark.parametrize(
    ("plan", "changes", "said"),
    [
        ({}, {"restart_objects": None}, "restart_objects is None; with phase restart it must be a"),
        ({}, {"restart_directories": None}, "restart_directories is None; with phase restart it"),
        (
            {"restart_by": "lookups"},
            {},
            "restart_directories is 257; with phase restart it must be",
        ),
        ({}, {"restart_listing_s": 61.0}, "restart_listing_s is 61.0; the rank ran shorter"),
        (
            {},
            {"restart_directories": 0},
            "restart_directories is 0; it must be at least 1, for",
        ),
        ({}, {"restart_listing_s": 0.0}, "restart_listing_s is 0.0; it must be more than 0, for"),
        ({}, {"stop_s": 30.0}, "stop_s is 30.0; with phase restart it must be drained_s, which is"),
        (
            {},
            {"stop_s": 1.55, "drained_s": 1.55},
            "500 calls took 0.1 s and listing 1.5 s, one after the other; it ran 1.55 s",
        ),
        (
            {"restart_by": "lookups"},
            {**LOOKUPS, "stop_s": 0.05, "drained_s": 0.05},
            "of 1 restart 500 calls took 0.1 s, 1 at a time; it ran 0.05 s",
        ),
        ({}, {"restart_objects": 501}, "restart_objects is 501; it must be at most restart_count"),
        ({}, {"restart_objects": 499}, "restart_objects is 499; it must be 500, the objects that"),
        ({}, {"restart_count": 501}, "restart_count is 501; it must be 500, the objects that are"),
        ({}, {"restart_count": 501}, "its ranks counted 501 restarts; the histogram holds 500"),
        ({}, {"read_count": 1}, "read_count is 1; it must be 0 with phase restart"),
        ({}, {"write_count": 1}, "write_count is 1; it must be 0 with phase restart"),
    ],
)
def test_what_a_record_of_a_restart_can_not_say(
    plan: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    assert any(said in fault for fault in faults(plan, **changes))


def test_lookups_in_several_threads_take_less_than_their_sum() -> None:
    apart: dict[str, Any] = {**LOOKUPS, "stop_s": 0.05, "drained_s": 0.05}
    threads = {"restart_by": "lookups", "engine": "aibrix-shfs", "lookup": "all"}
    assert not any("at a time" in fault for fault in faults(threads, **apart))


def test_a_scan_that_was_stopped_before_it_began_has_read_no_directory() -> None:
    none: dict[str, Any] = {"restart_count": 0, "restart_directories": 0, "restart_listing_s": 0.0}
    told = faults(**none, error="another rank failed")
    assert not any("restart_directories" in fault or "listing" in fault for fault in told)


def test_another_phase_counts_no_restart() -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, ranks=watched([rank_result(0, restart_count=0)]))
    told = [*record_faults(record, plan)]
    assert any("restart_count is 0; with phase both it must be null" in fault for fault in told)


def test_a_rank_that_was_stopped_by_another_ones_error_need_not_have_found_all() -> None:
    told = faults(restart_objects=3, error="object a is not found again")
    assert not any("the objects that are stored" in fault for fault in told)


def test_the_time_is_until_the_last_rank_is_ready_and_the_rate_is_of_all_in_it() -> None:
    plan = sound_restart_plan(np=2)
    ranks = [restart_result(0, stop_s=40.0, drained_s=40.0), restart_result(1)]
    trial = trial_of(sound_restart_record(plan, ranks, window_s=40.0), plan)
    assert trial.run is not None
    assert trial.restart is not None
    assert trial.run.s == 60.0
    assert trial.restart.objects_per_s == pytest.approx(1_000 / 60.0)
    assert trial.restart.count == 1_000
    assert trial.restart.ms.p50 == pytest.approx(0.2, rel=0.01)
    assert trial.counters.restart_listing_s == 1.5  # of the slowest one, no sum


def test_the_metrics_of_ranks_that_were_ready_apart_stand_for_the_time_is_the_last_ones() -> None:
    plan = sound_restart_plan(np=2)
    ranks = [restart_result(0, stop_s=20.0, drained_s=20.0), restart_result(1)]
    record = sound_restart_record(plan, ranks, window_s=20.0)
    assert "run.s, until the last one is ready, stands" in codes_of(record, plan)["UNEVEN"]
    result = TrialResult(index=0, error=None, measured=trial_of(record, plan), withholds=True)
    assert result.value("run.s") == 60.0
    assert result.value("restart.p50_ms") is not None


def test_metadata_that_nobody_dropped_is_warm() -> None:
    plan = sound_restart_plan()
    record = sound_restart_record(plan, [restart_result(0)])
    assert "--kv-drop-caches, as root" in codes_of(record, plan)["WARM_METADATA"]
    trial, _verdicts = evaluate_trial(record, plan)
    assert trial.to_json()["restart"]["dropped_caches"] is False


def test_metadata_that_was_dropped_is_cold_but_not_on_a_file_server() -> None:
    plan = sound_restart_plan(drop_caches=True)
    record = sound_restart_record(plan, [restart_result(0)])
    assert codes_of(record, plan) == {}
    remote: dict[str, Any] = {**FILESYSTEM, "type": "nfs4", "device": None, "is_network": True}
    remote["chain"] = [{**FILESYSTEM["chain"][0], "name": "nfs4", "end": "network"}]
    record = sound_restart_record(plan, [restart_result(0, filesystem=remote)])
    assert "what the file server has in memory" in codes_of(record, plan)["WARM_METADATA"]


def said_of_dropped(*ranks: dict[str, Any], **plan: Any) -> str:
    """What is said of metadata after caches were dropped; empty: nothing."""
    planned = sound_restart_plan(drop_caches=True, np=len(ranks), **plan)
    results = [restart_result(number, **changes) for number, changes in enumerate(ranks)]
    return codes_of(sound_restart_record(planned, results), planned).get("WARM_METADATA", "")


def test_a_restart_after_which_a_host_has_read_nothing_was_warm_whatever_was_asked_for() -> None:
    text = said_of_dropped({"device_read_bytes": 0})
    assert "test-host read nothing of any device while it looked at 500 objects" in text
    assert said_of_dropped({"device_read_bytes": 4096}) == ""
    assert said_of_dropped({"device_read_bytes": 0, "restart_count": 0}) == ""
    # A rank may find what another one of its host has read; one of another host can't.
    assert said_of_dropped({"device_read_bytes": 0}, {"device_read_bytes": 4096}) == ""
    there = {"host": "n2", "device_read_bytes": 0}
    assert "n2 read nothing of any device" in said_of_dropped({"device_read_bytes": 4096}, there)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device_read_bytes": None}, "the kernel counts nothing that tells whether test-host"),
        (
            {"filesystem": {**FILESYSTEM, "options": "rw,dax"}},
            "the kernel counts nothing that tells whether test-host",
        ),
        (
            {
                "filesystem": {
                    **FILESYSTEM,
                    "type": "zfs",
                    "chain": [
                        {**FILESYSTEM["chain"][0], "name": "zfs", "end": "unseen", "note": "ARC"}
                    ],
                }
            },
            "can't be told on test-host (zfs: ARC)",
        ),
    ],
)
def test_what_nobody_can_see_is_not_called_cold(changes: dict[str, Any], said: str) -> None:
    assert said in said_of_dropped(changes)


def test_what_is_short_or_asks_for_little_is_no_fault_of_a_restart() -> None:
    plan = sound_restart_plan(drop_caches=True)
    record = sound_restart_record(
        plan, [restart_result(0, stop_s=0.5, drained_s=0.5, restart_listing_s=0.1)], window_s=0.5
    )
    assert codes_of(record, plan) == {}
    assert idle_error(record.ranks) is None


def test_why_a_percentile_is_absent_says_what_gives_more_objects() -> None:
    plan = sound_restart_plan()
    measured = trial_of(sound_restart_record(plan, [restart_result(0)]), plan)
    case = CaseResult(plan=plan, trials=(TrialResult(index=0, error=None, measured=measured),))
    assert case.series("restart.p50_ms") is not None
    assert METRICS["restart.p99_ms"].of(measured) is None
    said = why_absent(case, "restart.p99_ms")
    assert said.startswith("FEW_SAMPLES, p99 needs 1000 operations per trial")
    assert said.endswith("add users (--kv-num-users), or --kv-fill, or smaller blocks")
