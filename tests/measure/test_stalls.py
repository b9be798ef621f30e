"""What is a stall and what is none, on a rank and of all ranks."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.recorder import DELETE, DEMOTE, READ, TRANSFER, WRITE, Recorder, Window
from pytest_kvcache.measure.stalls import (
    EVERY,
    KINDS,
    LEAST_NS,
    MOST,
    Stall,
    StallSummary,
    StallWatch,
    stalls_of,
)
from pytest_kvcache.results.invariants import record_faults
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.factories import rank_result, sound_plan, sound_record

MS = 1_000_000
S = 1_000_000_000
ROWS = {"read": READ, "write": WRITE, "delete": DELETE, "demote": DEMOTE}
USUAL = dict.fromkeys(KINDS, 10.0 * MS)


def served(
    depth: int, took_ns: int, end_ns: int, *stalls: tuple[int, int], kind: str = "read",
    begin_ns: int = 0,
) -> list[tuple[str, int, int]]:  # fmt: skip
    """A closed loop of so many threads; what would be completed in a stall is so at its end."""
    operations = []
    for thread in range(depth):
        at = begin_ns + thread * took_ns // depth
        while at < end_ns:
            done = at + took_ns
            for begin, end in stalls:
                if begin <= done < end:
                    done = end + thread
            operations.append((kind, at, done))
            at = done
    return operations


def recorded(operations: list[tuple[str, int, int]], window_ns: int) -> Recorder:
    """As the threads' rows would have come, in any order."""
    recorder = Recorder()
    recorder.open_window(Window(0, window_ns))
    log = recorder.log
    for kind, started, done in operations:
        log.add(ROWS[kind], started, started, done, 4096, 1)
    recorder.finish()
    return recorder


def found(operations: list[tuple[str, int, int]], window_ns: int = 6 * S) -> list[list[Any]]:
    stalls = recorded(operations, window_ns).found_stalls(window_ns)
    return [[stall.kind, round(stall.begin_s, 1), round(stall.end_s, 1)] for stall in stalls]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 16])
def test_a_storage_that_stands_still_is_found(depth: int, kind: str) -> None:
    operations = served(depth, 10 * MS, 6 * S, (2_500 * MS, 4_500 * MS), kind=kind)
    assert found(operations) == [[EVERY, 2.5, 4.5]]


def test_percentiles_do_not_see_what_is_found() -> None:
    recorder = recorded(served(16, 10 * MS, 6 * S, (2_500 * MS, 4_500 * MS)), 6 * S)
    p99_ns = recorder.histograms["read"].percentile_ns(99)
    assert p99_ns is not None
    assert p99_ns < 11 * MS
    assert recorder.found_stalls(6 * S)


def test_several_short_ones_are_counted_and_a_shorter_one_is_none() -> None:
    spans = [(1_000 * MS, 1_600 * MS), (2_000 * MS, 2_480 * MS), (3_000 * MS, 4_000 * MS)]
    assert found(served(4, 10 * MS, 6 * S, *spans)) == [[EVERY, 1.0, 1.6], [EVERY, 3.0, 4.0]]


def test_shorter_ones_every_second_show_in_the_maximum_and_in_no_median() -> None:
    spans = [(second * S, second * S + 450 * MS) for second in range(1, 6)]
    recorder = recorded(served(4, 10 * MS, 6 * S, *spans), 6 * S)
    assert recorder.found_stalls(6 * S) == ()
    reads = recorder.histograms["read"]
    median_ns = reads.percentile_ns(50)
    assert median_ns is not None
    assert median_ns < 11 * MS
    assert (reads.max_ns or 0) > 440 * MS


def test_where_few_operations_become_slow_each_of_them_stands_still() -> None:
    operations = served(1, 10 * MS, 2 * S) + served(1, 660 * MS, 6 * S, begin_ns=2 * S)
    assert len(found(operations)) > 4
    mostly_slow = served(1, 10 * MS, 50 * MS) + served(1, 660 * MS, 6 * S, begin_ns=50 * MS)
    assert found(mostly_slow) == []


def test_one_that_begins_in_the_window_lasts_into_the_drain() -> None:
    assert found(served(4, 10 * MS, 6 * S, (5_900 * MS, 8_000 * MS))) == [[EVERY, 5.9, 8.0]]


def test_one_after_the_window_is_none() -> None:
    assert found(served(4, 10 * MS, 8 * S, (6_100 * MS, 8_000 * MS))) == []


def test_of_one_that_began_before_the_window_its_part_inside_counts() -> None:
    early = served(4, 10 * MS, 6 * S, (-1_000 * MS, 1_000 * MS), begin_ns=-2 * S)
    assert found(early) == [[EVERY, 0.0, 1.0]]
    shorter = served(4, 10 * MS, 6 * S, (-1_000 * MS, 400 * MS), begin_ns=-2 * S)
    assert found(shorter) == []


@pytest.mark.parametrize("took_ms", [200, 900, 3_000])
def test_operations_that_take_long_are_no_stall(took_ms: int) -> None:
    assert found(served(1, took_ms * MS, 6 * S)) == []


def test_a_pause_without_anything_in_flight_is_no_stall() -> None:
    idle = served(4, 10 * MS, 2 * S) + served(4, 10 * MS, 6 * S, begin_ns=4 * S)
    assert found(idle) == []


def test_an_operation_that_began_late_in_the_silence_makes_it_shorter() -> None:
    idle = [*served(1, 10 * MS, 2 * S), ("read", 3 * S, 5 * S)]
    assert found(idle) == [[EVERY, 3.0, 5.0]]


def test_a_few_slow_operations_beside_others_are_no_stall() -> None:
    slow = [("read", 1 * S, 3 * S)] * 3
    assert found(served(4, 10 * MS, 6 * S) + slow) == []


def test_writes_that_stand_still_while_reads_go_on_are_a_stall_of_writes() -> None:
    writes = served(4, 10 * MS, 6 * S, (2 * S, 4 * S), kind="write")
    assert found(served(4, 10 * MS, 6 * S) + writes) == [["write", 2.0, 4.0]]


def test_one_slow_write_beside_reads_is_none() -> None:
    writes = served(1, 10 * MS, 6 * S, (2 * S, 4 * S), kind="write")
    assert found(served(4, 10 * MS, 6 * S) + writes) == []


def test_what_stands_still_together_is_reported_once() -> None:
    span = (2 * S, 4 * S)
    mixed = [served(4, 10 * MS, 6 * S, span, kind=kind) for kind in KINDS]
    assert found([row for rows in mixed for row in rows]) == [[EVERY, 2.0, 4.0]]


def test_each_kind_is_measured_by_what_it_usually_takes() -> None:
    # A write takes 0.9 s, a read 10 ms: no read for 0.9 s while one is in flight is a stall.
    slow_writes = served(2, 900 * MS, 6 * S, kind="write")
    assert found(slow_writes + served(2, 10 * MS, 1 * S)) == []
    assert found(slow_writes + served(2, 10 * MS, 6 * S)) == []


def test_transfers_of_an_operation_complete_nothing() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, 6 * S))
    log = recorder.log
    for kind, started, done in served(2, 10 * MS, 6 * S, (2 * S, 4 * S)):
        log.add(ROWS[kind], started, started, done, 4096, 2)
        log.add(TRANSFER, 0, started, min(done, started + 5 * MS), 4096, 0)
    recorder.finish()
    assert [stall.kind for stall in recorder.found_stalls(6 * S)] == [EVERY]


@pytest.mark.thorough
@settings(max_examples=50, deadline=None)
@given(
    begin=st.integers(600, 4_000), length=st.integers(520, 3_000), depth=st.integers(1, 8),
    pieces=st.integers(1, 5), seed=st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_order_of_rows_and_their_parts_make_no_difference(
    begin: int, length: int, depth: int, pieces: int, seed: Any
) -> None:
    operations = served(depth, 10 * MS, 8 * S, (begin * MS, (begin + length) * MS))
    seed.shuffle(operations)
    watch = StallWatch(0)
    for piece in range(pieces):
        part = np.array([row[1:] for row in operations[piece::pieces]], dtype=np.int64)
        watch.add("read", part[:, 0], part[:, 1])
    (stall,) = watch.found(8 * S, USUAL)
    assert stall.end_s == pytest.approx((begin + length) / 1e3, abs=1e-3)
    assert stall.length_s == pytest.approx(length / 1e3, abs=0.011)


def test_a_long_run_forgets_no_stall() -> None:
    watch = StallWatch(0)
    at = np.arange(0, 20_000 * S, 50 * MS, dtype=np.int64)
    at = at[(at < 5_000 * S) | (at >= 5_003 * S)]
    watch.add("read", at - 10 * MS, at)
    watch.add("read", np.array([5_000 * S - 1]), np.array([5_003 * S]))
    (stall,) = watch.found(20_000 * S, USUAL)
    assert (round(stall.begin_s), round(stall.end_s)) == (5_000, 5_003)


def test_the_longest_ones_are_kept() -> None:
    watch = StallWatch(0)
    ends = np.cumsum(np.arange(MOST + 10) % 7 * 100 * MS + 600 * MS)
    watch.add("read", np.concatenate([[0], ends[:-1]]), ends)
    assert len(watch.found(int(ends[-1]), USUAL)) == MOST


# --- of all ranks ---------------------------------------------------------------------------


def stall(begin_s: float, end_s: float, kind: str = EVERY) -> Stall:
    return Stall(kind=kind, begin_s=begin_s, end_s=end_s)


def test_what_ranks_have_at_once_is_one_stall() -> None:
    reported = stalls_of([[stall(1.0, 3.0), stall(5.0, 5.5)], [stall(2.0, 4.0)]])
    assert reported == StallSummary(
        count=2, longest_s=3.0, longest_begin_s=1.0, total_s=3.5, all_ranks_s=1.0,
        ranks=2, kinds=(EVERY,),
    )  # fmt: skip


def test_a_trial_without_stalls_has_no_longest_one() -> None:
    reported = stalls_of([[], []])
    assert (reported.count, reported.longest_s, reported.longest_begin_s) == (0, None, None)
    assert (reported.total_s, reported.all_ranks_s, reported.ranks) == (0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "sync"}, {"begin_s": -0.1}, {"end_s": 1.4}, {"end_s": float("nan")},
        {"begin_s": 1}, {"more": 1}, {"paused_s": 1.1}, {"paused_s": -0.1}, {"paused_s": None},
    ],
)  # fmt: skip
def test_a_damaged_stall_is_refused(changes: dict[str, Any]) -> None:
    Stall.from_json(asdict(stall(1.0, 2.0)))
    with pytest.raises(ResultError):
        Stall.from_json({**asdict(stall(1.0, 2.0)), **changes})
    with pytest.raises(ResultError):
        Stall.from_json([1.0, 2.0])


def test_a_stall_of_just_the_least_length_survives_json() -> None:
    for begin in (0, 1, 123_456_789, 59_999_999_999):
        reported = stall(begin / 1e9, (begin + LEAST_NS) / 1e9)
        assert Stall.from_json(asdict(reported)) == reported


# --- the verdict ----------------------------------------------------------------------------


def text_of(*ranks: tuple[Stall, ...]) -> str:
    plan = sound_plan(np=len(ranks))
    records = [rank_result(n, stalls=stalls) for n, stalls in enumerate(ranks)]
    _data, verdicts = evaluate_trial(sound_record(plan, records), plan)
    (text,) = (verdict.text for verdict in verdicts if verdict.code == "STALL")
    return text


def test_the_verdict_names_count_longest_and_when() -> None:
    assert text_of((stall(2.5, 4.5),)).startswith(
        "the storage stalled for 2.0 s, from 2.5 s into the window: no operation was completed"
    )
    several = text_of((stall(1.0, 1.6), stall(2.5, 4.5), stall(9.0, 9.5)))
    assert several.startswith(
        "the storage stalled 3 times, for 3.1 s in all, the longest 2.0 s, from 2.5 s into"
    )


def test_the_verdict_says_that_percentiles_do_not_show_it() -> None:
    assert "at most 4 operations per rank are slow" in text_of((stall(2.5, 4.5),))


def test_the_verdict_names_the_ranks_that_stood_still() -> None:
    one = text_of((), (stall(2.5, 4.5),))
    assert "no operation of 1 of 2 ranks (rank 1 on " in one
    assert "of any rank was completed" in text_of((stall(2.5, 4.5),), (stall(2.6, 4.6),))
    assert "of one rank or another was" in text_of((stall(1.0, 2.0),), (stall(3.0, 4.0),))
    many = [(stall(1.0, 2.0),)] * 5
    assert " and 2 more) " in text_of(*many, ())


def test_the_verdict_names_the_kind_that_stood_still_alone() -> None:
    assert "no write was completed" in text_of((stall(2.5, 4.5, "write"),))


# --- a rank that did not run ----------------------------------------------------------------


def paused(*pauses_ms: tuple[int, int]) -> Stall:
    """A stall from 2.5 to 4.5 s of a rank that was paused itself in these times."""
    recorder = recorded(served(16, 10 * MS, 6 * S, (2_500 * MS, 4_500 * MS)), 6 * S)
    (found_one,) = recorder.found_stalls(6 * S, [(a * MS, b * MS) for a, b in pauses_ms])
    return found_one


def test_a_stall_says_for_how_much_of_it_its_rank_did_not_run() -> None:
    assert paused().paused_s == 0.0
    assert paused((2_400, 3_000), (3_100, 3_200)).paused_s == pytest.approx(0.6, abs=0.02)
    assert not paused((2_400, 4_200)).is_a_pause
    assert paused((2_420, 4_510)).is_a_pause
    assert paused((2_420, 3_500), (3_550, 4_510)).is_a_pause


def test_of_a_rank_that_was_stopped_the_storage_is_not_blamed() -> None:
    plan = sound_plan(np=2)
    stopped = replace(stall(2.0, 2.8), paused_s=0.79)
    ranks = [rank_result(0), rank_result(1, stalls=(stopped,), longest_pause_s=0.85)]
    record = sound_record(plan, ranks)
    trial, verdicts = evaluate_trial(record, plan)
    texts = {verdict.code: verdict.text for verdict in verdicts}
    assert trial.stalls.count == 0
    assert "STALL" not in texts
    assert texts["PAUSED"].startswith("rank 1 on host ")
    assert "was paused for 0.8 s in the window" in texts["PAUSED"]
    others = [rank_result(0, stalls=(stall(2.0, 2.8),)), ranks[1]]
    (reported,) = (
        v.text for v in evaluate_trial(sound_record(plan, others), plan)[1] if v.code == "STALL"
    )
    assert " of 1 of 2 ranks (rank 0 on " in reported


def test_a_rank_that_never_paused_has_no_stall_that_is_a_pause() -> None:
    plan = sound_plan()
    reported = replace(stall(2.0, 2.8), paused_s=0.79)
    for longest_pause_s, words in ((None, "longest_pause_s is None"), (0.9, None)):
        rank = rank_result(0, stalls=(reported,), longest_pause_s=longest_pause_s)
        faults = [f for f in record_faults(sound_record(plan, [rank]), plan) if "paused_s" in f]
        assert len(faults) == (words is not None)
        assert words is None or words in faults[0]


# --- what can not be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((60.1, 60.6), "a stall begins at 60.1 s, after the window"),
        ((59.0, 61.0), "a stall ends at 61.0 s; the rank was done at 60.5 s"),
        ((10.5, 12.5), "in interval 11, in which all ranks were stalled"),
    ],
)
def test_a_stall_that_can_not_be_is_found(span: tuple[float, float], words: str) -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0, stalls=(stall(*span),))])
    assert any(words in fault for fault in record_faults(record, plan))
    sound = replace(record, ranks=(rank_result(0),))
    assert not any("stall" in fault for fault in record_faults(sound, plan))
