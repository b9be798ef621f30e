from __future__ import annotations

from tests.factories import (
    FakeClock,
    S,
    Script,
    ask,
)
from tests.rig import Rig, Stage


def censored(rig: Rig) -> tuple[int, int]:
    """Loads and requests that began in the window and were not seen to end."""
    return rig.recorder.censored["load"], rig.recorder.censored["request"]


def test_a_request_that_waits_for_admission_at_the_end_is_not_forgotten(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")], [ask(1, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1)  # b needs the room of a
    rig.start(window_ns=S)
    (call,) = stage.expect("get a")
    rig.advance(S)
    stage.release(call)
    rig.finish()
    assert censored(rig) == (0, 1)
    assert rig.histogram("request").count == rig.histogram("load").count == 1


def test_reads_that_have_not_begun_when_the_drain_ends_are_left_and_counted(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b", "c")]], population=[ask(0, "a", "b", "c")])
    rig = Rig(script, stage, clock=clock, queue_depth=1)
    rig.start(window_ns=S, drain_s=5.0)
    (call,) = stage.expect("get a")
    rig.advance(S)
    rig.advance(5 * S)
    assert censored(rig) == (1, 1)
    stage.release(call)
    rig.finish()
    assert rig.histogram("read").count == 1
    assert rig.histogram("request").count == rig.histogram("load").count == 0


def test_an_answer_that_is_not_due_when_the_drain_ends_is_counted(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a")._replace(output_tokens=10)]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, generation_s_per_token=1.0)
    rig.start(window_ns=S, drain_s=5.0)
    stage.release(*stage.expect("get a"))
    rig.advance(S)
    rig.advance(5 * S)
    rig.finish()
    assert censored(rig) == (0, 1)
    assert rig.histogram("load").count == 1
    assert rig.histogram("request").count == 0
