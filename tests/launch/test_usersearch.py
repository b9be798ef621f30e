"""The search for users over launches: what it asks for, what it judges, and how it ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.launch.usersearch import SearchForUsers
from pytest_kvcache.plan.peaksearch import ScalabilityFit
from pytest_kvcache.plan.planner import Case, CaseName
from pytest_kvcache.report.usersearch import path_lines
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.usersearch import path_faults
from pytest_kvcache.results.verdictcodes import SEVERITIES, Verdict
from pytest_kvcache.results.verify import verify_run
from tests.canned import measuring, section_of, trial_of
from tests.factories import SMALL, make_plan, options

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.launch.runner import Controller
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.results.usersearch import PathOfSearch


MS = 1_000_000
NAME = CaseName(
    scenario="chat", model=SMALL, layout=RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=2),))
)


@dataclass
class Launches:
    """A controller whose storage takes so many ms with so many users (implements part of one)."""

    load_ms: Callable[[int], float | None]
    error: str | None = None
    censored_from: int = 1_000
    cases: list[CaseResult] = field(default_factory=list)

    def run_case(
        self, options: Options, case: Case, path: PathOfSearch | None = None
    ) -> CaseResult:
        trials = tuple(self._trial(case, index) for index in range(options.trials.low))
        return self._kept(
            CaseResult(plan=case.plan, trials=trials, looks=(len(trials),), path=path)
        )

    def fail_case(self, options: Options, case: Case, path: PathOfSearch, error: str) -> CaseResult:
        trial = TrialResult(index=0, error=error)
        looks = (options.trials.low,)
        return self._kept(CaseResult(plan=case.plan, trials=(trial,), looks=looks, path=path))

    def _trial(self, case: Case, index: int) -> TrialResult:
        trial = trial_of(case.plan, index)
        if self.error is not None and case.plan.users > 4:
            code = self.error.partition(":")[0]
            invalid = (Verdict.of(code, "it"),) if code in SEVERITIES else ()
            return TrialResult(index=index, error=self.error, verdicts=invalid)
        if case.plan.users >= self.censored_from:
            return measuring(trial, load=section_of(1_000, censored=60))
        value_ms = self.load_ms(case.plan.users)
        count, value_ns = (1_000, int(value_ms * MS)) if value_ms is not None else (10, MS)
        assert trial.measured is not None
        users = trial.measured.users
        kept = value_ms is not None and value_ms < 200
        found = case.plan.users if kept else None
        users = replace(users, per_rank=found, in_all=None if found is None else 2 * found)
        return measuring(trial, load=section_of(count, value_ns=value_ns), users=users)

    def _kept(self, case: CaseResult) -> CaseResult:
        self.cases.append(case)
        return case


def planned(options: Options, name: CaseName) -> Case:
    plan = make_plan(
        scenario=name.scenario, np=2, users=options.num_users, label=name.label,
        search=("load.p95_ms<200",), search_mode="qos",
    )  # fmt: skip
    return Case(plan=plan, trace=None, secrets=cast("Any", None))


def searched(launches: Launches, **texts: Any) -> CaseResult:
    given = {
        "enable_autoscaling": "true", "slo": ["load.p95_ms<200"], "num_users": "64",
        "trials": "2", **texts,
    }  # fmt: skip
    controller = cast("Controller", launches)
    asked = options(**given)
    return SearchForUsers(controller, planned, asked, NAME, planned(asked, NAME)).run()


def tried(launches: Launches) -> list[int]:
    return [case.plan.users for case in launches.cases if case.plan.search_step]


def test_the_largest_load_that_keeps_the_objective_is_launched_again() -> None:
    launches = Launches(lambda users: 10.0 * users)
    found = searched(launches)
    assert tried(launches) == [2, 4, 8, 16, 32, 24, 20, 18, 19]
    assert found.plan.users == 19
    assert (found.name, len(found.trials)) == ("chat-small-np2", 2)
    series = found.series("users.in_all")
    assert series is not None
    assert series.values == (38.0, 38.0)
    assert found.path is not None
    assert found.path.text == "19 users per rank, and 20 are too many"
    names = [case.name for case in launches.cases[:-1]]
    assert names[0] == "chat-small-np2-2-users"
    assert [step.case for step in found.path.steps] == names
    assert all(len(case.trials) == 1 for case in launches.cases[:-1])


def test_a_range_that_ends_is_an_answer() -> None:
    found = searched(Launches(float))
    assert found.plan.users == 64
    assert found.path is not None
    assert found.path.text == "at least 64 users per rank: the range ended (--kv-num-users)"


def test_an_objective_that_one_user_breaks_is_a_failure_with_its_value() -> None:
    launches = Launches(lambda users: 250.0 + users)
    found = searched(launches)
    assert tried(launches) == [2, 1]
    assert found.error == (
        "1 user on each of 2 ranks break the objectives already: load.p95_ms<200 (it is 251); no"
        " number of users keeps them, so give looser ones (--kv-slo), fewer ranks or faster storage"
    )


def test_a_load_without_enough_samples_is_gone_on_from() -> None:
    launches = Launches(lambda users: 10.0 * users if users > 10 else None)
    found = searched(launches)
    assert (found.plan.users, tried(launches)[:5]) == (19, [2, 4, 8, 16, 32])
    assert found.path is not None
    assert [step.keeps for step in found.path.steps[:5]] == [None, None, None, True, False]


def test_where_no_load_can_be_judged_it_is_said_what_is_missing() -> None:
    found = searched(Launches(lambda _users: None))
    assert found.error is not None
    assert found.error.startswith(
        "no number of users on each of 2 ranks is known to keep the objectives: there is no"
        " load.p95_ms: FEW_SAMPLES, p95 needs 200 operations"
    )


def test_a_load_that_fails_ends_the_search_with_its_reason_and_what_was_known() -> None:
    found = searched(Launches(lambda users: 10.0 * users, error="rank 1 died"))
    assert found.error == (
        "the search for users ended with 8 of each rank (4 keep the objectives): rank 1 died"
    )
    assert found.path is not None
    assert [step.users for step in found.path.steps] == [2, 4]


def test_an_invalid_load_is_a_bound_and_the_answer_says_so() -> None:
    launches = Launches(lambda users: 10.0 * users, error="CLIENT_BOUND: the harness")
    found = searched(launches)
    assert (found.plan.users, tried(launches)) == (4, [2, 4, 8, 6, 5])
    assert found.path is not None
    assert found.path.text == "4 users per rank, and 5 could not be judged"


def test_a_load_that_does_not_end_in_time_breaks_a_limit() -> None:
    launches = Launches(lambda users: 10.0 * users, censored_from=9)
    found = searched(launches)
    assert (found.plan.users, tried(launches)) == (8, [2, 4, 8, 16, 12, 10, 9])
    assert found.path is not None
    assert found.path.text == "8 users per rank, and 9 are too many"
    assert found.path.steps[3].values == {"load.p95_ms<200": None}


def test_a_number_of_users_that_can_not_be_planned_is_a_failure_with_its_sentence() -> None:
    def refusing(options: Options, name: CaseName) -> Case:
        if options.num_users == 8:
            raise OptionError("memory tiers hold all of it")
        return planned(options, name)

    asked = options(enable_autoscaling="true", slo=["load.p95_ms<200"], num_users="64")
    controller = cast("Controller", Launches(lambda users: 10.0 * users))
    largest = planned(asked, NAME)
    found = SearchForUsers(controller, refusing, asked, NAME, largest).run()
    assert found.error == (
        "the search for users ended with 8 of each rank (4 keep the objectives): memory tiers hold"
        " all of it"
    )


def test_a_label_of_ones_own_stays_in_the_names_of_the_loads() -> None:
    launches = Launches(lambda users: 10.0 * users)
    given = options(enable_autoscaling="true", slo=["load.p95_ms<200"], num_users="4")
    name = replace(NAME, label="mine")
    largest = planned(given, name)
    SearchForUsers(cast("Controller", launches), planned, given, name, largest).run()
    assert launches.cases[0].name == "chat-small-np2-mine-1-users"


def run_of(cases: list[CaseResult]) -> dict[str, Any]:
    run = RunResult(
        run_id="20260101T000000-abcdef", started_at="2026-01-01T00:00:00+00:00",
        command=("pytest",), version="1.0", commit=None, environment={}, cases=tuple(cases),
    )  # fmt: skip
    data: dict[str, Any] = json.loads(json.dumps(run.to_json()))
    return data


def about_the_search(data: dict[str, Any]) -> list[str]:
    return [problem for problem in verify_run(data) if "search" in problem]


def test_a_search_is_held_against_its_loads() -> None:
    launches = Launches(lambda users: 10.0 * users)
    searched(launches)
    data = run_of(launches.cases)
    assert about_the_search(data) == []
    step = data["cases"][-1]["search"]["steps"][-1]
    step["keeps"] = False
    told = about_the_search(data)
    assert any("its plan has 19 users; its search found 18" in problem for problem in told)
    assert any("by its case it must be SearchStep(users=19" in problem for problem in told)
    step |= {"keeps": True, "values": {"load.p95_ms<200": 19.0}}
    (problem,) = about_the_search(data)
    assert "the search's step of 19 users is SearchStep(users=19" in problem
    assert "by its case it must be SearchStep(users=19" in problem


def test_a_step_belongs_to_a_search() -> None:
    plan = make_plan(np=2, search_step=True)
    data = run_of([CaseResult(plan=plan, trials=(trial_of(plan),), looks=(1,))])
    assert about_the_search(data) == [
        "chat-small-np2: its plan's search_step is True; it must be false, or true in a search"
    ]


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda path: path["steps"].pop(2), "were tried; the search asks for"),
        (lambda path: path["steps"].pop(), "its search is not over: 19 users are to be tried"),
        (
            lambda path: path["steps"][0].update(case="other"),
            "step of 2 users is none of the run's: other",
        ),
    ],
)
def test_a_path_that_is_no_search_is_found(
    change: Callable[[dict[str, Any]], object], reported: str
) -> None:
    launches = Launches(lambda users: 10.0 * users)
    searched(launches)
    data = run_of(launches.cases)
    change(data["cases"][-1]["search"])
    assert any(reported in problem for problem in about_the_search(data))


def test_loads_of_a_search_that_was_cut_off_are_shown_and_judged_by_no_gate() -> None:
    launches = Launches(lambda users: 10.0 * users)
    searched(launches)
    whole = RunResult.from_json(run_of(launches.cases))
    assert [case.name for case in whole.asked] == ["chat-small-np2"]
    assert whole.shown == whole.asked
    cut_off = RunResult.from_json(run_of(launches.cases[:2]))
    assert cut_off.asked == ()
    assert [case.name for case in cut_off.shown] == [
        "chat-small-np2-2-users", "chat-small-np2-4-users",
    ]  # fmt: skip


# --- the load at which throughput peaks -----------------------------------------------------


class Throughputs(Launches):
    """A controller whose users get so much done; None: nobody can tell."""

    def _trial(self, case: Case, index: int) -> TrialResult:
        trial = trial_of(case.plan, index)
        assert trial.measured is not None
        per_s = self.load_ms(case.plan.users)
        requests = replace(trial.measured.requests, per_s=per_s)
        trial = measuring(trial, requests=requests)
        assert trial.measured is not None
        kept = (
            not case.plan.search_step
            and per_s is not None
            and bool(case.plan.search)
            and (per_s >= float(case.plan.search[0].partition(">=")[2]))
        )
        users = replace(
            trial.measured.users,
            per_rank=case.plan.users if kept else None,
            in_all=2 * case.plan.users if kept else None,
        )
        return measuring(trial, users=users)


def peak_of(launches: Launches, mode: str) -> CaseResult:
    asked = options(enable_autoscaling="true", num_users="64", trials="2", autoscaler_mode=mode)

    def plan(options: Options, name: CaseName) -> Case:
        made = make_plan(
            scenario=name.scenario, np=2, users=options.num_users, label=name.label,
            search_mode=mode,
        )  # fmt: skip
        return Case(plan=made, trace=None, secrets=cast("Any", None))

    controller = cast("Controller", launches)
    return SearchForUsers(controller, plan, asked, NAME, plan(asked, NAME)).run()


def test_the_fewest_users_that_get_nearly_the_most_done_are_launched_again() -> None:
    launches = Throughputs(lambda users: float(min(users, 20)))
    found = peak_of(launches, "capacity")
    assert (found.plan.users, found.plan.search) == (19, ("requests.per_s>=18",))
    assert found.path is not None
    assert found.path.text == "19 users per rank reach 95% of the most, 20 requests/s of 20"
    assert "\n".join(path_lines(found)).count("too many") == 0
    assert about_the_peak(launches) == []


def test_throughput_that_grows_on_is_an_answer() -> None:
    found = peak_of(Throughputs(float), "capacity")
    assert found.path is not None
    assert found.path.text == (
        "at least 64 users per rank: throughput still grew where the range ended (--kv-num-users)"
    )


def test_a_predicted_peak_says_by_which_law_and_how_well_it_fits() -> None:
    law = ScalabilityFit(rate=10.0, contention=0.1, coherency=0.001, residual=0.0)
    launches = Throughputs(law.per_s)
    found = peak_of(launches, "predictive")
    assert found.plan.users == 30  # the root of 0.9 / 0.001
    assert found.path is not None
    assert found.path.text == (
        "30 users per rank, 62.89 requests/s predicted; 10 requests/s per user, contention 0.1,"
        " coherency 0.001, residual 0.0%"
    )
    data = run_of(launches.cases)
    assert data["cases"][-1]["search"]["fit"]["contention"] == pytest.approx(0.1)
    assert about_the_peak(launches) == []
    data["cases"][-1]["search"]["fit"]["contention"] = 0.2
    assert any("fit.contention" in problem for problem in verify_run(data))


def test_a_prediction_from_too_few_loads_is_a_failure() -> None:
    found = peak_of(Throughputs(lambda users: float(users) if users > 16 else None), "predictive")
    assert "2 loads could be judged, and a law needs 4" in str(found.error)


def test_an_answer_that_the_path_does_not_give_is_found() -> None:
    launches = Throughputs(lambda users: float(min(users, 20)))
    found = peak_of(launches, "capacity")
    other = replace(found.plan, search=("requests.per_s>=1",))
    launches.cases[-1] = replace(found, plan=other)
    assert any("by its path it must be" in problem for problem in about_the_peak(launches))


def about_the_peak(launches: Launches) -> list[str]:
    """Of the last case, whose figures are not those of its ranks, as its throughput is made up."""
    cases = {(case.name, case.plan_digest): case for case in launches.cases}
    return list(path_faults(launches.cases[-1], cases))
