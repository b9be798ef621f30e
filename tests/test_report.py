from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.metrics import METRICS
from pytest_kvcache.report import (
    WIDTH,
    describe_plan,
    describe_progress,
    describe_survey,
    figure,
    report_run,
    report_series,
)
from pytest_kvcache.results import CaseResult, TrialResult
from tests.canned import case_of, run_of, trial_of
from tests.factories import FILESYSTEM, host_facts, make_plan, sound_plan, survey_of

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.plan import Plan

GIB = 1 << 30


def shown(*cases: CaseResult, metrics: tuple[str, ...] = ("read.p95_ms", "read.gib_per_s")) -> str:
    return report_run(run_of(*cases), metrics)


def row(text: str, metric: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [metric])
    return line.split()


def event(**changes: Any) -> dict[str, Any]:
    values = {
        "event": "progress", "phase": "window", "t_s": 1.0, "read_bytes": 0, "write_bytes": 0,
        "completed": 0, "prompt_blocks": 4, "hit_blocks": 3, "cached_blocks": 10,
        "recent": None, "free_bytes": None,
    }  # fmt: skip
    return values | changes


# --- the table ------------------------------------------------------------------------------


def test_a_row_has_median_interval_spread_and_number_of_trials() -> None:
    text = shown(case_of(make_plan()))
    series = case_of(make_plan()).series("read.p95_ms")
    assert series is not None
    assert series.ci95 is not None
    low, high = series.ci95
    cells = row(text, "read.p95_ms")
    assert cells == [
        "read.p95_ms", "ms", figure(series.median), figure(low), "…", figure(high), "1%", "2",
    ]  # fmt: skip


def test_requests_and_hits_are_always_shown_once() -> None:
    text = shown(case_of(make_plan()), metrics=("cache.hit_ratio",))
    assert row(text, "cache.hit_ratio")[2] == "0.7500"
    assert row(text, "requests.per_s")


def test_a_single_trial_claims_no_spread() -> None:
    cells = row(shown(case_of(make_plan(), trial_of(make_plan()))), "read.p95_ms")
    assert cells[3:] == ["—", "—", "1"]


def test_a_metric_without_enough_samples_says_so_instead_of_a_number() -> None:
    text = shown(case_of(make_plan()), metrics=("read.p999_ms",))
    assert "too few samples" in " ".join(row(text, "read.p999_ms"))


def test_a_failed_trial_hides_the_table_and_is_told_in_one_line() -> None:
    plan = make_plan()
    text = shown(case_of(plan, trial_of(plan), trial_of(plan, 1, error="it broke\nin detail")))
    assert "trial 2 failed: it broke" in text
    assert "in detail" not in text
    assert "median" not in text


def test_a_trial_without_data_is_told_as_well() -> None:
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
    assert trial.data is not None
    late = replace(trial, data={**trial.data, "wakeup": trial.data["request"]})
    told = " ".join(shown(case_of(plan, late)).split())
    p99_ms = figure(trial.data["request"]["ms"]["p99"])
    assert f"p99 of the wake-up lag {p99_ms} ms" in told
    assert "wake-up" not in shown(case_of(make_plan()))


def test_a_verdict_of_some_trials_names_them() -> None:
    plan = make_plan()
    clean = replace(trial_of(plan), verdicts=())
    text = shown(case_of(plan, clean, trial_of(plan, 1), clean))
    assert "SHORT_WINDOW (trial 2) warning: " in text


def test_a_verdict_of_all_trials_is_told_once() -> None:
    assert shown(case_of(make_plan())).count("SHORT_WINDOW") == 1


def test_two_cases_have_a_table_each() -> None:
    text = shown(case_of(make_plan()), case_of(make_plan(np=2)))
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads == ["chat-small-np1", "chat-small-np2"]


def test_users_are_said_to_be_per_rank() -> None:
    assert "4 users per rank" in describe_plan(make_plan())


def test_one_rank_is_not_several() -> None:
    assert describe_plan(make_plan()).startswith("1 rank on 127.0.0.1")


@pytest.mark.parametrize(("sync", "words"), [("none", "not durable"), ("data", "durable")])
def test_durability_is_said(sync: str, words: str) -> None:
    assert f" {words};" in describe_plan(make_plan(sync=sync))


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
    assert trial.data is not None
    data = {**trial.data, "ranks": [{**r, "io_note": note} for r in trial.data["ranks"]]}
    text = shown(case_of(plan, replace(trial, data=data)), metrics=tuple(metrics))
    widest = max(text.splitlines(), key=len)
    longest_word = max(map(len, text.split()), default=0)
    assert len(widest) <= max(WIDTH, longest_word + 6)


# --- the hosts ------------------------------------------------------------------------------


def test_hosts_are_told_with_what_they_have_and_with_whom_they_share_it() -> None:
    facts = {name: host_facts(name) for name in ("n1", "n2", "n3")}
    told = describe_survey(survey_of(facts, ["n1", "n3"], ["n2"]))
    assert [line.split() for line in told[2:]] == [
        ["n1", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "n3"],
        ["n2", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "no", "host"],
        ["n3", "4", "64", "GiB", "100", "GiB", "ext4", "yes", "n1"],
    ]
    assert told[0] == "kvcache: asked 3 hosts in 0.5 s"


def test_a_host_that_does_not_answer_has_a_row_and_its_problem() -> None:
    told = describe_survey(survey_of({"n1": host_facts()}, problems={"n2": ["can't be reached"]}))
    assert told[3].split() == ["n2", *"——————"]
    assert told[4] == "  host n2: can't be reached"


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
    told = describe_survey(survey_of({name: host_facts(name) for name in names}, names))
    assert [line.endswith("yes    2 others") for line in told[3::2]] == [True] * 3


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
        assert len(line) <= WIDTH or line.strip() in names  # which can't be broken


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


# --- progress -------------------------------------------------------------------------------


RECENT = {
    "operations_per_s": 12_345.6, "read_gib_per_s": 1.234, "write_gib_per_s": 56.78,
    "read_p99_ms": 3.21,
}  # fmt: skip


def progress(plan: Plan | None = None, **changes: Any) -> str:
    return describe_progress(case_of(plan or make_plan()), 0, 3, event(**changes))


def test_progress_begins_with_case_trial_phase_and_time() -> None:
    text = progress(phase="population")
    assert text.startswith("chat-small-np1 trial 1/3 population 1 s, ")


def test_a_phase_begins_without_figures() -> None:
    assert progress(event="phase").endswith("trial 1/3 window")


def test_the_line_of_a_window_has_all_figures_of_the_last_second() -> None:
    text = progress(sound_plan(), t_s=12.3, recent=RECENT, free_bytes=123 * GIB)
    figures = ("12 s", "r 1.23 w 56.8 GiB/s", "12k IOPS", "r p99 3.21 ms", "hit 75%")
    for figure_ in (*figures, "free 123 GiB"):
        assert figure_ in text


def test_a_second_that_lacks_a_rank_has_dashes_instead_of_rates() -> None:
    text = progress(sound_plan(), recent=None, free_bytes=None)
    for part in ("r — w — GiB/s", "— IOPS", "r p99 —", "hit 75%", "free —"):
        assert part in text


def test_a_second_without_operations_is_zero_without_a_percentile() -> None:
    stalled = {**dict.fromkeys(RECENT, 0.0), "read_p99_ms": None}
    text = progress(recent=stalled, prompt_blocks=0, hit_blocks=0)
    for part in ("r 0.00 w 0.00 GiB/s", "0 IOPS", "r p99 —", "hit —"):
        assert part in text


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_without_a_directory_there_is_no_free_space(backend: str) -> None:
    assert "free" not in progress(make_plan(backend=backend), recent=RECENT)
    assert "free" not in progress(make_plan(backend=backend), phase="population")


def test_population_tells_how_much_is_stored_and_what_is_free() -> None:
    text = progress(sound_plan(), phase="population", cached_blocks=1000, free_bytes=5 * GIB)
    assert text.endswith("stored, free 5.00 GiB")


@settings(deadline=None)
@given(
    name=st.from_regex(r"[a-z][a-z0-9.-]{0,60}", fullmatch=True),
    t_s=st.floats(0, 99_999),
    recent=st.none()
    | st.fixed_dictionaries(
        {
            "operations_per_s": st.floats(0, 1e8),
            "read_gib_per_s": st.floats(0, 999),
            "write_gib_per_s": st.floats(0, 999),
            "read_p99_ms": st.none() | st.floats(0, 1e6),
        }
    ),
    free_bytes=st.none() | st.integers(0, 1 << 53),
)
def test_figures_fit_the_line_and_the_case_is_named_where_there_is_room(
    name: str, t_s: float, recent: dict[str, Any] | None, free_bytes: int | None
) -> None:
    plan = sound_plan(scenario=name)
    text = progress(plan, t_s=t_s, recent=recent, free_bytes=free_bytes)
    assert len(f"[kv] {text}") < WIDTH
    assert text.split(",")[-1].split("free ")[1].endswith(("GiB", "—"))
    assert (plan.case in text) == (len(f"[kv] {plan.case} 1/3 ") + len(_figures(text)) < WIDTH)


def _figures(text: str) -> str:
    """The line without its head: from the elapsed seconds on."""
    found = re.search(r"\d+ s[, ] ?r .*", text)
    assert found is not None
    return found[0]


# --- over time ------------------------------------------------------------------------------


def over_time(*trials: list[int], ascii_only: bool = False) -> list[str]:
    """The lines of a case whose trials read so much in each second, and wrote nothing."""
    plan = make_plan()
    made = []
    for index, moved in enumerate(trials):
        trial = trial_of(plan, index)
        assert trial.data is not None
        series = {"interval_s": 1, "read_bytes": moved, "write_bytes": [0] * len(moved)}
        made.append(replace(trial, data={**trial.data, "series": series}))
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
    assert all(len(line) < WIDTH for line in over_time(*moved))
