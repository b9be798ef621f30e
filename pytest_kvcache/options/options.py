"""What the user asked for: the frozen ``Options``, validated one by one and together.

Texts come in, validated values go out; nothing in this module looks at the machine.
Imports neither pytest nor MPI.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pytest_kvcache.errors import OptionError, UnavailableError, did_you_mean
from pytest_kvcache.hosts.hostlist import HostSpec
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.sections import TIER_SECTIONS, tier_sections
from pytest_kvcache.options.closed import CLOSED_SCENARIOS, check_closed
from pytest_kvcache.options.engines import brought_by, check_engine
from pytest_kvcache.options.restart import RESTART_METRICS, check_restart
from pytest_kvcache.options.rules import SloRule
from pytest_kvcache.options.sharing import brought_by_sharing, check_sharing
from pytest_kvcache.options.table import OPTIONS, OptionSpec, Trials, flag_of
from pytest_kvcache.phases import PHASES
from pytest_kvcache.workloads.scenarios import TABLE, WorkloadTable
from pytest_kvcache.workloads.workloadfile import check_used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.backends.calls import Lookup, Publish
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.options.rules import FailRule
    from pytest_kvcache.options.sharing import Sharing
    from pytest_kvcache.phases import RestartBy

__all__ = ["OPTIONS", "OptionSpec", "Options", "Origin", "Trials", "build_options"]

DEFAULT_TRIALS = Trials(3, 3)
PEAK_MODES: Final = ("capacity", "predictive")
"""Ways of --kv-enable-autoscaling that go by throughput, and not by an objective."""
LEAST_RANGE: Final = 8
"""Users that a prediction needs: 1, 2, 4 and 8 are four loads."""
Origin = Literal["default", "scenario", "ini", "command line", "call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything a user can ask for, validated one by one.

    ``backend_option`` may hold secrets, and so may ``texts``: neither is in the repr.
    ``texts`` holds the options that were given, as given, and where; one that is not in
    it carries its default, and a scenario may put its own value in that place.
    Sizes are bytes, durations seconds, 0 bytes of storage capacity means "decide".
    """

    hosts: tuple[HostSpec, ...] = (HostSpec(name="127.0.0.1"),)
    np: tuple[int, ...] | None = None
    npernode: int | None = None
    exec_type: str = "mpi"
    image: str | None = None
    mpi_bin: str = "mpirun"
    oversubscribe: bool = False
    allow_run_as_root: bool = False
    mpi_params: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ("ssh",)
    scenario: tuple[str, ...] = ("mixed",)
    model: tuple[str, ...] = ("llama3.1-8b",)
    kv_dtype: str = "auto"
    num_users: int = 100
    load_steps: tuple[int, ...] | None = None
    duration: float = 60.0
    ramp: float | None = None
    requests: int | None = None
    trials: Trials = DEFAULT_TRIALS
    context_scale: float = 1.0
    gpu_mem_gb: int = 0
    cpu_mem_gb: int = 0
    tier_policy: TierPolicy = "write-through"
    cpu_tier: Literal["memory", "index"] = "memory"
    gpu_backend: Literal["torch", "cupy", "simulated"] | None = None
    storage_capacity_gb: int = 0
    cache_dir: str = "/var/tmp"  # noqa: S108  on disk by convention; every run owns a directory in it
    backend: str = "file"
    backend_option: Mapping[str, str] = field(default_factory=dict, repr=False)
    io: str = "direct"
    sync: str | None = None
    block_tokens: int | None = None
    layout: str = "block"
    store: str = "auto"
    tensor_parallel: int = 1
    queue_depth: int = 16
    io_engine: str = "auto"
    transfer_size: int | str = 4 << 20
    engine: str | None = None
    lookup: Lookup = "memory"
    publish: Publish = "in-place"
    request_depth: int | None = None
    sharing: Sharing = "rank"
    full_queue: str = "wait"
    generation_mode: str = "none"
    performance_profile: str = "throughput"
    phase: str = "both"
    restart_by: RestartBy = "scan"
    drop_caches: bool = False
    trace: str | None = None
    trace_speedup: float = 1.0
    trace_cycles: int = 1
    trace_limit: int | None = None
    trace_time_unit: str | None = None
    trace_ids: str | None = None
    request_rate: float | None = None
    arrival: str | None = None
    precondition: int | None = None
    fill: float | None = None
    prefill_rate: float | None = None
    cost: float | None = None
    power: float | None = None
    reread_factor: int = 0
    workload: WorkloadTable = TABLE
    io_trace: str | None = None
    disable_multi_turn: bool = False
    disable_prefix_caching: bool = False
    enable_rag: bool = False
    rag_num_docs: int | None = None
    enable_autoscaling: bool = False
    interference: bool = False
    autoscaler_mode: str | None = None
    verify: str = "sample"
    data: str | None = None
    seed: int = 42
    results_dir: str = "results"
    closed: bool = False
    deadline: float | None = None
    wait: float = 0.0
    python: str | None = None
    container_engine: str | None = None
    keep: bool = False
    target_ci: float | None = None
    allow_inconclusive: bool = False
    html: str | None = None
    datasize: bool = False
    datasize_json: str | None = None
    datasize_write_gib_per_s: float | None = None
    dry_run: bool = False
    allow_invalid: bool = False
    allow_preload: bool = False
    plugin: tuple[str, ...] = ()
    metrics: tuple[str, ...] = (
        "load.p95_ms",
        "load.p50_ms",
        "read.gib_per_s",
        "write.gib_per_s",
        "requests.per_s",
    )
    compare: str | None = None
    compare_across: frozenset[str] = frozenset()
    fail: tuple[FailRule, ...] = ()
    slo: tuple[SloRule, ...] = ()
    texts: Mapping[str, tuple[str | Sequence[str], Origin]] = field(
        default_factory=dict, repr=False
    )

    @property
    def origins(self) -> dict[str, Origin]:
        """Where each given option came from."""
        return {name: origin for name, (_text, origin) in self.texts.items()}

    def given(self, name: str) -> bool:
        """Whether the user gave this option anywhere."""
        return name in self.texts

    def overrides(self, name: str) -> bool:
        """Whether an option beats a scenario's own value: typed or called, not from an ini.

        An ini serves all scenarios of a checkout; what one of them fixes for itself
        stands until somebody says otherwise for this run.
        """
        return self.origins.get(name) in ("command line", "call")

    def outweighs(self, name: str, other: str) -> bool:
        """Whether an option was given in a place at least as strong as that of another one."""
        origins = self.origins
        return name in origins and (
            _STRENGTH[origins[name]] >= _STRENGTH[origins.get(other, "default")]
        )


def _parse_one(spec: OptionSpec, raw: str | Sequence[str], origin: Origin) -> Any:
    name = spec.ini if origin == "ini" else spec.flag
    value = spec.parse(raw, name)
    if spec.later is not None and not spec.is_available(value):
        shown = raw if isinstance(raw, str) else " ".join(raw)
        raise UnavailableError(name, shown, spec.later)
    return value


def build_options(given: Mapping[str, tuple[str | Sequence[str], Origin]]) -> Options:
    """Validate given texts into ``Options``.

    ``given`` maps an option's name (``num_users``) to its text, for hosts and
    repeatable options the list of texts, and where it came from.
    Raises OptionError (UnavailableError, for one) for the first bad one.
    """
    by_name = {spec.name: spec for spec in OPTIONS}
    values: dict[str, Any] = {}
    for name, (raw, origin) in given.items():
        if name not in by_name:
            raise OptionError(
                f"kvcache.run({name}=…) is no option{did_you_mean(name, by_name)}; names are the"
                " options' of pytest --help without --kv-, with underscores"
            )
        values[name] = _parse_one(by_name[name], raw, origin)
    shared = brought_by_sharing(values.get("sharing"))
    options = Options(**{**shared, **brought_by(values.get("engine")), **values}, texts=dict(given))
    if PHASES[options.phase].restarts and "metrics" not in given:
        options = replace(options, metrics=RESTART_METRICS)
    elif options.enable_autoscaling and "metrics" not in given:
        options = replace(options, metrics=(USERS_METRIC, *options.metrics))
    if options.interference and "metrics" not in given:
        options = replace(options, metrics=(*INTERFERENCE_METRICS, *options.metrics))
    _check_together(options)
    options = replace(options, slo=tuple(dict.fromkeys([*options.slo, *_of_profile(options)])))
    _check_autoscaling(options)
    return options


def _of_profile(options: Options) -> Iterator[SloRule]:
    """The gates of the performance profile: of throughput only where somebody names it."""
    if options.performance_profile == "latency":
        least = options.workload.service.compliance_ratio
        yield SloRule(metric="requests.compliance_ratio", op=">=", value=least)
    elif options.given("performance_profile"):
        for kind in ("read", "write"):
            if PHASES[options.phase].makes(kind):
                yield SloRule(metric=f"{kind}.gib_per_s", op=">", value=0.0)


def objectives_of(options: Options) -> tuple[SloRule, ...]:
    """What the number of users is searched by; none: it is given, or throughput is to peak."""
    if not options.enable_autoscaling or options.autoscaler_mode in PEAK_MODES:
        return ()
    return tuple(rule for rule in options.slo if METRICS[rule.metric].limits_a_load)


def _check_together(options: Options) -> None:
    """The rules that tie several options together."""
    if options.closed:
        check_closed(options)
    gated = options.fail or options.slo
    if options.trials.low != options.trials.high and options.target_ci is None and not gated:
        raise OptionError(
            f"--kv-trials is {options.trials}; a range needs what ends it: --kv-target-ci, such as"
            " 5%, or a gate (--kv-fail, --kv-slo)"
        )
    if options.target_ci is not None and options.trials.low == options.trials.high:
        raise OptionError(
            f"--kv-target-ci needs a range of trials; --kv-trials is {options.trials},"
            " write --kv-trials=3..20"
        )
    _check_gates(options)
    check_restart(options)
    _check_phase(options)
    _check_containers(options)
    _check_trace(options)
    _check_interference(options)
    _check_requests(options)
    _check_dialogues(options)
    _check_tiers(options)
    _check_tier_metrics(options)
    _check_profile(options)
    check_sharing(options)
    check_engine(options)
    _check_full_queue(options)
    _check_needs(options)
    _check_datasize(options)
    if options.overrides("arrival") and options.request_rate is None:
        raise OptionError(
            f"--kv-arrival is {options.arrival}; it belongs to an open loop, so add"
            " --kv-request-rate or leave it out"
        )


def _check_full_queue(options: Options) -> None:
    """Stores are dropped where the storage alone holds what requests store."""
    if options.full_queue != "drop":
        return
    tiers = {"--kv-gpu-mem-gb": options.gpu_mem_gb, "--kv-cpu-mem-gb": options.cpu_mem_gb}
    beside = next((flag for flag, size in tiers.items() if size), None)
    if not PHASES[options.phase].stores:
        beside = f"--kv-phase={options.phase}, which stores nothing"
    elif options.reread_factor:
        beside = "--kv-reread-factor, which reads all that was stored"
    elif options.interference:
        beside = "--kv-interference, whose sides load and store the same"
    if beside is not None:
        raise OptionError(
            f"--kv-full-queue is drop, which can't go with {beside}; leave one of them out"
        )


def _check_datasize(options: Options) -> None:
    """What says how sizes are calculated belongs to that; an ini may hold it for later."""
    for name in ("datasize_json", "datasize_write_gib_per_s"):
        if options.overrides(name) and not options.datasize:
            flag = "--kv-" + name.replace("_", "-")
            raise OptionError(
                f"{flag} is {getattr(options, name)}; it belongs to a calculation of sizes, so add"
                " --kv-datasize or leave it out"
            )
    if options.overrides("dry_run") and options.overrides("datasize"):
        raise OptionError(
            "--kv-dry-run is given together with --kv-datasize, each of which is done instead of a"
            " run; leave one of them out"
        )


def _check_comparable(options: Options) -> None:
    """A change of these tells no change of the storage."""
    for rule in options.fail:
        needs = METRICS[rule.metric].needs
        if needs == "enable_autoscaling":
            raise OptionError(
                f"--kv-fail judges {rule.metric}, whose noise one search does not tell, and which"
                " is a bound where the range ended; give what is good enough with"
                f" --kv-slo='{rule.metric}>=N'"
            )
        if needs in {"cost", "power"}:
            raise OptionError(
                f"--kv-fail judges {rule.metric}, which changes with {flag_of(needs)} as with the"
                " storage; give its limit with --kv-slo, or compare cache.hit_token_ratio and"
                " tokens.per_s"
            )


def _check_gates(options: Options) -> None:
    """A gate needs something that it can judge."""
    _check_comparable(options)
    if options.fail and options.compare is None:
        raise OptionError("--kv-fail needs a baseline; name its file with --kv-compare=FILE")
    if options.overrides("compare_across") and options.compare is None:
        raise OptionError("--kv-compare-across needs a baseline; add --kv-compare=FILE")


def _check_phase(options: Options) -> None:
    """A gate on what can't be there would never open."""
    for flag, rules in (("--kv-fail", options.fail), ("--kv-slo", options.slo)):
        for rule in rules:
            impossible = _never_there(options, rule.metric)
            if impossible is not None:
                raise OptionError(
                    f"{flag} judges {rule.metric}, but {impossible}; leave one of them out"
                )
    if options.overrides("metrics") and options.origins.get("phase") != "call":
        _check_metrics(options)


def _check_metrics(options: Options) -> None:
    """Typed metrics that can't be there would leave nothing but skipped tests."""
    why = [_never_there(options, name) for name in options.metrics]
    if None not in why:
        known = "run.s" if PHASES[options.phase].restarts else "requests.per_s"
        raise OptionError(
            f"--kv-metrics is {','.join(options.metrics)}, but {why[0]}; name a metric that this"
            f" run has ({known}), or leave one of them out"
        )


_OF_PREFIXES = ("cache.hit_ratio", "cache.hit_token_ratio")


def why_impossible(metric: str, phase: str, scenario: str) -> str | None:
    """Why no case of a scenario can have a metric in ``phase``; None: it can."""
    of_prefixes = metric in _OF_PREFIXES or METRICS[metric].tells_of_loads
    if of_prefixes and scenario in CLOSED_SCENARIOS:
        return f"{scenario} stores each context as an object of its own, and hits no prefix"
    return METRICS[metric].impossible(phase)


def _never_there(options: Options, metric: str) -> str | None:
    """Why none of the scenarios can have a metric; None: some can."""
    why = [why_impossible(metric, options.phase, name) for name in scenario_names(options)]
    return None if None in why else why[0]


def impossible_metrics(options: Options) -> list[str]:
    """A line for each reason why metrics can't be there in this run, and will be skipped."""
    found: dict[str, list[str]] = {}
    for scenario in scenario_names(options):
        for name in options.metrics:
            why = why_impossible(name, options.phase, scenario)
            if why is not None and name not in found.setdefault(why, []):
                found[why].append(name)
    return [
        f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} skipped: {why}"
        for why, names in found.items()
    ]


def unused_slots(options: Options) -> str | None:
    """What to type, where hosts have slots that no number of ranks asks for."""
    slots = sum(host.slots or 0 for host in options.hosts)
    if options.np is not None or options.npernode is not None or slots <= len(options.hosts):
        return None
    return (
        f"--kv-hosts gives {slots} slots, of which one per host is used, because neither --kv-np"
        f" nor --kv-npernode says how many ranks to run; --kv-np={slots} fills them"
    )


def _check_containers(options: Options) -> None:
    """An image and an engine belong to containers; an ini may name them for such runs."""
    if options.exec_type == "docker":
        if options.image is None:
            raise OptionError("--kv-exec-type is docker; name the image with --kv-image=NAME")
        return
    for name in ("image", "container_engine"):
        if options.overrides(name):
            flag = "--kv-" + name.replace("_", "-")
            raise OptionError(
                f"{flag} is {getattr(options, name)}; it belongs to containers, so add"
                " --kv-exec-type=docker or leave it out"
            )


def _check_tiers(options: Options) -> None:
    """What a tier is made of belongs to that tier; an ini may name it for other runs."""
    tiers = {"--kv-gpu-mem-gb": options.gpu_mem_gb, "--kv-cpu-mem-gb": options.cpu_mem_gb}
    for name, sizes in (
        ("tier_policy", tuple(tiers)),
        ("cpu_tier", ("--kv-cpu-mem-gb",)),
        ("gpu_backend", ("--kv-gpu-mem-gb",)),
    ):
        if options.overrides(name) and not any(tiers[size] for size in sizes):
            flag = "--kv-" + name.replace("_", "-")
            what = "a memory tier" if len(sizes) > 1 else f"the {sizes[0][5:8]} tier"
            raise OptionError(
                f"{flag} is {getattr(options, name)}; it belongs to {what}, so add"
                f" {' or '.join(sizes)}, or leave it out"
            )


class _AskedTier(NamedTuple):
    name: str
    holds_bytes: bool


def _check_profile(options: Options) -> None:
    """Objectives judge answers that wait for reads."""
    if options.performance_profile == "latency" and not PHASES[options.phase].loads:
        raise OptionError(
            "--kv-performance-profile is latency, which judges answers by the reads that they"
            f" wait for, and --kv-phase={options.phase} makes none; leave one of them out"
        )


_NEEDED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "performance_profile": "requests with objectives; add --kv-performance-profile=latency",
        "prefill_rate": "what one of your GPUs prefills; add --kv-prefill-rate=TOKENS_PER_S",
        "cost": "what the storage costs; add --kv-cost=PER_HOUR",
        "power": "what the storage draws; add --kv-power=WATTS",
        "lookup": "a storage that is asked what it has; add --kv-lookup=all or first-miss, or an"
        " engine that does (--kv-engine)",
        "sharing": "a store that ranks share; add --kv-sharing=run (or host)",
        "interference": "loads with stores and without; add --kv-interference",
        "enable_autoscaling": "a search for users; add --kv-enable-autoscaling and an objective"
        " (--kv-slo)",
    }
)
"""Option that a metric needs → what that brings."""


def _check_needs(options: Options) -> None:
    """A metric is there with what it is of only; a test of its own may bring that."""
    there = {name for name in _NEEDED if getattr(options, name)}
    if options.performance_profile != "latency":
        there.discard("performance_profile")
    if options.lookup == "memory":
        there.discard("lookup")
    if options.sharing == "rank":
        there.discard("sharing")
    asked = [("--kv-metrics", name) for name in options.metrics if options.overrides("metrics")]
    asked += [("--kv-fail", rule.metric) for rule in options.fail]
    asked += [("--kv-slo", rule.metric) for rule in options.slo]
    for flag, name in asked:
        needs = METRICS[name].needs
        if needs is not None and needs not in there:
            raise OptionError(f"{flag} names {name}, which needs {_NEEDED[needs]}, or leave it out")


def _check_tier_metrics(options: Options) -> None:
    """Typed metrics of tiers that are not asked for would be absent when all is over."""
    names = ("gpu_mem_gb", "cpu_mem_gb", "cpu_tier", "tier_policy")
    if not options.overrides("metrics") or "call" in map(options.origins.get, names):
        return
    tiers = [_AskedTier("gpu", holds_bytes=True)] if options.gpu_mem_gb else []
    if options.cpu_mem_gb:
        tiers.append(_AskedTier("cpu", holds_bytes=options.cpu_tier == "memory"))
    there = tier_sections(tiers, options.tier_policy)
    shares = ["storage", *(tier.name for tier in tiers)]
    for name in options.metrics:
        section, *rest = METRICS[name].path
        share = rest[1] if rest[:1] == ["tiers"] else "storage"
        if (section in TIER_SECTIONS and section not in there) or share not in shares:
            shown = f"{' and '.join(shares[1:])}, {options.tier_policy}" if tiers else "none"
            raise OptionError(
                f"--kv-metrics names {name}, which these memory tiers do not have ({shown}); see"
                " --kv-gpu-mem-gb, --kv-cpu-mem-gb, --kv-cpu-tier and --kv-tier-policy, or leave it"
                " out"
            )


INTERFERENCE_METRICS: Final = ("interference.load_p99_ratio", "interference.request_p99_ratio")

# What goes with no pair of launches of the same loads, and why.
_NO_PAIR: Final[Mapping[str, str]] = MappingProxyType(
    {
        "phase": "decides on its own which requests store",
        "trace": "loads what the requests before it stored",
        "enable_autoscaling": "searches for a load, where both launches must have the same",
        "load_steps": "changes the load while it is measured",
        "io_trace": "notes the operations of a case, which are two launches of other operations",
        "reread_factor": "reads what was just stored, which one of the launches does not do",
        "gpu_mem_gb": "puts a tier in front that serves another part of the loads where stores"
        " fill it",
        "cpu_mem_gb": "puts a tier in front that serves another part of the loads where stores"
        " fill it",
        "disable_prefix_caching": "lets no request find what was stored before it",
    }
)


def _check_interference(options: Options) -> None:
    """The loads of both launches must be the same."""
    if not options.interference:
        return
    told = "--kv-interference is given, which launches the same loads with and without stores"
    usual = Options()
    for name, why in _NO_PAIR.items():
        if getattr(options, name) != getattr(usual, name):
            raise OptionError(f"{told}, and {flag_of(name)} {why}; leave one of them out")
    for name in scenario_names(options):
        if name == "trace" or name in CLOSED_SCENARIOS:
            raise OptionError(
                f"{told}, and --kv-scenario is {name}, whose requests load what those before them"
                " stored; name a scenario of dialogues (chat, mixed, agent …)"
            )


USERS_METRIC: Final = "users.per_rank"


def _check_autoscaling(options: Options) -> None:
    """A search changes users who take turns, and goes by an objective."""
    if not options.enable_autoscaling:
        if options.overrides("autoscaler_mode"):
            raise OptionError(
                f"--kv-autoscaler-mode is {options.autoscaler_mode}; it belongs to a search for"
                " users, so add --kv-enable-autoscaling or leave it out"
            )
        return
    told = "--kv-enable-autoscaling is given, which searches for a number of users who take turns"
    if options.autoscaler_mode in PEAK_MODES and not PHASES[options.phase].loads:
        raise OptionError(
            f"--kv-autoscaler-mode is {options.autoscaler_mode}, which goes by requests that wait"
            f" for reads, and --kv-phase={options.phase} makes none; leave one of them out"
        )
    for name in ("load_steps", "request_rate", "requests", "trace", "closed", "io_trace"):
        if options.given(name):
            raise OptionError(
                f"{told}, and {flag_of(name)} has its own load; leave one of them out"
            )
    fixed = [name for name in scenario_names(options) if name in CLOSED_SCENARIOS]
    if fixed:
        raise OptionError(
            f"{told}, and {fixed[0]} has those of the benchmark that it reproduces; name another"
            " --kv-scenario"
        )
    if options.autoscaler_mode == "predictive" and options.num_users < LEAST_RANGE:
        raise OptionError(
            f"--kv-autoscaler-mode is predictive and --kv-num-users is {options.num_users}; a law"
            f" is fitted to four loads, each of twice the users, so give at least {LEAST_RANGE}"
        )
    if not objectives_of(options) and options.autoscaler_mode not in PEAK_MODES:
        raise OptionError(
            f"{told}, and nothing says which load is too much; add an objective of a latency or a"
            " ratio, such as --kv-slo='load.p95_ms<200', or --kv-performance-profile=latency"
        )


def _check_trace(options: Options) -> None:
    names = scenario_names(options)
    if options.trace is not None and "trace" not in names and not _outdone(options, "trace"):
        raise OptionError(
            f"--kv-trace is given but --kv-scenario is {','.join(names)}; use"
            " --kv-scenario=trace or leave one of them out"
        )
    if "trace" in names:
        _check_replay(options)
    if options.trace is None:
        if "trace" in options.scenario:
            raise OptionError("--kv-scenario is 'trace'; name the file with --kv-trace=FILE")
        for spec in OPTIONS:
            if (spec.decides or "").startswith("trace.") and options.given(spec.name):
                raise OptionError(f"{spec.flag} needs a trace; name the file with --kv-trace=FILE")


def _check_requests(options: Options) -> None:
    """A fixed amount of work has no time; what an ini says of that is for other runs."""
    if options.requests is None:
        return
    strength = _STRENGTH[options.origins["requests"]]
    for name in ("duration", "ramp", "request_rate", "load_steps"):
        if options.given(name) and _STRENGTH[options.origins[name]] >= strength:
            flag = "--kv-" + name.replace("_", "-")
            raise OptionError(
                f"--kv-requests is {options.requests} and {flag} is {options.texts[name][0]}; a"
                " fixed amount of work ends when it is done, without a ramp and a schedule, so"
                " leave one of them out"
            )


_OF_DIALOGUES = ("disable_multi_turn", "disable_prefix_caching", "enable_rag", "rag_num_docs")
"""Options that change the users of the synthetic scenarios."""


def _check_dialogues(options: Options) -> None:
    """Refuse what no scenario of this run would heed, where somebody asked for it."""
    table, names = options.workload, scenario_names(options)
    if options.overrides("workload") and not _outdone(options, "workload"):
        latency = options.performance_profile == "latency"
        check_used(table, names, latency=latency, enable_rag=options.enable_rag)
    asked = [n for n in _OF_DIALOGUES if options.overrides(n) and getattr(options, n)]
    asked = [n for n in asked if not _outdone(options, n)]
    if asked and not any(name in table.scenarios for name in names):
        raise OptionError(
            f"{flag_of(asked[0])} changes the users of synthetic scenarios, and --kv-scenario is"
            f" {','.join(names)}; leave it out, or run one of {', '.join(table.scenarios)}"
        )
    mixes = [table.dialogues(name) for name in names if name in table.scenarios]
    profiles = [each for mix in mixes for each in mix.profiles.values()]
    _check_retrieves(options, names)
    if "enable_rag" in asked:
        if all(each.retrieval_ratio for each in profiles):
            raise OptionError(
                f"--kv-enable-rag is given, and all users of the scenario {','.join(names)}"
                " retrieve already; leave it out"
            )
        if not PHASES[options.phase].loads:
            raise OptionError(
                f"--kv-enable-rag reads chunks of documents, and --kv-phase={options.phase} makes"
                " no reads; leave one of them out"
            )
    if "rag_num_docs" in asked and not (
        options.enable_rag or any(each.retrieval_ratio for each in profiles)
    ):
        raise OptionError(
            f"--kv-rag-num-docs is {options.rag_num_docs}, and nobody of the scenario"
            f" {','.join(names)} retrieves; add --kv-enable-rag or leave it out"
        )
    if "disable_prefix_caching" in asked and not PHASES[options.phase].stores:
        raise OptionError(
            f"--kv-disable-prefix-caching lets no request find what was stored before it, and"
            f" --kv-phase={options.phase} loads nothing else; leave one of them out"
        )


def _check_retrieves(options: Options, names: Sequence[str]) -> None:
    """A scenario of which every user retrieves is nothing without reads."""
    if PHASES[options.phase].loads:
        return
    for name in names:
        is_synthetic = name in options.workload.scenarios
        profiles = options.workload.dialogues(name).profiles if is_synthetic else {}
        if profiles and all(each.retrieval_ratio for each in profiles.values()):
            raise OptionError(
                f"--kv-scenario is {name}, which reads chunks of documents, and"
                f" --kv-phase={options.phase} makes no reads; leave one of them out"
            )


def _check_replay(options: Options) -> None:
    """Refuse what a replay would ignore, where somebody asked for it for this very run."""
    if options.overrides("context_scale"):
        raise OptionError(
            f"--kv-context-scale is {options.context_scale:g}; a trace is replayed as it was"
            " recorded, so leave it out"
        )
    for name in ("request_rate", "arrival"):
        if options.overrides(name):
            flag = "--kv-" + name.replace("_", "-")
            raise OptionError(
                f"{flag} is {options.texts[name][0]}; a trace has times of its own, so leave it"
                " out and use --kv-trace-speedup"
            )
    if options.overrides("requests"):
        raise OptionError(
            f"--kv-requests is {options.requests}; a trace ends with its last request, so leave it"
            " out and use --kv-trace-limit"
        )
    if options.overrides("load_steps"):
        raise OptionError(
            f"--kv-load-steps is {options.texts['load_steps'][0]}; a trace is replayed by those who"
            " are in it, so leave it out"
        )
    if options.trace_speedup > 0 and options.overrides("num_users"):
        raise OptionError(
            f"--kv-num-users is {options.num_users}; a trace that is replayed at its recorded"
            " times has its own users, so leave it out, or add --kv-trace-speedup=0"
        )


_STRENGTH: Mapping[Origin, int] = {
    "default": 0, "scenario": 0, "ini": 1, "command line": 2, "call": 3,
}  # fmt: skip


def _outdone(options: Options, name: str) -> bool:
    """Whether the scenario comes from a stronger place than the option ``name``."""
    origins = options.origins
    return _STRENGTH[origins.get("scenario", "default")] > _STRENGTH[origins[name]]


def scenario_names(options: Options) -> tuple[str, ...]:
    """The scenarios to run: a trace alone, or given in a stronger place, selects ``trace``.

    Closed rules select those that they are about.
    """
    origins = options.origins
    if options.trace is not None and (
        _STRENGTH[origins.get("scenario", "default")] < _STRENGTH[origins["trace"]]
    ):
        return ("trace",)
    if options.closed and not options.given("scenario"):
        return CLOSED_SCENARIOS
    return options.scenario


def describe_value(value: object) -> str | list[str]:
    """A Python value of ``kvcache.run()`` as the text that the option's parser takes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return [f"{name}={part}" for name, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [str(part) for part in value]
    return str(value)


def describe_given(options: Options, mask: Callable[[str], str] = str) -> list[str]:
    """The report header: every given option with its origin, and what comes to nothing.

    ``mask`` replaces secrets.
    """
    words = []
    for name, (text, origin) in options.texts.items():
        shown = text if isinstance(text, str) else ",".join(text)
        words.append(f"{name}={mask(shown)} ({origin})")
    texts = ["; ".join(words), *impossible_metrics(options)]
    slots = unused_slots(options)
    return [
        line
        for text in (texts if slots is None else [*texts, slots])
        for line in textwrap.wrap(
            "kvcache: " + text, 79, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip
