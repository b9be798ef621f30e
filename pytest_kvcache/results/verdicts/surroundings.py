"""What surrounded the run: the harness, and what else the machine did. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.trial import Verdict
from pytest_kvcache.system.cgroups import limit_words
from pytest_kvcache.system.preloads import offence
from pytest_kvcache.system.surroundings import Surroundings
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Of the time. A p99 is about the slowest hundredth of the operations: what held ranks up for
# three hundredths of the time can be all of it.
HELD_UP_SHARE = 0.03
_LIMIT_HITS_PER_S = 1.0  # fewer waits for memory than that can't move a percentile
# Two clocks of one span: services slew a clock by 0.05 %, readings are apart by less than this.
_CLOCK_SHARE = 0.01
_CLOCK_S = 0.05


def whether_the_harness_was_fast(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """What the ranks could have done without the storage."""
    harness = data["harness"]
    if harness["client_bound"]:
        yield Verdict.of(
            "CLIENT_BOUND",
            f"a rank could make only {harness['headroom']:.1f} times as many operations"
            " without the storage; this measures the harness as well, use more ranks (--kv-np) or"
            " larger blocks (--kv-block-tokens)",
        )


def whether_something_held_it_up(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """Limits of control groups, and what other guests and processes took."""
    hosts = data["surroundings"]
    yield from _throttled(
        hosts,
        "throttled_ratio",
        lambda h: (
            f"was stopped by its CPU quota{_quota(h)} in {h['throttled_periods']} of"
            f" {h['cpu_periods']} periods, for {h['throttled_ratio']:.0%} of the time summed over"
            " cores, and latencies contain that; raise the quota (docker --cpus, limits.cpu of a"
            " pod)"
        ),
    )
    yield from _throttled(
        hosts,
        "steal_ratio",
        lambda h: (
            f"lost its ranks' cores to other guests for {h['steal_ratio']:.1%} of the time"
            " (steal), and latencies contain that; use a quieter host, or one with its own cores"
        ),
    )
    yield from _throttled(
        hosts,
        "memory_pressure_ratio",
        lambda h: (
            f"had processes that waited for memory{_limit(h)} for"
            f" {h['memory_pressure_ratio']:.1%} of the time; give it more, or end what takes it"
        ),
    )
    yield from _throttled(
        hosts,
        "memory_limit_hits_per_s",
        lambda h: (
            f"reached its memory limit{_limit(h)} {h['memory_limit_hits_per_s']:.3g} times"
            " per second, and had to give back what it held; raise the limit, or use --kv-io=direct"
        ),
        least=_LIMIT_HITS_PER_S,
    )
    filesystems = data["proof"]["filesystem"]
    limits = {host["host"]: [limit for limit in host["io_limits"]
                             if _applies(limit, filesystems[host["host"]])]
              for host in hosts}  # fmt: skip
    limited = [host for host in hosts if limits[host["host"]]]
    if limited:
        shown = "; ".join(map(_io_limit, limits[limited[0]["host"]]))
        yield Verdict.of(
            "THROTTLED",
            f"{_named(limited)} may use the device only as far as its control group allows"
            f" ({shown}): that limit is measured, not the device; lift it (io.max,"
            " blkio.throttle) for a result of the storage",
        )


def _throttled(
    hosts: Sequence[Mapping[str, Any]],
    name: str,
    told: Callable[[Mapping[str, Any]], str],
    least: float = HELD_UP_SHARE,
) -> Iterator[Verdict]:
    """The host that has most of something, where that is enough to tell."""
    found = [host for host in hosts if host[name] is not None and host[name] >= least]
    found.sort(key=lambda host: -host[name])
    if found:
        yield Verdict.of("THROTTLED", f"{_named(found)} {told(found[0])}")


def _named(hosts: Sequence[Mapping[str, Any]]) -> str:
    """``host n1 (and 2 more)``."""
    more = f" (and {len(hosts) - 1} more)" if len(hosts) > 1 else ""
    return f"host {hosts[0]['host']}{more}"


def _quota(host: Mapping[str, Any]) -> str:
    cores = host["cpu_quota_cores"]
    return "" if cores is None else f" of {cores:.3g} cores"


def _limit(host: Mapping[str, Any]) -> str:
    limit_bytes = host["memory_limit_bytes"]
    return "" if limit_bytes is None else f" ({limit_words(format_bytes(limit_bytes))})"


def _applies(limit: Mapping[str, Any], filesystem: Mapping[str, Any] | None) -> bool:
    """Whether the device that is limited may hold the blocks; so may all where it is not seen."""
    if filesystem is None or filesystem["is_network"]:
        return False
    numbers = {link["number"] for link in filesystem["chain"]}
    return filesystem["unseen"] is not None or limit["device"] in numbers


def _io_limit(limit: Mapping[str, Any]) -> str:
    """``8:0: 10 MiB/s read, 500 writes/s``."""
    rates = [
        *(f"{format_bytes(limit[f'{kind}_bytes_per_s'])}/s {kind}" for kind in ("read", "write")
          if limit[f"{kind}_bytes_per_s"] is not None),
        *(f"{limit[f'{kind}_per_s']} {kind}/s" for kind in ("reads", "writes")
          if limit[f"{kind}_per_s"] is not None),
    ]  # fmt: skip
    return f"{limit['device']}: {', '.join(rates)}"


def whether_calls_were_wrapped(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """What stood between ranks and the kernel."""
    found = [(rank, told) for rank in data["ranks"] if (told := offence(_of(rank).preloads))]
    if found:
        rank, told = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        yield Verdict.of(
            "PRELOADED",
            f"I/O or clocks of rank {rank['rank']} on host {rank['host']}{more} went through"
            f" {told}: this measures that as well; run without it",
        )


def _of(rank: Mapping[str, Any]) -> Surroundings:
    return Surroundings.from_json(rank["surroundings"])


def whether_clocks_agree(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """The span of the run by the ranks' clocks, the kernel's, and the controller's."""
    found = [*_kernel_disagrees(data), *_controller_disagrees(data["clock"]), *_drifted(data)]
    if found:
        yield Verdict.of(
            "CLOCK",
            f"{found[0]}: every time and rate here is off by as much; look for what changes the"
            " clocks (a preloaded library, a virtual machine's time source)",
        )


def _is_off(span_s: float, by_s: float) -> bool:
    return by_s > max(_CLOCK_S, _CLOCK_SHARE * abs(span_s))


def _kernel_disagrees(data: Mapping[str, Any]) -> Iterator[str]:
    for rank in data["ranks"]:
        around = _of(rank)
        span_s, raw_s = around.span_s, around.raw_span_s
        if raw_s is not None and _is_off(span_s, abs(raw_s - span_s)):
            yield (
                f"rank {rank['rank']} on host {rank['host']} measured {span_s:.2f} s where the"
                f" kernel's raw clock counted {raw_s:.2f} s"
            )


def _controller_disagrees(clock: Mapping[str, Any]) -> Iterator[str]:
    span_s, least_s, most_s = (
        clock[name] for name in ("coordinator_s", "controller_least_s", "controller_most_s")
    )
    if least_s is None or most_s is None:
        return
    if _is_off(span_s, max(least_s - span_s, span_s - most_s)):
        yield (
            f"by the ranks' clocks ramp, window and drain took {span_s:.2f} s, by the"
            f" controller's {least_s:.2f} to {most_s:.2f} s"
        )


def _drifted(data: Mapping[str, Any]) -> Iterator[str]:
    clock = data["clock"]
    if _is_off(clock["coordinator_s"], abs(clock["drift_s"])):
        rank = data["ranks"][clock["drift_rank"]]
        yield (
            f"the clock of host {rank['host']} (rank {rank['rank']}) went {clock['drift_s']:+.2f} s"
            f" from the coordinator's within {clock['coordinator_s']:.2f} s"
        )
