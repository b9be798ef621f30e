"""What a rank notes of its operations, and the same operations again on another storage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import StorageError
from pytest_kvcache.launch.iotrace import IoTraceFile
from pytest_kvcache.measure.iospool import Spool, spool_name
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.record import IoTraceFacts
from pytest_kvcache.traces.ioformat import COLUMNS
from pytest_kvcache.traces.read import read_trace
from tests.factories import (
    HOST,
    PAGE,
    Finished,
    make_plan,
    make_trace_plan,
    registry_of,
    run_rank,
    tireless_scenarios,
    unchanged_interpreter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with unchanged_interpreter():
        yield


@dataclass(frozen=True)
class Traced:
    """A rank's run and the file of its operations."""

    result: RankResult
    path: Path

    def operations(self) -> list[dict[str, str]]:
        lines = self.path.read_text().splitlines()[2:-1]
        return [dict(zip(COLUMNS, line.split(","), strict=True)) for line in lines]

    def of(self, *phases: str) -> Counter[tuple[str, str, str]]:
        """How often what was done with which object, by its key without its version.

        Two versions of a block that are there at once (one is stored before the other one is
        deleted) are replayed as objects whose keys have equal first halves.
        """
        return Counter(
            (each["operation"], each["key"][:16], each["bytes"])
            for each in self.operations()
            if each["phase"] in phases
        )


def traced(plan: Plan, path: Path, **run: Any) -> Traced:
    registry = run.pop("registry", None) or build_registry()
    ran: Finished = run_rank(plan, registry, **run)
    directory = path.with_suffix(".trial")
    directory.mkdir()
    (directory / spool_name(0)).write_bytes(b"".join(ran.rank.io_trace(ran.origin_ns)))
    ran.rank.leave()
    file = IoTraceFile(path, plan)
    file.add(plan, directory)
    file.finish()
    return Traced(ran.result, path)


def recorded(path: Path, **changes: Any) -> Traced:
    """A small cache that has to evict, until its users fall silent."""
    values: dict[str, Any] = {
        "backend": "memory", "duration_s": None, "capacity_blocks": 150, "io_trace": True,
    }  # fmt: skip
    built_in = build_registry()
    workloads = {**built_in.workloads, **tireless_scenarios(30)}
    registry = registry_of(backends=dict(built_in.backends), workloads=workloads)
    return traced(make_plan(**values | changes), path, registry=registry)


def replayed(what: Traced | Path, path: Path, **changes: Any) -> Traced:
    trace = read_trace(what if isinstance(what, Path) else what.path, block_tokens=None)
    assert trace.operations is not None
    speedup = changes.pop("speedup", 0.0)
    values: dict[str, Any] = {
        "backend": "null", "duration_s": None, "io_trace": True, "scenario": "trace",
        "trace": make_trace_plan(requests=len(trace), speedup=speedup, format=trace.format),
        "own_block_bytes": trace.operations.largest_bytes,
        "capacity_blocks": trace.operations.need_blocks(in_time=speedup > 0),
    }  # fmt: skip
    return traced(make_plan(**values | changes), path, trace=trace)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    with unchanged_interpreter():
        return recorded(tmp_path_factory.mktemp("first") / "io.csv")


def test_every_operation_of_the_window_is_in_the_trace(first: Traced) -> None:
    counts = Counter(each["operation"] for each in first.operations() if each["phase"] == "window")
    result = first.result
    assert counts["read"] == result.read_count > 0
    assert counts["write"] == result.write_count > 0
    assert counts["delete"] == result.delete_count > 0
    read_bytes = [int(e["bytes"]) for e in first.operations() if e["operation"] == "read"]
    assert sum(read_bytes) == result.read_op_bytes


def test_the_population_is_in_the_trace_before_the_run(first: Traced) -> None:
    population = [each for each in first.operations() if each["phase"] == "population"]
    assert len(population) == first.result.populated_blocks > 0
    assert all(int(each["completed_ns"]) < 0 for each in population)
    assert {each["waits_for"] for each in population} == {"turn"}


def test_times_of_an_operation_ascend_and_what_it_waited_for_came_before(first: Traced) -> None:
    done: dict[str, int] = {}  # reads and deletes of a request
    for each in first.operations():
        submitted, started, completed = (int(each[name]) for name in COLUMNS[-3:])
        assert submitted <= started <= completed
        if each["phase"] == "population":
            continue
        if each["waits_for"] == "user":
            assert each["operation"] == "read"
            done[each["request"]] = completed
        else:
            assert submitted >= done.get(each["request"], submitted)
    assert {each["waits_for"] for each in first.operations()} == {
        "turn", "user", "answer", "deletes",
    }  # fmt: skip


def test_the_result_tells_what_the_trace_took(first: Traced) -> None:
    facts = first.result.io_trace
    assert isinstance(facts, IoTraceFacts)
    assert facts.operations == len(first.operations())
    assert facts.spooled_bytes == 72 * facts.operations
    assert not facts.on_measured_filesystem  # memory is on none


def test_a_run_without_a_trace_has_none() -> None:
    ran = run_rank(make_plan(), build_registry())
    assert ran.result.io_trace is None
    assert list(ran.rank.io_trace(0)) == []


@pytest.mark.parametrize(
    "backend", ["null", *(pytest.param(b, marks=pytest.mark.thorough) for b in ("memory", "file"))]
)
def test_another_storage_is_asked_for_the_same_as_it_waited_for_each_other(
    first: Traced, tmp_path: Path, backend: str
) -> None:
    again = replayed(first, tmp_path / "io.csv", backend=backend, cache_dir=str(tmp_path))
    assert again.result.error is None
    run = ("ramp", "window", "drain")
    assert again.of("population") == first.of("population")
    assert again.of(*run) == first.of(*run)
    assert again.result.hit_blocks == again.result.prompt_blocks


@pytest.mark.thorough
def test_another_storage_is_asked_for_the_same_at_the_same_times(
    first: Traced, tmp_path: Path
) -> None:
    again = replayed(first, tmp_path / "io.csv", backend="memory", speedup=1.0)
    assert {name: count for (name, *_), count in sums(again).items()} == {
        name: count for (name, *_), count in sums(first).items()
    }
    assert again.result.hit_blocks == again.result.prompt_blocks


def sums(what: Traced) -> Counter[tuple[str, str]]:
    return Counter(
        (each["operation"], each["bytes"])
        for each in what.operations()
        if each["phase"] != "population"
    )


@pytest.mark.thorough
def test_a_trace_of_a_replay_is_replayed_like_the_first(first: Traced, tmp_path: Path) -> None:
    again = replayed(replayed(first, tmp_path / "two.csv"), tmp_path / "three.csv")
    assert again.of("window") == first.of("window")


@pytest.mark.thorough
def test_objects_of_different_sizes_keep_them(tmp_path: Path) -> None:
    lines = [f"1,0,window,write,o{n},{PAGE * n},0,0,answer,{n},{n},{n}" for n in (1, 2, 3)]
    lines += [f"1,0,window,read,o{n},{PAGE * n},1,0,user,{9 + n},{9 + n},{9 + n}" for n in (3, 1)]
    path = tmp_path / "io.csv"
    head = ["# pytest-kvcache I/O trace 1: {}", ",".join(COLUMNS)]
    path.write_text("\n".join([*head, *lines, "# end: 5 operations", ""]))
    again = replayed(path, tmp_path / "again.csv", backend="file", cache_dir=str(tmp_path))
    assert again.result.error is None
    assert sums(again) == Counter(
        {("write", "4096"): 1, ("write", "8192"): 1, ("write", "12288"): 1,
         ("read", "4096"): 1, ("read", "12288"): 1}
    )  # fmt: skip


@pytest.mark.thorough
def test_behind_memory_only_what_reaches_the_storage_is_in_the_trace(tmp_path: Path) -> None:
    tier = MemoryTier(name="cpu", capacity_bytes=60 * PAGE, kind="memory")
    what = recorded(tmp_path / "io.csv", tiers=(tier,), tier_policy="demote")
    counts = Counter(each["operation"] for each in what.operations() if each["phase"] == "window")
    assert counts["demote"] == what.result.demote_count > 0
    assert counts["read"] == what.result.read_count
    assert counts["write"] == what.result.write_count == 0


def test_a_trace_that_can_not_be_kept_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Spool, _left: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "_write_all", full)
    monkeypatch.setattr("pytest_kvcache.engine.iotracer.RECORDS_PER_BUFFER", 8)
    try:  # a thread writes it, and may find out when the window has begun
        error = recorded(tmp_path / "io.csv").result.error
    except StorageError as found:
        error = str(found)
    assert "can't be written (No space left on device)" in (error or "")


def test_a_directory_for_temporary_files_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    with pytest.raises(StorageError, match=rf"{HOST}: the I/O trace can't be kept in /nowhere"):
        run_rank(make_plan(io_trace=True), build_registry())
