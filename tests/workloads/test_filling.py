"""Blocks that nobody asks for, stored before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.cache.index import Admission, CacheIndex
from pytest_kvcache.workloads.filling import filling
from tests.factories import ask, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@given(blocks=st.integers(0, 200), contexts=st.lists(st.integers(1, 30), max_size=5))
def test_filling_and_contexts_are_as_many_blocks_as_are_to_be_taken(
    blocks: int, contexts: list[int]
) -> None:
    population = [
        ask(user, *(f"{user} {number}" for number in range(count)))
        for user, count in enumerate(contexts)
    ]
    requests = [*filling(blocks, population, "here", 1_000), *population]
    keys = [key for request in requests for key in request.keys]
    assert len(keys) == len(set(keys)) == max(blocks, sum(contexts))


def test_blocks_that_contexts_share_are_counted_once() -> None:
    population = [ask(0, "a", "b"), ask(1, "a", "c")]
    assert sum(len(request.keys) for request in filling(5, population, "here", 10)) == 2


def test_ranks_and_trials_are_filled_with_blocks_of_their_own() -> None:
    first, second = (
        {key for request in filling(40, [], who, 40) for key in request.keys}
        for who in ("42/0/0", "42/0/1")
    )
    assert len(first) == len(second) == 40
    assert not first & second


def test_what_fills_goes_before_any_context() -> None:
    index = CacheIndex(10, page_bytes=1)
    contexts = [ask(0, "a", "b")]
    for request in [*filling(10, contexts, "here", 10), *contexts]:
        admitted(index, request.keys)
    victims = admitted(index, [key_of(name) for name in "cdefghij"]).victims
    assert len(victims) == 8
    assert not {entry.key for entry in victims} & {key_of("a"), key_of("b")}


def admitted(index: CacheIndex, keys: Sequence[bytes]) -> Admission:
    admission = index.admit(keys, 0, 1)
    assert isinstance(admission, Admission)
    index.deleted(admission)
    for entry in admission.inserts:
        index.commit(entry)
    index.release(admission)
    return admission


def test_of_contexts_that_do_not_fit_only_those_before_are_counted() -> None:
    contexts = [ask(0, "a", "b"), ask(1, "c", "d", "e"), ask(2, "f")]
    assert sum(len(request.keys) for request in filling(4, contexts, "here", 4)) == 2
