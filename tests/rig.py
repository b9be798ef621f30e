"""A loop whose I/O is in the hands of a test: what is in flight ends when, and as, it says.

Two I/O engines. `Stage` holds every call until the test ends it, and stops the loop where it
would sleep, so that test and loop take turns and nothing depends on time. `Shuffled` ends
calls by itself, in an order that dice choose.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.cache.buckets import BucketIndex
from pytest_kvcache.cache.index import CacheIndex
from pytest_kvcache.cache.tiers import Tier, TierStack
from pytest_kvcache.engine.loop import Loop
from pytest_kvcache.engine.operations import TransferSettings
from pytest_kvcache.engine.tiered import Tiers
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.inline import call_backend
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.measure.recorder import Recorder, Window
from pytest_kvcache.measure.worth import WorthBook
from tests.factories import HOST, PAGE, PATIENCE_S, FakeClock, S, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.engine.lookups import Lookups
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import Completion, IoEngine, IoEngineName
    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.measure.service import ServiceBook
    from pytest_kvcache.workloads.protocol import Workload

KINDS = {READ: "get", WRITE: "put", DELETE: "delete", SYNC: "sync"}


@dataclass(eq=False, kw_only=True)
class Call:
    """One transfer or call that a `Stage` holds back."""

    slot: int
    kind: int
    name: str
    offset: int
    at_ns: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} {self.name}" + (f" @{self.offset}" if self.offset else "")


class Stage:
    """An I/O engine whose calls last until the test ends them; syncs end at once.

    While ``open_ended`` is true, all calls do. ``calls`` are all calls ever begun. Where the
    loop would sleep it waits for the test, if it ``parks``: then all that it can do is done.
    """

    name: IoEngineName = "threads"

    def __init__(self, clock: Callable[[], int], *, depth: int = 2, parks: bool = True) -> None:
        self.depth = depth
        self.lags_ns: list[int] = []
        self.calls: list[Call] = []
        self.synced: list[str] = []
        self.open_ended = False
        self.closed = False
        self._clock = clock
        self._parks = parks
        self._staged: list[Call] = []
        self._ended: list[Completion] = []
        self._changed = threading.Condition()
        self._parked = False
        self._woken = False
        self._over = False

    # --- the loop's side --------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self.pending)

    def register(self, buffers: Sequence[memoryview]) -> None:
        self.buffers = buffers

    def stage(  # noqa: PLR0917  as the protocol has it
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        del view, transfers
        held = {call.slot for call in (*self._staged, *self.pending)}
        held |= {ended for ended, *_rest in self._ended}
        assert slot not in held, "a slot is used again before its end was taken"
        self._staged.append(Call(slot=slot, kind=kind, name=name_of(key), offset=offset))

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        begun, self._staged = self._staged[:limit], self._staged[limit:]
        with self._changed:
            for call in begun:
                call.at_ns = self._clock()
                if call.kind == SYNC:
                    self.synced.append(call.name)
                else:
                    self.calls.append(call)
                if self.open_ended or call.kind == SYNC:
                    self._end(call, None)
            waits = wait_until_ns is not None and wait_until_ns > self._clock()
            if waits and self._parks and not self._ended:
                self._park()
        return len(begun)

    def _park(self) -> None:
        self._parked = True
        self._changed.notify_all()
        while not (self._woken or self._ended):
            self._changed.wait()
        self._parked = self._woken = False

    def look(self) -> int:
        return len(self._ended)

    def reap(self) -> Sequence[Completion]:
        with self._changed:
            ended, self._ended = self._ended, []
        return ended

    def withdraw(self) -> list[int]:
        staged, self._staged = self._staged, []
        return [call.slot for call in staged]

    def longest_wait_ns(self, now_ns: int) -> int:
        return max((now_ns - call.at_ns for call in self.pending), default=0)

    def close(self) -> None:
        self._staged.clear()
        self.closed = True

    # --- the test's side --------------------------------------------------------------------

    @property
    def pending(self) -> list[Call]:
        """Calls that have not ended."""
        return [call for call in self.calls if not call.released]

    def expect(self, *shown: str) -> list[Call]:
        """Exactly these calls are pending (in any order); return them so."""
        self.settle()
        pending = self.pending
        assert sorted(map(str, pending)) == sorted(shown)
        by_name = {str(call): call for call in pending}
        return [by_name[name] for name in shown]

    def release(self, *calls: Call, error: str | None = None) -> None:
        """End these calls, in this order; with ``error`` they fail."""
        with self._changed:
            for call in calls:
                self._end(call, error)
            self._changed.notify_all()
        self.settle()

    def release_all(self) -> None:
        """End every call, from now on at once."""
        with self._changed:
            self.open_ended = True
            for call in self.pending:
                self._end(call, None)
            self._changed.notify_all()
        self.settle()

    def _end(self, call: Call, error: str | None) -> None:
        call.released = True
        problem = None if error is None else StorageError(f"{HOST}: {error}")
        self._ended.append((call.slot, call.at_ns, self._clock(), problem))

    def wake(self) -> None:
        """Let the loop look at the clock."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()
        self.settle()

    def settle(self) -> None:
        """Until the loop can do nothing more."""

        def nothing_to_do() -> bool:
            return self._over or (self._parked and not (self._woken or self._ended))

        if self._parks:
            with self._changed:
                assert self._changed.wait_for(nothing_to_do, PATIENCE_S), "the loop goes on"

    def begin(self) -> None:
        """The loop is about to run."""
        self._over = False

    def end(self) -> None:
        """The loop runs no more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


class Shuffled:
    """Makes the calls of a backend when dice say so: at their begin, at their end or between."""

    name: IoEngineName = "threads"

    def __init__(self, backend: Backend, depth: int, dice: random.Random) -> None:
        self.depth = depth
        self.lags_ns: list[int] = []
        self._backend = backend
        self._dice = dice
        self._staged: list[tuple[int, int, str, int, memoryview]] = []
        self._begun: list[tuple[int, int, str, int, memoryview]] = []
        self._made: list[Completion] = []
        self._ended: list[Completion] = []

    @property
    def in_flight(self) -> int:
        return len(self._begun) + len(self._made)

    def register(self, buffers: Sequence[memoryview]) -> None:
        del buffers

    def stage(  # noqa: PLR0917  as the protocol has it
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        del transfers
        held = {item[0] for item in (*self._staged, *self._begun, *self._made, *self._ended)}
        assert slot not in held, "a slot is used again before its end was taken"
        self._staged.append((slot, kind, key, offset, view))

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        assert limit <= self.depth - self.in_flight
        count = self._dice.randint(min(1, limit), limit)
        begun, self._staged = self._staged[:count], self._staged[count:]
        self._begun += begun
        self._roll()
        if wait_until_ns is not None and not self._ended:
            if self.in_flight:
                while not self._ended:
                    self._roll()
            elif not begun:
                time.sleep(max(0, wait_until_ns - time.monotonic_ns()) / 1e9)
        return len(begun)

    def _roll(self) -> None:
        if self._begun and self._dice.random() < 0.7:
            self._made.append(self._call(self._dice.randrange(len(self._begun))))
        if self._made and self._dice.random() < 0.7:
            self._ended.append(self._made.pop(self._dice.randrange(len(self._made))))

    def _call(self, which: int) -> Completion:
        slot, kind, key, offset, view = self._begun.pop(which)
        began_ns, problem = time.monotonic_ns(), None
        try:
            call_backend(self._backend, kind, key, offset, view)
        except StorageError as error:
            problem = error
        return slot, began_ns, time.monotonic_ns(), problem

    def look(self) -> int:
        self._roll()
        return len(self._ended)

    def reap(self) -> Sequence[Completion]:
        ended, self._ended = self._ended, []
        return ended

    def withdraw(self) -> list[int]:
        staged, self._staged = self._staged, []
        return [item[0] for item in staged]

    def longest_wait_ns(self, now_ns: int) -> int:
        del now_ns
        return 0

    def close(self) -> None:
        while self._begun:
            self._call(0)


def settings_of(**changes: Any) -> TransferSettings:
    """Operations of one page each, two in flight, unless told otherwise."""
    stored_bytes = changes.get("stored_bytes", PAGE)
    values: dict[str, Any] = {
        "queue_depth": 2,
        "object_bytes": stored_bytes,
        "stored_bytes": stored_bytes,
        "transfer_bytes": PAGE,
        "sync": False,
        "verify": "off",
    }
    return TransferSettings(**values | changes)


def index_of(capacity_blocks: int | None, settings: TransferSettings) -> CacheIndex:
    """An index for so many blocks of objects as these."""
    return CacheIndex(
        None if capacity_blocks is None else capacity_blocks * settings.stored_block_bytes,
        page_bytes=PAGE,
        objects_per_block=settings.objects_per_block,
        part_bytes=[part.object_bytes for part in settings.parts],
    )


def stack_of(
    policy: TierPolicy, settings: TransferSettings, capacities: Mapping[str, int | None]
) -> TierStack:
    """Tiers by their names for so many blocks each."""
    block_bytes = settings.objects_per_block * settings.stored_bytes
    tiers = [
        Tier(
            name=name,
            capacity_bytes=None if blocks is None else blocks * block_bytes,
            page_bytes=PAGE,
            objects_per_block=settings.objects_per_block,
        )
        for name, blocks in capacities.items()
    ]
    return TierStack(tiers, policy)


class Rig:
    """A loop in a thread of its own, on a clock and a stage that the test moves.

    Or on a backend, whose calls are made in an order that ``seed`` stands for. ``memory`` has
    the tiers before the storage: name → blocks, and the backend (None: index only).
    """

    def __init__(
        self,
        workload: Workload,
        storage: Backend | Stage,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        capacity_blocks: int | None = None,
        payload: Payload | None = None,
        block_tokens: int = 1,
        generation_s_per_token: float = 0.0,
        prefill_tokens_per_s: float | None = None,
        phase: str = "both",
        seed: int = 0,
        memory: Mapping[str, tuple[int, Backend | None]] | None = None,
        policy: TierPolicy = "write-through",
        service: ServiceBook | None = None,
        lookups: Lookups | None = None,
        to_first_miss: bool = False,
        bucket_blocks: int = 0,
        **changes: Any,
    ) -> None:
        self.settings = settings_of(**changes)
        depth = self.settings.queue_depth
        self.stage = storage if isinstance(storage, Stage) else None
        if isinstance(storage, Stage):
            storage.depth = depth
            self.io: IoEngine = storage
        else:
            self.io = Shuffled(storage, depth, random.Random(seed))
        self.clock = clock
        worth = None if prefill_tokens_per_s is None else WorthBook(prefill_tokens_per_s)
        self.recorder = Recorder(service, worth)
        self.index = index_of(capacity_blocks, self.settings)
        if bucket_blocks:
            assert capacity_blocks is not None
            self.index = BucketIndex(
                capacity_blocks * self.settings.stored_bytes, page_bytes=PAGE,
                block_bytes=self.settings.object_bytes, bucket_blocks=bucket_blocks,
            )  # fmt: skip
        cache: CacheIndex | Tiers = self.index
        if memory is not None:
            blocks = {name: most for name, (most, _backend) in memory.items()}
            capacities = {**blocks, "storage": capacity_blocks}
            self.stack = stack_of(policy, self.settings, capacities)
            self.index = self.stack.indices[-1]
            backends = tuple(backend for _most, backend in memory.values())
            cache = Tiers(stack=self.stack, memories=backends, payload=payload)
        self.loop = Loop(
            settings=self.settings,
            block_tokens=block_tokens,
            generation_s_per_token=generation_s_per_token,
            prefill_tokens_per_s=prefill_tokens_per_s,
            phase=phase,
            io=self.io,
            cache=cache,
            workload=workload,
            payload=payload,
            recorder=self.recorder,
            clock=clock,
            lookups=lookups,
            to_first_miss=to_first_miss,
        )
        self.error: BaseException | None = None
        self.stopped_ns = 0
        self.start_ns = 0
        self._thread: threading.Thread | None = None

    def populate(self) -> None:
        """Store the workload's population; ends every call."""
        if self.stage is not None:
            self.stage.open_ended = True
        self.loop.populate()
        if self.stage is not None:
            self.stage.open_ended = False
            self.stage.calls.clear()

    def start(
        self, *, ramp_ns: int = 0, window_ns: int | None = None, drain_s: float = PATIENCE_S
    ) -> None:
        """Populate, then run from now on, until there is nothing more to do."""
        self.populate()
        if isinstance(self.clock, FakeClock):
            self.clock.advance(S)
        self.start_ns = self.clock()
        begin_ns = self.start_ns + ramp_ns
        end_ns = None if window_ns is None else begin_ns + window_ns
        self.recorder.open_window(Window(begin_ns, end_ns))

        def run() -> None:
            self.stopped_ns = self.loop.run(start_ns=self.start_ns, end_ns=end_ns, drain_s=drain_s)

        self.behind(run)

    def behind(self, work: Callable[[], None]) -> None:
        """Let the loop work in a thread, until it can do nothing more."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  the test's thread looks at it
                self.error = error
            finally:
                if self.stage is not None:
                    self.stage.end()

        if self.stage is not None:
            self.stage.begin()
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        if self.stage is not None:
            self.stage.settle()

    def advance(self, ns: int) -> None:
        """Move the fake clock, and let the loop see it."""
        assert isinstance(self.clock, FakeClock)
        assert self.stage is not None
        self.clock.advance(ns)
        self.stage.wake()

    def stop(self) -> None:
        """As a tick does that says so."""
        self.loop.stop_asked = True

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self._thread is not None and not self._thread.is_alive()

    def join(self) -> None:
        """Wait for the end of what runs."""
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the loop did not come to its end"
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Wait for the end of the run, book everything."""
        self.join()
        self.loop.close()
        self.recorder.finish()

    def run(self, **spans: Any) -> None:
        """``start`` and ``finish``."""
        self.start(**spans)
        self.finish()

    def sums(self, begin_ns: int = 0, end_ns: int | None = None) -> dict[str, int]:
        """What the ledger holds."""
        ledger = self.recorder.ledger
        return ledger.sums(begin_ns, ledger.end_ns if end_ns is None else end_ns)

    def histogram(self, section: str) -> Histogram:
        """One of the recorder's histograms."""
        return self.recorder.histograms[section]
