"""How a gate's verdicts are written: the table, what stands below it, and one line. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from pytest_kvcache.gates.compare import Comparison, Judgement, change_words, limit_words
from pytest_kvcache.options.rules import FailRule
from pytest_kvcache.showable import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_COLUMNS: Final = {  # heading: width; with single spaces between they make 80
    "metric": 21,
    "baseline": 9,
    "now": 9,
    "change": 13,
    "limit": 11,
    "verdict": 12,
}


def verdict_line(judgement: Judgement) -> str:
    """The verdict in one line: metric, value and limit, and how it stands to the baseline."""
    rule, status = judgement.rule, judgement.status
    unit = f" {judgement.unit}" if judgement.unit else ""
    value = "no value" if judgement.now is None else f"{_figure(judgement.now)}{unit}"
    words = [f"{rule.metric} {value}"]
    if judgement.change_ratio is not None:
        words.append(f"{change_words(judgement.change_ratio)} than {_figure(judgement.baseline)}")
    if status not in ("ok", "worse"):
        words.append(status)
    if isinstance(rule, FailRule):
        words.append(f"limit {limit_words(rule.limit_ratio)}")
    else:
        words.append(f"limit {rule.op} {_figure(rule.value)}{unit}")
    return ", ".join(words)


def gate_table(
    judgements: Sequence[Judgement | Comparison],
    *,
    differences: Mapping[str, Sequence[str]] | None = None,
    unknown: Sequence[str] = (),
    session: str = "",
) -> str:
    """Return the verdicts as text of at most 80 columns, "" when there is nothing to say.

    One block per case, then why for everything that is not ok, what disturbed a case or
    both sides, then per case what differs
    from the baseline's, the cases of which the baseline does not tell what stands behind
    them, and when a baseline of another session is from.
    """
    lines: list[str] = []
    if judgements:
        lines.append(_row(dict(zip(_COLUMNS, _COLUMNS, strict=True))))
    for case in dict.fromkeys(judgement.case for judgement in judgements):
        lines += textwrap.wrap(case, COLUMNS, break_on_hyphens=False)
        for judgement in judgements:
            if judgement.case == case:
                lines += _rows(judgement)
    for judgement in judgements:
        lines += _why(judgement)
    for note in dict.fromkeys(f"{j.case}: {j.note}" for j in judgements if j.note):
        lines += _paragraph(note.removeprefix(": "))
    lines += _difference_lines(differences or {}, "the baseline")
    if unknown:
        lines += _paragraph(
            "the baseline does not tell whether its values are of storage, which verdicts they"
            f" had, or of which settings they are; record it anew: {', '.join(unknown)}"
        )
    if session and judgements:
        lines += _paragraph(
            f"the baseline is of another session ({session}): the noise is that of the trials"
            " within each, how much sessions differ is unknown (docs/ci.md)"
        )
    return "\n".join(lines)


def stock_table(differences: Mapping[str, Sequence[str]]) -> str:
    """Return what pytest-benchmark's own comparison does not know of its sides."""
    return "\n".join(_difference_lines(differences, "what --benchmark-compare compares with"))


def _rows(judgement: Judgement | Comparison) -> Iterator[str]:
    metric, limit, verdict = _texts(judgement)
    if len(metric) > _COLUMNS["metric"]:
        yield from textwrap.wrap(metric, COLUMNS)
        metric = ""
    change = judgement.change_ratio
    cells = {
        "metric": metric,
        "baseline": _figure(judgement.baseline),
        "now": _figure(judgement.now),
        "change": "-" if change is None else change_words(change),
        "limit": limit,
        "verdict": verdict,
    }
    yield _row(cells)


def _texts(judgement: Judgement | Comparison) -> tuple[str, str, str]:
    """Return metric, limit and verdict."""
    if isinstance(judgement, Comparison):
        standing = judgement.standing
        return judgement.metric, "-", standing
    rule, status = judgement.rule, judgement.status
    verdict = status if status == "ok" else status.upper()
    if isinstance(rule, FailRule):
        return rule.metric, limit_words(rule.limit_ratio), verdict
    return rule.metric, f"{rule.op}{_figure(rule.value)}", verdict


def _why(judgement: Judgement | Comparison) -> list[str]:
    """Return the reason of what is not ok, or has nothing to be compared with."""
    metric, _, verdict = _texts(judgement)
    if verdict == "ok" or not judgement.reason:
        return []
    where = f"{metric} of {judgement.case}".removesuffix(" of ")
    return _paragraph(f"{where} is {verdict.lower()}: {judgement.reason}")


def _difference_lines(differences: Mapping[str, Sequence[str]], other: str) -> Iterator[str]:
    for case, texts in differences.items():
        yield from _paragraph(f"{case} differs from {other} in:")
        for text in texts:
            yield from _paragraph(f"  {text}")


def _row(cells: Mapping[str, str]) -> str:
    """A line of the table: text left, figures right."""
    texts = [
        cells[name].ljust(width) if name in ("metric", "verdict") else cells[name].rjust(width)
        for name, width in _COLUMNS.items()
    ]
    return " ".join(texts).rstrip()


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def _figure(value: float | None) -> str:
    """A figure in at most 9 characters."""
    if value is None:
        return "-"
    if 1000 <= abs(value) < 1e8:  # noqa: PLR2004  # what fits without an exponent
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return text if len(text) <= _COLUMNS["now"] else f"{value:.2g}"
