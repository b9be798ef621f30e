from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.traces import ids
from pytest_kvcache.traces.ids import PromptIds

IDS = st.one_of(st.integers(0, 9), st.integers(-(2**70), 2**70), st.text(max_size=3))


def numbered(prompts: list[list[Any]], kind: str) -> list[list[int]]:
    """The numbers of every prompt's ids."""
    found = PromptIds(kind)
    for prompt in prompts:
        found.add(prompt)
    offsets, numbers = found.finish()
    return [numbers[a:b].tolist() for a, b in pairwise(offsets)]


def by_hand(prompts: list[list[Any]]) -> list[list[int]]:
    """Numbers of prefixes, in the order in which they first occur, by their contents."""
    known: dict[tuple[Any, ...], int] = {}
    names = [[(type(each), each) for each in prompt] for prompt in prompts]
    return [
        [known.setdefault(tuple(prompt[: end + 1]), len(known)) for end in range(len(prompt))]
        for prompt in names
    ]


@pytest.mark.parametrize("batch", [1, 3, 1 << 19])
@settings(deadline=None, max_examples=50)
@given(prompts=st.lists(st.lists(IDS, max_size=6), max_size=12))
def test_contents_are_numbered_by_all_that_stands_before_them(
    batch: int, prompts: list[list[Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_BATCH", batch)
        assert numbered(prompts, "content") == by_hand(prompts)


@pytest.mark.parametrize("batch", [1, 3, 1 << 19])
@pytest.mark.parametrize("dense", [0, 4, 1 << 25])
@settings(deadline=None, max_examples=50)
@given(paths=st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12))
def test_prefixes_are_numbered_alike_by_table_and_by_key(
    batch: int, dense: int, paths: list[list[int]]
) -> None:
    names: dict[tuple[int, ...], int] = {}
    prompts = [
        [names.setdefault(tuple(path[: end + 1]), 3 * len(names)) for end in range(len(path))]
        for path in paths
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_BATCH", batch)
        patch.setattr(ids, "_DENSE", dense)
        assert numbered(prompts, "prefix") == by_hand(paths)


@pytest.mark.parametrize("batch", [1, 1 << 19])
@settings(deadline=None, max_examples=100)
@given(prompts=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=8))
def test_ids_are_refused_exactly_where_one_stands_behind_two(
    batch: int, prompts: list[list[int]]
) -> None:
    before: dict[int, tuple[int | None, int]] = {}
    expected = None
    for line, prompt in enumerate(prompts):
        for place, each in enumerate(prompt):
            behind = prompt[place - 1] if place else None
            known, there = before.setdefault(each, (behind, line))
            if known != behind and expected is None:
                expected = (line, place, there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_BATCH", batch)
        if expected is None:
            numbered(prompts, "prefix")
            return
        line, place, there = expected
        found = PromptIds("prefix")
        with pytest.raises(ValueError, match=rf"hash_ids\[{place}\] .* in line {there + 1} "):  # noqa: PT012
            for prompt in prompts:
                found.add(prompt)
            found.finish()
        assert found.at_request == line


def test_a_text_and_a_number_that_look_alike_are_two_ids() -> None:
    assert numbered([[9], ["9"], [9]], "prefix") == [[0], [1], [0]]


@pytest.mark.parametrize("value", [None, "7", [1, True], [1, 2.0], [[]], [None]])
def test_what_is_no_list_of_integers_and_texts_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"hash_ids is .*; it must be a list of integers or texts"):
        PromptIds("prefix").add(value)
