"""Which loads pay: counted by length, added up over ranks, and where it turns over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.measure.recorder import LOAD, Recorder, Window
from pytest_kvcache.measure.worth import (
    LENGTH_STEP,
    LengthCounts,
    WorthBook,
    added,
    lengths_of,
    turning_tokens,
)

MS = 1_000_000
PER_S = 1_000.0  # a token takes a millisecond


def counts(*rows: tuple[int, int, int]) -> tuple[LengthCounts, ...]:
    return tuple(LengthCounts(tokens=t, loads=n, useful=u) for t, n, u in rows)


def booked(*loads: tuple[int, int]) -> WorthBook:
    """Loads of so many tokens that took so many milliseconds."""
    book = WorthBook(PER_S)
    book.begin()
    tokens, took_ms = np.array(loads, dtype=np.int64).T
    book.book(tokens, took_ms * MS)
    return book


def test_a_load_pays_that_takes_less_time_than_recomputing() -> None:
    book = booked((100, 99), (100, 100), (50, 10), (50, 60))
    assert book.counted() == counts((50, 2, 1), (100, 2, 1))
    assert (book.loaded_tokens, book.useful_tokens) == (300, 150)


def test_a_window_that_begins_forgets_what_was_before() -> None:
    book = booked((100, 1))
    book.begin()
    assert (book.counted(), book.loaded_tokens, book.useful_tokens) == ((), 0, 0)


def test_only_loads_that_began_in_the_window_are_counted() -> None:
    recorder = Recorder(worth=WorthBook(PER_S))
    recorder.open_window(Window(10 * MS, 20 * MS))
    for start_ms in (9, 10, 19, 20):
        recorder.log.add(LOAD, 0, start_ms * MS, (start_ms + 5) * MS, 100, 0)
    recorder.finish()
    assert recorder.worth is not None
    assert recorder.worth.counted() == counts((100, 2, 2))
    assert recorder.histograms["load"].count == 2


@given(st.integers(0, 1 << 40))
def test_a_length_is_kept_to_its_leading_bits(tokens: int) -> None:
    (length,) = lengths_of(np.array([tokens])).tolist()
    assert length <= tokens <= length * (1 + LENGTH_STEP)
    assert length == tokens or tokens >= 128
    assert lengths_of(np.array([length])).tolist() == [length]


LOADS = st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 9_000)), min_size=1, max_size=40)


@given(LOADS, LOADS)
def test_two_ranks_together_count_what_one_would_have(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    together = added([booked(*first).counted(), booked(*second).counted()])
    assert together == booked(*first, *second).counted()


@pytest.mark.parametrize(
    ("lengths", "turning"),
    [
        ([], None),
        ([(100, 5, 5), (200, 5, 5)], None),  # all pay
        ([(100, 5, 0), (200, 5, 0)], None),  # none does
        ([(100, 50, 0), (200, 50, 50)], 200),
        ([(100, 50, 10), (200, 50, 40), (400, 50, 50)], 200),
        ([(100, 50, 0), (200, 50, 20), (400, 50, 50)], 400),
        ([(100, 40, 20), (200, 40, 20)], None),  # a matter of chance at any length
        ([(100, 50, 50), (200, 50, 0)], None),  # the longer, the slower: no length to begin at
        ([(100, 9, 0), (200, 50, 50)], None),  # too few that do not pay
        ([(100, 50, 0), (200, 9, 9)], None),  # too few that do
    ],
)
def test_it_turns_over_at_the_length_that_misjudges_the_fewest(
    lengths: list[tuple[int, int, int]], turning: int | None
) -> None:
    assert turning_tokens(counts(*lengths)) == turning


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_no_other_length_judges_better(shares: list[tuple[int, int]]) -> None:
    rows = [(100 * at, 10 * n, 10 * min(n, u)) for at, (n, u) in enumerate(shares, 1)]
    lengths = counts(*rows)

    def misjudged(least: float) -> int:
        return sum(e.useful if e.tokens < least else e.loads - e.useful for e in lengths)

    turning = turning_tokens(lengths)
    others = [0.0, float("inf"), *(float(each.tokens) for each in lengths)]
    best = min(map(misjudged, others))
    useful, loads = sum(e.useful for e in lengths), sum(e.loads for e in lengths)
    if min(useful, loads - useful) < 10:
        assert turning is None
    elif turning is None:
        assert best == min(misjudged(0.0), misjudged(float("inf")))
    else:
        assert misjudged(turning) == best
        assert best < misjudged(0.0)
        assert best < misjudged(float("inf"))


@given(
    st.integers(0, 400), st.integers(1, 40), st.integers(2, 60), st.lists(st.integers(1, 127)),
)  # fmt: skip
def test_a_storage_of_known_speed_turns_over_where_it_can_be_computed(
    latency_us: int, token_us: int, recomputing_us: int, lengths: list[int]
) -> None:
    """A load of n tokens takes a + n · b, recomputing them n · c: it pays above a ÷ (c - b)."""
    tokens = np.array([*lengths, *10 * [*range(1, 128)]], dtype=np.int64)
    book = WorthBook(1e6 / recomputing_us)
    book.begin()
    book.book(tokens, latency_us * 1_000 + tokens * token_us * 1_000)
    pays = [n for n in range(1, 128) if latency_us + n * token_us < n * recomputing_us]
    expected = pays[0] if pays and pays[0] > 1 else None
    assert turning_tokens(book.counted()) == expected
