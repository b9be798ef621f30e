from __future__ import annotations

from pytest_kvcache.ioengines.echo import echo_engine
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE


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
