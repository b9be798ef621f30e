from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.protocol import MAX_CHUNK_BYTES, PAGE_BYTES
from pytest_kvcache.calibration import ArenaBackend, closed_loop
from pytest_kvcache.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results import headroom_of
from pytest_kvcache.scenarios import SYNTHETIC
from pytest_kvcache.verdicts import evaluate_trial
from pytest_kvcache.workloads.phases import build_workload
from pytest_kvcache.workloads.replay import ReplayFamily
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import (
    Family,
    Finished,
    Script,
    ask,
    make_plan,
    rank_result,
    registry_of,
    run_rank,
    sound_plan,
    sound_record,
    unchanged_interpreter,
)
from tests.traces import MOONCAKE, real_trace, small_trace

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.engine import Engine
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.results import Verdict

CHAT, TRACE = SyntheticFamily(SYNTHETIC["chat"]), ReplayFamily()


def run_on_disk(plan: Plan, registry: Registry | None = None, **how: Any) -> Finished:
    """Calibrate and run one rank, and leave nothing."""
    finished = run_rank(plan, registry or build_registry(), calibrates=True, **how)
    finished.rank.leave()
    return finished


def file_plan(path: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "backend": "file",
        "cache_dir": str(path),
        "users": 8,
        "queue_depth": 2,
    }
    return make_plan(**{**values, **changes})


@pytest.mark.parametrize("phase", ["both", "prefill", "decode"])
def test_a_rank_is_calibrated_without_touching_its_storage(tmp_path: Path, phase: str) -> None:
    before = threading.active_count()
    finished = run_on_disk(file_plan(tmp_path, phase=phase))
    result = finished.result
    assert result.error is None
    assert result.null_ops_per_s is not None
    assert result.memory_ops_per_s is not None
    assert result.null_ops_per_s > 0
    assert result.memory_ops_per_s > 0
    assert result.populated_blocks == finished.rank.index.present_blocks - (
        result.write_count - result.evictions
    )
    assert result.corrupt == 0
    assert threading.active_count() == before


def test_what_calibration_needed_is_given_back_before_the_run(tmp_path: Path) -> None:
    engines = []

    class Watched(Rank):
        def _make_engine(self, *args: Any, **kwargs: Any) -> Engine:
            engine = super()._make_engine(*args, **kwargs)
            engines.append(weakref.ref(engine))
            return engine

    rank = Watched(file_plan(tmp_path), 0, "localhost", None)
    with unchanged_interpreter():
        rank.set_up(build_registry())
        rank.calibrate(lambda: False)
        rank.close()
        rank.leave()
    assert [engine() for engine in engines] == [None, None]


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_what_is_no_storage_is_its_own_calibration(backend: str) -> None:
    result = run_rank(make_plan(backend=backend), build_registry(), calibrates=True).result
    assert (result.null_ops_per_s, result.memory_ops_per_s) == (None, None)


def test_a_trace_at_its_recorded_times_is_calibrated_without_them(tmp_path: Path) -> None:
    trace = real_trace(MOONCAKE).limit(200)
    plan = file_plan(tmp_path, scenario="trace", capacity_blocks=500, duration_s=0.2)
    result = run_on_disk(plan, trace=trace).result
    assert result.null_ops_per_s is not None
    assert result.null_ops_per_s > 100


def test_calibration_ends_when_it_is_told_to(tmp_path: Path) -> None:
    began_s = time.monotonic()
    finished = run_on_disk(file_plan(tmp_path, duration_s=60.0), tick=lambda: True)
    assert finished.result.error is None
    assert time.monotonic() - began_s < 30  # the window alone would be longer


def test_a_closed_loop_does_not_think() -> None:
    context = make_plan(users=2).context(0, None)
    plain, calm = CHAT.build(context), closed_loop(CHAT.build, context)
    assert calm is not None
    assert (calm.users, calm.open_loop) == (2, False)
    assert list(calm.population()) == list(plain.population())
    for user in (0, 1, 1):
        request, thought = calm.next_request(user), plain.next_request(user)
        assert thought is not None
        assert thought.think_s > 0
        assert request == thought._replace(think_s=0.0)


def test_a_trace_is_a_closed_loop_without_its_times() -> None:
    context = replace(
        make_plan().context(0, small_trace([[1], [2]])), trace_speedup=2.0, trace_cycles=1
    )
    assert TRACE.build(context).open_loop
    calm = closed_loop(lambda c: build_workload(TRACE, c, "both"), context)
    assert calm is not None
    found = [calm.next_request(0) for _ in range(3)]
    assert [request and request.arrival_ns for request in found] == [None, None, None]
    assert [request is None for request in found] == [False, False, True]


def test_a_workload_that_knows_only_its_own_schedule_is_not_calibrated(tmp_path: Path) -> None:
    script = Script([[ask(0, "a", arrival_ns=0)]], open_loop=True)
    registry = registry_of(backends=build_registry().backends, workloads={"chat": Family(script)})
    result = run_on_disk(file_plan(tmp_path), registry).result
    assert result.null_ops_per_s is None
    assert result.write_count == 1


ARENA = ArenaBackend()
PAGES = st.integers(1, MAX_CHUNK_BYTES // PAGE_BYTES)


@settings(deadline=None)
@given(key=st.text("0123456789abcdef.", min_size=1), first=st.integers(0, 10_000), pages=PAGES)
def test_every_transfer_has_its_place_in_the_arena(key: str, first: int, pages: int) -> None:
    wrote = np.random.default_rng(pages).bytes(pages * PAGE_BYTES)
    ARENA.put_from(key, first * PAGE_BYTES, memoryview(wrote))
    read = bytearray(len(wrote))
    ARENA.get_into(key, first * PAGE_BYTES, memoryview(read))
    assert read == wrote


# -- what follows from it ------------------------------------------------------------------


def judged(*null_ops_per_s: float | None) -> tuple[dict[str, Any], list[Verdict]]:
    """A trial of ranks that made 25 operations a second each."""
    plan = sound_plan(np=len(null_ops_per_s))
    ranks = [
        rank_result(number, null_ops_per_s=value) for number, value in enumerate(null_ops_per_s)
    ]
    data, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    return data["harness"], [v for v in verdicts if v.code == "CLIENT_BOUND"]


def test_headroom_is_what_was_possible_over_what_was_done() -> None:
    assert headroom_of(rank_result(null_ops_per_s=100.0), 60.0) == 4.0
    assert headroom_of(rank_result(null_ops_per_s=None), 60.0) is None
    assert headroom_of(rank_result(read_count=0, write_count=0), 60.0) is None


def test_one_rank_at_its_limit_makes_the_trial_invalid() -> None:
    harness, verdicts = judged(1_000.0, 45.0)
    assert harness["null_ops_per_s"] == 1_045.0
    assert harness["headroom"] == pytest.approx(1.8)
    assert harness["client_bound"] is True
    (verdict,) = verdicts
    assert verdict.severity == "invalid"
    assert "only 1.8 times as many" in verdict.text


def test_with_room_there_is_no_verdict() -> None:
    harness, verdicts = judged(1_000.0, 50.0)
    assert harness["headroom"] == pytest.approx(2.0)
    assert harness["client_bound"] is False
    assert verdicts == []


def test_a_rank_that_was_not_calibrated_leaves_the_headroom_unknown() -> None:
    harness, verdicts = judged(1_000.0, None)
    assert harness["null_ops_per_s"] is None
    assert harness["headroom"] is None
    assert harness["client_bound"] is None
    assert verdicts == []
