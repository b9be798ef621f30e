"""One rank's loop: workload × cache × storage → rows of a log, by one thread.

Rank-side; imports neither pytest nor MPI. What is due begins, requests are admitted, their
operations are handed on (`dispatch`), and what a finished one leads to (the next phase of
its request, an admission, a user's next turn) is decided where its end is noted.

A request goes: arrive → admit (hits, room and victims are decided at once, in order of
arrival) → load → compute → respond → store (victims are deleted before anything is
written, so that the storage never holds more than the capacity).
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import Admission, CacheIndex
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.requests import Flight, Timers
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
    from collections.abc import Callable, Sequence

    from pytest_kvcache.cache.index import Blocked, Slot
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.workloads.protocol import Request, Workload

MAX_BACKLOG = 10_000  # open loop: requests under way per rank; what comes beyond is dropped
_STORES_PER_DEPTH = 4  # blocks waiting to be stored per queue depth, before users wait
_TICK_NS = 100_000_000
_FIRE_NS = 1_000_000  # what is due begins for so long, before ends are looked for again
_MOST_ROWS = 2048  # booked at once: a quarter of a millisecond


class Loop:
    """Drives one I/O engine with one workload: ``populate``, then ``run``, once each.

    Other threads may read ``first_error`` and ``counters`` and set ``stop_asked`` and
    ``active_users`` (closed loop: users below that number take turns, the others rest after
    their answer until it is raised again); plain values, nothing else.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        block_tokens: int,
        generation_s_per_token: float,
        phase: str,
        io: IoEngine,
        index: CacheIndex,
        workload: Workload,
        payload: Payload | None,
        recorder: Recorder,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.counters = Tally()
        self.began_ns = 0
        self._settings = settings
        self._block_bytes = settings.objects_per_block * settings.object_bytes
        self._block_tokens = block_tokens
        self._generation_s_per_token = generation_s_per_token
        self._reads, self._writes = PHASES[phase].loads, PHASES[phase].stores
        self._index = index
        self._workload = workload
        self._recorder = recorder
        self._clock = clock
        self.stop_asked = False
        self.active_users = self._obeyed = workload.users
        self._resting: dict[int, Request | None] = {}  # user → its next request, if it is known
        self._log = recorder.log
        self._io = io
        self._dispatcher = Dispatcher(
            settings=settings,
            io=io,
            payload=payload,
            log=self._log,
            clock=clock,
            on_complete=self._complete,
        )
        self._waiting: deque[Flight] = deque()
        self._stalled: deque[tuple[int, int]] = deque()
        self._timers = Timers()
        self._start_ns = 0
        self._end_ns: int | None = None
        self._all_arrived = False
        self._flights = 0
        self._generating = 0
        self.sampled_ns = 0
        self.stopped_ns = 0
        self._stores = 0
        self._parts = settings.objects_per_block
        self._max_stores = _STORES_PER_DEPTH * settings.queue_depth * self._parts
        self._populating = True
        self._stopping = False
        self._may_stop = True
        self._pumping = False
        self._blocked_on: Slot | None = None

    @property
    def first_error(self) -> str | None:
        """The first failed operation's message; it ends the run."""
        return self._dispatcher.first_error

    @property
    def users(self) -> int:
        """How many users there are to take turns; an open loop has none."""
        return 0 if self._workload.open_loop else self._workload.users

    @property
    def checked(self) -> int:
        """Transfers whose content was verified."""
        return self._dispatcher.checked

    @property
    def corrupt(self) -> int:
        """Transfers whose content was wrong."""
        return self._dispatcher.corrupt

    # --- phases -------------------------------------------------------------------------------

    def populate(self) -> None:
        """Store every user's context until all are in or the cache is full."""
        for request in self._workload.population():
            if not self._index.has_room_for(request.keys, self._sizes_of(request)):
                break
            self._arrive(request, self._clock())
            self._pump()
            if not self._work_while(self._store_queue_is_full):
                break
        self._work_while(self._has_flights)

    def run(self, *, start_ns: int, end_ns: int | None, drain_s: float) -> int:
        """Issue requests from ``start_ns`` until ``end_ns`` or the workload's end; drain.

        Returns the moment at which issuing ended. After it, requests that are loading
        have ``drain_s`` to finish; what has not even begun by then is left, and what is
        in flight is waited for.
        """
        self.counters = Tally()
        self._populating = False
        self._end_ns = end_ns
        while (early_ns := start_ns - self._clock()) > 0:
            time.sleep(early_ns / 1e9)
        self.began_ns = self._clock()
        self._begin(start_ns)
        self._pump()
        self._work_while(self._has_work, until_ns=end_ns)
        self.stopped_ns = stopped_ns = self._clock()
        self._stop()
        self._may_stop = False  # nothing new begins any more
        self._work_while(self._is_draining, until_ns=stopped_ns + int(drain_s * 1e9))
        self._leave_what_has_not_begun()
        self._work_while(self._is_draining)
        return stopped_ns

    def close(self) -> None:
        """Wait for what is in flight."""
        self._dispatcher.close()

    def _leave_what_has_not_begun(self) -> None:
        """Queued reads and answers that are not due: their requests have no latency."""
        loading = [operation.owner for operation in self._dispatcher.keep_only(None)]
        for flight in dict.fromkeys(loading):
            self._recorder.censor("load", flight.issued_ns)
            self._recorder.censor("request", flight.intended_ns)
        for timer in self._timers:
            if timer.flight is not None:
                self._recorder.censor("request", timer.flight.intended_ns)
        self._timers.clear()

    # --- waiting and timers ---------------------------------------------------------------

    def _work_while(self, busy: Callable[[], bool], until_ns: int | None = None) -> bool:
        """Fire timers and carry out operations while ``busy``; false if told to stop."""
        turn, log = self._dispatcher.turn, self._log
        while True:
            now = self._fire_timers()
            if now - self.sampled_ns >= _TICK_NS:
                self._sample(now)
            if not busy() or (until_ns is not None and now >= until_ns):
                return self.first_error is None
            if self.active_users != self._obeyed:
                self._wake_users(now)
            if self.stop_asked and self._may_stop:
                return False
            turn(self._wake_ns(now, until_ns))
            if log.rows >= _MOST_ROWS:
                self._recorder.absorb(now)

    def _wake_ns(self, now: int, until_ns: int | None) -> int:
        """Until when there is nothing to do if no operation ends."""
        wake_ns = now + _TICK_NS
        first_ns = self._timers.first_ns
        if first_ns is not None and first_ns < wake_ns:
            wake_ns = first_ns
        return wake_ns if until_ns is None or wake_ns < until_ns else until_ns

    def _fire_timers(self) -> int:
        """Start what is due, for a moment at most; returns the time."""
        began = now = self._clock()
        while now < began + _FIRE_NS and (timer := self._timers.pop_due(now)) is not None:
            due_ns, _order, flight, request = timer
            if flight is not None:
                self._generating -= 1
                self._respond(flight, now)
            elif request is not None and (self._end_ns is None or due_ns < self._end_ns):
                if request.user >= self.active_users and not self._workload.open_loop:
                    self._rest(request.user, request)
                    continue
                self._arrive(request, due_ns)
                if self._workload.open_loop:
                    self._log.add(WAKEUP, 0, due_ns, now, 0, 0)
                    self._schedule_arrival()
            self._pump()
            now = self._clock()
        return now

    def _sample(self, now: int) -> None:
        """Ten times a second: note how many requests wait for the storage; book all rows."""
        self.sampled_ns = now
        self._log.add(WAITING, self._flights - self._generating, now, now, 0, 0)
        self._recorder.absorb(now)
        if self._io.lags_ns:
            self._recorder.note_lags(self._io.lags_ns)

    def _at(self, due_ns: int, flight: Flight | None, request: Request | None) -> None:
        self._generating += flight is not None
        self._timers.add(due_ns, flight=flight, request=request)

    def _store_queue_is_full(self) -> bool:
        full = self._stores > self._max_stores or bool(self._waiting)
        return full and not self._stopping

    def _has_flights(self) -> bool:
        return self._flights > 0 and not self._stopping

    def _has_work(self) -> bool:
        return bool(self._flights or self._timers or self._resting) and not self._stopping

    def _is_draining(self) -> bool:
        return self._dispatcher.busy or bool(self._timers)

    # --- the life of a request ----------------------------------------------------------------

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
        self._resting.clear()
        self._timers.keep_answers()
        self._dispatcher.keep_only(READ)

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
        if user >= self.active_users:
            self._rest(user, None)
            return
        request = self._workload.next_request(user)
        if request is None:
            return
        if request.user != user:  # it loads another one's blocks, and is this one's all the same
            request = request._replace(user=user)
        if request.think_s > 0:
            self._at(since_ns + int(request.think_s * 1e9), None, request)
        else:
            self._arrive(request, since_ns)

    def _rest(self, user: int, request: Request | None) -> None:
        self._resting[user] = request
        self._obeyed = min(self._obeyed, user)  # it may be wanted again before anybody looks

    def _wake_users(self, now: int) -> None:
        """Obey another number of active users: those that were resting ask at once."""
        self._obeyed = self.active_users
        for user in [user for user in self._resting if user < self._obeyed]:
            request = self._resting.pop(user)
            if request is None:
                self._next_turn(user, now)
            else:
                self._arrive(request, now)
        self._pump()

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

    def _decide(self, request: Request) -> Admission | Blocked:
        if self._writes or self._populating:
            sizes = self._sizes_of(request)
            return self._index.admit(request.keys, request.prompt_blocks, sizes)
        return self._index.look_up(request.keys, request.prompt_blocks)

    def _sizes_of(self, request: Request) -> int | Sequence[int]:
        """The bytes of its blocks: all as large as the plan says, unless it says itself."""
        return self._block_bytes if request.sizes is None else request.sizes

    def _admit(self, flight: Flight) -> None:
        hits = flight.admission.hits if self._reads else []
        flight.issued_ns = flight.loaded_ns = self._clock()
        if self._populating:
            self._index.release(flight.admission)
            self._store(flight)
            return
        if hits:
            flight.left = self._dispatcher.submit(READ, hits, flight)
            for slot in hits:
                if not slot.was_read:
                    slot.was_read = True
                    self.counters.distinct_read_bytes += slot.stored_bytes
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
        request, slots = flight.request, flight.admission.hits
        hits = len(slots)
        hit_tokens = min(hits * self._block_tokens, request.prompt_tokens)
        self._log.add(
            ADMIT, request.prompt_blocks, flight.issued_ns, hits,
            request.prompt_tokens, hit_tokens,
        )  # fmt: skip
        if hits and self._reads:
            loaded_bytes = sum(slot.block_bytes for slot in slots)
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
            flight.left = self._dispatcher.submit(DELETE, admission.victims, flight)
        else:
            self._write(flight)

    def _write(self, flight: Flight) -> None:
        inserts = flight.admission.inserts
        if not inserts:
            self._flights -= 1
        elif not self._stopping:
            flight.left = self._dispatcher.submit(WRITE, inserts, flight)

    # --- ends of operations ---------------------------------------------------------------------

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
                self._index.deleted(flight.admission)
                self._write(flight)
        if self._waiting:
            blocker = self._blocked_on  # admission is asked again only when it can have changed
            own = blocker is operation.slot and (blocker.present or operation.failed)
            if blocker is None or own or (blocker.present and not blocker.pins):
                self._pump()

    def _complete_read(self, operation: Operation, flight: Flight) -> None:
        if operation.failed:
            self.counters.read_failed += 1
            flight.failed = True
            self._index.drop(operation.slot)
        else:
            self.counters.requested_read_bytes += operation.stored_bytes
            if operation.done_ns > flight.loaded_ns:  # noqa: PLR1730  a call less, per read
                flight.loaded_ns = operation.done_ns
        if not flight.left:
            self._loaded(flight)

    def _complete_write(self, operation: Operation, flight: Flight) -> None:
        if operation.failed:
            self.counters.write_failed += 1
            self._index.roll_back(operation.slot)
        else:
            self.counters.requested_write_bytes += operation.stored_bytes
            self._index.commit(operation.slot)
        self._stores -= 1
        if not flight.left:
            self._flights -= 1
        while self._stalled and self._stores <= self._max_stores:
            user, since_ns = self._stalled.popleft()
            now = self._clock()
            self.counters.store_stall_ns += now - since_ns
            self._next_turn(user, now)
