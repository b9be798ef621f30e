"""What surrounds a rank: how it is collected, and what is said of it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.results.verdicts.trial import evaluate_trial
from pytest_kvcache.system.cgroups import IoLimit, Throttling
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.system.preloads import Preload, Wrapper
from pytest_kvcache.system.surroundings import (
    Surroundings,
    SurroundingsWatch,
    _most_throttled,
    steal_s,
)
from tests.factories import (
    FILESYSTEM,
    clock_record,
    rank_result,
    sound_plan,
    sound_record,
    surroundings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.results.verdictcodes import Verdict

MIB = 1 << 20
OVERLAY = [{"name": "ext4", "kind": "filesystem", "end": "unseen", "note": "not seen from here"}]
SHIM = Wrapper(library="/opt/shim.so", functions=("fsync", "pread64"))
ASKED = Preload(name="shim.so", source="LD_PRELOAD", path="/opt/shim.so")


# --- collected ------------------------------------------------------------------------------


def test_a_look_spans_from_the_begin_to_the_first_look_after_the_window() -> None:
    watch = SurroundingsWatch()
    watch.until(time.monotonic_ns() + 30_000_000)
    watch.look()
    time.sleep(0.04)
    watch.look()
    time.sleep(0.2)
    watch.look()
    watch.end()
    found = watch.facts()
    assert 0.03 <= found.span_s < 0.2
    assert found.raw_span_s is None or abs(found.raw_span_s - found.span_s) < 0.01


def test_without_an_end_of_its_own_the_window_ends_when_told() -> None:
    watch = SurroundingsWatch()
    watch.until(None)
    time.sleep(0.02)
    watch.look()
    time.sleep(0.02)
    watch.end()
    assert watch.facts().span_s >= 0.04


def test_preloads_are_looked_for_before_anything_is_measured() -> None:
    watch = SurroundingsWatch()
    assert watch.preloads.wrappers is None
    watch.find_preloads()
    watch.begin()
    watch.until(None)
    watch.end()
    assert watch.facts().wrappers == ()


def group(periods: int, throttled: int, s: float) -> Throttling:
    return Throttling(periods=periods, throttled_periods=throttled, throttled_s=s)


def test_of_a_path_the_group_counts_that_was_stopped_for_longest() -> None:
    began = (group(10, 5, 1.0), group(100, 50, 9.0))
    ended = (group(20, 9, 3.0), group(110, 51, 9.5))
    assert _most_throttled(began, ended) == group(10, 4, 2.0)
    assert _most_throttled((), ()) is None
    assert _most_throttled(began, ended[:1]) is None


def test_steal_is_that_of_the_rank_s_own_cores(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 999 0 0\ncpu0 9 9 9 9 9 9 9 100 0 0\ncpu1 9 9 9 9 9 9 9 50 0 0\n"
        "cpu10 9 9 9 9 9 9 9 7 0 0\nintr 1\n"
    )
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert steal_s({0, 1}, str(stat)) == pytest.approx(150 * tick_s)
    assert steal_s({10}, str(stat)) == pytest.approx(7 * tick_s)
    assert steal_s({0, 2}, str(stat)) is None
    assert steal_s({0}, str(tmp_path / "absent")) is None


numbers = st.none() | st.floats(0, 1e6)
counts = st.none() | st.integers(0, 1 << 40)


@given(
    st.builds(
        Surroundings,
        span_s=st.floats(0, 1e6), raw_span_s=numbers, cpu_quota_cores=numbers, cpu_periods=counts,
        throttled_periods=counts, throttled_s=numbers, steal_s=numbers,
        memory_limit_bytes=counts, memory_limit_hits=counts, memory_pressure_s=numbers,
        group_memory_pressure_s=numbers,
        io_limits=st.just(()) | st.just((IoLimit(device="8:0", reads_per_s=3),)),
        preloaded=st.just(()) | st.just((ASKED,)),
        wrappers=st.none() | st.just(()) | st.just((SHIM,)),
    )
)  # fmt: skip
def test_facts_survive_json(facts: Surroundings) -> None:
    assert Surroundings.from_json(json.loads(json.dumps(facts.to_json()))) == facts


# --- what is said of it ---------------------------------------------------------------------


def reported(*ranks: RankResult, **changes: Any) -> list[Verdict]:
    plan = sound_plan(np=len(ranks))
    _data, verdicts = evaluate_trial(sound_record(plan, ranks, **changes), plan)
    return list(verdicts)


def around(rank: int = 0, host: str = "n1", **changes: Any) -> RankResult:
    return rank_result(rank, host=host, surroundings=surroundings(**changes))


def test_a_quiet_machine_is_not_mentioned() -> None:
    assert reported(around(), around(1, "n2")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"cpu_quota_cores": 0.2, "cpu_periods": 600, "throttled_periods": 590,
             "throttled_s": 48.0},
            ["CPU quota of 0.2 cores", "590 of 600 periods", "80% of the time", "raise the quota"],
        ),
        ({"steal_s": 3.0}, ["other guests", "5.0% of the time", "steal"]),
        ({"memory_pressure_s": 6.0}, ["waited for memory", "10.0% of the time"]),
        (
            {"group_memory_pressure_s": 6.0, "memory_limit_bytes": 250 * MIB},
            ["waited for memory", "its control group allows 250 MiB"],
        ),
        (
            {"memory_limit_hits": 120, "memory_limit_bytes": 250 * MIB},
            ["memory limit", "allows 250 MiB", "2 times per second"],
        ),
        (
            {"io_limits": (IoLimit(device="8:0", read_bytes_per_s=10 * MIB, writes_per_s=500),)},
            ["8:0: 10 MiB/s read, 500 writes/s", "that limit is measured"],
        ),
    ],
    ids=["quota", "steal", "pressure", "pressure of the group", "memory limit", "I/O limit"],
)  # fmt: skip
def test_what_held_ranks_up_is_reported_with_host_number_and_help(
    changes: dict[str, Any], words: list[str]
) -> None:
    (verdict,) = reported(around(), around(1, "n2", **changes))
    assert (verdict.code, verdict.severity) == ("THROTTLED", "warning")
    for word in ("host n2", *words):
        assert word in verdict.text


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_quota_cores": 0.5},
        {"cpu_quota_cores": 0.5, "cpu_periods": 600, "throttled_periods": 20, "throttled_s": 1.7},
        {"steal_s": 1.7},
        {"memory_pressure_s": 1.7},
        {"memory_limit_hits": 59, "memory_limit_bytes": MIB},
        dict.fromkeys(("cpu_periods", "throttled_periods", "throttled_s", "steal_s",
                       "memory_pressure_s")),
    ],
)  # fmt: skip
def test_what_no_percentile_can_show_is_recorded_only(changes: dict[str, Any]) -> None:
    assert reported(around(**changes)) == []


@pytest.mark.parametrize(
    ("device", "changes", "codes"),
    [
        ("8:0", {}, ["THROTTLED"]),
        ("8:16", {}, []),
        ("8:16", {"chain": OVERLAY}, ["THROTTLED"]),
        ("8:0", {"type": "nfs4"}, []),
    ],
    ids=["its own", "another", "maybe its own", "of this machine, not of the network"],
)
def test_an_io_limit_counts_where_it_may_be_on_the_blocks_device(
    device: str, changes: dict[str, Any], codes: list[str]
) -> None:
    limits = (IoLimit(device=device, read_bytes_per_s=MIB),)
    facts = FilesystemFacts.from_json(FILESYSTEM | changes)
    rank = replace(around(io_limits=limits), filesystem=facts)
    assert [v.code for v in reported(rank) if v.code == "THROTTLED"] == codes


def test_the_host_that_was_held_up_most_is_named_and_the_others_are_counted() -> None:
    ranks = [around(n, f"n{n}", steal_s=float(2 + n)) for n in range(3)]
    (verdict,) = reported(*ranks)
    assert verdict.text.startswith("host n2 (and 2 more) lost")


def test_steal_is_a_share_of_all_cores_of_a_rank() -> None:
    of_four = rank_result(0, cores=4, surroundings=surroundings(steal_s=6.0))
    assert reported(of_four) == []
    assert [v.code for v in reported(rank_result(0, surroundings=surroundings(steal_s=6.0)))]


def test_a_wrapper_is_invalid_and_names_rank_library_and_functions() -> None:
    preload = {"preloaded": (ASKED,), "wrappers": (SHIM,)}
    (verdict,) = reported(around(), around(1, "n2", **preload), around(2, "n2", **preload))
    assert (verdict.code, verdict.severity) == ("PRELOADED", "invalid")
    for word in ("rank 1 on host n2 (and 1 more)", "/opt/shim.so (LD_PRELOAD)", "fsync, pread64"):
        assert word in verdict.text


def test_an_allocator_is_recorded_only() -> None:
    preload = Preload(name="libjemalloc.so.2", source="LD_PRELOAD", path="/lib/libjemalloc.so.2")
    assert reported(around(preloaded=(preload,))) == []


@pytest.mark.parametrize(
    ("rank", "clock", "words"),
    [
        ({"span_s": 60.0, "raw_span_s": 120.0}, {}, "rank 0 on host n1 measured 60.00 s"),
        ({"span_s": 3.0, "raw_span_s": 3.1}, {}, "measured 3.00 s"),
        (
            {},
            {"coordinator_s": 3.3, "controller_least_s": 6.5, "controller_most_s": 6.7},
            "controller's 6.50 to 6.70 s",
        ),
        (
            {},
            {"coordinator_s": 11.0, "controller_least_s": 12.1, "controller_most_s": 12.3},
            "took 11.00 s",
        ),
        (
            {},
            {"coordinator_s": 20.0, "controller_least_s": 9.9, "controller_most_s": 10.1},
            "took 20.00 s",
        ),
        ({}, {"drift_s": -30.2}, "clock of host n1 (rank 0) went -30.20 s"),
    ],
    ids=["half speed", "3 %", "all ranks at half speed", "0.9", "double speed", "one host"],
)
def test_clocks_that_disagree_invalidate(
    rank: dict[str, Any], clock: dict[str, Any], words: str
) -> None:
    (verdict,) = reported(around(**rank), clock=clock_record(**clock))
    assert (verdict.code, verdict.severity) == ("CLOCK", "invalid")
    assert words in verdict.text


@pytest.mark.parametrize(
    ("rank", "clock"),
    [
        ({"raw_span_s": 60.5}, {}),
        ({"span_s": 0.2, "raw_span_s": 0.24}, {}),
        ({"raw_span_s": None}, {"controller_least_s": None, "controller_most_s": None}),
        ({}, {"controller_least_s": 55.0, "controller_most_s": 70.0}),
        ({}, {"drift_s": 0.5}),
    ],
    ids=["slewed", "readings", "unknown", "a controller that looked late", "another host"],
)
def test_what_readings_and_time_services_are_off_is_no_fault(
    rank: dict[str, Any], clock: dict[str, Any]
) -> None:
    assert reported(around(**rank), clock=clock_record(**clock)) == []
