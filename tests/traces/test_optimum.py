from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces.optimum import optimal_hits
from pytest_kvcache.traces.reuse import find_reuses
from tests.recordings import AGENTS, MOONCAKE, real_trace, small_trace

PATHS = st.lists(st.integers(0, 1), max_size=3).map(
    lambda path: [int("1" + "".join(map(str, path[: i + 1]))) for i in range(len(path))]
)
PROMPTS = st.lists(PATHS, max_size=7)


def most_hits(prompts: list[list[int]], capacity_blocks: int) -> int:
    """Try every choice of what to keep between any two requests."""
    best = {frozenset[int](): 0}  # what is kept → the most hits until then
    for ids in prompts:
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            run = next((i for i, block in enumerate(ids) if block not in held), len(ids))
            known = sorted(held.union(ids))
            for size in range(min(capacity_blocks, len(known)) + 1):
                for kept in map(frozenset, combinations(known, size)):
                    after[kept] = max(after.get(kept, 0), hits + run)
        best = after
    return max(best.values())


@settings(deadline=None)
@given(PROMPTS, st.integers(0, 4))
def test_no_choice_of_what_to_keep_hits_more_and_one_hits_as_much(
    prompts: list[list[int]], capacity_blocks: int
) -> None:
    reuses = find_reuses(small_trace(prompts))
    assert optimal_hits(reuses, capacity_blocks) == most_hits(prompts, capacity_blocks)


@pytest.mark.parametrize("name", [MOONCAKE, AGENTS])
def test_lru_never_hits_more_than_the_optimum_and_both_reach_an_endless_cache(name: str) -> None:
    reuses = find_reuses(real_trace(name))
    curve = reuses.curve()
    for percent in (1, 50, 80, 90, 95, 99):
        capacity_blocks = curve.capacity_for_share(percent)
        best = optimal_hits(reuses, capacity_blocks)
        assert curve.hit_blocks(capacity_blocks) < best <= curve.hit_blocks(curve.distinct_blocks)
    assert optimal_hits(reuses, curve.distinct_blocks) == curve.hit_blocks(curve.distinct_blocks)
    assert optimal_hits(reuses, 0) == 0


def test_a_negative_capacity_has_no_optimum() -> None:
    with pytest.raises(ValueError, match="capacity_blocks is -1"):
        optimal_hits(find_reuses(small_trace([[1]])), -1)
