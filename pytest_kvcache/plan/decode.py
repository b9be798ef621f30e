"""Whether the contexts that ``--kv-phase=decode`` or ``--kv-interference`` loads fit. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import CacheIndex
from pytest_kvcache.errors import OptionError
from pytest_kvcache.phases import PHASES
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.workloads.protocol import WorkloadContext, WorkloadFamily

# Blocks that are looked at before the launch, about 5 s of work; what is beyond, ranks find.
_MOST_BLOCKS = 4_000_000


def check_contexts_fit(plan: Plan, family: WorkloadFamily, trials: int) -> None:
    """Raise OptionError unless every user's context fits, on every rank and in every trial.

    The contexts are those that the ranks will store, drawn with the same seed.
    """
    does = PHASES[plan.phase]
    loads_stored = plan.interference is not None or (does.loads and not does.stores)
    if not loads_stored or family.needs_trace or plan.room_blocks >= plan.need_blocks:
        return
    looked_at = 0
    for trial, rank in product(range(trials), range(plan.np)):
        context = replace(plan.context(rank, None), trial=trial)
        looked_at += _stored_blocks(plan, family, context)
        if looked_at > _MOST_BLOCKS:
            return


def _stored_blocks(plan: Plan, family: WorkloadFamily, context: WorkloadContext) -> int:
    index, held, fits = CacheIndex(None, page_bytes=1), 0, True
    for request in family.build(context).population():
        index.admit(request.stored_keys, 0, 1)
        fits = fits and index.used_blocks <= plan.room_blocks
        held += fits
    if fits:
        return index.used_blocks
    asked = "--kv-phase is decode" if plan.interference is None else "--kv-interference is given"
    raise OptionError(
        f"{asked}, which loads stored contexts, and those of the"
        f" {context.users} users of rank {context.rank} take"
        f" {format_bytes(index.used_blocks * plan.stored_bytes)} in trial {context.trial + 1},"
        f" of which the {format_bytes(plan.room_blocks * plan.stored_bytes)} of its"
        f" {'cache' if plan.room_blocks == plan.capacity_blocks else 'tiers'} hold those of"
        f" {held}; lower --kv-num-users or --kv-context-scale, or give more room with"
        " --kv-storage-capacity-gb"
    )
