"""What a search for users tried, and what it found: the path to one number. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.metrics import METRICS, samples_for
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.plan.usersearch import UserSearch
from pytest_kvcache.results.trial import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.options.rules import SloRule
    from pytest_kvcache.results.case import CaseResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """One load: so many users on each rank, in a case of its own, and what it came to.

    ``digest`` is that case's, by which it is told from one of the same name. ``values`` are by
    objective, None where there is none. ``keeps`` None: nothing tells; too little was done, or the
    trial is invalid.
    """

    users: int
    case: str
    digest: str
    values: Mapping[str, float | None]
    keeps: bool | None

    @classmethod
    def of(cls, case: CaseResult) -> SearchStep:
        """Of a load that was tried."""
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
    steps: tuple[SearchStep, ...] = ()

    @property
    def state(self) -> UserSearch:
        """How far it has come. ResultError for a step that the search would not have made."""
        search = UserSearch(most=self.most)
        for step in self.steps:
            try:
                search = search.noted(step.users, keeps=step.keeps)
            except ValueError as error:
                raise ResultError(f"the search contradicts itself: {error}") from error
        return search

    def with_step(self, step: SearchStep) -> PathOfSearch:
        """The path with one more load tried."""
        return PathOfSearch(most=self.most, steps=(*self.steps, step))

    @property
    def text(self) -> str:
        """What it found, for people."""
        search = self.state
        if search.kept == self.most:
            return f"at least {search.kept:,} users per rank: the range ended (--kv-num-users)"
        (bound,) = (step for step in self.steps if step.users == search.broken)
        why = "could not be judged" if bound.keeps is None else "are too many"
        return f"{search.kept:,} users per rank, and {bound.users:,} {why}"

    def to_json(self) -> dict[str, Any]:
        """The path as in the run file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PathOfSearch:
        """The inverse of ``to_json``."""
        return cls(most=data["most"], steps=tuple(SearchStep(**step) for step in data["steps"]))


def path_faults(case: CaseResult, cases: Mapping[tuple[str, str], CaseResult]) -> Iterator[str]:
    """Where a path is not that of a search, or its steps are not what their cases say.

    ``cases`` are those of the run, by name and digest.
    """
    plan, path = case.plan, case.path
    if plan.search_step is not False and not (plan.search_step is True and plan.search):
        yield f"its plan's search_step is {plan.search_step}; it must be false, or true in a search"
    if (path is not None) != (bool(plan.search) and not plan.search_step):
        yield f"its search is {path}; by the plan there must {'' if plan.search else 'not '}be one"
    if path is None:
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
    for step in path.steps:
        tried = cases.get((step.case, step.digest))
        if tried is None or not tried.plan.search_step or tried.plan.search != plan.search:
            yield f"the search's step of {step.users} users is none of the run's: {step.case}"
        elif step != SearchStep.of(tried):
            yield (
                f"the search's step of {step.users} users is {step}; by its case it must be"
                f" {SearchStep.of(tried)}"
            )
