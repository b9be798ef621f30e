"""Baseline against now: the gates, their direction, their noise, their table.

Pure; imports neither pytest nor MPI. Controller side.

How a ``--kv-fail`` gate decides. The *change* is that of the medians over trials,
positive when worse. The *noise* is half the width of Welch's 95 % confidence interval
for the difference of the two means; both are ratios of the baseline's median.

==============  =============================================  ==================
change          the interval of the difference                 verdict
==============  =============================================  ==================
above limit     is wholly on the bad side of zero              worse
above limit     reaches zero                                   inconclusive
up to limit     ends below the limit, or noise is up to limit  ok
up to limit     anything else                                  inconclusive
any             a side has fewer than 2 trials                 inconclusive
none            the sides are not of one kind (``evidence``)   incomparable
==============  =============================================  ==================

Without a gate the same interval says what changed: ``worse`` or ``better`` where it is
wholly on that side of zero, else ``noise``; such a comparison closes nothing.

Why the interval of the difference and not two intervals that don't overlap: overlap
is conservative, it misses differences that the same data prove (N. Schenker and
J. F. Gentleman, The American Statistician 55 (2001) 182-186,
doi:10.1198/000313001317097960). Why a small change may still be inconclusive: where
the noise exceeds the limit, a regression as large as the limit would have come out as
noise too, so "ok" would say nothing. More trials or a wider limit make it say something.
"""

from __future__ import annotations

import math
import operator
import re
import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.evidence import UNTOLD, Evidence, incomparable
from pytest_kvcache.summary import MetricSeries, difference_ci95

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.baseline import Found
    from pytest_kvcache.summary import Better

Operator = Literal["<", "<=", ">", ">="]
Standing = Literal["better", "worse", "noise", "unknown", "incomparable", "missing"]
Status = Literal["ok", "worse", "inconclusive", "incomparable", "missing"]

_METRIC = r"(?P<metric>[A-Za-z][\w.]*)"
_NUMBER = r"(?P<number>[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?)"
_FAIL: Final = re.compile(rf"{_METRIC}\s*:\s*{_NUMBER}\s*%", re.ASCII)
_SLO: Final = re.compile(rf"{_METRIC}\s*(?P<op><=|>=|<|>)\s*{_NUMBER}", re.ASCII)
_COMPARE: Final[Mapping[str, Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NOT_IN_RUN: Final = "this run has no such entry: compare runs that both have it"
_WIDTH: Final = 80
_COLUMNS: Final = {  # heading: width; with single spaces between they make 80
    "metric": 21,
    "baseline": 9,
    "now": 9,
    "change": 13,
    "limit": 11,
    "verdict": 12,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRule:
    """``--kv-fail``: the metric may get worse than the baseline by so much, not more."""

    metric: str
    limit_ratio: float
    """Largest allowed worsening as a ratio of the baseline, above 0: 0.1 is 10 %."""

    def __post_init__(self) -> None:
        if not 0 < self.limit_ratio < math.inf:
            raise OptionError(
                f"--kv-fail for {self.metric} has limit {self.limit_ratio * 100:g}%; "
                "it must be above 0%, e.g. 10%"
            )

    def __str__(self) -> str:
        return f"{self.metric}:{self.limit_ratio * 100:.12g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class SloRule:
    """``--kv-slo``: what the metric's median over trials must satisfy, in its own unit."""

    metric: str
    op: Operator
    value: float

    def __post_init__(self) -> None:
        if self.op not in _COMPARE or not math.isfinite(self.value):
            raise OptionError(
                f"--kv-slo for {self.metric} is {self.op}{self.value!r}; "
                "it must be <, <=, > or >= and a finite number, e.g. <20"
            )

    def __str__(self) -> str:
        return f"{self.metric}{self.op}{self.value!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one rule says about one metric of one case."""

    rule: FailRule | SloRule
    case: str
    status: Status
    reason: str
    """Why, in one sentence without its subject; it gives the fix where there is one."""
    baseline: float | None = None
    """The baseline's median; None without one and for an SLO."""
    now: float | None = None
    """This run's median; None when it has none."""
    change_ratio: float | None = None
    """Positive is worse, in the metric's own direction; None without two sides."""
    noise_ratio: float | None = None
    """Half the 95 % interval of the change; None with fewer than 2 trials on a side."""

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


def parse_fail(text: str) -> FailRule:
    """Read ``METRIC:N%`` (``read.p99_ms:2.5%``); OptionError names --kv-fail."""
    match = _FAIL.fullmatch(text.strip())
    ratio = float(match["number"]) / 100 if match else 0.0
    if match is None or not 0 < ratio < math.inf:
        raise OptionError(
            f"--kv-fail is {text!r}; it must be METRIC:N% with N above 0, "
            "e.g. --kv-fail=read.p99_ms:10%"
        )
    return FailRule(metric=match["metric"], limit_ratio=ratio)


def parse_slo(text: str) -> SloRule:
    """Read ``METRIC<VALUE`` (also <=, >, >=); OptionError names --kv-slo."""
    match = _SLO.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match["number"])):
        raise OptionError(
            f"--kv-slo is {text!r}; it must be METRIC, one of < <= > >=, and a number, "
            "e.g. --kv-slo='read.p95_ms<20'"
        )
    op = cast("Operator", match["op"])  # the pattern admits no other
    return SloRule(metric=match["metric"], op=op, value=float(match["number"]))


def check_rule(rule: FailRule, better: Better) -> None:
    """Raise OptionError for a limit the metric can't exceed; callable before the run.

    What is better when higher falls by 100 % at most, so such a gate would never close.
    """
    if better == "higher" and rule.limit_ratio >= 1:
        raise OptionError(
            f"--kv-fail is {rule}; {rule.metric} is better when higher, so it can get worse "
            f"by 100% at most and the gate would never close: give less, "
            f"e.g. --kv-fail={rule.metric}:10%"
        )


def judge(
    rule: FailRule,
    found: Found,
    now: MetricSeries | None,
    *,
    case: str = "",
    evidence: Evidence = UNTOLD,
) -> Judgement:
    """Apply the table of the module's docstring to the baseline's entry and this run's.

    An absent side is ``missing``, and sides of which one is no storage, or has a verdict
    against it that the other has not, are ``incomparable``; both close the gate. Raises
    OptionError when the two sides have different units or directions, or the limit can't
    be exceeded.
    """
    baseline = found.series
    if baseline is None or now is None:
        return _missing(rule, found, now, case)
    _check_name(rule, baseline)
    _check_name(rule, now)
    _check_sides(baseline, now)
    check_rule(rule, baseline.better)
    if obstacle := incomparable(found.evidence, evidence):
        return Judgement(
            rule=rule,
            case=case,
            status="incomparable",
            reason=obstacle,
            baseline=baseline.median,
            now=now.median,
        )
    change = _worsening(baseline, now)
    interval = _bad_interval(baseline, now)
    if interval is None:
        noise = None
        status, reason = _too_few(baseline, now)
    else:
        noise = _ratio((interval[1] - interval[0]) / 2, baseline.median)
        low, high = (_ratio(bound, baseline.median) for bound in interval)
        status, reason = _verdict(rule.limit_ratio, change, noise, low, high)
    return Judgement(
        rule=rule,
        case=case,
        status=status,
        reason=reason,
        baseline=baseline.median,
        now=now.median,
        change_ratio=change,
        noise_ratio=noise,
    )


def compare(
    metric: str,
    found: Found,
    now: MetricSeries | None,
    *,
    case: str = "",
    evidence: Evidence = UNTOLD,
) -> Comparison:
    """Say how the metric stands, without a limit; the sides must have one unit, as for a gate."""
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
    if obstacle := incomparable(found.evidence, evidence):
        return replace(sides, standing="incomparable", reason=obstacle)
    change = _worsening(before, now)
    return replace(sides, standing=_standing(before, now), reason="", change_ratio=change)


def judge_slo(rule: SloRule, now: MetricSeries | None, *, case: str = "") -> Judgement:
    """Judge the run alone, by the median over its trials: ok, worse or missing."""
    if now is None:
        reason = "this run has no such entry: judge a metric that it measures"
        return Judgement(rule=rule, case=case, status="missing", reason=reason)
    _check_name(rule, now)
    kept = bool(_COMPARE[rule.op](now.median, rule.value))
    reason = (
        f"the median over {_trials(now)} is {now.median:.6g} {now.unit}, "
        f"which {'keeps' if kept else 'breaks'} {rule}"
    )
    status: Status = "ok" if kept else "worse"
    return Judgement(rule=rule, case=case, status=status, reason=reason, now=now.median)


def gate_table(
    judgements: Sequence[Judgement | Comparison],
    *,
    digests_differ: Sequence[str],
    untold: Sequence[str] = (),
) -> str:
    """Return the verdicts as text of at most 80 columns, "" when there is nothing to say.

    One block per case, then why for everything that is not ok, then the cases whose
    plan is not the baseline's, and those of which the baseline does not tell what stands
    behind them.
    """
    lines: list[str] = []
    if judgements:
        lines.append(_row(dict(zip(_COLUMNS, _COLUMNS, strict=True))))
    for case in dict.fromkeys(judgement.case for judgement in judgements):
        lines += textwrap.wrap(case, _WIDTH, break_on_hyphens=False)
        for judgement in judgements:
            if judgement.case == case:
                lines += _rows(judgement)
    for judgement in judgements:
        lines += _why(judgement)
    if digests_differ:
        lines += _paragraph(
            "the plan differs from the baseline's (plan_digest), so these cases compare "
            f"different settings: {', '.join(digests_differ)}"
        )
    if untold:
        lines += _paragraph(
            "the baseline does not tell whether its values are of storage and which verdicts "
            f"they had, record it anew: {', '.join(untold)}"
        )
    return "\n".join(lines)


# -- verdicts --


def _missing(rule: FailRule, found: Found, now: MetricSeries | None, case: str) -> Judgement:
    return Judgement(
        rule=rule,
        case=case,
        status="missing",
        reason=_NOT_IN_RUN if found.series else found.reason,
        baseline=found.series.median if found.series else None,
        now=now.median if now else None,
    )


def _verdict(
    limit: float, change: float, noise: float, low: float, high: float
) -> tuple[Status, str]:
    """Judge ratios: the change, half its interval, and the interval's bounds."""
    told = f"it is {_change(change)} (noise {_percent(noise)}, limit {_limit(limit)})"
    if change > limit * (1 + 1e-9):  # not for the rounding of 1.1 / 1.0
        if low > 0:
            return "worse", f"{told}: the difference is beyond the noise of the trials"
        return "inconclusive", f"{told}: this may be noise; add trials (--kv-trials)"
    if high <= limit or noise <= limit:
        return "ok", told
    return "inconclusive", (
        f"{told}: a worsening by the limit would be lost in this noise; "
        "add trials (--kv-trials) or widen the limit"
    )


def _standing(baseline: MetricSeries, now: MetricSeries) -> Standing:
    interval = _bad_interval(baseline, now)
    if interval is None:
        return "unknown"
    low, high = interval
    if low > 0:
        return "worse"
    return "better" if high < 0 else "noise"


def _too_few(baseline: MetricSeries, now: MetricSeries) -> tuple[Status, str]:
    return "inconclusive", (
        f"the baseline has {_trials(baseline)} and this run {_trials(now)}; "
        "noise needs at least 2 on both sides: raise --kv-trials"
    )


def _worsening(baseline: MetricSeries, now: MetricSeries) -> float:
    """Change of the medians as a ratio of the baseline's, positive is worse."""
    worse_by = now.median - baseline.median
    return _ratio(worse_by if now.better == "lower" else -worse_by, baseline.median)


def _bad_interval(baseline: MetricSeries, now: MetricSeries) -> tuple[float, float] | None:
    """Interval of the difference in the metric's unit, positive is worse."""
    interval = difference_ci95(baseline, now)
    if interval is None or now.better == "lower":
        return interval
    return -interval[1], -interval[0]


def _ratio(difference: float, base: float) -> float:
    """Difference as a ratio of the baseline; any difference from 0 is infinite."""
    if difference == 0:
        return 0.0
    return difference / abs(base) if base else math.copysign(math.inf, difference)


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
    count = len(series.values)
    return f"{count} trial{'s' if count > 1 else ''}"


# -- the table --


def _rows(judgement: Judgement | Comparison) -> Iterator[str]:
    metric, limit, verdict = _texts(judgement)
    if len(metric) > _COLUMNS["metric"]:
        yield from textwrap.wrap(metric, _WIDTH)
        metric = ""
    change = judgement.change_ratio
    cells = {
        "metric": metric,
        "baseline": _figure(judgement.baseline),
        "now": _figure(judgement.now),
        "change": "-" if change is None else _change(change),
        "limit": limit,
        "verdict": verdict,
    }
    yield _row(cells)


def _texts(judgement: Judgement | Comparison) -> tuple[str, str, str]:
    """Return metric, limit and verdict."""
    if isinstance(judgement, Comparison):
        standing = judgement.standing
        return judgement.metric, "-", "—" if standing == "unknown" else standing
    rule, status = judgement.rule, judgement.status
    verdict = status if status == "ok" else status.upper()
    if isinstance(rule, FailRule):
        return rule.metric, _limit(rule.limit_ratio), verdict
    return rule.metric, f"{rule.op}{_figure(rule.value)}", verdict


def _why(judgement: Judgement | Comparison) -> list[str]:
    """Return the reason of what is not ok, or has nothing to be compared with."""
    metric, _, verdict = _texts(judgement)
    if verdict == "ok" or not judgement.reason:
        return []
    where = f"{metric} of {judgement.case}".removesuffix(" of ")
    return _paragraph(f"{where} is {verdict.lower()}: {judgement.reason}")


def _row(cells: Mapping[str, str]) -> str:
    """Text left, figures right."""
    texts = [
        cells[name].ljust(width) if name in ("metric", "verdict") else cells[name].rjust(width)
        for name, width in _COLUMNS.items()
    ]
    return " ".join(texts).rstrip()


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _figure(value: float | None) -> str:
    """At most 9 characters."""
    if value is None:
        return "-"
    if 1000 <= abs(value) < 1e8:  # noqa: PLR2004  # what fits without an exponent
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return text if len(text) <= _COLUMNS["now"] else f"{value:.2g}"


def _change(ratio: float) -> str:
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


def _limit(ratio: float) -> str:
    return f"{ratio * 100:.4g}%"
