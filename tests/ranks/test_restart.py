"""A restart finds again what was stored, and says what of it is missing, foreign or other."""

from __future__ import annotations

import os
import shutil
import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.scan import Scan
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.backends.protocol import BackendPlan, ObjectFileNames
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.ranks.restart import Restart
from pytest_kvcache.ranks.worker import _set_up
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.invariants import check_record
from pytest_kvcache.results.verdicts.trial import evaluate_trial, idle_error
from tests.factories import HOST, Finished, make_plan, record_of, run_rank, unchanged_interpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_kvcache.backends.calls import Calls
    from pytest_kvcache.plan.plan import Plan

PAGE = 4096
KEYS = tuple(f"{number:064x}.{number}" for number in range(40))
STORED = dict.fromkeys(KEYS, PAGE)


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with unchanged_interpreter():
        yield


def filled(directory: Path, calls: Calls | None = None) -> StoreBackend:
    """A backend that was closed when it had stored all of ``STORED``."""
    backend = StoreBackend()
    plan = BackendPlan(
        directory=str(directory), object_bytes=PAGE, chunk_bytes=PAGE, io="buffered", sync="none",
        host=HOST, namespace="test", store="file", calls=calls,
    )  # fmt: skip
    backend.open(plan)
    for key in KEYS:
        backend.put_from(key, 0, memoryview(bytes(PAGE)))
    backend.close()
    return backend


def restarted(backend: StoreBackend, threads: int | None, **more: Any) -> Restart:
    restart = Restart(backend, STORED, threads=threads, host=HOST, **more)
    restart.run(0, lambda: False)
    restart.compare()
    return restart


CALLS = [None, PROFILES["vllm-fs"].calls, PROFILES["lmcache-fs"].calls]


@pytest.mark.parametrize("calls", CALLS, ids=["ours", "vllm-fs", "lmcache-fs"])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_all_that_was_stored_is_found_again(
    tmp_path: Path, calls: Calls | None, threads: int | None
) -> None:
    restart = restarted(filled(tmp_path, calls), threads)
    assert restart.error is None
    counted = restart.counted()
    assert (counted["restart_count"], counted["restart_objects"]) == (40, 40)
    assert restart.times_ns.size == 40
    assert (restart.times_ns > 0).all()
    assert restart.began_ns < restart.done_ns
    directories = sum(1 for _ in os.walk(tmp_path))
    assert counted["restart_directories"] == (directories if threads is None else None)
    assert (counted["restart_listing_s"] is None) == (threads is not None)


@pytest.mark.parametrize("threads", [None, 2])
def test_an_object_that_is_gone_is_named(tmp_path: Path, threads: int | None) -> None:
    backend = filled(tmp_path)
    (gone,) = tmp_path.glob(f"*/{KEYS[7]}")
    gone.unlink()
    restart = restarted(backend, threads)
    assert restart.error is not None
    assert f"1 of 40 objects that were stored are not found again (object {KEYS[7]})" in (
        restart.error
    )
    assert restart.counted()["restart_objects"] == 39


@pytest.mark.parametrize("suffix", ["", ".bin"])
@pytest.mark.parametrize("name", ["stranger", "abc.9"])
def test_a_foreign_file_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    backend = filled(tmp_path, PROFILES["vllm-fs"].calls if suffix else None)
    place = next(path for path in tmp_path.rglob("*") if path.is_file()).parent
    (place / f"{name}{suffix}").touch()
    restart = restarted(backend, None)
    assert restart.error is not None
    assert f"finds {name} below {tmp_path}, which is no object that was" in restart.error


def test_a_file_without_the_suffix_is_foreign_by_its_path(tmp_path: Path) -> None:
    backend = filled(tmp_path, PROFILES["vllm-fs"].calls)
    first = next(path for path in tmp_path.rglob("*.bin"))
    left = first.with_suffix(".tmp")
    shutil.copy(first, left)
    restart = restarted(backend, None)
    assert restart.error is not None
    assert f"finds {left}, which is no object" in restart.error


def test_an_object_that_is_there_twice_is_foreign_once(tmp_path: Path) -> None:
    backend = filled(tmp_path)
    first = next(path for path in tmp_path.glob("*/*"))
    other = next(path for path in tmp_path.iterdir() if path != first.parent)
    shutil.copy(first, other)
    restart = restarted(backend, None)
    assert restart.error is not None
    assert f"{first.name}, which is no object that was stored" in restart.error


def test_an_object_of_another_size_is_named(tmp_path: Path) -> None:
    backend = filled(tmp_path)
    (short,) = tmp_path.glob(f"*/{KEYS[3]}")
    os.truncate(short, 100)
    restart = restarted(backend, None)
    assert restart.error is not None
    assert f"object {KEYS[3]} has 100 bytes, and 4,096 were stored" in restart.error


def test_a_directory_that_can_not_be_read_fails_with_its_path(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    scan = Scan(ObjectFileNames(root=str(missing), suffix=""), array("q"), HOST)
    with pytest.raises(StorageError, match=f"{HOST}: can't scan {missing}: No such file"):
        scan.run(lambda: False)


def test_slabs_name_no_object(tmp_path: Path) -> None:
    backend = StoreBackend()
    backend.open(
        BackendPlan(
            directory=str(tmp_path), object_bytes=PAGE, chunk_bytes=PAGE, io="buffered",
            sync="none", host=HOST, namespace="test", store="slab", capacity_objects=4,
        )
    )  # fmt: skip
    for ask in (lambda: backend.look_up(KEYS), backend.object_files):
        with pytest.raises(StorageError, match="keeps none in files of their own"):
            ask()
    backend.close()


class Failing(StoreBackend):
    """Says of every lookup that the system failed."""

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        raise StorageError(f"can't look up {keys[0]}")


def test_a_lookup_that_fails_ends_the_restart_with_what_it_says() -> None:
    restart = restarted(Failing(), 2)
    assert restart.error is not None
    assert restart.error.startswith("can't look up ")


class Waiting(StoreBackend):
    """Answers no lookup before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_answer = threading.Event(), threading.Event()

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        self.begun.set()
        assert self.may_answer.wait(30)
        return [True] * len(keys)


def test_who_waits_for_a_storage_that_does_not_answer_ticks_and_may_stop() -> None:
    backend = Waiting()
    restart = Restart(backend, STORED, threads=1, host=HOST)
    waits = []

    def tick() -> bool:
        assert backend.begun.wait(30)
        waits.append(restart.longest_wait_ns)
        backend.may_answer.set()
        return True

    restart.run(0, tick)
    restart.compare()
    assert waits[0] > 0
    assert restart.longest_wait_ns == 0
    assert restart.error is None  # who stops it knows why
    assert 1 <= restart.counted()["restart_objects"] < len(KEYS)


class HangingOnOne(Waiting):
    """Answers no lookup of the last key before it may."""

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        return super().look_up(keys) if KEYS[-1] in keys else [True] * len(keys)


def test_a_lookup_that_hangs_is_seen_when_other_threads_have_ended() -> None:
    backend = HangingOnOne()
    restart = Restart(backend, STORED, threads=2, host=HOST)
    waits = []

    def tick() -> bool:
        assert backend.begun.wait(30)
        if restart.done_ns:  # of the thread that has no such key
            waits.append(restart.longest_wait_ns)
            backend.may_answer.set()
        return False

    restart.run(0, tick)
    assert waits[0] > 0
    assert restart.longest_wait_ns == 0
    assert restart.counted()["restart_objects"] == len(KEYS)


def test_nothing_is_waited_for_when_a_lookup_has_failed() -> None:
    assert restarted(Failing(), 2).longest_wait_ns == 0


# --- a rank -----------------------------------------------------------------------------------


def restart_plan(tmp_path: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "backend": "file", "cache_dir": str(tmp_path), "phase": "restart", "restart_by": "scan",
        "duration_s": None, "io": "buffered", "capacity_blocks": 50, "fill_blocks": 50,
        "keep": True,
    }  # fmt: skip
    return make_plan(**values | changes)


def finished(plan: Plan) -> Finished:
    return run_rank(plan, build_registry(()))


@pytest.mark.parametrize("by", ["scan", "lookups"])
@pytest.mark.parametrize("layout", ["block", "layer"])
def test_a_rank_finds_its_objects_again_and_its_record_stands(
    tmp_path: Path, by: str, layout: str
) -> None:
    plan = restart_plan(tmp_path, restart_by=by, object_layout=layout)
    record = record_of(plan, [finished(plan)])
    check_record(record, plan)
    (rank,) = record.ranks
    assert rank.error is None
    objects = 50 * plan.objects_per_block
    assert rank.restart_objects == rank.restart_count == objects
    assert rank.requested_write_bytes == rank.write_count == 0  # those of the population
    trial, verdicts = evaluate_trial(record, plan)
    assert idle_error(record.ranks) is None
    assert trial.restart is not None
    assert trial.run is not None
    assert (trial.restart.count, trial.restart.by) == (objects, by)
    assert trial.restart.objects_per_s == pytest.approx(objects / trial.run.s)
    codes = {verdict.code for verdict in verdicts}
    assert not codes & {"SHORT_WINDOW", "UNSATURATED", "CACHED_READS", "CACHED_WRITES"}


def test_what_was_overwritten_before_is_not_found_again(tmp_path: Path) -> None:
    plan = restart_plan(tmp_path, io="direct", precondition_bytes=PAGE)
    rank = Rank(plan, 0, HOST, None)
    _set_up(rank, build_registry(()))
    for phase in plan.phases_before_window:
        {
            "precondition": lambda: rank.precondition(lambda: False),
            "population": lambda: rank.populate(lambda: False),
            "shut-down": rank.shut_down,
        }[phase]()
    rank.look_around()
    rank.run(0, lambda: False)
    rank.read_back(lambda: False)
    error = rank.progress()["error"]
    rank.close()
    rank.leave()
    assert error is None


def rank_that_loses(tmp_path: Path, change: Callable[[Path], None]) -> str | None:
    """What a rank says whose directory was changed between the population and the window."""
    plan = restart_plan(tmp_path)
    rank = Rank(plan, 0, HOST, None)
    _set_up(rank, build_registry(()))
    rank.populate(lambda: False)
    rank.shut_down()
    change(next(path for path in tmp_path.rglob("rank-0/*/*")))
    rank.look_around()
    rank.run(0, lambda: False)
    rank.read_back(lambda: False)
    error = rank.progress()["error"]
    rank.close()
    rank.leave()
    assert error is None or isinstance(error, str)
    return error


def test_the_trial_of_a_rank_whose_object_is_gone_fails_and_names_it(tmp_path: Path) -> None:
    names = []

    def remove(path: Path) -> None:
        names.append(path.name)
        path.unlink()

    error = rank_that_loses(tmp_path, remove)
    assert error is not None
    assert names[0] in error
    assert rank_that_loses(tmp_path, lambda _path: None) is None


def test_a_rank_that_has_stored_nothing_has_nothing_to_restart(tmp_path: Path) -> None:
    plan = restart_plan(tmp_path, capacity_blocks=1, fill_blocks=0)
    with pytest.raises(StorageError, match="it stored no object before its restart"):
        finished(plan)
