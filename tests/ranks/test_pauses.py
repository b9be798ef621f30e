from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.ranks.pauses import PauseWatch, boottime_ns
from tests.factories import S


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        return self.now_ns


def watched(clock: Clock, in_ns: int, *looks_ns: int) -> float | None:
    """The longest pause of a window that begins so late, by looks at these times."""
    watch, origin_ns = PauseWatch(clock), clock.now_ns
    watch.begin(in_ns)
    for look_ns in looks_ns:
        clock.now_ns = origin_ns + look_ns
        watch.look()
    return watch.longest_s


def test_the_longest_time_between_two_looks_is_the_pause() -> None:
    assert watched(Clock(), 0, S // 10, 3 * S, 4 * S) == 2.9


def test_what_was_before_the_window_does_not_count() -> None:
    assert watched(Clock(), 10 * S, S, 9 * S, 10 * S + 5) == 5e-9


def test_a_window_that_began_already_counts_from_its_begin() -> None:
    assert watched(Clock(), -2 * S, S) == 3.0


def test_without_a_look_in_the_window_nothing_is_known() -> None:
    assert watched(Clock(), 10 * S, S, 2 * S) is None
    assert PauseWatch().longest_s is None


def test_a_watch_that_was_not_begun_says_nothing() -> None:
    watch = PauseWatch()
    watch.look()
    assert watch.longest_s is None


def test_long_times_between_two_looks_are_noted_from_the_windows_begin() -> None:
    clock = Clock()
    watch, origin_ns = PauseWatch(clock), clock.now_ns
    watch.begin(S)
    for look_ns in (S // 2, S + S // 10, 2 * S, 2 * S + S // 10, 4 * S):
        clock.now_ns = origin_ns + look_ns
        watch.look()
    assert watch.spans_ns == ((S // 10, S), (S + S // 10, 3 * S))
    watch.begin(0)
    assert list(watch.spans_ns) == []


def test_a_new_window_knows_nothing_of_the_one_before() -> None:
    clock = Clock()
    watch = PauseWatch(clock)
    watch.begin(0)
    clock.now_ns += 5 * S
    watch.look()
    watch.begin(0)
    clock.now_ns += S
    watch.look()
    assert watch.longest_s == 1.0


@given(st.lists(st.integers(0, 10**12), min_size=1).map(sorted))
def test_no_gap_between_looks_is_longer(looks_ns: list[int]) -> None:
    gaps_ns = [late - early for early, late in pairwise([0, *looks_ns])]
    assert watched(Clock(), 0, *looks_ns) == max(gaps_ns) / 1e9


@pytest.mark.parametrize(
    ("passed_ns", "measured_ns", "reported"),
    [
        (60 * S, 60 * S, None),
        (60 * S, 60 * S - 9_000_000, None),  # between the readings of a busy host
        (60 * S, 60 * S - 11_000_000, "0.011"),
        (60 * S, 0, "60.000"),  # suspended
        (60 * S, 3_660 * S, "-3600.000"),
        (60 * S, -S, "61.000"),
    ],
)
def test_a_clock_that_does_not_measure_what_passes_is_reported(
    passed_ns: int, measured_ns: int, reported: str | None
) -> None:
    passing, measuring = Clock(), Clock()
    watch = PauseWatch(passing, measuring)
    watch.begin(0)
    passing.now_ns += passed_ns
    measuring.now_ns += measured_ns
    fault = watch.clock_fault()
    assert (fault is None) == (reported is None)
    assert reported is None or f"went {reported} s apart" in str(fault)


def test_the_clocks_of_this_machine_go_together() -> None:
    watch = PauseWatch()
    watch.begin(0)
    assert watch.clock_fault() is None


def test_the_clock_never_goes_back() -> None:
    first = boottime_ns()
    assert boottime_ns() >= first
