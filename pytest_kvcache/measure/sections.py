"""The one table of a trial's latency sections: what is timed. Pure; known to everyone.

docs/results.md says of each from when to when it goes, and what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

TIERS: Final = ("gpu", "cpu", "storage")
"""Every tier there may be, fastest first."""

MEMORY_SECTIONS: Final = (
    "gpu_read", "gpu_write", "gpu_promote", "cpu_read", "cpu_write", "cpu_promote", "cpu_demote",
)  # fmt: skip
"""What is done in the memory tiers: reads of hits, writes of new blocks, moves into the tier."""

SECTIONS: Final = (
    "read", "write", "delete", "queue", "demote", "device", "lookup", "restart", "load",
    "request", "visibility", "scheduling_lag", *MEMORY_SECTIONS,
)  # fmt: skip
"""Every section has a histogram in the record of a trial, and metrics of its own."""

OPERATIONS: Final = ("read", "write", "delete", "demote")
"""Those of an operation on the storage; each rank counts them as well."""

CENSORED: Final = ("load", "request")
"""Those of what may have begun without being seen to end."""

TIER_SECTIONS: Final = ("demote", *MEMORY_SECTIONS)
"""Those that only memory tiers bring about."""


class MemoryTierLike(Protocol):
    """What decides which sections a memory tier brings about."""

    @property
    def name(self) -> str:
        """One of TIERS."""

    @property
    def holds_bytes(self) -> bool:
        """Or it is an index only, and nothing is moved."""


def tier_sections(tiers: Sequence[MemoryTierLike], policy: str) -> tuple[str, ...]:
    """Which of TIER_SECTIONS there are, with these memory tiers, fastest first, and this policy."""
    found = ["demote"] if policy == "demote" and tiers else []
    for place, tier in enumerate(tiers):
        if not tier.holds_bytes:
            continue
        found += [f"{tier.name}_read", f"{tier.name}_write"]
        if policy == "write-through":
            found.append(f"{tier.name}_promote")
        elif place:
            found.append(f"{tier.name}_demote")
    return tuple(found)
