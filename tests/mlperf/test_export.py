"""``python -m pytest_kvcache mlperf export``: a run as the benchmark's files, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.errors import ResultError
from pytest_kvcache.mlperf.contradictions import contradictions_of
from pytest_kvcache.mlperf.export import exported
from pytest_kvcache.mlperf.published import read_results
from pytest_kvcache.models import MODELS
from pytest_kvcache.units import GIB
from tests.canned import case_of, run_of, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.results.run import RunResult


def mlperf_run(np: int = 2, *numbers: int) -> RunResult:
    plans = [
        make_plan(scenario=f"mlperf-{number}", model=MODELS["tiny-1b"], np=np, users=10, trace=None)
        for number in numbers or (1,)
    ]
    return run_of(*(case_of(plan, *(trial_of(plan, index) for index in (0, 1))) for plan in plans))


def write(path: Path, run: RunResult) -> Path:
    path.write_text(json.dumps(run.to_json()))
    return path


def summary_of(run: RunResult) -> dict[str, Any]:
    return exported(run)["summary.json"]


def test_what_changed_the_load_is_told_in_every_file() -> None:
    case = mlperf_run().cases[0]
    plan = replace(case.plan, tensor_parallel=4, reread_factor=2, request_rate=8.0, arrival="gamma")
    run = run_of(case_of(plan, trial_of(plan, 0)))
    files = exported(run)
    (metadata,) = (data for name, data in files.items() if name.endswith("_metadata.json"))
    told = metadata["options"]["1"]
    assert {"tensor_parallel", "reread_factor", "request_rate", "model"} <= {*told["differs_in"]}
    assert (told["tensor_parallel"], told["reread_factor"], told["request_rate"]) == (4, 2, 8.0)
    assert (told["kv_dtype"], told["load_steps"], told["requests"]) == ("float16", None, None)
    for data in files.values():
        assert "What ran as option 1 differs from it in model, " in data["note"]


@pytest.mark.parametrize("np", [1, 2])
def test_what_is_exported_imports_without_contradictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], np: int
) -> None:
    path = write(tmp_path / "run.json", mlperf_run(np, 1, 3))
    directory = tmp_path / "exported"
    assert main(["mlperf", "export", str(path), str(directory)]) == 0
    assert "no MLPerf submission" in capsys.readouterr().out
    (run,) = read_results(directory)
    assert contradictions_of(run) == []
    assert len(run.rank_files) == 2 * 2 * np
    assert "no MLPerf submission" in run.summary["note"]
    assert main(["mlperf", "import", str(directory)]) == 0


def test_tokens_per_second_are_bytes_per_second_over_those_of_a_token() -> None:
    run = mlperf_run(2)
    option = summary_of(run)["options"]["1"]
    (case,) = run.cases
    trials = [trial.measured for trial in case.trials if trial.measured is not None]
    bytes_per_s = sum(rank.read_bytes / t.window_s for t in trials for rank in t.ranks) / len(
        trials
    )
    assert option["aggregated_read_bandwidth_gbps"] == pytest.approx(bytes_per_s / GIB)
    assert option["aggregated_storage_throughput_tokens_per_sec"] == pytest.approx(
        bytes_per_s / MODELS["tiny-1b"].bytes_per_token
    )


def test_the_largest_p95_of_ranks_is_known_of_one_rank_only() -> None:
    alone, several = (summary_of(mlperf_run(np))["options"]["1"] for np in (1, 2))
    assert alone["aggregated_device_read_p95_ms"] > 0
    assert several["aggregated_device_read_p95_ms"] is None
    assert "aggregated_p95_latency_ms" not in alone


def test_a_failed_trial_leaves_no_figures_and_is_named() -> None:
    run = mlperf_run(2)
    (case,) = run.cases
    failed = trial_of(case.plan, 1, error="it broke")
    summary = summary_of(replace(run, cases=(replace(case, trials=(case.trials[0], failed)),)))
    option = summary["options"]["1"]
    assert option["aggregated_read_bandwidth_gbps"] is None
    assert option["missing_files"] == ["option_1/trial_1/rank_0", "option_1/trial_1/rank_1"]
    assert option["partial_failure"] is summary["partial_failure"] is True
    assert summary["trial_failures"] == {"1": [1]}


def test_an_absent_value_is_null_never_zero(tmp_path: Path) -> None:
    texts = [json.dumps(data) for data in exported(mlperf_run(2, 1, 2, 3)).values()]
    assert any("null" in text for text in texts)
    for data in exported(mlperf_run(2)).values():
        for option in data.get("options", {}).values():
            assert 0.0 not in [v for k, v in option.items() if k.startswith("aggregated")]
    del tmp_path


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (run_of(case_of(make_plan())), "no case of mlperf-1, mlperf-2, mlperf-3"),
        (
            replace(mlperf_run(1), cases=(*mlperf_run(1).cases, *mlperf_run(2).cases)),
            "has one of each option",
        ),
        (
            replace(mlperf_run(1), cases=(*mlperf_run(1).cases, *mlperf_run(2, 3).cases)),
            "is of one layout",
        ),
    ],
)
def test_a_run_that_is_no_such_result_is_refused(run: RunResult, sentence: str) -> None:
    with pytest.raises(ResultError, match=sentence):
        exported(run)


def test_a_directory_that_has_something_in_it_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "run.json", mlperf_run())
    assert main(["mlperf", "export", str(path), str(tmp_path)]) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_a_run_file_that_is_not_sound_is_not_exported(tmp_path: Path) -> None:
    data = mlperf_run().to_json()
    data["cases"][0]["trials"][0]["read"]["bytes"] += 1
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    assert main(["mlperf", "export", str(path), str(tmp_path / "exported")]) == 1
    assert not (tmp_path / "exported").exists()
