"""One rank's measured loop: workload × cache × storage → rows of a log.

Rank-side; imports neither pytest nor MPI. What a finished operation leads to (the next
phase of its request, an admission, a user's next turn) is decided under one lock by the
thread that finished it. The main thread fires timers and ticks; it never touches the
storage.

A request goes: arrive → admit (hits, room and victims are decided at once, in order of
arrival) → load → compute → respond → store (victims are deleted before anything is
written, so that the storage never holds more than the capacity).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import Admission, CacheIndex
from pytest_kvcache.engine.requests import Flight, Timers
from pytest_kvcache.engine.transfers import Operation, TransferPool, TransferSettings
from pytest_kvcache.errors import StalledError
from pytest_kvcache.measure.counters import Tally
from pytest_kvcache.measure.recorder import (
    ADMIT,
    DELETE,
    LOAD,
    READ,
    REQUEST,
    WAITING,
    WAKEUP,
    WRITE,
    Recorder,
)
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import Blocked, Slot
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.workloads.protocol import Request, Workload

MAX_BACKLOG = 10_000  # open loop: requests under way per rank; what comes beyond is dropped
_STORES_PER_DEPTH = 4  # blocks waiting to be stored per queue depth, before users wait
_TICK_NS = 100_000_000
_LAST_OPERATIONS_NS = 60_000_000_000  # for what is in flight when everything else has ended


class Engine:
    """Drives one backend with one workload; ``populate``, ``run``, ``close``, once each."""

    def __init__(
        self,
        *,
        settings: TransferSettings,
        block_tokens: int,
        generation_s_per_token: float,
        phase: str,
        backend: Backend,
        index: CacheIndex,
        workload: Workload,
        payload: Payload | None,
        recorder: Recorder,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.counters = Tally()
        self.began_ns = 0
        self._settings = settings
        self._block_stored_bytes = settings.objects_per_block * settings.stored_bytes
        self._block_tokens = block_tokens
        self._generation_s_per_token = generation_s_per_token
        self._reads, self._writes = PHASES[phase].loads, PHASES[phase].stores
        self._index = index
        self._workload = workload
        self._recorder = recorder
        self._clock = clock
        lock = threading.Lock()
        self._lock = lock
        self._main = threading.Condition(lock)
        self.pool = TransferPool(
            settings=settings,
            backend=backend,
            payload=payload,
            recorder=recorder,
            lock=lock,
            clock=clock,
            on_complete=self._complete,
            on_idle=self._on_idle,
        )
        self._log = recorder.new_log()
        self._waiting: deque[Flight] = deque()
        self._stalled: deque[tuple[int, int]] = deque()
        self._timers = Timers()
        self._start_ns = 0
        self._end_ns: int | None = None
        self._all_arrived = False
        self._flights = 0
        self._generating = 0
        self._sampled_ns = 0
        self._ticked_ns = clock()
        self._stores = 0
        self._parts = settings.objects_per_block
        self._max_stores = _STORES_PER_DEPTH * settings.queue_depth * self._parts
        self._populating = True
        self._stopping = False
        self._pumping = False
        self._blocked_on: Slot | None = None

    @property
    def settings(self) -> TransferSettings:
        """How operations are carried out."""
        return self._settings

    @property
    def first_error(self) -> str | None:
        """The first failed operation's message; it ends the run."""
        return self.pool.first_error

    # --- phases, called by the main thread ------------------------------------------------

    def populate(self, tick: Callable[[], bool]) -> None:
        """Store every user's context until all are in or the cache is full.

        ``tick`` is called a few times a second; true means: stop early.
        """
        self.pool.start()
        for request in self._workload.population():
            with self._lock:
                if not self._index.has_room_for(request.keys):
                    break
                self._arrive(request, self._clock())
                self._pump()
            if not self._wait_while(self._store_queue_is_full, tick):
                break
        self._wait_while(self._has_flights, tick)

    def run(
        self, *, start_ns: int, end_ns: int | None, drain_s: float, tick: Callable[[], bool]
    ) -> int:
        """Issue requests from ``start_ns`` until ``end_ns`` or the workload's end; drain.

        Returns the moment at which issuing ended. After it, requests that are loading
        have ``drain_s`` to finish; what has not even begun by then is left. Raises
        StalledError if what is in flight does not end.
        """
        self.counters = Tally()
        self._populating = False
        self._end_ns = end_ns
        while (early_ns := start_ns - self._clock()) > 0:
            time.sleep(early_ns / 1e9)
        with self._lock:
            self.began_ns = self._clock()
            self._begin(start_ns)
            self._pump()
        self._wait_while(self._has_work, tick, until_ns=end_ns)
        stopped_ns = self._clock()
        with self._lock:
            self._stop()
        self._drain(stopped_ns + int(drain_s * 1e9), tick)
        return stopped_ns

    def close(self) -> None:
        """End the threads; raises what a thread died of."""
        self.pool.close()
        self._raise_crash()

    def _drain(self, deadline_ns: int, tick: Callable[[], bool]) -> None:
        """Finish what is loading, or only what is in flight if that takes too long."""

        def keep_ticking() -> bool:
            tick()
            return False

        self._wait_while(self._is_draining, keep_ticking, until_ns=deadline_ns)
        with self._lock:
            self._leave_what_has_not_begun()
        last_ns = self._clock() + _LAST_OPERATIONS_NS
        self._wait_while(self._is_draining, keep_ticking, until_ns=last_ns)
        if self._is_draining():
            raise StalledError(
                f"operations in flight did not end within {_LAST_OPERATIONS_NS / 1e9:g} s; look"
                " at the device, its log and its network"
            )

    def _leave_what_has_not_begun(self) -> None:
        """Queued reads and answers that are not due: their requests have no latency."""
        loading = [operation.owner for operation in self.pool.keep_only(None)]
        for flight in dict.fromkeys(loading):
            self._recorder.censor("load", flight.issued_ns)
            self._recorder.censor("request", flight.intended_ns)
        for timer in self._timers:
            if timer.flight is not None:
                self._recorder.censor("request", timer.flight.intended_ns)
        self._timers.clear()

    # --- waiting and timers ---------------------------------------------------------------

    def _wait_while(
        self, busy: Callable[[], bool], tick: Callable[[], bool], until_ns: int | None = None
    ) -> bool:
        """Fire timers and tick while ``busy``; false if a tick or an error said stop."""
        while True:
            if self._tick_is_due():
                self._recorder.absorb()
                if tick():
                    return False
            with self._lock:
                now = self._fire_timers()
                self._sample(now)
                if not busy() or (until_ns is not None and now >= until_ns):
                    return self.first_error is None
                self._main.wait(self._sleep_s(now, until_ns))
            self._raise_crash()

    def _tick_is_due(self) -> bool:
        """Ten times a second, however short the waits are: the population's are many."""
        now = self._clock()
        due = now - self._ticked_ns >= _TICK_NS
        if due:
            self._ticked_ns = now
        return due

    def _sleep_s(self, now: int, until_ns: int | None) -> float:
        wake_ns = now + _TICK_NS
        if self._timers.first_ns is not None:
            wake_ns = min(wake_ns, self._timers.first_ns)
        if until_ns is not None:
            wake_ns = min(wake_ns, until_ns)
        return max(0.0, (wake_ns - now) / 1e9)

    def _fire_timers(self) -> int:
        """Start what is due, for a tick's time at most; returns the time."""
        began = now = self._clock()
        while now < began + _TICK_NS and (timer := self._timers.pop_due(now)) is not None:
            due_ns, _order, flight, request = timer
            if flight is not None:
                self._generating -= 1
                self._respond(flight, now)
            elif request is not None and (self._end_ns is None or due_ns < self._end_ns):
                self._arrive(request, due_ns)
                if self._workload.open_loop:
                    self._log.add(WAKEUP, 0, due_ns, now, 0, 0)
                    self._schedule_arrival()
            self._pump()
            now = self._clock()
        return now

    def _sample(self, now: int) -> None:
        """Note, ten times a second, how many requests wait for the storage."""
        if now - self._sampled_ns >= _TICK_NS:
            self._sampled_ns = now
            self._log.add(WAITING, self._flights - self._generating, now, now, 0, 0)

    def _at(self, due_ns: int, flight: Flight | None, request: Request | None) -> None:
        self._generating += flight is not None
        self._timers.add(due_ns, flight=flight, request=request)
        if self._timers.first_ns == due_ns:
            self._main.notify()

    def _store_queue_is_full(self) -> bool:
        full = self._stores > self._max_stores or bool(self._waiting)
        return full and not self._stopping

    def _has_flights(self) -> bool:
        return self._flights > 0 and not self._stopping

    def _has_work(self) -> bool:
        return bool(self._flights or self._timers) and not self._stopping

    def _is_draining(self) -> bool:
        return self.pool.busy or bool(self._timers)

    def _raise_crash(self) -> None:
        if self.pool.crash is not None:
            raise self.pool.crash

    # --- the life of a request, under the lock --------------------------------------------

    def _begin(self, start_ns: int) -> None:
        self._start_ns = start_ns
        if self._workload.open_loop:
            self._schedule_arrival()
        else:
            for user in range(self._workload.users):
                self._next_turn(user, start_ns)

    def _stop(self) -> None:
        """Nothing new from here: what is loading is finished, what is not begun is left."""
        if self._stopping:
            return
        self._stopping = True
        now = self._clock()
        if not self._all_arrived:
            self._note_backlog()
            self._count_overdue(now)
        self.counters.store_stall_ns += sum(now - since_ns for _user, since_ns in self._stalled)
        for flight in self._waiting:
            self._recorder.censor("request", flight.intended_ns)
        self._waiting.clear()
        self._stalled.clear()
        self._timers.keep_answers()
        self.pool.keep_only(READ)
        self._main.notify()

    def _note_backlog(self) -> None:
        """What is under way when the last request has come: by then, or at the stop."""
        counters = self.counters
        counters.backlog = counters.offered - counters.dropped - counters.completed
        counters.generating = self._generating
        counters.storing = max(0, self._flights - counters.backlog)

    def _count_overdue(self, now: int) -> None:
        """Arrivals of an open loop that nobody has come to deal with: offered all the same."""
        counters, workload = self.counters, self._workload
        arrival = next((t for t in self._timers if t.request and workload.open_loop), None)
        due_ns, request = (now, None) if arrival is None else (arrival.due_ns, arrival.request)
        while request is not None and due_ns < min(now, self._end_ns or now):
            counters.offered += 1
            counters.backlog += 1
            self._log.add(WAKEUP, 0, due_ns, now, 0, 0)
            self._recorder.censor("request", due_ns)
            request = workload.next_request(0)
            due_ns = self._start_ns + (request.arrival_ns or 0) if request is not None else now

    def _schedule_arrival(self) -> None:
        request = self._workload.next_request(0)
        if request is None:
            self._all_arrived = True
            self._note_backlog()
        else:
            assert request.arrival_ns is not None
            self._at(self._start_ns + request.arrival_ns, None, request)

    def _next_turn(self, user: int, since_ns: int) -> None:
        """The user thinks, then asks again."""
        if self._stopping or self._populating or self._workload.open_loop:
            return
        if self._end_ns is not None and since_ns >= self._end_ns:
            return  # requests without I/O would go on without an end
        request = self._workload.next_request(user)
        if request is None:
            return
        if request.think_s > 0:
            self._at(since_ns + int(request.think_s * 1e9), None, request)
        else:
            self._arrive(request, since_ns)

    def _arrive(self, request: Request, intended_ns: int) -> None:
        self.counters.offered += 1
        if self._flights >= MAX_BACKLOG and self._workload.open_loop:
            self.counters.dropped += 1
            self._recorder.censor("request", intended_ns)
            return
        self._flights += 1
        self._waiting.append(Flight(request, intended_ns))

    def _pump(self) -> None:
        """Admit waiting requests in their order, while the first one can be decided."""
        if self._pumping:  # a request without I/O ends, and its user's next one arrives, in here
            return
        self._pumping = True
        while self._waiting:
            flight = self._waiting[0]
            admission = self._decide(flight.request)
            if not isinstance(admission, Admission):
                self._blocked_on = admission.slot
                break
            self._blocked_on = None
            self._waiting.popleft()
            flight.admission = admission
            self._admit(flight)
        self._pumping = False
        if not self._flights:
            self._main.notify()

    def _decide(self, request: Request) -> Admission | Blocked:
        decide = self._index.admit if self._writes or self._populating else self._index.look_up
        return decide(request.keys, request.prompt_blocks)

    def _admit(self, flight: Flight) -> None:
        hits = flight.admission.hits if self._reads else []
        flight.issued_ns = flight.loaded_ns = self._clock()
        if self._populating:
            self._index.release(flight.admission)
            self._store(flight)
            return
        if hits:
            flight.left = self.pool.submit(READ, hits, flight)
            for slot in hits:
                if not slot.was_read:
                    slot.was_read = True
                    self.counters.distinct_read_bytes += self._block_stored_bytes
        else:
            self._loaded(flight)

    def _loaded(self, flight: Flight) -> None:
        self._index.release(flight.admission)
        if not flight.failed:
            self._log_load(flight)
        compute_s = flight.request.output_tokens * self._generation_s_per_token
        if compute_s > 0:
            self._at(flight.loaded_ns + int(compute_s * 1e9), flight, None)
        else:
            self._respond(flight, flight.loaded_ns)

    def _log_load(self, flight: Flight) -> None:
        request, hits = flight.request, len(flight.admission.hits)
        hit_tokens = min(hits * self._block_tokens, request.prompt_tokens)
        self._log.add(
            ADMIT, request.prompt_blocks, flight.issued_ns, hits,
            request.prompt_tokens, hit_tokens,
        )  # fmt: skip
        if hits and self._reads:
            loaded_bytes = hits * self._parts * self._settings.object_bytes
            self._log.add(LOAD, 0, flight.issued_ns, flight.loaded_ns, loaded_bytes, 0)

    def _respond(self, flight: Flight, done_ns: int) -> None:
        request = flight.request
        if not flight.failed:
            if not self._stopping:  # what ends while draining was the backlog
                self.counters.completed += 1
            self._log.add(
                REQUEST, 0, flight.intended_ns, done_ns,
                request.prompt_tokens, request.output_tokens,
            )  # fmt: skip
        self._store(flight)
        if self._stores > self._max_stores and not self._workload.open_loop:
            self._stalled.append((request.user, self._clock()))
        else:
            self._next_turn(request.user, done_ns)

    def _store(self, flight: Flight) -> None:
        admission = flight.admission
        self._stores += len(admission.inserts) * self._parts
        if self._stopping:
            return
        if admission.victims:
            flight.left = self.pool.submit(DELETE, admission.victims, flight)
        else:
            self._write(flight)

    def _write(self, flight: Flight) -> None:
        inserts = flight.admission.inserts
        if not inserts:
            self._flights -= 1
        elif not self._stopping:
            flight.left = self.pool.submit(WRITE, inserts, flight)

    def _on_idle(self) -> None:
        if self._stopping or self.pool.crash is not None:
            self._main.notify()

    # --- ends of operations, under the lock, called by the pool's threads ------------------

    def _complete(self, operation: Operation) -> None:
        flight: Flight = operation.owner
        flight.left -= 1
        if operation.failed:
            self._stop()  # at once: what follows would be another workload
        if operation.kind == READ:
            self._complete_read(operation, flight)
        elif operation.kind == WRITE:
            self._complete_write(operation, flight)
        else:
            self.counters.delete_failed += operation.failed
            if not flight.left:
                self._write(flight)
        if self._waiting:
            blocker = self._blocked_on  # admission is asked again only when it can have changed
            own = blocker is operation.slot and (blocker.present or operation.failed)
            if blocker is None or own or (blocker.present and not blocker.pins):
                self._pump()
        elif not self._flights:
            self._main.notify()

    def _complete_read(self, operation: Operation, flight: Flight) -> None:
        if operation.failed:
            self.counters.read_failed += 1
            flight.failed = True
            self._index.drop(operation.slot)
        else:
            self.counters.requested_read_bytes += self._settings.stored_bytes
            flight.loaded_ns = max(flight.loaded_ns, operation.done_ns)
        if not flight.left:
            self._loaded(flight)

    def _complete_write(self, operation: Operation, flight: Flight) -> None:
        if operation.failed:
            self.counters.write_failed += 1
            self._index.roll_back(operation.slot)
        else:
            self.counters.requested_write_bytes += self._settings.stored_bytes
            self._index.commit(operation.slot)
        self._stores -= 1
        if not flight.left:
            self._flights -= 1
        while self._stalled and self._stores <= self._max_stores:
            user, since_ns = self._stalled.popleft()
            now = self._clock()
            self.counters.store_stall_ns += now - since_ns
            self._next_turn(user, now)
        if self._populating:
            self._main.notify()
