from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.ioengines.echo import EchoQueue, _Nowhere, echo_engine
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.ioengines.ringslabs import SlabEngine

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_all_that_is_begun_has_ended_well_at_the_next_look() -> None:
    engine = echo_engine("io_uring", 4)
    views = [memoryview(bytearray(4096)) for _slot in range(6)]
    engine.register(views)
    for slot, kind in enumerate((READ, WRITE, READ, DELETE, SYNC)):
        view = views[slot] if kind in {READ, WRITE} else memoryview(b"")
        engine.stage(slot, kind, f"{slot}", 0, view, 1)
    assert engine.submit(4) == 4
    assert engine.look() == 4
    assert {(slot, error) for slot, _began, _done, error in engine.reap()} == {
        (slot, None) for slot in range(4)
    }
    assert engine.in_flight == 0
    assert engine.submit(4, 0) == 1
    assert engine.look() == 1
    engine.close()


class _SlowQueue(EchoQueue):
    """A kernel that takes 300 µs to begin a call, which has ended as soon as it began."""

    now_ns = 1_000_000_000

    def enter(self, slots: Sequence[int], timeout_ns: int | None) -> int:
        _SlowQueue.now_ns += 300_000 * len(slots)
        return super().enter(slots, timeout_ns)


def test_each_end_counts_and_the_time_in_which_others_were_begun_does() -> None:
    engine = SlabEngine("io_uring", _Nowhere(), 8, _SlowQueue, clock=lambda: _SlowQueue.now_ns)
    views = [memoryview(bytearray(4096)) for _slot in range(8)]
    engine.register(views)
    for slot, view in enumerate(views):
        engine.stage(slot, READ, f"{slot}", 0, view, 1)
    assert engine.submit(8, _SlowQueue.now_ns + 1_000_000_000) == 8
    assert engine.look() == 8
    assert engine.lags_ns == [8 * 300_000] * 8
    engine.close()
