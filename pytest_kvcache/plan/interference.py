"""Loads with stores beside them and without: the two launches of a trial. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

Interference = Literal["with-stores", "without-stores"]
PHASE_OF: Final = {"with-stores": "both", "without-stores": "decode"}
"""In which phase of serving each side is launched."""


def check_interference(plan: Plan) -> None:
    """Raise OptionError unless a side has its phase, and the same loads as the other one."""
    if plan.interference is None:
        return
    told = "--kv-interference is given, which loads stored contexts"
    if PHASE_OF.get(plan.interference) != plan.phase:
        raise OptionError(
            f"{told}, and --kv-phase is {plan.phase}; it decides that itself, leave one of them out"
        )
    if plan.trace is not None or plan.own_block_bytes is not None:
        raise OptionError(
            f"{told}, and --kv-scenario is {plan.scenario}, whose requests load what those before"
            " them stored; name a scenario of dialogues (chat, mixed, agent …)"
        )
    if plan.reread_factor:
        raise OptionError(
            f"{told}, and --kv-reread-factor is {plan.reread_factor}, which reads what was just"
            " stored; leave one of them out"
        )
    if plan.tiers:
        raise OptionError(
            f"{told}, and {plan.tiers[0].flag} puts a tier in front of the storage, which serves"
            " another part of them where stores fill it; leave one of them out"
        )


def without_stores(plan: Plan) -> Plan:
    """The other side of a plan with stores: the same loads alone, a case of its own."""
    own = "" if plan.label is None else f"{plan.label}-"
    return replace(
        plan, phase="decode", interference="without-stores", label=f"{own}without-stores"
    )


def is_with_stores_first(trial: int) -> bool:
    """Which side is launched first: they take turns, so that what drifts favours neither."""
    return trial % 2 == 0
