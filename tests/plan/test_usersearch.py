"""The search for the largest load that keeps its objectives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.plan.usersearch import MAX_STEPS, UserSearch


def searched(most: int, carries: int, enough: int = 1) -> tuple[UserSearch, list[int]]:
    """A search on a storage that carries so many users, and what it tried.

    Fewer users than ``enough`` do too little to tell.
    """
    search, tried = UserSearch(most=most), list[int]()
    while (users := search.next_users()) is not None:
        tried.append(users)
        search = search.noted(users, keeps=users <= carries if users >= enough else None)
    return search, tried


def test_it_doubles_and_then_halves_what_is_left() -> None:
    search, tried = searched(100, 37)
    assert tried == [4, 8, 16, 32, 64, 48, 40, 36, 38]
    assert (search.kept, search.broken) == (36, 38)  # 37 would be 3 % more


def test_a_range_that_ends_first_is_an_answer() -> None:
    search, tried = searched(64, 1_000)
    assert tried == [2, 4, 8, 16, 32, 64]
    assert (search.kept, search.broken) == (64, None)


def test_a_load_that_one_user_breaks_has_none() -> None:
    search, tried = searched(100, 0)
    assert tried == [4, 1]
    assert (search.kept, search.broken) == (0, 1)


def test_loads_that_do_too_little_to_tell_are_gone_on_from_and_are_no_answer() -> None:
    search, tried = searched(64, 20, enough=10)
    assert tried == [2, 4, 8, 16, 32, 24, 20, 22, 21]
    assert (search.kept, search.broken) == (20, 21)
    search, tried = searched(64, 9, enough=20)
    assert tried == [2, 4, 8, 16, 32, 24, 20, 18, 17]
    assert (search.kept, search.broken, search.unjudged) == (0, 17, 16)
    search, _tried = searched(8, 100, enough=20)
    assert (search.kept, search.broken, search.unjudged) == (0, None, 8)


@given(st.integers(1, 100_000), st.integers(0, 120_000))
def test_what_it_finds_is_kept_and_what_is_beyond_is_near(most: int, carries: int) -> None:
    search, tried = searched(most, carries)
    assert len(tried) == len(set(tried)) <= MAX_STEPS
    assert all(1 <= users <= most for users in tried)
    assert search.kept <= min(carries, most)
    if search.broken is None:
        assert search.kept == most
    else:
        assert search.broken > carries
        if search.steps < MAX_STEPS:
            assert search.broken - search.kept <= 1 + search.kept / 32
    assert bool(search.kept) == (carries >= 1)


def test_a_load_that_can_not_be_judged_above_one_that_was_kept_is_a_bound() -> None:
    search = UserSearch(most=200)
    for users, keeps in ((7, True), (14, True), (28, None), (21, None), (17, True), (19, True)):
        search = search.noted(users, keeps=keeps)
    assert (search.kept, search.broken, search.next_users()) == (19, 21, 20)


@given(st.integers(1, 100_000), st.integers(0, 120_000), st.integers(1, 120_000))
def test_an_answer_was_judged_and_a_search_ends(most: int, carries: int, enough: int) -> None:
    search, tried = searched(most, carries, enough)
    assert len(tried) == len(set(tried)) <= MAX_STEPS
    assert not search.kept or enough <= search.kept <= min(carries, most)
    assert search.broken is None or search.broken > max(search.kept, search.unjudged)


def test_another_load_than_it_asked_for_is_no_step() -> None:
    with pytest.raises(ValueError, match="5 users were tried; the search asks for 4"):
        UserSearch(most=100).noted(5, keeps=True)
