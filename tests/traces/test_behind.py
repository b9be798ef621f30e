from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.index import Blocked
from pytest_kvcache.cache.tiers import Tier, TierPolicy, TierStack
from pytest_kvcache.traces.behind import TwoTierCounts, behind_write_through, count_demoted
from pytest_kvcache.traces.reuse import find_reuses
from tests.recordings import TWO_TIERS, real_trace, small_trace
from tests.traces.test_reuse import PATHS

PROMPTS = st.lists(PATHS, max_size=30)


def as_the_runs_count(
    prompts: list[list[int]], policy: TierPolicy, memory_blocks: int, storage_blocks: int
) -> TwoTierCounts:
    """What the tiers of a rank decide, request by request."""
    rooms = {"cpu": memory_blocks, "storage": storage_blocks}
    stack = TierStack(
        [Tier(name=name, capacity_bytes=room, page_bytes=1) for name, room in rooms.items()], policy
    )
    for ids in prompts:
        keys = [block.to_bytes(16, "big") for block in ids]
        admission = stack.admit(keys, len(keys), 1)
        assert not isinstance(admission, Blocked)
        stack.settle(admission)
    memory, storage = stack.counts
    return TwoTierCounts(
        memory_blocks=memory.hit_blocks,
        storage_blocks=storage.hit_blocks,
        stored_blocks=storage.stored_blocks,
    )


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 12))
def test_a_storage_behind_write_through_memory_counts_as_the_runs_do_at_every_capacity(
    prompts: list[list[int]], memory_blocks: int
) -> None:
    behind = behind_write_through(find_reuses(small_trace(prompts)), memory_blocks)
    for storage_blocks in range(1, 20):
        expected = as_the_runs_count(prompts, "write-through", memory_blocks, storage_blocks)
        assert behind.counts(storage_blocks) == expected


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 12), st.integers(1, 16))
def test_a_storage_behind_demoting_memory_counts_as_the_runs_do(
    prompts: list[list[int]], memory_blocks: int, storage_blocks: int
) -> None:
    expected = as_the_runs_count(prompts, "demote", memory_blocks, storage_blocks)
    assert count_demoted(small_trace(prompts), memory_blocks, storage_blocks) == expected


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 12))
def test_the_curve_behind_memory_is_what_the_storage_hits(
    prompts: list[list[int]], memory_blocks: int
) -> None:
    behind = behind_write_through(find_reuses(small_trace(prompts)), memory_blocks)
    curve = behind.rest.curve()
    for storage_blocks in range(1, 20):
        assert curve.hit_blocks(storage_blocks) == behind.counts(storage_blocks).storage_blocks


@pytest.mark.parametrize(("name", "blocks", "policy", "hits", "stored"), TWO_TIERS)
def test_two_tiers_of_a_recorded_trace_are_its_reference_table(
    name: str,
    blocks: tuple[int, int | None],
    policy: str,
    hits: tuple[int, int],
    stored: int,
) -> None:
    trace = real_trace(name)
    reuses = find_reuses(trace)
    memory_blocks, storage_blocks = blocks[0], blocks[1] or reuses.distinct
    if policy == "write-through":
        counts = behind_write_through(reuses, memory_blocks).counts(storage_blocks)
    else:
        counts = count_demoted(trace, memory_blocks, storage_blocks)
    assert (counts.memory_blocks, counts.storage_blocks) == hits
    assert counts.stored_blocks == stored
