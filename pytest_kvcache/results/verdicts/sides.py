"""Whether the launches with stores and without can be compared: verdicts on a case. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_kvcache.results.verdictcodes import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.interference import InterferenceFigures


_FASTER: Final = 0.9  # of the time without stores; nearer to 1 it may be chance
_SPARED: Final = (
    "what counts are interference.request_p99_ratio and interference.request_p50_ratio, from"
    " arrival to answer; to compare loads, raise --kv-storage-capacity-gb, so that none waits for"
    " room"
)


def check_sides(case: CaseResult) -> Iterator[Verdict]:
    """One verdict on all the pairs that have no ratio of the p99 of loads, one on odd ratios."""
    yield from _incomparable(case)
    yield from _faster(case)


def _faster(case: CaseResult) -> Iterator[Verdict]:
    """Stores make nothing faster: the launch without them had something else beside it."""
    odd = []
    for trial in case.trials:
        pair = trial.interference
        times = [] if pair is None else list(_shorter(pair))
        if pair is not None and times:
            codes = ", ".join(pair.without_stores.verdicts)
            said = " and ".join(times)
            odd.append(f"trial {trial.index + 1}: {said}{f' ({codes})' if codes else ''}")
    if odd:
        yield Verdict.of(
            "FASTER_WITH_STORES",
            f"the p99 was shorter with stores than without ({'; '.join(odd)}), and stores spare"
            " nothing that is loaded: either something else slowed the launch without them, or"
            " requests waited for stores before their loads, of which fewer then competed, so the"
            " ratios may be too low; hold loads against requests, look for what it was, take more"
            " trials (--kv-trials) or a longer --kv-duration",
        )


def _shorter(pair: InterferenceFigures) -> Iterator[str]:
    """Of what the p99 was shorter with stores, and how many times as long."""
    for what, times in (("loads", pair.load_p99_ratio), ("requests", pair.request_p99_ratio)):
        if times is not None and times < _FASTER:
            yield f"that of {what} {times:.3g} times"


def _incomparable(case: CaseResult) -> Iterator[Verdict]:
    found = [
        (trial.index + 1, why)
        for trial in case.trials
        if trial.interference is not None
        and (why := why_no_ratio(trial.interference, case.plan)) is not None
    ]
    if not found:
        return
    numbers = ", ".join(str(number) for number, _why in found)
    which = "" if len(found) == len(case.trials) else f"trial {numbers}: "
    yield Verdict.of(
        "INCOMPARABLE",
        f"{which}there is no ratio of loads with stores to those without: {found[0][1]}",
    )


def why_no_ratio_of_requests(figures: InterferenceFigures, plan: Plan) -> str | None:
    """Why a pair has no ratios of requests, but for too few; None: nothing stands against it."""
    return None if figures.unlike is None else f"{figures.unlike}; {_fix(figures, plan)}"


def why_no_ratio(figures: InterferenceFigures, plan: Plan) -> str | None:
    """Why a pair has no ratio of the p99 of loads, and what to change; None: it has one."""
    if figures.unlike is not None:
        return f"{figures.unlike}; {_fix(figures, plan)}"
    if figures.waited is not None:
        return f"{figures.waited}; {_SPARED}"
    return None if figures.few is None else f"{figures.few}; {_longer(plan)}"


def _fix(figures: InterferenceFigures, plan: Plan) -> str:
    """What makes the sides alike."""
    sizes = [side.bytes_per_load for _name, side in figures.sides]
    if not all(sizes):
        return f"{_longer(plan)}, or lower --kv-block-tokens so that contexts hold whole blocks"
    if not figures.with_stores.write_gib_per_s:
        return f"{_longer(plan)}, or lower --kv-block-tokens so that a turn adds whole blocks"
    return (
        "raise --kv-storage-capacity-gb, or lower --kv-num-users, so that all contexts and what is"
        " stored beside them fit"
    )


def _longer(plan: Plan) -> str:
    """What makes more loads."""
    if plan.requests is not None:
        return "raise --kv-requests"
    if plan.request_rate is not None:
        return "lengthen --kv-duration or raise --kv-request-rate"
    return "lengthen --kv-duration or add users (--kv-num-users)"
