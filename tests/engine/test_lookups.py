"""The storage is asked for what it has, before anything is loaded."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import is_absent_name
from pytest_kvcache.engine.lookups import Lookups, Question
from pytest_kvcache.engine.requests import InFlightRequest
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.threads import ThreadsEngine
from tests.factories import HOST, FakeClock, Script, ask, key_of
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Asked:
    """Has what it is told to have; remembers what it was asked for, by names without versions."""

    def __init__(self, has: Callable[[str], bool], clock: FakeClock | None = None) -> None:
        self.questions: list[list[str]] = []
        self._has = has
        self._clock = clock

    def look_up(self, keys: Sequence[str]) -> list[bool]:
        self.questions.append([key.partition(".")[0] for key in keys])
        if self._clock is not None:
            self._clock.advance(10 * len(keys))
        return [self._has(key) for key in keys]


def names(*blocks: str) -> list[str]:
    return [key_of(block).hex() for block in blocks]


def everything(key: str) -> bool:
    return not is_absent_name(key)


def rig_of(
    stage: Stage, clock: FakeClock, asked: Asked, script: Script, *, to_first_miss: bool = False
) -> Rig:
    lookups = Lookups(asked, 0, clock=clock)
    return Rig(script, stage, clock=clock, queue_depth=9, lookups=lookups,
               to_first_miss=to_first_miss)  # fmt: skip


SCRIPT = [[ask(0, "a", "b", "c", "d", output=["e"])]]


@pytest.mark.parametrize(("lookup", "asked_for"), [("all", "abcd"), ("first-miss", "abc")])
def test_all_blocks_of_a_prompt_are_asked_for_or_those_up_to_the_first_miss(
    stage: Stage, clock: FakeClock, lookup: str, asked_for: str
) -> None:
    asked = Asked(everything, clock)
    script = Script(SCRIPT, population=[ask(0, "a", "b")])
    rig = rig_of(stage, clock, asked, script, to_first_miss=lookup == "first-miss")
    rig.start()
    stage.release_all()
    rig.finish()
    assert asked.questions == [names(*asked_for)]
    sums = rig.sums()
    assert (sums["asked_objects"], sums["found_objects"]) == (len(asked_for), 2)
    took = rig.recorder.histograms["lookup"]
    assert took.count == 1
    assert took.mean_ns() == pytest.approx(10 * len(asked_for), rel=0.01)


def test_what_was_looked_up_counts_to_the_load(stage: Stage, clock: FakeClock) -> None:
    asked = Asked(everything, clock)
    rig = rig_of(stage, clock, asked, Script([[ask(0, "a")]], population=[ask(0, "a")]))
    rig.start()
    (read,) = stage.expect("get a")
    clock.advance(5)
    stage.release(read)
    rig.finish()
    assert rig.recorder.histograms["load"].mean_ns() == pytest.approx(15, rel=0.01)


def test_a_request_without_hits_is_answered_after_its_lookup(
    stage: Stage, clock: FakeClock
) -> None:
    asked = Asked(everything, clock)
    rig = rig_of(stage, clock, asked, Script([[ask(0, "a", "b")]]))
    rig.start()
    stage.release_all()
    rig.finish()
    assert rig.recorder.histograms["request"].mean_ns() == pytest.approx(20, rel=0.01)
    assert not rig.recorder.histograms["load"].count


def test_blocks_beside_the_prefix_are_asked_for_as_well(stage: Stage, clock: FakeClock) -> None:
    asked = Asked(everything)
    beside = tuple(map(key_of, ("x", "y")))
    turn = ask(0, "a", beside=beside, stores_beside=True)
    rig = rig_of(stage, clock, asked, Script([[turn]], population=[ask(0, "a"), ask(0, "y")]))
    rig.start()
    stage.release_all()
    rig.finish()
    assert asked.questions == [names("a", "y", "x")]


def test_an_object_that_was_stored_and_is_not_found_ends_the_run(
    stage: Stage, clock: FakeClock
) -> None:
    asked = Asked(lambda _key: False)
    rig = rig_of(stage, clock, asked, Script([[ask(0, "a")]], population=[ask(0, "a")]))
    rig.start()
    rig.finish()
    assert f"a lookup does not find object {names('a')[0]}." in str(rig.loop.first_error)
    assert not stage.calls
    assert not rig.recorder.histograms["request"].count


def test_a_phase_without_reads_asks_for_nothing(stage: Stage, clock: FakeClock) -> None:
    asked = Asked(everything)
    lookups = Lookups(asked, 0, clock=clock)
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock, lookups=lookups, phase="prefill")
    rig.start()
    stage.release_all()
    rig.finish()
    assert asked.questions == []


# --- threads ----------------------------------------------------------------------------------


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def look_up(self, keys: Sequence[str]) -> list[bool]:
        self.go.wait(20)
        if "wrong" in keys:
            raise StorageError(f"{HOST}: can't look up wrong")
        if "bug" in keys:
            raise ZeroDivisionError
        return [True] * len(keys)


def question(*keys: str) -> Question:
    return Question(InFlightRequest(ask(0, "a"), 0), [], keys)


def reaped(lookups: Lookups) -> list[str | None]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if answers := lookups.reap():
            return [answer.error for answer in answers]
        time.sleep(0.001)
    pytest.fail("no answer came")


def test_an_answer_wakes_whoever_sleeps_for_transfers() -> None:
    backend, io = Slow(), ThreadsEngine(NullBackend(), 1)
    lookups = Lookups(backend, 1, io.wake)
    lookups.submit(question("a"))
    threading.Timer(0.05, backend.go.set).start()
    began = time.monotonic()
    io.submit(1, time.monotonic_ns() + 20_000_000_000)
    assert time.monotonic() - began < 10
    assert reaped(lookups) == [None]
    lookups.close()
    io.close()


def test_what_no_thread_has_begun_is_left_and_the_rest_is_waited_for() -> None:
    backend = Slow()
    lookups = Lookups(backend, 1)
    first, second = question("a"), question("b")
    lookups.submit(first)
    while not lookups.longest_wait_ns(time.monotonic_ns()):
        time.sleep(0.001)
    lookups.submit(second)
    assert lookups.leave() == [second.inflight]
    backend.go.set()
    assert reaped(lookups) == [None]
    assert lookups.open == 0
    lookups.close()


def test_an_error_of_the_storage_is_told_and_a_bug_is_raised() -> None:
    backend = Slow()
    backend.go.set()
    lookups = Lookups(backend, 1)
    lookups.submit(question("wrong"))
    assert reaped(lookups) == [f"{HOST}: can't look up wrong"]
    assert lookups.first_error == f"{HOST}: can't look up wrong"
    lookups.submit(question("bug"))
    with pytest.raises(ZeroDivisionError):
        reaped(lookups)
    lookups.close()
