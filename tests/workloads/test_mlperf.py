"""What the mlperf scenarios ask of a storage, counted without one.

Expected figures are those of the reference (MLPerf Storage v3.0): what its distributions come
to, and what a run of its option 1 with seed 42 and null I/O showed in 15 s.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.models import MODELS
from pytest_kvcache.options.closed import CLOSED_SCENARIOS
from pytest_kvcache.workloads.mlperf import (
    CLOSED_OPTIONS,
    FAMILIES,
    MOST_TURNS,
    SERVICE_CLASSES,
    WRITE_ONLY_TOKENS,
    MlperfWorkload,
    draw_users,
    own_reads,
)
from pytest_kvcache.workloads.protocol import WholeObjectFamily, WorkloadContext

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.workloads.protocol import Request

TOKEN_BYTES = 131_072  # of llama3.1-8b
MIB = 1 << 20
WITHIN = 0.03
SPEC = WorkloadContext(
    users=200,
    block_tokens=25_000,
    context_scale=1.0,
    seed=42,
    trial=0,
    rank=0,
    trace=None,
    trace_speedup=0.0,
    trace_cycles=1,
    token_bytes=TOKEN_BYTES,
)


@dataclass
class Counted:
    """A literal cache that never forgets, and what a storage behind it would have seen."""

    sizes: dict[bytes, int] = field(default_factory=dict)
    reads: Counter[bytes] = field(default_factory=Counter)
    read_bytes: int = 0

    def holds(self, key: bytes) -> bool:
        return key in self.sizes

    def write(self, key: bytes, size: int) -> None:
        assert key not in self.sizes
        self.sizes[key] = size

    def read(self, key: bytes, size: int) -> None:
        assert self.sizes[key] == size
        self.reads[key] += 1
        self.read_bytes += size

    def serve(self, request: Request) -> int:
        """All of a request at once; returns how many earlier turns were read."""
        there = [each for each in beside_of(request) if self.holds(each[0])]
        for key, size in there:
            self.read(key, size)
        self.write(*own_of(request))
        for _ in range(request.rereads):
            self.read(*own_of(request))
        return len(there)


def own_of(request: Request) -> tuple[bytes, int]:
    (key,), (size,) = request.keys, request.sizes or ()
    return key, size


def beside_of(request: Request) -> list[tuple[bytes, int]]:
    return list(zip(request.beside, request.beside_sizes or (), strict=True))


def turns_of(spec: WorkloadContext, until_s: float) -> list[tuple[float, int, Request]]:
    """What users ask who are answered at once, in order of time: the moment, user and request."""
    workload = MlperfWorkload(spec)
    found = []
    for user in range(workload.users):
        at_s = 0.0
        while True:
            request = workload.next_request(user)
            assert request is not None
            at_s += request.think_s
            if at_s >= until_s:
                break
            found.append((at_s, user, request))
    return sorted(found, key=lambda each: each[:2])


def first_turns(spec: WorkloadContext, user: int, count: int) -> list[Request]:
    workload = MlperfWorkload(spec)
    turns = [workload.next_request(user) for _ in range(count)]
    return [turn for turn in turns if turn is not None]


def near(value: float, wanted: float, within: float = WITHIN) -> bool:
    return abs(value / wanted - 1) <= within


# -- the users --------------------------------------------------------------------------------


def test_the_users_of_seed_42_are_those_that_published_runs_of_the_reference_tell_of() -> None:
    """Their logs say: contexts from 598 to 24836 tokens, 9330 on average; 25, 78, 97 users."""
    users = draw_users(42, 200)
    contexts = [user.context_tokens for user in users]
    assert (min(contexts), max(contexts), int(fmean(contexts))) == (598, 24_836, 9_330)
    classes = Counter(user.service_class for user in users)
    assert [classes[name] for name, _end in SERVICE_CLASSES] == [25, 78, 97]


def test_a_rank_has_the_users_of_the_next_seed() -> None:
    assert MlperfWorkload(replace(SPEC, rank=3)).users == 200
    later = [first_turns(replace(SPEC, rank=3), user, 1)[0].service_class for user in range(20)]
    assert later == [user.service_class for user in draw_users(45, 20)]


# -- one request after the other --------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "output", "reads"),
    [(1, 1, 2), (100, 32, 2), (100, 33, 3), (9_999, 800, 26), (10_000, 800, 0), (24_000, 50, 0)],
)
def test_a_request_reads_its_own_object_once_and_again_for_every_32_tokens(
    context: int, output: int, reads: int
) -> None:
    assert own_reads(context, output) == reads


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 40), st.integers(0, 3), st.integers(0, 3), st.integers(0, 199))
def test_a_request_reads_beside_it_what_its_conversation_stored_before(
    seed: int, trial: int, rank: int, user: int
) -> None:
    spec = replace(SPEC, seed=seed, trial=trial, rank=rank)
    profile = draw_users(seed + rank, 200)[user]
    earlier: list[Request] = []
    for turn in first_turns(spec, user, 120):
        stored = {each.keys[0]: (each.sizes or (0,))[0] for each in earlier}
        own = [key for key in turn.beside if key in stored]
        if own != list(stored):  # a conversation has ended
            assert own == []
            earlier = []
        prompts = [key for key in turn.beside if key not in own]
        assert len(prompts) <= 1
        sizes = dict(zip(turn.beside, turn.beside_sizes or (), strict=True))
        assert {key: sizes[key] for key in own} == {key: stored[key] for key in own}
        assert len(earlier) < MOST_TURNS
        assert not turn.stores_beside
        assert turn.keys[0] not in turn.beside
        assert turn.sizes == (turn.prompt_tokens * TOKEN_BYTES,)
        assert profile.context_tokens // 4 <= turn.prompt_tokens <= profile.context_tokens
        assert turn.rereads == own_reads(turn.prompt_tokens, turn.output_tokens)
        assert 0.8 <= turn.think_s / profile.think_s <= 1.2
        earlier.append(turn)


def test_a_users_requests_depend_on_nobody_else_and_differ_between_trials_and_ranks() -> None:
    alone = first_turns(SPEC, 7, 20)
    workload = MlperfWorkload(SPEC)
    among = []
    for _ in range(20):
        for user in (3, 7, 9):
            request = workload.next_request(user)
            among += [request] if user == 7 else []
    assert alone == among
    others = [first_turns(spec, 7, 20) for spec in (replace(SPEC, trial=1), replace(SPEC, rank=1))]
    keys = [{turn.keys[0] for turn in turns} for turns in (alone, *others)]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]


def test_the_scale_makes_objects_smaller_and_leaves_who_reads_what_how_often() -> None:
    whole, small = (first_turns(replace(SPEC, context_scale=scale), 5, 50) for scale in (1, 0.01))
    for left, right in zip(whole, small, strict=True):
        assert (left.keys, left.beside, left.rereads) == (right.keys, right.beside, right.rereads)
        assert right.sizes == (max(1, int(left.prompt_tokens * 0.01)) * TOKEN_BYTES,)


def test_nothing_is_there_before_the_run() -> None:
    assert list(MlperfWorkload(SPEC).population()) == []


# -- the scenarios ----------------------------------------------------------------------------


def test_the_closed_options_are_the_references() -> None:
    table = [
        (o.name, o.model, o.users, o.duration_s, o.gpu_mem_gb, o.cpu_mem_gb, o.most_stores,
         o.generation_mode)
        for o in CLOSED_OPTIONS
    ]  # fmt: skip
    assert table == [
        ("mlperf-1", "llama3.1-8b", 200, 300, 0, 0, 16, "none"),
        ("mlperf-2", "llama3.1-8b", 100, 300, 0, 4, 16, "none"),
        ("mlperf-3", "llama3.1-70b-instruct", 70, 300, 0, 0, 4, "none"),
    ]
    assert tuple(FAMILIES) == CLOSED_SCENARIOS
    assert all(isinstance(family, WholeObjectFamily) for family in FAMILIES.values())
    assert MODELS["llama3.1-8b"].bytes_per_token == TOKEN_BYTES


def test_the_need_is_every_conversation_with_all_its_turns_at_their_longest() -> None:
    spec = replace(SPEC, users=3)
    tokens = sum(user.context_tokens for user in draw_users(42, 3))
    need = FAMILIES["mlperf-1"].need(spec)
    assert need.working_set_blocks == -(-50 * tokens // 25_000)
    assert not need.is_populated


def test_no_conversation_ever_holds_more_than_the_need() -> None:
    spec = replace(SPEC, users=5)
    longest = dict.fromkeys(range(5), 0)
    for user in range(5):
        for turn in first_turns(spec, user, 3_000):
            held = sum(turn.beside_sizes or ()) + sum(turn.sizes or ())
            longest[user] = max(longest[user], held)
    need = FAMILIES["mlperf-1"].need(spec).working_set_blocks * spec.block_tokens * TOKEN_BYTES
    assert 0.2 * need < sum(longest.values()) <= need  # 50 turns hardly ever come


# -- figures over 100,000 requests ------------------------------------------------------------


@pytest.mark.thorough
def test_the_load_is_that_of_the_references_distributions() -> None:
    """10,000 users on 50 ranks, in the 4.1 s after their 20th: 100,000 requests."""
    kinds: Counter[str] = Counter()
    measured: list[Request] = []
    earlier = 0
    for rank in range(50):
        spec = replace(SPEC, rank=rank)
        users, counted = draw_users(spec.seed + rank, spec.users), Counted()
        for at_s, user, request in turns_of(spec, 24.1):
            turns_read = counted.serve(request)
            if at_s >= 20.0:
                measured.append(request)
                kinds[users[user].kind] += 1
                earlier += turns_read
    total = len(measured)
    assert near(total, 2.457 * 10_000 * 4.1)
    shares = [kinds[kind] / total for kind in ("chatbot", "coding", "document")]
    assert all(map(near, shares, (0.546, 0.272, 0.182)))
    assert near(fmean(request.prompt_tokens for request in measured), 4_418)
    assert near(fmean(request.output_tokens for request in measured), 150)
    write_only = [request for request in measured if request.prompt_tokens >= WRITE_ONLY_TOKENS]
    assert near(len(write_only) / total, 0.130)
    assert {request.rereads for request in write_only} == {0}
    assert near(earlier / total, 4.0)
    assert near(fmean(request.rereads for request in measured), 5.11)
    sizes = [own_of(request)[1] for request in measured]
    own_bytes = sum(request.rereads * own_of(request)[1] for request in measured)
    assert near(own_bytes / sum(sizes), 4.42)


_WORKERS = 200  # the reference has one per user
_OPERATIONS_PER_S = 2_900  # of all workers together: what its interpreter makes of null I/O
_URGENCY = {name: place for place, (name, _end) in enumerate(SERVICE_CLASSES)}


def served_by_the_reference(turns: Sequence[tuple[float, int, Request]], span_s: float) -> Counted:
    """What the reference's discipline makes of these requests.

    They come at their times whether or not others were answered, the most urgent class goes
    first, workers take turns operation by operation, and what is queued at the end is lost.
    """
    counted = Counted()
    queue: list[tuple[int, float, int]] = []
    workers: deque[Iterator[None]] = deque()
    now_s, arrived = 0.0, 0
    while now_s < span_s:
        while arrived < len(turns) and turns[arrived][0] <= now_s:
            at_s, _user, request = turns[arrived]
            heapq.heappush(queue, (_URGENCY[str(request.service_class)], at_s, arrived))
            arrived += 1
        while queue and len(workers) < _WORKERS:
            workers.append(operations_of(turns[heapq.heappop(queue)[2]][2], counted))
        if workers:
            worker = workers.popleft()
            if next(worker, worker) is None:
                workers.append(worker)
                now_s += 1 / _OPERATIONS_PER_S
        elif arrived < len(turns):
            now_s = turns[arrived][0]
        else:
            break
    return counted


def operations_of(request: Request, counted: Counted) -> Iterator[None]:
    """Carry a request out, one operation at a time; absent objects take none."""
    for key, size in beside_of(request):
        if counted.holds(key):
            counted.read(key, size)
            yield
    counted.write(*own_of(request))
    yield
    for _ in range(request.rereads):
        counted.read(*own_of(request))
        yield


@pytest.mark.thorough
def test_the_storage_sees_what_a_run_of_the_reference_showed() -> None:
    """Option 1, seed 42, null I/O, 15 s, again and again until there are 100,000 objects."""
    sizes, reads = list[int](), list[int]()
    read_bytes = 0
    trial = 0
    while len(sizes) < 100_000:
        counted = served_by_the_reference(turns_of(replace(SPEC, trial=trial), 15.0), 15.0)
        sizes += counted.sizes.values()
        reads += [counted.reads[key] for key in counted.sizes]
        read_bytes += counted.read_bytes
        trial += 1
    assert near(fmean(sizes) / MIB, 595)
    percentiles = np.percentile(sizes, [5, 50, 95, 99]) / MIB
    assert all(map(near, percentiles, (55, 334, 1_889, 2_480)))
    assert max(sizes) <= 24_836 * TOKEN_BYTES
    assert near(fmean(reads), 8.09)
    assert np.percentile(reads, 50) == 7
    assert abs(np.percentile(reads, 95) - 18) <= 1  # whole numbers
    assert near(read_bytes / sum(sizes), 7.19)
    # Of the 4,700 objects of the reference's run 4.0 % were never read: 0.3 % of chance each way.
    assert abs(reads.count(0) / len(reads) - 0.040) < 0.005
