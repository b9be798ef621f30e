from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.gates.compare import Judgement
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.report.service import class_lines, short_classes
from pytest_kvcache.report.tables import report_run
from pytest_kvcache.results.trial import ServiceFigures
from pytest_kvcache.session import _explained
from pytest_kvcache.workloads.scenarios import TABLE
from tests.canned import case_of, measuring, run_of, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from pytest_kvcache.results.case import CaseResult

PLAN = make_plan()
SERVED = replace(PLAN, service=TABLE.service)
RULE = parse_slo("requests.compliance_ratio>=0.95")


def figures(name: str, p95_ratio: float | None, goodput_per_s: float) -> ServiceFigures:
    return ServiceFigures(
        name=name, judged=1_200, p95_ratio=p95_ratio, p99_ratio=1.0, p999_ratio=1.0,
        p9999_ratio=1.0, target_ratio=0.95, keeps=None, completed_in_window=1_000,
        good_in_window=900, goodput_per_s=goodput_per_s,
    )  # fmt: skip


def case_with(*interactive: float) -> CaseResult:
    """A trial for each share of interactive requests that were in time; all others were."""
    trials = []
    for index, ratio in enumerate(interactive):
        classes = (
            figures("interactive", ratio, 12.5 + index),
            figures("responsive", 0.99, 30.0),
            figures("batch", None, 0.0),
        )
        trials.append(measuring(trial_of(PLAN, index), service_classes=classes))
    return replace(case_of(PLAN, *trials), plan=SERVED)


def test_each_class_has_a_row_with_its_limit_and_what_was_within() -> None:
    head, *rows, note = list(class_lines(SERVED, case_with(0.8, 0.9).trials))[1:]
    assert " ".join(head.split()) == (
        "class of service limit at P95 within target goodput/s judged"
    )
    assert [row.split() for row in rows] == [
        ["interactive", "50", "ms", "85.00%", "95.00%", "13", "1,200"],
        ["responsive", "100", "ms", "99.00%", "95.00%", "30", "1,200"],
        ["batch", "1000", "ms", "—", "95.00%", "0", "1,200"],
    ]
    assert note.endswith("each GiB that a request reads adds 1000 ms to its limit")
    assert all(len(row) < 80 for row in (head, *rows, note))


def test_the_rows_stand_below_the_metrics_and_only_where_there_are_objectives() -> None:
    text = report_run(run_of(case_with(0.8)), ("requests.per_s",))
    assert text.index("requests.per_s") < text.index("class of service")
    assert text.index("class of service") < text.index("last trial")
    assert "class of service" not in report_run(run_of(case_of(PLAN)), ("requests.per_s",))


def test_the_class_that_is_short_is_named_with_its_limit() -> None:
    case = case_with(0.8, 0.9)
    short = "short is, in its worst trial, interactive (80.00% within 50 ms)"
    assert short_classes(RULE, case) == short
    assert short_classes(RULE, case_with(0.97)) == ""
    assert short_classes(parse_slo("requests.goodput_per_s>=100"), case) == ""
    closed = Judgement(rule=RULE, case=case.name, status="worse", reason="it breaks")
    assert _explained(closed, case).reason == f"it breaks; {short}"
    kept = replace(closed, status="ok")
    assert _explained(kept, case) == kept
