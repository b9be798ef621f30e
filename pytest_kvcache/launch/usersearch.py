"""Search for the most users that keep the objectives: a launch for each load that is tried.

Every load is a case of its own in the run file, judged like any other. The answer is launched
again, as often as there are to be trials; a trial that does not keep the objectives is invalid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.errors import KVCacheError
from pytest_kvcache.options.options import objectives_of
from pytest_kvcache.options.table import Trials
from pytest_kvcache.plan.peaksearch import MIN_LOADS, MOST_RESIDUAL, PEAK_METRIC, PeakSearch
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.usersearch import PathOfSearch, SearchStep
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.launch.runner import Controller
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.planner import Case, CaseName
    from pytest_kvcache.results.case import CaseResult


class SearchForUsers:
    """One case's search; ``plan`` plans and checks a case with given options.

    ``largest`` is the case with as many users as there may be.
    """

    def __init__(
        self,
        controller: Controller,
        plan: Callable[[Options, CaseName], Case],
        options: Options,
        name: CaseName,
        largest: Case,
    ) -> None:
        self._controller = controller
        self._plan = plan
        self._options = options
        self._name = name
        self._largest = largest
        mode = largest.plan.search_mode
        assert mode is not None  # or nothing is searched for
        self._path = PathOfSearch(most=options.num_users, mode=mode)
        self._unjudged = ""  # why the last load that could not be judged could not

    def run(self) -> CaseResult:
        """The case with the users that were found; it failed where there are none."""
        while (users := self._path.state.next_users()) is not None:
            try:
                step = self._step(users)
            except KVCacheError as error:  # what so many users can't be planned with
                return self._failed(users, str(error))
            if step.error is not None and not all(trial.invalidated for trial in step.trials):
                return self._failed(users, step.error.splitlines()[0])
            self._note(step)
        kept = self._path.state.kept
        if not kept:
            return self._controller.fail_case(
                self._options, self._largest, self._path, self._no_answer()
            )
        options = self._with(kept, self._options.trials)
        case = self._plan(options, self._name)
        if self._path.objectives is not None:
            case = replace(case, plan=replace(case.plan, search=self._path.objectives))
        return self._controller.run_case(options, case, path=self._path)

    def _step(self, users: int) -> CaseResult:
        """One load, launched once."""
        own = "" if self._name.label is None else f"{self._name.label}-"
        options = replace(self._with(users, Trials(1, 1)), target_ci=None)
        case = self._plan(options, replace(self._name, label=f"{own}{users}-users"))
        case = replace(case, plan=replace(case.plan, search_step=True))
        return self._controller.run_case(options, case)

    def _note(self, tried: CaseResult) -> None:
        step = SearchStep.of(tried)
        self._path = self._path.with_step(step)
        if step.keeps is not None:
            return
        if tried.error is not None:
            self._unjudged = tried.error.splitlines()[0]
            return
        rules = objectives_of(self._options)
        absent = (rule.metric for rule in rules if step.values[str(rule)] is None)
        metric = next(absent, PEAK_METRIC)
        self._unjudged = f"there is no {metric}: {why_absent(tried, metric)}"

    def _with(self, users: int, trials: Trials) -> Options:
        """The options with so many users, and trials."""
        texts = {**self._options.texts, "num_users": (str(users), "call")}
        return replace(self._options, num_users=users, trials=trials, texts=texts)

    def _failed(self, users: int, reason: str) -> CaseResult:
        kept = self._path.state.kept
        do = "keep the objectives" if self._path.mode == "qos" else "do best"
        known = f" ({kept:,} {do})" if kept else ""
        error = f"the search for users ended with {users:,} of each rank{known}: {reason}"
        return self._controller.fail_case(self._options, self._largest, self._path, error)

    def _no_peak(self, search: PeakSearch, ranks: str) -> str:
        """Why the load at which throughput peaks is not known."""
        told = f"no peak of {PEAK_METRIC} is known on each of {ranks}"
        if not search.judged:
            return f"{told}: {self._unjudged}"
        if search.fit is not None:
            return (
                f"{told}: the Universal Scalability Law misses what was seen by"
                f" {search.fit.residual:.0%}, and more than {MOST_RESIDUAL:.0%} predicts nothing;"
                " use --kv-autoscaler-mode=capacity, or lengthen --kv-duration"
            )
        return (
            f"{told}: {format_count(len(search.judged), 'load')} could be judged, and a law needs"
            f" {MIN_LOADS} in which something is done; raise --kv-num-users or lengthen"
            " --kv-duration"
        )

    def _no_answer(self) -> str:
        """Why no load is known to keep the objectives."""
        search = self._path.state
        ranks = format_count(self._name.layout.np, "rank")
        if isinstance(search, PeakSearch):
            return self._no_peak(search, ranks)
        bound = next((step for step in self._path.steps if step.users == search.broken), None)
        if bound is None or bound.keeps is None or search.unjudged:
            known = f"no number of users on each of {ranks} is known to keep the objectives"
            if bound is None or bound.keeps is None:
                return f"{known}: {self._unjudged}"
            return f"{known}; {bound.users:,} break them, and with fewer {self._unjudged}"
        values = ", ".join(
            f"{rule} ({'not ended in time' if value is None else f'it is {value:.4g}'})"
            for rule, value in bound.values.items()
        )
        users = format_count(bound.users, "user")
        return (
            f"{users} on each of {ranks} break the objectives already: {values}; no number of users"
            " keeps them, so give looser ones (--kv-slo), fewer ranks or faster storage"
        )
