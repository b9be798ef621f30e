"""What follows from what ranks that share a store have noted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.measure.sharing import (
    CLOCK_ERROR_NS,
    DELETED,
    FOUND,
    GIVEN_UP,
    LOST,
    MISSED,
    STORED,
    Joined,
    SharingLog,
    joined,
)

MS = 1_000_000
HOST_OF = {0: "n1", 1: "n1", 2: "n2"}
KEY, OTHER = bytes(16), bytes(range(16))


def together(
    *moments: tuple[int, int, int, int], key: bytes = KEY, exclusive: bool = False
) -> Joined:
    """Join moments (kind, rank, begin and end in ms) of one block."""
    logs = {rank: SharingLog() for rank in HOST_OF}
    for kind, rank, began_ms, ended_ms in moments:
        logs[rank].note(kind, key, began_ms * MS, ended_ms * MS)
    parts = [log.dealt(rank, [0], 0).get(0, b"") for rank, log in logs.items()]
    return joined(parts, HOST_OF, exclusive=exclusive)


def test_a_block_is_visible_when_another_host_first_finds_it() -> None:
    found = together((STORED, 0, 1, 5), (FOUND, 1, 5, 6), (FOUND, 2, 11, 12), (FOUND, 2, 20, 21))
    assert found.visible_ns == [7 * MS]


def test_what_a_host_stored_itself_says_nothing_of_when_it_sees_others() -> None:
    assert together((STORED, 0, 1, 5), (STORED, 2, 1, 7), (FOUND, 2, 8, 9)).visible_ns == []
    assert together((STORED, 0, 1, 5), (FOUND, 1, 8, 9)).visible_ns == []


def test_a_block_that_is_found_before_its_store_returns_was_visible_at_once() -> None:
    assert together((STORED, 0, 1, 5), (FOUND, 2, 3, 4)).visible_ns == [0]


def test_a_block_that_was_stored_again_is_visible_since_the_last_time() -> None:
    found = together((STORED, 0, 1, 2), (DELETED, 0, 3, 4), (STORED, 0, 5, 9), (FOUND, 2, 10, 11))
    assert found.visible_ns == [2 * MS]


def test_a_lookup_is_stale_if_the_block_was_there_and_nobody_deleted_it() -> None:
    found = together((STORED, 0, 1, 5), (MISSED, 2, 9, 10), (MISSED, 2, 25, 26))
    assert (found.stale, found.longest_stale_ns) == (2, 20 * MS)


@pytest.mark.parametrize(
    "moments",
    [
        [(STORED, 0, 1, 5), (MISSED, 2, 4, 7)],  # it began before the store ended
        [(STORED, 0, 1, 5), (MISSED, 2, 5, 7)],  # so near that the clocks can't tell
        [(STORED, 0, 1, 5), (DELETED, 0, 7, 8), (MISSED, 2, 9, 10)],
        [(STORED, 0, 1, 5), (DELETED, 0, 10, 12), (MISSED, 2, 8, 11)],  # while it was deleted
        [(STORED, 0, 1, 5), (DELETED, 1, 6, 7), (MISSED, 2, 9, 10)],  # whoever deleted it
        [(MISSED, 2, 9, 10)],
    ],
)
def test_a_lookup_that_may_be_right_is_not_stale(moments: list[tuple[int, int, int, int]]) -> None:
    found = together(*moments)
    assert (found.stale, found.longest_stale_ns) == (0, None)


def test_who_stores_what_another_rank_has_stored_since_it_asked_has_lost_a_race() -> None:
    assert together((STORED, 0, 1, 5), (STORED, 2, 2, 6), (STORED, 1, 2, 7)).races == 2
    assert together((STORED, 0, 1, 5), (GIVEN_UP, 2, 2, 6)).races == 1
    assert together((STORED, 0, 1, 5), (DELETED, 0, 6, 7), (STORED, 2, 2, 20)).races == 0
    assert together((STORED, 0, 1, 5), (DELETED, 0, 6, 7), (STORED, 0, 2, 20)).races == 0


def test_what_was_there_when_a_rank_asked_is_no_race() -> None:
    """Behind a hole in a prompt, say, which is not asked for."""
    assert together((STORED, 0, 1, 5), (GIVEN_UP, 2, 8, 9)).races == 0


def test_what_can_be_stored_once_more_had_gone() -> None:
    twice = ((STORED, 0, 1, 5), (STORED, 2, 2, 9))
    assert (together(*twice).unexplained, together(*twice).races) == (0, 1)
    again = together(*twice, exclusive=True)
    assert (again.unexplained, again.races) == (1, 0)
    assert together(*twice, (DELETED, 0, 6, 7), exclusive=True).unexplained == 0
    assert together(*twice, (LOST, 0, 5, 8), exclusive=True).unexplained == 1  # once, not twice


def test_clocks_that_go_apart_give_moments_no_order() -> None:
    log, other = SharingLog(), SharingLog()
    log.note(STORED, KEY, 1 * MS, 5 * MS)
    other.note(MISSED, KEY, 9 * MS, 10 * MS)
    parts = [log.dealt(0, [0], 0)[0], other.dealt(2, [0], 0)[0]]
    assert joined(parts, HOST_OF, exclusive=True).stale == 1
    assert joined(parts, HOST_OF, exclusive=True, error_ns=6 * MS).stale == 0


def test_more_moments_than_are_kept_are_an_error_and_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pytest_kvcache.measure.sharing.MOST_MOMENTS", 2)
    log = SharingLog()
    for number in range(2):
        log.note(STORED, bytes([number]) * 16, 0, 1)
    assert log.error is None
    log.note(STORED, KEY, 0, 1)
    assert "has noted 2 moments of blocks" in (log.error or "")


def test_a_block_that_is_gone_was_deleted_by_somebody_or_is_lost() -> None:
    explained = together((STORED, 0, 1, 5), (DELETED, 1, 8, 9), (LOST, 0, 5, 10))
    assert (explained.unexplained, explained.lost_key) == (0, None)
    lost = together((STORED, 0, 1, 5), (LOST, 0, 5, 10), key=OTHER)
    assert (lost.unexplained, lost.lost_key) == (1, OTHER)
    earlier = together((STORED, 0, 1, 2), (DELETED, 0, 3, 4), (STORED, 0, 8, 9), (LOST, 0, 9, 30))
    assert earlier.unexplained == 1
    later = together((STORED, 0, 1, 5), (LOST, 0, 5, 10), (DELETED, 0, 20, 21))
    assert later.unexplained == 1


keys = st.binary(min_size=16, max_size=16)
moments = st.tuples(
    keys, st.sampled_from([STORED, DELETED, FOUND, MISSED, LOST, GIVEN_UP]), st.integers(0, 2),
    st.integers(0, 100 * MS), st.integers(0, 20 * MS),
)  # fmt: skip


def dealt(noted: list[tuple[bytes, int, int, int, int]], among: list[int]) -> Joined:
    """Everything, dealt out, joined apart and added up."""
    logs = {rank: SharingLog() for rank in HOST_OF}
    for key, kind, rank, began_ns, took_ns in noted:
        logs[rank].note(kind, key, began_ns, began_ns + took_ns)
    parts = {rank: log.dealt(rank, among, 0) for rank, log in logs.items()}
    apart = [
        joined([of[to] for of in parts.values() if to in of], HOST_OF, exclusive=True)
        for to in among
    ]
    return Joined(
        visible_ns=sorted(ns for each in apart for ns in each.visible_ns),
        stale=sum(each.stale for each in apart),
        longest_stale_ns=max(
            (each.longest_stale_ns for each in apart if each.longest_stale_ns is not None),
            default=None,
        ),
        races=sum(each.races for each in apart),
        unexplained=sum(each.unexplained for each in apart),
    )


@given(st.lists(moments, max_size=30))
def test_what_is_dealt_to_many_and_joined_is_what_one_finds(
    noted: list[tuple[bytes, int, int, int, int]],
) -> None:
    pool = [bytes([n]) + bytes(15) for n in range(3)]
    few = [(pool[key[0] % 3], a, b, c, d) for key, a, b, c, d in noted]
    alone, many = dealt(few, [0]), dealt(few, [0, 1, 2])
    assert alone == many
    assert alone.stale <= sum(kind == MISSED for _key, kind, *_rest in few)
    assert alone.unexplained <= sum(kind in {LOST, STORED} for _key, kind, *_rest in few)
    assert all(late > CLOCK_ERROR_NS for late in [alone.longest_stale_ns] if late is not None)


def test_moments_are_counted_from_the_start_of_the_run() -> None:
    log, other = SharingLog(), SharingLog()
    log.note(STORED, KEY, 1_000 * MS, 1_001 * MS)  # this host's clock began much earlier
    other.note(FOUND, KEY, 53 * MS, 54 * MS)
    parts = [log.dealt(0, [0], 950 * MS)[0], other.dealt(2, [0], 0)[0]]
    assert joined(parts, HOST_OF, exclusive=True).visible_ns == [3 * MS]
    assert SharingLog().dealt(0, [0, 1], 0) == {}
