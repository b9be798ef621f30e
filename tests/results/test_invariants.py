from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.traits import BackendOption
from pytest_kvcache.errors import ResultError
from pytest_kvcache.masking import MASK
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.series import KINDS
from pytest_kvcache.results.devicegroups import _most_beside_bytes
from pytest_kvcache.results.invariants import check_record, plan_faults, record_faults
from pytest_kvcache.results.record import RankResult
from pytest_kvcache.workloads.scenarios import TABLE
from tests.factories import (
    OBJECTS,
    clock_record,
    make_plan,
    make_trace_plan,
    rank_result,
    record_of,
    registry_of,
    run_rank,
    sound_plan,
    sound_record,
    surroundings,
    tireless_scenarios,
    watched,
)

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

REPLAY = make_trace_plan(
    requests=200, speedup=1.0, one_rank_hit_ratio=0.5, partitioned_hit_ratio=0.5
)


MOST_BYTES = sound_plan().capacity_bytes


def of_rank(plan: Plan | None = None, /, window_s: float = 60.0, **changes: Any) -> list[str]:
    """The faults of a record of one rank that differs from a sound one in this."""
    plan = plan or sound_plan()
    record = sound_record(plan, [rank_result(0)], window_s=window_s)
    return list(record_faults(replace(record, ranks=watched([rank_result(0, **changes)])), plan))


# --- a record -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "changes", "found"),
    [
        ({}, {}, []),
        ({}, {"asked_objects": 3}, ["asked_objects is 3; with lookup memory it must be null"]),
        (
            {"lookup": "all"},
            {"lookup_count": 0, "asked_objects": 2, "found_objects": 2},
            [],
        ),
        (
            {"lookup": "all"},
            {"lookup_count": 0, "asked_objects": None, "found_objects": 0},
            ["asked_objects is None; with lookup all it must be a number"],
        ),
        (
            {"lookup": "all", "phase": "prefill"},
            {"lookup_count": 0},
            ["lookup_count is 0; with lookup all it must be null"],
        ),
    ],
)
def test_the_storage_is_asked_where_the_plan_asks_it_and_nowhere_else(
    plan: dict[str, Any], changes: dict[str, Any], found: list[str]
) -> None:
    told = of_rank(sound_plan(**plan), io_engine="threads", io_engine_asynchronous=None, **changes)
    assert [fault for fault in told if "lookup" in fault or "objects" in fault] == [
        f"rank 0 on host test-host: {each}" for each in found
    ]


@pytest.mark.parametrize("phase", ["decode", "both"])
def test_every_phase_that_loads_may_ask_the_storage(phase: str) -> None:
    asked = {"lookup_count": 4, "asked_objects": 9, "found_objects": 9}
    told = of_rank(sound_plan(lookup="all", phase=phase), **asked)
    assert not [fault for fault in told if fault.startswith("rank 0") and "lookup" in fault]


def test_more_requests_than_objects_that_they_asked_for_is_a_fault() -> None:
    told = of_rank(sound_plan(lookup="all"), lookup_count=5, asked_objects=4, found_objects=4)
    assert any("asked_objects is 4; it must be at least lookup_count" in each for each in told)


def test_an_engines_calls_are_made_by_no_kernel_queue() -> None:
    told = of_rank(sound_plan(publish="rename"), io_engine="io_uring", io_engine_asynchronous=True)
    assert any("the plan's calls are an engine's, which threads make" in each for each in told)


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        ({}, {"reread_count", "beside_blocks"}),
        ({"reread_factor": 2}, {"beside_blocks"}),
        ({"dialogues": TABLE.dialogues("rag")}, {"reread_count"}),
        ({"scenario": "trace", "trace": REPLAY}, {"reread_count", "beside_blocks"}),
        ({"scenario": "a-plugins"}, set()),
        ({"scenario": "mlperf-1", "most_stores": 5}, set()),
    ],
)
def test_what_no_request_asks_for_is_not_counted(plan: dict[str, Any], found: set[str]) -> None:
    """A counter that was raised by hand is found where the plan knows that it is 0."""
    faults = of_rank(sound_plan(**plan), reread_count=5, beside_blocks=5)
    named = [fault.partition(": ")[2].split()[0] for fault in faults if "it must be 0" in fault]
    assert set(named) == found


def test_a_sound_record_has_no_fault() -> None:
    assert of_rank() == []


@pytest.mark.thorough
@pytest.mark.parametrize("duration_s", [0.3, None])
def test_what_real_ranks_leave_has_no_fault(duration_s: float | None) -> None:
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios(50))
    plan = make_plan(np=2, duration_s=duration_s, capacity_blocks=150)
    ranks = [run_rank(plan, registry, rank=rank) for rank in range(2)]
    check_record(record_of(plan, ranks), plan)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"read_bytes": 10**10}, "read_bytes is 10000000000; it must be at most requested_read"),
        ({"read_op_bytes": 10**10}, "read_op_bytes is 10000000000; it must be at most requested"),
        (
            {"write_bytes": 10**10},
            "write_bytes + demote_bytes is 10000000000; it must be at most requested_write",
        ),
        (
            {"write_op_bytes": 10**10},
            "write_op_bytes + demote_op_bytes is 10000000000; it must be at most requested_write",
        ),
        ({"hit_blocks": 6_000}, "hit_blocks is 6000; it must be at most prompt_blocks, which is"),
        ({"hit_tokens": 20_001}, "hit_tokens is 20001; it must be at most arrived_tokens"),
        ({"first_half_hits": 1_001, "hit_blocks": 2_000}, "first_half_hits is 1001; it must be"),
        ({"second_half_hits": 1_001, "hit_blocks": 2_000}, "second_half_hits is 1001; it must be"),
        ({"first_half_blocks": 1_001}, "first_half_blocks + second_half_blocks is 2001; it must"),
        ({"first_half_hits": 501}, "first_half_hits + second_half_hits is 1001; it must be at mo"),
        (
            {"completed": 190, "completed_in_window": 9, "request_censored": 11},
            "completed + request_censored is 201; it must be at most offered, which is",
        ),
        (
            {"completed": 190, "completed_in_window": 9, "dropped": 11},
            "completed + dropped is 201; it must be at most offered, which is",
        ),
        ({"generating": 3, "backlog": 2}, "generating is 3; it must be at most backlog"),
        ({"storing": 201}, "storing is 201; it must be at most completed"),
        ({"backlog": 201}, "backlog + dropped is 201; it must be at most offered"),
        ({"completed_in_window": 201}, "completed_in_window + dropped is 201; it must be at most"),
        ({"corrupt": 1_001}, "corrupt is 1001; it must be at most checked, which is 1000"),
        (
            {"average_queue_depth": 16.1},
            "average_queue_depth is 16.1; it must be at most the plan's queue_depth",
        ),
        ({"cached_bytes": MOST_BYTES + 1}, "it must be at most the plan's capacity_bytes"),
        ({"cached_bytes": 499}, "cached_blocks is 500; it must be at most cached_bytes"),
        ({"start_s": 60.1}, "start_s is 60.1; it must be at most stop_s, which is 60.0"),
        ({"drained_s": 59.0}, "stop_s is 60.0; it must be at most drained_s, which is 59.0"),
        ({"io_engine": "aio"}, "io_engine is 'aio'; it must be one of io_uring, libaio"),
        ({"io_engine_reason": ""}, "io_engine_reason is ''; it must say why io_uring was taken"),
        ({"io_engine_asynchronous": None}, "io_engine_asynchronous is None; it must be true or"),
        ({"io_engine": "threads"}, "io_engine_asynchronous is True; it must be true or"),
    ],
)
def test_what_can_not_be_is_named_with_its_limit(changes: dict[str, Any], fault: str) -> None:
    (reported,) = (
        reported for reported in of_rank(**changes) if reported.startswith("rank 0 on host ")
    )
    assert fault in reported


def busy_for(beyond_s: float) -> list[str]:
    plan = sound_plan()
    (rank,) = watched([rank_result(0)])
    assert rank.device is not None
    (disk,) = rank.device.disks
    moved = replace(disk.run, busy_s=rank.device.run_s + beyond_s)
    device = replace(rank.device, disks=(replace(disk, run=moved),))
    record = sound_record(plan, [rank], window_s=60.0)
    return list(record_faults(replace(record, ranks=(replace(rank, device=device),)), plan))


def test_a_disk_is_busy_for_no_longer_than_it_was_watched() -> None:
    assert busy_for(0.0) == []
    (reported,) = busy_for(1e-6)
    assert "run.busy_s is more than the time there was" in reported


NUMBERS = [
    field.name
    for field in fields(RankResult)
    if type(getattr(rank_result(), field.name)) in (int, float)
    and field.name not in ("rank", "start_s", "stop_s", "drained_s")
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan])
def test_no_figure_is_below_zero(name: str, value: float) -> None:
    assert any(
        f"{name} is {value}; it must be at least 0" in reported
        for reported in of_rank(**{name: value})
    )


def test_a_figure_that_is_not_known_is_no_fault() -> None:
    unknown = (
        "read_p95_ms",
        "write_p95_ms",
        "average_queue_depth",
        "first_half_waiting",
        "second_half_waiting",
        "longest_pause_s",
        "reap_lag_mean_ms",
        "reap_lag_p99_ms",
        "device_read_bytes",
        "device_write_bytes",
    )
    changed: dict[str, Any] = dict.fromkeys(unknown)
    assert of_rank(**changed) == []


@pytest.mark.parametrize(
    ("window_s", "changes", "is_sound"),
    [
        (60.0, {}, True),
        (59.98, {}, False),  # the slices of a minute are 10 ms wide
        (60.02, {"stop_s": 61.0, "drained_s": 61.0}, False),  # longer than the duration
        (31.0, {"stop_s": 31.005}, True),
        (31.02, {"stop_s": 31.005}, False),
        (60.0, {"stop_s": 31.0}, False),
        (0.0, {"stop_s": 0.0, "read_bytes": 0, "write_bytes": 0}, True),
    ],
)
def test_the_window_ends_where_the_first_rank_stopped(
    window_s: float, changes: dict[str, Any], *, is_sound: bool
) -> None:
    reported = of_rank(window_s=window_s, **changes)
    assert (not reported) == is_sound
    assert (
        is_sound
        or f"window_s is {window_s}; by the ranks' stop_s it must be between" in reported[0]
    )


def test_the_ramp_is_no_part_of_the_window() -> None:
    plan = sound_plan(ramp_s=6.0)
    assert of_rank(plan, window_s=54.0) == []
    assert of_rank(plan, window_s=60.0)
    assert of_rank(plan, window_s=0.0, stop_s=5.0, read_bytes=0, write_bytes=0) == []


def test_the_slices_of_a_long_run_are_wider() -> None:
    plan = sound_plan(duration_s=None)
    assert of_rank(plan, window_s=80_000.0, stop_s=80_001.28, drained_s=80_010.0) == []


def test_every_rank_and_every_fault_is_named() -> None:
    plan = sound_plan(np=2)
    ranks = (rank_result(0, checked=-1, corrupt=-1), rank_result(1, host="n2", hit_blocks=9_999))
    record = replace(sound_record(plan, [rank_result(0), rank_result(1)]), ranks=watched(ranks))
    assert len(list(record_faults(record, plan))) == 5
    with pytest.raises(ResultError, match=r"contradicts itself: rank 0 on host .*checked is -1"):
        check_record(record, plan)


# --- an open loop ---------------------------------------------------------------------------

OPEN = sound_plan(request_rate=5.0, arrival="poisson")


@pytest.mark.parametrize(
    ("plan", "scheduling_lags", "changes", "is_sound"),
    [
        (OPEN, 200, {}, True),
        (OPEN, 201, {}, False),  # more than were offered
        (OPEN, 199, {}, False),  # less than have an answer
        (OPEN, 203, {"offered": 205, "dropped": 3, "request_censored": 3}, True),
        (OPEN, 202, {"offered": 205, "dropped": 3, "request_censored": 3}, False),
        (OPEN, 0, {}, False),
        (sound_plan(trace=REPLAY), 199, {}, False),
        (sound_plan(), 0, {}, True),
        (sound_plan(), 201, {}, False),
    ],
)
def test_whatever_has_an_answer_in_an_open_loop_has_arrived(
    plan: Plan, scheduling_lags: int, changes: dict[str, Any], *, is_sound: bool
) -> None:
    sound = sound_record(plan, [rank_result(0)])
    arrived = Histogram()
    arrived.record(np.full(scheduling_lags, 1_000, dtype=np.int64))
    record = replace(
        sound,
        ranks=watched([rank_result(0, **changes)]),
        histograms={**sound.histograms, "scheduling_lag": arrived},
    )
    reported = list(record_faults(record, plan))
    assert (not reported) == is_sound
    assert is_sound or reported[0].startswith(
        f"scheduling_lag.count is {scheduling_lags}; it must be between the "
    )


@pytest.mark.thorough
def test_what_an_open_loop_leaves_has_no_fault() -> None:
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios())
    plan = make_plan(np=2, duration_s=0.3, request_rate=400.0, arrival="gamma")
    record = record_of(plan, [run_rank(plan, registry, rank=rank) for rank in range(2)])
    check_record(record, plan)
    assert record.histograms["scheduling_lag"].count > 0


# --- a plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan", [sound_plan(), sound_plan(trace=REPLAY, duration_s=None), make_plan(ramp_s=0.1 + 0.2)]
)
def test_a_plan_that_options_led_to_has_no_fault(plan: Plan) -> None:
    assert list(plan_faults(plan)) == []


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("users", -4, "is -4; it must be at least 1"),
        ("users", 4.5, "it must be a whole number of at least 1"),
        ("users", "4", "is '4', a text; it must be a number"),
        ("users", None, "it must be a whole number of at least 1"),
        ("seed", -1, "is -1; it must be at least 0"),
        ("duration_s", -9.0, "it must be a duration"),
        ("duration_s", 0.0, "it must be above 0"),
        ("duration_s", math.nan, "it must be a duration"),
        ("ramp_s", -0.5, "it must be a duration"),
        ("context_scale", 0.0, "it must be above 0"),
        ("block_tokens", 0, "is 0; it must be at least 1"),
        ("tensor_parallel", 0, "is 0; it must be at least 1"),
        ("queue_depth", 0, "is 0; it must be at least 1"),
        ("generation_mode", "slow", "it must be one of none, fast, realistic"),
        ("io", "banana", "is 'banana'; it must be one of direct, buffered"),
        ("store", "auto", "for the backend file it must be file or slab"),
        ("store", None, "for the backend file it must be file or slab"),
        ("sync", "sometimes", "it must be one of none, data"),
        ("verify", "hm", "it must be one of off, sample, full"),
        ("data", "hm", "it must be one of normal, strict"),
        ("cores", "stolen", "it must be one of split, shared"),
        ("deadline_s", 0.0, "it must be above 0"),
        ("request_rate", 0.0, "it must be above 0"),
        ("arrival", "uniform", "it must be one of poisson, gamma"),
        ("need_blocks", -1, "it must be a whole number of at least 0"),
        ("trial", -1, "it must be a whole number of at least 0"),
        ("capacity_blocks", 1.5, "it must be a whole number of at least 1"),
    ],
)
def test_a_value_that_no_option_gives_is_named(field: str, value: object, rule: str) -> None:
    plan = sound_plan()
    object.__setattr__(plan, field, value)  # as read from a file that was written by hand
    (reported,) = plan_faults(plan)
    assert reported.startswith(f"plan.{field} is ")
    assert rule in reported


@pytest.mark.parametrize(
    ("field", "value"), [("speedup", -1.0), ("cycles", 0), ("limit", 0), ("speedup", None)]
)
def test_an_impossible_replay_is_named(field: str, value: object) -> None:
    plan = sound_plan(trace=replace(REPLAY, **{field: value}))  # type: ignore[arg-type]
    (reported,) = plan_faults(plan)
    assert reported.startswith(f"plan.trace.{field} is ")


def test_a_backend_of_a_plugin_is_no_fault() -> None:
    assert list(plan_faults(sound_plan(backend="s3"))) == []


def test_a_built_in_backend_is_what_it_is() -> None:
    plan = sound_plan(backend="memory")
    assert list(plan_faults(plan)) == []
    (reported,) = plan_faults(replace(plan, traits=replace(plan.traits, is_storage=True)))
    assert reported == "plan.traits are not those of the backend memory, which is built in"


def test_the_settings_of_a_backend_are_known_and_tell_no_secret() -> None:
    known = (
        BackendOption(name="endpoint", meaning="m"),
        BackendOption(name="secret_key", meaning="m", secret=True),
    )
    plan = sound_plan(backend="s3", traits=replace(OBJECTS, options=known))
    given = {"endpoint": "a", "secret_key": MASK}
    assert list(plan_faults(replace(plan, backend_options=given))) == []
    (reported,) = plan_faults(replace(plan, backend_options={"secret_key": "hunter2"}))
    assert (
        reported == "plan.backend_options.secret_key is a secret; it must be '***', not its value"
    )
    (reported,) = plan_faults(replace(plan, backend_options={"odd": "1"}))
    assert reported == "plan.backend_options has 'odd', which the backend s3 does not know"


def test_a_rank_measures_what_the_traits_say() -> None:
    plan = sound_plan(backend="memory")
    reported = of_rank(plan, is_storage=True)
    assert any("is_storage is True; by the traits of the backend" in text for text in reported)
    assert any("filesystem is there; by the traits" in text for text in reported)


def test_only_the_backend_file_has_stores() -> None:
    assert list(plan_faults(sound_plan(store="slab"))) == []
    (reported,) = plan_faults(sound_plan(backend="s3", store="slab"))
    assert reported == "plan.store is 'slab'; for the backend s3 it must be None"


# --- the series -----------------------------------------------------------------------------


def series_faults(window_s: float = 60.0, **changes: Any) -> list[str]:
    """The faults of a record whose series differs from a sound one in this."""
    plan, ranks = sound_plan(), [rank_result(0, stop_s=window_s)]
    record = sound_record(plan, ranks, window_s=window_s)
    return list(record_faults(replace(record, series=replace(record.series, **changes)), plan))


def test_a_series_has_the_whole_intervals_of_its_window() -> None:
    series = sound_record(sound_plan(), [rank_result(0)]).series
    assert series_faults() == []
    assert series_faults(59.9) == []
    reported = series_faults(moved_bytes=series.moved_bytes[1:], counts=series.counts[1:])
    assert reported[0] == "the series has 59 points; a window of 60.0 s has 60"


def test_a_series_is_not_coarser_than_it_has_to_be() -> None:
    series = sound_record(sound_plan(), [rank_result(0)]).series
    wide = {
        "interval_ns": 2 * series.interval_ns,
        "moved_bytes": series.moved_bytes.reshape(30, 2, len(KINDS)).sum(axis=1),
        "counts": series.counts.reshape(30, 2, len(KINDS), -1).sum(axis=1),
    }
    (reported,) = series_faults(**wide)
    assert reported.startswith("the series has intervals of 2 s; ")


def test_a_series_has_the_bytes_of_its_window() -> None:
    moved = sound_record(sound_plan(), [rank_result(0)]).series.moved_bytes
    for change in (1, -1):
        other = moved.copy()
        other[3, 1] += change
        (reported,) = series_faults(moved_bytes=other)
        assert "bytes of writes; it must be those of the window, which are 2048000" in reported


def test_bytes_behind_the_last_interval_may_be_missing_but_none_be_added() -> None:
    moved = sound_record(sound_plan(), [rank_result(0)], window_s=59.5).series.moved_bytes
    assert series_faults(59.5) == []
    other = moved.copy()
    other[3, 0] += 10**9
    (reported,) = series_faults(59.5, moved_bytes=other)
    assert "bytes of reads; it must be at most those of the window" in reported


def test_operations_of_one_size_move_so_much_each() -> None:
    plan = sound_plan()
    moved = {f"read_{what}bytes": 1_000 * plan.block_bytes for what in ("", "op_")}
    rank = rank_result(0, **moved, requested_read_bytes=1_000 * plan.block_bytes)
    record = sound_record(plan, [rank])
    assert list(record_faults(record, plan)) == []
    other = record.series.moved_bytes.copy()
    other[3, 0] += 1
    other[4, 0] -= 1
    forged = replace(record, series=replace(record.series, moved_bytes=other))
    reported = list(record_faults(forged, plan))
    assert [re.findall(r"interval \d", fault) for fault in reported] == [
        ["interval 3"],
        ["interval 4"],
    ]


# --- what surrounds a rank, and clocks ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"steal_s": -1.0}, "surroundings.steal_s is -1.0; it must be at least 0"),
        ({"throttled_periods": 9, "cpu_periods": 3}, "throttled_periods is 9; it must be at most"),
        ({"throttled_s": 1.0}, "throttled_s is 1.0; it must be 0, as no period was throttled"),
        ({"cpu_periods": None}, "some of a quota's counters only"),
    ],
)
def test_counters_of_the_surroundings_are_possible(changes: dict[str, Any], reported: str) -> None:
    plan = sound_plan()
    around = surroundings(**changes)
    (fault,) = record_faults(sound_record(plan, [rank_result(surroundings=around)]), plan)
    assert reported in fault


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"coordinator_s": 0.0}, "coordinator_s is 0.0; it must be above 0"),
        ({"controller_most_s": None}, "it must have both or none"),
        ({"controller_least_s": 61.0}, "controller_least_s is 61.0; it must be between 0 and"),
        ({"drift_rank": 1}, "drift_rank is 1; it must be one of the ranks"),
    ],
)
def test_clocks_of_a_record_are_possible(changes: dict[str, Any], reported: str) -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result()], clock=clock_record(**changes))
    (fault,) = record_faults(record, plan)
    assert reported in fault


# --- stores that are dropped, and a store that is shared ---------------------------------------


@pytest.mark.parametrize(
    ("plan", "changes", "said"),
    [
        ({}, {"dropped_blocks": 3}, "dropped_blocks is 3; with full_queue wait it must be null"),
        ({"full_queue": "drop"}, {}, "dropped_blocks is None; with full_queue drop it must be a"),
        (
            {"full_queue": "drop"},
            {"dropped_blocks": 0, "store_stall_s": 1.0},
            "store_stall_s is 1.0; with full_queue drop nobody waits",
        ),
    ],
)
def test_stores_are_dropped_where_the_plan_drops_them(
    plan: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    assert any(said in fault for fault in of_rank(sound_plan(**plan), **changes))


BUCKETS = sound_plan(engine="mooncake-bucket", io="buffered", capacity_blocks=1000)
OF_BUCKETS: dict[str, Any] = {
    "staged_hit_blocks": 300, "storage_hit_blocks": 700, "cached_blocks": 500, "evictions": 0,
    "cached_bytes": 500 * BUCKETS.stored_bytes,
    "io_engine": "threads", "io_engine_asynchronous": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"staged_hit_blocks": None, "storage_hit_blocks": 1_000}, "it must be a number"),
        ({"staged_hit_blocks": 301}, "700 (storage) + 301 (staged) blocks; together that must be"),
        ({"cached_blocks": 499}, "cached_blocks is 499; it must be a multiple of 500"),
        ({"evictions": 250}, "evictions is 250; it must be a multiple of 500"),
        ({"evictions": 250, "error": "it broke"}, None),
    ],
)
def test_what_is_said_of_buckets_agrees(changes: dict[str, Any], said: str | None) -> None:
    told = [each for each in of_rank(BUCKETS, **OF_BUCKETS | changes) if "rank 0" in each]
    assert (said is None and not told) or any(said and said in fault for fault in told)


def test_a_bucket_is_two_files_to_what_others_did_on_its_disk() -> None:
    """Not as many as it has objects: else others' writes would pass for ours."""
    rank = rank_result(0)
    in_one, each_its_file = (
        _most_beside_bytes(1_000, rank, plan) for plan in (BUCKETS, sound_plan())
    )
    assert each_its_file == 1_000 * 4 * 4096
    assert in_one == 2 * 2 * 4 * 4096 + 1_000 * 256


def test_without_buckets_nothing_is_staged() -> None:
    told = of_rank(sound_plan(), staged_hit_blocks=0)
    assert any("staged_hit_blocks is 0; with engine None it must be null" in each for each in told)


SHARED = sound_plan(sharing="run", lookup="all", publish="link")
OF_SHARED: dict[str, Any] = {
    "lookup_count": 0, "asked_objects": 0, "found_objects": 0, "own_hit_blocks": 1_000,
    "other_hit_blocks": 0, "others_objects": 0, "displaced_blocks": 0, "vanished_blocks": 0,
    "races_lost": 0,
    "stale_lookups": 0, "longest_stale_s": None, "lost_blocks": 0, "io_engine": "threads",
    "io_engine_asynchronous": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"other_hit_blocks": 1}, "own_hit_blocks and other_hit_blocks are 1001 together"),
        ({"own_hit_blocks": 400, "other_hit_blocks": 600}, "a rank that is alone with its store"),
        ({"races_lost": None}, "races_lost is None; with sharing run it must be a number"),
        ({"lost_blocks": 2}, "lost_blocks is 2; a rank that has lost some has an error"),
        ({"stale_lookups": 1}, "stale_lookups is 1 and longest_stale_s None"),
        ({"longest_stale_s": 0.1}, "stale_lookups is 0 and longest_stale_s 0.1"),
    ],
)
def test_what_ranks_say_of_a_shared_store_agrees(changes: dict[str, Any], said: str | None) -> None:
    told = [fault for fault in of_rank(SHARED, **OF_SHARED | changes) if fault.startswith("rank 0")]
    assert (said is None and not told) or any(said and said in fault for fault in told)


def test_without_a_shared_store_nobody_counts_one() -> None:
    told = of_rank(sound_plan(), own_hit_blocks=0)
    assert any("own_hit_blocks is 0; with sharing rank it must be null" in each for each in told)
