"""Whose store it is, what that brings of the options, and what can't go with it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_kvcache.backends.calls import FileCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.options.options import Options

Sharing = Literal["rank", "host", "run"]
"""Who stores in one place: each ``rank`` alone, those of a ``host``, or all of the ``run``."""
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)


def brought_by_sharing(sharing: str | None) -> Mapping[str, Any]:
    """Name of an option → its value where ranks share a store and nobody gives another one.

    A link is there before it, or is not; so exactly one of several that store a block has it.
    """
    if sharing in (None, "rank"):
        return {}
    return {"lookup": "first-miss", "publish": "link", "sync": "none"}


def check_sharing(options: Options) -> None:
    """Refuse what one rank alone knows or does, where others store as well."""
    if options.sharing == "rank":
        return
    told = f"--kv-sharing is {options.sharing}"
    engine = None if options.engine is None else PROFILES[options.engine]
    if engine is not None and not isinstance(engine.calls, FileCalls):
        slots = isinstance(engine.calls, SlotCalls)
        kept = "keeps objects in slots of a file" if slots else "packs objects into buckets"
        raise OptionError(
            f"{told} and --kv-engine is {engine.name}, which {kept} of its own; leave one of them"
            " out, or name an engine with a file per object"
        )
    if options.lookup == "memory":
        of_engine = engine is not None and engine.lookup == "memory"
        who = f"--kv-engine={engine.name}" if engine and of_engine else "--kv-lookup=memory"
        raise OptionError(
            f"{told} and {who} knows only what this rank has stored; use --kv-lookup=all or"
            " first-miss, or leave one of them out"
        )
    if options.publish == "in-place":
        raise OptionError(
            f"{told} and objects are published in place, where others would find them half"
            " written; use --kv-publish=rename or link"
        )
    _check_beside(options, told)


def _check_beside(options: Options, told: str) -> None:
    """What is not built for a shared store."""
    refused = {
        "--kv-gpu-mem-gb": bool(options.gpu_mem_gb),
        "--kv-cpu-mem-gb": bool(options.cpu_mem_gb),
        f"--kv-layout={options.layout}": options.layout != "block",
        "--kv-reread-factor": bool(options.reread_factor),
        "--kv-io-trace": options.io_trace is not None,
        "--kv-enable-rag": options.enable_rag,
        "--kv-closed": options.closed,
        "--kv-interference": options.interference,
        "--kv-fill": options.fill is not None,
        f"--kv-phase={options.phase}": not PHASES[options.phase].loads,
    }
    for what, is_there in refused.items():
        if is_there:
            raise OptionError(f"{told}, which can't go with {what} yet; leave one of them out")
