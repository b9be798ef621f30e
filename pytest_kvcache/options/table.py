"""The one table of options: name, parser, help, and what comes later.

Every option exists three times for the user (``--kv-np``, ini ``kv_np``, and a keyword
of the ``kvcache`` fixture) and once here. A parser takes a text and the option's display
name, and gives a validated value or raises OptionError. Nothing here looks at the
machine. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvcache.backends.calls import LOOKUPS, PUBLISHES
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.cache.tiers import TIER_POLICIES
from pytest_kvcache.dtypes import KV_DTYPES
from pytest_kvcache.errors import OptionError, UnknownNameError
from pytest_kvcache.hosts.hostlist import HostSpec, parse_hosts, read_hostfile
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.engines import WHOLE_OBJECT, parse_engine
from pytest_kvcache.options.rules import (
    CLOSING,
    FailRule,
    SloRule,
    check_slo,
    parse_fail,
    parse_slo,
)
from pytest_kvcache.options.sharing import SHARINGS
from pytest_kvcache.phases import PHASES, RESTARTS_BY
from pytest_kvcache.units import parse_duration_s, parse_flag, parse_float, parse_gib, parse_int
from pytest_kvcache.workloads.workloadfile import MAX_DOCUMENTS, read_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Kind = Literal["value", "flag", "hosts", "repeat"]
Parser = Any  # Callable[[str, str], T] for values, Callable[[Sequence[str], str], T] else

MAX_USERS = 100_000
MAX_LOAD_STEPS = 16  # each costs a rank half a megabyte of memory, and a run file some 10 kB
MAX_DURATION_S = 86_400.0
MAX_REREADS = 10_000
MAX_REQUESTS = 1_000_000_000
MAX_TRANSFER_BYTES = 4 << 30


def flag_of(name: str) -> str:
    """An option's name on the command line."""
    return "--kv-" + name.replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """One row of the option table.

    ``parse`` takes the text (for ``hosts`` and ``repeat`` the list of texts) and the
    option's display name. ``later`` is the hint for a value that a later version
    brings; ``is_available`` tells which values exist today.

    ``decides`` is the field of the plan that it decides (``trace.`` before one of a replay),
    where that has another name. Unless ``is_verbatim`` is false the plan holds the parsed value
    itself, and must keep the option's rule. Two plans that differ in it measure the same thing
    if ``is_measured`` is false. ``trace_has_own``: a replay brings the value, unless it is typed.
    ``of_session``: one test can't have its own. ``allows``: with it a trial may stand whose
    verdict invalidates it.
    """

    name: str
    parse: Parser
    help: str
    metavar: str | None = None
    kind: Kind = "value"
    distributed: bool = False
    selects: bool = False
    later: str | None = None
    is_available: Callable[[Any], bool] = field(default=lambda _value: False)
    decides: str | None = None
    is_verbatim: bool = True
    is_measured: bool = True
    trace_has_own: bool = False
    of_session: bool = False
    allows: bool = False

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return flag_of(self.name)

    @property
    def takes_list(self) -> bool:
        """Whether one text names several values, divided by commas."""
        return (self.metavar or "").endswith("]") and "[," in (self.metavar or "")

    @property
    def ini(self) -> str:
        """The name in an ini file."""
        return "kv_" + self.name


@dataclass(frozen=True, slots=True)
class Trials:
    """How many launches a case gets: ``low`` at least, ``high`` at most."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


# --- parsers of one text -----------------------------------------------------------------


def _text(text: str, option: str) -> str:
    if not text.strip():
        raise OptionError(f"{option} is empty; give it a value or leave it out")
    return text


def _directory(text: str, option: str) -> str:
    """Absolute: ranks run in another working directory than pytest."""
    return os.path.abspath(_text(text, option))  # noqa: PTH100  no link is resolved


def _count(minimum: int, maximum: int | None = None) -> Parser:
    def parse(text: str, option: str) -> int:
        value = parse_int(text, option=option, minimum=minimum)
        if maximum is not None and value > maximum:
            raise OptionError(f"{option} is {value}; it must be at most {maximum}")
        return value

    return parse


def _transfer_size(text: str, option: str) -> int | str:
    """Bytes, or ``object``. A plain number would be bytes to some and GiB to others."""
    if text.strip() == WHOLE_OBJECT:
        return WHOLE_OBJECT
    try:
        size = None if text.strip().isdecimal() else parse_gib(text, option=option)
    except OptionError:  # its rule is another one
        size = None
    if size is None or size % PAGE_BYTES or not PAGE_BYTES <= size <= MAX_TRANSFER_BYTES:
        raise OptionError(
            f"{option} is {text!r}; it must be a multiple of 4 KiB with its unit, from 4KiB to"
            f" 4GiB, or {WHOLE_OBJECT}"
        )
    return size


def _request_depth(text: str, option: str) -> int | None:
    """Objects of a request; None: all of them."""
    if text.strip() == "all":
        return None
    try:
        return _count(1, 1024)(text, option)  # type: ignore[no-any-return]
    except OptionError as error:
        raise OptionError(f"{error}, or all") from error


def _explicit_size(text: str, option: str) -> int:
    """Bytes; a plain number would be bytes to some and GiB to others."""
    try:
        size = (
            None if text.strip().replace(".", "", 1).isdecimal() else parse_gib(text, option=option)
        )
    except OptionError:  # its rule is another one
        size = None
    if not size:
        raise OptionError(
            f"{option} is {text!r}; it must be a size above 0 with its unit, such as 64GiB"
        )
    return size


def _counts(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise OptionError(
            f"{option} is {text!r}; it must be counts divided by single commas, such as 1,2,4"
        )
    values = tuple(parse_int(part, option=option, minimum=1) for part in parts)
    if len(set(values)) != len(values):
        raise OptionError(f"{option} is {text!r}; every count must be named once, drop the repeats")
    return values


def _load_steps(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or not 1 < len(parts) <= MAX_LOAD_STEPS:
        raise OptionError(
            f"{option} is {text!r}; it must be 2 to {MAX_LOAD_STEPS} numbers of users divided by"
            " single commas, such as 8,16,32"
        )
    return tuple(parse_int(part, option=option, minimum=1) for part in parts)


def _above(low: float, maximum: float | None = None) -> Parser:
    def parse(text: str, option: str) -> float:
        value = parse_float(text, option=option, minimum=low)
        if value == low or (maximum is not None and value > maximum):
            limit = "" if maximum is None else f" and at most {maximum:g}"
            raise OptionError(f"{option} is {text}; it must be above {low:g}{limit}")
        return value

    return parse


def _seconds(*, zero: bool) -> Parser:
    def parse(text: str, option: str) -> float:
        value = parse_duration_s(text, option=option)
        if (value == 0 and not zero) or value > MAX_DURATION_S:
            low = "0" if zero else "above 0"
            raise OptionError(
                f"{option} is {text}; it must be {low} and at most {MAX_DURATION_S:.0f} s"
            )
        return value

    return parse


def _gib(text: str, option: str) -> int:
    return parse_gib(text, option=option)


def _flag(text: str, option: str) -> bool:
    return parse_flag(text, option=option)


def _choice(*known: str) -> Parser:
    def parse(text: str, option: str) -> str:
        if text not in known:
            raise OptionError(f"{option} is {text!r}; it must be one of {', '.join(known)}")
        return text

    return parse


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise OptionError(
            f"{option} is {text!r}; it must be names divided by single commas, each named once"
        )
    return names


def _metrics(text: str, option: str) -> tuple[str, ...]:
    names = _names(text, option)
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS, option=option)
    return names


_TRIALS = re.compile(r"(\d+)(?:\.\.(\d+))?")


def _trials(text: str, option: str) -> Trials:
    match = _TRIALS.fullmatch(text.strip())
    low = int(match[1]) if match else 0
    high = int(match[2]) if match and match[2] else low
    if low < 1 or high < low:
        raise OptionError(f"{option} is {text!r}; it must be a count such as 3, or a range 3..20")
    return Trials(low, high)


def _target_ci(text: str, option: str) -> float:
    percent = parse_float(text.strip().removesuffix("%"), option=option, minimum=0)
    if not 0 < percent < 100:  # noqa: PLR2004  percent
        raise OptionError(f"{option} is {text!r}; it must be a percentage such as 5%")
    return percent / 100


def _fill(text: str, option: str) -> float:
    try:
        percent = parse_float(text.strip().removesuffix("%"), option=option, minimum=0)
    except OptionError:  # its rule is another one
        percent = 0.0
    if not 0 < percent <= 100 or not text.strip().endswith("%"):  # noqa: PLR2004  percent
        raise OptionError(
            f"{option} is {text!r}; it must be a percentage above 0 and at most 100, such as 90%"
        )
    return percent / 100


def _kinds(text: str, option: str) -> frozenset[str]:
    kinds = _names(text, option)
    for kind in kinds:
        if kind not in CLOSING:
            raise OptionError(
                f"{option} has {kind!r}; it must name kinds of {', '.join(sorted(CLOSING))}"
            )
    return frozenset(kinds)


def _shell_words(texts: Sequence[str], option: str) -> tuple[str, ...]:
    try:
        return tuple(word for text in texts for word in shlex.split(text))
    except ValueError as error:
        raise OptionError(f"{option} is {' '.join(texts)!r}; {error}, close the quote") from error


def _shell(text: str, option: str) -> tuple[str, ...]:
    return _shell_words([_text(text, option)], option)


def _hosts(texts: Sequence[str], option: str) -> tuple[HostSpec, ...]:
    return parse_hosts(texts, option=option, read_hostfile=read_hostfile)


def _modules(texts: Sequence[str], option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for text in texts for name in text.split(","))
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise OptionError(f"{option} is {name!r}; it must be an importable module's name")
    return names


def _settings(texts: Sequence[str], option: str) -> Mapping[str, str]:
    """Names and values; no text is shown in a message, for a value may be a secret."""
    found: dict[str, str] = {}
    for number, text in enumerate(texts, 1):
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name or not value:
            lacks = "a value" if equals and name else "a name" if equals else "an ="
            raise OptionError(
                f"{option} lacks {lacks} in text {number} of {len(texts)} (not shown, as it may be"
                " a secret); write each as KEY=VALUE"
            )
        if name in found:
            raise OptionError(f"{option} has {name!r} twice; each key may come once, drop one")
        found[name] = value
    return MappingProxyType(found)


def _fail_rules(texts: Sequence[str], _option: str) -> tuple[FailRule, ...]:
    return tuple(_known_metric(parse_fail(text), "--kv-fail") for text in texts)


def _slo_rules(texts: Sequence[str], _option: str) -> tuple[SloRule, ...]:
    rules = tuple(_known_metric(parse_slo(text), "--kv-slo") for text in texts)
    for rule in rules:
        check_slo(rule, METRICS[rule.metric].better)
    return rules


def _known_metric(rule: Any, option: str) -> Any:
    if rule.metric not in METRICS:
        raise UnknownNameError("metric", rule.metric, METRICS, option=option)
    return rule


# --- the table ---------------------------------------------------------------------------


def _is(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


OPTIONS: tuple[OptionSpec, ...] = (
    # where and how ranks run
    OptionSpec(name="hosts", kind="hosts", metavar="H", parse=_hosts, distributed=True,
               selects=True, help="hosts to run ranks on: names, host:slots, =@file; spaces or"
               " commas; the last one given wins (default: 127.0.0.1)"),
    OptionSpec(name="np", decides="layout", is_verbatim=False, is_measured=False,
               metavar="N[,N]", parse=_counts, distributed=True, selects=True,
               help="ranks that do I/O, in total; a list gives one case each"
               " (default: one rank per host, whatever slots it has)"),
    OptionSpec(name="npernode", metavar="N", parse=_count(1), distributed=True, selects=True,
               help="ranks per host; must agree with --kv-np if both are given"),
    OptionSpec(name="exec_type", of_session=True,
               metavar="{mpi,docker}", parse=_choice("mpi", "docker"),
               distributed=True, selects=True,
               help="how ranks are executed: as processes of the hosts, or in one container per"
               " host (default: mpi)"),
    OptionSpec(name="image", of_session=True,
               metavar="NAME", parse=_text,
               help="container image, which every host must have; with --kv-exec-type=docker"),
    OptionSpec(name="container_engine", of_session=True,
               metavar="{docker,podman}",
               parse=_choice("docker", "podman"),
               help="container engine (default: the first of them that answers)"),
    OptionSpec(name="mpi_bin", of_session=True,
               metavar="NAME", parse=_text, distributed=True,
               help="launcher, a program name or a path; its flavour is detected"
               " (default: mpirun)"),
    OptionSpec(name="mpi_params", decides="cores", is_verbatim=False,
               kind="repeat", metavar="'…'", parse=_shell_words,
               distributed=True, help="passed to the launcher, shell-split, repeatable; what"
               " is set here beats our own settings"),
    OptionSpec(name="oversubscribe", kind="flag", parse=_flag, distributed=True,
               help="allow more ranks than cores"),
    OptionSpec(name="allow_run_as_root", kind="flag", parse=_flag, distributed=True,
               help="as mpirun's"),
    OptionSpec(name="ssh", of_session=True,
               metavar="'CMD'", parse=_shell,
               help="how hosts are reached: 'ssh -F file', a wrapper; keepalives are added"
               " where none are set (default: ssh; none where srun launches)"),
    OptionSpec(name="python", of_session=True,
               metavar="PATH", parse=_text,
               help="interpreter of the ranks (default: this one; in containers"
               " /opt/kvcache/bin/python of the image)"),
    OptionSpec(name="deadline", decides="deadline_s", is_verbatim=False, is_measured=False,
               metavar="S", parse=_seconds(zero=False),
               help="wall limit of one launch (default: from the plan)"),
    OptionSpec(name="wait", of_session=True,
               metavar="DURATION", parse=_seconds(zero=True),
               help="how long to wait, in all, where another benchmark has the host: 10m, 90s"
               " (default: 0, which ends at once)"),
    # what is run
    OptionSpec(name="scenario", is_verbatim=False,
               metavar="NAME[,NAME]", parse=_names, selects=True,
               help="scenarios, one case each (default: mixed)"),
    OptionSpec(name="model", is_verbatim=False,
               metavar="NAME[,NAME]", parse=_names, selects=True,
               help="models, one case each: names, config.json files of Hugging Face models or"
               " directories that hold one, or a TOML file with models of your own"
               " (default: llama3.1-8b)"),
    OptionSpec(name="kv_dtype", is_verbatim=False,
               metavar="{" + ",".join(KV_DTYPES) + "}", parse=_choice(*KV_DTYPES),
               help="type of the stored KV (default: auto, the model's own); states of"
               " linear-attention and state-space layers keep theirs"),
    OptionSpec(name="num_users", decides="users",
               metavar="N", parse=_count(1, MAX_USERS),
               help="users per rank (default: 100)"),
    OptionSpec(name="load_steps", is_verbatim=False, trace_has_own=True,
               metavar="N,N[,N]", parse=_load_steps,
               help="active users per rank in each of so many equally long parts of the"
               " measured window, of which each has figures of its own; not with"
               " --kv-request-rate or a trace (default: all users all the time)"),
    OptionSpec(name="duration", decides="duration_s", trace_has_own=True,
               metavar="S", parse=_seconds(zero=False),
               help="measured window (default: 60; a trace ends with its last request)"),
    OptionSpec(name="ramp", decides="ramp_s", trace_has_own=True,
               metavar="S", parse=_seconds(zero=True),
               help="unmeasured lead-in (default: 10%% of the duration, at most 30;"
               " 0 for a trace)"),
    OptionSpec(name="requests", trace_has_own=True,
               metavar="N", parse=_count(1, MAX_REQUESTS),
               help="a fixed amount of work instead of a duration: N requests per rank, users in"
               " rotation and without thinking, the same in the same order on any storage; how"
               " long they take is run.s; not with --kv-duration, --kv-ramp, --kv-request-rate,"
               " --kv-load-steps or a trace, whose amount is --kv-trace-limit"),
    OptionSpec(name="trials", metavar="N|N..M", parse=_trials,
               help="launches per case; 3..20 goes on until the gates can tell and"
               " --kv-target-ci, if given, is met (default: 3)"),
    OptionSpec(name="target_ci", metavar="P", parse=_target_ci,
               help="half width of the 95%% confidence interval to reach, in percent of the"
               " mean, with --kv-trials=N..M"),
    OptionSpec(name="context_scale", trace_has_own=True,
               metavar="X", parse=_above(0.0, 16.0),
               help="multiplies the token counts of the synthetic scenarios (default: 1)"),
    OptionSpec(name="block_tokens", trace_has_own=True,
               metavar="N", parse=_count(1),
               help="tokens per block (default: 256, or a trace's own)"),
    OptionSpec(name="tensor_parallel", metavar="N", parse=_count(1),
               help="a rank stores one shard of min(N, kv_heads); MLA is replicated"
               " (default: 1)"),
    OptionSpec(name="generation_mode", metavar="{none,fast,realistic}",
               parse=_choice("none", "fast", "realistic"),
               help="simulated token generation: 0, 2 or 30 ms per token (default: none)"),
    OptionSpec(name="performance_profile", decides="service", is_verbatim=False,
               metavar="{latency,throughput}", parse=_choice("latency", "throughput"),
               help="what judges the run. latency: each request has an objective by its class of"
               " service and its bytes, and 95%% of each class must keep it; throughput, if given:"
               " bytes are read and written (default: throughput)"),
    OptionSpec(name="phase", metavar="{" + ",".join(PHASES) + "}",
               parse=_choice(*PHASES),
               help="disaggregated serving: prefill only stores, decode only loads what was"
               " stored before the window; restart makes no requests: how long it takes until an"
               " index over what was stored is usable again, as after a crash (default: both)"),
    OptionSpec(name="restart_by", metavar="{" + ",".join(RESTARTS_BY) + "}",
               parse=_choice(*RESTARTS_BY),
               help="how --kv-phase=restart finds again what was stored. scan: every directory is"
               " read, and each file's name and size; lookups: the storage is asked for each key"
               " by a call of its own (default: scan, or with --kv-engine what the engine does)"),
    OptionSpec(name="drop_caches", kind="flag", parse=_flag,
               help="with --kv-phase=restart, as root: before the clock starts, the host forgets"
               " what it knows of files and directories (sync, then 3 into"
               " /proc/sys/vm/drop_caches), of all its filesystems (default: it is warm, and the"
               " results say so)"),
    OptionSpec(name="trace", is_verbatim=False,
               metavar="FILE", parse=_text, selects=True,
               help="trace to replay, of any format of docs/traces.md, plain or packed; selects"
               " --kv-scenario=trace"),
    OptionSpec(name="trace_speedup", decides="trace.speedup",
               metavar="X",
               parse=lambda text, option: parse_float(text, option=option, minimum=0),
               help="replay X times as fast; 0: as fast as the storage allows, by"
               " --kv-num-users users (default: 1)"),
    OptionSpec(name="trace_cycles", decides="trace.cycles",
               metavar="N", parse=_count(1),
               help="replay the trace N times over (default: 1)"),
    OptionSpec(name="trace_limit", decides="trace.limit",
               metavar="N", parse=_count(1),
               help="replay the first N requests only"),
    OptionSpec(name="trace_time_unit", decides="trace.time_unit", is_verbatim=False,
               metavar="{s,ms,us,ns}", parse=_choice("s", "ms", "us", "ns"),
               help="what the timestamps of a trace with hash_ids are in (default: s in"
               " Qwen-Bailian's, ms as in Mooncake's own; where those look like something else,"
               " it has to be given)"),
    OptionSpec(name="trace_ids", decides="trace.ids", is_verbatim=False,
               metavar="{prefix,content}", parse=_choice("prefix", "content"),
               help="what equal hash_ids of a trace mean: equal prompts up to there, or equal"
               " contents of single blocks, which are then chained (default: content in"
               " Qwen-Bailian's, prefix in others)"),
    OptionSpec(name="request_rate", trace_has_own=True,
               metavar="R", parse=_above(0.0),
               help="open loop: R requests per second, of all ranks together, each of them"
               " issues R/np; users take turns at those times instead of thinking"
               " (default: closed loop)"),
    OptionSpec(name="arrival", trace_has_own=True,
               metavar="{poisson,gamma}", parse=_choice("poisson", "gamma"),
               help="times between those requests: exponential, or in bursts (coefficient of"
               " variation 2), with --kv-request-rate (default: poisson)"),
    OptionSpec(name="precondition", decides="precondition_bytes", is_verbatim=False,
               metavar="SIZE", parse=_explicit_size,
               help="before the cache is filled, each rank overwrites objects in place until it"
               " has written SIZE, with its unit (64GiB); nothing of it is measured (default:"
               " nothing)"),
    OptionSpec(name="fill", decides="fill_blocks", is_verbatim=False,
               metavar="P%", parse=_fill,
               help="before the window, each rank stores blocks that nobody asks for, older than"
               " its users' contexts, until P percent of its capacity are taken: what is stored in"
               " the window then makes others go. Without --kv-storage-capacity-gb the capacity is"
               " the rank's share of the filesystem's free space (default: only the contexts)"),
    OptionSpec(name="reread_factor", metavar="N", parse=_count(0, MAX_REREADS),
               help="every block is read so many times again as soon as it is stored, one reading"
               " after the other, and the answer waits for that; what a scenario reads again by"
               " itself comes on top (default: 0)"),
    OptionSpec(name="prefill_rate", decides="prefill_tokens_per_s",
               metavar="TOKENS_PER_S", parse=_above(0.0),
               help="tokens that one GPU of yours prefills per second: what is not loaded then"
               " takes that long to compute, and results say which loads were sooner than that, and"
               " how many GPUs they save (default: computing takes no time)"),
    OptionSpec(name="cost", decides="cost_per_hour", is_measured=False,
               metavar="PER_HOUR", parse=_above(0.0),
               help="what the storage of all ranks costs in an hour, in your currency, for the cost"
               " of a million hit tokens (default: not known)"),
    OptionSpec(name="power", decides="power_w", is_measured=False,
               metavar="WATTS", parse=_above(0.0),
               help="what the storage of all ranks draws, for the energy of a million hit tokens"
               " (default: not known)"),
    OptionSpec(name="workload", decides="dialogues", is_verbatim=False,
               metavar="FILE", parse=read_workload,
               help="a TOML file that changes the distributions of the synthetic scenarios, or"
               " brings scenarios of its own (docs/scenarios.md)"),
    OptionSpec(name="io_trace", is_verbatim=False,
               metavar="FILE", parse=_text,
               help="write what the storage was asked for and when, an operation a line, packed if"
               " the name ends in .gz: another storage can replay it with --kv-trace"),
    OptionSpec(name="disable_multi_turn", kind="flag", parse=_flag,
               help="conversations of one turn: of the synthetic scenarios, only shared prompts are"
               " read again"),
    OptionSpec(name="disable_prefix_caching", kind="flag", parse=_flag,
               help="no request of the synthetic scenarios finds what another one has stored: no"
               " shared prompts, and no history"),
    OptionSpec(name="enable_rag", kind="flag", parse=_flag,
               help="users of the synthetic scenarios retrieve chunks of documents in a tenth of"
               " their requests; those of rag do so in each"),
    OptionSpec(name="rag_num_docs", metavar="N", parse=_count(1, MAX_DOCUMENTS),
               help="documents of each user that retrieves (default: 10)"),
    OptionSpec(name="enable_autoscaling", kind="flag", parse=_flag, decides="search",
               is_verbatim=False,
               help="search for the right number of users per rank, up to --kv-num-users: the most"
               " that keep every --kv-slo of a latency or a ratio, or as --kv-autoscaler-mode says;"
               " each load that is tried is a launch of its own, and the trials are of the answer"),
    OptionSpec(name="autoscaler_mode", metavar="{qos,capacity,predictive}",
               parse=_choice("qos", "capacity", "predictive"), decides="search_mode",
               is_verbatim=False,
               help="its aim. qos: the most users that keep the objectives; capacity: the fewest"
               " that get 95%% of the most requests per second; predictive: those at the peak of"
               " the Universal Scalability Law, fitted to few loads (default: qos)"),
    OptionSpec(name="interference", kind="flag", parse=_flag, is_verbatim=False,
               help="what stores do to loads: each trial is two launches, in turns first, with the"
               " same loads of stored contexts, one with the stores of the dialogues beside them"
               " and one without; interference.load_p99_ratio is how many times as long the p99 of"
               " loads is with them"),
    # the cache and its storage
    OptionSpec(name="gpu_mem_gb", metavar="X", parse=_gib,
               help="gpu tier per rank, GiB, in front of the others (default: 0 = none)"),
    OptionSpec(name="cpu_mem_gb", metavar="X", parse=_gib,
               help="cpu tier per rank, GiB, in front of the storage (default: 0 = none)"),
    OptionSpec(name="tier_policy", metavar="{write-through,demote}", parse=_choice(*TIER_POLICIES),
               help="how tiers fill. write-through: every tier gets what is stored, and a copy of"
               " what a slower one serves; demote: a block is in one tier, and what one evicts"
               " moves to the next (default: write-through)"),
    OptionSpec(name="cpu_tier", metavar="{memory,index}", parse=_choice("memory", "index"),
               help="whether the cpu tier holds bytes, or only decides which requests reach the"
               " storage behind it, and takes no memory (default: memory)"),
    OptionSpec(name="gpu_backend", metavar="{torch,cupy,simulated}",
               parse=_choice("torch", "cupy", "simulated"),
               help="what copies to and from the gpu tier; simulated: it is host memory, and the"
               " results say so (default: the first of torch, cupy that has a device)"),
    OptionSpec(name="storage_capacity_gb", decides="capacity_blocks", is_verbatim=False,
               metavar="X", parse=_gib,
               help="hard cap on disk per rank, GiB (default: 0 = the need, or 90%% of the"
               " free space divided by the ranks on it)"),
    OptionSpec(name="cache_dir", is_measured=False,
               metavar="DIR", parse=_directory,
               help="where blocks live; every run owns a directory in it"
               " (default: /var/tmp)"),
    OptionSpec(name="backend", metavar="NAME", parse=_text,
               help="file, memory, null, or one from a plugin (default: file)"),
    OptionSpec(name="backend_option", decides="backend_options", is_verbatim=False,
               kind="repeat", metavar="KEY=VALUE", parse=_settings,
               help="a setting of the backend's own, repeatable; its plugin says which there are;"
               " the value of a secret one is neither shown nor stored"),
    OptionSpec(name="io", metavar="{direct,buffered}", parse=_choice("direct", "buffered"),
               help="how files are opened (default: direct, with a visible fallback)"),
    OptionSpec(name="sync", metavar="{none,data}", parse=_choice("none", "data"),
               help="durability of each put (default: none with direct, data with buffered)"),
    OptionSpec(name="layout", decides="object_layout",
               metavar="{block,layer,kv}", parse=_choice("block", "layer", "kv"),
               help="one object per block, or one per layer of a block, or one of its keys and one"
               " of its values (default: block, or the engine's)"),
    OptionSpec(name="store", is_verbatim=False,
               metavar="{auto,file,slab}", parse=_choice("auto", "file", "slab"),
               help="how --kv-backend=file keeps objects: a file each, or in preallocated slabs"
               " (default: auto = slab up to 1 MiB as stored, else file)"),
    OptionSpec(name="queue_depth", metavar="N", parse=_count(1, 1024),
               help="transfers in flight per rank (default: 16)"),
    OptionSpec(name="io_engine", metavar="{auto,io_uring,libaio,threads}",
               parse=_choice("auto", "io_uring", "libaio", "threads"),
               help="what carries transfers out: the kernel, by one of its two interfaces, or a"
               " thread each (default: auto = the first of io_uring, libaio, threads that works"
               " here and is asynchronous where the cache is; plain calls with"
               " --kv-queue-depth=1)"),
    OptionSpec(name="transfer_size", is_verbatim=False,
               metavar="SIZE|object", parse=_transfer_size,
               help="the largest transfer, into which bigger objects are cut: a multiple of 4 KiB"
               " with its unit, or object: one call per object, as many engines make them (default:"
               " 4MiB)"),
    OptionSpec(name="engine", metavar="NAME", parse=parse_engine,
               help=f"store and load as an engine does, call by call: {', '.join(PROFILES)}; each"
               " option that is given wins over what the profile brings (docs/engines.md)"),
    OptionSpec(name="lookup", metavar="{" + ",".join(LOOKUPS) + "}", parse=_choice(*LOOKUPS),
               help="who knows what is stored. memory: an index; first-miss, all: the storage is"
               " asked for the blocks of a prompt, up to the first one that is not there or for"
               " all, before anything is loaded (default: memory, or the engine's)"),
    OptionSpec(name="publish", metavar="{" + ",".join(PUBLISHES) + "}",
               parse=_choice(*PUBLISHES),
               help="how a file per object gets its name: written under it, or under another one"
               " and then renamed or linked (default: in-place, or the engine's)"),
    OptionSpec(name="request_depth", metavar="N|all", parse=_request_depth,
               help="objects of one request that are loaded, or stored, at the same time (default:"
               " all, or the engine's)"),
    OptionSpec(name="full_queue", metavar="{wait,drop}", parse=_choice("wait", "drop"),
               help="when more objects wait to be stored than four for each transfer in flight."
               " wait: users wait for them; drop: what their requests would store is not stored,"
               " and counted (default: wait)"),
    OptionSpec(name="sharing", metavar="{" + ",".join(SHARINGS) + "}", parse=_choice(*SHARINGS),
               help="whose store it is: each rank's own, of the ranks of a host, or of all in the"
               " run, which then find what others have stored (default: rank)"),
    OptionSpec(name="verify", metavar="{off,sample,full}",
               parse=_choice("off", "sample", "full"),
               help="integrity of what is read, off the timed path (default: sample); null stores"
               " nothing to verify"),
    OptionSpec(name="data", metavar="{normal,strict}", parse=_choice("normal", "strict"),
               help="what is written. normal: no two pages of 4 KiB are equal and nothing within a"
               " transfer compresses, but longer windows find its bytes again; strict: no window"
               " does (default: normal; strict on network filesystems, behind which arrays reduce"
               " data); null stores nothing"),
    OptionSpec(name="seed", metavar="N", parse=_count(0),
               help="of every generator (default: 42)"),
    OptionSpec(name="keep", is_measured=False,
               kind="flag", parse=_flag,
               help="leave the last trial's data in the cache directory"),
    # results and gates
    OptionSpec(name="results_dir", of_session=True,
               metavar="DIR", parse=_text,
               help="run files (default: results)"),
    OptionSpec(name="metrics", of_session=True,
               metavar="M[,M]", parse=_metrics,
               help="metrics that become benchmark entries"),
    OptionSpec(name="allow_invalid", allows=True,
               kind="flag", parse=_flag,
               help="report a trial with an invalidating verdict instead of failing it, and judge"
               " an --kv-slo on a run without storage"),
    OptionSpec(name="allow_preload", allows=True,
               kind="flag", parse=_flag,
               help="measure, and report with its verdict, although a preloaded library wraps"
               " I/O or clocks"),
    OptionSpec(name="compare", of_session=True,
               metavar="FILE", parse=_text,
               help="baseline: a run file or a pytest-benchmark JSON"),
    OptionSpec(name="compare_across", of_session=True,
               metavar="KIND[,KIND]", parse=_kinds,
               help="what may differ from the baseline without closing a --kv-fail: plan,"
               " placement, device, filesystem (default: nothing)"),
    OptionSpec(name="fail", of_session=True,
               kind="repeat", metavar="METRIC:N%", parse=_fail_rules,
               help="gate: fail if the metric got worse than the baseline by more than N"
               " percent, beyond the noise; repeatable"),
    OptionSpec(name="allow_inconclusive", of_session=True,
               kind="flag", parse=_flag,
               help="a gate that can't tell does not fail"),
    OptionSpec(name="slo", of_session=True,
               kind="repeat", metavar="'METRIC<VALUE'", parse=_slo_rules,
               help="gate on this run alone; repeatable"),
    OptionSpec(name="closed", kind="flag", parse=_flag, selects=True, of_session=True,
               is_measured=False, help="the rules of MLPerf Storage for closed submissions: runs"
               " mlperf-1, -2 and -3, and refuses every option that they fix; no submission comes"
               " of it"),
    OptionSpec(name="html", metavar="FILE", parse=_text, later="read the table or the run file",
               help="report as a page"),
    # instead of a run
    OptionSpec(name="datasize", of_session=True,
               kind="flag", parse=_flag,
               help="calculate the sizes, print them and exit"),
    OptionSpec(name="datasize_json", of_session=True,
               metavar="FILE", parse=_text,
               help="write the sizes there as well, as JSON; with --kv-datasize"),
    OptionSpec(name="datasize_write_gib_per_s", of_session=True,
               metavar="X", parse=_above(0.0),
               help="what a rank is taken to write, in GiB/s, for the time to fill its storage;"
               " with --kv-datasize"),
    OptionSpec(name="dry_run", of_session=True,
               kind="flag", parse=_flag,
               help="check, say how long a run takes, what it writes and hits, print the plan (with"
               " -v all of it) and the launcher command, run nothing"),
    OptionSpec(name="plugin", decides="plugins", is_verbatim=False, is_measured=False,
               of_session=True,
               kind="repeat", metavar="MOD", parse=_modules,
               help="plugin module with hooks, loaded here and on the ranks; repeatable"),
)  # fmt: skip
