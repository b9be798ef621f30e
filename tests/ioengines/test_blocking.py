from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.inline import InlineEngine
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.ioengines.threads import _QUICK_CALL_NS, ThreadsEngine
from tests.factories import PATIENCE_S, Bookkeeper, FakeClock, S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.ioengines.protocol import Completion

Blocking = InlineEngine | ThreadsEngine
BOTH = pytest.mark.parametrize("kind", [InlineEngine, ThreadsEngine], ids=["inline", "threads"])


def stage(engine: Blocking, slot: int, kind: int, key: str, size: int = 4) -> memoryview:
    view = memoryview(bytearray(size))
    engine.stage(slot, kind, key, 0, view, 1)
    return view


def finish(engine: Blocking) -> list[Completion]:
    """Begin all that is staged, and wait for it."""
    found: list[Completion] = []
    until = time.monotonic() + PATIENCE_S
    begun = engine.submit(engine.depth)
    while len(found) < begun:
        engine.submit(0, time.monotonic_ns() + S // 10)
        if engine.look():
            found += engine.reap()
        assert time.monotonic() < until
    return found


@BOTH
def test_every_kind_of_call_reaches_the_backend(kind: type[Blocking]) -> None:
    backend = Bookkeeper()
    backend.prepare(4, syncs=True)
    engine = kind(backend, 2)
    engine.register([])
    for slot, what in enumerate((WRITE, SYNC, READ, DELETE)):
        stage(engine, slot, what, "61.1")
        ((done, started_ns, done_ns, error),) = finish(engine)
        assert (done, error) == (slot, None)
        assert 0 < started_ns <= done_ns
    assert backend.counts == {"put": 1, "sync": 1, "get": 1, "delete": 1}
    assert backend.breaches == []
    engine.close()


@BOTH
def test_what_fails_tells_why_and_the_others_go_on(kind: type[Blocking]) -> None:
    backend = Bookkeeper()
    backend.prepare(4)
    engine = kind(backend, 2)
    stage(engine, 0, READ, "61.1")
    stage(engine, 1, WRITE, "62.1")
    errors = {slot: error for slot, _began, _ended, error in finish(engine)}
    assert isinstance(errors[0], StorageError)
    assert "no such object 61.1" in str(errors[0])
    assert errors[1] is None
    engine.close()


@BOTH
def test_no_more_begin_than_are_allowed_and_the_rest_stays_staged(kind: type[Blocking]) -> None:
    engine = kind(NullBackend(), 4)
    for slot in range(5):
        stage(engine, slot, READ, "61.1")
    assert engine.submit(0) == 0
    assert engine.submit(2) == 2
    assert engine.withdraw() == [2, 3, 4]
    assert engine.submit(4) == 0
    engine.close()


@BOTH
def test_with_nothing_to_do_it_sleeps_until_told(kind: type[Blocking]) -> None:
    engine = kind(NullBackend(), 2)
    began_ns = time.monotonic_ns()
    assert engine.submit(2, began_ns + S // 20) == 0
    assert time.monotonic_ns() >= began_ns + S // 20
    assert engine.look() == 0
    engine.close()


@BOTH
def test_it_does_not_sleep_when_something_has_ended(kind: type[Blocking]) -> None:
    engine = kind(NullBackend(), 2)
    stage(engine, 0, READ, "61.1")
    began_ns = time.monotonic_ns()
    engine.submit(2, began_ns + 60 * S)
    assert time.monotonic_ns() < began_ns + 30 * S
    assert engine.look() == 1
    engine.close()


@BOTH
def test_a_bug_in_a_backend_is_raised_in_the_loop(kind: type[Blocking]) -> None:
    class Broken(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            raise RuntimeError("a bug in a backend")

    engine = kind(Broken(), 2)
    stage(engine, 0, READ, "61.1")
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        finish(engine)
    engine.close()


class Held(NullBackend):
    """Reads last until they may end; who makes them is noted."""

    def __init__(self) -> None:
        self.inside: set[int] = set()
        self.may_end = threading.Event()

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        del key, offset, buffer
        self.inside.add(threading.get_ident())
        assert self.may_end.wait(PATIENCE_S)


@pytest.fixture
def held() -> Iterator[Held]:
    backend = Held()
    yield backend
    backend.may_end.set()


def test_as_many_calls_are_made_at_a_time_as_may_be_in_flight(held: Held) -> None:
    engine = ThreadsEngine(held, 4)
    for slot in range(4):
        stage(engine, slot, READ, "61.1")
    assert engine.submit(4) == 4
    wait_for(lambda: len(held.inside) == 4)
    assert (engine.in_flight, engine.look()) == (4, 0)
    held.may_end.set()
    assert sorted(slot for slot, *_rest in finish_of(engine, 4)) == [0, 1, 2, 3]
    assert engine.in_flight == 0
    engine.close()


def finish_of(engine: ThreadsEngine, count: int) -> list[Completion]:
    found: list[Completion] = []
    while len(found) < count:
        engine.submit(0, time.monotonic_ns() + 60 * S)
        engine.look()
        found += engine.reap()
    return found


def test_calls_that_are_over_at_once_are_made_by_one_thread() -> None:
    clock, makers = FakeClock(), []

    class Timed(NullBackend):
        call_ns = 500

        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            clock.advance(self.call_ns)
            makers.append(threading.get_ident())

    backend = Timed()
    engine = ThreadsEngine(backend, 4, clock)

    def batch() -> set[int]:
        makers.clear()
        for slot in range(4):
            stage(engine, slot, READ, "61.1")
        engine.submit(4)
        finish_of(engine, 4)
        return set(makers)

    for _ in range(100):
        batch()
    assert engine._call_ns < _QUICK_CALL_NS
    assert len(batch()) == 1
    backend.call_ns = 1_000_000
    batch()
    assert engine._call_ns > _QUICK_CALL_NS  # from now on one by one again
    engine.close()


def test_the_longest_wait_is_that_of_the_oldest_call_under_way(held: Held) -> None:
    clock = FakeClock()
    engine = ThreadsEngine(held, 2, clock)
    assert engine.longest_wait_ns(clock()) == 0
    stage(engine, 0, READ, "61.1")
    engine.submit(1)
    wait_for(lambda: len(held.inside) == 1)
    clock.advance(3 * S)
    stage(engine, 1, READ, "61.1")
    engine.submit(1)
    wait_for(lambda: len(held.inside) == 2)
    clock.advance(2 * S)
    assert engine.longest_wait_ns(clock()) == 5 * S
    held.may_end.set()
    finish_of(engine, 2)
    assert engine.longest_wait_ns(clock()) == 0
    engine.close()


def test_closing_waits_for_what_is_in_flight_and_may_be_done_again(held: Held) -> None:
    engine = ThreadsEngine(held, 2)
    stage(engine, 0, READ, "61.1")
    engine.submit(1)
    wait_for(lambda: held.inside)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    held.may_end.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    engine.close()
