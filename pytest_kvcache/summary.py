"""What a case's trials say about one metric: centre, spread, 95 % confidence interval.

One value per trial goes in, so the spread is noise from run to run. Pure arithmetic
on the standard library: imports the error tree and nothing else of the package.

Sources: Student's interval and its critical values, NIST/SEMATECH e-Handbook of
Statistical Methods, https://www.itl.nist.gov/div898/handbook, sections 1.3.5.2 and
1.3.6.7.2; the interval of a difference, B. L. Welch, Biometrika 34 (1947) 28-35, with
Satterthwaite's degrees of freedom (same handbook, section 1.3.5.3).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from pytest_kvcache.errors import ResultError

Better = Literal["lower", "higher"]
"""The direction in which a metric improves."""

_T_975: Final = (
    # 0.975 quantiles for 1 to 30 degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_LARGEST: Final = 1e150  # its square is still a float
_FIELDS: Final = ("median", "mean", "cv", "ci95", "unit", "better", "values")


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
        """95 % confidence interval of the mean (Student's t), low then high.

        None with one trial.
        """
        if len(self.values) == 1:
            return None
        half = t_975(len(self.values) - 1) * math.sqrt(_squared_error(self))
        return self.mean - half, self.mean + half

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the run file's ``summary`` under the metric's name."""
        ci95 = self.ci95
        return {
            "median": self.median,
            "mean": self.mean,
            "cv": self.cv,
            "ci95": None if ci95 is None else list(ci95),
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
        series = cls(name=name, unit=data["unit"], better=better, values=tuple(values))
        slack = 1e-9 * max(map(abs, series.values))
        for field, value in series.to_json().items():
            if not _agrees(data[field], value, slack):
                raise ResultError(
                    f"{name} states {field} {data[field]!r}, but its values give {value!r}; "
                    "the file was altered: use an intact one"
                )
        return series


def difference_ci95(baseline: MetricSeries, now: MetricSeries) -> tuple[float, float] | None:
    """95 % confidence interval of (mean of now - mean of baseline), Welch's.

    The two sides may differ in trials and in spread. None when a side has a single trial.
    """
    if len(baseline.values) == 1 or len(now.values) == 1:
        return None
    difference = now.mean - baseline.mean
    parts = [(_squared_error(side), len(side.values) - 1) for side in (baseline, now)]
    total = sum(squared for squared, _ in parts)
    if total == 0:
        return difference, difference
    # Shares of the total, not squares of tiny numbers: those would underflow.
    dof = 1 / sum((squared / total) ** 2 / freedom for squared, freedom in parts)
    half = t_975(max(1.0, dof)) * math.sqrt(total)
    return difference - half, difference + half


def t_975(dof: float) -> float:
    """Return the 0.975 quantile of Student's t for ``dof`` (at least 1) degrees of freedom.

    From the table to 30, between its entries by a straight line over 1 / dof, which runs
    above the true curve and so encloses up to 96 % between 1 and 2; beyond 30 the expansion
    around the normal quantile of Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.7.5, exact to 4 digits there.
    """
    if not dof >= 1:
        raise ResultError(f"degrees of freedom are {dof}; they must be at least 1: 2 trials")
    below = math.floor(dof)
    if below < len(_T_975):
        share = (1 / below - 1 / dof) * below * (below + 1)
        return _T_975[below - 1] * (1 - share) + _T_975[below] * share
    if dof == below == len(_T_975):
        return _T_975[-1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / dof + second / dof**2


def _squared_error(series: MetricSeries) -> float:
    """Squared standard error of the mean."""
    return float(statistics.variance(series.values)) / len(series.values)


def _is_number(value: object) -> bool:
    """Tell whether it is a finite number (nan fails the comparison), and no bool."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    )


def _agrees(stated: Any, computed: Any, slack: float) -> bool:
    """Equal, numbers to rounding: another Python may round the last digit otherwise.

    ``slack`` is what a bound of an interval may be off: it is a difference, so near 0 it
    keeps few digits.
    """
    if isinstance(computed, list):
        return (
            isinstance(stated, list)
            and len(stated) == len(computed)
            and all(
                _is_number(s) and abs(s - c) <= slack for s, c in zip(stated, computed, strict=True)
            )
        )
    if _is_number(computed):
        return _is_number(stated) and math.isclose(stated, computed, rel_tol=1e-9)
    return bool(stated == computed)
