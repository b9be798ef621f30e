from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.engine.payload import Payload
from tests.factories import (
    HOST,
    PAGE,
    Bookkeeper,
    FakeClock,
    S,
    Script,
    ask,
    key_of,
)
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.workloads.protocol import Request


def test_the_population_is_stored_and_not_measured() -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE)
    script = Script([[ask(0, "a", "b")]], population=[ask(0, "a", output=["b"]), ask(1, "c")])
    rig = Rig(script, backend, payload=Payload(1, PAGE), verify="full")
    rig.run()
    assert sorted(backend.objects) == sorted(
        f"{key_of(name).hex()}.{number}" for name, number in (("a", 2), ("b", 1), ("c", 3))
    )
    assert rig.histogram("write").count == 0
    assert rig.sums()["write_bytes"] == 0
    counters = rig.loop.counters
    assert (counters.offered, counters.completed, counters.requested_write_bytes) == (1, 1, 0)
    assert rig.sums()["hit_blocks"] == 2


def test_the_population_ends_where_the_cache_is_full() -> None:
    backend = Bookkeeper(limit=5)
    backend.prepare(PAGE)
    contexts = [ask(user, "s", f"{user}x", f"{user}y") for user in range(4)]
    rig = Rig(Script([[]] * 4, population=contexts), backend,
              payload=Payload(1, PAGE), capacity_blocks=6)  # fmt: skip
    rig.populate()
    assert len(backend.objects) == rig.index.present_blocks == 5
    assert rig.index.evictions == 0
    assert backend.breaches == []
    rig.loop.close()


def test_the_population_waits_for_room_in_the_store_queue() -> None:
    most = 0

    class Counted(Script):
        def population(self) -> Iterator[Request]:
            nonlocal most
            for number in range(200):
                most = max(most, rig.loop.blocks.stores)
                yield ask(0, f"{number}x", f"{number}y")

    backend = Bookkeeper()
    backend.prepare(PAGE)
    rig = Rig(Counted([[]]), backend, payload=Payload(1, PAGE))
    rig.populate()
    assert len(backend.objects) == 400
    assert most <= 4 * 2
    rig.loop.close()


def test_a_failure_ends_the_population_at_once(clock: FakeClock, stage: Stage) -> None:
    contexts = [ask(0, "a1", "a2", "a3", "a4", "a5"), ask(1, "b")]
    rig = Rig(Script([[], []], population=contexts), stage, clock=clock, queue_depth=1)
    rig.behind(rig.loop.populate)
    stage.release(*stage.expect("put a1"), error="can't write")
    rig.join()
    # What was staged when it failed has begun before the failure was looked at.
    assert [str(call) for call in stage.calls] == ["put a1", "put a2"]
    assert rig.loop.first_error == f"{HOST}: can't write"
    assert key_of("b") not in rig.index._entries


def test_the_population_stops_when_told(clock: FakeClock, stage: Stage) -> None:
    contexts = [ask(0, "a", "b", "c")]
    rig = Rig(Script([[]], population=contexts), stage, clock=clock)
    rig.behind(rig.loop.populate)
    stage.expect("put a", "put b")
    rig.stop()
    rig.advance(S)
    rig.join()
    assert [str(call) for call in stage.calls] == ["put a", "put b"]


def test_a_stop_order_ends_the_run(clock: FakeClock, stage: Stage) -> None:
    script = Script([[ask(0, "a")] * 2], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=1_000 * S)
    stage.expect("get a")
    rig.stop()
    rig.advance(S)
    stage.release_all()
    rig.finish()
    assert rig.stopped_ns == rig.start_ns + S
    assert script.asked == [1]
