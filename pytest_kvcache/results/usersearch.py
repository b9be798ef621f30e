"""What a search for users tried, and what it found: the path to one number. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.metrics import METRICS, samples_for
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.plan.peaksearch import NEARLY, PEAK_METRIC, PeakSearch
from pytest_kvcache.plan.usersearch import UserSearch
from pytest_kvcache.results.trial import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.options.rules import SloRule
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """One load: so many users on each rank, in a case of its own, and what it came to.

    ``digest`` is that case's, by which it is told from one of the same name. ``values`` are by
    objective, or of the throughput whose peak is sought; None where there is none. ``keeps`` None:
    nothing tells; too little was done, or the trial is invalid.
    """

    users: int
    case: str
    digest: str
    values: Mapping[str, float | None]
    keeps: bool | None

    @classmethod
    def of(cls, case: CaseResult) -> SearchStep:
        """Of a load that was tried."""
        if case.plan.search_mode != "qos":
            series = case.series(PEAK_METRIC)
            return cls(
                users=case.plan.users,
                case=case.name,
                digest=case.plan_digest,
                values={PEAK_METRIC: None if series is None else series.median},
                keeps=None if series is None else True,
            )
        rules = [parse_slo(text) for text in case.plan.search]
        kept = [_keeps(rule, case) for rule in rules]
        return cls(
            users=case.plan.users,
            case=case.name,
            digest=case.plan_digest,
            values={str(rule): _value(rule, case) for rule in rules},
            keeps=False if False in kept else None if None in kept else True,
        )


def _value(rule: SloRule, case: CaseResult) -> float | None:
    series = case.series(rule.metric)
    return None if series is None else series.median


def _keeps(rule: SloRule, case: CaseResult) -> bool | None:
    """Whether a load keeps an objective; None: nothing tells.

    A limit is broken, too, where enough began and so much of it had not ended when the drain did
    that there is no value: it took longer than all that did.
    """
    value = _value(rule, case)
    if value is not None:
        return rule.keeps(value)
    spec = METRICS[rule.metric]
    sections = [getattr(trial, spec.section) for trial in case.measured if case.error is None]
    if not sections or not all(isinstance(section, Section) for section in sections):
        return None
    began = min(section.count + section.censored for section in sections)
    censored = all(section.censored for section in sections)
    enough = spec.percentile is None or began >= samples_for(spec.percentile)
    return False if censored and enough and rule.op in {"<", "<="} else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOfSearch:
    """The steps of a search among 1 to ``most`` users per rank, in their order."""

    most: int
    mode: str = "qos"
    steps: tuple[SearchStep, ...] = ()

    @property
    def state(self) -> UserSearch | PeakSearch:
        """How far it has come. ResultError for a step that the search would not have made."""
        try:
            return self._by_objectives() if self.mode == "qos" else self._by_throughput()
        except ValueError as error:
            raise ResultError(f"the search contradicts itself: {error}") from error

    def _by_objectives(self) -> UserSearch:
        search = UserSearch(most=self.most)
        for step in self.steps:
            search = search.noted(step.users, keeps=step.keeps)
        return search

    def _by_throughput(self) -> PeakSearch:
        search = self._peak_of(())
        for step in self.steps:
            search = search.noted(step.users, step.values[PEAK_METRIC])
        return search

    def _peak_of(self, steps: Sequence[SearchStep]) -> PeakSearch:
        tried = tuple((step.users, step.values[PEAK_METRIC]) for step in steps)
        return PeakSearch(most=self.most, predicts=self.mode == "predictive", tried=tried)

    @property
    def objectives(self) -> tuple[str, ...] | None:
        """What the answer must keep, where the path decides that; None: the plan has it."""
        search = self.state
        return (search.objective,) if isinstance(search, PeakSearch) and search.kept else None

    def with_step(self, step: SearchStep) -> PathOfSearch:
        """The path with one more load tried."""
        return replace(self, steps=(*self.steps, step))

    @property
    def text(self) -> str:
        """What it found, for people."""
        search = self.state
        if isinstance(search, PeakSearch):
            return _peak_text(search)
        if search.kept == self.most:
            return f"at least {search.kept:,} users per rank: the range ended (--kv-num-users)"
        (bound,) = (step for step in self.steps if step.users == search.broken)
        why = "could not be judged" if bound.keeps is None else "are too many"
        return f"{search.kept:,} users per rank, and {bound.users:,} {why}"

    def to_json(self) -> dict[str, Any]:
        """The path as in the run file; ``fit`` follows from its steps."""
        fit = None if self.mode == "qos" else self._peak_of(self.steps).fit
        return {
            **asdict(self),
            "steps": [asdict(step) for step in self.steps],
            "fit": None if fit is None else asdict(fit),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PathOfSearch:
        """The inverse of ``to_json``."""
        steps = tuple(SearchStep(**step) for step in data["steps"])
        return cls(most=data["most"], mode=data["mode"], steps=steps)


def _peak_text(search: PeakSearch) -> str:
    """What a search for a peak found, and what it could not tell."""
    return _found(search) + _untold(search.unjudged)


def _untold(loads: Sequence[int]) -> str:
    shown = ", ".join(f"{users:,}" for users in loads)
    return f"; what {shown} users get done could not be judged" if loads else ""


def _found(search: PeakSearch) -> str:
    assert search.best is not None
    users, per_s = search.best
    fit = search.fit
    if fit is None:
        found = f"{search.kept:,} users per rank"
        if search.range_ended:
            return f"at least {found}: throughput still grew where the range ended (--kv-num-users)"
        return f"{found} reach {NEARLY:.0%} of the most, {per_s:,.4g} requests/s of {users:,}"
    law = (
        f"{fit.rate:.4g} requests/s per user, contention {fit.contention:.3g}, coherency"
        f" {fit.coherency:.3g}, residual {fit.residual:.1%}"
    )
    expected = f"{fit.per_s(search.kept):,.4g} requests/s predicted"
    if search.range_ended:
        return f"at least {search.kept:,} users per rank ({expected}): the range ended; {law}"
    return f"{search.kept:,} users per rank, {expected}; {law}"


def path_faults(case: CaseResult, cases: Mapping[tuple[str, str], CaseResult]) -> Iterator[str]:
    """Where a path is not that of a search, or its steps are not what their cases say.

    ``cases`` are those of the run, by name and digest.
    """
    plan, path = case.plan, case.path
    if plan.search_step is not False and not (plan.search_step is True and plan.search_mode):
        yield f"its plan's search_step is {plan.search_step}; it must be false, or true in a search"
    searched = plan.search_mode is not None
    if (path is not None) != (searched and not plan.search_step):
        yield f"its search is {path}; by the plan there must {'' if searched else 'not '}be one"
    if path is None:
        return
    if path.mode != plan.search_mode:
        yield f"its search's mode is {path.mode}; by the plan it must be {plan.search_mode}"
        return
    try:
        found = path.state
    except ResultError as error:
        yield str(error)
        return
    if case.trials and case.trials[-1].ok and plan.users != found.kept:
        yield f"its plan has {plan.users} users; its search found {found.kept}"
    if case.trials and case.trials[-1].ok and found.next_users() is not None:
        yield f"its search is not over: {found.next_users()} users are to be tried"
    if case.trials and path.objectives not in (None, plan.search):
        yield f"its plan's search is {plan.search}; by its path it must be {path.objectives}"
    yield from _step_faults(plan, path, cases)


def _step_faults(
    plan: Plan, path: PathOfSearch, cases: Mapping[tuple[str, str], CaseResult]
) -> Iterator[str]:
    """Each step is a load of the run, and came to what its case says."""
    for step in path.steps:
        tried = cases.get((step.case, step.digest))
        if tried is None or not tried.plan.search_step or not _is_step(tried, path, plan):
            yield f"the search's step of {step.users} users is none of the run's: {step.case}"
        elif step != SearchStep.of(tried):
            yield (
                f"the search's step of {step.users} users is {step}; by its case it must be"
                f" {SearchStep.of(tried)}"
            )


def _is_step(tried: CaseResult, path: PathOfSearch, plan: Plan) -> bool:
    """Whether a case is a load of this search: but for the users the same is measured."""
    objectives = plan.search if path.mode == "qos" else ()
    if (tried.plan.search_mode, tried.plan.search) != (path.mode, objectives):
        return False
    free = {"users", "search"} | ({"capacity_blocks", "fill_blocks"} - plan.given)
    same, other = (
        {name: value for name, value in each.workload.items() if name not in free}
        for each in (plan, tried.plan)
    )
    return same == other
