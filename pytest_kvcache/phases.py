"""The sides of disaggregated serving and a restart, and what each does: ``--kv-phase``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Whether requests load blocks from the cache, and whether they store them there.

    One that ``restarts`` has no requests: what was stored before is found again.
    """

    loads: bool
    stores: bool
    restarts: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether one machine does both prefill and decode."""
        return self.loads and self.stores

    def makes(self, kind: str) -> bool:
        """Whether it makes reads, or writes, or deletes (of what they displace), or a restart."""
        if kind == "restart":
            return self.restarts
        return self.loads if kind == "read" else self.stores


RestartBy = Literal["scan", "lookups"]
"""How an index is made usable again.

The directories are walked, and every file's name and size read; or the keys are known, and the
storage is asked for each of them.
"""
RESTARTS_BY: tuple[RestartBy, ...] = get_args(RestartBy)

PHASES: Mapping[str, Phase] = MappingProxyType(
    {
        "both": Phase(loads=True, stores=True),
        "prefill": Phase(loads=False, stores=True),
        "decode": Phase(loads=True, stores=False),
        "restart": Phase(loads=False, stores=False, restarts=True),
    }
)
"""By their names."""
