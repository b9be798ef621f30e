from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces.reuse import hit_curve, infinite_hits
from tests.recordings import AGENTS, MOONCAKE, REFERENCE, SHAREGPT, real_trace, small_trace

PATHS = st.lists(st.integers(0, 2), max_size=8).map(
    lambda path: [int("1" + "".join(map(str, path[: i + 1]))) for i in range(len(path))]
)
IDS = st.lists(st.integers(0, 12), max_size=8, unique=True)
PROMPTS = st.lists(st.one_of(PATHS, IDS), max_size=30)


def literal_hits(prompts: list[list[int]], capacity_blocks: int) -> list[int]:
    """Return each request's hits; a list as the LRU stack, most recent first."""
    stack: list[int] = []
    hits = []
    for ids in prompts:
        present = set(stack)
        hits.append(next((i for i, block in enumerate(ids) if block not in present), len(ids)))
        for block in reversed(ids[:capacity_blocks]):
            stack = [block, *(other for other in stack if other != block)][:capacity_blocks]
    return hits


@settings(deadline=None)
@given(PROMPTS, st.data())
def test_the_curve_is_the_literal_loop_at_every_capacity(
    prompts: list[list[int]], data: st.DataObject
) -> None:
    partial = [data.draw(st.integers(1 - 4 if ids else 1, 3)) for ids in prompts]
    tokens = [4 * len(ids) + more for ids, more in zip(prompts, partial, strict=True)]
    curve = hit_curve(small_trace(prompts, block_tokens=4, input_tokens=tokens))
    distinct = len({block for ids in prompts for block in ids})
    assert curve.distinct_blocks == distinct
    for capacity_blocks in range(distinct + 3):
        hits = literal_hits(prompts, capacity_blocks)
        served = [min(4 * n, total) for n, total in zip(hits, tokens, strict=True)]
        assert curve.hit_blocks(capacity_blocks) == sum(hits)
        assert curve.hit_tokens(capacity_blocks) == sum(served)


@pytest.mark.thorough
@settings(deadline=None)
@given(PROMPTS, st.integers(1, 4))
def test_the_curve_of_cycles_is_the_literal_loop_over_all_of_them(
    prompts: list[list[int]], cycles: int
) -> None:
    curve = hit_curve(small_trace(prompts), cycles)
    distinct = len({block for ids in prompts for block in ids})
    assert curve.distinct_blocks == distinct
    assert curve.prompt_blocks == cycles * sum(map(len, prompts))
    whole = hit_curve(small_trace(prompts * cycles))
    for capacity_blocks in range(distinct + 3):
        hits = literal_hits(prompts * cycles, capacity_blocks)
        assert curve.hit_blocks(capacity_blocks) == sum(hits)
        assert curve.hit_token_ratio(capacity_blocks) == whole.hit_token_ratio(capacity_blocks)


def test_there_is_a_cycle_at_least() -> None:
    with pytest.raises(ValueError, match="cycles is 0; it must be at least 1"):
        hit_curve(small_trace([[1]]), 0)


@pytest.mark.parametrize("name", [MOONCAKE, SHAREGPT, AGENTS])
def test_the_curve_of_a_recorded_trace_is_its_reference_table(name: str) -> None:
    reference = REFERENCE[name]
    curve = hit_curve(real_trace(name))
    assert curve.prompt_blocks == reference.prompt_blocks
    assert curve.input_tokens == reference.input_tokens
    assert curve.distinct_blocks == reference.distinct_blocks
    for capacity_blocks, block_ratio, token_ratio in reference.lru:
        assert f"{curve.hit_ratio(capacity_blocks):.6f}" == block_ratio
        assert f"{curve.hit_token_ratio(capacity_blocks):.6f}" == token_ratio
    assert curve.hit_blocks(reference.distinct_blocks) == reference.infinite_hit_blocks
    assert curve.hit_tokens(reference.distinct_blocks) == reference.infinite_hit_tokens


@pytest.mark.parametrize("name", [MOONCAKE, SHAREGPT, AGENTS])
def test_infinite_hits_of_a_recorded_trace_are_its_reference(name: str) -> None:
    assert infinite_hits(real_trace(name)) == REFERENCE[name].infinite_hit_blocks


@settings(deadline=None)
@given(PROMPTS, st.data())
def test_infinite_hits_of_some_requests_know_nothing_of_the_others(
    prompts: list[list[int]], data: st.DataObject
) -> None:
    chosen = [i for i in range(len(prompts)) if data.draw(st.booleans())]
    part = [prompts[i] for i in chosen]
    hits = infinite_hits(small_trace(prompts), np.array(chosen, dtype=np.int64))
    assert hits == sum(literal_hits(part, 10_000))


@settings(deadline=None)
@given(PROMPTS, st.floats(0, 1))
def test_the_capacity_for_a_ratio_is_the_least_that_reaches_it(
    prompts: list[list[int]], ratio: float
) -> None:
    curve = hit_curve(small_trace(prompts))
    capacity_blocks = curve.capacity_for(ratio)
    if capacity_blocks is None:
        assert curve.hit_ratio(curve.distinct_blocks) < ratio
    else:
        assert curve.hit_ratio(capacity_blocks) >= ratio
        assert capacity_blocks == 0 or curve.hit_ratio(capacity_blocks - 1) < ratio


def test_the_best_ratio_of_a_recorded_trace_has_a_capacity_and_more_has_none() -> None:
    curve = hit_curve(real_trace(MOONCAKE))
    assert curve.capacity_for(0.9) is None
    assert curve.capacity_for(curve.hit_ratio(10_000)) in range(9_900, 10_001)


def test_a_capacity_beyond_the_working_set_hits_as_an_infinite_cache() -> None:
    curve = hit_curve(small_trace([[1, 2], [1, 2]]))
    assert curve.hit_blocks(2) == curve.hit_blocks(10**12) == 2


def test_a_trace_without_blocks_hits_nothing() -> None:
    curve = hit_curve(small_trace([[], []]))
    assert (curve.hit_ratio(5), curve.hit_token_ratio(5), curve.distinct_blocks) == (0, 0, 0)
    assert hit_curve(small_trace([])).hit_token_ratio(1) == 0


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity_blocks is -1"):
        hit_curve(small_trace([[1]])).hit_blocks(-1)
