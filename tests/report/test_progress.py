from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.report.progress import MARK, Outlook, progress_line, short_duration
from tests.factories import make_plan, sound_plan

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

GIB = 1 << 30
RECENT = {
    "operations_per_s": 12_345.6, "read_gib_per_s": 1.234, "write_gib_per_s": 56.78,
    "read_p99_ms": 3.21,
}  # fmt: skip


def event(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "event": "progress", "phase": "window", "t_s": 15.0, "prompt_blocks": 4, "hit_blocks": 3,
        "cached_bytes": 1_000 << 20, "free_bytes": 123 * GIB, "recent": RECENT, "interval": None,
    }  # fmt: skip
    return values | changes


def outlook_of(plan: Plan | None = None, trials: int = 3, phase: str = "window") -> Outlook:
    """In its first trial, which began 5 s before its ranks came together."""
    outlook = Outlook(plan or sound_plan(ramp_s=6.0, duration_s=60.0), trials)
    outlook.start(0, 0.0)
    outlook.enter(phase, 10.0)
    return outlook


def line(width: int = 100, **changes: Any) -> str:
    return progress_line(outlook_of(), event(**changes), now_s=20.0, width=width)


def test_a_window_has_a_total_and_what_is_left_of_all_trials() -> None:
    text = line(t_s=28.0)
    # The 48 s of this window, and two more trials of 68 s: 20 s until now, and those 48 s.
    assert text.startswith(f"{MARK}trial 1/3 window 12/60 s  3m04s left")


def test_the_lead_in_is_no_window_and_what_follows_it_is_none() -> None:
    assert "ramp 4/6 s" in line(t_s=14.0)
    assert "drain 3 s" in line(t_s=79.0)
    assert " 40 s left" in line(t_s=79.0)  # two trials like this one, by the 20 s it has taken


def test_all_figures_stand_where_there_is_room() -> None:
    text = line(width=100)
    for part in ("r 1.23 w 56.8 GiB/s", "12k IOPS", "r p99 3.21 ms", "hit  75%"):
        assert part in text
    assert "free 123 GiB" in line(width=120)
    assert sound_plan().case in line(width=160)


def test_the_least_important_is_left_out_first() -> None:
    for width, there, absent in (
        (80, "r p99", "IOPS"), (64, "GiB/s", "p99"), (45, "left", "GiB/s"),
        (20, "trial 1/3", "window"),
    ):  # fmt: skip
        text = line(width=width, t_s=28.0)
        assert there in text
        assert absent not in text
        assert len(text) < width


def test_columns_stay_where_they_are() -> None:
    outlook = outlook_of()
    stalled = {**dict.fromkeys(RECENT, 0.0), "read_p99_ms": None}
    lines = [
        progress_line(outlook, event(**changes), now_s=20.0, width=100)
        for changes in (
            {"t_s": 17.0}, {"t_s": 73.5, "hit_blocks": 4}, {"recent": None}, {"recent": stalled},
            {"t_s": 12.0}, {"prompt_blocks": 0, "hit_blocks": 0},
        )
    ]  # fmt: skip
    for word in (" w ", "GiB/s", "IOPS", "r p99", "hit"):
        assert len({text.index(word) for text in lines}) == 1, word


def test_a_second_without_operations_is_zero_and_one_that_lacks_a_rank_is_a_dash() -> None:
    stalled = {**dict.fromkeys(RECENT, 0.0), "read_p99_ms": None}
    assert "r 0.00 w 0.00 GiB/s    0 IOPS r p99 —" in line(recent=stalled)
    assert "r    — w    — GiB/s    — IOPS r p99 —" in line(recent=None)


def test_in_a_log_the_figures_are_those_of_the_interval() -> None:
    averaged = {**RECENT, "read_gib_per_s": 0.5, "read_p99_ms": 70.0}
    text = progress_line(
        outlook_of(), event(interval=averaged), now_s=20.0, width=100, averaged=True
    )
    assert "r 0.50 w 56.8" in text
    assert "r p99 70.0 ms" in text


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_without_a_directory_there_is_no_free_space(backend: str) -> None:
    outlook = outlook_of(make_plan(backend=backend))
    assert "free" not in progress_line(outlook, event(), now_s=20.0, width=200)


def test_population_tells_how_much_is_stored_and_how_long_the_rest_takes() -> None:
    plan = sound_plan(ramp_s=6.0, duration_s=60.0)
    wanted = min(plan.need_blocks, plan.capacity_blocks) * plan.stored_bytes * plan.np
    outlook = outlook_of(plan, trials=1, phase="population")
    reported = event(phase="population", t_s=20.0, cached_bytes=wanted // 2)
    text = progress_line(outlook, reported, now_s=20.0, width=100)
    assert "population 10 s" in text
    assert " 1m16s left" in text  # 10 s as long as until now, and the window
    assert "stored" in text


def test_what_trials_took_tells_how_long_the_next_ones_take() -> None:
    outlook = outlook_of()
    outlook.end(100.0)
    outlook.start(1, 100.0)
    starting = event(event="phase", phase="set-up", t_s=0.0)
    assert outlook.left_s(starting, 110.0) == 190.0
    outlook.enter("window", 10.0)
    assert outlook.left_s(event(t_s=10.0), 115.0) == 166.0


def test_where_nothing_tells_nothing_is_claimed() -> None:
    outlook = outlook_of(sound_plan(duration_s=None, ramp_s=0.0))
    assert outlook.left_s(event(), 20.0) is None
    assert "left" not in progress_line(outlook, event(), now_s=20.0, width=100)
    assert outlook_of(phase="set-up").left_s(event(phase="set-up"), 20.0) is None


def test_trials_that_may_not_be_needed_are_a_bound() -> None:
    outlook = Outlook(sound_plan(duration_s=60.0, ramp_s=0.0), 20, at_most=True)
    outlook.start(0, 0.0)
    outlook.enter("window", 1.0)
    assert " ≤ " in progress_line(outlook, event(t_s=2.0), now_s=2.0, width=100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (59.6, "1m00s"),
        (160, "2m40s"),
        (3_599, "59m59s"),
        (3_900, "1h05m"),
    ],
)
def test_times_that_are_left_are_short(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


@pytest.mark.thorough
@settings(deadline=None)
@given(
    name=st.from_regex(r"[a-z][a-z0-9.-]{0,60}", fullmatch=True),
    figures=st.none()
    | st.fixed_dictionaries(
        {
            "operations_per_s": st.floats(0, 1e8),
            "read_gib_per_s": st.floats(0, 9_999),
            "write_gib_per_s": st.floats(0, 9_999),
            "read_p99_ms": st.none() | st.floats(0, 1e6),
        }
    ),
    free_bytes=st.none() | st.integers(0, 1 << 53),
    width=st.integers(6, 200),
)
@pytest.mark.parametrize("phase", ["window", "population", "clean-up", "set-up"])
def test_every_line_fits_its_terminal(
    phase: str, name: str, figures: dict[str, Any] | None, free_bytes: int | None, width: int
) -> None:
    outlook = outlook_of(sound_plan(scenario=name), phase=phase)
    for t_s in (0.0, 33.0, 99_999.0):
        reported = event(t_s=t_s, recent=figures, free_bytes=free_bytes, phase=phase)
        assert len(progress_line(outlook, reported, now_s=20.0, width=width)) < width
