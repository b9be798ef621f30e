from __future__ import annotations

import gc
import json
import re
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
from pytest_kvcache.backends.traits import BackendOption
from pytest_kvcache.errors import StorageError
from pytest_kvcache.masking import MASK, Secrets
from pytest_kvcache.measure.recorder import Recorder, Window
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.plan.interference import without_stores
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.ranks.report import average_queue_depth
from pytest_kvcache.ranks.worker import _set_up
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.record import RankResult
from pytest_kvcache.workloads.openloop import arrival_offsets_ns
from tests.factories import (
    HOST,
    OBJECTS,
    PAGE,
    SMALL,
    Bookkeeper,
    Family,
    Finished,
    Script,
    ask,
    key_of,
    make_plan,
    registry_of,
    run_rank,
    tireless_scenarios,
    traits_of,
    unchanged_interpreter,
)
from tests.recordings import small_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.measure.stalls import Stall
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with unchanged_interpreter():
        yield


def with_backend(backend: Backend | Callable[[], Backend], turns: int | None = None) -> Registry:
    """The known scenarios without think time, on this backend as the memory backend."""
    factory = backend if isinstance(backend, type) else lambda: backend
    return registry_of(
        backends={"memory": factory},  # type: ignore[dict-item]  # one or the other
        workloads={**build_registry().workloads, **tireless_scenarios(turns)},
    )


def file_plan(tmp_path: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {"backend": "file", "cache_dir": str(tmp_path), "keep": True}
    return make_plan(**values | changes)


# -- what a rank reports -------------------------------------------------------------------


@pytest.fixture(scope="module", params=["file", "slab"])
def on_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A rank that ran on files until its users fell silent, with a ramp; in either store."""
    plan = file_plan(
        tmp_path_factory.mktemp("cache"), ramp_s=0.01, duration_s=None, users=8,
        capacity_blocks=300, store=request.param,
    )  # fmt: skip
    registry = registry_of(backends={"file": StoreBackend}, workloads=tireless_scenarios(30))
    return run_rank(plan, registry)


@pytest.mark.thorough
def test_a_rank_reports_what_its_recorder_and_its_index_hold(on_files: Finished) -> None:
    rank, result = on_files.rank, on_files.result
    assert rank.engine is not None
    sums = rank.recorder.ledger.sums(0, on_files.window_ns)
    block = rank.plan.block_bytes
    assert (result.error, result.cleanup_error) == (None, None)
    assert (result.rank, result.host) == (0, HOST)
    assert 0 < result.read_count == on_files.histograms["read"].count
    assert 0 < result.write_count == on_files.histograms["write"].count
    assert result.read_bytes == sums["read_bytes"] > 0
    assert result.write_bytes == sums["write_bytes"] > 0
    assert result.read_op_bytes == result.read_count * block
    assert result.write_op_bytes == result.write_count * block
    assert result.device_bytes == result.read_op_bytes + result.write_op_bytes
    assert on_files.histograms["queue"].count == result.read_count + result.write_count
    assert (result.completed_in_window, result.prompt_tokens, result.generated_tokens) == (
        sums["requests"],
        sums["prompt_tokens"],
        sums["output_tokens"],
    )
    assert result.first_half_blocks + result.second_half_blocks == sums["prompt_blocks"]
    assert result.first_half_hits + result.second_half_hits == sums["hit_blocks"]
    assert 0 < result.first_half_blocks < sums["prompt_blocks"]
    assert 0 < result.hit_blocks <= result.prompt_blocks
    assert 0 < result.hit_tokens <= result.arrived_tokens
    assert result.cached_blocks == rank.index.present_blocks
    assert 0 < result.populated_blocks <= result.cached_blocks
    assert result.checked * PAGE >= result.requested_read_bytes > 0
    assert result.corrupt == 0
    assert result.average_queue_depth is not None
    assert 0 < result.average_queue_depth <= rank.plan.queue_depth
    assert 0 <= result.start_s < result.stop_s <= result.drained_s


def test_the_window_begins_after_the_ramp(on_files: Finished) -> None:
    assert on_files.rank.window_begin_ns == on_files.origin_ns + 10_000_000
    assert on_files.result.stop_s == (on_files.rank.stopped_ns - on_files.origin_ns) / 1e9


def test_every_offered_request_is_completed_dropped_or_backlog(on_files: Finished) -> None:
    result = on_files.result
    assert result.offered == result.completed + result.dropped + result.backlog


def test_a_rank_on_files_knows_its_filesystem_and_its_bytes(on_files: Finished) -> None:
    result = on_files.result
    assert result.filesystem is not None
    assert result.filesystem.host == HOST
    assert result.filesystem.path == on_files.rank.plan.cache_dir
    assert result.io_mode in ("direct", "buffered")
    assert (result.io_mode == "direct") == (result.io_note is None)
    assert result.is_storage
    assert result.device_read_bytes is None or result.device_read_bytes >= 0


def test_a_ranks_result_survives_its_json(on_files: Finished) -> None:
    assert (
        RankResult.from_json(json.loads(json.dumps(on_files.result.to_json()))) == on_files.result
    )


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_issues_its_share_of_the_rate_in_ramp_and_window(rank: int) -> None:
    plan = make_plan(np=2, ramp_s=0.1, duration_s=0.4, request_rate=800.0, arrival="poisson")
    result = run_rank(plan, build_registry(), rank=rank).result
    offsets_ns = arrival_offsets_ns(
        per_s=400.0, arrival="poisson", span_s=0.5, identity=f"42/0/{rank}/arrivals"
    )
    assert result.offered == len(offsets_ns) - 1
    assert result.offered == pytest.approx(200, abs=60)
    assert result.store_stall_s == 0


def test_a_rank_without_storage_says_so() -> None:
    result = run_rank(make_plan(duration_s=0.05), build_registry()).result
    assert (result.io_mode, result.is_storage, result.filesystem) == ("none", False, None)
    assert result.checked == 0


def test_what_no_operation_measured_is_absent_and_not_zero() -> None:
    registry = registry_of(backends={"null": NullBackend}, workloads={"none": Family(Script([[]]))})
    finished = run_rank(make_plan(scenario="none", duration_s=None), registry)
    assert (finished.result.read_p95_ms, finished.result.write_p95_ms) == (None, None)
    assert all(finished.histograms[name].count == 0 for name in SECTIONS)


def test_a_rank_in_a_window_of_no_length_has_no_mean_depth() -> None:
    recorder = Recorder()
    recorder.open_window(Window(5, 5))
    assert average_queue_depth(recorder, 5, 9) is None


# -- the interpreter -----------------------------------------------------------------------


def test_the_collector_is_off_in_the_window_and_on_again_after_it() -> None:
    during: list[tuple[bool, float]] = []

    class Spying(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            during.append((gc.isenabled(), sys.getswitchinterval()))

    registry = registry_of(backends={"null": Spying}, workloads=tireless_scenarios(3))
    rank = Rank(make_plan(duration_s=None), 0, HOST, None)
    rank.set_up(registry)
    rank.populate(lambda: False)
    rank.run(0, lambda: False)
    assert gc.isenabled()
    rank.close()
    assert {enabled for enabled, _ in during} == {False}
    assert all(interval_s < 1e-4 for _, interval_s in during)


# -- a fallback to buffered files ------------------------------------------------------------


class Refusing(Bookkeeper):
    """Storage whose filesystem takes no direct I/O."""

    plans: list[BackendPlan]
    closed = 0

    def open(self, plan: BackendPlan) -> BackendFacts:
        super().open(plan)
        self.plans.append(plan)
        note = "refused: buffered instead" if plan.io == "direct" else None
        return BackendFacts(io_mode="buffered", io_note=note)

    def close(self) -> None:
        type(self).closed += 1


@pytest.mark.parametrize(
    ("io", "origin", "sync"),
    [("direct", "default", "data"), ("direct", "ini", "none"), ("buffered", "default", "none")],
)
def test_a_fallback_to_buffered_files_brings_its_sync(io: str, origin: str, sync: str) -> None:
    made: list[Refusing] = []

    class Fresh(Refusing):
        plans: list[BackendPlan] = []  # noqa: RUF012  shared on purpose

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    plan = make_plan(backend="memory", io=io, duration_s=0.02, origins={"sync": origin})
    result = run_rank(plan, with_backend(Fresh)).result
    assert (result.error, result.io_mode, result.sync) == (None, "buffered", sync)
    assert (result.io_note is not None) == (io == "direct")
    used = made[-1]
    assert Fresh.plans[-1].sync == sync
    assert used.counts["put"] > 0
    assert used.counts["sync"] == (used.counts["put"] if sync == "data" else 0)
    assert used.breaches == []
    assert Fresh.closed == len(made) == (2 if sync == "data" else 1)


@pytest.mark.thorough
def test_slabs_that_are_opened_again_for_the_fallback_are_made_anew(tmp_path: Path) -> None:
    plan = file_plan(tmp_path, store="slab", duration_s=0.02, origins={"sync": "default"})
    registry = registry_of(
        backends={"file": lambda: SlabBackend(probe=lambda _: "Invalid argument")},
        workloads=tireless_scenarios(10),
    )
    result = run_rank(plan, registry).result
    assert (result.error, result.io_mode, result.sync) == (None, "buffered", "data")
    assert "refuses direct I/O (Invalid argument)" in (result.io_note or "")


@pytest.mark.thorough
def test_the_calls_of_an_engine_are_not_synced_where_direct_io_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pytest_kvcache.backends.posix.backend.EngineFiles",
        partial(EngineFiles, probe=lambda _path: "Invalid argument"),
    )
    plan = file_plan(
        tmp_path, publish="rename", duration_s=None, requests=20, origins={"sync": "default"}
    )
    registry = registry_of(backends={"file": StoreBackend}, workloads=tireless_scenarios(10))
    result = run_rank(plan, registry).result
    assert (result.error, result.io_mode, result.sync) == (None, "buffered", "none")
    assert result.write_count > 0


# -- pauses --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_rank_that_does_not_look_around_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    pauses: list[tuple[int, int]] = []

    def found_stalls(
        _recorder: Recorder, _window_ns: int, pauses_ns: tuple[tuple[int, int], ...] = ()
    ) -> tuple[Stall, ...]:
        pauses.extend(pauses_ns)
        return ()

    monkeypatch.setattr(Recorder, "found_stalls", found_stalls)

    def tick() -> bool:
        looks.append(1)
        if len(looks) == 2:
            time.sleep(0.4)
        return len(looks) == 3

    rank = Rank(make_plan(duration_s=60.0), 0, HOST, None)
    result = finished(rank, build_registry(), tick).result
    assert result.longest_pause_s is not None
    assert result.longest_pause_s >= 0.4
    assert max(end - begin for begin, end in pauses) == round(result.longest_pause_s * 1e9)


def test_a_pause_in_the_ramp_is_none_of_the_window() -> None:
    plan = make_plan(ramp_s=60.0, duration_s=0.1)
    result = run_rank(plan, build_registry(), tick=lambda: True).result
    assert result.longest_pause_s is None


# -- the directory ---------------------------------------------------------------------------


def test_a_rank_whose_path_leads_elsewhere_fails_though_no_operation_did(tmp_path: Path) -> None:
    own = tmp_path / "kvcache-run" / "rank-0"

    def tick() -> bool:
        own.rename(tmp_path / "away")
        own.mkdir()
        return True

    registry = registry_of(backends={"file": Bookkeeper}, workloads=tireless_scenarios())
    rank = Rank(file_plan(tmp_path, duration_s=60.0), 0, HOST, None)
    result = finished(rank, registry, tick).result
    assert result.read_failed + result.write_failed == 0
    assert str(result.error).startswith(f"{own} on {HOST} is another directory than at the start")


def finished(rank: Rank, registry: Registry, tick: Callable[[], bool]) -> Finished:
    """A rank that ran with this tick in its window."""
    with unchanged_interpreter():
        rank.set_up(registry)
        rank.populate(lambda: False)
        origin_ns = time.monotonic_ns()
        rank.run(origin_ns, tick)
        return Finished(rank, origin_ns, rank.close())


@pytest.mark.thorough
def test_a_rank_whose_directory_is_gone_says_so_with_the_first_failure(tmp_path: Path) -> None:
    def tick() -> bool:
        shutil.rmtree(tmp_path / "kvcache-run", ignore_errors=True)
        return False

    registry = registry_of(backends={"file": FileBackend}, workloads=tireless_scenarios())
    plan = file_plan(tmp_path, duration_s=5.0, users=8, keep=False)
    rank = Rank(plan, 0, HOST, None)
    error = str(finished(rank, registry, tick).result.error)
    assert re.match(rf"{HOST}: can't \w+ .*: No such file or directory; .* is gone: it was", error)
    rank.leave()


def test_a_directory_that_goes_during_the_population_is_reported(tmp_path: Path) -> None:
    class Removed(FileBackend):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            shutil.rmtree(tmp_path / "kvcache-run", ignore_errors=True)
            super().put_from(key, offset, buffer)

    registry = registry_of(backends={"file": Removed}, workloads=tireless_scenarios())
    with pytest.raises(StorageError, match=r"No such file or directory; .* is gone: it was"):
        run_rank(file_plan(tmp_path), registry)


# -- the agreed start ------------------------------------------------------------------------


def test_nothing_is_issued_before_the_agreed_start() -> None:
    begun: list[int] = []

    class Spying(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            begun.append(time.monotonic_ns())

    registry = registry_of(backends={"null": Spying}, workloads=tireless_scenarios(2))
    rank = Rank(make_plan(duration_s=None), 0, HOST, None)
    rank.set_up(registry)
    rank.populate(lambda: False)
    agreed_ns = time.monotonic_ns() + 50_000_000
    rank.run(agreed_ns, lambda: False)
    rank.close()
    assert begun
    assert agreed_ns <= rank.start_ns <= min(begun)
    assert rank.window_begin_ns == agreed_ns


# -- data ----------------------------------------------------------------------------------


def contents(rank: int, trial: int) -> set[bytes]:
    """All pages that a rank ever put in a trial."""
    pages: set[bytes] = set()

    class Kept(Bookkeeper):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            super().put_from(key, offset, buffer)
            pages.update(bytes(buffer[at : at + PAGE]) for at in range(0, len(buffer), PAGE))

    plan = make_plan(
        backend="memory", scenario="agent", duration_s=0.02, users=3, trial=trial, block_tokens=64
    )
    finished = run_rank(plan, with_backend(Kept()), rank=rank)
    assert finished.result.error is None
    assert finished.result.populated_blocks <= len(pages)
    return pages


def test_no_two_pages_of_different_ranks_or_trials_are_equal() -> None:
    # Users of an agent share their long prompt, whose keys are the same on every rank.
    one, other_rank, other_trial = contents(0, 0), contents(1, 0), contents(0, 1)
    assert one.isdisjoint(other_rank)
    assert one.isdisjoint(other_trial)
    bodies = {page[16:] for page in one}
    assert bodies.isdisjoint(page[16:] for page in other_rank | other_trial)


def test_no_two_pages_of_a_rank_are_equal() -> None:
    puts: list[bytes] = []

    class Kept(Bookkeeper):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            super().put_from(key, offset, buffer)
            puts.append(bytes(buffer))

    plan = make_plan(backend="memory", duration_s=0.5, capacity_blocks=40)
    run_rank(plan, with_backend(Kept()))
    assert len(puts) > 10
    assert len(set(puts)) == len(puts)


# -- capacity ------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["chat", "mixed"])
def test_the_cap_of_the_plan_is_the_cap_of_the_storage(scenario: str) -> None:
    backend = Bookkeeper(limit=30)
    plan = make_plan(
        backend="memory", scenario=scenario, users=8, capacity_blocks=30, duration_s=None
    )
    result = run_rank(plan, with_backend(backend, turns=10)).result
    assert backend.breaches == []
    assert result.evictions > 0
    assert result.cached_blocks <= 30


@pytest.mark.thorough
@pytest.mark.parametrize(
    "tiers", [(), (MemoryTier(name="cpu", capacity_bytes=64 << 20, kind="index"),)]
)
def test_an_object_has_the_room_on_the_storage_that_its_backend_pads_it_to(
    tiers: tuple[MemoryTier, ...],
) -> None:
    traits = replace(traits_of("memory"), alignment_bytes=1 << 20)
    plan = make_plan(backend="memory", traits=traits, tiers=tiers)
    storage = Rank(plan, 0, "n1", None).index
    assert storage.padded_bytes(plan.block_bytes) == plan.stored_bytes
    assert plan.stored_bytes % (1 << 20) == 0 < plan.block_bytes % (1 << 20)


def test_a_rank_never_wants_more_slabs_than_its_capacity(tmp_path: Path) -> None:
    slabs: list[SlabBackend] = []

    def make() -> SlabBackend:
        slabs.append(SlabBackend())
        return slabs[-1]

    plan = file_plan(tmp_path, store="slab", users=8, capacity_blocks=30, duration_s=None)
    registry = registry_of(backends={"file": make}, workloads=tireless_scenarios(10))
    result = run_rank(plan, registry).result
    (backend,) = slabs
    assert (result.error, result.corrupt) == (None, 0)
    assert result.evictions > 0
    assert backend.allocator.allocated == result.cached_blocks
    assert backend.allocator.allocated + backend.allocator.free == 30


# -- failures ------------------------------------------------------------------------------


class FailsAt(Bookkeeper):
    """Raises at the put or the get of that number."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__()
        self._what = what
        self._number = number

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        super().put_from(key, offset, buffer)
        self._fail("put")

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        super().get_into(key, offset, buffer)
        self._fail("get")

    def _fail(self, what: str) -> None:
        if what == self._what and self.counts[what] == self._number:
            raise StorageError(f"{HOST}: {what} number {self._number} failed")


def test_a_failed_operation_ends_the_rank_early_and_is_reported() -> None:
    backend = FailsAt("get", 200)
    plan = make_plan(backend="memory", duration_s=600.0, queue_depth=1)
    result = run_rank(plan, with_backend(backend)).result
    assert result.error == f"{HOST}: get number 200 failed"
    assert result.stop_s < 600
    assert (result.read_failed, result.corrupt) == (1, 0)
    assert result.read_count == result.checked == backend.counts["get"] - 1
    assert result.read_op_bytes == result.read_count * plan.block_bytes
    assert result.requested_read_bytes == result.read_count * plan.stored_bytes


def test_a_failed_population_is_a_storage_error() -> None:
    plan = make_plan(backend="memory", queue_depth=1)  # one at a time, so that they are counted
    with pytest.raises(StorageError, match="put number 5 failed"):
        run_rank(plan, with_backend(FailsAt("put", 5)))


def test_a_backend_that_can_not_open_is_a_storage_error() -> None:
    class Closed(Bookkeeper):
        def open(self, plan: BackendPlan) -> BackendFacts:
            raise StorageError(f"{plan.host}: can't prepare")

    with pytest.raises(StorageError, match="can't prepare"):
        run_rank(make_plan(backend="memory"), with_backend(Closed()))


def test_trouble_in_cleaning_up_is_reported_and_not_raised() -> None:
    class Stuck(Bookkeeper):
        def close(self) -> None:
            raise StorageError(f"{HOST}: can't close")

    plan = make_plan(backend="memory", duration_s=0.02)
    result = run_rank(plan, with_backend(Stuck())).result
    assert result.cleanup_error == f"{HOST}: can't close"
    assert result.error is None


# -- files ---------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_rank_owns_a_directory_and_removes_it(tmp_path: Path) -> None:
    plan = file_plan(tmp_path, keep=False, duration_s=0.05)
    rank = Rank(plan, 0, HOST, None)
    try:
        rank.set_up(build_registry())
        assert [path.name for path in tmp_path.glob("*/rank-*")] == ["rank-0"]
        rank.populate(lambda: False)
        rank.run(0, lambda: False)
        assert any(path.is_file() for path in tmp_path.glob("kvcache-run/rank-0/*/*"))
        assert rank.close() is None
        assert list(tmp_path.glob("*/rank-*")) == []
    finally:
        rank.leave()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_what_is_to_be_kept_is_kept(tmp_path: Path) -> None:
    result = run_rank(file_plan(tmp_path, duration_s=0.05), build_registry()).result
    files = [path for path in tmp_path.glob("kvcache-run/rank-0/*/*") if path.is_file()]
    assert len(files) == result.cached_blocks


@pytest.mark.thorough
def test_every_trial_begins_with_an_empty_directory(tmp_path: Path) -> None:
    plan = file_plan(tmp_path, duration_s=0.05)
    run_rank(plan, build_registry())
    again = run_rank(replace(plan, trial=1), build_registry()).result
    files = [path for path in tmp_path.glob("kvcache-run/rank-0/*/*") if path.is_file()]
    assert again.error is None
    assert len(files) == again.cached_blocks


# -- what a backend and a workload are given -----------------------------------------------


def first_object(plan: Plan, rank: int = 0) -> bytes:
    """What a rank stores first, on one thread."""
    contents: list[bytes] = []

    class First(Bookkeeper):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            contents.append(bytes(buffer))
            super().put_from(key, offset, buffer)

    run_rank(plan, with_backend(First()), rank=rank)
    return contents[0]


@pytest.mark.thorough
@pytest.mark.parametrize("data", ["normal", "strict"])
def test_every_rank_trial_and_run_stores_data_of_its_own(data: str) -> None:
    plan = make_plan(backend="memory", duration_s=0.01, queue_depth=1, data=data, np=2)
    base = first_object(plan)
    assert first_object(plan) == base
    others = [
        first_object(plan, rank=1),
        first_object(replace(plan, trial=1)),
        first_object(replace(plan, run_id="another")),
        first_object(replace(plan, seed=43)),
    ]
    for other in others:  # not even half a page of it
        assert not {base[at : at + 2048] for at in range(0, PAGE, 2048)} & {
            other[at : at + 2048] for at in range(0, PAGE, 2048)
        }


def test_a_launch_without_stores_has_other_data_than_the_one_with_them() -> None:
    plan = make_plan(
        backend="memory", duration_s=None, requests=5, queue_depth=1, interference="with-stores"
    )
    base, alone = first_object(plan), first_object(without_stores(plan))
    assert base[PAGE // 2 :] != alone[PAGE // 2 :]


def test_a_rank_loads_the_same_with_stores_beside_as_without() -> None:
    plan = make_plan(
        backend="memory", duration_s=None, requests=40, interference="with-stores", users=4
    )
    found = [
        run_rank(each, with_backend(Bookkeeper())).result for each in (plan, without_stores(plan))
    ]
    loaded, alone = found
    assert [result.error for result in found] == [None, None]
    assert (loaded.read_count, loaded.read_op_bytes) == (alone.read_count, alone.read_op_bytes)
    assert loaded.hit_blocks == loaded.prompt_blocks == alone.hit_blocks > 0
    assert loaded.write_count > 0
    assert alone.write_count == 0


def test_strict_data_is_other_data_and_verifies_too() -> None:
    plan = make_plan(backend="memory", duration_s=None, requests=20, queue_depth=1)
    strict = replace(plan, data="strict")
    assert first_object(strict)[PAGE // 2 :] != first_object(plan)[PAGE // 2 :]
    result = run_rank(strict, with_backend(Bookkeeper())).result
    assert (result.error, result.corrupt) == (None, 0)
    assert result.checked > 0


def test_a_backend_without_data_has_nothing_to_make_or_verify() -> None:
    plan = make_plan(backend="null", duration_s=None, requests=20, data="strict", verify="full")
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios())
    result = run_rank(plan, registry).result
    assert (result.error, result.checked, result.corrupt) == (None, 0, 0)
    assert result.read_count > 0


def test_the_backend_is_told_what_the_plan_says() -> None:
    reported: list[BackendPlan] = []

    class Reporting(Bookkeeper):
        def open(self, plan: BackendPlan) -> BackendFacts:
            reported.append(plan)
            return super().open(plan)

    plan = make_plan(
        backend="memory",
        io="buffered",
        sync="data",
        duration_s=0.02,
        block_tokens=6,
        model=replace(SMALL, head_dim=350),
    )
    backend = Reporting()
    assert run_rank(plan, with_backend(backend)).result.error is None
    assert plan.block_bytes == 4_200
    assert reported == [
        BackendPlan(
            directory=None,
            object_bytes=8192,
            chunk_bytes=8192,
            io="buffered",
            sync="data",
            host=HOST,
            namespace="kvcache-run/trial-1/rank-0",
            capacity_objects=10_000,
            store=None,
        )
    ]
    assert backend.counts["sync"] == backend.counts["put"] > 0
    assert backend.breaches == []


def test_a_trace_starts_with_an_empty_cache_and_ends_with_its_last_store() -> None:
    backend = Bookkeeper()
    trace = small_trace([[1, 2, 3], [1, 2, 4], [5]])
    plan = make_plan(backend="memory", scenario="trace", duration_s=None, users=1)
    result = run_rank(plan, with_backend(backend), trace=trace).result
    assert (result.populated_blocks, result.offered, result.completed) == (0, 3, 3)
    assert (result.prompt_blocks, result.hit_blocks) == (7, 2)
    assert len(backend.objects) == result.cached_blocks == 5
    keys = {name.partition(".")[0] for name in backend.objects}
    assert keys == {number.to_bytes(16, "big").hex() for number in range(1, 6)}


def test_progress_counts_from_the_start_of_the_run() -> None:
    registry = registry_of(
        backends={"memory": Bookkeeper},
        workloads={
            "twice": Family(Script([[ask(0, "a", "b")]], population=[ask(0, "a"), ask(0, "a")]))
        },
    )
    rank = Rank(make_plan(backend="memory", scenario="twice", duration_s=None), 0, HOST, None)
    assert rank.progress() == {"error": None}
    rank.set_up(registry)
    rank.populate(lambda: False)
    rank.run(0, lambda: False)
    rank.close()
    progress = rank.progress()
    assert (progress["prompt_blocks"], progress["hit_blocks"]) == (2, 1)
    assert (progress["completed"], progress["cached_bytes"]) == (1, 2 * rank.plan.stored_bytes)
    assert key_of("a") in rank.index._entries


# -- what the backend is told, and what it is like -------------------------------------------

SETTINGS = (
    BackendOption(name="endpoint", meaning="m"),
    BackendOption(name="secret_key", meaning="m", secret=True),
)


class Whole(Bookkeeper):
    """A store of whole objects."""

    opened: BackendPlan

    def open(self, plan: BackendPlan) -> BackendFacts:
        self.opened = plan
        return super().open(plan)


def objects_plan(**changes: Any) -> Plan:
    return make_plan(**{"backend": "mine", "duration_s": 0.02, "capacity_blocks": 40, **changes})


@pytest.mark.parametrize("keep", [False, True])
def test_a_store_of_whole_objects_is_left_empty_unless_its_data_is_kept(*, keep: bool) -> None:
    store = Whole()
    registry = registry_of(backends={"mine": lambda: store}, workloads=tireless_scenarios(20))
    plan = objects_plan(keep=keep, duration_s=None)  # until its users fall silent
    assert run_rank(plan, registry).result.error is None
    assert store.breaches == []
    assert store.opened.directory is None
    assert store.opened.chunk_bytes == plan.object_stored_bytes
    assert store.opened.namespace == "kvcache-run/trial-1/rank-0"
    left = store.counts["put"] - store.counts["delete"]
    assert (left > 0) == keep


def test_a_backend_is_given_its_settings_with_the_secrets() -> None:
    store = Whole()
    registry = registry_of(backends={"mine": lambda: store}, workloads=tireless_scenarios(3))
    plan = objects_plan(
        traits=replace(OBJECTS, options=SETTINGS),
        backend_options={"endpoint": "a", "secret_key": MASK},
    )
    rank = Rank(plan, 0, HOST, None, Secrets({"secret_key": "hunter2"}))
    rank.set_up(registry)
    rank.close()
    assert dict(store.opened.options) == {"endpoint": "a", "secret_key": "hunter2"}
    assert "hunter2" not in repr(store.opened)
    with pytest.raises(StorageError, match=r"the value of secret_key .* did not reach this rank"):
        Rank(plan, 0, HOST, None).set_up(registry)


def test_a_backend_that_is_another_one_on_a_host_is_named() -> None:
    registry = build_registry()
    plan = make_plan(backend="null")
    other = replace(plan, traits=replace(plan.traits, never_waits=False))
    with pytest.raises(StorageError, match=f"^{HOST}: the backend null has other traits here"):
        _set_up(Rank(other, 0, HOST, None), registry)
    _set_up(Rank(plan, 0, HOST, None), registry)


def test_a_population_without_every_users_context_is_refused_where_that_is_needed() -> None:
    plan = make_plan(phase="decode", users=8, capacity_blocks=2)
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios(2))
    rank = Rank(plan, 0, HOST, None)
    rank.set_up(registry)
    with pytest.raises(StorageError, match="of 8 users, and with --kv-phase=decode or --kv-i"):
        rank.populate(lambda: False)
    rank.close()
