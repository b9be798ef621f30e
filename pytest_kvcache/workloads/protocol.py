"""What every workload gives the engine: a stream of requests. Rank-side; no pytest, no MPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.traces.read import Trace


class Request(NamedTuple):
    """One exchange of a conversation.

    ``keys`` are prefix-chained block keys: the prompt's first ``prompt_blocks``, then
    those of the output's blocks, which are stored but never looked up. ``think_s`` is
    how long the user waits before it issues this request (closed loop); ``arrival_ns``
    is the intended start counted from the start of the run (open loop), else None.
    ``sizes`` are the bytes of the keys' blocks where they are not all as large as the plan
    says; a key's block always has the same size.
    """

    user: int
    keys: Sequence[bytes]
    prompt_blocks: int
    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0
    arrival_ns: int | None = None
    sizes: Sequence[int] | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one rank stores at most if nothing is evicted, and what it starts with.

    ``working_set_blocks``: all users' contexts at their longest, shared blocks once.
    A replay also knows its ``requests``, the ``accessed_blocks`` of all their prompts
    and its ``span_s`` in recorded time; elsewhere the duration decides.
    """

    working_set_blocks: int
    requests: int | None = None
    accessed_blocks: int = 0
    span_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadContext:
    """What a workload is made from: the plan's parameters and, for a replay, the trace.

    ``trace`` holds the requests of this rank only.
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


class WorkloadFamily(Protocol):
    """What ``kvcache_workloads`` registers under a scenario's name."""

    @property
    def needs_trace(self) -> bool:
        """Whether it replays a trace; others populate the cache and run for a duration."""

    def need(self, context: WorkloadContext) -> Need:
        """How much one rank stores at most; the one size formula of plan and datasize."""

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's stream of requests."""
