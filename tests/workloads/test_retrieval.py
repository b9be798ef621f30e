from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.workloads.retrieval import Documents, chunk_tokens, longest_blocks
from pytest_kvcache.workloads.scenarios import TABLE, Range, Retrieval
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.workloads.test_synthetic import SPEC, contexts_of, talking, turns_of, workload_of

REAL = replace(SPEC, context_scale=1.0, block_tokens=256)
ONE = Retrieval(
    documents=1,
    document_tokens=Range(low=10_240, high=10_240),
    chunk_tokens=512,
    top_k=5,
    added_ratio=0.1,
)


def documents(retrieval: Retrieval = ONE, ratio: float = 1.0, user: int = 0) -> Documents:
    return Documents(retrieval, ratio, REAL, f"42/0/0/{user}")


def test_a_request_retrieves_so_many_different_chunks_of_one_document() -> None:
    found = documents(replace(ONE, documents=7))
    of_document = {key: at for at, keys in enumerate(found.all_blocks()) for key in keys}
    for _ in range(200):
        keys = found.retrieved()
        assert len(keys) == len(set(keys)) == 5 * 2  # of 512 tokens, in blocks of 256
        assert len({of_document[key] for key in keys}) == 1


def test_the_chunk_at_position_i_comes_first_with_the_weight_of_zipf() -> None:
    found = documents(replace(ONE, top_k=1))
    (keys,) = found.all_blocks()
    count = Counter(found.retrieved()[0] for _ in range(20_000))
    total = sum(1 / (i + 1) for i in range(20))
    for position in range(20):
        share = count[keys[2 * position]] / 20_000
        assert share == pytest.approx(1 / (position + 1) / total, abs=0.01)


def test_of_few_chunks_all_are_retrieved() -> None:
    found = documents(replace(ONE, document_tokens=Range(low=1_024, high=1_024)))
    (keys,) = found.all_blocks()
    assert sorted(found.retrieved()) == sorted(keys)
    assert len(keys) == 4


@pytest.mark.parametrize(("tokens", "blocks"), [(255, 0), (256, 1), (512, 2), (700, 2), (800, 3)])
def test_only_whole_blocks_of_a_document_are_stored(tokens: int, blocks: int) -> None:
    limits = Range(low=tokens, high=tokens)
    (keys,) = documents(replace(ONE, document_tokens=limits)).all_blocks()
    assert len(keys) == blocks == longest_blocks(replace(ONE, document_tokens=limits), REAL)


@pytest.mark.parametrize(
    ("scale", "block", "tokens"),
    [(1.0, 256, 512), (0.5, 64, 256), (0.005, 4, 4), (1.0, 1024, 1024)],
)
def test_a_chunk_is_of_one_block_at_least(scale: float, block: int, tokens: int) -> None:
    assert chunk_tokens(ONE, replace(SPEC, context_scale=scale, block_tokens=block)) == tokens


def test_the_keys_of_a_chunk_say_what_it_is_and_nothing_of_what_stands_before() -> None:
    found = documents()
    (keys,) = found.all_blocks()
    assert {key for _ in range(50) for key in found.retrieved()} <= set(keys)
    assert set(next(documents(user=1).all_blocks())).isdisjoint(keys)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 1.0))
def test_so_many_requests_retrieve(ratio: float) -> None:
    found = documents(ratio=ratio)
    share = sum(bool(found.retrieved()) for _ in range(2_000)) / 2_000
    assert share == pytest.approx(ratio, abs=0.06)


# -- in the scenarios ----------------------------------------------------------------------


def test_every_request_of_rag_retrieves_what_was_stored_before_the_run() -> None:
    workload = workload_of("rag", REAL)
    stored = {key for request in workload.population() for key in request.keys}
    for user in range(REAL.users):
        for turn in turns_of(workload, user, 20):
            assert turn.stores_beside
            assert len(turn.beside) >= 2
            assert set(turn.beside) <= stored
            assert set(turn.beside).isdisjoint(turn.keys)


def test_what_is_stored_of_documents_is_no_request() -> None:
    population = list(workload_of("rag", REAL).population())
    documents = [request for request in population if not request.prompt_tokens]
    assert len(documents) == 10 * REAL.users
    assert all(request.prompt_blocks == 0 for request in documents)
    assert not any(request.beside for request in population)
    assert len(contexts_of(workload_of("rag", REAL))) == REAL.users


def test_retrieval_can_be_added_to_users_who_say_the_same_as_before() -> None:
    plain, added = talking(REAL, "chat"), talking(REAL, "chat", enable_rag=True, documents=3)
    one, other = SyntheticFamily().build(plain), SyntheticFamily().build(added)
    stored = {key for request in other.population() if not request.prompt_tokens
              for key in request.keys}  # fmt: skip
    assert len(list(one.population())) == REAL.users
    retrieved = 0
    for _ in range(200):
        for user in range(REAL.users):
            before, now = one.next_request(user), other.next_request(user)
            assert before is not None
            assert now is not None
            assert now._replace(beside=(), stores_beside=False) == before
            assert set(now.beside) <= stored
            retrieved += bool(now.beside)
    assert retrieved / (200 * REAL.users) == pytest.approx(0.1, abs=0.03)


def test_documents_add_to_the_need() -> None:
    plain = SyntheticFamily().need(talking(REAL, "chat")).working_set_blocks
    added = SyntheticFamily().need(talking(REAL, "chat", enable_rag=True)).working_set_blocks
    assert added - plain == REAL.users * longest_blocks(TABLE.retrieval, REAL)
    assert longest_blocks(TABLE.retrieval, REAL) == 10 * (12_000 // 512 * 2 + 12_000 % 512 // 256)
