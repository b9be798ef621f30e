"""The pattern of a storage benchmark as a workload: ``--kv-plugin benchmarks.uniform``.

Users who never think, whose requests are runs of blocks: the queue is always full.
``uniform-read`` (for ``--kv-phase=decode``) loads one run of a data set at random after
the other. ``uniform-overwrite`` and ``uniform-append`` (for ``--kv-phase=prefill``) store
runs that were never stored before: into a full cache, where each replaces another one, and
into an empty one. A token has 1 KiB, so ``--kv-block-tokens`` is the object's size in KiB and
``--kv-context-scale`` the GiB of a rank's data. Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.models import ModelSpec
from pytest_kvcache.workloads.keys import chain_key
from pytest_kvcache.workloads.protocol import Need, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.workloads.protocol import Workload, WorkloadContext, WorkloadFamily

MODEL = ModelSpec(
    name="uniform-1k",
    layers=1,
    kv_heads=1,
    head_dim=256,
    dtype="float16",
    note="made up: 1 KiB per token",
)
_DATA_TOKENS = 1 << 20
# A request is a run of blocks, half of what requests have in the recorded traces (30 blocks
# on average in Mooncake's, 53 in ShareGPT's), but of 16 MiB at most, or one block.
_RUN_BLOCKS = 16
_RUN_TOKENS = 1 << 14


def _blocks(context: WorkloadContext) -> int:
    return max(1, int(_DATA_TOKENS * context.context_scale) // context.block_tokens)


class _Uniform:
    """What reading and writing share: requests of new keys."""

    open_loop = False

    def __init__(self, context: WorkloadContext) -> None:
        self._context = context
        fits = min(_RUN_BLOCKS, _RUN_TOKENS // context.block_tokens, _blocks(context))
        self._run = max(1, fits)
        self._made = 0

    @property
    def users(self) -> int:
        """Requests under way at any time."""
        return self._context.users

    def _new_request(self, user: int) -> Request:
        context, self._made = self._context, self._made + 1
        content = f"{context.seed}/{context.trial}/{context.rank}/{self._made}/".encode()
        keys, parent = [], b""
        for position in range(self._run):
            parent = chain_key(parent, content + position.to_bytes(4, "big"))
            keys.append(parent)
        return Request(
            user=user,
            keys=tuple(keys),
            prompt_blocks=self._run,
            prompt_tokens=self._run * context.block_tokens,
            output_tokens=0,
        )


class UniformAppend(_Uniform):
    """Every request is new (implements ``Workload``)."""

    def population(self) -> Iterator[Request]:
        """Populate nothing."""
        return iter(())

    def next_request(self, user: int) -> Request | None:
        """A run that was never asked for before."""
        return self._new_request(user)


class UniformOverwrite(UniformAppend):
    """The same where there is no room left (implements ``Workload``)."""

    def population(self) -> Iterator[Request]:
        """As much as there is room for."""
        for owner in range(_blocks(self._context) // self._run):
            yield self._new_request(owner)


class UniformRead(_Uniform):
    """Every request is one of the data set, at random (implements ``Workload``).

    The decode phase loads what the request's user has stored, so a run is asked for by
    naming its owner: as many requests are under way as there are users, of any owner.
    """

    def __init__(self, context: WorkloadContext) -> None:
        super().__init__(context)
        self._random = random.Random(f"{context.seed}/{context.trial}/{context.rank}")
        self._stored = 0

    def population(self) -> Iterator[Request]:
        """The data set, one owner per run."""
        for owner in range(_blocks(self._context) // self._run):
            yield self._new_request(owner)
            self._stored = owner + 1

    def next_request(self, user: int) -> Request | None:  # noqa: ARG002  anyone's is anyone's
        """One run of those that are stored."""
        if not self._stored:
            return None
        owner = int(self._random.random() * self._stored)
        return Request(user=owner, keys=(), prompt_blocks=0, prompt_tokens=0, output_tokens=0)


@dataclass(frozen=True, slots=True)
class UniformFamily:
    """Reads or writes (implements ``WorkloadFamily``)."""

    workload: type[UniformRead | UniformAppend]
    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        """As many blocks as the scale says: a cache of that size, which writing would outgrow."""
        return Need(working_set_blocks=_blocks(context))

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's requests."""
        return self.workload(context)


@pytest_kvcache.hookimpl
def kvcache_workloads() -> Mapping[str, WorkloadFamily]:
    """Reads, and the two kinds of writes."""
    return {
        "uniform-read": UniformFamily(UniformRead),
        "uniform-append": UniformFamily(UniformAppend),
        "uniform-overwrite": UniformFamily(UniformOverwrite),
    }


@pytest_kvcache.hookimpl
def kvcache_models() -> Mapping[str, ModelSpec]:
    """The model of 1 KiB per token."""
    return {MODEL.name: MODEL}
