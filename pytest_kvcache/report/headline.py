"""A case in one sentence: what was asked for, what was reached, whether to trust it. Pure.

It is for the reader who reads nothing else, so it names no metric that needs explaining,
and no figure without what stands against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.plan.peaksearch import NEARLY, PEAK_METRIC
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.verdictcodes import Verdict

    Median = Callable[[str], str | None]


_MOVED = {"read": "read", "write": "written", "demote": "demoted to the storage"}


def sum_up(plan: Plan, verdicts: Sequence[Verdict], median: Median) -> str:
    """The sentence, under ``verdicts``: those on the trials, and on the case as a whole.

    ``median`` gives a metric's median over the trials as text, or None.
    """
    asked_less = any(verdict.code == "UNSATURATED" for verdict in verdicts)
    reached = ", ".join(_reached(median, asked_less=asked_less))
    return f"{_asked(plan)}: {reached or 'nothing that is measured'}. {_trust(verdicts)}"


def describe_users(plan: Plan) -> str:
    """Users per rank, and in all where there are several ranks; an I/O trace's may be uneven."""
    users = f"{format_count(plan.users, 'user')} per rank"
    if plan.np > 1 and plan.replays_operations:
        users = f"at most {users}"
    elif plan.np > 1:
        users = f"{users} ({plan.users * plan.np:,} in all)"
    if plan.load_steps:
        active = ", ".join(f"{count:,}" for count in plan.load_steps)
        users += f", of which {active} are active per rank in equally long parts of the window"
    return users


def describe_aim(plan: Plan) -> str:
    """Which number of users is searched for."""
    if plan.search_mode == "qos":
        return f"the most users that keep {' and '.join(plan.search)}"
    if plan.search_mode == "capacity":
        return f"the fewest users that reach {NEARLY:.0%} of the most {PEAK_METRIC}"
    return f"the users at the peak of {PEAK_METRIC} by the Universal Scalability Law"


def _asked(plan: Plan) -> str:
    model = f"{plan.scenario}, {plan.model.name}"
    users = format_count(plan.users * plan.np, "user")
    if plan.restarts:
        return f"{format_count(plan.np, 'rank')} restarted ({model})"
    if plan.request_rate is not None:
        return f"{plan.request_rate:g} requests/s asked for by {users} ({model})"
    if plan.load_steps:
        low, high = (f"{of(plan.load_steps) * plan.np:,}" for of in (min, max))
        return f"{low} to {high} users ({model})"
    if plan.trace is not None:
        requests = format_count(plan.trace.requests, "request")
        return f"{requests} of {plan.trace.name} ({plan.model.name})"
    return f"{users} ({model})"


def _reached(median: Median, *, asked_less: bool) -> Iterator[str]:
    ready, found = median("run.s"), median("restart.objects_per_s")
    if ready is not None and found is not None:
        yield f"what they had stored was found again within {ready} s, {found} objects/s"
    requests, load = median("requests.per_s"), median("load.p95_ms")
    if requests is not None:
        yield f"{requests} requests/s answered"
    rates = {verb: median(f"{kind}.gib_per_s") for kind, verb in _MOVED.items()}
    moved = [f"{rate} GiB/s {verb}" for verb, rate in rates.items() if rate]
    if moved:
        limit = " (at most what is asked for)" if asked_less else ""
        yield " and ".join(moved) + limit
    if load is not None:
        yield f"95 % of the loads within {load} ms"


def _trust(verdicts: Sequence[Verdict]) -> str:
    """Codes of all verdicts, those that invalidate first."""
    codes: dict[str, list[str]] = {"invalid": [], "warning": []}
    for verdict in verdicts:
        if verdict.code not in codes[verdict.severity]:
            codes[verdict.severity].append(verdict.code)
    if codes["invalid"]:
        return f"Not a result: {', '.join(codes['invalid'])}."
    if codes["warning"]:
        return f"To be read with {', '.join(codes['warning'])}."
    return "No verdict against it."
