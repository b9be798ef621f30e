"""Why a case that ran has no value of a metric. Pure; controller side."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_kvcache.measure.metrics import METRICS, MIN_SAMPLES_BEYOND, samples_for
from pytest_kvcache.measure.sections import OPERATIONS
from pytest_kvcache.options.table import OPTIONS, flag_of
from pytest_kvcache.plan.possible import why_impossible
from pytest_kvcache.results.trial import Section
from pytest_kvcache.results.verdicts.sides import why_no_ratio, why_no_ratio_of_requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.measure.metrics import Metric
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult

_ONLY_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "restart": "only --kv-phase=restart finds again what was stored",
        "lookup": "memory knows what is stored; add --kv-lookup=all or first-miss",
        "visibility": "only hosts that share a store see what others stored; add --kv-sharing=run"
        " and hosts (--kv-hosts)",
        "sharing": "each rank has a store of its own; add --kv-sharing=run (or host)",
        "scheduling_lag": "only an open loop has scheduling_lag; add --kv-request-rate",
        "run": "only a fixed amount of work that was done has it; add --kv-requests, or replay a"
        " trace to its end, without a ramp",
    }
)

_DECIDES: Final = MappingProxyType({spec.name: spec.decides or spec.name for spec in OPTIONS})
"""Option → the field of the plan that it decides."""


def why_absent(result: CaseResult, metric: str) -> str:
    """Why a case that ran lacks a metric."""
    spec = METRICS[metric]
    ruled_out = _ruled_out(result, spec) or _of_own_section(result, spec)
    if ruled_out is not None:
        return ruled_out
    sections = [getattr(trial, spec.section) for trial in result.measured]
    if None in sections and spec.section in _ONLY_OF:
        return _ONLY_OF[spec.section]
    if None in sections or spec.path[:2] == ("cache", "tiers"):
        return (
            f"the plan's tiers have no {metric}; see --kv-cpu-mem-gb, --kv-gpu-mem-gb,"
            " --kv-cpu-tier and --kv-tier-policy"
        )
    few, counts = _samples(metric, sections)
    if few is not None:
        return (
            f"FEW_SAMPLES, p{spec.percentile:g} needs {few} operations per trial (10 beyond it),"
            f" the trials had {', '.join(map(str, counts))}; {_more_samples(result.plan)}"
        )
    timed = [section for section in sections if isinstance(section, Section)]
    if any(section.censored for section in timed):
        shown = ", ".join(
            f"{section.censored} of {section.count + section.censored}" for section in timed
        )
        return (
            f"too much had not ended at the end of the window to tell ({spec.section}: {shown} by"
            " trial); lengthen --kv-duration, or lower --kv-num-users or --kv-request-rate"
        )
    return _not_moved(spec.section, result.plan)


def _ruled_out(result: CaseResult, spec: Metric) -> str | None:
    """Why no value of it would be one, whatever was counted."""
    impossible = why_impossible(spec.name, result.plan)
    if impossible is None and any(t.withholds for t in result.trials) and not spec.of_the_whole:
        return (
            "UNEVEN, ranks were done with their work at different times, and the metric is of what"
            " they did together: take run.* and cache.*, which are of the whole work, or say"
            " --kv-allow-invalid"
        )
    return impossible


def _of_own_section(result: CaseResult, spec: Metric) -> str | None:
    """Why a section that is no measurement of its own has no value; None: it is another one."""
    if spec.section == "users":
        return _not_held(result)
    if spec.of_a_pair:
        return _no_ratio(spec, result)
    return _not_worth(spec, result) if spec.section == "worth" else None


def _no_ratio(spec: Metric, result: CaseResult) -> str:
    """Why launches with stores and without give no ratio."""
    if result.plan.interference is None:
        return "each trial is one launch; --kv-interference makes one without stores beside it"
    pairs = [trial.interference for trial in result.counted if trial.interference is not None]
    whole = spec.name.startswith("interference.request_")
    told = why_no_ratio_of_requests if whole else why_no_ratio
    why = next(filter(None, (told(pair, result.plan) for pair in pairs)), None)
    what = spec.name.removeprefix("interference.").removesuffix("_ratio").replace("_", ".")
    return why or f"a side of a trial has too few samples for its {what}"


def _not_held(result: CaseResult) -> str:
    """Why a search for users has no answer, though its last launches may stand."""
    if result.plan.search_mode is None:
        return "the number of users was given; --kv-enable-autoscaling searches for one"
    verdicts = (verdict for trial in result.counted for verdict in trial.verdicts)
    return next(verdict.text for verdict in verdicts if verdict.code == "UNCONFIRMED")


def _not_worth(spec: Metric, result: CaseResult) -> str:
    """Why nothing tells what loads are worth."""
    if spec.needs is not None and getattr(result.plan, _DECIDES[spec.needs]) is None:
        return f"nobody says what it is made of; add {flag_of(spec.needs)}"
    if spec.name == "worth.dwpd":
        return _not_moved("write", result.plan)
    lengths = [each for trial in result.measured for each in trial.worth.lengths]
    loads, useful = sum(each.loads for each in lengths), sum(each.useful for each in lengths)
    if spec.name != "worth.turning_tokens" or not loads:
        return f"no load was completed in the window of a trial; {_more_samples(result.plan)}"
    shortest, longest = (of(each.tokens for each in lengths) for of in (min, max))
    most = "every length pays" if 2 * useful > loads else "hardly any length pays"
    return (
        "no length parts loads that pay from others, of which a trial must have"
        f" {MIN_SAMPLES_BEYOND} each: {most}, for of {loads:,} loads of {shortest:,} to"
        f" {longest:,} tokens {useful:,} were sooner than recomputing"
    )


def _not_moved(section: str, plan: Plan) -> str:
    """Why no operation of a kind was completed, as far as memory tiers can be the reason."""
    if section == "write" and plan.tiers and plan.tier_policy == "demote":
        return (
            "with --kv-tier-policy=demote new blocks enter memory, and what goes to the storage is"
            " moved there: ask for demote.gib_per_s and demote.p95_ms (--kv-metrics)"
        )
    if section in {"read", "write", "demote"} and plan.tiers:
        flags = " and ".join(tier.flag for tier in plan.tiers)
        return (
            f"no {section} of the storage was completed in the window: memory tiers held what was"
            f" asked for; lower {flags}, or add users (--kv-num-users) whose contexts do not fit"
        )
    if section in OPERATIONS:
        return f"no {section} was completed in the window of a trial; {_more_samples(plan)}"
    return "the trials have no such value"


def _more_samples(plan: Plan) -> str:
    """What gives a case more operations: a replay has those of its trace."""
    if plan.restarts:
        return "store more objects: add users (--kv-num-users), or --kv-fill, or smaller blocks"
    if plan.requests is not None:
        return "raise --kv-requests"
    if plan.trace is None:
        return "lengthen --kv-duration or add users"
    longer = "replay a longer one" if plan.replays_operations else "raise --kv-trace-cycles"
    if plan.trace.limit is not None:
        longer = "raise --kv-trace-limit"
    elif plan.duration_s is not None:
        longer = "leave out --kv-duration"
    if plan.capacity_blocks >= plan.need_blocks:
        return longer
    return (
        f"{longer}, or --kv-storage-capacity-gb for more hits (--kv-datasize tells how many), or"
        " take a smaller --kv-model"
    )


def absent_in_brief(trials: Sequence[TrialResult], metric: str) -> str:
    """Why a metric is absent in few words, for a row of a table."""
    section = METRICS[metric].section
    if METRICS[metric].of_a_pair:
        return "the sides give no ratio"
    if any(trial.withholds for trial in trials) and not METRICS[metric].of_the_whole:
        return "ranks ended apart (UNEVEN)"
    sections = [getattr(t.measured, section) for t in trials if t.measured is not None]
    if None in sections:
        return "none"
    few, counts = _samples(metric, sections)
    if few is not None:
        return f"too few samples: {min(counts)} of {few}"
    timed = [section for section in sections if isinstance(section, Section)]
    return "some had not ended" if any(section.censored for section in timed) else "none"


def _samples(metric: str, sections: Sequence[object]) -> tuple[int | None, Sequence[int]]:
    """How many operations a percentile needs, where a trial had fewer; how many there were."""
    percentile = METRICS[metric].percentile
    counts = [s.count + s.censored for s in sections if isinstance(s, Section)]
    if percentile is None or len(counts) != len(sections):
        return None, counts
    needed = samples_for(percentile)
    return (needed if any(count < needed for count in counts) else None), counts
