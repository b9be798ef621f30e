"""What the user asked for: the frozen ``Options``, validated one by one and together.

Texts come in, validated values go out; nothing in this module looks at the machine.
Imports neither pytest nor MPI.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvcache.errors import OptionError, UnavailableError, did_you_mean
from pytest_kvcache.hosts.hostlist import HostSpec
from pytest_kvcache.measure.metrics import METRICS, possible
from pytest_kvcache.options.table import OPTIONS, OptionSpec, Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.options.rules import FailRule, SloRule

__all__ = ["OPTIONS", "OptionSpec", "Options", "Origin", "Trials", "build_options"]

DEFAULT_TRIALS = Trials(3, 3)
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
    num_users: int = 100
    duration: float = 60.0
    ramp: float | None = None
    trials: Trials = DEFAULT_TRIALS
    context_scale: float = 1.0
    gpu_mem_gb: int = 0
    cpu_mem_gb: int = 0
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
    generation_mode: str = "none"
    performance_profile: str = "throughput"
    phase: str = "both"
    trace: str | None = None
    trace_speedup: float = 1.0
    trace_cycles: int = 1
    trace_limit: int | None = None
    trace_time_unit: str | None = None
    trace_ids: str = "prefix"
    request_rate: float | None = None
    arrival: str | None = None
    precondition: str | None = None
    reread_factor: float | None = None
    workload: str | None = None
    io_trace: str | None = None
    gpu_backend: str | None = None
    disable_multi_turn: bool = False
    disable_prefix_caching: bool = False
    enable_rag: bool = False
    rag_num_docs: int | None = None
    enable_autoscaling: bool = False
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
        """Whether it beats a scenario's own value: typed or called, not from an ini.

        An ini serves all scenarios of a checkout; what one of them fixes for itself
        stands until somebody says otherwise for this run.
        """
        return self.origins.get(name) in ("command line", "call")


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
    options = Options(**values, texts=dict(given))
    _check_together(options)
    return options


def _check_together(options: Options) -> None:
    """The rules that tie several options together."""
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
    _check_phase(options)
    _check_containers(options)
    _check_trace(options)
    if options.overrides("arrival") and options.request_rate is None:
        raise OptionError(
            f"--kv-arrival is {options.arrival}; it belongs to an open loop, so add"
            " --kv-request-rate or leave it out"
        )


def _check_gates(options: Options) -> None:
    """A gate needs something that it can judge."""
    if options.fail and options.compare is None:
        raise OptionError("--kv-fail needs a baseline; name its file with --kv-compare=FILE")
    if options.overrides("compare_across") and options.compare is None:
        raise OptionError("--kv-compare-across needs a baseline; add --kv-compare=FILE")


def _check_phase(options: Options) -> None:
    """A gate on what can't be there would never open."""
    for flag, rules in (("--kv-fail", options.fail), ("--kv-slo", options.slo)):
        for rule in rules:
            impossible = METRICS[rule.metric].impossible(options.phase)
            if impossible is not None:
                raise OptionError(
                    f"{flag} judges {rule.metric}, but {impossible}; leave one of them out"
                )
    if options.overrides("metrics") and options.origins.get("phase") != "call":
        _check_metrics(options)


def _check_metrics(options: Options) -> None:
    """Typed metrics that can't be there would leave nothing but skipped tests."""
    if not possible(options.metrics, options.phase):
        why = METRICS[options.metrics[0]].impossible(options.phase)
        raise OptionError(
            f"--kv-metrics is {','.join(options.metrics)}, but {why}; name a metric that this phase"
            " has (requests.per_s), or leave one of them out"
        )


def impossible_metrics(options: Options) -> list[str]:
    """A line for each reason why metrics can't be there in this phase, and will be skipped."""
    found: dict[str, list[str]] = {}
    for name in options.metrics:
        why = METRICS[name].impossible(options.phase)
        if why is not None:
            found.setdefault(why, []).append(name)
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
    """The scenarios to run: a trace alone, or given in a stronger place, selects ``trace``."""
    origins = options.origins
    if options.trace is not None and (
        _STRENGTH[origins.get("scenario", "default")] < _STRENGTH[origins["trace"]]
    ):
        return ("trace",)
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
    told = ["; ".join(words), *impossible_metrics(options)]
    slots = unused_slots(options)
    return [
        line
        for text in (told if slots is None else [*told, slots])
        for line in textwrap.wrap(
            "kvcache: " + text, 79, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )
    ]  # fmt: skip
