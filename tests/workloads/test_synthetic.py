from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.workloads.keys import KEY_BYTES, chain_key
from pytest_kvcache.workloads.protocol import WorkloadContext
from pytest_kvcache.workloads.scenarios import PROFILES, SYNTHETIC, TABLE, Range
from pytest_kvcache.workloads.synthetic import (
    SyntheticFamily,
    SyntheticWorkload,
    reuses_prefixes,
    scaled,
    service_classes,
    user_quota,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from typing import Any

    from pytest_kvcache.workloads.protocol import Request

SPEC = WorkloadContext(
    users=6,
    block_tokens=4,
    context_scale=0.05,
    seed=42,
    trial=0,
    rank=0,
    trace=None,
    trace_speedup=0.0,
    trace_cycles=1,
)
SPECS = st.builds(
    lambda users, block_tokens, scale, seed, trial, rank: replace(
        SPEC, users=users, block_tokens=block_tokens, context_scale=scale, seed=seed, trial=trial,
        rank=rank,
    ),
    st.integers(1, 12),
    st.integers(1, 64),
    st.sampled_from([0.001, 0.01, 0.03, 0.1]),
    st.integers(0, 1 << 64),
    st.integers(0, 3),
    st.integers(0, 3),
)  # fmt: skip
SCENARIOS = st.sampled_from(sorted(SYNTHETIC))


def workload_of(scenario: str, spec: WorkloadContext) -> SyntheticWorkload:
    return SyntheticWorkload(talking(spec, scenario))


def talking(spec: WorkloadContext, scenario: str, **options: Any) -> WorkloadContext:
    """The context of a scenario's users."""
    return replace(spec, dialogues=TABLE.dialogues(scenario, **options))


def contexts_of(workload: SyntheticWorkload) -> list[Request]:
    """What the users have said before the run; their documents are something else."""
    return [request for request in workload.population() if request.prompt_tokens]


def turns_of(workload: SyntheticWorkload, user: int, count: int) -> list[Request]:
    turns = [workload.next_request(user) for _ in range(count)]
    return [turn for turn in turns if turn is not None]


def profile_of(scenario: str, spec: WorkloadContext, user: int) -> tuple[str, int]:
    """The user's profile and the blocks of its shared prompt."""
    name = user_quota(SYNTHETIC[scenario], spec.users)[user]
    system = scaled(PROFILES[name], spec.context_scale).system_tokens
    return name, system // spec.block_tokens


def common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


# -- the stream ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SCENARIOS, SPECS, st.randoms(use_true_random=False))
def test_users_ask_the_same_in_whatever_order_they_are_asked(
    scenario: str, spec: WorkloadContext, shuffler: random.Random
) -> None:
    one, other = workload_of(scenario, spec), workload_of(scenario, spec)
    assert list(one.population()) == list(other.population())
    expected = {user: turns_of(one, user, 4) for user in range(spec.users)}
    order = [user for user in range(spec.users) for _ in range(4)]
    shuffler.shuffle(order)
    found: dict[int, list[Request]] = {user: [] for user in range(spec.users)}
    for user in order:
        found[user] += turns_of(other, user, 1)
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(SCENARIOS, SPECS)
def test_a_turn_goes_on_where_the_last_one_ended_or_starts_anew(
    scenario: str, spec: WorkloadContext
) -> None:
    workload = workload_of(scenario, spec)
    last = dict(enumerate(contexts_of(workload)))
    for user in range(spec.users):
        name, system_blocks = profile_of(scenario, spec, user)
        profile = scaled(PROFILES[name], spec.context_scale)
        assert last[user].user == user
        for turn in turns_of(workload, user, 12):
            before = last[user].prompt_tokens + last[user].output_tokens
            shared = common(last[user].keys, turn.keys)
            if shared == len(last[user].keys) and turn.prompt_tokens > before:
                message = turn.prompt_tokens - before
                assert profile.message_tokens.low <= message <= profile.message_tokens.high
            else:
                assert shared <= system_blocks
                opening = turn.prompt_tokens - profile.system_tokens
                assert profile.opening_tokens.low <= opening <= profile.opening_tokens.high
                # It would not have fitted any more.
                most = profile.message_tokens.high + turn.output_tokens
                assert before + most > profile.context_tokens
            last[user] = turn


@settings(max_examples=60, deadline=None)
@given(SCENARIOS, SPECS)
def test_every_request_is_within_its_limits(scenario: str, spec: WorkloadContext) -> None:
    workload = workload_of(scenario, spec)
    asked = contexts_of(workload)
    for user in range(spec.users):
        asked += turns_of(workload, user, 8)
    for number, request in enumerate(asked):
        name, _ = profile_of(scenario, spec, request.user)
        profile = scaled(PROFILES[name], spec.context_scale)
        total = request.prompt_tokens + request.output_tokens
        assert total <= profile.context_tokens
        assert len(request.keys) == total // spec.block_tokens
        assert request.prompt_blocks == request.prompt_tokens // spec.block_tokens
        assert len(set(request.keys)) == len(request.keys)
        assert all(len(key) == KEY_BYTES for key in request.keys)
        assert profile.output_tokens.low <= request.output_tokens <= profile.output_tokens.high
        assert request.arrival_ns is None
        if number >= spec.users:
            assert profile.think_s.low <= request.think_s <= profile.think_s.high


def own_keys(spec: WorkloadContext, user: int = 0, scenario: str = "mixed") -> set[bytes]:
    """Keys of a user behind its shared prompt, over several conversations."""
    workload = workload_of(scenario, spec)
    _, system_blocks = profile_of(scenario, spec, user)
    population = [request for request in workload.population() if request.user == user]
    turns = [*population, *turns_of(workload, user, 20)]
    return {key for turn in turns for key in turn.keys[system_blocks:]}


@pytest.mark.parametrize("change", [{"seed": 43}, {"trial": 1}, {"rank": 1}])
def test_another_seed_trial_or_rank_is_another_stream(change: dict[str, int]) -> None:
    other = replace(SPEC, **change)  # type: ignore[arg-type]  # one of the numbers
    # All agents share one prompt, so nothing but what they say can tell them apart.
    assert own_keys(SPEC, scenario="agent")
    assert own_keys(SPEC, scenario="agent").isdisjoint(own_keys(other, scenario="agent"))
    lengths = [
        [turn.prompt_tokens for turn in turns_of(workload_of("mixed", spec), 0, 20)]
        for spec in (SPEC, other)
    ]
    assert lengths[0] != lengths[1]


def test_what_a_user_says_is_its_own() -> None:
    spec = replace(SPEC, users=12)
    keys = [own_keys(spec, user, "agent") for user in range(12)]
    for one, other in itertools.combinations(keys, 2):
        assert one.isdisjoint(other)


def test_two_conversations_of_a_user_share_the_prompt_at_most() -> None:
    workload = workload_of("chat", SPEC)
    _, system_blocks = profile_of("chat", SPEC, 0)
    turns = turns_of(workload, 0, 60)
    starts = [n for n, (a, b) in enumerate(itertools.pairwise(turns), 1)
              if b.prompt_tokens <= a.prompt_tokens]  # fmt: skip
    assert len(starts) > 3
    seen: set[bytes] = set()
    for begin, end in itertools.pairwise([0, *starts]):
        keys = {key for turn in turns[begin:end] for key in turn.keys[system_blocks:]}
        assert keys.isdisjoint(seen)
        seen |= keys


# -- shared prompts ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SCENARIOS, SPECS)
def test_users_of_a_profile_share_its_prompts_and_nothing_else(
    scenario: str, spec: WorkloadContext
) -> None:
    workload = workload_of(scenario, spec)
    contexts = list(workload.population())
    for one, other in itertools.combinations(contexts, 2):
        name, system_blocks = profile_of(scenario, spec, one.user)
        other_name, _ = profile_of(scenario, spec, other.user)
        shared = len(set(one.keys) & set(other.keys))
        assert shared == common(one.keys, other.keys)
        assert shared in ({0, system_blocks} if name == other_name else {0})


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_there_are_as_many_prompts_as_the_profile_says(name: str) -> None:
    spec = replace(SPEC, users=60)
    _, system_blocks = profile_of(name, spec, 0)
    workload = workload_of(name, spec)
    prompts = {request.keys[:system_blocks] for request in contexts_of(workload)}
    assert system_blocks > 0
    assert len(prompts) == PROFILES[name].system_prompts


def test_prompts_are_the_same_on_every_rank() -> None:
    spec = replace(SPEC, users=60)
    _, blocks = profile_of("chat", spec, 0)
    one, other = (
        {request.keys[:blocks] for request in workload_of("chat", s).population()}
        for s in (spec, replace(spec, rank=1))
    )
    assert one == other


def test_agents_find_nine_tenths_of_their_prompts_again() -> None:
    workload = workload_of("agent", replace(SPEC, context_scale=1.0, block_tokens=256, users=4))
    known = {key for request in workload.population() for key in request.keys}
    hits = blocks = 0
    for user in range(4):
        for turn in turns_of(workload, user, 150):
            prompt = turn.keys[: turn.prompt_blocks]
            hits += sum(1 for _ in itertools.takewhile(known.__contains__, prompt))
            blocks += len(prompt)
            known |= set(turn.keys)
    assert hits / blocks > 0.9


# -- the need ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SCENARIOS, SPECS)
def test_live_contexts_never_exceed_the_need(scenario: str, spec: WorkloadContext) -> None:
    need = SyntheticFamily().need(talking(spec, scenario))
    workload = workload_of(scenario, spec)
    live = {request.user: set(request.keys) for request in workload.population()}
    assert len(set().union(*live.values())) <= need.working_set_blocks
    for _ in range(10):
        for user in range(spec.users):
            live[user] = {key for turn in turns_of(workload, user, 1) for key in turn.keys}
        assert len(set().union(*live.values())) <= need.working_set_blocks
    assert (need.requests, need.accessed_blocks, need.span_s) == (None, 0, 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("scenario", sorted(SYNTHETIC.keys() - {"rag"}))
def test_the_need_is_no_more_than_the_longest_contexts(scenario: str) -> None:
    spec = replace(SPEC, users=40, block_tokens=1, context_scale=0.02)
    need = SyntheticFamily().need(talking(spec, scenario)).working_set_blocks
    workload = workload_of(scenario, spec)
    longest = dict.fromkeys(range(40), 0)
    shared: dict[str, set[tuple[bytes, ...]]] = {}
    for user in range(40):
        name, system = profile_of(scenario, spec, user)
        for turn in turns_of(workload, user, 200):
            longest[user] = max(longest[user], len(turn.keys) - system)
            shared.setdefault(name, set()).add(tuple(turn.keys[:system]))
    seen = sum(longest.values()) + sum(len(p) for prompts in shared.values() for p in prompts)
    assert 0.9 * need <= seen <= need


def test_few_users_need_few_prompts() -> None:
    spec = replace(SPEC, users=2)
    profile = scaled(PROFILES["chat"], spec.context_scale)
    need = SyntheticFamily().need(talking(spec, "chat"))
    assert profile.system_prompts == 4
    assert need.working_set_blocks == 2 * (profile.context_tokens // spec.block_tokens)


def test_a_family_builds_its_users() -> None:
    family = SyntheticFamily()
    workload = family.build(talking(SPEC, "mixed"))
    assert not family.needs_trace
    assert (workload.users, workload.open_loop) == (6, False)
    assert list(workload.population()) == list(workload_of("mixed", SPEC).population())


# -- quotas, scales, keys ------------------------------------------------------------------

WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 10), min_size=1)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 200))
def test_every_profile_gets_its_share_of_the_users(weights: dict[str, float], users: int) -> None:
    quota = user_quota(weights, users)
    assert len(quota) == users
    for name, weight in weights.items():
        share = users * weight / sum(weights.values())
        assert abs(quota.count(name) - share) <= len(weights) - 1 + 1e-6


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 100))
def test_one_more_user_changes_no_other(weights: dict[str, float], users: int) -> None:
    assert user_quota(weights, users + 1)[:users] == user_quota(weights, users)


def test_the_default_mix_of_ten_users() -> None:
    quota = user_quota(SYNTHETIC["mixed"], 20)
    assert {name: quota.count(name) for name in PROFILES} == {
        "chat": 8, "coding": 5, "document": 3, "agent": 4, "rag": 0,
    }  # fmt: skip
    assert len(set(quota[:5])) >= 3


@settings(deadline=None)
@given(st.sampled_from(sorted(PROFILES)), st.floats(1e-6, 16))
def test_a_scaled_profile_is_whole_and_valid(name: str, scale: float) -> None:
    profile, original = scaled(PROFILES[name], scale), PROFILES[name]
    counts: list[tuple[float, float]] = [(profile.system_tokens, original.system_tokens)]
    for field in ("opening_tokens", "message_tokens", "output_tokens"):
        span, before = getattr(profile, field), getattr(original, field)
        counts += [(span.low, before.low), (span.high, before.high)]
    for count, before in counts:
        assert count == int(count) >= 1
        assert count == max(1, int(before * scale))
    assert profile.context_tokens >= int(original.context_tokens * scale)
    assert profile.think_s == original.think_s
    assert scaled(PROFILES[name], 1.0) == original


def test_draws_reach_both_ends() -> None:
    workload = workload_of("chat", replace(SPEC, context_scale=0.01))
    outputs = {turn.output_tokens for turn in turns_of(workload, 0, 50)}
    span = scaled(PROFILES["chat"], 0.01).output_tokens
    assert span == Range(low=1, high=2)
    assert outputs == {1, 2}


def test_a_key_is_of_its_parent_and_its_content() -> None:
    keys = {chain_key(parent, content) for parent in (b"", b"p" * 16) for content in (b"a", b"b")}
    assert len(keys) == 4
    assert all(len(key) == KEY_BYTES for key in keys)
    assert chain_key(b"p", b"a") == chain_key(b"p", b"a")


# -- what a table or an option changes -----------------------------------------------------


@pytest.mark.parametrize("scenario", sorted(PROFILES))
def test_without_further_turns_only_shared_prompts_are_found_again(scenario: str) -> None:
    spec = talking(replace(SPEC, context_scale=1.0, block_tokens=256), scenario, multi_turn=False)
    workload = SyntheticWorkload(spec)
    known = {key for request in workload.population() for key in request.keys}
    system = scaled(PROFILES[scenario], 1.0).system_tokens // 256
    need = SyntheticFamily().need(spec).working_set_blocks
    assert need < SyntheticFamily().need(talking(spec, scenario)).working_set_blocks
    for user in range(spec.users):
        for turn in turns_of(workload, user, 10):
            hits = sum(1 for _ in itertools.takewhile(known.__contains__, turn.keys))
            assert hits <= system
            known |= set(turn.keys)


@pytest.mark.parametrize("scenario", sorted(SYNTHETIC))
def test_without_prefix_caching_no_key_comes_twice(scenario: str) -> None:
    workload = SyntheticWorkload(talking(SPEC, scenario, prefix_caching=False))
    known: set[bytes] = set()
    requests = contexts_of(workload)
    for user in range(SPEC.users):
        requests += turns_of(workload, user, 10)
    for request in requests:
        assert known.isdisjoint(request.keys)
        known |= set(request.keys)


def test_without_prefix_caching_users_say_the_same() -> None:
    plain = workload_of("mixed", SPEC)
    other = SyntheticWorkload(talking(SPEC, "mixed", prefix_caching=False))
    for user in range(SPEC.users):
        for one, two in zip(turns_of(plain, user, 9), turns_of(other, user, 9), strict=True):
            assert two._replace(keys=one.keys) == one


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 99))
def test_classes_of_service_have_their_shares_of_the_users(users: int, seed: int) -> None:
    shares = TABLE.dialogues("mixed").class_shares
    found = service_classes(shares, users, f"{seed}")
    assert len(found) == users
    for name, share in shares.items():
        assert abs(found.count(name) - share * users) <= len(shares) - 1
    assert service_classes(shares, users, f"{seed}") == found
    assert service_classes({}, users, "") == (None,) * users


def test_every_kind_of_user_is_of_every_class() -> None:
    spec = replace(SPEC, users=200)
    classes = service_classes(TABLE.dialogues("mixed").class_shares, 200, "42/0/0/classes")
    kinds = user_quota(SYNTHETIC["mixed"], 200)
    assert len(set(zip(kinds, classes, strict=True))) == 4 * 3
    workload = workload_of("mixed", spec)
    asked = [workload.next_request(user) for user in range(200)]
    assert tuple(request.service_class for request in asked if request) == classes


@pytest.mark.parametrize(
    ("scenario", "changes", "options", "reuses"),
    [
        ("chat", {}, {}, True),
        ("chat", {"block_tokens": 5000}, {}, False),
        ("chat", {}, {"prefix_caching": False}, False),
        ("chat", {}, {"multi_turn": False}, True),
        ("chat", {"block_tokens": 512}, {"multi_turn": False}, True),
        ("chat", {"block_tokens": 513}, {"multi_turn": False}, False),
        ("chat", {"block_tokens": 513}, {}, True),
    ],
)
def test_whether_anything_is_found_again_is_known_beforehand(
    scenario: str, changes: dict[str, Any], options: dict[str, bool], *, reuses: bool
) -> None:
    values: dict[str, Any] = {"context_scale": 1.0, "block_tokens": 256} | changes
    spec = talking(replace(SPEC, **values), scenario, **options)
    assert reuses_prefixes(spec) == reuses
    workload = SyntheticWorkload(spec)
    known = {key for request in workload.population() for key in request.keys}
    found = False
    for user in range(spec.users):
        for turn in turns_of(workload, user, 30):
            found |= bool(turn.prompt_blocks) and turn.keys[0] in known
            known |= set(turn.keys)
    assert found == reuses
