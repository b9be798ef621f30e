"""What a gate asks for: the values of ``--kv-fail`` and ``--kv-slo``, parsed and checked. Pure."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.measure.metrics import Better

Operator = Literal["<", "<=", ">", ">="]

CLOSING: Final = frozenset({"plan", "placement", "device", "filesystem"})
"""Kinds of facts whose difference closes a gate unless the user allows it."""

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
_REVERSED: Final[Mapping[Operator, Operator]] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


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
        return f"{self.metric}{self.op}{repr(self.value).removesuffix('.0')}"

    def keeps(self, value: float | None) -> bool:
        """Whether a value satisfies the rule; one that is not there does not."""
        return value is not None and bool(_COMPARE[self.op](value, self.value))


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


def check_slo(rule: SloRule, better: Better) -> None:
    """Raise OptionError for an SLO against the metric's direction; callable before the run.

    A good storage would break it, and a bad one keep it.
    """
    is_ceiling = rule.op in ("<", "<=")
    if is_ceiling != (better == "lower"):
        meant = replace(rule, op=_REVERSED[rule.op])
        bound = "least" if is_ceiling else "most"
        raise OptionError(
            f"--kv-slo is {rule}; {rule.metric} is better when {better}, so a bad storage would"
            f" keep that and a good one break it: give the {bound} that is good enough, e.g."
            f" --kv-slo='{meant}'"
        )
