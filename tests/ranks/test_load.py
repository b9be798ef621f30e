from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.engine.load import LoadChange
from pytest_kvcache.errors import StalledError
from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.series import coarse_index
from pytest_kvcache.plan.loadsteps import LoadStep
from pytest_kvcache.ranks.load import LEAD_NS, FixedSchedule, LoadConductor
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.ranks.worker import _Heartbeat
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import check_record
from tests.factories import (
    HOST,
    S,
    make_plan,
    record_of,
    registry_of,
    run_rank,
    tireless_scenarios,
    unchanged_interpreter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.ranks.comm import Comm

STEPS = (LoadStep(0, 5 * S, 8), LoadStep(5 * S, 9 * S, 2), LoadStep(9 * S, 15 * S, 8))
BEGIN_NS = 100 * S
OFFSETS_NS = (0, 7_000, -3_000)


class Seen:
    """A load control that keeps what it was shown."""

    def __init__(self) -> None:
        self.figures: list[dict[str, float | None] | None] = []
        self._schedule = FixedSchedule(STEPS)

    def next_step(self, so_far: dict[str, float | None] | None) -> LoadStep | None:
        self.figures.append(so_far)
        return self._schedule.next_step(so_far)


def conducted(control: Any = None) -> tuple[LoadConductor, list[list[LoadChange]]]:
    """A conductor of three ranks, and all that it orders."""
    ordered: list[list[LoadChange]] = []

    def order(changes: Sequence[LoadChange]) -> None:
        ordered.append(list(changes))

    control = control or FixedSchedule(STEPS)
    return LoadConductor(control, BEGIN_NS, OFFSETS_NS, order), ordered


# --- the coordinator ------------------------------------------------------------------------


def test_the_first_number_of_users_is_that_of_the_first_step() -> None:
    assert conducted()[0].first_users == 8
    assert conducted(FixedSchedule(()))[0].first_users is None


def test_a_change_is_ordered_once_and_a_second_beforehand_for_each_rank_s_own_clock() -> None:
    conductor, ordered = conducted()
    for now_ns in range(BEGIN_NS - S, BEGIN_NS + 16 * S, S // 100):
        orders = len(ordered)
        conductor.tick(now_ns)
        if len(ordered) > orders:
            (at_ns, _users), *_others = ordered[-1]
            assert at_ns - now_ns == LEAD_NS
    assert ordered == [
        [LoadChange(BEGIN_NS + at_ns + offset_ns, users) for offset_ns in OFFSETS_NS]
        for at_ns, _end_ns, users in STEPS[1:]
    ]


def test_a_coordinator_that_stood_still_orders_what_is_due_though_it_is_late() -> None:
    conductor, ordered = conducted()
    conductor.tick(BEGIN_NS + 12 * S)
    conductor.tick(BEGIN_NS + 12 * S)
    assert [changes[0].users for changes in ordered] == [2, 8]  # and the ranks refuse them


def recent(at_ns: int, reads: int) -> dict[str, Any]:
    """What a rank tells that has completed so many reads of 1 GiB."""
    found = Recent()
    found.add("read", coarse_index(np.full(reads, 1_000)), np.full(reads, 1 << 30))
    found.publish(at_ns)
    return found.take(at_ns)


def test_a_load_control_sees_the_figures_of_the_step_that_ends_and_of_no_other() -> None:
    control = Seen()
    conductor, _ordered = conducted(control)
    for second, reads in enumerate([0, 5, 5, 5, 5, 5, 0, 9, 9, 9]):
        for rank in (1, 2, 3):
            conductor.receive(rank, recent(BEGIN_NS + second * S, reads))
        conductor.tick(BEGIN_NS + second * S)
    first, second_, third = control.figures
    assert first is None  # there was nothing before it
    assert second_ is not None
    assert second_["read_gib_per_s"] == 15
    assert third is not None
    assert third["read_gib_per_s"] == pytest.approx(27)


# --- a rank ---------------------------------------------------------------------------------


@dataclass
class Orders:
    """What the coordinator has sent (as far as `_Heartbeat` needs it)."""

    sent: list[LoadChange | None] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)

    def send_progress(self, report: dict[str, Any]) -> None:
        self.reported.append(report)

    def orders(self) -> Iterator[LoadChange | None]:
        while self.sent:
            yield self.sent.pop(0)


@pytest.fixture
def rank() -> Iterator[Rank]:
    """A rank of four users that is ready to run."""
    with unchanged_interpreter():
        one = Rank(make_plan(), 3, HOST, None)
        one.set_up(build_registry(()))
        one.make_ready()
        yield one
        one.close()


def heart_of(rank: Rank, *orders: LoadChange | None) -> _Heartbeat:
    return _Heartbeat(cast("Comm", Orders([*orders])), rank)


def test_a_rank_changes_its_load_as_it_is_reported_and_stops_when_it_is_told(rank: Rank) -> None:
    assert rank.engine is not None
    soon_ns = time.monotonic_ns() + 60 * S
    changes = [LoadChange(soon_ns, 2), LoadChange(soon_ns + S, 4)]
    heart = heart_of(rank, *changes)
    assert heart.tick() is False
    assert list(rank.engine.loop.changes) == changes
    heart = heart_of(rank, None)
    assert heart.tick() is True
    assert heart.tick() is True


@pytest.mark.parametrize("in_ns", [-S, 0, S // 20])
def test_a_rank_that_hears_of_a_change_too_late_says_so_and_does_not_change(
    rank: Rank, in_ns: int
) -> None:
    assert rank.engine is not None
    heart = heart_of(rank, LoadChange(time.monotonic_ns() + in_ns, 2))
    message = f"rank 3 on host {HOST} was to change its load to 2 users, and heard of it "
    with pytest.raises(StalledError, match=re.escape(message)):
        heart.tick()
    assert not rank.engine.loop.changes


@pytest.mark.thorough
def test_ranks_whose_load_changes_leave_a_record_without_fault() -> None:
    plan = make_plan(np=2, users=6, load_steps=(6, 2), duration_s=4.0, ramp_s=0.1)
    registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios())
    ranks = [run_rank(plan, registry, rank=rank) for rank in range(2)]
    record = record_of(plan, ranks)
    check_record(record, plan)
    assert [step.users_in_all for step in trial_of(record, plan).load_steps] == [12, 4]
    for rank in record.ranks:
        assert [step.answered_users for step in rank.load_steps] == [6, 2]
        assert all(step.read_op_bytes for step in rank.load_steps)
