from __future__ import annotations

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.fixedwork import FixedWork
from tests.factories import Script, ask


def taken(work: FixedWork, *askers: int) -> list[tuple[int, float] | None]:
    """Whose turns these were that are asked for by these users, and the think times."""
    found = [work.next_request(user) for user in askers]
    return [None if request is None else (request.user, request.think_s) for request in found]


def test_users_take_turns_in_rotation_whoever_is_free_and_do_not_think() -> None:
    turns = [[ask(user, f"{user}/{turn}", think_s=3.0) for turn in range(9)] for user in range(3)]
    work = FixedWork(Script(turns, population=[ask(0, "x")]), 5)
    assert taken(work, 2, 2, 0, 0, 1, 1, 1) == [
        (0, 0.0), (1, 0.0), (2, 0.0), (0, 0.0), (1, 0.0), None, None
    ]  # fmt: skip
    assert list(work.population()) == [ask(0, "x")]
    assert (work.users, work.open_loop) == (3, False)


def test_a_user_who_has_no_more_turns_leaves_the_rotation() -> None:
    turns = [[ask(0, "a")], [ask(1, "b"), ask(1, "c"), ask(1, "d")]]
    work = FixedWork(Script(turns), 9)
    assert taken(work, 0, 0, 0, 0, 0) == [(0, 0.0), (1, 0.0), (1, 0.0), (1, 0.0), None]


def test_a_workload_with_arrivals_of_its_own_has_no_fixed_order_of_users() -> None:
    with pytest.raises(OptionError, match="arrivals of its own"):
        FixedWork(Script([[]], open_loop=True), 1)


class _Holding(Script):
    holds_users = True


def test_a_workload_whose_users_wait_for_each_other_is_refused_and_loses_no_request() -> None:
    with pytest.raises(OptionError, match="wait for each other"):
        FixedWork(_Holding([[ask(0, "a")]]), 1)
