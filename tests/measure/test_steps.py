from __future__ import annotations

import numpy as np

from pytest_kvcache.measure.recorder import (
    ADMIT,
    DEMOTE,
    LOAD,
    READ,
    REQUEST,
    WRITE,
    Recorder,
    Window,
)
from pytest_kvcache.measure.steps import STEP_SECTIONS, StepLedger, histograms_of
from tests.factories import S, extremes


def stepped(*users: int) -> Recorder:
    """A recorder whose window begins at 10 s, with a load step every 10 s until its end."""
    recorder = Recorder()
    end_s = 10 * (len(users) + 1)
    recorder.open_window(Window(10 * S, end_s * S))
    for number, count in enumerate(users):
        at_ns = 10 * S * (number + 1) if number else 5 * S  # the first one from the ramp on
        recorder.begin_step(at_ns, count, at_ns + 1)
    return recorder


def test_what_is_under_way_when_the_load_changes_belongs_to_the_step_in_which_it_began() -> None:
    recorder = stepped(8, 2)
    for start_s, end_s in ((9, 12), (11, 19), (19, 21), (20, 22), (29, 35), (30, 31)):
        for kind in (READ, WRITE, DEMOTE):
            recorder.log.add(kind, start_s * S, start_s * S, end_s * S, 100, 1)
        recorder.log.add(LOAD, 0, start_s * S, end_s * S, 100, 0)
        recorder.log.add(REQUEST, start_s, start_s * S, end_s * S, 5, 1)
        recorder.log.add(ADMIT, 7, start_s * S, 3, 70, 30)
    recorder.finish()
    first, second = recorder.steps.counted(10 * S)
    assert (first.users, first.begin_s, first.obeyed_s) == (8, 0.0, -5 + 1e-9)
    assert (second.users, second.begin_s, second.obeyed_s) == (2, 10.0, 10 + 1e-9)
    for step in (first, second):
        assert (step.read_op_bytes, step.write_op_bytes, step.demote_op_bytes) == (200, 200, 200)
        assert (step.prompt_blocks, step.hit_blocks) == (14, 6)
        assert (step.answered, step.answered_users) == (2, 2)
        assert step.answered_later == 1  # of the last one, in the drain
    (merged,) = [histograms_of(recorder.steps.dense(2), [recorder.steps.extremes()])]
    for section in STEP_SECTIONS:
        assert extremes(merged[0][section]) == (2, 2 * S, 8 * S, 10 * S)
        assert extremes(merged[1][section]) == (2, 2 * S, 6 * S, 8 * S)


def test_what_is_not_seen_to_end_is_censored_in_the_step_in_which_it_began() -> None:
    recorder = stepped(8, 2)
    for start_s in (9, 19, 20, 29, 30):
        recorder.censor("load", start_s * S)
    recorder.censor("request", 20 * S)
    first, second = recorder.steps.counted(10 * S)
    assert (first.load_censored, second.load_censored) == (1, 2)
    assert (first.request_censored, second.request_censored) == (0, 1)


def test_a_user_that_asks_twice_in_a_step_is_one() -> None:
    recorder = stepped(8)
    for user in (3, 4, 3):
        recorder.log.add(REQUEST, user, 11 * S, 12 * S, 5, 1)
        recorder.absorb(12 * S)
    (step,) = recorder.steps.counted(10 * S)
    assert (step.answered, step.answered_users, step.answered_later) == (3, 2, 0)


def test_a_load_that_never_changes_has_no_steps() -> None:
    recorder = Recorder()
    recorder.open_window(Window(10 * S, 20 * S))
    recorder.log.add(READ, 11 * S, 11 * S, 12 * S, 100, 1)
    recorder.finish()
    assert recorder.steps.counted(10 * S) == ()
    assert recorder.steps.extremes() == []
    assert recorder.steps.dense(0).shape[0] == 0


def test_a_rank_that_ended_early_adds_nothing_to_the_steps_it_lacks() -> None:
    early, late = stepped(8), stepped(8, 2)
    for recorder in (early, late):
        recorder.log.add(READ, 11 * S, 11 * S, 12 * S, 100, 1)
    late.log.add(READ, 21 * S, 21 * S, 24 * S, 100, 1)
    ledgers = [early.steps, late.steps]
    for recorder in (early, late):
        recorder.finish()
    dense = np.sum([ledger.dense(2) for ledger in ledgers], axis=0)
    first, second = histograms_of(dense, [ledger.extremes() for ledger in ledgers])
    assert extremes(first["read"]) == (2, S, S, 2 * S)
    assert extremes(second["read"]) == (1, 3 * S, 3 * S, 3 * S)
    assert not StepLedger().dense(2).any()


def test_what_began_before_the_first_step_is_in_none_and_so_missing_in_the_sum() -> None:
    recorder = Recorder()
    recorder.open_window(Window(10 * S, 20 * S))
    recorder.begin_step(12 * S, 8, 12 * S)
    for start_s in (11, 13):
        recorder.log.add(READ, start_s * S, start_s * S, 14 * S, 100, 1)
    recorder.finish()
    (step,) = recorder.steps.counted(10 * S)
    assert (step.read_op_bytes, recorder.section_bytes["read"]) == (100, 200)
