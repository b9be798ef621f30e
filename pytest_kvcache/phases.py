"""The sides of disaggregated serving, and what each does: ``--kv-phase``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Whether requests load blocks from the cache, and whether they store them there."""

    loads: bool
    stores: bool

    @property
    def is_whole(self) -> bool:
        """Whether one machine does both prefill and decode."""
        return self.loads and self.stores

    def makes(self, kind: str) -> bool:
        """Whether its requests make reads, or writes, or deletes (of what they displace)."""
        return self.loads if kind == "read" else self.stores


PHASES: Mapping[str, Phase] = MappingProxyType(
    {
        "both": Phase(loads=True, stores=True),
        "prefill": Phase(loads=False, stores=True),
        "decode": Phase(loads=True, stores=False),
    }
)
"""By their names."""
