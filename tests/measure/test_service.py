from __future__ import annotations

import pytest

from pytest_kvcache.measure.recorder import SERVICE, Recorder, Window
from pytest_kvcache.measure.service import Limits, ServiceBook, ServiceCounts

MS = 1_000_000
LIMITS = Limits(
    of_class={"fast": (10.0, 20.0, 30.0, 40.0), "slow": (100.0, 200.0, 300.0, 400.0)},
    ns_per_byte=1.0,
    unclassed="slow",
)


def recorder(end_ms: int = 1_000) -> Recorder:
    made = Recorder(ServiceBook(LIMITS))
    made.open_window(Window(1_000 * MS, (1_000 + end_ms) * MS))
    return made


def answer(
    made: Recorder,
    name: str | None,
    took_ms: float,
    *,
    begin_ms: float = 0,
    size: int = 0,
    generation_ms: float = 0,
) -> None:
    began_ns = int((1_000 + begin_ms) * MS)
    done_ns = began_ns + int(took_ms * MS)
    place = LIMITS.places[name]
    made.log.add(SERVICE, place, began_ns, done_ns, int(generation_ms * MS), size)


def counted(made: Recorder, window_ms: int = 1_000) -> dict[str, ServiceCounts]:
    made.finish()
    assert made.service is not None
    slice_ns = 10 * MS
    return {each.name: each for each in made.service.counted(window_ms * MS, slice_ns)}


def test_a_request_is_within_each_limit_that_it_keeps() -> None:
    made = recorder()
    for took_ms in (10, 10.1, 25, 40, 40.1):
        answer(made, "fast", took_ms)
    found = counted(made)["fast"]
    within = (found.within_p95, found.within_p99, found.within_p999, found.within_p9999)
    assert (found.judged, within) == (5, (1, 2, 3, 4))
    assert (found.completed_in_window, found.good_in_window) == (5, 1)


def test_what_a_request_reads_gives_it_more_time() -> None:
    made = recorder()
    answer(made, "fast", 15, size=5 * MS)  # at a nanosecond per byte
    answer(made, "fast", 15, size=5 * MS - 1)
    assert counted(made)["fast"].good_in_window == 1


def test_simulated_generation_is_no_time_of_the_storage() -> None:
    made = recorder()
    answer(made, "fast", 60, generation_ms=50)
    answer(made, "fast", 61, generation_ms=50)
    assert counted(made)["fast"].good_in_window == 1


def test_each_class_has_its_own_limits_and_who_has_none_those_that_are_named() -> None:
    made = recorder()
    for name in ("fast", "slow", None):
        answer(made, name, 50)
    found = counted(made)
    assert (found["fast"].judged, found["fast"].within_p95) == (1, 0)
    assert (found["slow"].judged, found["slow"].within_p95) == (2, 2)


def test_who_never_gets_an_answer_is_judged_and_was_not_in_time() -> None:
    made = recorder()
    answer(made, "fast", 1)
    for begin_ms in (0, 999, -1, 1_000):  # the last two are not of the window
        made.miss("fast", (1_000 + begin_ms) * MS)
    found = counted(made)["fast"]
    assert (found.judged, found.within_p95, found.within_p9999) == (3, 1, 1)
    assert (found.completed_in_window, found.good_in_window) == (1, 1)


def test_requests_are_judged_by_their_begin_and_goodput_counts_their_ends() -> None:
    made = recorder()
    answer(made, "slow", 50, begin_ms=-20)  # ends in the window
    answer(made, "slow", 50, begin_ms=980)  # begins in it
    answer(made, "slow", 50, begin_ms=100)
    found = counted(made)["slow"]
    assert (found.judged, found.within_p95) == (2, 2)
    assert (found.completed_in_window, found.good_in_window) == (2, 2)


def test_a_window_begins_with_nothing() -> None:
    made = recorder()
    answer(made, "fast", 1)
    made.finish()
    made.open_window(Window(5_000 * MS, 6_000 * MS))
    assert [each.judged for each in counted(made).values()] == [0, 0]


@pytest.mark.parametrize("window_ms", [500, 1_000])
def test_the_common_window_cuts_what_ended_after_it(window_ms: int) -> None:
    made = recorder()
    answer(made, "slow", 50, begin_ms=100)
    answer(made, "slow", 50, begin_ms=700)
    assert counted(made, window_ms)["slow"].good_in_window == window_ms // 500


def test_without_objectives_nothing_is_judged() -> None:
    made = Recorder()
    made.open_window(Window(0, None))
    made.miss("fast", 0)
    assert made.service is None
