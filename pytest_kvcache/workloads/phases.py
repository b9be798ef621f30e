"""One side of disaggregated serving: a workload whose requests only store, or only load.

Rank-side; imports neither pytest nor MPI. Where prompts are computed and tokens are
generated on different machines, the one kind writes KV blocks and the other reads them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pytest_kvcache.errors import StorageError
from pytest_kvcache.phases import PHASES
from pytest_kvcache.workloads.protocol import Workload
from pytest_kvcache.workloads.wrapped import WrappedWorkload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.workloads.protocol import (
        Request,
        WorkloadContext,
        WorkloadFamily,
    )


@runtime_checkable
class ChecksPopulation(Workload, Protocol):
    """A workload that can't go on from just any population."""

    def check_population(self) -> None:
        """Raise StorageError where the population is not what the requests need."""


def build_workload(
    family: WorkloadFamily,
    context: WorkloadContext,
    phase: str,
    reread_factor: int = 0,
    *,
    stores_beside: bool = False,
) -> Workload:
    """A rank's requests in a phase of serving, by its name; each reads so often more again.

    With ``stores_beside`` they load what they load in ``decode``, and store beside that.
    """
    workload, does = family.build(context), PHASES[phase]
    if stores_beside:
        return LoadsBesideStores(workload)
    if does.restarts:
        return workload  # of which only the population is asked for
    if does.is_whole:
        return RereadingWorkload(workload, reread_factor) if reread_factor else workload
    if not does.loads:
        return PrefillWorkload(workload)
    if family.needs_trace:
        return DecodeReplay(workload, family.build(replace(context, trace_cycles=1)))
    return DecodeWorkload(workload)


class RereadingWorkload(WrappedWorkload):
    """Every request reads what it has stored so often more again."""

    def __init__(self, workload: Workload, reread_factor: int) -> None:
        super().__init__(workload)
        self._reread_factor = reread_factor

    def next_request(self, user: int) -> Request | None:
        """The next request, with more rereads."""
        request = self._workload.next_request(user)
        if request is None:
            return None
        return request._replace(rereads=request.rereads + self._reread_factor)


class PrefillWorkload(WrappedWorkload):
    """Prompts are computed, nothing is generated; the cache begins in the middle of its life.

    What a conversation's answer adds is stored with its next prompt. Nothing is read, nor read
    again.
    """

    def next_request(self, user: int) -> Request | None:
        """The next prompt, without its answer."""
        request = self._workload.next_request(user)
        if request is None:
            return None
        sizes = None if request.sizes is None else request.sizes[: request.prompt_blocks]
        return request._replace(
            keys=request.keys[: request.prompt_blocks], sizes=sizes, output_tokens=0, rereads=0
        )


class DecodeWorkload(WrappedWorkload):
    """Every request loads the stored context of its user, whole, and what it retrieves.

    Contexts do not grow, for nothing is stored; think times and answers are those of
    the dialogue that goes on.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._stored: dict[int, Request] = {}

    def population(self) -> Iterator[Request]:
        """Every user's context; whoever asks for the next one has stored this one."""
        for request in self._workload.population():
            yield request
            if request.prompt_tokens:  # what has none is a document
                self._stored[request.user] = request

    def check_population(self) -> None:
        """Raise StorageError unless every user has a context to load."""
        if len(self._stored) < self.users:
            raise StorageError(
                f"the cache holds the contexts of {len(self._stored)} of {self.users} users, and"
                " with --kv-phase=decode or --kv-interference each must have one; lower"
                " --kv-num-users or raise --kv-storage-capacity-gb"
            )

    def next_request(self, user: int) -> Request | None:
        """Load what the user's dialogue has come to."""
        turn = self._workload.next_request(user)
        if turn is None:
            return None
        stored = self._stored.get(turn.user)
        return None if stored is None else self._loading(stored, turn)

    def _loading(self, stored: Request, turn: Request) -> Request:
        """The turn of a dialogue, with the stored context in the place of its own."""
        own = set(stored.keys)
        beside = [place for place, key in enumerate(turn.beside) if key not in own]
        sizes = turn.beside_sizes
        return stored._replace(
            beside=[turn.beside[place] for place in beside],
            beside_sizes=None if sizes is None else [sizes[place] for place in beside],
            prompt_blocks=len(stored.keys),
            prompt_tokens=stored.prompt_tokens + stored.output_tokens,
            output_tokens=turn.output_tokens,
            think_s=turn.think_s,
            arrival_ns=turn.arrival_ns,
            service_class=turn.service_class,
        )


class LoadsBesideStores(DecodeWorkload):
    """The very loads of ``DecodeWorkload``, and beside them what the dialogue stores that goes on.

    What a turn adds is stored as in ``both``, and loaded by nobody: the loads are of the same
    contexts, with the stores and without them.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._before: dict[int, frozenset[bytes]] = {}

    def _loading(self, stored: Request, turn: Request) -> Request:
        """The stored context is looked up; what the turn adds to its own is only stored."""
        loading = super()._loading(stored, turn)
        known = self._before.get(turn.user, frozenset()).union(stored.keys, loading.beside)
        self._before[turn.user] = frozenset(turn.keys)
        places = [place for place, key in enumerate(turn.keys) if key not in known]
        sizes = None
        if stored.sizes is not None and turn.sizes is not None:
            sizes = [*stored.sizes, *(turn.sizes[place] for place in places)]
        return loading._replace(
            keys=(*stored.keys, *(turn.keys[place] for place in places)), sizes=sizes
        )


class DecodeReplay(WrappedWorkload):
    """A trace of which everything was stored beforehand.

    ``recorded`` gives the trace's requests once more, for the population.
    """

    def __init__(self, workload: Workload, recorded: Workload) -> None:
        super().__init__(workload)
        self._recorded = recorded

    def population(self) -> Iterator[Request]:
        """The prompts in their order; the cache takes them until it is full."""
        while (request := self._recorded.next_request(0)) is not None:
            yield request
