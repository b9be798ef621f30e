"""``python -m pytest_kvcache mlperf import``: what contradicts itself in a result is named.

The directory has the shape and figures of published results, without their names.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.mlperf.contradictions import contradictions_of
from pytest_kvcache.mlperf.figures import figures_of, unchecked_of
from pytest_kvcache.mlperf.published import read_results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STAMP = "20260704_120000"
RANKS, TRIALS = 2, 3
TOKEN_BYTES = 131_072
WORDS = {
    "1": "--model llama3.1-8b --num-users 200 --duration 300 --gpu-mem-gb 0 --cpu-mem-gb 0"
    " --max-concurrent-allocs 16 --generation-mode none",
    "2": "--model llama3.1-8b --num-users 100 --duration 300 --gpu-mem-gb 0 --cpu-mem-gb 4"
    " --max-concurrent-allocs 16 --generation-mode none",
    "3": "--model llama3.1-70b-instruct --num-users 70 --duration 300 --gpu-mem-gb 0 --cpu-mem-gb 0"
    " --max-concurrent-allocs 4 --generation-mode none",
}


def command_of(option: str, trial: int) -> str:
    return (
        f"mpirun -n {RANKS} -host 127.0.0.1:2 --bind-to none python3 mlperf_wrapper.py"
        f" --rank-output-base /results/option_{option}/trial_{trial} --rank-cache-base /mnt/cache"
        f" --seed-base 42 --config config.yaml {WORDS[option]}"
    )


def rank_file(option: str, trial: int, rank: int) -> dict[str, Any]:
    read_gib, token_bytes = 1200.0 + 10 * trial + rank, 327_680 if option == "3" else TOKEN_BYTES
    read, written = read_gib / 300.0, 250.0 / 300.0
    return {
        "seed": 42 + rank,
        "end_to_end_latencies": [0.5, 0.6],
        "summary": {
            "elapsed_time": 300.0,
            "avg_throughput_tokens_per_sec": 500.0,
            "storage_throughput_tokens_per_sec": read * 2**30 / token_bytes,
            "end_to_end_latency_ms": {"p95": 2_000.0},
            "storage_io_latency_ms": {"p95": 1_000.0 + rank},
            "cache_stats": {
                "storage_entries": 900,
                "tier_storage_kv_bytes_read_gb": read_gib,
                "tier_storage_kv_bytes_written_gb": 250.0,
                "tier_storage_read_bandwidth_gbps": read,
                "tier_storage_write_bandwidth_gbps": written,
                "storage_read_device_p95_ms": 90.0 + trial + rank,
                "storage_write_device_p95_ms": 50.0,
            },
        },
    }


def option_of(option: str) -> dict[str, Any]:
    read = sum(1200.0 + 10 * trial + rank for trial in range(3) for rank in range(2)) / 3 / 300.0
    token_bytes = 327_680 if option == "3" else TOKEN_BYTES
    return {
        "option": int(option),
        "aggregated_read_bandwidth_gbps": read,
        "aggregated_write_bandwidth_gbps": 500.0 / 300.0,
        "aggregated_avg_throughput_tokens_per_sec": 1_000.0,
        "aggregated_storage_throughput_tokens_per_sec": read * 2**30 / token_bytes,
        "aggregated_p95_latency_ms": 1_001.0,
        "rank_count": RANKS,
        "trial_count": TRIALS,
        "partial_failure": False,
        "missing_files": [],
        "cpu_tier_ranks": [],
    }


class Result:
    """A sound result, before it is written; its parts may be changed."""

    def __init__(self) -> None:
        self.summary_name = "summary.json"
        self.summary: dict[str, Any] = {
            "schema_version": "1.0",
            "run_datetime": STAMP,
            "npernode": 2,
            "host_count": 1,
            "total_ranks": RANKS,
            "trials_per_option": TRIALS,
            "options": {option: option_of(option) for option in WORDS},
            "partial_failure": False,
            "trial_failures": {},
        }
        self.metadata: dict[str, Any] = {
            "benchmark_type": "kv_cache",
            "args": {"mode": "closed", "seed": 42, "trials": 3, "inter_option_delay": 90},
            "executed_command": command_of("3", 2),
            "command_output_files": [
                {"command": command_of(option, trial)} for option in WORDS for trial in range(3)
            ],
        }
        self.ranks = {
            (option, trial, rank): rank_file(option, trial, rank)
            for option in WORDS
            for trial in range(TRIALS)
            for rank in range(RANKS)
        }

    def write(self, path: Path) -> Path:
        path.mkdir(parents=True)
        (path / self.summary_name).write_text(json.dumps(self.summary))
        (path / f"kv_cache_{STAMP}_metadata.json").write_text(json.dumps(self.metadata))
        for (option, trial, rank), data in self.ranks.items():
            directory = path / f"option_{option}" / f"trial_{trial}" / f"rank_{rank}"
            directory.mkdir(parents=True)
            (directory / f"kvcache_results_{STAMP}.json").write_text(json.dumps(data))
        return path

    def lose(self, option: str, trial: int, rank: int) -> None:
        """A rank's file is missing, and the summary says so."""
        del self.ranks[option, trial, rank]
        lost = f"/x/option_{option}/trial_{trial}/rank_{rank}"
        self.set(option, missing_files=[lost], partial_failure=True)
        self.summary["partial_failure"] = True

    def set(self, option: str, **values: Any) -> None:
        self.summary["options"][option] |= values


def found_in(path: Path) -> list[str]:
    (run,) = read_results(path)
    return [f"{each.kind}: {each}" for each in contradictions_of(run)]


def test_a_sound_result_has_no_contradictions_and_adds_up(tmp_path: Path) -> None:
    path = Result().write(tmp_path / "run")
    assert found_in(path) == []
    (run,) = read_results(path)
    figures = figures_of(run, "1")
    assert figures.summed["aggregated_read_bandwidth_gbps"] == pytest.approx(2421 / 300)
    assert figures.summed["aggregated_p95_latency_ms"] == 1_001.0
    assert figures.summed["aggregated_device_read_p95_ms"] == 93.0
    assert (figures.rank_files, figures.expected_rank_files) == (6, 6)
    assert main(["mlperf", "import", str(path)]) == 0


def test_latencies_by_the_rules_spelling_are_read_too(tmp_path: Path) -> None:
    result = Result()
    for option in WORDS:
        del result.summary["options"][option]["aggregated_p95_latency_ms"]
        result.set(option, aggregated_device_read_p95_ms=93.0, aggregated_device_write_p95_ms=51.0)
    (found, *others) = found_in(result.write(tmp_path / "run"))
    assert found == (
        "sums: option 1: aggregated_device_write_p95_ms is 51, and the largest of the ranks' is 50"
    )
    assert len(others) == 2


FAULTS: list[tuple[Callable[[Result], object], str]] = [
    (
        lambda r: r.set("1", aggregated_storage_throughput_tokens_per_sec=40.2),
        (
            "tokens: option 1: aggregated_storage_throughput_tokens_per_sec is 40.2, and 8.07 GiB/s"
            " are 66,109 tokens/s of llama3.1-8b (131,072 bytes each)"
        ),
    ),
    (
        lambda r: r.set("2", aggregated_p95_latency_ms=463_143.6),
        (
            "latency: option 2: aggregated_p95_latency_ms is 463 s in a window of 300 s: that is"
            " the age of a queue, not a time of the storage"
        ),
    ),
    (
        lambda r: r.ranks["3", 0, 1]["summary"].update(end_to_end_latency_ms={"p95": 331_438}),
        (
            "latency: option 3: the P95 of end_to_end_latency_ms is up to 331 s in a window of 300"
            " s, in 1 of 6 rank files"
            " (option_3/trial_0/rank_1/kvcache_results_20260704_120000.json)"
        ),
    ),
    (
        lambda r: r.set("1", aggregated_p95_latency_ms=0.0),
        (
            "zero: option 1: aggregated_p95_latency_ms is 0.0, the best there is: what was not"
            " measured must be null"
        ),
    ),
    (
        lambda r: r.set("3", aggregated_read_bandwidth_gbps=0.0),
        (
            "zero: option 3: aggregated_read_bandwidth_gbps is 0.0: what was not measured must be"
            " null"
        ),
    ),
    (
        lambda r: r.set("1", aggregated_write_bandwidth_gbps=2.5),
        (
            "sums: option 1: aggregated_write_bandwidth_gbps is 2.5, and the ranks' files add up to"
            " 1.666666667"
        ),
    ),
    (
        lambda r: r.ranks.pop(("2", 1, 1)),
        (
            "missing: option 2: 1 rank left no file (option_2/trial_1/rank_1), and missing_files"
            " does not say so"
        ),
    ),
    (
        lambda r: r.lose("2", 1, 1),
        (
            "missing: option 2: rank files missing: 1 of 6 (/x/option_2/trial_1/rank_1), and it is"
            " averaged over the others"
        ),
    ),
    (
        lambda r: r.set("2", partial_failure=True),
        "failure: partial_failure is False, and it is so of options 2",
    ),
    (
        lambda r: r.set("2", rank_count=3),
        "ranks: option 2: rank_count is 3, and total_ranks is 2",
    ),
    (
        lambda r: r.summary.update(npernode=4),
        "ranks: total_ranks is 2, and host_count times npernode is 1 times 4",
    ),
    (
        lambda r: r.metadata.update(num_users=100),
        (
            "metadata: kv_cache_20260704_120000_metadata.json says that num_users is 100; the"
            " recorded commands have 200 (option 1), 70 (option 3)"
        ),
    ),
    (
        lambda r: r.metadata.update(parameters={"generation_mode": "realistic"}),
        (
            "metadata: kv_cache_20260704_120000_metadata.json says that generation_mode is"
            " realistic; the recorded commands have none (option 1), none (option 2), none (option"
            " 3)"
        ),
    ),
    (
        lambda r: r.metadata["args"].update(enable_rag=True),
        (
            "metadata: kv_cache_20260704_120000_metadata.json says that enable_rag is on; no"
            " recorded command has --enable-rag"
        ),
    ),
    (
        lambda r: r.metadata["args"].update(inter_option_delay=20),
        "rules: the run is closed, and inter_option_delay is 20; the rules say 90",
    ),
    (
        lambda r: r.summary["options"].pop("3"),
        "summary: option 3: there are ranks' files, and summary.json has no such option",
    ),
    (
        lambda r: r.metadata["command_output_files"].append(
            {"command": command_of("1", 0).replace("-n 2", "-n 2 -x LD_PRELOAD=libnosync.so")}
        ),
        (
            "preload: the run is closed, and its commands set LD_PRELOAD=libnosync.so, which may"
            " change what is written and read"
        ),
    ),
    (
        lambda r: r.metadata["command_output_files"].insert(
            0, {"command": command_of("1", 0).replace("--num-users 200", "--num-users 20")}
        ),
        (
            "rules: option 1: the run is closed, and its command has --num-users 20 and 200; the"
            " rules say 200"
        ),
    ),
    (
        lambda r: r.ranks["1", 0, 1].update(seed=42),
        (
            "rank: option 1: option_1/trial_0/rank_1/kvcache_results_20260704_120000.json: its seed"
            " is 42, and that of rank 1 is 43"
        ),
    ),
    (
        lambda r: r.ranks["1", 0, 0]["summary"].update(elapsed_time=600.0),
        (
            "rank: option 1: option_1/trial_0/rank_0/kvcache_results_20260704_120000.json:"
            " tier_storage_read_bandwidth_gbps is 4, and tier_storage_kv_bytes_read_gb over 600 s"
            " is 2"
        ),
    ),
    (
        lambda r: r.set("1", cpu_tier_ranks=["a.json"]),
        "missing: option 1: 1 rank (a.json) stored nothing, and count as ranks of its storage",
    ),
    (
        lambda r: setattr(r, "summary_name", f"kvcache_run_summary_{STAMP}.json"),
        (
            "summary: its summary is named kvcache_run_summary_20260704_120000.json; the"
            " benchmark's report reads summary.json alone, and leaves this run out"
        ),
    ),
    (
        lambda r: r.summary.update(trial_failures={"1": [0]}),
        "failure: trials failed ({'1': [0]}), and the run has figures",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), FAULTS)
def test_what_contradicts_itself_is_named(
    tmp_path: Path, change: Callable[[Result], object], sentence: str
) -> None:
    result = Result()
    change(result)
    path = result.write(tmp_path / "run")
    assert sentence in found_in(path)
    assert main(["mlperf", "import", str(path)]) == 1


def test_where_files_are_missing_nothing_is_added_up(tmp_path: Path) -> None:
    result = Result()
    del result.ranks["1", 2, 0]
    (run,) = read_results(result.write(tmp_path / "run"))
    assert set(figures_of(run, "1").summed.values()) == {None}
    assert figures_of(run, "2").summed["aggregated_read_bandwidth_gbps"] is not None


def test_a_summary_alone_is_read(tmp_path: Path) -> None:
    result = Result()
    result.ranks.clear()
    (run,) = read_results(result.write(tmp_path / "run"))
    assert contradictions_of(run) == []
    assert figures_of(run, "1").rank_files == 0


def test_every_run_below_a_directory_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Result().write(tmp_path / "vendor" / "run" / "a")
    other = Result()
    other.set("1", aggregated_p95_latency_ms=400_000.0)
    other.write(tmp_path / "vendor" / "run" / "b")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "summary.json").write_text('{"epochs": 3}')  # another benchmark's
    capsys.readouterr()
    assert main(["mlperf", "import", str(tmp_path), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "pytest-kvcache/mlperf-import/1"
    assert [len(run["contradictions"]) for run in data["results"]] == [0, 2]
    assert data["results"][0]["options"]["1"]["bytes_per_token"] == TOKEN_BYTES


def test_the_text_shows_stated_and_computed_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result()
    result.set("1", aggregated_storage_throughput_tokens_per_sec=40.2)
    path = result.write(tmp_path / "run")
    capsys.readouterr()
    assert main(["mlperf", "import", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("  1 ")]
    assert row.split()[:6] == ["1", "8.07", "1.667", "40.2", "66,109", "1.001"]
    assert all(len(line) <= 79 for line in lines[1:])


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no result of the benchmark"),
        ({"summary.json": "{"}, "is not valid JSON"),
        ({"kvcache_run_summary_1.json": "[]"}, "holds a list; it must be an object"),
        ({"kvcache_run_summary_1.json": '{"options": {"1": 3}}'}, "options must be an object of"),
    ],
)
def test_what_can_not_be_read_is_said_and_is_no_contradiction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], sentence: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["mlperf", "import", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def _text_as_figure(result: Result) -> None:
    result.set("1", aggregated_read_bandwidth_gbps="8.07")


def _text_in_a_rank(result: Result) -> None:
    stats = result.ranks["1", 1, 0]["summary"]["cache_stats"]
    stats["tier_storage_read_bandwidth_gbps"] = "4.0"


UNCHECKED: list[tuple[Callable[[Result], object], str]] = [
    (_text_as_figure, "aggregated_read_bandwidth_gbps is '8.07', which is no number"),
    (
        _text_in_a_rank,
        (
            "aggregated_read_bandwidth_gbps, for cache_stats.tier_storage_read_bandwidth_gbps is no"
            " number in 1 of 6 rank files"
            f" (option_1/trial_1/rank_0/kvcache_results_{STAMP}.json)"
        ),
    ),
    (
        lambda r: r.ranks["1", 0, 0]["summary"].pop("elapsed_time"),
        (
            f"option_1/trial_0/rank_0/kvcache_results_{STAMP}.json: its bandwidths, for it has no"
            " number elapsed_time"
        ),
    ),
    (
        lambda r: r.summary.update(total_ranks="2"),
        "aggregated_read_bandwidth_gbps, for total_ranks of the summary is no number",
    ),
    (
        lambda r: r.ranks.clear(),
        (
            "aggregated_read_bandwidth_gbps, for there are 0 rank files of 6, which must be one of"
            " each rank and trial"
        ),
    ),
]


@pytest.mark.parametrize(("change", "sentence"), UNCHECKED)
def test_what_can_not_be_checked_is_said_and_is_no_contradiction(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Result], object],
    sentence: str,
) -> None:
    result = Result()
    change(result)
    path = result.write(tmp_path / "run")
    assert main(["mlperf", "import", str(path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["results"]
    assert f"can't be recomputed: {sentence}" in run["unchecked"]["1"]
    assert main(["mlperf", "import", str(path)]) == 0
    text = capsys.readouterr().out
    assert "no contradictions in what could be checked" in text
    assert "not checked: " in text


@pytest.mark.parametrize("place", [("1", 0, 2), ("1", 3, 0)])
def test_more_rank_files_than_ranks_are_a_contradiction(
    tmp_path: Path, place: tuple[str, int, int]
) -> None:
    result = Result()
    result.ranks[place] = rank_file(*place)
    path = result.write(tmp_path / "run")
    assert any("1 rank file more than total_ranks and" in each for each in found_in(path))
    assert main(["mlperf", "import", str(path)]) == 1


def test_a_sound_result_leaves_nothing_unchecked(tmp_path: Path) -> None:
    (run,) = read_results(Result().write(tmp_path / "run"))
    assert [unchecked_of(run, name) for name in run.option_names] == [[], [], []]


def test_a_rank_in_the_place_of_another_is_not_added_up(tmp_path: Path) -> None:
    result = Result()
    result.ranks["1", 0, 7] = result.ranks.pop(("1", 0, 1))
    (run,) = read_results(result.write(tmp_path / "run"))
    assert set(figures_of(run, "1").summed.values()) == {None}
    assert any("6 rank files of 6, which must be one of" in each for each in unchecked_of(run, "1"))
