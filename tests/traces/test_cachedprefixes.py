from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces.cachedprefixes import CachedPrefixes, Call
from pytest_kvcache.traces.recorded import Asked, Recorded

ASKED = Asked(block_tokens=10, unit=None, ids=None, default_block_tokens=256)
Row = tuple[str, str, int, int]  # session, model, prompt, cached


def derived(rows: list[Row], times: list[int] | None = None) -> Recorded:
    calls = CachedPrefixes()
    for session, model, prompt, cached in rows:
        calls.add(session, model, Call(prompt, cached, 3))
    arrivals = np.array(range(len(rows)) if times is None else times, dtype=np.int64)
    return calls.finish(arrivals, ASKED, "t")


def prompts(found: Recorded) -> list[list[int]]:
    return [found.block_ids[a:b].tolist() for a, b in pairwise(found.offsets)]


def test_a_call_shares_what_was_cached_with_the_call_before_it() -> None:
    found = derived([("a", "m", 35, 0), ("a", "m", 62, 35), ("a", "m", 70, 40)])
    assert prompts(found) == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7, 8]]
    assert found.block_tokens == 10
    assert found.reading.ids == "cached"


def test_nothing_is_shared_that_the_session_did_not_hold() -> None:
    # The first call of a session, more than its calls had, and another session, another model.
    found = derived(
        [("a", "m", 30, 30), ("a", "m", 50, 50), ("b", "m", 30, 30), ("a", "n", 30, 30)]
    )
    assert prompts(found) == [[0, 1, 2], [0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10]]


def test_a_short_call_between_two_long_ones_takes_nothing_from_the_session() -> None:
    found = derived([("a", "m", 50, 0), ("a", "m", 12, 0), ("a", "m", 60, 50)])
    assert prompts(found)[2] == [*prompts(found)[0], 6]


def test_a_context_that_was_cut_goes_on_from_where_it_was_cut() -> None:
    found = derived([("a", "m", 50, 0), ("a", "m", 40, 20), ("a", "m", 45, 40)])
    assert prompts(found) == [[0, 1, 2, 3, 4], [0, 1, 5, 6], [0, 1, 5, 6]]


def test_calls_are_decided_by_time_whatever_the_file_s_order() -> None:
    found = derived([("a", "m", 30, 20), ("b", "m", 10, 0), ("a", "m", 20, 0)], [7, 7, 3])
    assert found.arrival_ns.tolist() == [3, 7, 7]
    assert prompts(found) == [[0, 1], [0, 1, 2], [3]]
    assert found.conversations is not None
    assert found.conversations.tolist() == [0, 0, 1]


CALLS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("mn"), st.integers(0, 99), st.integers(0, 99)),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(deadline=None)
@given(CALLS)
def test_hits_of_a_call_are_what_was_cached_or_less_and_blocks_are_prefixes(
    rows: list[Row],
) -> None:
    rows = [
        (session, model, prompt, min(prompt, cached)) for session, model, prompt, cached in rows
    ]
    found = derived(rows)
    known: dict[int, tuple[int, ...]] = {}
    longest: dict[tuple[str, str], int] = {}
    for ids, (session, model, prompt, cached) in zip(prompts(found), rows, strict=True):
        assert len(ids) == prompt // 10
        hits = sum(each in known for each in ids)
        most = longest.get((session, model), 0)
        assert hits == min(cached // 10, most)
        longest[session, model] = max(most, len(ids))
        for end, each in enumerate(ids):
            assert known.setdefault(each, tuple(ids[:end])) == tuple(ids[:end])
