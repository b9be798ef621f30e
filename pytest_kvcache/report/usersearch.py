"""The path of a search for users, as text. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_kvcache.plan.peaksearch import PEAK_METRIC
from pytest_kvcache.report.text import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.results.case import CaseResult

_WIDTH: Final = 12  # columns of an objective
_MOST: Final = 3  # objectives beside each other
_JUDGEMENTS: Final = MappingProxyType({True: "", False: "  too many", None: "  can't tell"})


def path_lines(case: CaseResult) -> Iterator[str]:
    """What was searched by, a row per load with the first objectives, and what was found."""
    path = case.path
    if path is None:
        return
    rules = case.plan.search if path.mode == "qos" else (f"most {PEAK_METRIC}",)
    yield ""
    numbered = ", ".join(f"({number}) {rule}" for number, rule in enumerate(rules, 1))
    yield from wrapped(f"search for users; {numbered}", indent="  ")
    heads = "".join(f"{f'({number})':>{_WIDTH}}" for number in range(1, len(rules[:_MOST]) + 1))
    yield f"  {'users per rank':<16}{'in all':>9}{heads}"
    for step in path.steps:
        values = ["—" if value is None else f"{value:,.4g}" for value in step.values.values()]
        cells = "".join(f"{value:>{_WIDTH}}" for value in values[:_MOST])
        in_all = step.users * case.plan.np
        yield f"  {step.users:<16,}{in_all:>9,}{cells}{_JUDGEMENTS[step.keeps]}"
    if path.state.kept and case.measured:
        yield from wrapped(path.text, indent="  ")
