"""What surrounded the run: the harness, and what else the machine did. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.system.cgroups import limit_words
from pytest_kvcache.system.preloads import offence
from pytest_kvcache.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import HostSurroundings, Trial
    from pytest_kvcache.system.cgroups import IoLimit
    from pytest_kvcache.system.clocks import ClockRecord
    from pytest_kvcache.system.filesystem import FilesystemFacts

# Of the time. A p99 is about the slowest hundredth of the operations: what held ranks up for
# three hundredths of the time can be all of it.
HELD_UP_SHARE = 0.03
_LIMIT_HITS_PER_S = 1.0  # fewer waits for memory than that can't move a percentile
# Half of a lag is late on average: from here on a twentieth of the latency is the harness's.
LATE_SHARE = 0.1
# Two clocks of one span: services slew a clock by 0.05 %, readings are apart by less than this.
_CLOCK_SHARE = 0.01
_CLOCK_S = 0.05


def check_client_bound(trial: Trial) -> Iterator[Verdict]:
    """What the ranks could have done without the storage."""
    harness = trial.harness
    if harness.client_bound:
        tiers_s, whole_s = trial.counters.memory_tiers_s, sum(r.drained_s for r in trial.ranks)
        tiers = (
            ""
            if not tiers_s
            else (
                f"; memory tiers took {tiers_s / whole_s:.0%} of the ranks' time, which"
                " --kv-cpu-tier=index leaves to the storage"
            )
        )
        yield Verdict.of(
            "CLIENT_BOUND",
            f"a rank could make only {harness.headroom:.1f} times as many operations"
            " without the storage; this measures the harness as well, use more ranks (--kv-np) or"
            f" larger blocks (--kv-block-tokens){tiers}",
        )


def check_asynchronous(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """An engine asked for by name may carry transfers out one by one, and call them in flight."""
    found = [rank for rank in trial.ranks if rank.io_engine_asynchronous is False]
    if found and plan.queue_depth > 1:
        first, more = found[0], len(found) - 1
        others = f" (and {format_count(more, 'rank')} more)" if more else ""
        yield Verdict.of(
            "SYNCHRONOUS",
            f"rank {first.rank} on host {first.host}{others} had fewer transfers under way than"
            f" the {plan.queue_depth} that are told ({first.io_engine_reason}); take"
            " --kv-io-engine=auto or threads",
        )


def whether_stamps_were_late(trial: Trial) -> Iterator[Verdict]:
    """How long it took until the loop saw that an operation had ended, beside its latency.

    Not of deletes: those of slabs move no byte, and end where they begin.
    """
    lag = trial.counters
    touched = (
        (name, lag_ms, latency_ms)
        for name in ("read", "write", "demote", "device")
        if (section := getattr(trial, name)) is not None
        for lag_ms, latency_ms in (
            (lag.reap_lag_mean_ms, section.ms.p50), (lag.reap_lag_p99_ms, section.ms.p99),
        )
        if lag_ms is not None and latency_ms is not None and latency_ms > 0
    )  # fmt: skip
    name, lag_ms, latency_ms = max(touched, key=lambda of: of[1] / of[2], default=("", 0.0, 1.0))
    if lag_ms > LATE_SHARE * latency_ms:
        yield Verdict.of(
            "LATE_STAMPS",
            f"ends of operations were looked for {lag_ms:.3g} ms apart, and {name} is said to"
            f" take {latency_ms:.3g} ms: that can be too long by {lag_ms / latency_ms:.0%}; use"
            " fewer operations in flight per rank (--kv-queue-depth) and more ranks (--kv-np), or"
            " cores that nothing else uses",
        )


def check_throttled(trial: Trial) -> Iterator[Verdict]:
    """Limits of control groups, and what other guests and processes took."""
    hosts = trial.surroundings
    yield from _throttled(
        hosts,
        "throttled_ratio",
        lambda h: (
            f"was stopped by its CPU quota{_quota(h)} in {h.throttled_periods} of"
            f" {h.cpu_periods} periods, for {h.throttled_ratio:.0%} of the time summed over"
            " cores, and latencies contain that; raise the quota (docker --cpus, limits.cpu of a"
            " pod)"
        ),
    )
    yield from _throttled(
        hosts,
        "steal_ratio",
        lambda h: (
            f"lost its ranks' cores to other guests for {h.steal_ratio:.1%} of the time"
            " (steal), and latencies contain that; use a quieter host, or one with its own cores"
        ),
    )
    yield from _throttled(
        hosts,
        "memory_pressure_ratio",
        lambda h: (
            f"had processes that waited for memory{_limit(h)} for"
            f" {h.memory_pressure_ratio:.1%} of the time; give it more, or end what takes it"
        ),
    )
    yield from _throttled(
        hosts,
        "memory_limit_hits_per_s",
        lambda h: (
            f"reached its memory limit{_limit(h)} {h.memory_limit_hits_per_s:.3g} times"
            " per second, and had to give back what it held; raise the limit, or use --kv-io=direct"
        ),
        least=_LIMIT_HITS_PER_S,
    )
    filesystems = trial.proof.filesystem
    limits = {host.host: [limit for limit in host.io_limits
                          if _applies(limit, filesystems[host.host])]
              for host in hosts}  # fmt: skip
    limited = [host for host in hosts if limits[host.host]]
    if limited:
        shown = "; ".join(map(_io_limit, limits[limited[0].host]))
        yield Verdict.of(
            "THROTTLED",
            f"{_named(limited)} may use the device only as far as its control group allows"
            f" ({shown}): that limit is measured, not the device; lift it (io.max,"
            " blkio.throttle) for a result of the storage",
        )


def _throttled(
    hosts: Sequence[HostSurroundings],
    name: str,
    describe: Callable[[HostSurroundings], str],
    least: float = HELD_UP_SHARE,
) -> Iterator[Verdict]:
    """The host that has most of something, where that is enough to tell."""
    values = [(getattr(host, name), host) for host in hosts]
    found = [(value, host) for value, host in values if value is not None and value >= least]
    found.sort(key=lambda pair: -pair[0])
    if found:
        named = _named([host for _value, host in found])
        yield Verdict.of("THROTTLED", f"{named} {describe(found[0][1])}")


def _named(hosts: Sequence[HostSurroundings]) -> str:
    """``host n1 (and 2 more)``."""
    more = f" (and {len(hosts) - 1} more)" if len(hosts) > 1 else ""
    return f"host {hosts[0].host}{more}"


def _quota(host: HostSurroundings) -> str:
    cores = host.cpu_quota_cores
    return "" if cores is None else f" of {cores:.3g} cores"


def _limit(host: HostSurroundings) -> str:
    limit_bytes = host.memory_limit_bytes
    return "" if limit_bytes is None else f" ({limit_words(format_bytes(limit_bytes))})"


def _applies(limit: IoLimit, filesystem: FilesystemFacts | None) -> bool:
    """Whether the device that is limited may hold the blocks; so may all where it is not seen."""
    if filesystem is None or filesystem.is_network:
        return False
    chain = filesystem.chain
    return chain.unseen is not None or limit.device in {link.number for link in chain.links}


def _io_limit(limit: IoLimit) -> str:
    """``8:0: 10 MiB/s read, 500 writes/s``."""
    bytes_per_s = (("read", limit.read_bytes_per_s), ("write", limit.write_bytes_per_s))
    per_s = (("reads", limit.reads_per_s), ("writes", limit.writes_per_s))
    rates = [
        *(f"{format_bytes(rate)}/s {kind}" for kind, rate in bytes_per_s if rate is not None),
        *(f"{rate} {kind}/s" for kind, rate in per_s if rate is not None),
    ]
    return f"{limit.device}: {', '.join(rates)}"


def check_preloaded(trial: Trial) -> Iterator[Verdict]:
    """What stood between ranks and the kernel."""
    found = [
        (rank, described)
        for rank in trial.ranks
        if (described := offence(rank.surroundings.preloads))
    ]
    if found:
        rank, described = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        yield Verdict.of(
            "PRELOADED",
            f"I/O or clocks of rank {rank.rank} on host {rank.host}{more} went through"
            f" {described}: this measures that as well; run without it",
        )


def check_traced(trial: Trial) -> Iterator[Verdict]:
    """What writing an I/O trace took while the ranks measured."""
    traced = [rank.io_trace for rank in trial.ranks if rank.io_trace is not None]
    if not traced:
        return
    spooled_bytes = sum(each.spooled_bytes for each in traced)
    beside = [each for each in traced if each.on_measured_filesystem]
    where = "to another filesystem than the measured one"
    if beside:
        where = f"to {beside[0].directory}, on the measured filesystem (TMPDIR names another place)"
    yield Verdict.of(
        "TRACED",
        f"for --kv-io-trace the ranks noted {sum(each.operations for each in traced):,} operations"
        f" while they ran, and wrote {format_bytes(spooled_bytes)} {where}: what that cost is in"
        " the results, so compare them with those of traced runs only",
    )


def check_clocks(trial: Trial) -> Iterator[Verdict]:
    """The span of the run by the ranks' clocks, the kernel's, and the controller's."""
    found = [*_kernel_disagrees(trial), *_controller_disagrees(trial.clock), *_drifted(trial)]
    if found:
        yield Verdict.of(
            "CLOCK",
            f"{found[0]}: every time and rate here is off by as much; look for what changes the"
            " clocks (a preloaded library, a virtual machine's time source)",
        )


def _is_off(span_s: float, by_s: float) -> bool:
    return by_s > max(_CLOCK_S, _CLOCK_SHARE * abs(span_s))


def _kernel_disagrees(trial: Trial) -> Iterator[str]:
    for rank in trial.ranks:
        around = rank.surroundings
        span_s, raw_s = around.span_s, around.raw_span_s
        if raw_s is not None and _is_off(span_s, abs(raw_s - span_s)):
            yield (
                f"rank {rank.rank} on host {rank.host} measured {span_s:.2f} s where the"
                f" kernel's raw clock counted {raw_s:.2f} s"
            )


def _controller_disagrees(clock: ClockRecord) -> Iterator[str]:
    span_s = clock.coordinator_s
    least_s, most_s = clock.controller_least_s, clock.controller_most_s
    if least_s is None or most_s is None:
        return
    if _is_off(span_s, max(least_s - span_s, span_s - most_s)):
        yield (
            f"by the ranks' clocks ramp, window and drain took {span_s:.2f} s, by the"
            f" controller's {least_s:.2f} to {most_s:.2f} s"
        )


def _drifted(trial: Trial) -> Iterator[str]:
    clock = trial.clock
    if _is_off(clock.coordinator_s, abs(clock.drift_s)):
        rank = trial.ranks[clock.drift_rank]
        yield (
            f"the clock of host {rank.host} (rank {rank.rank}) went {clock.drift_s:+.2f} s"
            f" from the coordinator's within {clock.coordinator_s:.2f} s"
        )
