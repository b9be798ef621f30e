from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.protocol import WorkloadContext
from pytest_kvcache.workloads.replay import ReplayFamily, ReplayWorkload
from tests.recordings import MOONCAKE, REFERENCE, real_trace, small_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Request

S = 1_000_000_000


def timed(arrivals_s: Sequence[float], prompts: Sequence[Sequence[int]] | None = None) -> Trace:
    """A trace of requests that arrive at these seconds."""
    prompts = prompts or [[number] for number in range(len(arrivals_s))]
    arrivals = np.array([round(at * S) for at in arrivals_s], dtype=np.int64)
    return replace(small_trace(prompts), arrival_ns=arrivals)


def context(trace: Trace | None, *, speedup: float = 0.0, cycles: int = 1) -> WorkloadContext:
    return WorkloadContext(
        users=3,
        block_tokens=4,
        context_scale=1.0,
        seed=42,
        trial=0,
        rank=0,
        trace=trace,
        trace_speedup=speedup,
        trace_cycles=cycles,
    )


def replay(trace: Trace, *, speedup: float = 0.0, cycles: int = 1) -> list[Request]:
    """All requests of a replay."""
    workload = ReplayFamily().build(context(trace, speedup=speedup, cycles=cycles))
    found = []
    while (request := workload.next_request(0)) is not None:
        found.append(request)
    assert workload.next_request(0) is None
    return found


def arrivals_s(trace: Trace, *, speedup: float = 1.0, cycles: int = 1) -> list[float]:
    found = [request.arrival_ns for request in replay(trace, speedup=speedup, cycles=cycles)]
    assert None not in found
    return [at / S for at in found if at is not None]


@pytest.mark.parametrize("speedup", [1e-9, 1e-99, 5e-324])
@pytest.mark.parametrize("cycles", [1, 10**18 - 1])
def test_no_arrival_is_later_than_a_clock_can_tell(speedup: float, cycles: int) -> None:
    workload = ReplayFamily().build(context(timed([0, 1, 5]), speedup=speedup, cycles=cycles))
    found = [workload.next_request(0) for _ in range(3)]
    arrivals = [request.arrival_ns for request in found if request is not None]
    assert arrivals[0] == 0
    assert len(arrivals) == 3
    for arrival_ns in arrivals:
        assert arrival_ns is not None
        np.int64(arrival_ns + time.monotonic_ns())  # OverflowError if it does not fit


# -- requests ------------------------------------------------------------------------------


def test_requests_come_in_file_order_to_whoever_is_free() -> None:
    trace = small_trace([[1, 2], [], [3]], input_tokens=[7, 3, 4])
    workload = ReplayWorkload(trace, users=3, speedup=0.0, cycles=1)
    found = [workload.next_request(user) for user in (2, 0, 0)]
    assert [request.user for request in found if request] == [2, 0, 0]
    assert [(r.prompt_blocks, r.prompt_tokens, r.output_tokens) for r in found if r] == [
        (2, 7, 1),
        (0, 3, 1),
        (1, 4, 1),
    ]
    assert {r.think_s for r in found if r} == {0.0}
    assert {r.arrival_ns for r in found if r} == {None}
    assert workload.next_request(1) is None


IDS = st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=8, unique=True)


@settings(deadline=None)
@given(st.lists(IDS, min_size=1, max_size=5))
def test_keys_are_equal_where_ids_are(prompts: list[list[int]]) -> None:
    keys = {
        (block, key)
        for ids, request in zip(prompts, replay(small_trace(prompts)), strict=True)
        for block, key in zip(ids, request.keys, strict=True)
    }
    assert len({block for block, _ in keys}) == len({key for _, key in keys}) == len(keys)
    assert {len(key) for _, key in keys} == {16}


def test_a_real_trace_is_replayed_whole() -> None:
    reference, found = REFERENCE[MOONCAKE], replay(real_trace(MOONCAKE))
    assert len(found) == reference.requests
    assert sum(request.prompt_blocks for request in found) == reference.prompt_blocks
    assert sum(request.prompt_tokens for request in found) == reference.input_tokens
    assert sum(request.output_tokens for request in found) == reference.output_tokens
    assert len({key for request in found for key in request.keys}) == reference.distinct_blocks


def test_later_cycles_ask_for_the_same_blocks() -> None:
    found = replay(small_trace([[1, 2], [3]]), cycles=3)
    assert len(found) == 6
    assert [request.keys for request in found] == [request.keys for request in found[:2]] * 3


def test_a_replay_starts_with_an_empty_cache() -> None:
    assert list(ReplayFamily().build(context(small_trace([[1]]))).population()) == []


def test_an_empty_trace_asks_for_nothing() -> None:
    assert replay(small_trace([])) == []
    assert replay(small_trace([]), speedup=1.0) == []
    need = ReplayFamily().need(context(small_trace([]), speedup=1.0))
    assert (need.working_set_blocks, need.requests, need.span_s) == (0, 0, 0.0)


# -- arrivals ------------------------------------------------------------------------------


def test_only_a_speedup_opens_the_loop() -> None:
    trace = small_trace([[1]])
    loops = {s: ReplayFamily().build(context(trace, speedup=s)).open_loop for s in (0.0, 0.5, 2.0)}
    assert loops == {0.0: False, 0.5: True, 2.0: True}
    assert ReplayFamily().build(context(trace)).users == 3


def test_arrivals_are_the_recorded_ones_divided_by_the_speedup() -> None:
    trace = timed([0, 1, 1, 4])
    assert arrivals_s(trace) == [0, 1, 1, 4]
    assert arrivals_s(trace, speedup=2.0) == [0, 0.5, 0.5, 2]
    assert arrivals_s(trace, speedup=0.5) == [0, 2, 2, 8]


def test_a_recording_that_starts_late_is_replayed_at_once() -> None:
    assert arrivals_s(timed([1_000_000_000, 1_000_000_003])) == [0, 3]


def test_a_cycle_follows_one_mean_pause_after_the_last_request() -> None:
    assert arrivals_s(timed([0, 1, 2, 6]), cycles=3) == [0, 1, 2, 6, 8, 9, 10, 14, 16, 17, 18, 22]
    assert arrivals_s(timed([5]), cycles=2) == [0, 0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(1, 3))
def test_an_open_loop_is_asked_for_in_order_of_arrival(times: list[int], cycles: int) -> None:
    # The engine waits for one arrival at a time: an earlier one behind it would be late.
    found = arrivals_s(timed(times), cycles=cycles)
    assert found == sorted(found)
    assert len(found) == len(times) * cycles


@pytest.mark.parametrize("cycles", [1, 2])
def test_ranks_keep_their_distance_in_time(cycles: int) -> None:
    trace = timed([0, 1, 10, 14])
    whole = arrivals_s(trace, cycles=cycles)
    parts = [trace.select(part) for part in ([0, 1], [2, 3])]
    found = [arrivals_s(part, cycles=cycles) for part in parts]
    assert sorted(found[0] + found[1]) == whole


# -- the need ------------------------------------------------------------------------------


def test_a_replay_needs_every_distinct_block_once() -> None:
    trace = timed([0, 10, 20], [[1, 2, 3], [1, 2, 4], [1]])
    need = ReplayFamily().need(context(trace, speedup=4.0, cycles=2))
    assert need.working_set_blocks == 4
    assert (need.requests, need.accessed_blocks) == (6, 14)
    closed = ReplayFamily().need(context(trace))
    assert (closed.span_s, closed.working_set_blocks) == (0.0, 4)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1_000), min_size=1, max_size=10),
    st.integers(1, 5),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_the_span_lasts_until_the_last_arrival(
    times: list[int], cycles: int, speedup: float
) -> None:
    trace = timed(sorted(times))
    need = ReplayFamily().need(context(trace, speedup=speedup, cycles=cycles))
    assert need.span_s >= max(arrivals_s(trace, speedup=speedup, cycles=cycles)) - 1e-6


def test_a_replay_needs_a_trace() -> None:
    assert ReplayFamily().needs_trace
    for ask in (ReplayFamily().need, ReplayFamily().build):
        with pytest.raises(OptionError, match="name the file with --kv-trace=FILE"):
            ask(context(None))
