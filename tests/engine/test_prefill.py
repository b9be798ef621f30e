"""Computing what was not loaded takes its time, and a load is judged by the time it saved."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.measure.worth import LengthCounts
from tests.factories import FakeClock, S, Script, ask, extremes, key_of
from tests.rig import Rig, Stage

PER_S = 0.25  # a token takes 4 s, and is a block


def rig_of(script: Script, stage: Stage, clock: FakeClock, **parts: Any) -> Rig:
    return Rig(
        script,
        stage,
        clock=clock,
        prefill_tokens_per_s=PER_S,
        generation_s_per_token=1.0,
        **parts,
    )


def test_what_is_missed_is_computed_after_the_load_and_before_the_generation(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b", "c", output_tokens=2)]], population=[ask(0, "a")])
    rig = rig_of(script, stage, clock)
    rig.start()
    (read,) = stage.expect("get a")
    rig.advance(S)
    stage.release(read)
    stage.expect()
    rig.advance(2 * 4 * S)
    stage.expect()  # still generating
    rig.advance(2 * S)
    stage.release(*stage.expect("put b", "put c"))
    rig.finish()
    assert extremes(rig.histogram("load")) == (1, S, S, S)
    assert rig.histogram("request").max_ns == 11 * S


def test_a_hit_takes_no_computing(clock: FakeClock, stage: Stage) -> None:
    rig = rig_of(Script([[ask(0, "a")]], population=[ask(0, "a")]), stage, clock)
    rig.start()
    (read,) = stage.expect("get a")
    rig.advance(S)
    stage.release(read)
    rig.finish()
    assert rig.histogram("request").max_ns == S


def test_where_nothing_is_loaded_all_of_the_prompt_is_computed(
    clock: FakeClock, stage: Stage
) -> None:
    rig = rig_of(Script([[ask(0, "a", "b")]], population=[]), stage, clock, phase="prefill")
    rig.start()
    stage.expect()
    rig.advance(8 * S)
    stage.release(*stage.expect("put a", "put b"))
    rig.finish()


@pytest.mark.parametrize(("took_s", "useful"), [(7, 1), (8, 0)])
def test_a_load_is_useful_if_recomputing_its_tokens_takes_longer(
    clock: FakeClock, stage: Stage, took_s: int, useful: int
) -> None:
    script = Script([[ask(0, "a", "b", "c")]], population=[ask(0, "a", "b")])
    rig = rig_of(script, stage, clock)
    rig.start()
    reads = stage.expect("get a", "get b")
    rig.advance(took_s * S)
    stage.release(*reads)
    rig.advance(4 * S)
    stage.release(*stage.expect("put c"))
    rig.finish()
    worth = rig.recorder.worth
    assert worth is not None
    assert worth.counted() == (LengthCounts(tokens=2, loads=1, useful=useful),)
    assert (worth.loaded_tokens, worth.useful_tokens) == (2, 2 * useful)


def test_what_an_index_serves_is_brought_by_no_load_and_computed_by_nobody(
    clock: FakeClock, stage: Stage
) -> None:
    prompt = ask(0, "a", "b", "c", "d")
    rig = rig_of(Script([[prompt]], population=[prompt]), stage, clock, memory={"cpu": (3, None)})
    rig.start()
    reads = stage.pending
    assert 0 < len(reads) < 4
    rig.advance(S)
    stage.release(*reads)
    rig.finish()
    worth = rig.recorder.worth
    assert worth is not None
    assert worth.loaded_tokens == len(reads)
    assert rig.histogram("request").max_ns == S


def test_blocks_beside_a_prefix_are_brought_by_the_load_or_computed(
    clock: FakeClock, stage: Stage
) -> None:
    prompt = ask(0, "a", "b", beside=tuple(map(key_of, "xyz")))
    rig = rig_of(Script([[prompt]], population=[ask(0, "x"), ask(0, "y")]), stage, clock)
    rig.start()
    reads = stage.expect("get x", "get y")
    rig.advance(S)
    stage.release(*reads)
    rig.advance(3 * 4 * S)  # a, b and z
    stage.release(*stage.pending)
    rig.finish()
    worth = rig.recorder.worth
    assert worth is not None
    assert (worth.loaded_tokens, worth.useful_tokens) == (2, 2)
    assert rig.histogram("request").max_ns == 13 * S
