"""A search for the load at which throughput peaks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.plan.peaksearch import (
    MIN_LOADS,
    MOST_RESIDUAL,
    NEARLY,
    PeakSearch,
    ScalabilityFit,
    fit_scalability,
)
from pytest_kvcache.plan.usersearch import MAX_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = st.integers(1, 10_000)
LAWS = st.builds(
    ScalabilityFit,
    rate=st.floats(0.1, 1e4),
    contention=st.floats(0, 1),
    coherency=st.floats(0, 0.1),
    residual=st.just(0.0),
)


def searched(search: PeakSearch, law: ScalabilityFit) -> PeakSearch:
    while (users := search.next_users()) is not None:
        search = search.noted(users, law.per_s(users))
    return search


@given(most=MOST, law=LAWS)
def test_the_answer_reaches_nearly_the_most_of_what_was_tried_in_few_steps(
    most: int, law: ScalabilityFit
) -> None:
    search = searched(PeakSearch(most=most), law)
    assert len(search.tried) <= MAX_STEPS
    assert 1 <= search.kept <= most
    assert search.best is not None
    assert law.per_s(search.kept) >= NEARLY * search.best[1]
    assert len({users for users, _per_s in search.tried}) == len(search.tried)


@given(most=st.integers(64, 10_000), law=LAWS)
def test_a_law_is_found_again_in_loads_that_follow_it(most: int, law: ScalabilityFit) -> None:
    search = searched(PeakSearch(most=most, predicts=True), law)
    fit = search.fit
    assert fit is not None
    assert fit.residual < 0.01
    for users in (1, most // 3, most):
        assert fit.per_s(users) == pytest.approx(law.per_s(users), rel=0.05)
    assert law.per_s(search.kept) >= 0.9 * max(per_s for _users, per_s in search.judged)


def test_throughput_that_is_flat_from_some_load_on_has_its_knee() -> None:
    search = PeakSearch(most=64)
    while (users := search.next_users()) is not None:
        search = search.noted(users, float(min(users, 20)))
    assert search.kept == 19  # 95 % of 20
    assert not search.range_ended


def test_a_last_step_of_less_than_twice_the_users_must_grow_by_less_and_must_grow() -> None:
    search = PeakSearch(most=100)
    while (users := search.next_users()) is not None:
        search = search.noted(users, 640.0 + 0.4 * (users - 64) if users > 64 else 10.0 * users)
    assert not search.range_ended  # 100 users get 2.2 % more done than 64
    assert 55 < search.kept < 65


def test_a_law_that_is_flat_has_no_peak_at_the_end_of_the_range() -> None:
    search = searched_by(lambda _users: 40.0, most=100)
    assert (search.kept, search.range_ended) == (1, False)


def test_a_law_that_misses_what_was_seen_is_no_answer() -> None:
    search = searched_by(lambda users: 10.0 * users if users <= 8 else 10.0, most=100)
    assert search.fit is not None
    assert search.fit.residual > MOST_RESIDUAL
    assert search.kept == 0


def test_an_answer_must_reach_what_another_load_has_reached() -> None:
    search = searched_by(lambda users: 10.0 * users if users <= 20 else 200.0, most=32)
    assert search.best is not None
    assert float(search.objective.partition(">=")[2]) >= 0.9 * search.best[1]


def searched_by(per_s: Callable[[int], float], *, most: int) -> PeakSearch:
    search = PeakSearch(most=most, predicts=True)
    while (users := search.next_users()) is not None:
        search = search.noted(users, per_s(users))
    return search


def test_throughput_that_still_grows_where_the_range_ends_is_told() -> None:
    search = PeakSearch(most=16)
    while (users := search.next_users()) is not None:
        search = search.noted(users, float(users))
    assert (search.kept, search.range_ended) == (16, True)


def test_loads_that_can_not_be_judged_are_gone_on_from() -> None:
    search = PeakSearch(most=64)
    tried = []
    while (users := search.next_users()) is not None:
        tried.append(users)
        search = search.noted(users, None if users < 8 else float(min(users, 20)))
    assert tried[:4] == [2, 4, 8, 16]
    assert search.kept == 19


@pytest.mark.parametrize("search", [PeakSearch(most=64), PeakSearch(most=64, predicts=True)])
def test_where_nothing_can_be_judged_there_is_no_answer(search: PeakSearch) -> None:
    while (users := search.next_users()) is not None:
        search = search.noted(users, None)
    assert search.kept == 0


def test_a_law_needs_more_loads_than_it_has_parameters() -> None:
    search = PeakSearch(most=4, predicts=True)
    while (users := search.next_users()) is not None:
        search = search.noted(users, float(users))
    assert len(search.judged) < MIN_LOADS
    assert (search.fit, search.kept) == (None, 0)


def test_a_law_without_a_peak_grows_on() -> None:
    fit = fit_scalability([(n, 10.0 * n) for n in (1, 2, 4, 8)])
    assert fit.peak_users == math.inf
    search = PeakSearch(most=8, predicts=True, tried=tuple((n, 10.0 * n) for n in (1, 2, 4, 8)))
    assert (search.kept, search.range_ended) == (8, True)


def test_noise_shows_in_the_residual() -> None:
    law = ScalabilityFit(rate=10, contention=0.1, coherency=0.001, residual=0.0)
    loads = [(n, law.per_s(n) * (0.9 if n in {2, 8} else 1.1)) for n in (1, 2, 4, 8, 16, 32)]
    assert 0.03 < fit_scalability(loads).residual < 0.2


def test_the_answer_must_reach_nine_tenths_when_it_is_launched_again() -> None:
    search = PeakSearch(most=64).noted(2, 100.0)
    assert search.objective == "requests.per_s>=90"


def test_another_load_than_was_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="5 users were tried; the search asks for 2"):
        PeakSearch(most=64).noted(5, 1.0)
