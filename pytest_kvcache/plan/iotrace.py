"""What a replay of an I/O trace must be: its sizes, its users, and what it can't be with. Pure.

Its operations are what once reached a storage: nothing may stand before the storage again, and
nothing but the trace decides on sizes, users and what is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.operations import Operations

_ITS_OWN = {
    "model": "sizes", "block_tokens": "sizes", "tensor_parallel": "sizes",
    "generation_mode": "times",
}  # fmt: skip


def check_io_replay(options: Options, operations: Operations) -> None:
    """Refuse what an I/O trace would ignore, or be another workload with."""
    for name, what in _ITS_OWN.items():
        if options.overrides(name):
            raise _refused(options, name, f"an I/O trace has {what} of its own, so leave it out")
    if options.overrides("num_users") and operations.has_users:
        raise _refused(options, "num_users", "this I/O trace has its own users, so leave it out")
    for name in ("gpu_mem_gb", "cpu_mem_gb"):
        if getattr(options, name):
            why = "an I/O trace is what reached the storage behind such a tier, so leave it out"
            raise _refused(options, name, why)
    for name, kept in (
        ("phase", "both"),
        ("layout", "block"),
        ("trace_cycles", 1),
        ("reread_factor", 0),
    ):
        if getattr(options, name) != kept:
            why = f"an I/O trace is replayed once, as it was recorded, so use {kept}"
            raise _refused(options, name, why)
    if options.store == "slab" and operations.sizes_differ:
        why = "objects of this I/O trace have different sizes, so use file"
        raise _refused(options, "store", why)


def check_holds(plan: Plan, operations: Operations) -> None:
    """Refuse a storage that would have to evict: it would be asked for something else."""
    if plan.capacity_blocks < plan.need_blocks:
        need = format_bytes(plan.need_blocks * plan.stored_bytes)
        has = format_bytes(plan.capacity_bytes)
        largest = format_bytes(operations.largest_bytes)
        raise OptionError(
            f"the I/O trace {plan.trace.name if plan.trace else ''} has up to {need} per rank"
            f" stored at once (objects of up to {largest}), and the capacity is {has}; raise"
            " --kv-storage-capacity-gb, free some space, or lower --kv-trace-limit"
        )


def _refused(options: Options, name: str, why: str) -> OptionError:
    flag = "--kv-" + name.replace("_", "-")
    text = options.texts[name][0] if options.given(name) else getattr(options, name)
    return OptionError(f"{flag} is {text if isinstance(text, str) else ' '.join(text)}; {why}")
