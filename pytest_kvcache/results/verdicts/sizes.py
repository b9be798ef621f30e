"""How much there is of what a verdict says: which of several trials has it worst. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.results.trial import ratio
from pytest_kvcache.results.verdicts.storage import busy_group
from pytest_kvcache.results.verdicts.surroundings import HELD_UP_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_kvcache.results.devicegroups import DeviceGroup

    _Data = Mapping[str, Any]


def size_of(code: str, data: Mapping[str, Any]) -> float | None:
    """The larger, the worse; None: the verdict carries no size."""
    size = _SIZES.get(code)
    return None if size is None else size(data)


def _paused_s(data: _Data) -> float:
    return max(rank["longest_pause_s"] or 0.0 for rank in data["ranks"])


def _shallow(data: _Data) -> float:
    return -sum(rank["mean_depth"] or 0.0 for rank in data["ranks"])


def _held_up(data: _Data) -> float | None:
    """The largest share of the time; None: it is for a limit, which has none."""
    names = ("throttled_ratio", "steal_ratio", "memory_pressure_ratio")
    most = max(host[name] or 0.0 for host in data["surroundings"] for name in names)
    return most if most >= HELD_UP_SHARE else None


def _others(data: _Data) -> float | None:
    """The largest share of a device that was others'."""
    group = busy_group(data)
    return None if group is None else max(_shares(group))


def _shares(group: DeviceGroup) -> Iterator[float]:
    foreign, moved = group.foreign, group.moved
    moved_bytes = moved.read_bytes + moved.write_bytes
    both = (foreign.read_bytes or 0) + (foreign.write_bytes or 0)
    yield ratio(both, moved_bytes) or 0.0
    yield ratio(foreign.operations or 0, moved.read_ops + moved.write_ops) or 0.0
    yield ratio(foreign.quiet_bytes_per_s * group.span_s, moved_bytes) or 0.0
    yield foreign.quiet_busy_ratio


def _cached(kind: str) -> Callable[[_Data], float]:
    def missing(data: _Data) -> float:
        way = data["proof"][kind]
        shares = [way[name] for name in ("process_share", "device_share")]
        return 1.0 - min((share for share in shares if share is not None), default=0.0)

    return missing


_SIZES: Final[Mapping[str, Callable[[_Data], float | None]]] = MappingProxyType(
    {
        "BUSY_DEVICE": _others,
        "CACHED_READS": _cached("reads"),
        "CACHED_WRITES": _cached("writes"),
        "PAUSED": _paused_s,
        "SATURATED": lambda data: data["queue"]["ms"]["mean"] or 0.0,
        "SHORT_WINDOW": lambda data: -data["window_s"],
        "STALL": lambda data: data["stalls"]["total_s"] or 0.0,
        "THROTTLED": _held_up,
        "UNSATURATED": _shallow,
    }
)
