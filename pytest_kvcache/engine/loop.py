"""One rank's loop: workload × cache × storage → rows of a log, by one thread.

Rank-side; imports neither pytest nor MPI. What is due begins, requests are admitted, their
blocks are handed on (`blocks`), and what the end of a phase leads to (the next phase of the
request, an admission, a user's next turn) is decided where its last operation's end is noted.

A request goes: arrive → admit (hits, room and victims are decided at once, in order of
arrival) → load → compute → respond → store (victims are deleted before anything is
written, so that no tier ever holds more than its capacity). One that reads again what it has
stored goes: … → compute → store → read again, round by round → respond.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from pytest_kvcache.cache.buckets import BucketIndex
from pytest_kvcache.engine.blocks import OneTier
from pytest_kvcache.engine.buckets import BucketStore
from pytest_kvcache.engine.iotracer import untraced
from pytest_kvcache.engine.load import NOTICE_NS
from pytest_kvcache.engine.requests import InFlightRequest, Timers
from pytest_kvcache.engine.shared import SharedCache, SharedStore
from pytest_kvcache.engine.tiered import SeveralTiers, Tiers
from pytest_kvcache.measure.recorder import (
    ADMIT,
    BESIDE,
    LOAD,
    LOOKUP,
    REQUEST,
    SCHEDULING_LAG,
    SERVICE,
    SHARED,
    WAITING,
    Recorder,
)
from pytest_kvcache.phases import PHASES
from pytest_kvcache.workloads.protocol import HoldsUsers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_kvcache.cache.index import CacheIndex
    from pytest_kvcache.engine.blocks import Blocks
    from pytest_kvcache.engine.iotracer import Traced
    from pytest_kvcache.engine.load import LoadChange
    from pytest_kvcache.engine.lookups import Answer, Lookups
    from pytest_kvcache.engine.operations import TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.workloads.protocol import Request, Workload

# Open loop: requests of a rank that wait for the storage; what comes beyond is dropped. One whose
# tokens are computed, which is only simulated, holds nothing but its place.
MAX_BACKLOG = 10_000
_TICK_NS = NOTICE_NS
_FIRE_NS = 1_000_000  # what is due begins for so long, before ends are looked for again
_MOST_ROWS = 2048  # booked at once: a quarter of a millisecond


class Loop:
    """Drives one I/O engine with one workload: ``populate``, then ``run``, once each.

    Other threads may read ``first_error`` and ``counters``, set ``stop_asked`` and append to
    ``changes``, each later than the one before (closed loop: users below the number of a change
    take turns from its moment on, the others rest after their answer until a later one wants
    them again); nothing else.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        block_tokens: int,
        generation_s_per_token: float,
        prefill_tokens_per_s: float | None = None,
        phase: str,
        io: IoEngine,
        cache: CacheIndex | Tiers | SharedCache,
        workload: Workload,
        payload: Payload | None,
        recorder: Recorder,
        clock: Callable[[], int] = time.monotonic_ns,
        traced: Traced = untraced,
        lookups: Lookups | None = None,
        to_first_miss: bool = False,
    ) -> None:
        self.began_ns = 0
        self._block_tokens = block_tokens
        self._generation_s_per_token = generation_s_per_token
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._reads = PHASES[phase].loads
        self._workload = workload
        self._recorder = recorder
        self._clock = clock
        self.stop_asked = False
        self.changes: deque[LoadChange] = deque()
        self._active_users = workload.users
        self._resting: dict[int, Request | None] = {}  # user → its next request, if it is known
        self._log = recorder.log
        self._io = io
        self._lookups = lookups
        self._to_first_miss = to_first_miss
        self.waiting: deque[InFlightRequest] = deque()
        self.unasked: deque[InFlightRequest] = deque()
        self.stalled: deque[tuple[int, int]] = deque()
        self._timers = Timers()
        self._start_ns = 0
        self._end_ns: int | None = None
        self._all_arrived = False
        self._in_flight = 0
        self._arrived = 0
        self._holds = isinstance(workload, HoldsUsers) and workload.holds_users
        self._held: list[int] = []  # users that have no next request, or not yet
        self._generating = 0
        self._rereading: dict[InFlightRequest, None] = {}  # admitted, and not answered yet
        self._has_left = False
        self.sampled_ns = 0
        self.stopped_ns = 0
        self._stopping = False
        self._may_stop = True
        self._pumping = False
        parts: dict[str, Any] = {
            "stores": PHASES[phase].stores,
            "io": io,
            "payload": payload,
            "log": self._log,
            "clock": clock,
            "traced": traced,
        }
        self._shared: SharedStore | None = None
        self.blocks: Blocks
        if isinstance(cache, SharedCache):
            self.blocks = self._shared = SharedStore(self, settings, cache=cache, **parts)
        elif isinstance(cache, Tiers):
            self.blocks = SeveralTiers(self, settings, tiers=cache, **parts)
        elif isinstance(cache, BucketIndex):
            self.blocks = BucketStore(self, settings, index=cache, **parts)
        else:
            self.blocks = OneTier(self, settings, index=cache, **parts)
        self.counters = self.blocks.counters  # since the run began

    @property
    def first_error(self) -> str | None:
        """The first failed operation's message; it ends the run."""
        errors = [each.first_error for each in self.blocks.dispatchers]
        if self._lookups is not None:
            errors.append(self._lookups.first_error)
        return next((error for error in errors if error is not None), None)

    @property
    def waiting_for(self) -> list[IoEngine | Lookups]:
        """What makes calls that this may wait for."""
        found: list[IoEngine | Lookups] = [*self.blocks.io_engines]
        return found if self._lookups is None else [*found, self._lookups]

    @property
    def users(self) -> int:
        """How many users there are to take turns; an open loop has none."""
        return 0 if self._workload.open_loop else self._workload.users

    @property
    def checked(self) -> int:
        """Transfers whose content was verified."""
        return sum(each.checked for each in self.blocks.dispatchers)

    @property
    def others_objects(self) -> int:
        """Verified objects whose head names another rank."""
        return sum(each.others_objects for each in self.blocks.dispatchers)

    @property
    def corrupt(self) -> int:
        """Transfers whose content was wrong."""
        return sum(each.corrupt for each in self.blocks.dispatchers)

    # --- phases -------------------------------------------------------------------------------

    def populate(self, before: Iterable[Request] = ()) -> None:
        """Store what comes before, then every user's context, until all are in or it is full."""
        for request in chain(before, self._workload.population()):
            if not self.blocks.has_room_for(request):
                break
            self._arrive(request, self._clock())
            self.pump()
            if not self._work_while(self._is_asking):  # or room would be given away twice
                break
            if not self._work_while(self._store_queue_is_full):
                break
        self._work_while(self._has_in_flight)

    def end_population(self) -> None:
        """Count anew from here, where nothing is run."""
        self.blocks.begin()
        self.counters = self.blocks.counters

    def run(self, *, start_ns: int, end_ns: int | None, drain_s: float) -> int:
        """Issue requests from ``start_ns`` until ``end_ns`` or the workload's end; drain.

        Returns the moment at which issuing ended. After it, requests that are loading
        have ``drain_s`` to finish; what has not even begun by then is left, and what is
        in flight is waited for.
        """
        self.end_population()
        self._end_ns = end_ns
        while (early_ns := start_ns - self._clock()) > 0:
            time.sleep(early_ns / 1e9)
        self.began_ns = self._clock()
        self._begin(start_ns)
        self.pump()
        self._work_while(self._has_work, until_ns=end_ns)
        self.stopped_ns = stopped_ns = self._clock()
        self.stop()
        self._may_stop = False  # nothing new begins any more
        self._work_while(self._is_draining, until_ns=stopped_ns + int(drain_s * 1e9))
        self._leave_what_has_not_begun()
        self._work_while(self._is_draining)
        for inflight in self._rereading:  # something of it did not begin
            self.blocks.end_rereads(inflight)
            if not inflight.failed:
                self._give_up(inflight.request, inflight.intended_ns)
        self._rereading.clear()
        self.blocks.settle()
        return stopped_ns

    def close(self) -> None:
        """Wait for what is in flight."""
        if self._lookups is not None:
            self._lookups.close()
        self.blocks.close()

    def _leave_what_has_not_begun(self) -> None:
        """Queued reads and answers that are not due: their requests have no latency."""
        self._has_left = True
        if self._lookups is not None:
            for inflight in self._lookups.leave():
                self._leave_asking(inflight)
        left = self.blocks.leave()
        for inflight in left:
            if not inflight.is_stored:
                self._recorder.censor("load", inflight.issued_ns)
        generating = (timer.inflight for timer in self._timers if timer.inflight is not None)
        for inflight in (*left, *generating):
            if inflight not in self._rereading:
                self._give_up(inflight.request, inflight.intended_ns)
        self._timers.clear()

    # --- waiting and timers ---------------------------------------------------------------

    def _work_while(self, busy: Callable[[], bool], until_ns: int | None = None) -> bool:
        """Fire timers and carry out operations while ``busy``; false if told to stop."""
        turn, log, lookups = self.blocks.turn, self._log, self._lookups
        while True:
            now = self._fire_timers()
            if self.changes:  # before any row of what began after one is booked
                self._obey(now)
                self.pump()
            if now - self.sampled_ns >= _TICK_NS:
                self._sample(now)
            elif log.rows >= _MOST_ROWS:
                self._recorder.absorb(now)
            if not busy() or (until_ns is not None and now >= until_ns):
                return self.first_error is None
            if self.stop_asked and self._may_stop:
                return False
            turn(self._wake_ns(now, until_ns))
            if lookups is not None:
                self._take_answers(lookups)

    def _wake_ns(self, now: int, until_ns: int | None) -> int:
        """Until when there is nothing to do if no operation ends."""
        wake_ns = now + _TICK_NS
        first_ns = self._timers.first_ns
        if first_ns is not None and first_ns < wake_ns:
            wake_ns = first_ns
        if self.changes:
            wake_ns = min(wake_ns, self.changes[0].at_ns)
        return wake_ns if until_ns is None or wake_ns < until_ns else until_ns

    def _fire_timers(self) -> int:
        """Start what is due, for a moment at most; returns the time."""
        began = now = self._clock()
        while now < began + _FIRE_NS and (timer := self._timers.pop_due(now)) is not None:
            due_ns, _order, inflight, request = timer
            if inflight is not None:
                self._generating -= 1
                self._respond(inflight, now)
            elif request is not None and (self._end_ns is None or due_ns < self._end_ns):
                if self.changes:
                    self._obey(due_ns)
                if request.user >= self._active_users and not self._workload.open_loop:
                    self._resting[request.user] = request
                    continue
                self._arrive(request, due_ns)
                if self._workload.open_loop:
                    self._log.add(SCHEDULING_LAG, 0, due_ns, now, 0, 0)
                    self._schedule_arrival()
            self.pump()
            now = self._clock()
        return now

    def _sample(self, now: int) -> None:
        """Ten times a second: note how many requests wait for the storage; book all rows."""
        self.sampled_ns = now
        self._log.add(WAITING, self._in_flight - self._generating, now, now, 0, 0)
        self._recorder.absorb(now)
        if self._io.lags_ns:
            self._recorder.note_lags(self._io.lags_ns)

    def _at(self, due_ns: int, inflight: InFlightRequest | None, request: Request | None) -> None:
        self._generating += inflight is not None
        self._timers.add(due_ns, inflight=inflight, request=request)

    def _store_queue_is_full(self) -> bool:
        full = self.blocks.stores > self.blocks.most_stores or bool(self.waiting)
        return full and not self._stopping

    def _is_asking(self) -> bool:
        """Whether it is not decided yet what comes: only a shared store is asked before."""
        if self._shared is None or self._lookups is None:
            return False
        return (bool(self.unasked) or self._lookups.open > 0) and not self._stopping

    def _has_in_flight(self) -> bool:
        return self._in_flight > 0 and not self._stopping

    def _has_work(self) -> bool:
        return bool(self._in_flight or self._timers or self._resting) and not self._stopping

    def _is_draining(self) -> bool:
        busy = any(each.busy for each in self.blocks.dispatchers)
        asking = self._lookups is not None and self._lookups.open > 0
        return busy or asking or bool(self._timers)

    # --- the life of a request ----------------------------------------------------------------

    def _begin(self, start_ns: int) -> None:
        self._start_ns = start_ns
        if self._workload.open_loop:
            self._schedule_arrival()
        else:
            for user in range(self._workload.users):
                self._next_turn(user, start_ns)

    def stop(self) -> None:
        """Begin nothing new: what is loading is finished, what is not begun is left."""
        if self._stopping:
            return
        self._stopping = True
        now = self._clock()
        if not self._all_arrived:
            self._note_backlog()
            self._count_overdue(now)
        self.counters.store_stall_ns += sum(now - since_ns for _user, since_ns in self.stalled)
        for inflight in self.unasked:
            self._give_up(inflight.request, inflight.intended_ns)
        self.unasked.clear()
        if self._shared is None:
            self._leave_waiting()
        self.stalled.clear()
        self._resting.clear()
        self._timers.keep_answers()
        self.blocks.stop()
        if self._shared is not None:  # what is answered loads; from here on nothing is stored
            self._admit_waiting()
            self._leave_waiting()

    def _leave_waiting(self) -> None:
        """What is not decided by now will not be."""
        for inflight in self.waiting:
            if inflight.found_blocks and self._reads:  # its load began with its question
                self._recorder.censor("load", inflight.issued_ns)
            self._give_up(inflight.request, inflight.intended_ns)
        self.waiting.clear()

    def _give_up(self, request: Request, intended_ns: int) -> None:
        """A request without an answer has no latency, and was not in time."""
        self._recorder.censor("request", intended_ns)
        self._recorder.miss(request.service_class, intended_ns)

    def _note_backlog(self) -> None:
        """What is under way when the last request has come: by then, or at the stop."""
        counters = self.counters
        counters.backlog = counters.offered - counters.dropped - counters.completed
        counters.generating = self._generating
        counters.storing = max(0, self._in_flight - counters.backlog)

    def _count_overdue(self, now: int) -> None:
        """Arrivals of an open loop that nobody has come to deal with: offered all the same."""
        counters, workload = self.counters, self._workload
        arrival = next((t for t in self._timers if t.request and workload.open_loop), None)
        due_ns, request = (now, None) if arrival is None else (arrival.due_ns, arrival.request)
        while request is not None and due_ns < min(now, self._end_ns or now):
            counters.offered += 1
            counters.backlog += 1
            self._log.add(SCHEDULING_LAG, 0, due_ns, now, 0, 0)
            self._give_up(request, due_ns)
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
        if self._stopping or self.blocks.populating or self._workload.open_loop:
            return
        if self._end_ns is not None and since_ns >= self._end_ns:
            return  # requests without I/O would go on without an end
        if self.changes:
            self._obey(since_ns)
        if user >= self._active_users:
            self._resting[user] = None
            return
        request = self._workload.next_request(user)
        if request is None:
            self._held.append(user)
            return
        if request.user != user:  # it loads another one's blocks, and is this one's all the same
            request = request._replace(user=user)
        if request.think_s > 0:
            self._at(since_ns + int(request.think_s * 1e9), None, request)
        else:
            self._arrive(request, since_ns)
        if self._holds:
            self._ask_held(since_ns)

    def _ask_held(self, since_ns: int) -> None:
        """Ask for those again that had to wait for another one's request, as often as one comes."""
        self._holds = False  # while they are asked
        while True:
            before, self._held = self._held, []
            for user in before:
                self._next_turn(user, since_ns)
            if len(self._held) == len(before):
                break
        self._holds = True

    def _obey(self, now: int) -> None:
        """Let as many users take turns as the changes want that are due at ``now``.

        Those that rested ask at the moment that was agreed, however late it is looked at.
        """
        if self._stopping:
            self.changes.clear()
        while self.changes and self.changes[0].at_ns <= now:
            change = self.changes.popleft()
            self._active_users = change.users
            self._recorder.begin_step(change.at_ns, change.users, self._clock())
            for user in [user for user in self._resting if user < change.users]:
                request = self._resting.pop(user)
                if request is None:
                    self._next_turn(user, change.at_ns)
                else:
                    self._arrive(request, change.at_ns)

    def _arrive(self, request: Request, intended_ns: int) -> None:
        self.counters.offered += 1
        waiting = self._in_flight - self._generating
        if waiting >= MAX_BACKLOG and self._workload.open_loop:
            self.counters.dropped += 1
            self._give_up(request, intended_ns)
            return
        self._in_flight += 1
        inflight = InFlightRequest(request, intended_ns, self._arrived)
        self._arrived += 1
        (self.waiting if self._shared is None else self.unasked).append(inflight)

    def _ask_first(self, shared: SharedStore) -> bool:
        """Ask for what has come, in its order; it is decided when the storage has told.

        True: something was, and of one that has nothing to be asked for it is decided at once.
        """
        assert self._lookups is not None  # nobody knows without
        before = len(self.unasked)
        while (
            self.unasked
            and not self.waiting  # what the storage tells is soon out of date
            and self._lookups.has_room
            and shared.may_ask(self.unasked[0])
        ):
            inflight = self.unasked.popleft()
            inflight.issued_ns = inflight.loaded_ns = self._clock()
            question = shared.prefix_question_of(inflight)
            if question.keys:
                self._lookups.submit(question)
            else:
                self.waiting.append(inflight)
        return len(self.unasked) < before

    def pump(self) -> None:
        """Admit waiting requests in their order, while the first one can be decided."""
        if self._pumping:  # a request without I/O ends, and its user's next one arrives, in here
            return
        self._pumping = True
        self._admit_waiting()
        if self._shared is not None:
            while self._ask_first(self._shared):  # one of these may need no answer
                if self._lookups is not None and self._lookups.answers_at_once:
                    self._take_answers(self._lookups)
                self._admit_waiting()
        self._pumping = False

    def _admit_waiting(self) -> None:
        while self.waiting:
            inflight = self.waiting[0]
            if not self.blocks.decide(inflight):
                break
            self.waiting.popleft()
            self._admit(inflight)

    def _admit(self, inflight: InFlightRequest) -> None:
        inflight.loaded_ns = self._clock()
        if self._shared is None:
            inflight.issued_ns = inflight.loaded_ns
        if self.blocks.populating:
            self.blocks.release(inflight)
            self.blocks.store(inflight)
            return
        if inflight.rereads:
            self._rereading[inflight] = None
        if self._lookups is not None and self._reads and self._shared is None:
            asked = self.blocks.question_of(inflight, to_first_miss=self._to_first_miss)
            if asked.stored or asked.others:
                self._lookups.submit(asked)
                if self._lookups.answers_at_once:
                    self._take_answers(self._lookups)
                return
        self._load(inflight)

    def _load(self, inflight: InFlightRequest) -> None:
        inflight.loads = self._reads and self.blocks.load(inflight)
        if not inflight.loads:
            self.loaded(inflight)

    def _take_answers(self, lookups: Lookups) -> None:
        """Load what the storage says that it has; nothing more begins after an error."""
        for answer in lookups.reap():
            inflight = answer.inflight
            self._log.add(LOOKUP, answer.asked, answer.started_ns, answer.done_ns, answer.found, 0)
            inflight.loaded_ns = answer.done_ns
            if answer.error is not None:
                inflight.failed = True
                self.stop()
            if answer.error is None and self._goes_on(inflight, answer):
                continue
            self._leave_asking(inflight)
        if self._shared is not None:
            self.pump()

    def _goes_on(self, inflight: InFlightRequest, answer: Answer) -> bool:
        """Load what it has found, or have that decided; false: nothing new begins any more."""
        if self._shared is None:
            if not self._has_left:
                self._load(inflight)
            return not self._has_left
        self._shared.note_answer(answer)
        if self._has_left:
            return False
        self.waiting.append(inflight)
        if self._stopping:
            self._admit_waiting()
            self._leave_waiting()
        return True

    def _leave_asking(self, inflight: InFlightRequest) -> None:
        """Nothing of what it asked for will be loaded."""
        if self._shared is not None:  # nothing was decided, and nobody knows what it would load
            if self._reads and not self.blocks.populating:
                self._recorder.censor("load", inflight.issued_ns)
            self._give_up(inflight.request, inflight.intended_ns)
            return
        self.blocks.release(inflight)
        if inflight.hit_blocks or inflight.beside_hit_blocks:
            self._recorder.censor("load", inflight.issued_ns)
        if inflight not in self._rereading:
            self._give_up(inflight.request, inflight.intended_ns)

    def loaded(self, inflight: InFlightRequest) -> None:
        """Its reads have ended, or there were none: what follows is the answer."""
        if inflight.is_stored:
            self._read_again(inflight)
            return
        self.blocks.release(inflight)
        if not inflight.failed:
            self._log_load(inflight)
        compute_ns = self._compute_ns(inflight)
        if compute_ns > 0:
            self._at(inflight.loaded_ns + compute_ns, inflight, None)
        else:
            self._respond(inflight, inflight.loaded_ns)

    def _compute_ns(self, inflight: InFlightRequest) -> int:
        """What is simulated: the prefill of what was not loaded, and the generation."""
        request = inflight.request
        compute_s = request.output_tokens * self._generation_s_per_token
        if self._prefill_tokens_per_s is not None:
            missed_tokens = request.prompt_tokens + len(request.beside) * self._block_tokens
            if self._reads:
                missed_tokens -= self._hit_tokens(inflight)
                missed_tokens -= inflight.beside_hit_blocks * self._block_tokens
            compute_s += missed_tokens / self._prefill_tokens_per_s
        return int(compute_s * 1e9)

    def _hit_tokens(self, inflight: InFlightRequest) -> int:
        """Of the prompt, those of its prefix that were found."""
        found = inflight.hit_blocks * self._block_tokens
        return min(found, inflight.request.prompt_tokens)

    def _loaded_tokens(self, inflight: InFlightRequest) -> int:
        """Those of the blocks that its reads brought; a partial last one has its own."""
        found = inflight.hit_blocks * self._block_tokens
        partial = found - self._hit_tokens(inflight)
        return max(0, self.blocks.loaded_blocks_of(inflight) * self._block_tokens - partial)

    def _log_load(self, inflight: InFlightRequest) -> None:
        request = inflight.request
        self._log.add(
            ADMIT, request.prompt_blocks, inflight.issued_ns, inflight.hit_blocks,
            request.prompt_tokens, self._hit_tokens(inflight),
        )  # fmt: skip
        if self._shared is not None:
            own = self._shared.own_hits_of(inflight)
            self._log.add(SHARED, own, inflight.issued_ns, inflight.hit_blocks - own, 0, 0)
        if request.beside:
            self._log.add(
                BESIDE, len(request.beside), inflight.issued_ns, inflight.beside_hit_blocks, 0, 0
            )
        if inflight.loads:
            tokens = 0 if self._recorder.worth is None else self._loaded_tokens(inflight)
            self._log.add(LOAD, 0, inflight.issued_ns, inflight.loaded_ns, tokens, 0)

    def _respond(self, inflight: InFlightRequest, done_ns: int) -> None:
        """What was generated is the answer, and is to be stored; or that and rereads come first."""
        if not inflight.rereads:
            self._answer(inflight, done_ns)
        self.blocks.store(inflight)
        if not inflight.rereads:
            self._go_on_with(inflight.request.user, done_ns)

    def _answer(self, inflight: InFlightRequest, done_ns: int) -> None:
        request = inflight.request
        if not inflight.failed:
            if not self._stopping:  # what ends while draining was the backlog
                self.counters.completed += 1
            self._log.add(
                REQUEST, request.user, inflight.intended_ns, done_ns,
                request.prompt_tokens, request.output_tokens,
            )  # fmt: skip
            if self._recorder.service is not None:
                self._log_service(inflight, done_ns, self._recorder.service.limits.places)
        else:
            self._recorder.miss(request.service_class, inflight.intended_ns)

    def _log_service(
        self, inflight: InFlightRequest, done_ns: int, places: Mapping[str | None, int]
    ) -> None:
        """What its objective depends on."""
        self._log.add(
            SERVICE, places[inflight.request.service_class], inflight.intended_ns, done_ns,
            self._compute_ns(inflight), self.blocks.read_bytes_of(inflight),
        )  # fmt: skip

    def _go_on_with(self, user: int, done_ns: int) -> None:
        """The user has its answer."""
        waits = not (self._workload.open_loop or self.blocks.drops_stores)
        if waits and self.blocks.stores > self.blocks.most_stores:
            self.stalled.append((user, self._clock()))
        else:
            self._next_turn(user, done_ns)

    def stored(self, inflight: InFlightRequest) -> None:
        """A request is over, but for what it reads again."""
        if inflight.rereads:
            inflight.is_stored = True
            inflight.loaded_ns = self._clock()
            self._read_again(inflight)
        else:
            self._in_flight -= 1

    def _read_again(self, inflight: InFlightRequest) -> None:
        """Begin the next round of reads; after the last one comes the answer."""
        while inflight.rereads and not inflight.failed:
            if self._has_left:
                return
            inflight.rereads -= 1
            if self.blocks.read_again(inflight):
                return
        del self._rereading[inflight]
        self.blocks.end_rereads(inflight)
        self._in_flight -= 1
        self._answer(inflight, inflight.loaded_ns)
        self._go_on_with(inflight.request.user, inflight.loaded_ns)

    def go_on(self) -> None:
        """Let users take turns again that a full store queue has held back."""
        while self.stalled and self.blocks.stores <= self.blocks.most_stores:
            user, since_ns = self.stalled.popleft()
            now = self._clock()
            self.counters.store_stall_ns += now - since_ns
            self._next_turn(user, now)
