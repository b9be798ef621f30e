"""What every workload gives the engine: a stream of requests. Rank-side; no pytest, no MPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.scenarios import Dialogues


NEVER_NS = 1 << 62
"""A moment later than any run: as int64 it can still be added to a clock."""


def at_speed(recorded_ns: int, speedup: float) -> int | None:
    """When a request comes that was recorded so long after the first; None: at no time of its own.

    A ``speedup`` of 0 is a closed loop.
    """
    if not speedup:
        return None
    return int(min(recorded_ns / speedup, NEVER_NS))  # before int: it may be infinite


class Request(NamedTuple):
    """One exchange of a conversation.

    ``keys`` are prefix-chained block keys: the prompt's first ``prompt_blocks``, then
    those of the output's blocks, which are stored but never looked up. ``think_s`` is
    how long the user waits before it issues this request (closed loop); ``arrival_ns``
    is the intended start counted from the start of the run (open loop), else None.
    ``sizes`` are the bytes of the keys' blocks where they are not all as large as the plan
    says; a key's block always has the same size.

    ``beside`` are keys of blocks that it reads beside its prefix, each where it is there,
    whatever stands before it (chunks of documents, objects of earlier turns); distinct, and
    none of ``keys``. ``beside_sizes`` are their bytes, as ``sizes``; with ``stores_beside``
    those that are absent are stored. Each block that it stored for ``keys`` is read again
    ``rereads`` times, one reading after the other, and the answer waits for it.
    ``deletes`` are keys whose objects are deleted before its own are stored, as an I/O trace has
    it; they may be among ``keys``, which are then stored anew. Not behind memory tiers.
    ``service_class`` is its user's, by name; None: there are no classes.
    """

    user: int
    keys: Sequence[bytes]
    prompt_blocks: int
    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0
    arrival_ns: int | None = None
    sizes: Sequence[int] | None = None
    beside: Sequence[bytes] = ()
    beside_sizes: Sequence[int] | None = None
    stores_beside: bool = False
    rereads: int = 0
    deletes: Sequence[bytes] = ()
    service_class: str | None = None

    @property
    def stored_keys(self) -> Sequence[bytes]:
        """The keys of all blocks that it stores where they are absent."""
        return (*self.keys, *self.beside) if self.beside and self.stores_beside else self.keys


class Workload(Protocol):
    """One rank's requests.

    A closed workload is asked for a user's next request when the previous one has
    completed; an open one has a schedule, asked for in order of arrival.
    """

    @property
    def users(self) -> int:
        """How many users take turns (closed loop)."""

    @property
    def open_loop(self) -> bool:
        """Whether requests come by their own schedule instead of by completions."""

    def population(self) -> Iterator[Request]:
        """Contexts that exist before the run starts: stored, never measured."""

    def next_request(self, user: int) -> Request | None:
        """The next request of ``user`` (open loop: of anyone); None: there is no more."""


@runtime_checkable
class HoldsUsers(Workload, Protocol):
    """A closed workload in which a user may have to wait until another one has asked.

    ``next_request`` gives None then as well, and is asked again for those users each time that
    another one's request has been given.
    """

    @property
    def holds_users(self) -> bool:
        """Whether users may have to wait for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one rank stores at most if nothing is evicted, and what it starts with.

    ``working_set_blocks``: all users' contexts at their longest, shared blocks once.
    A replay also knows its ``requests``, the ``accessed_blocks`` of all their prompts
    and its ``span_s`` in recorded time; elsewhere the duration decides. ``is_populated``: the
    working set is stored before the run starts.
    """

    working_set_blocks: int
    requests: int | None = None
    accessed_blocks: int = 0
    span_s: float = 0.0
    is_populated: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadContext:
    """What a workload is made from: the plan's parameters and, for a replay, the trace.

    ``trace`` holds the requests of this rank only. ``token_bytes`` are those that a token takes
    on one rank; None: whoever asks does not care. ``dialogues`` are how the users of a synthetic
    scenario talk; elsewhere None.
    """

    users: int
    block_tokens: int
    context_scale: float
    seed: int
    trial: int
    rank: int
    trace: Trace | None
    trace_speedup: float
    trace_cycles: int
    token_bytes: int | None = None
    dialogues: Dialogues | None = None


class WorkloadFamily(Protocol):
    """What ``kvcache_workloads`` registers under a scenario's name."""

    @property
    def needs_trace(self) -> bool:
        """Whether the family replays a trace; others populate the cache and run for a duration."""

    def need(self, context: WorkloadContext) -> Need:
        """How much one rank stores at most; the one size formula of plan and datasize."""

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's stream of requests."""


@runtime_checkable
class WholeObjectFamily(WorkloadFamily, Protocol):
    """A family that stores whole objects of its own sizes, and brings values of its own.

    Of such a scenario a block is an object, and the plan's block is the largest one.
    """

    @property
    def values(self) -> Mapping[str, str | None]:
        """Texts of options by their names: they stand unless somebody typed others for a run.

        None: the option is not given.
        """

    @property
    def most_stores(self) -> int:
        """Objects of a rank that wait to be stored before its users wait."""

    def block_tokens(self, context_scale: float) -> int:
        """Tokens of the largest object."""
