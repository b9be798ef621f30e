from __future__ import annotations

import pytest

from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.errors import ResultError, StorageError
from pytest_kvcache.measure.recorder import WRITE
from tests.factories import (
    HOST,
    PAGE,
    Bookkeeper,
    FakeClock,
    S,
    Script,
    ask,
    extremes,
    key_of,
)
from tests.rig import Rig, Stage


class Spoiler(Bookkeeper):
    """Reads block ``victim`` wrongly, in one of many ways."""

    def __init__(self, how: str, victim: str) -> None:
        super().__init__()
        self._how = how
        self._victim = key_of(victim).hex()

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        if not key.startswith(self._victim):
            super().get_into(key, offset, buffer)
        elif self._how == "flipped bit":
            super().get_into(key, offset, buffer)
            buffer[len(buffer) // 2] ^= 1
        elif self._how == "other object":
            other = next(name for name in self.objects if not name.startswith(self._victim))
            super().get_into(other, offset, buffer)
        elif self._how == "other page":
            super().get_into(key, PAGE - offset, buffer)
        elif self._how == "zeros":
            buffer[:] = bytes(len(buffer))
        elif self._how == "short":
            raise StorageError(f"{HOST}: short read of {key}: wanted {PAGE} bytes, got 1")
        else:
            assert self._how == "nothing"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped bit", "differs in 1 bytes"),
        ("other object", "has the stamp of page"),
        ("other page", "has the stamp of page"),
        ("zeros", "it is zero"),
        ("short", "short read"),
        ("nothing", "was not read"),
    ],
)
def test_a_wrong_read_is_a_failure_and_nothing_else(how: str, message: str) -> None:
    good, wrong = ask(0, "a", "b", "c"), ask(0, "a", "x", "c")
    script = Script([[good, wrong]], population=[good, ask(0, "x")])
    backend = Spoiler(how, "x")
    backend.prepare(2 * PAGE)
    rig = Rig(
        script,
        backend,
        payload=Payload(1, PAGE),
        queue_depth=1,
        stored_bytes=2 * PAGE,
        object_bytes=2 * PAGE,
        verify="full",
    )
    rig.run()
    counters, sums = rig.loop.counters, rig.sums()
    assert rig.loop.first_error is not None
    assert message in rig.loop.first_error
    assert counters.read_failed == 1
    assert rig.loop.corrupt == (0 if how == "short" else 2)
    assert key_of("x") not in rig.index._entries
    # Of the first request all reads count, of the second one the two right ones.
    assert rig.histogram("read").count == 5
    assert rig.recorder.section_bytes["read"] == sums["read_bytes"] == 5 * 2 * PAGE
    assert counters.requested_read_bytes == 5 * 2 * PAGE
    assert rig.histogram("load").count == rig.histogram("request").count == 1
    assert (sums["requests"], sums["prompt_blocks"], sums["hit_blocks"]) == (1, 3, 3)
    assert (sums["prompt_tokens"], sums["arrived_tokens"], sums["hit_tokens"]) == (3, 3, 3)
    assert counters.completed == 1


def test_a_failure_ends_the_run_early() -> None:
    endless = [ask(0, "a")] * 1_000_000
    backend = Spoiler("zeros", "x")
    backend.prepare(PAGE)
    script = Script([endless, [ask(1, "x")]], population=[ask(0, "a"), ask(1, "x")])
    rig = Rig(
        script,
        backend,
        payload=Payload(1, PAGE),
        verify="full",
    )
    rig.run(window_ns=60 * S)
    assert rig.loop.first_error is not None
    assert rig.stopped_ns < rig.start_ns + 60 * S
    assert script.asked[0] < 1_000_000


def test_a_failed_write_is_a_failure_and_nothing_else(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a", "b")]]), stage, clock=clock)
    rig.start()
    bad, good = stage.expect("put a", "put b")
    clock.advance(S)
    stage.release(good)
    stage.release(bad, error="can't write")
    rig.finish()
    counters, sums = rig.loop.counters, rig.sums()
    assert rig.loop.first_error == f"{HOST}: can't write"
    assert (counters.write_failed, counters.requested_write_bytes) == (1, PAGE)
    assert extremes(rig.histogram("write")) == (1, S, S, S)
    assert rig.histogram("device").count == 1
    assert sums["write_bytes"] == rig.recorder.section_bytes["write"] == PAGE
    assert [entry.key for entry in rig.index._entries.values()] == [key_of("b")]


def test_a_failed_chunk_fails_its_object_once(clock: FakeClock, stage: Stage) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock, stored_bytes=2 * PAGE, sync=True)
    rig.start()
    bad, good = stage.expect("put a", "put a @4096")
    stage.release(bad, error="can't write")
    stage.release(good)
    rig.finish()
    assert rig.loop.counters.write_failed == 1
    assert rig.histogram("write").count == 0
    assert rig.index.used_blocks == 0


@pytest.mark.parametrize("kind", ["put", "get", "delete"])
def test_nothing_is_stored_in_the_room_of_what_could_not_be_stored_read_or_deleted(
    clock: FakeClock, stage: Stage, kind: str
) -> None:
    # Its object, or a part of it, is still there: one more would be beyond the capacity.
    full = [ask(0, "a")]
    turns = {
        "put": [[ask(0, "a")], [ask(1, "b")]],
        "get": [[ask(0, "a")], [ask(1, "b")]],
        "delete": [[ask(0, "b")]],
    }
    script = Script(turns[kind], population=[] if kind == "put" else full)
    rig = Rig(script, stage, clock=clock, capacity_blocks=1, queue_depth=1)
    rig.start()
    stage.release(*stage.expect(f"{kind} a"), error="it failed")
    stage.release_all()
    rig.finish()
    assert rig.loop.first_error == f"{HOST}: it failed"
    assert [str(call) for call in stage.calls if call.kind == WRITE and call.name == "b"] == []
    assert key_of("b") not in rig.index._entries or kind == "delete"


def test_a_failed_delete_is_the_runs_error(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "b")]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock, capacity_blocks=1)
    rig.start()
    stage.release(*stage.expect("delete a"), error="it failed")
    stage.release_all()
    rig.finish()
    assert rig.loop.first_error == f"{HOST}: it failed"
    assert rig.loop.counters.delete_failed == 1


class Broken(Bookkeeper):
    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        del key, offset, buffer
        raise RuntimeError("a bug in a backend")


def test_a_bug_in_a_backend_is_raised_and_not_counted() -> None:
    rig = Rig(Script([[ask(0, "a")]]), Broken())
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        rig.run()


def test_a_bug_in_a_backend_is_raised_out_of_the_population() -> None:
    rig = Rig(Script([[]], population=[ask(0, "a")]), Broken())
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        rig.populate()


def test_a_clock_that_runs_backwards_gives_an_error_and_no_number(
    clock: FakeClock, stage: Stage
) -> None:
    rig = Rig(Script([[ask(0, "a")]]), stage, clock=clock)
    rig.start()
    (put,) = stage.expect("put a")
    clock.advance(-5 * S)
    stage.release(put)
    with pytest.raises(ResultError, match=r"a latency is -5000000000 ns; it must not be negative"):
        rig.finish()
    assert rig.histogram("write").count == 0
