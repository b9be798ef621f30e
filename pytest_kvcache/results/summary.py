"""What a case's trials say about one metric: centre, spread, 95 % confidence interval.

One value per trial goes in, so the spread is noise from run to run. Pure arithmetic
on the standard library: imports the error tree and nothing else of the package.

Intervals stay where the metric can be. Student's interval is taken on a scale without
ends, by the delta method (NIST/SEMATECH e-Handbook of Statistical Methods, section
2.5.5.3), and taken back: of what can't be negative the logarithm of the mean, whose
standard error is that of the mean over the mean; of a share (unit ``ratio``) its logit.
Both are centred on the plain mean, which is the figure that is shown. Only values below
zero, which no metric of this package has, leave Student's interval as it is.

A case whose trials go on until something is known is looked at several times, and the
chance of a wrong interval adds up. The numbers of trials after which it is looked at are
fixed beforehand (``stopping``), and each of ``looks`` intervals gets its part of the 5 %
(Bonferroni), so that all of them together hold in 95 % of the cases, wherever it stops.

Sources: Student's interval, same handbook, https://www.itl.nist.gov/div898/handbook,
section 1.3.5.2; the interval of a difference, B. L. Welch, Biometrika 34 (1947) 28-35,
with Satterthwaite's degrees of freedom (handbook, section 1.3.5.3); the incomplete beta
function, W. J. Lentz, Applied Optics 15 (1976) 668-671, and Abramowitz and Stegun,
Handbook of Mathematical Functions, 26.5.8.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from pytest_kvcache.errors import ResultError

if TYPE_CHECKING:
    from pytest_kvcache.measure.metrics import Better

MOST_TRIALS: Final = 999
_ALPHA: Final = 0.05  # what lies outside of a 95 % interval
_PRECISE: Final = 1e-13  # relative; what the incomplete beta function is exact to
_LARGEST: Final = 1e150  # its square is still a float
_FIELDS: Final = ("median", "mean", "cv", "ci95", "looks", "unit", "better", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSeries:
    """One metric of one case, one finite value per trial, at least one."""

    name: str
    """The metric, such as ``read.p95_ms``."""
    unit: str
    """Unit of the values, such as ``ms``."""
    better: Better
    """Whether lower or higher values are better."""
    values: tuple[float, ...]
    """One value per trial, in the order of the trials."""
    looks: int = 1
    """After how many numbers of trials it might have been decided that they are enough."""

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ResultError(f"metric name is {self.name!r}; it must be a non-empty text")
        if not isinstance(self.unit, str):
            raise ResultError(f"{self.name} has unit {self.unit!r}; it must be a text")
        if self.better not in ("lower", "higher"):
            raise ResultError(
                f"{self.name} has better {self.better!r}; it must be 'lower' or 'higher'"
            )
        if not isinstance(self.values, tuple) or not self.values:
            raise ResultError(f"{self.name} has values {self.values!r}; it must have one per trial")
        for value in self.values:
            if not _is_number(value):
                raise ResultError(
                    f"{self.name} has a value {value!r}; it must be a finite number: "
                    "leave a failed trial out"
                )
        if type(self.looks) is not int or self.looks < 1:
            raise ResultError(f"{self.name} has looks {self.looks!r}; it must be at least 1")

    @property
    def median(self) -> float:
        """Median over trials: the figure that reports and gates use."""
        return float(statistics.median(self.values))

    @property
    def mean(self) -> float:
        """Mean over trials (exact sum, rounded once)."""
        return float(statistics.mean(self.values))

    @property
    def cv(self) -> float | None:
        """Coefficient of variation, sample standard deviation / |mean|.

        None with one trial, which has no spread, and with a mean of 0.
        """
        if len(self.values) == 1 or self.mean == 0:
            return None
        return float(statistics.stdev(self.values)) / abs(self.mean)

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean, low then high; where values can be.

        With several looks it is wider, and holds wherever the trials ended. None with one
        trial.
        """
        if len(self.values) == 1:
            return None
        mean, error = self.mean, self.standard_error
        if not error:
            return mean, mean
        half = t_critical(_ALPHA / self.looks, len(self.values) - 1) * error
        if self.unit == "ratio" and max(self.values) <= 1 and self.is_positive:
            logit = math.log(mean / (1 - mean))
            half /= mean * (1 - mean)
            return _expit(logit - half), _expit(logit + half)
        if self.is_positive:
            return mean * math.exp(-half / mean), mean * math.exp(half / mean)
        return mean - half, mean + half

    @property
    def is_positive(self) -> bool:
        """Whether no value is below zero, and not all are zero."""
        return min(self.values) >= 0 and self.mean > 0

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; needs 2 trials."""
        return math.sqrt(float(statistics.variance(self.values)) / len(self.values))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the run file's ``summary`` under the metric's name."""
        ci95 = self.ci95
        return {
            "median": self.median,
            "mean": self.mean,
            "cv": self.cv,
            "ci95": None if ci95 is None else list(ci95),
            "looks": self.looks,
            "unit": self.unit,
            "better": self.better,
            "values": list(self.values),
        }

    @classmethod
    def from_json(cls, name: str, data: object) -> MetricSeries:
        """Rebuild the series from ``to_json``'s dict.

        Raises ResultError when something is missing or of the wrong type, and when the
        stated median, mean, cv or ci95 is not that of the values.
        """
        if not isinstance(data, Mapping) or not set(_FIELDS) <= set(data):
            raise ResultError(
                f"summary of {name} is {data!r}; it must be an object with {', '.join(_FIELDS)}"
            )
        values = data["values"]
        if not isinstance(values, list):
            raise ResultError(f"{name} has values {values!r}; they must be a list of numbers")
        better = cast("Better", data["better"])  # __post_init__ checks it
        series = cls(
            name=name,
            unit=data["unit"],
            better=better,
            values=tuple(values),
            looks=data["looks"],
        )
        slack = 1e-9 * max(map(abs, series.values))
        for field, value in series.to_json().items():
            if not _agrees(data[field], value, slack):
                raise ResultError(
                    f"{name} states {field} {data[field]!r}, but its values give {value!r}; "
                    "the file was altered: use an intact one"
                )
        return series


def change_ci95(baseline: MetricSeries, now: MetricSeries) -> tuple[float, float] | None:
    """95 % confidence interval of (mean of now / mean of baseline - 1), low then high.

    Welch's: the two sides may differ in trials and in spread. Of what can't be negative it
    is the interval of the logarithm of the means' ratio, so never below -1. Each side may
    have been looked at several times; the one that was more often sets the width. None
    when a side has a single trial.
    """
    if len(baseline.values) == 1 or len(now.values) == 1:
        return None
    if baseline.is_positive and now.is_positive:
        centre = math.log(now.mean / baseline.mean)
        half = _welch_half(baseline, now, baseline.mean, now.mean)
        return math.expm1(centre - half), math.expm1(centre + half)
    half = _welch_half(baseline, now, 1.0, 1.0)
    difference = now.mean - baseline.mean
    base = baseline.mean
    return change_ratio(difference - half, base), change_ratio(difference + half, base)


def change_ratio(difference: float, base: float) -> float:
    """Difference as a ratio of the baseline; any difference from 0 is infinite."""
    if difference == 0:
        return 0.0
    return difference / abs(base) if base else math.copysign(math.inf, difference)


def _welch_half(
    baseline: MetricSeries, now: MetricSeries, baseline_unit: float, now_unit: float
) -> float:
    """Half of Welch's interval, each side's errors in a unit of its own."""
    errors = (baseline.standard_error / baseline_unit, now.standard_error / now_unit)
    total = math.hypot(*errors)
    if total == 0:
        return 0.0
    freedoms = (len(baseline.values) - 1, len(now.values) - 1)
    # Shares of the total, not powers of tiny numbers: those would underflow.
    parts = [(e / total) ** 4 / freedom for e, freedom in zip(errors, freedoms, strict=True)]
    looks = max(baseline.looks, now.looks)
    return t_critical(_ALPHA / looks, 1 / sum(parts)) * total


def trials_needed(cv: float, reach: float, *, looks: int = 1) -> int | None:
    """Trials that two sides of this CV need each, for half an interval of at most ``reach``.

    ``reach`` is a difference of logarithms. None: more than ``MOST_TRIALS``.
    """

    def half(count: int) -> float:
        return t_critical(_ALPHA / looks, 2 * count - 2) * cv * math.sqrt(2 / count)

    if half(MOST_TRIALS) > reach:
        return None
    # The halves fall with the count.
    return 2 + bisect_left(range(2, MOST_TRIALS + 1), -reach, key=lambda count: -half(count))


@cache
def t_critical(alpha: float, dof: float) -> float:
    """What ``|t|`` of ``dof`` (at least 1) degrees of freedom exceeds with chance ``alpha``."""
    if not dof >= 1 or not 0 < alpha < 1:
        raise ResultError(
            f"degrees of freedom are {dof} and alpha is {alpha}; they must be at least 1, which"
            " is 2 trials, and between 0 and 1"
        )
    low, high = 0.0, 1.0
    while _outside(high, dof) > alpha:
        low, high = high, 2 * high
    while high - low > _PRECISE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, dof) > alpha else (low, middle)
    return (low + high) / 2


def _outside(t: float, dof: float) -> float:
    """The chance of ``|T| > t``: the regularised incomplete beta function of dof/2 and 1/2."""
    share = dof / (dof + t * t)
    if share == 1:
        return 1.0
    a, b = dof / 2, 0.5
    front = math.exp(
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(share)
        + b * math.log1p(-share)
    )
    if share < (a + 1) / (a + b + 2):
        return front * _beta_fraction(share, a, b) / a
    return 1 - front * _beta_fraction(1 - share, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-15:  # noqa: PLR2004  the precision of a float
            break
    return value


def _expit(logit: float) -> float:
    """The share whose logit it is; no exponential overflows."""
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit > 0 else small / (1 + small)


def _is_number(value: object) -> bool:
    """Tell whether it is a finite number (nan fails the comparison), and no bool."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    )


def _agrees(stated: Any, computed: Any, slack: float) -> bool:
    """Equal, numbers to rounding: another Python may round the last digit otherwise.

    ``slack`` is what a bound of an interval may be off where it comes near 0 and keeps few
    digits.
    """
    if isinstance(computed, list):
        return (
            isinstance(stated, list)
            and len(stated) == len(computed)
            and all(
                _is_number(s) and math.isclose(s, c, rel_tol=1e-9, abs_tol=slack)
                for s, c in zip(stated, computed, strict=True)
            )
        )
    if _is_number(computed):
        return _is_number(stated) and math.isclose(stated, computed, rel_tol=1e-9)
    return bool(stated == computed)
