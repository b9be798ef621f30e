"""The memory tiers of a plan: what lies in front of the storage, fastest first. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_kvcache.errors import OptionError
from pytest_kvcache.phases import PHASES
from pytest_kvcache.system.gpus import LIBRARIES
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.system.gpus import Devices

TierName = Literal["gpu", "cpu"]
_MADE_OF: Final = MappingProxyType(
    {
        "gpu": {"torch": "by torch", "cupy": "by CuPy", "simulated": "simulated in host memory"},
        "cpu": {"memory": "in memory", "index": "index only, which holds nothing"},
    }
)
"""Tier → what it may be made of, and in words."""
_IN_HOST_MEMORY: Final = frozenset({"memory", "simulated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTier:
    """A tier of every rank that is no storage; ``capacity_bytes`` is one rank's.

    ``kind`` is what it is made of: ``memory`` of the host, that of a device by ``torch`` or
    ``cupy``, ``simulated`` (host memory that is accounted as a GPU's), or nothing
    (``index``): then it only decides what reaches the tiers behind it.
    """

    name: TierName
    capacity_bytes: int
    kind: TierKind

    def __post_init__(self) -> None:
        if self.name not in _MADE_OF:
            raise OptionError(f"a tier is called {self.name!r}; it must be gpu or cpu")
        if self.kind not in _MADE_OF[self.name]:
            raise OptionError(
                f"the {self.name} tier is {self.kind!r}; it must be one of"
                f" {', '.join(_MADE_OF[self.name])}"
            )
        if self.capacity_bytes < 1:
            raise OptionError(
                f"the {self.name} tier has {self.capacity_bytes} bytes; it must have some"
            )

    def __str__(self) -> str:
        """``cpu 4 GiB (in memory)``."""
        return f"{self.name} {format_bytes(self.capacity_bytes)} ({_MADE_OF[self.name][self.kind]})"

    @property
    def holds_bytes(self) -> bool:
        """Whether anything is copied to and from it."""
        return self.kind != "index"

    @property
    def host_bytes(self) -> int:
        """What it takes of the host's memory."""
        return self.capacity_bytes if self.kind in _IN_HOST_MEMORY else 0

    @property
    def is_on_device(self) -> bool:
        """Whether it takes a GPU's memory."""
        return self.kind in LIBRARIES

    @property
    def flag(self) -> str:
        """The option that asks for it."""
        return f"--kv-{self.name}-mem-gb"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same tier back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemoryTier:
        """The inverse of ``to_json``; OptionError for a value that breaks a rule."""
        return cls(**data)


def describe_tiers(tiers: Sequence[MemoryTier], policy: TierPolicy) -> str:
    """``gpu 1 GiB (by torch), cpu 4 GiB (in memory) per rank, write-through``; empty: none."""
    return f"{', '.join(map(str, tiers))} per rank, {policy}" if tiers else ""


def tiers_of(options: Options, gpu_kind: TierKind) -> tuple[MemoryTier, ...]:
    """The tiers that were asked for, fastest first; ``gpu_kind`` is what a gpu tier is."""
    asked: list[tuple[TierName, int, TierKind]] = [
        ("gpu", options.gpu_mem_gb, gpu_kind),
        ("cpu", options.cpu_mem_gb, options.cpu_tier),
    ]
    return tuple(
        MemoryTier(name=name, capacity_bytes=size, kind=kind) for name, size, kind in asked if size
    )


def check_reaches_storage(plan: Plan) -> None:
    """Raise OptionError if it is certain that no operation of a run reaches the storage.

    A replay asks for no other blocks than it needs, and decode for none but those stored.
    """
    stores, demotes = PHASES[plan.phase].stores, plan.tier_policy == "demote"
    if not plan.tiers or (stores and not (demotes and plan.trace is not None)):
        return
    held = sum(plan.tier_blocks) if demotes else max(plan.tier_blocks)
    if held < plan.need_blocks:
        return
    raise OptionError(
        f"with {' and '.join(tier.flag for tier in plan.tiers)} memory tiers hold all"
        f" {format_bytes(plan.need_blocks * plan.stored_bytes)} that a rank asks for, so that"
        " nothing would reach the storage; ask for less there, or for more with --kv-num-users or"
        " a longer trace"
    )


def wants_devices(options: Options) -> bool:
    """Whether every host must have a GPU."""
    return options.gpu_mem_gb > 0 and options.gpu_backend != "simulated"


def choose_library(options: Options, hosts: Mapping[str, Devices]) -> TierKind:
    """The library for the gpu tier: the one asked for, else the first; every host has a device.

    OptionError if there is none. ``hosts`` are what was found, by the host's name for people.
    """
    wanted: tuple[TierKind, ...] = ("torch", "cupy")
    if options.gpu_backend is not None:
        wanted = (options.gpu_backend,)
    for name in wanted:
        if all(_has(found[name]) for found in hosts.values()):
            return name
    lacks = {
        host: [_lack(name, found[name]) for name in wanted if not _has(found[name])]
        for host, found in hosts.items()
    }
    told = "; ".join(f"on {host} {', '.join(texts)}" for host, texts in lacks.items() if texts)
    asked = "" if options.gpu_backend is None else f" by --kv-gpu-backend={options.gpu_backend}"
    raise OptionError(
        f"--kv-gpu-mem-gb asks for a gpu tier of {format_bytes(options.gpu_mem_gb)} per rank{asked}"
        f", but {told}; install what is missing for the interpreter of the ranks, or take"
        " --kv-gpu-backend=simulated, which is memory of the host"
    )


def _has(found: int | str) -> bool:
    return isinstance(found, int) and found > 0


def _lack(name: str, found: int | str) -> str:
    library = LIBRARIES[name]
    return f"{library} finds no device" if isinstance(found, int) else f"no {library} ({found})"
