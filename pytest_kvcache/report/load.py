"""In what the load differs from its scenario's as it ships, in a few words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.plan.plan import GENERATION_S_PER_TOKEN
from pytest_kvcache.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan, TracePlan
    from pytest_kvcache.workloads.scenarios import Dialogues


def describe_changes(plan: Plan) -> Iterator[str]:
    """What was asked for and changes what the users do, one thing after the other."""
    if plan.context_scale != 1:
        yield f"contexts scaled by {plan.context_scale:g}"
    if plan.dialogues is not None:
        yield from _of_dialogues(plan.dialogues)
    if plan.generation_mode != "none":
        per_token_ms = GENERATION_S_PER_TOKEN[plan.generation_mode] * 1e3
        yield f"generation {plan.generation_mode} ({per_token_ms:g} ms per token)"
    if plan.recompute_tokens_per_s is not None:
        yield f"what is not loaded is computed at {plan.recompute_tokens_per_s:,.6g} tokens/s"
    if plan.reread_factor:
        yield f"what is stored is read again {format_count(plan.reread_factor, 'time')}"
    if plan.trace is not None and plan.trace.cycles > 1:
        yield f"the trace {plan.trace.cycles:,} times over"
    if plan.trace is not None:
        yield from [] if plan.shares else _of_parts(plan.trace, plan.np)
    if plan.precondition_bytes:
        yield f"preconditioned by {format_bytes(plan.precondition_bytes)} per rank"


def _of_parts(trace: TracePlan, ranks: int) -> Iterator[str]:
    """What an endless cache hits when each rank has one of its own, and when there is one."""
    parted, whole = trace.partitioned_hit_ratio, trace.one_rank_hit_ratio
    if ranks > 1 and parted is not None and whole is not None and trace.ids != "none":
        yield f"parted among ranks at most {parted:.4f} of its blocks hit, on one rank {whole:.4f}"


def _of_dialogues(dialogues: Dialogues) -> Iterator[str]:
    if dialogues.file is not None:
        yield f"users as {dialogues.file} has them"
    if not dialogues.prefix_caching:
        yield "no prefix caching"
    if not dialogues.multi_turn:
        yield "one turn per conversation"
    if (retrieval := dialogues.retrieval) is not None:
        ratios = [each.retrieval_ratio for each in dialogues.profiles.values()]
        shares = " to ".join(
            f"{ratio:.3g}" for ratio in sorted({min(ratios) * 100, max(ratios) * 100})
        )
        yield (
            f"{format_count(retrieval.top_k, 'chunk')} retrieved in {shares} % of the requests, of"
            f" {format_count(retrieval.documents, 'document')} per user"
        )


def describe_room(plan: Plan) -> str:
    """What a rank has room for, where that is less than it needs; empty: it has enough."""
    if plan.fill_blocks:
        capacity, filled = (
            format_bytes(blocks * plan.stored_bytes)
            for blocks in (plan.capacity_blocks, plan.fill_blocks)
        )
        return f", {filled} of the {capacity} of each rank taken before"
    if plan.room_blocks >= plan.need_blocks:
        return ""
    room, need = (
        format_bytes(blocks * plan.stored_bytes) for blocks in (plan.room_blocks, plan.need_blocks)
    )
    return f", room for {room} of the {need} that a rank needs"
