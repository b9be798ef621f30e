"""Which series changed on the way, and which only vary."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pytest_kvcache.measure.steadiness import Change, grouped, largest_change


def noisy(seed: int, *levels: float, cv: float) -> list[float]:
    draws = random.Random(seed)
    return [max(0.0, draws.gauss(level, cv * level)) for level in levels]


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "allowed"), [(6, 5), (10, 5), (30, 5), (120, 5)])
def test_a_healthy_disk_varies_without_a_change(count: int, allowed: int) -> None:
    reported = sum(
        largest_change(noisy(seed, *[1.0] * count, cv=0.2), 0.25) is not None
        for seed in range(1_000)
    )
    assert reported <= allowed


def alike(seed: int, count: int, likeness: float, cv: float) -> list[float]:
    """A stationary AR(1) process around 1."""
    draws = random.Random(seed)
    values = [draws.gauss(0.0, cv)]
    for _ in range(count - 1):
        step = draws.gauss(0.0, cv * (1 - likeness**2) ** 0.5)
        values.append(likeness * values[-1] + step)
    return [max(0.0, 1.0 + value) for value in values]


@pytest.mark.thorough
def test_a_disk_whose_seconds_are_like_their_neighbours_changes_rarely() -> None:
    reported = [largest_change(alike(seed, 60, 0.8, 0.17), 0.25) for seed in range(300)]
    assert len(reported) - reported.count(None) <= 18


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "mean"), [(6, 4), (14, 8), (30, 1), (60, 4), (60, 14)])
def test_few_operations_vary_without_a_change(count: int, mean: float) -> None:
    reported = sum(few(seed, *[mean] * count) is not None for seed in range(300))
    assert reported <= 3


def few(seed: int, *means: float) -> Change | None:
    """What is found where independent operations come, so many per interval on average."""
    operations = np.random.default_rng(seed).poisson(means).tolist()
    spans = grouped(operations, 4)
    counts = [sum(operations[begin:end]) for begin, end in spans]
    rates = [count / (end - begin) for count, (begin, end) in zip(counts, spans, strict=True)]
    return largest_change(rates, 0.25, counts)


@pytest.mark.parametrize(("before", "after", "seconds"), [(14, 4, 30), (14, 4, 60), (4, 1, 60)])
def test_few_operations_that_become_fewer_are_a_change(
    before: float, after: float, seconds: int
) -> None:
    means = [before] * (seconds // 2) + [after] * (seconds // 2)
    found = [few(seed, *means) for seed in range(100)]
    assert found.count(None) <= 3


def test_intervals_of_few_operations_are_taken_together() -> None:
    assert grouped([3, 5, 4], 4) == [(0, 1), (1, 2), (2, 3)]
    assert grouped([1] * 10, 4) == [(0, 5), (5, 10)]
    assert grouped([0, 3], 4) == []
    assert grouped([], 4) == []


def test_a_step_is_named_in_a_window_of_five_seconds() -> None:
    change = largest_change([1.28, 1.28, 1.16, 0.41, 0.38], 0.25)
    assert change is not None
    assert (change.first, change.second) == ((0, 3), (3, 5))


def test_of_changes_of_one_size_the_clearest_is_named() -> None:
    change = largest_change([14.0] * 30 + [4.0] * 30, 0.25)
    assert change is not None
    assert (change.first, change.second) == ((0, 30), (30, 60))


def test_a_disk_that_slows_down_in_the_middle_is_named() -> None:
    change = largest_change([1.28, 1.28, 1.16, 0.41, 0.38, 0.38], 0.25)
    assert change is not None
    assert (change.before, change.after) == (1.28, 0.38)
    assert (change.first, change.second) == ((0, 3), (3, 6))


@pytest.mark.thorough
@pytest.mark.parametrize("at", [0.2, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("factor", [0.6, 1.8])
def test_a_step_is_found_wherever_it_is(at: float, factor: float) -> None:
    levels = [1.0 if second < 30 * at else factor for second in range(30)]
    for seed in range(100):
        assert largest_change(noisy(seed, *levels, cv=0.1), 0.25) is not None


def test_a_drift_and_a_hump_are_found() -> None:
    drift = [1.0 - 0.5 * second / 30 for second in range(30)]
    hump = [1.0] * 10 + [0.5] * 10 + [1.0] * 10
    for levels in (drift, hump):
        found = [largest_change(noisy(seed, *levels, cv=0.08), 0.25) for seed in range(100)]
        assert found.count(None) <= 4


@pytest.mark.parametrize(
    ("values", "limit", "stretch"),
    [
        ([1.28] * 4 + [0.38] * 2, 0.25, (4, 6)),
        ([0.38] * 2 + [1.28] * 4, 0.25, (0, 2)),
        ([17.8, 17.8, 17.8, 17.8, 65.0, 65.0], 0.33, (4, 6)),
        ([15.0, 16.0, 61.0, 65.0, 65.0, 65.0], 0.33, (0, 2)),
        ([352.0, 361.0, 344.0, 35.0, 33.0, 370.0, 349.0, 352.0], 0.25, (3, 5)),
    ],
)
def test_two_seconds_of_a_short_window_that_are_three_times_as_slow_are_a_change(
    values: list[float], limit: float, stretch: tuple[int, int]
) -> None:
    change = largest_change(values, limit)
    assert change is not None
    reported = {change.second, (change.second[1], len(values)), (0, change.second[0])}
    assert stretch in reported


def test_two_seconds_that_differ_by_less_than_a_factor_of_two_are_none() -> None:
    assert largest_change([1.0] * 8 + [0.55] * 2, 0.25) is None
    assert largest_change([1.0] * 7 + [0.55] * 3, 0.25) is not None


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("count", "length", "factor"),
    [(30, 3, 0.1), (30, 5, 0.1), (30, 4, 3.0), (60, 6, 1 / 3), (60, 15, 1 / 3), (120, 12, 1 / 3)],
)
def test_a_dip_is_found_and_placed_wherever_it_is(count: int, length: int, factor: float) -> None:
    for begin in range(1, count - length):
        inside = range(begin, begin + length)
        levels = [factor if second in inside else 1.0 for second in range(count)]
        change = largest_change(noisy(begin, *levels, cv=0.1), 0.25)
        assert change is not None, begin


def test_a_dip_is_reported_against_all_the_rest() -> None:
    change = largest_change([1.0] * 13 + [0.1] * 4 + [1.0] * 13, 0.25)
    assert change == Change(before=1.0, after=0.1, first=None, second=(13, 17))


@pytest.mark.parametrize("slow", [2, 4])
def test_a_stretch_at_an_end_is_reported_in_the_order_of_time(slow: int) -> None:
    values = [17.8] * (6 - slow) + [65.0] * slow
    change = Change(before=17.8, after=65.0, first=(0, 6 - slow), second=(6 - slow, 6))
    assert largest_change(values, 0.25) == change
    begun = Change(before=65.0, after=17.8, first=(0, slow), second=(slow, 6))
    assert largest_change(values[::-1], 0.25) == begun


def test_a_dip_of_a_thirtieth_of_the_window_is_none() -> None:
    assert largest_change([1.0] * 28 + [0.1] * 2 + [1.0] * 30, 0.25) is None


@pytest.mark.thorough
@pytest.mark.parametrize(("likeness", "cv"), [(0.6, 0.15), (0.6, 0.25), (0.8, 0.17)])
@pytest.mark.parametrize("count", [6, 10, 15, 30])
def test_stretches_tell_hardly_more_of_seconds_that_are_like_their_neighbours(
    count: int, likeness: float, cv: float
) -> None:
    found = [largest_change(alike(seed, count, likeness, cv), 0.25) for seed in range(500)]
    assert sum(change is not None and change.first is None for change in found) <= 5


def test_a_change_below_the_limit_is_none_however_clear() -> None:
    assert largest_change([1.0] * 15 + [0.8] * 15, 0.25) is None
    assert largest_change([1.0] * 15 + [0.7] * 15, 0.25) is not None


def test_a_drastic_fall_is_found_in_few_and_noisy_seconds() -> None:
    assert largest_change([948, 737, 1190, 1309, 235, 158, 200, 259], 0.25) is not None


def test_something_after_nothing_is_a_change() -> None:
    for level in (0.1, 1.0, 1e9):
        assert largest_change([0.0] * 16 + [level] * 14, 0.25) is not None


def test_single_seconds_are_no_change() -> None:
    values = [1.0] * 30
    values[12] = values[20] = 0.0
    assert largest_change(values, 0.25) is None


@pytest.mark.parametrize("values", [[], [1.0] * 5, [1.0, 1.0, 0.1], [0.0] * 30])
def test_too_few_or_no_values_say_nothing(values: list[float]) -> None:
    assert largest_change(values, 0.25) is None
