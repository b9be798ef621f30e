from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.registry import build_registry
from pytest_kvcache.workloads.openloop import (
    ARRIVAL_SHAPES,
    OpenLoop,
    arrival_offsets_ns,
    interval_cv,
)
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import S, Script, ask
from tests.workloads.test_synthetic import SPEC, talking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.workloads.openloop import IntArray
    from pytest_kvcache.workloads.protocol import Request

ARRIVALS = st.sampled_from(sorted(ARRIVAL_SHAPES))
IDENTITIES = st.text(max_size=20)
RATES = st.floats(0.01, 1_000)


def schedule(
    *, per_s: float = 10.0, arrival: str = "poisson", span_s: float = 5.0, identity: str = "42/0/0"
) -> IntArray:
    return arrival_offsets_ns(per_s=per_s, arrival=arrival, span_s=span_s, identity=identity)


# -- the schedule --------------------------------------------------------------------------


@settings(deadline=None)
@given(per_s=RATES, arrival=ARRIVALS, span_s=st.floats(0.01, 60), identity=IDENTITIES)
def test_arrivals_ascend_and_only_the_last_is_beyond_the_span(
    per_s: float, arrival: str, span_s: float, identity: str
) -> None:
    found = schedule(per_s=per_s, arrival=arrival, span_s=span_s, identity=identity)
    assert (np.diff(found) >= 0).all()
    assert found[0] >= 0
    assert found[-1] >= int(span_s * 1e9) - 1
    assert (found[:-1] <= span_s * 1e9).all()


@settings(deadline=None)
@given(per_s=RATES, arrival=ARRIVALS, identity=IDENTITIES, spans=st.tuples(*[st.floats(1, 60)] * 2))
def test_a_longer_span_begins_with_the_shorter_one(
    per_s: float, arrival: str, identity: str, spans: tuple[float, float]
) -> None:
    short, long = (
        schedule(per_s=per_s, arrival=arrival, span_s=span_s, identity=identity)
        for span_s in sorted(spans)
    )
    assert (long[: len(short)] == short).all()


@settings(deadline=None)
@given(arrival=ARRIVALS, one=IDENTITIES, other=IDENTITIES)
def test_an_identity_has_one_schedule_and_others_have_others(
    arrival: str, one: str, other: str
) -> None:
    first = schedule(arrival=arrival, identity=one)
    assert first.tolist() == schedule(arrival=arrival, identity=one).tolist()
    assert one == other or first.tolist() != schedule(arrival=arrival, identity=other).tolist()


@settings(deadline=None)
@given(per_s=RATES, factor=st.floats(1.5, 10), arrival=ARRIVALS)
def test_a_higher_rate_is_the_same_schedule_faster(
    per_s: float, factor: float, arrival: str
) -> None:
    slow = schedule(per_s=per_s, arrival=arrival)
    fast = schedule(per_s=per_s * factor, arrival=arrival)
    shared = min(len(slow), len(fast))
    np.testing.assert_allclose(fast[:shared] * factor, slow[:shared], rtol=1e-6, atol=2 * factor)


@pytest.mark.parametrize(
    ("arrival", "ns"),
    [
        ("poisson", [33_018_759, 183_483_012, 453_597_556, 481_105_203]),
        ("gamma", [3_556_579, 494_303_700, 513_384_061, 588_808_969]),
    ],
)
def test_a_seed_gives_this_schedule_for_ever(arrival: str, ns: list[int]) -> None:
    # Runs of different versions are compared: their load must be the same.
    assert schedule(arrival=arrival)[:4].tolist() == pytest.approx(ns, abs=1)


@pytest.mark.parametrize("arrival", ARRIVAL_SHAPES)
@pytest.mark.parametrize("identity", ["42/0/0", "42/0/1", "7/3/0"])
def test_the_rate_and_the_burstiness_are_those_asked_for(arrival: str, identity: str) -> None:
    found = schedule(per_s=1_000.0, arrival=arrival, span_s=200.0, identity=identity)
    steps = np.diff(found) / 1e9
    cv = interval_cv(arrival)
    # Standard errors: of a mean cv / sqrt(n); of a gamma's cv about as much times cv.
    tolerance = 5 * cv / math.sqrt(len(steps))
    assert len(found) == pytest.approx(200_000, rel=tolerance)
    assert steps.mean() == pytest.approx(0.001, rel=tolerance)
    assert steps.std() / steps.mean() == pytest.approx(cv, rel=2 * tolerance)


def test_gamma_has_the_distribution_of_its_shape() -> None:
    # Its third moment tells it from others with this mean and deviation: skewness 2 / sqrt(a).
    steps = np.diff(schedule(per_s=1_000.0, arrival="gamma", span_s=1_000.0)) * 1e-6
    skewness = ((steps - steps.mean()) ** 3).mean() / steps.std() ** 3
    assert skewness == pytest.approx(4, rel=0.05)
    assert (steps < 0.01).mean() == pytest.approx(0.2465, abs=0.005)  # P(1/4, 0.01/4)


def test_bursts_vary_twice_as_much_as_a_poisson_process() -> None:
    assert interval_cv("poisson") == 1
    assert interval_cv("gamma") == 2


@pytest.mark.parametrize("arrival", ARRIVAL_SHAPES)
def test_a_rate_at_which_nothing_comes_can_be_added_to_a_clock(arrival: str) -> None:
    (never,) = schedule(per_s=1e-300, arrival=arrival)
    assert 10**17 < int(never) + (1 << 61) < 1 << 63


# -- the workload --------------------------------------------------------------------------


def offsets(*seconds: float) -> IntArray:
    return np.array([round(at * S) for at in seconds], dtype=np.int64)


def drained(workload: OpenLoop) -> list[Request]:
    found = []
    while (request := workload.next_request(0)) is not None:
        found.append(request)
    return found


def test_every_arrival_takes_the_next_turn_of_a_user() -> None:
    turns = [[ask(user, f"{user}.{turn}", think_s=9.0) for turn in range(50)] for user in range(3)]
    times = [0.5 * number for number in range(60)]
    found = drained(OpenLoop(Script(turns), offsets(*times), "42/0/0"))
    assert [request.arrival_ns for request in found] == [round(at * S) for at in times]
    assert {request.think_s for request in found} == {0.0}
    for user in range(3):
        mine = [request for request in found if request.user == user]
        assert len(mine) > 10
        assert [r.keys for r in mine] == [r.keys for r in turns[user][: len(mine)]]


@settings(deadline=None)
@given(users=st.integers(1, 50), identity=IDENTITIES)
def test_nobody_asks_again_before_half_of_the_others_did(users: int, identity: str) -> None:
    turns = [[ask(user, "a")] * 300 for user in range(users)]
    found = drained(OpenLoop(Script(turns), offsets(*range(300)), identity))
    last: dict[int, int] = {}
    for number, request in enumerate(found):
        assert number - last.get(request.user, -users) >= (users + 2) // 2
        last[request.user] = number
    assert len(last) == users


def test_users_are_drawn_anew_for_each_identity() -> None:
    def users(identity: str) -> list[int]:
        turns = [[ask(user, "a")] * 100 for user in range(4)]
        workload = OpenLoop(Script(turns), offsets(*range(40)), identity)
        return [request.user for request in drained(workload)]

    assert users("42/0/0") == users("42/0/0")
    assert users("42/0/0") != users("42/0/1")


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5), arrivals=st.integers(0, 30))
def test_users_that_have_no_more_turns_are_passed_over(lengths: list[int], arrivals: int) -> None:
    turns: Sequence[Sequence[Request]] = [[ask(n, "a")] * count for n, count in enumerate(lengths)]
    workload = OpenLoop(Script(turns), offsets(*range(arrivals)), "42/0/0")
    assert len(drained(workload)) == min(arrivals, sum(lengths))


def test_the_population_is_that_of_the_closed_workload() -> None:
    context = talking(replace(SPEC, seed=3), "chat")
    family = SyntheticFamily()
    workload = OpenLoop(family.build(context), offsets(1), "3/0/0")
    assert list(workload.population()) == list(family.build(context).population())
    assert (workload.users, workload.open_loop) == (6, True)


def test_a_workload_with_arrivals_of_its_own_takes_no_rate() -> None:
    with pytest.raises(OptionError, match="--kv-request-rate is given, and the scenario has"):
        OpenLoop(Script([[ask(0, "a", arrival_ns=0)]], open_loop=True), offsets(1), "42/0/0")


@pytest.mark.parametrize("scenario", ["chat", "coding", "document", "agent", "mixed"])
def test_every_closed_scenario_takes_a_rate(scenario: str) -> None:
    closed = build_registry().workload(scenario).build(talking(SPEC, scenario))
    assert len(drained(OpenLoop(closed, offsets(*range(20)), "42/0/0"))) == 20
