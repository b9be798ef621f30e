from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import StorageError
from pytest_kvcache.workloads.phases import DecodeWorkload, PrefillWorkload, build_workload
from pytest_kvcache.workloads.replay import ReplayFamily
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import Family, Script, ask, make_plan
from tests.recordings import small_trace

if TYPE_CHECKING:
    from pytest_kvcache.workloads.protocol import Workload

CONTEXT = make_plan(users=3, context_scale=0.1).context(0, None)
CHAT = SyntheticFamily()


def test_without_a_phase_a_workload_is_as_it_is() -> None:
    script = Script([[]])
    assert build_workload(Family(script), CONTEXT, "both") is script


def test_every_request_reads_again_what_it_stores_so_often_more() -> None:
    script = Script([[ask(0, "a"), ask(0, "b", rereads=3)]], population=[ask(0, "c")])
    workload = build_workload(Family(script), CONTEXT, "both", reread_factor=2)
    assert list(workload.population()) == [ask(0, "c")]
    assert workload.next_request(0) == ask(0, "a", rereads=2)
    assert workload.next_request(0) == ask(0, "b", rereads=5)
    assert workload.next_request(0) is None


def test_prefill_reads_nothing_again_and_keeps_the_sizes_of_its_prompt() -> None:
    script = Script([[ask(0, "a", output=["c"], sizes=(7, 9), beside=(b"x",), rereads=3)]])
    workload = build_workload(Family(script), CONTEXT, "prefill")
    assert workload.next_request(0) == ask(0, "a", sizes=(7,), beside=(b"x",))


def test_decode_reads_beside_a_context_what_the_next_turn_has_beside_its_own() -> None:
    stored = ask(0, "a", "b")
    turn = ask(0, "c", beside=(b"x", stored.keys[1], b"y"), beside_sizes=(1, 2, 3))
    script = Script([[turn]], population=[stored])
    workload = stored_all(build_workload(Family(script), CONTEXT, "decode"))
    request = workload.next_request(0)
    assert request is not None
    assert (request.keys, list(request.beside)) == (stored.keys, [b"x", b"y"])
    assert request.beside_sizes == [1, 3]


def test_prefill_stores_prompts_and_generates_nothing() -> None:
    script = Script([[ask(0, "a", "b", output=["c"])]], population=[ask(0, "a", output=["x"])])
    workload = build_workload(Family(script), CONTEXT, "prefill")
    assert list(workload.population()) == [ask(0, "a", output=["x"])]
    assert workload.next_request(0) == ask(0, "a", "b")
    assert workload.next_request(0) is None
    assert (workload.users, workload.open_loop) == (1, False)


def test_what_an_answer_adds_is_stored_with_the_next_prompt() -> None:
    workload = build_workload(CHAT, CONTEXT, "prefill")
    turns = [request for _ in range(3) if (request := workload.next_request(0)) is not None]
    first, second = turns[0], turns[1]
    assert second.keys[: len(first.keys)] == first.keys
    assert len(second.keys) == second.prompt_blocks > len(first.keys)


def stored_all(workload: Workload) -> Workload:
    """The workload after all of its population was stored."""
    assert list(workload.population())
    return workload


def test_decode_loads_what_each_users_population_has_stored() -> None:
    workload = build_workload(CHAT, CONTEXT, "decode")
    stored = {request.user: request for request in workload.population()}
    plain = CHAT.build(CONTEXT)
    stored_all(plain)
    for user in (0, 1, 2, 0, 1):
        request, turn = workload.next_request(user), plain.next_request(user)
        assert request is not None
        assert turn is not None
        assert request.keys == stored[user].keys
        assert request.prompt_blocks == len(request.keys) > 0
        assert request.prompt_tokens == stored[user].prompt_tokens + stored[user].output_tokens
        assert (request.think_s, request.output_tokens) == (turn.think_s, turn.output_tokens)


def test_decode_ends_with_its_dialogue() -> None:
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a")])
    workload = stored_all(build_workload(Family(script), CONTEXT, "decode"))
    request = workload.next_request(0)
    assert request is not None
    assert request.keys == ask(0, "a").keys
    assert workload.next_request(0) is None


def test_a_user_whose_context_was_not_stored_is_reported() -> None:
    script = Script([[], []], population=[ask(0, "a"), ask(1, "b")])
    workload = DecodeWorkload(script)
    given = workload.population()
    next(given)
    next(given)  # who does not ask again has not stored it
    with pytest.raises(StorageError, match=r"contexts of 1 of 2 users.*--kv-num-users"):
        workload.check_population()
    stored_all(workload)
    workload.check_population()


def test_a_trace_is_decoded_from_a_cache_that_holds_it() -> None:
    trace = small_trace([[1, 2], [1, 3]])
    context = replace(CONTEXT, trace=trace, trace_cycles=2)
    workload = build_workload(ReplayFamily(), context, "decode")
    plain = ReplayFamily().build(context)
    recorded = [request for _ in range(4) if (request := plain.next_request(0)) is not None]
    assert list(workload.population()) == recorded[:2]
    assert [workload.next_request(0) for _ in range(5)] == [*recorded, None]
    assert (workload.users, workload.open_loop) == (3, False)


def test_the_phases_of_an_open_loop_are_open() -> None:
    script = Script([[]], open_loop=True)
    assert PrefillWorkload(script).open_loop
    assert DecodeWorkload(script).open_loop


def test_loads_beside_stores_are_those_of_decode() -> None:
    beside = build_workload(CHAT, CONTEXT, "both", stores_beside=True)
    alone = build_workload(CHAT, CONTEXT, "decode")
    assert list(beside.population()) == list(alone.population())
    for user in (0, 1, 2, 0, 0, 1) * 5:
        loaded, decoded = beside.next_request(user), alone.next_request(user)
        assert loaded is not None
        assert decoded is not None
        looked_up = loaded.keys[: loaded.prompt_blocks]
        assert loaded._replace(keys=looked_up) == decoded


def test_stores_beside_loads_are_those_of_the_dialogue() -> None:
    beside = build_workload(CHAT, CONTEXT, "both", stores_beside=True)
    plain = CHAT.build(CONTEXT)
    stored = {key for request in plain.population() for key in request.keys}
    assert {key for request in beside.population() for key in request.keys} == stored
    theirs = set(stored)
    for user in (0, 1, 2, 0, 0, 1) * 5:
        loaded, turn = beside.next_request(user), plain.next_request(user)
        assert loaded is not None
        assert turn is not None
        theirs |= set(turn.keys)
        stored |= set(loaded.keys)
        assert len(set(loaded.keys)) == len(loaded.keys)
        assert stored == theirs


def test_what_is_stored_beside_loads_keeps_its_sizes() -> None:
    turn = ask(0, "a", "b", "c", sizes=(7, 8, 9), beside=(b"x",))
    script = Script([[turn]], population=[ask(0, "a", sizes=(7,))])
    workload = stored_all(build_workload(Family(script), CONTEXT, "both", stores_beside=True))
    request = workload.next_request(0)
    assert request is not None
    assert (request.keys, request.prompt_blocks) == (turn.keys, 1)
    assert (request.sizes, list(request.beside)) == ([7, 8, 9], [b"x"])
