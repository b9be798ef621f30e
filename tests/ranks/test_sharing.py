"""Ranks that share a store, on real files: one after the other, so that all is known."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix import enginefiles
from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.enginefiles import EngineFiles
from pytest_kvcache.measure.sharing import CLOCK_ERROR_NS
from pytest_kvcache.results.invariants import record_faults
from tests.factories import (
    Family,
    Script,
    ask,
    key_of,
    layout_of,
    make_plan,
    record_of,
    registry_of,
    run_rank,
    unchanged_interpreter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.workloads.protocol import Request, Workload, WorkloadContext
    from tests.factories import Finished

Turns = list[list["Request"]]


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with unchanged_interpreter():
        yield


class OfRank:
    """Another script for each rank."""

    def __init__(self, *turns: Turns) -> None:
        self._turns = turns

    def __call__(self, context: WorkloadContext) -> Workload:
        return Script(self._turns[context.rank])


class Scripted:
    """A family of such workloads."""

    def __init__(self, *turns: Turns) -> None:
        self.build = OfRank(*turns)


def shared_plan(tmp_path: Path, np: int, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "backend": "file", "cache_dir": str(tmp_path), "keep": True, "scenario": "mine",
        "duration_s": None, "np": np, "sharing": "run", "lookup": "first-miss", "publish": "link",
        "block_tokens": 1, "queue_depth": 4, "dialogues": None, "io": "buffered",
    }  # fmt: skip
    return make_plan(**values | changes)


def one_after_another(
    plan: Plan, *turns: Turns, between: Callable[[], None] = lambda: None
) -> list[Finished]:
    """Each rank makes its requests when those before it are done; then all is joined."""
    registry = registry_of(backends={"file": StoreBackend}, workloads={"mine": Scripted(*turns)})
    ranks = []
    for rank in range(len(turns)):
        ranks.append(run_rank(plan, registry, rank=rank))
        between()
    parts = [each.rank.dealt_moments(ranks[0].origin_ns) for each in ranks]
    for to, each in enumerate(ranks):
        each.rank.join_moments([part[to] for part in parts if to in part], CLOCK_ERROR_NS)
    return ranks


def results(ranks: list[Finished]) -> list[RankResult]:
    found = [each.result for each in ranks]
    assert [each.error for each in found] == [None] * len(found)
    return found


def files_in(directory: Path) -> list[Path]:
    """All objects of the shared stores below a directory."""
    return [path for path in directory.glob("kvcache-*/shared-*/*/*") if path.is_file()]


def hits(result: RankResult) -> tuple[int | None, int | None]:
    return result.own_hit_blocks, result.other_hit_blocks


def test_what_another_rank_has_stored_is_a_hit_and_so_is_ones_own(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 2)
    ranks = one_after_another(
        plan,
        [[ask(0, "a", "b", output=["c"])]],
        [[ask(0, "a", "b", "c", "d"), ask(0, "a", "b", "c", "d", "e")]],
    )
    first, second = results(ranks)
    assert hits(first) == (0, 0)
    assert hits(second) == (1, 6)  # "d" is its own when it asks again
    assert (second.read_count, second.write_count, second.prompt_blocks) == (7, 2, 9)
    assert (first.others_objects, second.others_objects) == (0, 6)
    assert not list(record_faults(record_of(plan, ranks), plan))


def test_blocks_have_the_names_of_their_contents_whoever_stores_them(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 1, requests=None)
    results(one_after_another(plan, [[ask(0, "a")]]))
    (file,) = files_in(tmp_path)
    assert file.name == f"{key_of('a').hex()}.0"


@pytest.mark.thorough
@pytest.mark.parametrize("verify", ["sample", "full", "off"])
@pytest.mark.parametrize("data", ["normal", "strict"])
def test_what_others_wrote_is_verified_as_ones_own_is(
    tmp_path: Path, verify: str, data: str
) -> None:
    plan = shared_plan(tmp_path, 2, verify=verify, data=data)
    turns = [[ask(0, *"abcdefgh"), ask(0, *"abcdefgh")]]
    first, second = results(one_after_another(plan, turns, turns))
    assert hits(first) == (8, 0)
    assert hits(second) == (0, 16)
    if verify == "off":
        assert (second.checked, second.others_objects) == (0, None)
    else:
        assert second.others_objects == 16
        assert second.corrupt == 0


def damaged(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("at", "said"), [(20, "damaged head"), (58, "damaged head"), (4096 - 1, "differs in 1 bytes")]
)
def test_what_another_rank_wrote_wrongly_is_found(tmp_path: Path, at: int, said: str) -> None:
    plan = shared_plan(tmp_path, 2, verify="full")

    def damage() -> None:
        for path in files_in(tmp_path):
            damaged(path, at)

    _first, second = one_after_another(plan, [[ask(0, "a")]], [[ask(0, "a")]], between=damage)
    assert second.result.error is not None
    assert said in second.result.error
    assert second.result.corrupt == 1


@pytest.mark.thorough
def test_a_head_of_another_writer_is_looked_at_even_where_only_stamps_are_compared(
    tmp_path: Path,
) -> None:
    plan = shared_plan(tmp_path, 2, verify="sample")

    def damage() -> None:
        for path in files_in(tmp_path):
            damaged(path, 58)  # who wrote it

    turns = [[ask(0, *range(40))]]
    _first, second = one_after_another(plan, turns, turns, between=damage)
    assert "damaged head" in (second.result.error or "")


@pytest.mark.thorough
def test_a_rank_deletes_its_own_blocks_alone_and_holds_no_more_than_its_capacity(
    tmp_path: Path,
) -> None:
    plan = shared_plan(tmp_path, 2, capacity_blocks=2)
    first, second = results(
        one_after_another(
            plan,
            [[ask(0, "a", "b")]],
            [[ask(0, "a", "b", "c", "d"), ask(0, "x", "y"), ask(0, "a", "b", "c")]],
        )
    )
    assert (first.evictions, second.evictions) == (0, 3)  # "c" and "d", then one of "x" and "y"
    assert (first.cached_blocks, second.cached_blocks) == (2, 2)
    assert len(files_in(tmp_path)) == 4
    assert hits(second) == (0, 4)
    assert second.lost_blocks == 0


@pytest.mark.thorough
def test_alone_a_rank_hits_and_displaces_as_on_a_store_of_its_own(tmp_path: Path) -> None:
    dice = random.Random(7)
    turns = [[ask(0, *range(root, root + dice.randrange(1, 9))) for root in dice.choices(
        [0, 100, 200, 300, 400], k=60
    )]]  # fmt: skip
    shared = shared_plan(tmp_path / "shared", 1, capacity_blocks=12)
    own = replace(shared, sharing="rank", lookup="memory", publish="in-place", cache_dir=str(
        tmp_path / "own"
    ))  # fmt: skip
    for plan in (shared, own):
        Path(plan.cache_dir).mkdir()
    (one,) = results(one_after_another(shared, turns))
    registry = registry_of(backends={"file": StoreBackend}, workloads={"mine": Scripted(turns)})
    other = run_rank(own, registry).result
    assert other.evictions > 20
    assert (one.hit_blocks, one.evictions, one.cached_blocks, one.read_count, one.write_count) == (
        other.hit_blocks, other.evictions, other.cached_blocks, other.read_count, other.write_count,
    )  # fmt: skip
    assert hits(one) == (other.hit_blocks, 0)
    assert (one.vanished_blocks, one.stale_lookups, one.lost_blocks) == (0, 0, 0)


class Thief(Script):
    """Before the last request of a user all files go, by no rank."""

    def __init__(self, directory: Path, turns: Turns) -> None:
        super().__init__(turns)
        self._directory = directory
        self._last = len(turns[0]) - 1

    def next_request(self, user: int) -> Request | None:
        if self.asked[user] == self._last:
            for path in files_in(self._directory):
                path.unlink()
        return super().next_request(user)


@pytest.mark.thorough
def test_a_block_that_nobody_deleted_and_that_is_gone_fails_the_trial(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 1)
    turns = [[ask(0, "a", "b"), ask(0, "a", "b"), ask(0, "a", "b")]]
    thieves = Family(Thief(tmp_path, turns))
    registry = registry_of(backends={"file": StoreBackend}, workloads={"mine": thieves})
    one = run_rank(plan, registry)
    one.rank.join_moments(list(one.rank.dealt_moments(one.origin_ns).values()), CLOCK_ERROR_NS)
    assert one.result.lost_blocks == 2  # the first that was missed, and the other when read back
    assert "no rank has deleted" in (one.result.error or "")
    assert hits(one.result) == (2, 0)


@pytest.mark.thorough
def test_what_a_rank_has_found_before_and_misses_now_is_lost_and_not_late(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 2)
    turns = [[ask(0, "a", "b"), ask(0, "a", "b"), ask(0, "a", "b")]]
    workloads = {0: Script([[ask(0, "a", "b")]]), 1: Thief(tmp_path, turns)}

    class Mixed:
        def build(self, context: WorkloadContext) -> Workload:
            return workloads[context.rank]

    registry = registry_of(backends={"file": StoreBackend}, workloads={"mine": Mixed()})
    ranks = [run_rank(plan, registry, rank=rank) for rank in range(2)]
    parts = [each.rank.dealt_moments(ranks[0].origin_ns) for each in ranks]
    for to, each in enumerate(ranks):
        each.rank.join_moments([part[to] for part in parts if to in part], CLOCK_ERROR_NS)
    found = [each.result for each in ranks]
    assert sum(each.lost_blocks or 0 for each in found) >= 1
    assert sum(each.stale_lookups or 0 for each in found) == 0
    assert any("no rank has deleted" in (each.error or "") for each in found)


@pytest.mark.thorough
def test_a_block_that_is_to_be_deleted_and_is_gone_is_lost(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 1, capacity_blocks=2)
    turns = [[ask(0, "a", "b"), ask(0, "a", "b"), ask(0, "c", "d")]]
    thieves = Family(Thief(tmp_path, turns))
    registry = registry_of(backends={"file": StoreBackend}, workloads={"mine": thieves})
    one = run_rank(plan, registry)
    one.rank.join_moments(list(one.rank.dealt_moments(one.origin_ns).values()), CLOCK_ERROR_NS)
    assert (one.result.lost_blocks, one.result.delete_failed) == (2, 0)
    assert "no rank has deleted" in (one.result.error or "")


@pytest.mark.thorough
def test_a_lookup_that_lasts_beyond_the_window_is_in_the_time_of_its_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: str, there: bool) -> bool:  # noqa: FBT001  as it is called
        if there and key_of("a").hex() in path:
            time.sleep(1.0)
        return there

    plan = shared_plan(tmp_path, 1, duration_s=0.5)
    without_look_up(monkeypatch, late)
    one = run_rank(
        plan,
        registry_of(
            backends={"file": StoreBackend},
            workloads={"mine": Scripted([[ask(0, "a"), ask(0, "a")]])},
        ),
    )
    loads = one.histograms["load"]
    assert loads.count == 1
    assert (loads.max_ns or 0) >= 1_000_000_000


@pytest.mark.thorough
def test_at_a_depth_of_one_answers_are_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvcache.engine.loop._TICK_NS", 30_000_000_000)
    plan = shared_plan(tmp_path, 1, queue_depth=1)
    began = time.monotonic()
    (one,) = results(one_after_another(plan, [[ask(0, "a", "b") for _ in range(4)]]))
    assert one.hit_blocks == 6
    assert time.monotonic() - began < 25  # or it slept until a tick


def without_look_up(monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, bool], bool]) -> None:
    """What the storage is asked for is told as ``answers`` makes it of path and truth."""
    truly = EngineFiles.look_up

    def look_up(self: EngineFiles, keys: Sequence[str]) -> list[bool]:
        return [
            answers(self.path(key), there)
            for key, there in zip(keys, truly(self, keys), strict=True)
        ]

    monkeypatch.setattr(EngineFiles, "look_up", look_up)


@pytest.mark.thorough
@pytest.mark.parametrize("publish", ["link", "rename"])
def test_a_storage_that_does_not_show_what_others_stored_is_stale_and_races_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: str
) -> None:
    without_look_up(monkeypatch, lambda _path, _there: False)
    plan = shared_plan(tmp_path, 2, publish=publish)
    if publish == "rename":  # and looks for the name no more, as some engines
        monkeypatch.setitem(enginefiles._CALLS, "access", lambda _path: False)
    turns = [[ask(0, *"abc")]]
    first, second = results(one_after_another(plan, turns, turns))
    together = [sum(counts) for counts in zip(
        *((each.stale_lookups, each.races_lost, each.lost_blocks) for each in (first, second)),
        strict=True,
    )]  # fmt: skip
    assert together == [1, 0, 0]  # what had been there for long was not raced for
    assert max(each.longest_stale_s or 0 for each in (first, second)) > 0.001
    assert hits(second) == (0, 0)
    stored = [each.cached_blocks for each in (first, second)]
    assert stored == ([3, 0] if publish == "link" else [3, 3])


@pytest.mark.thorough
def test_what_is_gone_between_answer_and_read_ends_the_prefix_and_fails_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steal(path: str, there: bool) -> bool:  # noqa: FBT001  as it is called
        if there and key_of("b").hex() in path:
            Path(path).unlink()
        return there

    without_look_up(monkeypatch, steal)
    plan = shared_plan(tmp_path, 2)
    turns = [[ask(0, *"abc")]]
    _first, second = (each.result for each in one_after_another(plan, turns, turns))
    assert (second.vanished_blocks, second.read_failed, second.read_count) == (1, 0, 2)
    assert hits(second) == (0, 1)
    assert second.completed == 1
    assert second.hit_blocks == 1


def test_ranks_of_other_hosts_have_stores_of_their_own_unless_all_share_one(
    tmp_path: Path,
) -> None:
    plan = shared_plan(tmp_path, 1, layout=layout_of(n1=2, n2=1), sharing="host")
    assert [plan.group_of(rank) for rank in range(3)] == [0, 0, 1]
    assert plan.sharers_of(1) == (0, 1)
    assert not plan.shares_between_hosts
    together = shared_plan(tmp_path, 1, layout=layout_of(n1=2, n2=1))
    assert together.sharers_of(2) == (0, 1, 2)
    assert together.shares_between_hosts


@pytest.mark.thorough
def test_what_an_earlier_trial_left_in_a_shared_store_is_removed(tmp_path: Path) -> None:
    plan = shared_plan(tmp_path, 1)
    results(one_after_another(plan, [[ask(0, "a")]]))
    (again,) = results(one_after_another(replace(plan, trial=1), [[ask(0, "a")]]))
    assert hits(again) == (0, 0)
    assert len(list(tmp_path.glob("kvcache-*/shared-*"))) == 1
