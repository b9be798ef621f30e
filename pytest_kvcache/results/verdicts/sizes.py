"""How much there is of what a verdict says: which of several trials has it worst. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_kvcache.results.verdicts.storage import busy_group
from pytest_kvcache.results.verdicts.surroundings import HELD_UP_SHARE
from pytest_kvcache.units import ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_kvcache.results.devicegroups import DeviceGroup
    from pytest_kvcache.results.trial import Direction, Trial


def size_of(code: str, trial: Trial) -> float | None:
    """The larger, the worse; None: the verdict carries no size."""
    size = _SIZES.get(code)
    return None if size is None else size(trial)


def _paused_s(trial: Trial) -> float:
    return trial.counters.longest_pause_s or 0.0


def _shallow(trial: Trial) -> float:
    return -sum(rank.average_queue_depth or 0.0 for rank in trial.ranks)


def _held_up(trial: Trial) -> float | None:
    """The largest share of the time; None: it is for a limit, which has none."""
    most = max(
        share or 0.0
        for host in trial.surroundings
        for share in (host.throttled_ratio, host.steal_ratio, host.memory_pressure_ratio)
    )
    return most if most >= HELD_UP_SHARE else None


def _others(trial: Trial) -> float | None:
    """The largest share of a device that was others'."""
    group = busy_group(trial)
    return None if group is None else max(_shares(group))


def _shares(group: DeviceGroup) -> Iterator[float]:
    foreign, moved = group.foreign, group.moved
    moved_bytes = moved.read_bytes + moved.write_bytes
    both = (foreign.read_bytes or 0) + (foreign.write_bytes or 0)
    yield ratio(both, moved_bytes) or 0.0
    yield ratio(foreign.operations or 0, moved.read_ops + moved.write_ops) or 0.0
    yield ratio(foreign.quiet_bytes_per_s * group.span_s, moved_bytes) or 0.0
    yield foreign.quiet_busy_ratio


def _missing(way: Direction) -> float:
    """The share of what was asked for that did not reach a device."""
    shares = (way.process_share, way.device_share)
    return 1.0 - min((share for share in shares if share is not None), default=0.0)


_SIZES: Final[Mapping[str, Callable[[Trial], float | None]]] = MappingProxyType(
    {
        "BUSY_DEVICE": _others,
        "CACHED_READS": lambda trial: _missing(trial.proof.reads),
        "CACHED_WRITES": lambda trial: _missing(trial.proof.writes),
        "PAUSED": _paused_s,
        "SATURATED": lambda trial: trial.queue.ms.mean or 0.0,
        "SHORT_WINDOW": lambda trial: -trial.window_s,
        "STALL": lambda trial: trial.stalls.total_s,
        "THROTTLED": _held_up,
        "UNSATURATED": _shallow,
    }
)
