"""Baseline against now: what a gate decides, in which direction, and beyond which noise.

Pure; imports neither pytest nor MPI. Controller side.

How a ``--kv-fail`` gate decides. Over the trials of each side are taken the *median* and
the *mean*; each has a *change*, a ratio of the baseline's, positive when worse. The
*interval* is Welch's 95 % confidence interval of the mean's change (``summary``); the
*noise* is the least worsening that its width tells from none. The first row that holds
decides:

=====================================================  ============
what holds                                             verdict
=====================================================  ============
the sides are not of one kind (``provenance``)           incomparable
a side has fewer than 2 trials                         inconclusive
a change is above the limit, and the interval is
wholly on the bad side of zero                         worse
only one side has a verdict that makes figures
uncertain, STALL, BUSY_DEVICE, LATE_REPLAY,
LATE_STAMPS, NOT_STEADY, PAUSED, THROTTLED, UNPROVEN, or
(but for ``run`` and ``cache``) UNEVEN (``provenance``)  inconclusive
a clear improvement                                    ok
both changes are up to the limit, and the interval
ends below the limit or the noise is up to it          ok
anything else                                          inconclusive
=====================================================  ============

Where both sides have such a verdict, they may be alike in that: the verdict stands, and the
table says with what (``note``), as of verdicts under which the figures may be of something
else than the storage (UNPROVEN, and each that is allowed by an option: TMPFS, CACHED_READS,
CLOCK, …). The same goes for an SLO that such a run keeps. But what is ``ok`` on a latency
while the storage stalled or a rank paused in this run (STALL, PAUSED) is ``inconclusive``, by
a gate of either kind and whatever the baseline had: in a closed loop few operations wait,
however long it takes, and a percentile hardly moves, so that a short stall of the baseline
would license long ones. The maximum of loads and requests has the stall in it, as have the
requests of an open loop, and may be judged.

*Median and mean*, because either alone can be looked past: with 12 of 25 trials at twice
the latency the median is unmoved, and a single wild trial of 3 moves the mean alone. What
one of them says against the run needs the interval to become ``worse``; until then it
keeps the gate from being ``ok``.

*A clear improvement* is one that needs no assumption about the noise: every trial is
better than every one of the baseline, and either the gap between the sides is wider than
the spread within each, or so complete a separation had a chance of at most 5 % if nothing
had changed (1 in n over k orders of the trials: from 3 against 3 on).

*Why a small change may be inconclusive*: where the noise exceeds the limit, a regression
as large as the limit would have come out as noise too, so "ok" would say nothing. *Why
the noise may open it although the interval reaches beyond the limit*: a regression of
twice the limit would have been ``worse``; to ask that even one of just the limit be
excluded takes four times the trials. What lies between the limit and its double passes
with a chance between 1/2 and 1/40.

*What that errs*, by simulation (2 to 25 trials, CV 2 to 40 %, limit 10 %): with normal
and lognormal noise two equal sides are ``worse`` in 0 to 4 % of the cases, and a
regression of twice the limit is ``ok`` in 0 to 3 %. Where a fifth of all trials takes
twice as long, a baseline of 3 that happens to have none of them is taken for quiet: then
10 equal trials are ``worse`` in 5 to 12 %. So a baseline wants as many trials as the run.

Without a gate the same interval says what changed: ``worse`` or ``better`` where it is
wholly on that side of zero, else ``noise``; such a comparison closes nothing.

Why the interval of the difference and not two intervals that don't overlap: overlap
is conservative, it misses differences that the same data prove (N. Schenker and
J. F. Gentleman, The American Statistician 55 (2001) 182-186,
doi:10.1198/000313001317097960). How much *sessions* differ no number of trials within
one of each tells (docs/ci.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.rules import CLOSING, check_rule
from pytest_kvcache.results.provenance import (
    UNKNOWN,
    Provenance,
    both_cautions,
    cautions,
    incomparable,
    uncertain,
)
from pytest_kvcache.results.summary import (
    MOST_TRIALS,
    MetricSeries,
    change_ci95,
    change_ratio,
    trials_needed,
)
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.options.rules import FailRule, SloRule


Standing = Literal["better", "worse", "noise", "unknown", "incomparable", "missing"]
Status = Literal["ok", "worse", "inconclusive", "incomparable", "missing"]

_NO_ENTRY: Final = "the baseline has no such entry: compare runs that both have it"
_NOT_IN_RUN: Final = "this run has no such entry: compare runs that both have it"
_OTHER_PLAN: Final = (
    "the plan differs from the baseline's (plan_digest), which does not tell in what: compare runs"
    " of one kind, record the baseline anew, or say that it may differ"
    " (--kv-compare-across=plan)"
)
_HAVE_STALLS_IN_THEM: Final = frozenset({"load.max_ms", "request.max_ms"})
_STANDSTILLS: Final[Mapping[str, str]] = {
    "STALL": "the storage stalled",
    "PAUSED": "a rank was paused",
}
_BY_CHANCE: Final = 0.05  # how often an order of trials may come about if nothing changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a baseline has for a metric of a case, and why where it has nothing."""

    series: MetricSeries | None = None
    reason: str = _NO_ENTRY
    """Used where there is no series."""
    provenance: Provenance = UNKNOWN
    """What stands behind the series."""
    other_plan: bool = False
    """Whether it is of another plan, or can't be shown to be of the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one rule says about one metric of one case."""

    rule: FailRule | SloRule
    case: str
    status: Status
    reason: str
    """Why, in one sentence without its subject; it gives the fix where there is one."""
    unit: str = ""
    """Of baseline and now; empty where neither is known."""
    baseline: float | None = None
    """The baseline's median; None without one and for an SLO."""
    now: float | None = None
    """This run's median; None when it has none."""
    change_ratio: float | None = None
    """Of the medians; positive is worse, in the metric's own direction; None without two sides."""
    mean_change_ratio: float | None = None
    """Likewise of the means."""
    needs_trials: bool = False
    """Whether more trials of this run may change it: the noise is what it can't see through."""
    noise_ratio: float | None = None
    """The least worsening that the trials tell from none; None with fewer than 2 on a side."""
    note: str = ""
    """What a reader must know beside the verdict: what disturbed the run, or both sides."""

    def closes(self, *, allow_inconclusive: bool) -> bool:
        """Whether the run fails for it: always, except for ok and an allowed inconclusive."""
        if self.status == "inconclusive":
            return not allow_inconclusive
        return self.status != "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one metric of one case stands against the baseline, where no gate asks."""

    metric: str
    case: str
    standing: Standing
    """``unknown`` with fewer than 2 trials on a side."""
    reason: str = ""
    """Why there is nothing to compare; empty where there is."""
    baseline: float | None = None
    """The baseline's median; None without one."""
    now: float | None = None
    """This run's median; None when it has none."""
    change_ratio: float | None = None
    """As a judgement's."""
    note: str = ""
    """As a judgement's."""


def judge(
    rule: FailRule,
    found: Found,
    now: MetricSeries | None,
    *,
    case: str = "",
    provenance: Provenance = UNKNOWN,
    across: frozenset[str] = frozenset(),
) -> Judgement:
    """Apply the table of the module's docstring to the baseline's entry and this run's.

    An absent side is ``missing``; that and ``incomparable`` close the gate. ``across`` are
    the kinds of difference that the user allows. Raises OptionError when the two sides
    have different units or directions, or the limit can't be exceeded.
    """
    baseline = found.series
    if baseline is None or now is None:
        return _missing(rule, found, now, case)
    _check_name(rule, baseline)
    _check_name(rule, now)
    _check_sides(baseline, now)
    check_rule(rule, baseline.better)
    judgement = Judgement(
        rule=rule,
        case=case,
        status="incomparable",
        reason="",
        unit=now.unit,
        baseline=baseline.median,
        now=now.median,
    )
    before, provenance = (_bearing_on(rule.metric, p) for p in (found.provenance, provenance))
    obstacle = incomparable(before, provenance, across)
    if obstacle is None and found.other_plan and found.provenance.facts is None:
        obstacle = None if "plan" in across else _OTHER_PLAN
    if obstacle is not None:
        return replace(judgement, reason=obstacle)
    change = _change_of(baseline, now)
    status, reason = _verdict(rule, change, baseline, now)
    doubt = uncertain(before, provenance)
    needs_trials = status == "inconclusive" and len(baseline.values) > 1
    doubt = doubt or _hidden_standstill(rule.metric, provenance)
    if doubt and status == "ok":
        status, reason = "inconclusive", f"{change.describe(rule.limit_ratio)}, but {doubt}"
    return replace(
        judgement,
        status=status,
        reason=reason,
        needs_trials=needs_trials,
        change_ratio=change.median,
        mean_change_ratio=change.mean,
        noise_ratio=change.noise,
        note=both_cautions(before, provenance),
    )


def compare(
    metric: str,
    found: Found,
    now: MetricSeries | None,
    *,
    case: str = "",
    provenance: Provenance = UNKNOWN,
) -> Comparison:
    """Say how the metric stands, without a limit; the sides must have one unit, as for a gate.

    Another device or plan stands in nobody's way here: the differences are reported beside it.
    """
    before = found.series
    sides = Comparison(
        metric=metric,
        case=case,
        standing="missing",
        reason=found.reason if before is None else _NOT_IN_RUN,
        baseline=before.median if before else None,
        now=now.median if now else None,
    )
    if before is None or now is None:
        return sides
    _check_sides(before, now)
    of_before, provenance = (_bearing_on(metric, p) for p in (found.provenance, provenance))
    if obstacle := incomparable(of_before, provenance, CLOSING):
        return replace(sides, standing="incomparable", reason=obstacle)
    change = _change_of(before, now)
    doubt = uncertain(of_before, provenance)
    sides = replace(sides, note=both_cautions(of_before, provenance))
    standing = _standing(change)
    if doubt and standing == "better":
        return replace(sides, standing="noise", reason=doubt, change_ratio=change.median)
    return replace(sides, standing=standing, reason="", change_ratio=change.median)


def judge_slo(
    rule: SloRule,
    now: MetricSeries | None,
    *,
    case: str = "",
    provenance: Provenance = UNKNOWN,
    allow_invalid: bool = False,
) -> Judgement:
    """Judge the run alone, by the median and the mean over its trials.

    ok if both keep the rule, worse if both break it, inconclusive if they disagree, or if a
    latency kept it in a run that had a stall (see the module's docstring).
    Missing without a value, incomparable where nothing was stored on storage, unless
    ``allow_invalid``.
    """
    if now is None:
        reason = "this run has no such entry: judge a metric that it measures"
        return Judgement(rule=rule, case=case, status="missing", reason=reason)
    _check_name(rule, now)
    provenance = _bearing_on(rule.metric, provenance)
    judgement = Judgement(
        rule=rule, case=case, status="incomparable", reason="", unit=now.unit, now=now.median
    )
    if provenance.is_storage is False and not allow_invalid:
        reason = (
            "this run was not measured on storage (NOT_STORAGE), so it says nothing about any: use"
            " --kv-backend=file, or --kv-allow-invalid to judge it all the same"
        )
        return replace(judgement, reason=reason)
    interval = now.ci95 or (-math.inf, math.inf)
    kept = [rule.keeps(value) for value in (now.median, now.mean)]
    sides = {rule.keeps(value) for value in interval}
    judgement = replace(judgement, needs_trials=len(sides) > 1, note=cautions(provenance))
    reason = f"the median over {_trials(now)} is {now.median:.6g} {now.unit}"
    if kept[0] == kept[1]:
        reason += f", which {'keeps' if kept[0] else 'breaks'} {rule}"
        hidden = _hidden_standstill(rule.metric, provenance)
        if kept[0] and hidden:
            reason += f", but {hidden}"
            return replace(judgement, status="inconclusive", reason=reason, needs_trials=False)
        return replace(judgement, status="ok" if kept[0] else "worse", reason=reason)
    one, other = ("keeps", "breaks") if kept[0] else ("breaks", "keeps")
    reason += f", which {one} {rule}, and the mean {now.mean:.6g} {now.unit}, which {other} it"
    reason += ": the trials differ too much, look for the odd one or add trials (--kv-trials)"
    return replace(judgement, status="inconclusive", reason=reason)


def _bearing_on(metric: str, provenance: Provenance) -> Provenance:
    """Without the verdict that says nothing against figures of the whole work."""
    if provenance.verdicts is None or not METRICS[metric].of_the_whole:
        return provenance
    return replace(
        provenance, verdicts=tuple(code for code in provenance.verdicts if code != "UNEVEN")
    )


def _hidden_standstill(metric: str, provenance: Provenance) -> str | None:
    """Why a metric looks better than what users would have met while something stalled.

    Of two launches either may have made their ratio.
    """
    codes = [code for code in _STANDSTILLS if code in (provenance.verdicts or ())]
    if not codes or metric in _HAVE_STALLS_IN_THEM:
        return None
    if METRICS[metric].of_a_pair:
        return (
            f"{_STANDSTILLS[codes[0]]} ({codes[0]}) in a launch with stores or without, which"
            " decides a ratio as much as stores do: repeat the run"
        )
    plan = {} if provenance.facts is None else provenance.facts["plan"]
    is_open = plan.get("request_rate") is not None or plan.get("trace.speedup")
    if (is_open and metric.startswith("request.")) or not METRICS[metric].latency:
        return None
    return (
        f"{_STANDSTILLS[codes[0]]} ({codes[0]}), and few operations had to wait for it:"
        " judge load.max_ms or request.max_ms, or repeat the run"
    )


def _missing(rule: FailRule, found: Found, now: MetricSeries | None, case: str) -> Judgement:
    return Judgement(
        rule=rule,
        case=case,
        status="missing",
        reason=_NOT_IN_RUN if found.series else found.reason,
        unit=next((side.unit for side in (now, found.series) if side), ""),
        baseline=found.series.median if found.series else None,
        now=now.median if now else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What changed from the baseline to now, as ratios; positive is worse."""

    median: float
    mean: float
    low: float | None
    high: float | None
    """The interval of the mean's change; None with fewer than 2 trials on a side."""
    noise: float | None
    """The least worsening that is told from none."""
    is_clear_improvement: bool

    def describe(self, limit: float) -> str:
        """The change's figures in words."""
        noise = "unknown" if self.noise is None else _percent(self.noise)
        return (
            f"it is {change_words(self.median)} (mean {change_words(self.mean)}, noise {noise},"
            f" limit {limit_words(limit)})"
        )


def _change_of(baseline: MetricSeries, now: MetricSeries) -> _Change:
    sign = 1.0 if now.better == "lower" else -1.0
    interval = change_ci95(baseline, now)
    low, high, noise = None, None, None
    if interval is not None:
        low, high = sorted(sign * bound for bound in interval)
        noise = _noise(interval, now)
    return _Change(
        median=change_ratio(sign * (now.median - baseline.median), baseline.median),
        mean=change_ratio(sign * (now.mean - baseline.mean), baseline.mean),
        low=low,
        high=high,
        noise=noise,
        is_clear_improvement=_is_clear_improvement(baseline, now),
    )


def _noise(interval: tuple[float, float], now: MetricSeries) -> float:
    """The worsening whose interval of this width would just touch zero."""
    low, high = interval
    if low <= -1:  # no ratio of positive means
        return (high - low) / 2
    half = (math.log1p(high) - math.log1p(low)) / 2
    return math.expm1(half) if now.better == "lower" else -math.expm1(-half)


def _is_clear_improvement(baseline: MetricSeries, now: MetricSeries) -> bool:
    """Whether every trial is better than every one of the baseline, beyond doubt."""
    counts = len(baseline.values), len(now.values)
    if min(counts) == 1 or not (min(baseline.values) > 0 and min(now.values) > 0):
        return False
    better, worse = (now, baseline) if now.better == "lower" else (baseline, now)
    gap = min(worse.values) / max(better.values)
    spread = max(max(side.values) / min(side.values) for side in (baseline, now))
    orders = math.comb(sum(counts), counts[0])
    looks = max(baseline.looks, now.looks)
    return gap > 1 and (gap > spread or orders * _BY_CHANCE >= looks)


def _verdict(
    rule: FailRule, change: _Change, baseline: MetricSeries, now: MetricSeries
) -> tuple[Status, str]:
    """The rows of the module's table that look at figures."""
    limit = rule.limit_ratio
    if change.low is None or change.high is None or change.noise is None:
        return _too_few(baseline, now)
    described = change.describe(limit)
    # Not for the rounding of 1.1 / 1.0.
    above = [ratio > limit * (1 + 1e-9) for ratio in (change.median, change.mean)]
    if any(above) and change.low > 0:
        return "worse", f"{described}: the difference is beyond the noise of the trials"
    quiet = min(change.high, change.noise) <= limit * (1 + 1e-9)
    if change.is_clear_improvement or (quiet and not any(above)):
        return "ok", described
    if quiet:
        one = "the median" if above[0] else "the mean"
        return "inconclusive", (
            f"{described}: only {one} got worse by more than the limit; look for the odd trial, or"
            " add trials (--kv-trials)"
        )
    why = "this may be noise" if any(above) else "a worsening by the limit would be lost in it"
    return "inconclusive", f"{described}: {why}; {_what_it_takes(limit, baseline, now)}"


def _what_it_takes(limit: float, baseline: MetricSeries, now: MetricSeries) -> str:
    """How many trials the limit needs at this noise."""
    reach = math.log1p(limit) if now.better == "lower" else -math.log1p(-limit)
    cv = _pooled_cv(baseline, now)
    if cv is None:
        return "add trials (--kv-trials) or widen the limit"
    count = trials_needed(cv, reach, looks=max(baseline.looks, now.looks))
    about = f"over {MOST_TRIALS:,}" if count is None else f"about {count}"
    return (
        f"{limit_words(limit)} needs {about} trials on each side at this noise (CV {cv:.0%}): add"
        " trials (--kv-trials) here and in the baseline, or widen the limit"
    )


def _pooled_cv(baseline: MetricSeries, now: MetricSeries) -> float | None:
    """The coefficient of variation that both sides have on average."""
    if baseline.cv is None or now.cv is None:
        return None
    return math.hypot(baseline.cv, now.cv) / math.sqrt(2)


def _standing(change: _Change) -> Standing:
    if change.low is None or change.high is None:
        return "unknown"
    if change.low > 0:
        return "worse"
    return "better" if change.high < 0 or change.is_clear_improvement else "noise"


def _too_few(baseline: MetricSeries, now: MetricSeries) -> tuple[Status, str]:
    return "inconclusive", (
        f"the baseline has {_trials(baseline)} and this run {_trials(now)}; "
        "noise needs at least 2 on both sides: raise --kv-trials"
    )


def _check_name(rule: FailRule | SloRule, series: MetricSeries) -> None:
    if series.name != rule.metric:
        raise ResultError(f"{rule} is applied to {series.name}; it must be {rule.metric}")


def _check_sides(baseline: MetricSeries, now: MetricSeries) -> None:
    if (baseline.unit, baseline.better) != (now.unit, now.better):
        raise OptionError(
            f"--kv-compare has {now.name} in {baseline.unit!r}, {baseline.better} better, "
            f"this run in {now.unit!r}, {now.better} better; they must be the same: "
            "record the baseline with this version"
        )


def _trials(series: MetricSeries) -> str:
    return format_count(len(series.values), "trial")


def change_words(ratio: float) -> str:
    """Name the direction, as a sign would mean two things; at most 13 characters."""
    if ratio == 0:
        return "unchanged"
    return f"{_percent(abs(ratio))} {'worse' if ratio > 0 else 'better'}"


def _percent(ratio: float) -> str:
    """Return a ratio of at least 0 as a percentage of at most 6 characters."""
    percent = ratio * 100
    if percent < 999.95:  # noqa: PLR2004  # what rounds to one digit more
        return f"{percent:.1f}%"
    return f"{percent:.0f}%" if percent < 9999.5 else ">9999%"  # noqa: PLR2004


def limit_words(ratio: float) -> str:
    """The limit of a ``--kv-fail``; at most 11 characters of one that anybody gives."""
    return f"{ratio * 100:.4g}%"
