from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import MOONCAKE, SHAREGPT, real_trace, small_trace

if TYPE_CHECKING:
    from pytest_kvcache.traces.read import Trace

PATHS = st.lists(st.integers(0, 2), max_size=6).map(
    lambda path: [int("1" + "".join(map(str, path[: i + 1]))) for i in range(len(path))]
)
PROMPTS = st.lists(PATHS, max_size=40)


def hit_ratios(trace: Trace, ranks: int) -> tuple[float, float]:
    """Return those of an infinite cache: one rank serves all, and each its part."""
    blocks = max(1, len(trace.block_ids))
    partitioned = sum(infinite_hits(trace, part) for part in partition(trace, ranks))
    return infinite_hits(trace) / blocks, partitioned / blocks


def imbalance(trace: Trace, ranks: int) -> float:
    """Return the heaviest rank's blocks over the mean."""
    counts = np.maximum(1, np.diff(trace.offsets))
    loads = [int(counts[part].sum()) for part in partition(trace, ranks)]
    return max(loads) * ranks / sum(loads)


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 9))
def test_every_request_is_dealt_exactly_once_in_file_order(
    prompts: list[list[int]], ranks: int
) -> None:
    parts = partition(small_trace(prompts), ranks)
    assert len(parts) == ranks
    assert sorted(i for part in parts for i in part) == list(range(len(prompts)))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.thorough
@settings(deadline=None)
@given(PROMPTS, st.integers(1, 9))
def test_dealing_twice_deals_the_same(prompts: list[list[int]], ranks: int) -> None:
    first, second = partition(small_trace(prompts), ranks), partition(small_trace(prompts), ranks)
    assert [part.tolist() for part in first] == [part.tolist() for part in second]


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 9))
def test_dealing_never_adds_hits(prompts: list[list[int]], ranks: int) -> None:
    trace = small_trace(prompts)
    together, partitioned = hit_ratios(trace, ranks)
    assert 0 <= partitioned <= together <= 1
    assert together * len(trace.block_ids) == pytest.approx(infinite_hits(trace))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_recorded_trace_loads_its_ranks_equally_and_loses_no_hits(ranks: int) -> None:
    trace = real_trace(MOONCAKE)
    assert imbalance(trace, ranks) < 1.001
    together, partitioned = hit_ratios(trace, ranks)
    assert partitioned == together
    assert together == pytest.approx(0.639604, abs=5e-7)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_short_recorded_trace_loads_its_ranks_equally(ranks: int) -> None:
    assert imbalance(real_trace(SHAREGPT), ranks) < 1.005


def test_a_first_block_that_all_share_does_not_send_all_to_one_rank() -> None:
    prompts = [[0, conversation, 100 + conversation] for conversation in range(1, 41)] * 3
    trace = small_trace(prompts)
    assert imbalance(trace, 4) == 1
    together, partitioned = hit_ratios(trace, 4)
    # Each conversation stays whole; only the common block is stored once per rank.
    assert (together - partitioned) * len(trace.block_ids) == pytest.approx(3)


def test_a_conversation_stays_on_one_rank_while_it_is_light() -> None:
    turns = [[10 * c + i for i in range(turn)] for turn in (1, 2, 3) for c in range(1, 33)]
    trace = small_trace(turns)
    for part in partition(trace, 4):
        conversations = [turns[i][0] // 10 for i in part]
        assert all(conversations.count(c) == 3 for c in conversations)


def test_heaviest_groups_go_first_and_ties_to_the_lower_rank() -> None:
    prompts = [[1], [2, 20], [3, 30, 31], [4], [5, 50]]
    parts = [part.tolist() for part in partition(small_trace(prompts), 2)]
    assert parts == [[0, 2, 3], [1, 4]]


def test_requests_without_ids_are_dealt_by_their_length() -> None:
    trace = small_trace([[], [], [], []], block_tokens=4, input_tokens=[40, 16, 12, 13])
    assert [part.tolist() for part in partition(trace, 2)] == [[0], [1, 2, 3]]


def test_one_rank_gets_everything() -> None:
    trace = small_trace([[1], [], [1, 2]])
    assert [part.tolist() for part in partition(trace, 1)] == [[0, 1, 2]]


def test_more_ranks_than_requests_leave_ranks_without_any() -> None:
    assert [len(part) for part in partition(small_trace([[1], [2]]), 4)] == [1, 1, 0, 0]


def test_dealing_to_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks is 0"):
        partition(small_trace([[1]]), 0)


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 9), st.data())
def test_a_conversation_that_the_format_names_is_never_torn(
    prompts: list[list[int]], ranks: int, data: st.DataObject
) -> None:
    numbers = [data.draw(st.integers(0, 5)) for _ in prompts]
    trace = replace(small_trace(prompts), conversations=np.array(numbers, dtype=np.int64))
    parts = partition(trace, ranks)
    assert sorted(i for part in parts for i in part) == list(range(len(prompts)))
    owners = [{numbers[i] for i in part} for part in parts]
    assert sum(map(len, owners)) == len(set(numbers))
    weights = [max(1, len(prompt)) for prompt in prompts]
    loads = [sum(weights[i] for i in part) for part in parts]
    heaviest = max((sum(w for w, n in zip(weights, numbers, strict=True) if n == each)
                    for each in set(numbers)), default=0)  # fmt: skip
    assert max(loads) - min(loads) <= heaviest
