"""Loads with stores and without: what a pair tells, when it tells nothing, and what is forged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.gates.compare import judge_slo
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.plan.interference import without_stores
from pytest_kvcache.report.interference import interference_lines
from pytest_kvcache.results.absence import absent_in_brief, why_absent
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.interference import InterferenceFigures, SideFigures
from pytest_kvcache.results.pairs import paired
from pytest_kvcache.results.provenance import incomparable, uncertain
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.noise import evaluate_case
from pytest_kvcache.results.verify import verify_run
from tests.canned import case_of, counting, measuring, run_of, section_of, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.results.outcome import TrialResult

WITH = make_plan(np=2, interference="with-stores")
ALONE = without_stores(WITH)
P99 = "interference.load_p99_ratio"
SIDE = SideFigures(
    loads=2_000, loads_per_s=100.0, bytes_per_load=1_000.0, load_mean_ms=5.0, load_p50_ms=4.0,
    load_p99_ms=30.0, request_mean_ms=6.0, request_p50_ms=5.0, request_p99_ms=32.0,
    read_p99_ms=6.0, write_gib_per_s=0.5, verdicts=(),
)  # fmt: skip


def pair(*, loaded: dict[str, Any] | None = None, **alone: Any) -> InterferenceFigures:
    """A side with stores as above, and one without that is as fast again."""
    without: dict[str, Any] = {
        "load_mean_ms": 2.5, "load_p50_ms": 2.0, "load_p99_ms": 15.0, "request_mean_ms": 3.5,
        "request_p50_ms": 2.5, "request_p99_ms": 16.0, "read_p99_ms": 3.0, "write_gib_per_s": None,
    }  # fmt: skip
    return InterferenceFigures(
        with_stores=replace(SIDE, **loaded or {}), without_stores=replace(SIDE, **without | alone)
    )


def taking(trial: TrialResult, value_ns: int, *, waited_ns: int = 0) -> TrialResult:
    """The launch, had each load taken so long, and each request waited so long before it."""
    request = section_of(2_000, value_ns=value_ns + waited_ns)
    return measuring(trial, load=section_of(2_000, value_ns=value_ns), request=request)


def launched(index: int = 0, *, alone_ns: int = 1_000_000) -> tuple[TrialResult, TrialResult]:
    """The launches of a pair; loads take 2 ms with stores, and so long without."""
    with_stores = taking(trial_of(WITH, index), 2_000_000)
    alone = taking(trial_of(ALONE, index), alone_ns)
    return with_stores, alone


def cases_of(*pairs: tuple[TrialResult, TrialResult]) -> list[CaseResult]:
    """The case of these pairs, and that of their launches without stores before it."""
    looks = (len(pairs),)
    case = CaseResult(plan=WITH, trials=tuple(paired(*each) for each in pairs), looks=looks)
    alone = CaseResult(plan=ALONE, trials=tuple(each[1] for each in pairs), looks=looks)
    return [replace(each, verdicts=evaluate_case(each)) for each in (alone, case)]


# --- the ratios of a pair -------------------------------------------------------------------


def test_a_ratio_is_how_many_times_as_long_it_takes_with_stores() -> None:
    figures = pair()
    assert (figures.load_p99_ratio, figures.load_p50_ratio, figures.read_p99_ratio) == (2, 2, 2)
    assert (figures.request_p99_ratio, figures.request_p50_ratio) == (2, 2)
    assert (figures.unlike, figures.waited, figures.few) == (None, None, None)


def test_the_ratio_of_a_case_is_the_median_of_its_pairs_ratios() -> None:
    case = cases_of(launched(0), launched(1, alone_ns=500_000), launched(2, alone_ns=4_000_000))[1]
    series = case.series(P99)
    assert series is not None
    assert series.values == pytest.approx((2.0, 4.0, 0.5), rel=1e-2)
    assert series.median == series.values[0]
    assert (series.unit, series.better) == ("times", "lower")


@pytest.mark.parametrize("bytes_per_load", [1_051.0, 952.0])
def test_loads_of_other_sizes_give_no_ratio(bytes_per_load: float) -> None:
    figures = pair(bytes_per_load=bytes_per_load)
    assert (figures.load_p99_ratio, figures.load_p50_ratio, figures.read_p99_ratio) == (None,) * 3
    assert (figures.request_p99_ratio, figures.request_p50_ratio) == (None, None)
    assert figures.unlike is not None
    assert figures.unlike.startswith("an average load was 1000 B with stores and")
    assert pair(bytes_per_load=1_049.0).load_p99_ratio == 2


@pytest.mark.parametrize("stored", [None, 0.0])
def test_a_side_that_stored_nothing_gives_no_ratio(stored: float | None) -> None:
    figures = pair(loaded={"write_gib_per_s": stored})
    assert figures.load_p99_ratio is None
    assert figures.unlike == "nothing was stored in the window of the side with stores"


def test_a_side_without_loads_gives_no_ratio() -> None:
    figures = pair(loads=0, bytes_per_load=None, load_p99_ms=None)
    assert figures.unlike == "a side made no load that read from the storage"
    assert figures.load_p50_ratio is None


def test_loads_before_which_requests_waited_on_one_side_have_no_ratio() -> None:
    figures = pair(loaded={"load_mean_ms": 1.0, "load_p99_ms": 3.0, "request_mean_ms": 9.0})
    assert (figures.load_p99_ratio, figures.load_p50_ratio, figures.read_p99_ratio) == (None,) * 3
    assert (figures.request_p99_ratio, figures.request_p50_ratio) == (2, 2)
    assert figures.waited is not None
    assert figures.waited.startswith(
        "an average request took 8 ms beside its load with stores and 1 ms without"
    )


def test_a_wait_of_a_tenth_of_a_request_is_none() -> None:
    assert pair(loaded={"load_mean_ms": 8.0, "request_mean_ms": 10.0}).load_p99_ratio == 2
    assert pair(loaded={"load_mean_ms": 7.9, "request_mean_ms": 10.0}).load_p99_ratio is None
    assert pair(load_mean_ms=1.0, request_mean_ms=3.5).load_p99_ratio is None  # without stores


def test_loads_whose_requests_never_ended_have_no_ratio() -> None:
    figures = pair(request_mean_ms=None)
    assert figures.load_p99_ratio is None
    assert figures.waited == (
        "of a side no request was seen to end, so nothing tells how long they waited"
    )


def test_too_few_loads_for_a_p99_leave_the_other_ratios() -> None:
    figures = pair(loads=990, load_p99_ms=None)
    assert (figures.load_p99_ratio, figures.load_p50_ratio) == (None, 2)
    assert figures.few == "a p99 needs 1,000 loads, and there were 990 without stores"


def test_a_side_whose_ranks_ended_apart_has_no_times() -> None:
    trial, _alone = launched()
    assert trial.measured is not None
    side = SideFigures.of(trial.measured, (), withholds=True)
    assert (side.load_p99_ms, side.read_p99_ms, side.write_gib_per_s) == (None, None, None)
    assert (side.request_p99_ms, side.request_p50_ms, side.beside_load_ms) == (None, None, None)
    figures = pair(load_mean_ms=None, request_mean_ms=None, load_p99_ms=None)
    assert figures.waited is None
    assert (
        figures.few == "ranks ended apart (UNEVEN), or too much had not ended (2,000 without "
        "stores had)"
    )


def test_a_side_says_what_it_loaded() -> None:
    trial, _alone = launched()
    assert trial.measured is not None
    assert trial.measured.request is not None
    side = SideFigures.of(trial.measured, trial.verdicts, withholds=False)
    assert side.loads == 2_000
    assert side.bytes_per_load == trial.measured.counters.read_op_bytes / 2_000
    assert side.loads_per_s == 2_000 / trial.measured.window_s
    assert side.write_gib_per_s == trial.measured.write.gib_per_s
    assert (side.request_p50_ms, side.request_p99_ms) == (
        trial.measured.request.ms.p50,
        trial.measured.request.ms.p99,
    )
    assert (side.load_mean_ms, side.request_mean_ms, side.beside_load_ms) == (2.0, 2.0, 0.0)
    assert side.verdicts == tuple(dict.fromkeys(verdict.code for verdict in trial.verdicts))


# --- what the case says ---------------------------------------------------------------------


def test_a_pair_that_is_none_is_a_verdict_with_what_to_change() -> None:
    trial, alone = launched()
    assert trial.measured is not None
    loaded = counting(trial, read_op_bytes=trial.measured.counters.read_op_bytes * 9 // 10)
    _alone_case, case = cases_of((loaded, alone))
    (verdict,) = (verdict for verdict in case.verdicts if verdict.code == "INCOMPARABLE")
    assert verdict.severity == "warning"
    assert "without (-10%): what is stored displaces what is to be loaded" in verdict.text
    assert "raise --kv-storage-capacity-gb, or lower --kv-num-users" in verdict.text
    assert case.series(P99) is None
    assert why_absent(case, P99) in verdict.text
    assert absent_in_brief(case.trials, P99) == "the sides give no ratio"


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({}, "lengthen --kv-duration or add users (--kv-num-users)"),
        ({"requests": 9, "duration_s": None, "ramp_s": 0.0}, "raise --kv-requests"),
        (
            {"request_rate": 5.0, "arrival": "poisson"},
            "lengthen --kv-duration or raise --kv-request-rate",
        ),
    ],
)
def test_too_few_loads_are_told_with_what_makes_more(
    changes: dict[str, Any], reported: str
) -> None:
    trial = replace(launched()[0], interference=pair(loads=10, load_p99_ms=None))
    case = CaseResult(plan=replace(WITH, **changes), trials=(trial,), looks=(1,))
    (verdict,) = (v for v in evaluate_case(case) if v.code == "INCOMPARABLE")
    assert f"there were 10 without stores; {reported}" in verdict.text


def test_only_the_pairs_that_are_none_are_named() -> None:
    good, few = launched(0), launched(1)
    ten = {"load": section_of(10), "request": section_of(10)}
    few = (measuring(few[0], **ten), measuring(few[1], **ten))
    case = cases_of(good, few)[1]
    (verdict,) = (v for v in case.verdicts if v.code == "INCOMPARABLE")
    assert verdict.text.startswith("trial 2: there is no ratio")
    assert "10 with stores and 10 without stores" in verdict.text


def test_loads_that_were_faster_with_stores_are_odd() -> None:
    trial, _alone = launched()
    low = pair(load_p99_ms=34.0, verdicts=("PAUSED", "STALL"))
    trials = tuple(
        replace(trial, index=index, interference=figures)
        for index, figures in enumerate((low, pair(), pair(load_p99_ms=33.0)))
    )
    case = CaseResult(plan=WITH, trials=trials, looks=(3,))
    (verdict,) = (v for v in evaluate_case(case) if v.code == "FASTER_WITH_STORES")
    assert verdict.severity == "warning"
    assert "without (trial 1: that of loads 0.882 times (PAUSED, STALL))" in verdict.text


def test_requests_that_were_faster_with_stores_are_odd_whatever_they_waited() -> None:
    figures = pair(loaded={"load_mean_ms": 1.0}, request_p99_ms=64.0)
    trial = replace(launched()[0], interference=figures)
    case = CaseResult(plan=WITH, trials=(trial,), looks=(1,))
    found = {verdict.code: verdict.text for verdict in evaluate_case(case)}
    assert {"FASTER_WITH_STORES", "INCOMPARABLE"} <= found.keys()
    assert "(trial 1: that of requests 0.5 times)" in found["FASTER_WITH_STORES"]


def test_waits_before_loads_are_told_and_close_a_gate_on_loads_alone() -> None:
    """Requests take 2.7 times as long, and loads less: with stores fewer compete."""
    loaded = taking(trial_of(WITH), 1_000_000, waited_ns=4_400_000)
    case = cases_of((loaded, taking(trial_of(ALONE), 2_000_000)))[1]
    found = {verdict.code: verdict for verdict in case.verdicts}
    assert "FASTER_WITH_STORES" not in found
    verdict = found["INCOMPARABLE"]
    assert verdict.severity == "warning"
    assert "took 4.4 ms beside its load with stores and 0 ms without" in verdict.text
    assert "what counts are interference.request_p99_ratio and" in verdict.text
    assert "raise --kv-storage-capacity-gb" in verdict.text
    for of_loads in (P99, "interference.load_p50_ratio", "interference.read_p99_ratio"):
        assert case.series(of_loads) is None
        assert why_absent(case, of_loads) in verdict.text
    series = case.series("interference.request_p99_ratio")
    assert series is not None
    assert series.values == pytest.approx((2.7,), rel=1e-2)


def test_too_few_requests_are_no_matter_of_loads() -> None:
    trial = replace(launched()[0], interference=pair(request_p99_ms=None))
    case = CaseResult(plan=WITH, trials=(trial,), looks=(1,))
    assert case.series(P99) is not None
    why = why_absent(case, "interference.request_p99_ratio")
    assert why == "a side of a trial has too few samples for its request.p99"


def test_without_stores_beside_them_nothing_is_told_of_interference() -> None:
    plan = make_plan(np=2)
    case = CaseResult(plan=plan, trials=(trial_of(plan),), looks=(1,))
    assert case.series(P99) is None
    assert "--kv-interference makes one without stores" in why_absent(case, P99)
    assert list(interference_lines(plan, case.trials)) == []


# --- the gates ------------------------------------------------------------------------------


def gated(beside: tuple[str, ...] = (), ours: tuple[str, ...] = ()) -> tuple[CaseResult, RunResult]:
    """A case on storage whose launches have these verdicts alone, and its run."""
    trial = launched()[0]
    assert trial.measured is not None
    ranks = tuple(replace(rank, is_storage=True) for rank in trial.measured.ranks)
    trial = measuring(trial, ranks=ranks)
    verdicts = tuple(Verdict.of(code, "it is so") for code in ours)
    figures = pair(loaded={"verdicts": ours}, verdicts=beside)
    case = case_of(WITH, replace(trial, verdicts=verdicts, interference=figures))
    return case, run_of(case)


@pytest.mark.parametrize("code", ["PAUSED", "STALL"])
@pytest.mark.parametrize("side", ["beside", "ours"])
def test_a_standstill_of_either_side_passes_no_gate_on_a_ratio(side: Any, code: str) -> None:
    case, run = gated(**{side: (code,)})
    slo = parse_slo(f"{P99}<3")
    judgement = judge_slo(slo, case.series(P99), provenance=run.provenance(case))
    assert judgement.status == "inconclusive"
    assert f"({code}) in a launch with stores or without" in judgement.reason
    assert f"this run had {code}" in judgement.note
    case, run = gated()
    assert judge_slo(slo, case.series(P99), provenance=run.provenance(case)).status == "ok"


def test_verdicts_on_the_side_without_stores_are_told_by_gates() -> None:
    (clean, run), (dirty, other) = gated(), gated(beside=("BUSY_DEVICE",))
    before, now = run.provenance(clean), other.provenance(dirty)
    judgement = judge_slo(parse_slo(f"{P99}<3"), dirty.series(P99), provenance=now)
    assert judgement.note == "this run had BUSY_DEVICE"
    assert "only this run has BUSY_DEVICE" in (uncertain(before, now) or "")
    (cached, third) = gated(beside=("CACHED_READS",))
    why = incomparable(before, third.provenance(cached))
    assert why is not None
    assert why.startswith("only this run has the invalidating verdict CACHED_READS")


def test_a_ratio_to_launches_on_no_storage_is_judged_by_no_gate() -> None:
    case, run = gated(beside=("NOT_STORAGE",))
    provenance = run.provenance(case)
    assert provenance.is_storage is False
    assert judge_slo(parse_slo(f"{P99}<3"), case.series(P99), provenance=provenance).status == (
        "incomparable"
    )


# --- the run file ---------------------------------------------------------------------------


def written(*pairs: tuple[TrialResult, TrialResult]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(run_of(*cases_of(*pairs)).to_json()))
    return data


def of_pairs(data: dict[str, Any], *, ended: bool = True) -> list[str]:
    words = ("interference", "without stores")
    return [p for p in verify_run(data, ended=ended) if any(word in p for word in words)]


def sound_pair(index: int = 0) -> tuple[TrialResult, TrialResult]:
    return trial_of(WITH, index), trial_of(ALONE, index)


def test_a_run_file_has_both_launches_and_shows_the_pair() -> None:
    data = written(sound_pair(), sound_pair(1))
    assert of_pairs(data) == []
    run = RunResult.from_json(data)
    assert [case.name for case in run.cases] == ["chat-small-np2-without-stores", "chat-small-np2"]
    assert [case.name for case in run.asked] == ["chat-small-np2"] == [c.name for c in run.shown]
    first = data["cases"][1]["trials"][0]["interference"]
    assert first["with_stores"]["loads"] == first["without_stores"]["loads"] == 2_000
    assert first["load_p99_ratio"] == 1
    assert data["cases"][0]["trials"][0]["interference"] is None


@pytest.mark.parametrize(
    ("forge", "reported"),
    [
        (lambda pair: pair.update(load_p99_ratio=0.5), "interference.load_p99_ratio is 0.5"),
        (lambda pair: pair.update(request_p99_ratio=0.5), "interference.request_p99_ratio is 0.5"),
        (lambda pair: pair["with_stores"].update(request_mean_ms=9.0), "by its two launches"),
        (lambda pair: pair["without_stores"].update(load_p99_ms=9.0), "by its two launches"),
        (lambda pair: pair["without_stores"].update(loads=3), "by its two launches it must be"),
        (lambda pair: pair["with_stores"].update(verdicts=[]), "by its two launches it must be"),
    ],
)
def test_a_forged_pair_is_found(forge: Callable[[dict[str, Any]], None], reported: str) -> None:
    data = written(sound_pair())
    forge(data["cases"][1]["trials"][0]["interference"])
    assert any(reported in problem for problem in of_pairs(data))


def test_a_pair_that_is_left_out_is_found() -> None:
    data = written(sound_pair())
    data["cases"][1]["trials"][0]["interference"] = None
    assert any("its interference is None; by its two launches" in p for p in of_pairs(data))


def test_launches_without_stores_that_are_left_out_are_found() -> None:
    data = written(sound_pair(), sound_pair(1))
    second = data["cases"][0]["trials"].pop()
    assert any("trial 2: its interference is of no launch" in p for p in of_pairs(data))
    data["cases"][0]["trials"].append({**second, "ok": False, "error": "no"})
    assert any("trial 2: its interference is of no launch" in p for p in of_pairs(data))
    del data["cases"][0]
    (problem,) = of_pairs(data)
    assert "has no launches without stores of it: chat-small-np2-without-stores" in problem


def test_launches_without_stores_that_are_swapped_are_found() -> None:
    """Everything else of such a file is as its trials say, for its pairs are of these."""

    def of(result: TrialResult, case: str, launched: int) -> TrialResult:
        return replace(result, sources={f"{case}/trial-{launched}/trial.json": "0" * 64})

    def run(*order: int) -> list[str]:
        data = written(
            *(
                (of(trial, WITH.case, index + 1), of(alone, ALONE.case, order[index]))
                for index, (trial, alone) in enumerate((sound_pair(), sound_pair(1)))
            )
        )
        return [p for p in verify_run(data) if "directory" in p]

    assert run(1, 2) == []
    (first, second) = run(2, 1)
    assert first.endswith("trial 1: it was made of chat-small-np2-without-stores/trial-2/trial.json"
                          ", which is not of its directory trial-1")  # fmt: skip
    assert "trial 2: it was made of" in second


def test_launches_without_stores_belong_to_some_with_them() -> None:
    data = written(sound_pair())
    del data["cases"][1]
    (problem,) = of_pairs(data)
    assert "the run has no case with stores that it belongs to" in problem
    assert of_pairs(data, ended=False) == []  # the first launch of all
    assert [case.name for case in RunResult.from_json(data).shown] == [
        "chat-small-np2-without-stores"
    ]


def test_a_single_launch_has_no_interference() -> None:
    plan = make_plan(np=2)
    data: dict[str, Any] = run_of(
        CaseResult(plan=plan, trials=(trial_of(plan),), looks=(1,))
    ).to_json()
    data["cases"][0]["trials"][0]["interference"] = pair().to_json()
    assert any("by the plan it is a single launch" in p for p in of_pairs(data))


# --- the table ------------------------------------------------------------------------------


def lines(*pairs: InterferenceFigures, **changes: Any) -> list[str]:
    trials = [replace(launched()[0], interference=each) for each in pairs]
    return list(interference_lines(replace(WITH, **changes), trials))


def test_the_table_has_a_row_for_each_side_and_the_spread_of_the_ratios() -> None:
    text = lines(pair(), pair(load_p99_ms=10.0), pair(load_p99_ms=20.0))
    assert max(map(len, text)) < 80
    table = [line.split() for line in text]
    assert [
        "with",
        "stores",
        "2,000",
        "100.0",
        "1000",
        "B",
        "4.000",
        "30.00",
        "6.000",
        "0.5000",
    ] in table
    assert [
        "without",
        "stores",
        "2,000",
        "100.0",
        "1000",
        "B",
        "2.000",
        "15.00",
        "3.000",
        "—",
    ] in table
    said = " ".join(" ".join(text).split())
    assert "medians of 3 pairs of launches; p50 and p99 in ms" in said
    assert "load p99 2 (1.5 to 3), load p50 2 (2 to 2), read p99 2 (2 to 2)," in said
    assert "request p99 2 (2 to 2), request p50 2 (2 to 2)" in said


def test_sides_of_a_closed_loop_that_asked_for_more_are_told() -> None:
    said = " ".join(" ".join(lines(pair(loads_per_s=150.0))).split())
    assert "without stores there were 1.5 times as many loads per second" in said
    assert "--kv-request-rate gives both sides the same arrivals" in said
    assert "times as many" not in " ".join(lines(pair(loads_per_s=104.0)))
    open_loop = {"request_rate": 5.0, "arrival": "poisson"}
    assert "times as many" not in " ".join(lines(pair(loads_per_s=150.0), **open_loop))


def test_verdicts_on_launches_without_a_table_are_named() -> None:
    said = " ".join(lines(pair(verdicts=("STALL", "NOT_STEADY")), pair(verdicts=("STALL",))))
    assert "verdicts on the launches without stores: STALL, NOT_STEADY" in said


def test_what_has_no_value_is_a_dash() -> None:
    said = " ".join(lines(pair(load_p99_ms=None, bytes_per_load=None, loads=3)))
    assert "load p99 —, load p50 —" in " ".join(said.split())
