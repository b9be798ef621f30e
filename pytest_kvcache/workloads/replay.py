"""Replay of a recorded trace: this rank's requests, in their recorded order.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.errors import OptionError
from pytest_kvcache.traces.reuse import distinct_blocks
from pytest_kvcache.workloads.ioreplay import IoReplayWorkload
from pytest_kvcache.workloads.protocol import Need, Request, Workload, WorkloadContext, at_speed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.traces.read import Trace

_KEY = struct.Struct(">qq")


class ReplayWorkload:
    """A trace as a workload (implements ``Workload``).

    ``speedup`` 0 is a closed loop: ``users`` take the next request whenever they are
    free, without thinking. Above 0 it is an open loop: every request has its recorded
    arrival divided by ``speedup``, counted from the trace's first one. Later ``cycles``
    replay the same blocks again, one mean inter-arrival time after the last request.
    The ids of a trace are taken as they stand, each as one full block.
    """

    def __init__(self, trace: Trace, *, users: int, speedup: float, cycles: int) -> None:
        self._trace = trace
        self._users = users
        self._speedup = speedup
        self._total = len(trace) * cycles
        self._next = 0
        self._origin_ns, self._cycle_ns = trace.timeline_ns
        # Decisions follow the file; arrivals, where they count, follow the clock.
        by_clock = np.argsort(trace.arrival_ns, kind="stable")
        self._order = by_clock if speedup > 0 else np.arange(len(trace))

    @property
    def users(self) -> int:
        """How many users take turns (closed loop)."""
        return self._users

    @property
    def open_loop(self) -> bool:
        """Whether requests come at their recorded times."""
        return self._speedup > 0

    def population(self) -> Iterator[Request]:
        """A trace starts with an empty cache."""
        return iter(())

    def next_request(self, user: int) -> Request | None:
        """The next request of the trace, for whichever user is free."""
        if self._next >= self._total:
            return None
        cycle, position = divmod(self._next, len(self._trace))
        index = int(self._order[position])
        self._next += 1
        trace = self._trace
        recorded_ns = int(trace.arrival_ns[index]) - self._origin_ns + cycle * self._cycle_ns
        keys = tuple(_KEY.pack(0, block) for block in trace.blocks(index).tolist())
        return Request(
            user=user,
            keys=keys,
            prompt_blocks=len(keys),
            prompt_tokens=int(trace.input_tokens[index]),
            output_tokens=int(trace.output_tokens[index]),
            arrival_ns=at_speed(recorded_ns, self._speedup),
        )


class ReplayFamily:
    """The scenario ``trace`` (implements ``WorkloadFamily``)."""

    needs_trace = True

    def need(self, context: WorkloadContext) -> Need:
        """Every distinct block once: what an infinite cache would hold at the end."""
        trace, cycles = _trace_of(context), context.trace_cycles
        span_s, asked_for = recorded_span_s(trace, cycles), trace.operations
        return Need(
            working_set_blocks=distinct_blocks(trace)
            if asked_for is None
            else asked_for.need_blocks(in_time=context.trace_speedup > 0),
            requests=len(trace) * cycles,
            accessed_blocks=len(trace.block_ids) * cycles,
            span_s=span_s / context.trace_speedup if context.trace_speedup else 0.0,
        )

    def build(self, context: WorkloadContext) -> Workload:
        """This rank's part of the trace."""
        trace = _trace_of(context)
        if trace.operations is not None:
            return IoReplayWorkload(
                trace, trace.operations, users=context.users, speedup=context.trace_speedup
            )
        return ReplayWorkload(
            trace,
            users=context.users,
            speedup=context.trace_speedup,
            cycles=context.trace_cycles,
        )


def recorded_span_s(trace: Trace, cycles: int) -> float:
    """Seconds from the first arrival to the last one of all cycles, at recorded speed."""
    origin_ns, cycle_ns = trace.timeline_ns
    last_ns = int(trace.arrival_ns.max(initial=origin_ns)) + (cycles - 1) * cycle_ns
    return (last_ns - origin_ns) / 1e9


def _trace_of(context: WorkloadContext) -> Trace:
    if context.trace is None:
        raise OptionError("--kv-scenario is 'trace'; name the file with --kv-trace=FILE")
    return context.trace
