from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.stalls import Stall
from pytest_kvcache.report.brief import brief_case, kept_data
from pytest_kvcache.report.tables import (
    describe_case,
    describe_plan,
    describe_survey,
    report_run,
    report_series,
)
from pytest_kvcache.report.text import figure
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from pytest_kvcache.showable import COLUMNS
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.workloads.scenarios import TABLE
from tests.canned import (
    ReadSeries,
    case_of,
    counting,
    measuring,
    record_of,
    run_of,
    section_of,
    trial_of,
)
from tests.factories import (
    FILESYSTEM,
    host_facts,
    layout_of,
    make_plan,
    make_trace_plan,
    rank_result,
    sound_plan,
    sound_record,
    survey_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.plan.plan import Plan

GIB = 1 << 30


def shown(*cases: CaseResult, metrics: tuple[str, ...] = ("read.p95_ms", "read.gib_per_s")) -> str:
    return report_run(run_of(*cases), metrics)


def row(text: str, metric: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [metric])
    return line.split()


def event(**changes: Any) -> dict[str, Any]:
    values = {
        "event": "progress", "phase": "window", "t_s": 1.0, "read_bytes": 0, "write_bytes": 0,
        "completed": 0, "prompt_blocks": 4, "hit_blocks": 3, "cached_bytes": 10 << 20,
        "recent": None, "free_bytes": None,
    }  # fmt: skip
    return values | changes


# --- load steps -----------------------------------------------------------------------------


STEPPED = make_plan(np=2, users=2_000, load_steps=(1_000, 2_000, 50), duration_s=60.0)


def step_lines(text: str) -> list[str]:
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("  load step"))
    return lines[head : lines.index("", head)]


def test_each_load_step_has_a_line() -> None:
    text = shown(case_of(STEPPED))
    assert max(map(len, text.splitlines())) < COLUMNS
    assert step_lines(text) == [
        "  load step              users read GiB/s write GiB/s  requests/s  load p95 ms",
        "  0 to 20 s              2,000      1.990       1.990       33.30       0.8202",
        "  20 to 40 s             4,000      1.990       1.990       33.35        1.156",
        "  40 to 60 s               100      1.990       1.990       33.35        1.491",
    ]
    reported = " ".join(text.split())
    assert "2,000 users per rank (4,000 in all), of which 1,000, 2,000, 50 are active" in reported
    assert "  100 to 4,000 users (chat, small): " in text


def test_a_figure_that_a_trial_lacks_in_a_load_step_is_a_dash() -> None:
    first, second = trial_of(STEPPED), trial_of(STEPPED, 1)
    assert second.measured is not None
    step, *others = second.measured.load_steps
    quiet = (replace(step, requests_per_s=None, load=section_of(3)), *others)
    _head, line, *_rest = step_lines(
        shown(case_of(STEPPED, first, measuring(second, load_steps=quiet)))
    )
    assert line.split()[-2:] == ["—", "—"]


def test_the_longest_line_of_a_load_step_fits() -> None:
    trial = trial_of(STEPPED)
    assert trial.measured is not None
    step, *_others = trial.measured.load_steps
    wide = replace(
        step, begin_s=80_640.12, end_s=86_400.0, users_in_all=51_200_000, requests_per_s=9_999_999.0
    )
    text = shown(case_of(STEPPED, measuring(trial, load_steps=(wide,))))
    assert max(map(len, text.splitlines())) < COLUMNS


def test_a_rank_that_changed_its_load_late_is_told_of() -> None:
    trial = trial_of(STEPPED)
    assert trial.measured is not None
    step, *others = trial.measured.load_steps
    late = measuring(trial, load_steps=(step, replace(others[0], late_s=0.35), *others[1:]))
    assert "a rank changed its load up to 0.3 s late" not in shown(case_of(STEPPED))
    assert "changed its load up to 0.3" in shown(case_of(STEPPED, late))


# --- the table ------------------------------------------------------------------------------


def test_a_row_has_median_interval_spread_and_number_of_trials() -> None:
    text = shown(case_of(make_plan()))
    series = case_of(make_plan()).series("read.p95_ms")
    assert series is not None
    assert series.ci95 is not None
    low, high = series.ci95
    cells = row(text, "read.p95_ms")
    assert cells == [
        "read.p95_ms", "@4", "ms", figure(series.median), figure(low), "…", figure(high), "1%",
        "2",
    ]  # fmt: skip


def test_requests_and_hits_are_always_shown_once() -> None:
    text = shown(case_of(make_plan()), metrics=("cache.hit_ratio",))
    assert row(text, "cache.hit_ratio")[2] == "0.7500"
    assert row(text, "requests.per_s")


def test_a_single_trial_claims_no_spread() -> None:
    cells = row(shown(case_of(make_plan(), trial_of(make_plan()))), "read.p95_ms")
    assert cells[4:] == ["—", "—", "1"]


def test_a_metric_without_enough_samples_says_so_instead_of_a_number() -> None:
    text = shown(case_of(make_plan()), metrics=("read.p999_ms",))
    assert "too few samples" in " ".join(row(text, "read.p999_ms"))


def test_a_failed_trial_hides_the_table_and_is_reported_in_one_line() -> None:
    plan = make_plan()
    text = shown(case_of(plan, trial_of(plan), trial_of(plan, 1, error="it broke\nin detail")))
    assert "trial 2 failed: it broke" in text
    assert "in detail" not in text
    assert "median" not in text


def invalid_trial(plan: Plan, index: int = 0) -> TrialResult:
    verdict = Verdict.of("OVERLOADED", "more came than it takes")
    trial = trial_of(plan, index, error=f"OVERLOADED: {verdict.text} (…)")
    return replace(trial, verdicts=(verdict, *trial.verdicts))


def test_a_trial_that_a_verdict_failed_shows_its_numbers_as_invalid() -> None:
    plan = make_plan()
    text = shown(case_of(plan, trial_of(plan), invalid_trial(plan, 1)))
    assert "  INVALID: what was reached all the same, for no comparison\n  metric " in text
    assert row(text, "read.gib_per_s")[-1] == "2"
    reported = " ".join(text.split())
    assert "Not a result: OVERLOADED." in reported
    assert "trial 2 failed: OVERLOADED: more came than it takes" in reported
    assert reported.count("more came than it takes") == 1
    assert "SHORT_WINDOW warning: " in reported


def test_a_valid_table_is_not_called_invalid() -> None:
    assert "INVALID" not in shown(case_of(make_plan()))


def test_a_trial_that_broke_and_was_overloaded_shows_no_numbers() -> None:
    plan = make_plan()
    broken = replace(invalid_trial(plan), error="rank 1 died")
    assert "median" not in shown(case_of(plan, broken))


def test_the_first_sentence_says_what_was_asked_reached_and_whether_to_trust_it() -> None:
    plan = make_plan(np=2)
    case = case_of(plan, *(replace(trial_of(plan, n), verdicts=()) for n in range(2)))
    reported = " ".join(shown(case).split())
    values = {name: case.series(name) for name in METRICS}
    rate, read, written, load = (
        figure(series.median)
        for name in ("requests.per_s", "read.gib_per_s", "write.gib_per_s", "load.p95_ms")
        if (series := values[name]) is not None
    )
    assert (
        f"8 users (chat, small): {rate} requests/s answered, {read} GiB/s read and {written}"
        f" GiB/s written, 95 % of the loads within {load} ms. No verdict against it."
    ) in reported


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (["SHORT_WINDOW", "STALL"], "To be read with SHORT_WINDOW, STALL."),
        (["STALL", "TMPFS"], "Not a result: TMPFS."),
        (["UNSATURATED"], "GiB/s written (at most what is asked for), 95 %"),
    ],
)
def test_the_first_sentence_names_what_stands_against_it(codes: list[str], words: str) -> None:
    plan = make_plan()
    verdicts = tuple(Verdict.of(code, "why") for code in codes)
    assert words in " ".join(
        shown(case_of(plan, replace(trial_of(plan), verdicts=verdicts))).split()
    )


def test_the_first_sentence_and_the_brief_line_know_of_what_stands_against_the_whole_case() -> None:
    plan = make_plan()
    trials = (replace(trial_of(plan, n), verdicts=()) for n in range(2))
    case = replace(case_of(plan, *trials), verdicts=(Verdict.of("NOISY", "the trials differ"),))
    reported = " ".join(shown(case).split())
    assert "To be read with NOISY." in reported
    assert "No verdict against it." not in reported
    assert "NOISY warning: the trials differ" in reported
    assert brief_case(case, ("read.gib_per_s",)).endswith(" GiB/s (NOISY)")


def test_what_is_kept_is_said_to_lie_where_it_lies() -> None:
    plan = make_plan(backend="file", cache_dir="/x", keep=True)
    case = case_of(plan)
    host = case.measured[-1].ranks[0].host
    place = f"data of the last trial (--kv-keep): /x/kvcache-{plan.run_id} on "
    assert kept_data([case]) == place + host
    layout = layout_of(n1=2, n2=1)
    failed = case_of(
        make_plan(backend="file", cache_dir="/x", keep=True, layout=layout),
        TrialResult(index=0, error="it broke"),
    )
    assert kept_data([case, failed]) == f"{place}n1, n2"
    nothing = make_plan(backend="memory", keep=True)
    others = [case_of(replace(plan, keep=False)), CaseResult(plan=plan), case_of(nothing)]
    assert kept_data(others) is None


def test_the_first_sentence_of_an_open_loop_says_its_rate() -> None:
    plan = make_plan(request_rate=2.5, arrival="gamma")
    assert "2.5 requests/s asked for by 4 users (chat, small): " in shown(case_of(plan))


def test_service_times_stand_with_their_depth_and_others_without() -> None:
    metrics = ("read.p95_ms", "write.p50_ms", "load.p95_ms", "queue.p50_ms", "read.gib_per_s")
    text = shown(case_of(make_plan(queue_depth=8)), metrics=metrics)
    assert [row(text, metric)[1] for metric in metrics] == ["@8", "@8", "ms", "ms", "GiB/s"]
    assert "  @8: service time with up to 8 in flight per rank\n" in text
    assert "@" not in shown(case_of(make_plan()), metrics=("load.p95_ms",))


def test_counts_are_said_to_be_of_the_window_or_of_the_whole_run() -> None:
    plan = make_plan()
    trial = trial_of(plan)
    reported = shown(case_of(plan, counting(trial, completed=276, completed_in_window=253)))
    reported = " ".join(reported.split())
    window, run = reported.split("last trial, in the window: ")[1].split(" In the whole run: ")
    assert "253 requests answered" in window
    assert "276" not in reported
    assert "transfers verified" in run


def last_trial(plan: Plan, **counted: Any) -> str:
    """The lines on the last trial, had its ranks counted this."""
    reported = " ".join(shown(case_of(plan, counting(trial_of(plan), **counted))).split())
    return reported.split("last trial, in the window: ")[1]


def test_blocks_beside_the_prefix_that_were_missed_are_told() -> None:
    told = last_trial(make_plan(), beside_blocks=3_000, beside_hit_blocks=2_000)
    window = told.split(" In the whole run: ")[0]
    assert "answered; 2,000 of 3,000 blocks beside prefixes found (66.67%); " in window
    assert "beside" not in last_trial(make_plan(), beside_blocks=0)


def test_rereads_are_told_where_there_are_some() -> None:
    told = last_trial(make_plan(), beside_blocks=0, reread_count=1_234)
    assert "answered; 1,234 of the reads were rereads of what was just stored; " in told
    assert "reread" not in last_trial(make_plan(), reread_count=0)


@pytest.mark.parametrize(
    ("arrived_bytes", "words"),
    [
        (2 * GIB, ", of which the kernel gave 100% to devices"),
        (GIB // 2, ", of which the kernel gave 25% to devices"),
        (None, ", which no kernel counted"),
    ],
)
def test_what_was_written_before_is_told_with_its_proof(
    arrived_bytes: int | None, words: str
) -> None:
    plan = make_plan(backend="file", precondition_bytes=2 * GIB)
    told = last_trial(
        plan,
        precondition_bytes=2 * GIB,
        precondition_s=3.0,
        precondition_arrived_bytes=arrived_bytes,
    )
    run = told.split(" In the whole run: ")[1]
    assert f"; preconditioned by 2 GiB before in 3.000 s{words}; " in run
    assert "preconditioned" not in last_trial(make_plan(), precondition_bytes=0)


def test_two_verdicts_of_one_code_are_both_reported() -> None:
    plan = make_plan()
    verdicts = tuple(Verdict.of("SKEWED", why) for why in ("a slow host", "a late rank"))
    reported = shown(case_of(plan, replace(trial_of(plan), verdicts=verdicts)))
    assert "SKEWED invalid: a slow host" in reported
    assert "SKEWED invalid: a late rank" in reported


def test_a_trial_without_data_is_reported_as_well() -> None:
    text = shown(case_of(make_plan(), TrialResult(index=0, error="no ranks")))
    assert "trial 1 failed: no ranks" in text


def test_results_that_are_no_storage_say_so() -> None:
    assert "NOT_STORAGE" in shown(case_of(make_plan(backend="null")))
    assert "NOT_STORAGE" in shown(case_of(make_plan(backend="memory")))
    assert "NOT_STORAGE" not in shown(case_of(make_plan(backend="file")))


def test_an_open_loop_says_its_rate_and_how_late_the_harness_was() -> None:
    plan = make_plan(request_rate=2.5, arrival="gamma")
    assert "2.5 requests/s (gamma) by 4 users per rank" in describe_plan(plan)
    trial = trial_of(plan)
    scheduling_lag = section_of(2_000)
    reported = " ".join(
        shown(case_of(plan, measuring(trial, scheduling_lag=scheduling_lag))).split()
    )
    p99_ms = figure(scheduling_lag.ms.p99 or 0.0)
    assert f"p99 of the scheduling lag {p99_ms} ms" in reported
    assert "wake-up" not in shown(case_of(make_plan()))


def test_a_verdict_of_some_trials_names_them() -> None:
    plan = make_plan()
    clean = replace(trial_of(plan), verdicts=())
    text = shown(case_of(plan, clean, trial_of(plan, 1), clean))
    assert "SHORT_WINDOW (trial 2) warning: " in text


def stalled(plan: Plan, index: int, *lengths_s: float) -> TrialResult:
    """A trial in whose window the storage stalled as often, as long."""
    record = record_of(plan.for_trial(index))
    stalls = tuple(Stall(kind="every", begin_s=0.0, end_s=length_s) for length_s in lengths_s)
    ranks = tuple(replace(rank, stalls=stalls) for rank in record.ranks)
    measured, verdicts = evaluate_trial(replace(record, ranks=ranks), plan.for_trial(index))
    return TrialResult(index=index, error=None, verdicts=verdicts, measured=measured)


def test_the_worst_trial_speaks_for_the_others_and_is_named() -> None:
    plan = make_plan()
    lengths_s = ((3.0,), (10.0,), (), (0.5,))
    trials = [stalled(plan, index, *of_trial) for index, of_trial in enumerate(lengths_s)]
    text = " ".join(shown(case_of(plan, *trials)).split())
    assert "STALL (trial 1, 2, 4; worst: trial 2) warning: the storage stalled for 10.0" in text
    assert text.count("STALL (") == 1
    everywhere = " ".join(shown(case_of(plan, trials[0], trials[1])).split())
    assert "STALL (all 2 trials; worst: trial 2) warning: the storage stalled" in everywhere


def test_the_first_trial_speaks_where_nothing_tells_which_is_worst() -> None:
    plan = make_plan()
    trials = [
        replace(trial_of(plan, index), verdicts=(Verdict.of("NOT_STEADY", f"it went to {index}"),))
        for index in range(2)
    ]
    text = shown(case_of(plan, *trials))
    assert "NOT_STEADY (all 2 trials; as in trial 1) warning: it went to 0" in text


def test_a_verdict_of_all_trials_is_reported_once() -> None:
    assert shown(case_of(make_plan())).count("SHORT_WINDOW warning: ") == 1


def test_two_cases_have_a_table_each() -> None:
    text = shown(case_of(make_plan()), case_of(make_plan(np=2)))
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads == ["chat-small-np1", "chat-small-np2"]


def test_users_are_said_to_be_per_rank() -> None:
    assert "4 users per rank;" in describe_plan(make_plan())
    fixed = describe_plan(make_plan(requests=7, duration_s=None, reread_factor=2))
    assert "; what is stored is read again 2 times; blocks" in fixed
    assert fixed.endswith("window until 7 requests of each rank are done")
    assert "4 users per rank (8 in all);" in describe_plan(make_plan(np=2))
    assert "; 1 user per rank;" in describe_plan(make_plan(users=1))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prefix_caching": False}, "; no prefix caching; "),
        ({"multi_turn": False}, "; one turn per conversation; "),
        (
            {"enable_rag": True},
            "; 5 chunks retrieved in 10 % of the requests, of 10 documents per user; ",
        ),
    ],
)
def test_users_that_talk_otherwise_are_said_to(changed: dict[str, bool], words: str) -> None:
    assert words in describe_plan(make_plan(dialogues=TABLE.dialogues("chat", **changed)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"context_scale": 0.25}, "; contexts scaled by 0.25; "),
        (
            {"dialogues": replace(TABLE.dialogues("chat"), file="mine.toml")},
            "; users as mine.toml has them; ",
        ),
        ({"generation_mode": "realistic"}, "; generation realistic (30 ms per token); "),
        ({"trace": make_trace_plan(cycles=3)}, "; the trace 3 times over; "),
        (
            {"backend": "file", "precondition_bytes": 64 * GIB},
            "; preconditioned by 64 GiB per rank; ",
        ),
        (
            {"capacity_blocks": 1, "need_blocks": 3},
            "; null, not durable, room for 4 KiB of the 12 KiB that a rank needs; ",
        ),
    ],
)
def test_what_changes_the_load_is_named(changed: dict[str, Any], words: str) -> None:
    assert words in describe_plan(make_plan(**{"context_scale": 1.0, **changed}))


@pytest.mark.parametrize("speedup", [0.0, 1.0])
def test_what_parting_a_trace_costs_is_told(speedup: float) -> None:
    ratios = {"one_rank_hit_ratio": 0.61234, "partitioned_hit_ratio": 0.5}
    trace = make_trace_plan(speedup=speedup, **ratios)
    words = "; parted among ranks at most 0.5000 of its blocks hit, on one rank 0.6123; "
    assert words in describe_plan(make_plan(np=2, trace=trace))
    assert "parted" not in describe_plan(make_plan(trace=trace))
    unknown = replace(trace, one_rank_hit_ratio=None, partitioned_hit_ratio=None)
    assert "parted" not in describe_plan(make_plan(np=2, trace=unknown))


def test_a_scenario_as_it_ships_has_no_changes_to_name() -> None:
    assert "4 users per rank; blocks of" in describe_plan(make_plan(context_scale=1.0))
    assert "null, not durable; depth" in describe_plan(make_plan(context_scale=1.0))


def test_what_several_profiles_retrieve_is_a_range() -> None:
    mixed = TABLE.dialogues("mixed", enable_rag=True)
    chat = replace(mixed.profiles["chat"], retrieval_ratio=0.5)
    some = replace(mixed, profiles={**mixed.profiles, "chat": chat})
    assert "retrieved in 10 to 50 % of the requests" in describe_plan(make_plan(dialogues=some))


def test_one_of_a_kind_is_not_several_and_many_are_grouped() -> None:
    reported = describe_plan(make_plan(block_tokens=1, users=16_900, np=2, context_scale=1.0))
    assert "; 16,900 users per rank (33,800 in all); blocks of 1 token = " in reported
    assert describe_plan(make_plan()).startswith("1 rank on 127.0.0.1")
    plan = make_plan()
    trial = trial_of(plan)
    assert trial.measured is not None
    once = section_of(1)
    moved = {
        kind: replace(getattr(trial.measured, kind), histogram=once.histogram)
        for kind in ("read", "write")
    }
    one = measuring(trial, **moved, delete=once)
    many = counting(one, completed_in_window=12_345)
    reported = " ".join(shown(case_of(plan, many), metrics=("load.p95_ms",)).split())
    assert "1 read, 1 write, 1 delete, 12,345 requests answered; " in reported


@pytest.mark.parametrize(("sync", "words"), [("none", "not durable"), ("data", "durable")])
def test_durability_is_said(sync: str, words: str) -> None:
    assert f", {words};" in describe_plan(make_plan(backend="file", sync=sync))


def test_what_memory_holds_is_never_called_durable() -> None:
    for backend in ("memory", "null"):
        assert f"; {backend}, not durable;" in describe_plan(make_plan(backend=backend))
    plan = make_plan(backend="file", sync="data")
    in_memory = {"chain": [{"name": "tmpfs", "kind": "filesystem", "end": "memory"}]}
    for memory, words in (({}, "durable"), (in_memory, "not durable")):
        trial = trial_of(plan)
        assert trial.measured is not None
        facts = FilesystemFacts.from_json({**FILESYSTEM, **memory})
        synced = replace(trial.measured.proof, sync="data")
        ranks = tuple(replace(rank, filesystem=facts) for rank in trial.measured.ranks)
        reported = describe_case(case_of(plan, measuring(trial, ranks=ranks, proof=synced)))
        assert f", {words};" in reported


def test_a_backend_without_files_has_no_io_to_tell_of() -> None:
    plan = make_plan(backend="memory", sync="data")
    trial = trial_of(plan)
    assert trial.measured is not None
    proof = replace(trial.measured.proof, io_mode="none", sync="data")
    reported = " ".join(shown(case_of(plan, measuring(trial, proof=proof))).split())
    assert "requests answered; no file I/O. In the whole run:" in reported


@pytest.mark.parametrize(
    ("sync", "options", "words"),
    [
        ("data", "rw,relatime", ", durable;"),
        ("data", "rw,nobarrier", ", synced, but not durable (mounted without barriers);"),
        ("data", "rw,barrier=0", ", synced, but not durable (mounted without barriers);"),
        ("none", "rw,nobarrier", ", not durable;"),
    ],
)
def test_a_sync_that_flushes_no_device_is_not_called_durable(
    sync: str, options: str, words: str
) -> None:
    plan = sound_plan(sync=sync)
    facts = {**FILESYSTEM, "options": options}
    ranks = [
        rank_result(0, filesystem=facts, sync=sync),
        rank_result(1, filesystem=facts, sync=sync),
    ]
    measured, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    case = CaseResult(
        plan=plan,
        trials=(TrialResult(index=0, error=None, verdicts=verdicts, measured=measured),),
        looks=(1,),
    )
    assert words in describe_case(case)
    assert words in " ".join(report_run(run_of(case), ["read.p95_ms"]).split())


def test_the_place_of_the_blocks_is_said_where_there_is_one(tmp_path: Path) -> None:
    assert str(tmp_path) in describe_plan(make_plan(backend="file", cache_dir=str(tmp_path)))
    assert "/nowhere" not in describe_plan(make_plan(backend="null"))
    slabs = make_plan(backend="file", store="slab", cache_dir=str(tmp_path))
    assert f"; file as slabs in {tmp_path}, " in describe_plan(slabs)


@settings(deadline=None, max_examples=25)
@given(
    name=st.from_regex(r"[a-z][a-z0-9.-]{0,60}", fullmatch=True),
    metrics=st.lists(st.sampled_from(sorted(METRICS)), min_size=1, max_size=8, unique=True),
    note=st.none() | st.text(max_size=300),
)
def test_every_line_fits_the_terminal(name: str, metrics: list[str], note: str | None) -> None:
    plan = make_plan(scenario=name)
    trial = trial_of(plan)
    assert trial.measured is not None
    ranks = tuple(replace(rank, io_note=note) for rank in trial.measured.ranks)
    text = shown(case_of(plan, measuring(trial, ranks=ranks)), metrics=tuple(metrics))
    widest = max(text.splitlines(), key=len)
    longest_word = max(map(len, text.split()), default=0)
    assert len(widest) <= max(COLUMNS, longest_word + 6)


# --- the hosts ------------------------------------------------------------------------------


def test_hosts_are_reported_with_what_they_have_and_with_whom_they_share_it() -> None:
    facts = {name: host_facts(name) for name in ("n1", "n2", "n3")}
    reported = describe_survey(survey_of(facts, ["n1", "n3"], ["n2"]))
    assert [line.split() for line in reported[2:]] == [
        ["n1", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "n3"],
        ["n2", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "no", "host"],
        ["n3", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "n1"],
    ]
    assert reported[0] == "kvcache: asked 3 hosts in 0.5 s"


def test_a_host_that_does_not_answer_has_a_row_and_its_problem() -> None:
    reported = describe_survey(
        survey_of({"n1": host_facts()}, problems={"n2": ["can't be reached"]})
    )
    assert reported[3].split() == ["n2", *"——————"]
    assert reported[4] == "  host n2: can't be reached"


def test_what_is_not_known_or_does_not_matter_is_a_dash() -> None:
    facts = {"n1": host_facts(filesystem=None, direct=None, memory_bytes=None)}
    assert describe_survey(survey_of(facts))[2].split() == ["n1", "4", *"—————"]


def test_columns_stand_below_their_heads_however_long_a_hosts_name_is() -> None:
    long = "node-0001.cluster.example.com"
    head, short, name, row = describe_survey(
        survey_of({"n1": host_facts(), long: host_facts()}, ["n1"], [long])
    )[1:]
    assert name == f"  {long}"
    for word, value in (("filesystem", "ext4"), ("direct", "yes"), ("shared", "no host")):
        assert head.index(word) == short.index(value) == row.index(value)


def test_a_long_kind_of_filesystem_is_cut() -> None:
    facts = {
        "n1": host_facts(filesystem={**FILESYSTEM, "available_bytes": 0, "type": "fuse.s3fs-fuse"})
    }
    head, row = describe_survey(survey_of(facts))[1:]
    assert row.split()[6] == "fuse.s3fs…"
    assert head.index("direct") == row.index("yes")


def test_sharers_whose_names_are_too_long_are_counted() -> None:
    names = [f"node-{number:04}.example.com" for number in range(3)]
    reported = describe_survey(survey_of({name: host_facts(name) for name in names}, names))
    assert [line.endswith("yes    2 others") for line in reported[3::2]] == [True] * 3


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
HOSTS = st.lists(st.lists(LABEL, min_size=1, max_size=3).map(".".join), min_size=1, unique=True)


@settings(deadline=None, max_examples=25)
@given(
    names=HOSTS,
    kind=st.text("abc.", min_size=1, max_size=30),
    free=st.integers(0, 1 << 60),
    cores=st.integers(1, 4096),
)
def test_every_host_fits_the_terminal(names: list[str], kind: str, free: int, cores: int) -> None:
    filesystem = {**FILESYSTEM, "type": kind, "available_bytes": free}
    facts = {
        name: host_facts(name, cores=cores, memory_bytes=free, filesystem=filesystem)
        for name in names
    }
    for line in describe_survey(survey_of(facts, names)):
        assert len(line) <= COLUMNS or line.strip() in names  # which can't be broken


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12,346"), (1000, "1,000"), (999.94, "999.9"), (100, "100.0"), (99.994, "99.99"),
        (1.23456, "1.235"), (0.123456, "0.1235"), (0, "0.0000"), (-2.5, "-2.500"),
    ],
)  # fmt: skip
def test_figures_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert figure(value) == text


@settings(deadline=None)
@given(st.floats(1e-4, 1e6))
def test_a_figure_is_the_value_to_four_digits(value: float) -> None:
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=1e-3, abs=5.1e-5)


# --- over time ------------------------------------------------------------------------------


def over_time(*trials: list[int], ascii_only: bool = False) -> list[str]:
    """The lines of a case whose trials read so much in each second, and wrote nothing."""
    plan = make_plan()
    made = []
    for index, moved in enumerate(trials):
        reads = [int(size_bytes > 0) for size_bytes in moved]
        series = ReadSeries(reads, moved, [None] * len(moved))
        made.append(measuring(trial_of(plan, index), series=series))
    return [*report_series(case_of(plan, *made), ascii_only=ascii_only)]


def test_a_bar_per_second_shows_the_stall_as_nothing() -> None:
    head, scale, line = over_time([GIB, 0, 2 * GIB, 1])
    assert head == "chat-small-np1, GiB/s over time"
    assert scale == "  from 0 (blank) to █ = read 2.000"
    assert line == "  trial 1 read  ▄ █▁ 0.0000 to 2.000 GiB/s"


def test_bars_are_ascii_where_the_terminal_knows_nothing_else() -> None:
    _head, scale, line = over_time([GIB, 0, 2 * GIB, 1], ascii_only=True)
    assert "to @ = read" in scale
    assert line.startswith("  trial 1 read  = @. ")


def test_a_slower_trial_has_lower_bars() -> None:
    _head, _scale, quick, slow = over_time([4 * GIB, 4 * GIB], [GIB, GIB])
    assert quick.startswith("  trial 1 read  ██ ")
    assert slow.startswith("  trial 2 read  ▂▂ ")


def test_reads_and_writes_have_a_scale_each() -> None:
    case = case_of(make_plan(duration_s=3.0))
    head, scale, *lines = report_series(case, ascii_only=False)
    assert "read " in scale
    assert ", written " in scale
    assert [line.split()[:3] for line in lines] == [
        ["trial", "1", "read"], ["trial", "1", "write"],
        ["trial", "2", "read"], ["trial", "2", "write"],
    ]  # fmt: skip
    assert sum("█" in line for line in lines) >= 2, head


def test_without_a_whole_second_nothing_is_drawn() -> None:
    assert over_time([]) == []
    failed = case_of(make_plan(), TrialResult(index=0, error="x"))
    assert [*report_series(failed, ascii_only=False)] == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 1 << 50), max_size=1024), max_size=3))
def test_a_series_of_any_length_fits_the_line(moved: list[list[int]]) -> None:
    assert all(len(line) < COLUMNS for line in over_time(*moved))
