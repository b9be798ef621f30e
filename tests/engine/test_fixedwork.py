"""A fixed amount of work: what is decided is the same on any storage, however fast it is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.cache.index import Blocked, CacheIndex
from pytest_kvcache.cache.tiers import TIER_POLICIES, TierPolicy, TierStack
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import check_record, record_faults
from pytest_kvcache.workloads.fixedwork import FixedWork
from pytest_kvcache.workloads.scenarios import SYNTHETIC
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.cache.literal import requests_beside
from tests.engine.test_rereads import asked
from tests.factories import (
    PAGE,
    Bookkeeper,
    Script,
    make_plan,
    on_backend,
    record_of,
    registry_of,
    run_rank,
)
from tests.rig import Rig

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.cache.index import Beside
    from pytest_kvcache.plan.plan import Plan
    from tests.factories import Finished

Decisions = list[tuple[Any, ...]]


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> Decisions:
    """What every request asks for, and what is decided on it, in order."""
    return watch(monkeypatch)


def watch(monkeypatch: pytest.MonkeyPatch) -> Decisions:
    found: Decisions = []
    for kind in (CacheIndex, TierStack):
        admit = kind.admit

        def noting(self: Any, *args: Any, admit: Any = admit) -> Any:
            decided = admit(self, *args)
            if not isinstance(decided, Blocked):
                of = vars_of(decided)
                found.append((tuple(args[0]), *of))
            return decided

        monkeypatch.setattr(kind, "admit", noting)
    return found


def vars_of(decided: Any) -> list[Any]:
    """Names of the entries of all lists of an admission."""
    if hasattr(decided, "hits"):
        lists = (decided.hits, decided.beside_hits, decided.inserts, decided.victims)
    else:
        lists = (*decided.reads, *decided.beside_reads, *decided.writes, *decided.deletes)
    return [[entry.object_key for entry in entries] for entries in lists]


streams = st.lists(
    st.lists(st.tuples(requests_beside(most_keys=5), st.integers(0, 1)), max_size=6),
    min_size=1, max_size=4,
)  # fmt: skip


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(
    users=streams,
    capacities=st.lists(st.integers(1, 8), min_size=1, max_size=2),
    policy=st.sampled_from(TIER_POLICIES),
    speeds=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 99)), min_size=2, max_size=3),
)
def test_whatever_ends_when_the_same_is_decided_in_the_same_order(
    users: list[list[tuple[tuple[list[bytes], int, Beside], int]]],
    capacities: list[int],
    policy: TierPolicy,
    speeds: list[tuple[int, int]],
) -> None:
    runs = []
    for queue_depth, seed in speeds:
        with pytest.MonkeyPatch.context() as monkeypatch:
            found = watch(monkeypatch)
            turns = [
                [asked(user, request, rereads) for request, rereads in of_user]
                for user, of_user in enumerate(users)
            ]
            backends = [Bookkeeper(most) for most in capacities]
            for backend in backends:
                backend.prepare(PAGE)
            memory = {"cpu": (capacities[0], backends[0])} if len(capacities) > 1 else None
            rig = Rig(
                FixedWork(Script(turns), 99), backends[-1], memory=memory, policy=policy,
                payload=Payload(1, PAGE), capacity_blocks=capacities[-1], queue_depth=queue_depth,
                seed=seed,
            )  # fmt: skip
            rig.run()
            assert rig.loop.first_error is None
            runs.append(found)
    assert all(run == runs[0] for run in runs)
    assert len(runs[0]) == sum(map(len, users))


class Slow(MemoryBackend):
    """Every other read takes 4 ms, and every third write 3 ms."""

    calls = 0

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self.calls += 1
        time.sleep(0.003 * (self.calls % 3 == 0))
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.calls += 1
        time.sleep(0.004 * (self.calls % 2))
        super().get_into(key, offset, buffer)


def fixed_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "requests": 40, "duration_s": None, "users": 6, "capacity_blocks": 150,
    }  # fmt: skip
    return make_plan(**values | changes)


def done(plan: Plan, backend: Any) -> Finished:
    workloads = dict.fromkeys(SYNTHETIC, SyntheticFamily())
    registry = registry_of(backends={plan.backend: backend}, workloads=workloads)
    finished = run_rank(plan, registry)
    finished.rank.leave()
    return finished


@pytest.mark.thorough
@pytest.mark.parametrize(("tiered", "reread_factor"), [(False, 0), (True, 1)])
def test_the_same_requests_hit_and_displace_the_same_on_storages_of_very_different_speed(
    decisions: Decisions, tmp_path: Path, reread_factor: int, *, tiered: bool
) -> None:
    tiers = (MemoryTier(name="cpu", kind="memory", capacity_bytes=15 * PAGE),) if tiered else ()
    plan = fixed_plan(scenario="mixed", tiers=tiers, reread_factor=reread_factor)
    on_files = on_backend(replace(plan, cache_dir=str(tmp_path)), "file")
    runs = []
    for each, backend in (
        (plan, NullBackend),
        (replace(plan, queue_depth=1), NullBackend),
        (on_files, FileBackend),
        (on_backend(replace(plan, queue_depth=2), "memory"), Slow),
    ):
        decisions.clear()
        finished = done(each, backend)
        result = finished.result
        assert result.error is None
        assert (result.offered, result.completed, result.backlog) == (40, 40, 0)
        check_record(record_of(each, [finished]), each)
        names = (
            "prompt_blocks", "hit_blocks", "evictions", "cached_blocks", "storage_stored_blocks",
            "cpu_hit_blocks", "populated_blocks", "write_count", "read_count", "delete_count",
            "reread_count",
        )  # fmt: skip
        runs.append((list(decisions), {name: getattr(result, name) for name in names}))
    assert all(run == runs[0] for run in runs)
    assert runs[0][1]["evictions"] > 20
    assert 0 < runs[0][1]["hit_blocks"] < runs[0][1]["prompt_blocks"]


# --- what is reported -------------------------------------------------------------------------


def test_the_time_to_finish_is_from_the_first_request_to_the_end_of_the_last_one() -> None:
    plan = on_backend(fixed_plan(reread_factor=1), "memory")
    finished = done(plan, MemoryBackend)
    record = record_of(plan, [finished])
    other = replace(
        record.ranks[0], rank=1, start_s=record.ranks[0].start_s + 0.5,
        stop_s=record.ranks[0].stop_s + 2.0, drained_s=record.ranks[0].drained_s + 2.0,
    )  # fmt: skip
    both = replace(record, ranks=(*record.ranks, other))
    run = trial_of(both, plan).run
    assert run is not None
    assert run.s == pytest.approx(record.ranks[0].stop_s + 2.0 - record.ranks[0].start_s)
    moved = 2 * record.ranks[0].read_op_bytes / (1 << 30)
    assert run.read_gib_per_s == pytest.approx(moved / run.s)
    assert run.write_gib_per_s
    read = record.ranks[0]
    assert read.read_op_bytes == plan.object_bytes * read.read_count > 0


def test_work_that_is_not_done_or_that_time_ended_has_no_time_to_finish() -> None:
    plan = fixed_plan()
    record = record_of(plan, [done(plan, NullBackend)])
    assert trial_of(record, plan).run is not None
    timed = replace(plan, requests=None, duration_s=9.0)
    assert trial_of(record, timed).run is None
    failed = replace(record, ranks=(replace(record.ranks[0], error="gone"),))
    assert trial_of(failed, plan).run is None
    left = replace(record, ranks=(replace(record.ranks[0], backlog=1),))
    assert trial_of(left, plan).run is None


def test_a_rank_that_made_another_number_of_requests_contradicts_its_plan() -> None:
    plan = fixed_plan()
    record = record_of(plan, [done(plan, NullBackend)])
    assert list(record_faults(record, plan)) == []
    other = replace(plan, requests=41)
    faults = list(record_faults(record, other))
    assert [fault.split(": ")[1] for fault in faults] == [
        "offered is 40; by the plan it must be 41", "completed is 40; by the plan it must be 41"
    ]  # fmt: skip
