"""What each class of service came to, as text. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from pytest_kvcache.options.rules import SloRule
from pytest_kvcache.report.text import row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.options.rules import FailRule
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.results.trial import ServiceFigures

RATIO = "requests.compliance_ratio"
_NAME = 22  # columns


def class_lines(plan: Plan, trials: Sequence[TrialResult]) -> Iterator[str]:
    """A row per class, of medians over the trials; nothing where there are no objectives."""
    if plan.service is None:
        return
    yield ""
    head = _cells("limit at P95", "within", "target", "goodput/s", "judged")
    yield from row("class of service", _NAME, head)
    for name, limits in plan.service.classes.items():
        of_class = _of_class(trials, name)
        cells = _cells(
            f"{limits.p95_ms:g} ms",
            _median([each.p95_ratio for each in of_class], ".2%"),
            f"{plan.service.compliance_ratio:.2%}",
            _median([each.goodput_per_s for each in of_class], ".4g"),
            _median([each.judged for each in of_class], ",.0f"),
        )
        yield from row(name, _NAME, cells)
    per_gib_ms = 1_000 / plan.service.load_gib_per_s
    yield f"  medians; each GiB that a request reads adds {per_gib_ms:g} ms to its limit"


def short_classes(rule: FailRule | SloRule, case: CaseResult) -> str:
    """Which classes break a rule on their least ratio, with their limits; empty: none, or others.

    Of each class the worst trial counts, as the ratio of a trial is that of its worst class.
    """
    service = case.plan.service
    if service is None or rule.metric != RATIO or not isinstance(rule, SloRule):
        return ""
    found = []
    for name, limits in service.classes.items():
        ratios = [each.p95_ratio for each in _of_class(case.counted, name)]
        least = min((ratio for ratio in ratios if ratio is not None), default=None)
        if least is not None and not rule.keeps(least):
            found.append(f"{name} ({least:.2%} within {limits.p95_ms:g} ms)")
    return f"short is, in its worst trial, {', '.join(found)}" if found else ""


def _of_class(trials: Sequence[TrialResult], name: str) -> list[ServiceFigures]:
    measured = [trial.measured for trial in trials if trial.measured is not None]
    return [each for trial in measured for each in trial.service_classes if each.name == name]


def _median(values: Sequence[float | None], style: str) -> str:
    known = [value for value in values if value is not None]
    return format(median(known), style) if known and len(known) == len(values) else "—"


def _cells(limit: str, within: str, target: str, goodput: str, judged: str) -> str:
    return f"{limit:>13}{within:>10}{target:>9}{goodput:>12}{judged:>10}"
