"""Whole runs with real ranks under mpirun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.workloads.openloop import arrival_offsets_ns
from tests.recordings import MOONCAKE, REFERENCE, trace_path
from tests.site import (
    PATIENCE_S,
    PLUGINS,
    PYTEST,
    SMALL,
    SUITE,
    Site,
    machine_to_oneself,
    output,
    storage_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.mpi

DEFAULT_METRICS = (
    "load.p95_ms",
    "load.p50_ms",
    "read.gib_per_s",
    "write.gib_per_s",
    "requests.per_s",
)


@dataclass(frozen=True)
class Done:
    """A session that ended."""

    text: str
    exit_code: int
    run: dict[str, Any]
    benchmarks: list[dict[str, Any]]
    run_file: Path
    cache_dir: Path

    @property
    def case(self) -> dict[str, Any]:
        (case,) = self.run["cases"]
        found: dict[str, Any] = case
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, mpirun: str) -> Iterator[Done]:
    """Two trials of two ranks on files, all default metrics; many tests look at it."""
    del mpirun
    path = tmp_path_factory.mktemp("a path with spaces")
    with storage_directory("a cache with spaces") as cache_dir:
        command = [
            sys.executable, "-m", "pytest", *PYTEST, *SUITE, *SMALL, "--kv-backend=file",
            f"--kv-cache-dir={cache_dir}", f"--kv-results-dir={path / 'my results'}",
            "--kv-num-users=40", "--kv-duration=2", "--kv-trials=2", "--kv-verify=full",
            f"--kv-metrics={','.join(DEFAULT_METRICS)}", "--benchmark-json=benchmarks.json",
            "--kv-allow-invalid", "--kv-store=file",
        ]  # fmt: skip
        # Only while it runs: other tests of this module want the machine for themselves.
        with machine_to_oneself():
            ended = subprocess.run(
                command, cwd=path, capture_output=True, text=True, check=False,
                timeout=PATIENCE_S,
                env={**os.environ, "PYTHONPATH": str(PLUGINS), "NO_COLOR": "1"},
            )  # fmt: skip
        (run_file,) = path.glob("my results/*/run.json")
        yield Done(
            text=ended.stdout,
            exit_code=ended.returncode,
            run=json.loads(run_file.read_text()),
            benchmarks=json.loads((path / "benchmarks.json").read_text())["benchmarks"],
            run_file=run_file,
            cache_dir=cache_dir,
        )


def trials(done: Done) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = done.case["trials"]
    return found


# --- one run, looked at from all sides ------------------------------------------------------


def test_a_run_passes_with_an_entry_for_each_default_metric(done: Done) -> None:
    assert done.exit_code == pytest.ExitCode.OK, done.text
    assert f"{len(DEFAULT_METRICS)} passed" in done.text
    assert [b["extra_info"]["metric"] for b in done.benchmarks] == list(DEFAULT_METRICS)
    assert all(len(b["stats"]["data"]) == 2 for b in done.benchmarks)


def test_the_run_file_is_sound(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(done.run_file)]) == 0
    assert capsys.readouterr().out.endswith(": sound, and as the records of 2 trials say\n")


def test_every_rank_is_a_process_of_its_own_on_this_host(done: Done) -> None:
    pids = set()
    for trial in trials(done):
        ranks = trial["ranks"]
        assert [rank["rank"] for rank in ranks] == [0, 1]
        assert {rank["host"] for rank in ranks} == set(done.run["environment"]["hosts"])
        pids |= {rank["pid"] for rank in ranks}
    assert len(pids) == 4


def test_the_ranks_divide_the_cores(done: Done) -> None:
    cores = len(os.sched_getaffinity(0))
    for trial in trials(done):
        assert [rank["cores"] for rank in trial["ranks"]] == [
            max(1, cores // 2), max(1, cores - cores // 2)
        ]  # fmt: skip


def test_both_ranks_read_and_wrote_in_the_common_window(done: Done) -> None:
    for trial in trials(done):
        assert 0 < trial["window_s"] <= 2
        for rank in trial["ranks"]:
            assert rank["read_bytes"] > 0
            assert rank["write_bytes"] > 0
        for section in ("read", "write"):
            moved = sum(rank[f"{section}_bytes"] for rank in trial["ranks"])
            assert trial[section]["bytes"] == moved
            assert trial[section]["failed"] == 0
            rate = moved / trial["window_s"] / (1 << 30)
            assert trial[section]["gib_per_s"] == pytest.approx(rate)


def test_everything_read_was_verified_and_right(done: Done) -> None:
    for trial in trials(done):
        assert trial["integrity"]["checked"] >= trial["read"]["count"]
        assert trial["integrity"]["failed"] == 0


def test_a_warm_cache_hits_most_of_a_dialogue(done: Done) -> None:
    for trial in trials(done):
        cache = trial["cache"]
        assert 0.5 < cache["hit_ratio"] < 1
        assert cache["hit_ratio"] == cache["hit_blocks"] / cache["prompt_blocks"]
        assert cache["tiers"]["storage"]["blocks"] > 0


def test_the_plan_says_what_ran(done: Done) -> None:
    plan = done.case["plan"]
    assert (plan["users"], plan["duration_s"], plan["backend"]) == (40, 2.0, "file")
    assert plan["cache_dir"] == str(done.cache_dir)
    assert done.run["environment"]["launcher"].startswith("/")
    assert "Open MPI" in done.run["environment"]["mpi"] or "MPICH" in done.run["environment"]["mpi"]


def test_reads_are_direct_or_the_reason_is_visible(done: Done) -> None:
    for trial in trials(done):
        if trial["proof"]["io_mode"] != "direct":
            assert all(rank["io_note"] for rank in trial["ranks"])
            assert "note: " in done.text


def test_nothing_is_left_in_the_cache_directory(done: Done) -> None:
    assert list(done.cache_dir.iterdir()) == []


def test_our_lines_fit_the_terminal_and_control_nothing(done: Done) -> None:
    assert not any(character in done.text for character in "\x1b\r")
    ours = done.text.partition("- kvcache -")[2].partition("run file:")[0].splitlines()
    progress = [line for line in done.text.splitlines() if line.startswith("[kv] ")]
    assert ours
    assert progress
    assert max(map(len, [*ours[1:], *progress])) <= 80


def test_a_table_and_the_place_of_the_run_file_are_shown(done: Done) -> None:
    assert "chat-tiny-1b-np2\n" in done.text
    assert re.search(f"^run file: .*{done.run_file.parent.name}/run.json$", done.text, re.MULTILINE)
    for metric in DEFAULT_METRICS:
        assert f"\n  {metric}" in done.text


# --- other runs -----------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_list_of_counts_runs_each_and_memory_is_no_storage(real_site: Site) -> None:
    result = real_site.real("--kv-np=1,2", "--kv-metrics=read.gib_per_s", "--kv-allow-invalid")
    result.assert_outcomes(passed=2)
    assert [len(c["trials"][0]["ranks"]) for c in real_site.run()["cases"]] == [1, 2]
    assert output(result).count("NOT_STORAGE warning: ") == 2


def test_a_users_own_test_runs_ranks(real_site: Site) -> None:
    source = """
        def test_one(kvcache):
            run = kvcache.run(scenario="agent", np=1, num_users=2, seed=7)
            assert run.metric("read.gib_per_s") > 0
            assert kvcache.run(scenario="agent", np=1, num_users=2, seed=7).result is run.result
    """
    real_site.pytester.makepyfile(test_mine=source)
    result = real_site.pytester.runpytest_subprocess(
        "test_mine.py", *PYTEST, *SMALL, "--kv-allow-invalid", timeout=PATIENCE_S
    )
    result.assert_outcomes(passed=1)
    assert real_site.case()["name"] == "agent-tiny-1b-np1"
    assert len(real_site.launches()) == 1


@pytest.mark.thorough
def test_a_replay_hits_what_an_endless_cache_hits(real_site: Site) -> None:
    prompts = ([1, 2], [3, 4], [1, 2], [1, 2, 5])
    lines = [
        {"timestamp": 0, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}
        for ids in prompts
    ]
    (real_site.path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = [arg for arg in real_site.real_args() if not arg.startswith(
        ("--kv-scenario", "--kv-block-tokens", "--kv-duration", "--kv-context"))]  # fmt: skip
    result = real_site.pytester.runpytest_subprocess(
        *args, "--kv-np=1", "--kv-backend=null", "--kv-trace=t.jsonl", "--kv-trace-speedup=0",
        "--kv-metrics=cache.hit_ratio", "--kv-allow-invalid", timeout=PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    cache = real_site.case()["trials"][0]["cache"]
    assert (cache["prompt_blocks"], cache["hit_blocks"]) == (9, 4)


@pytest.mark.thorough
def test_a_recorded_trace_hits_what_its_reference_says(real_site: Site) -> None:
    reference, capacity_blocks = REFERENCE[MOONCAKE], 4_392
    stored = 512 * 24_576  # of a block of tiny-1b
    result = real_site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=1", "--kv-allow-run-as-root", "--kv-backend=null",
        "--kv-model=tiny-1b", "--kv-trials=1", f"--kv-trace={trace_path(MOONCAKE)}",
        "--kv-trace-speedup=0", "--kv-metrics=cache.hit_ratio", "--kv-allow-invalid",
        f"--kv-storage-capacity-gb={capacity_blocks * stored}B", timeout=2 * PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    trial = real_site.case()["trials"][0]
    cache = trial["cache"]
    assert cache["prompt_blocks"] == reference.prompt_blocks
    assert trial["read"]["count"] == cache["hit_blocks"]
    assert trial["write"]["count"] == cache["evictions"] + capacity_blocks
    ratios = {capacity: (blocks, tokens) for capacity, blocks, tokens in reference.lru}
    found = (f"{cache['hit_ratio']:.6f}", f"{cache['hit_token_ratio']:.6f}")
    assert found == ratios[capacity_blocks]


@pytest.mark.thorough
def test_a_run_on_slabs_says_so_passes_and_leaves_nothing(real_site: Site) -> None:
    with storage_directory("slabs") as cache_dir:
        result = real_site.real(
            "--kv-backend=file", "--kv-store=slab", f"--kv-cache-dir={cache_dir}",
            "--kv-verify=full", "--kv-allow-invalid", "--kv-num-users=20",
            "--kv-metrics=requests.per_s",
        )  # fmt: skip
        assert list(cache_dir.iterdir()) == []
    result.assert_outcomes(passed=1)
    plan = real_site.case()["plan"]
    assert (plan["store"], plan["origins"]["store"]) == ("slab", "command line")
    assert "file as slabs in" in " ".join(output(result).split())
    assert main(["verify", str(real_site.run_file())]) == 0
    (trial,) = real_site.case()["trials"]
    assert trial["integrity"]["checked"] >= trial["read"]["count"] > 0
    assert trial["integrity"]["failed"] == 0


def scheduled(plan: Plan) -> list[int]:
    """How many requests each rank has to issue in its ramp and its window."""
    assert plan.request_rate is not None
    assert plan.arrival is not None
    span_s = plan.ramp_s + (plan.duration_s or 0.0)
    schedules = [
        arrival_offsets_ns(
            per_s=plan.request_rate / plan.np,
            arrival=plan.arrival,
            span_s=span_s,
            identity=f"{plan.seed}/{plan.trial}/{rank}/arrivals",
        )
        for rank in range(plan.np)
    ]
    return [int((offsets_ns < int(span_s * 1e9)).sum()) for offsets_ns in schedules]


@pytest.mark.thorough
@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_a_rate_is_issued_to_the_last_request(real_site: Site, arrival: str) -> None:
    with storage_directory("open-loop") as cache_dir:
        result = real_site.real(
            "--kv-backend=file", f"--kv-cache-dir={cache_dir}", "--kv-request-rate=50",
            f"--kv-arrival={arrival}", "--kv-duration=2", "--kv-metrics=scheduling_lag.p50_ms",
            "--kv-allow-invalid",
        )  # fmt: skip
    result.assert_outcomes(passed=1)
    assert f"50 requests/s ({arrival}) by 10 users per rank" in " ".join(output(result).split())
    plan, trial = Plan.from_json(real_site.case()["plan"]), real_site.case()["trials"][0]
    offered = [rank["offered"] for rank in trial["ranks"]]
    assert offered == scheduled(plan)
    assert len(set(offered)) == 2  # each rank has a schedule of its own
    assert 50 < sum(offered) < 200
    assert trial["scheduling_lag"]["count"] == sum(offered)
    assert trial["scheduling_lag"]["ms"]["p50"] >= 0
    requests = trial["requests"]
    assert requests["completed"] + requests["backlog"] + requests["dropped"] == sum(offered)
    assert all(mean is None or mean >= 0 for mean in requests["half_waiting"])
    (run_file,) = real_site.path.glob("results/*/run.json")
    assert main(["verify", str(run_file)]) == 0


@pytest.mark.thorough
def test_a_rate_that_the_storage_can_not_follow_is_an_overload_and_fails(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_SLEEP_S", "0.05")  # 640 transfers per second
    result = real_site.real(
        "--kv-backend=slow", "--kv-request-rate=400", "--kv-duration=2",
        "--kv-metrics=requests.per_s",
    )  # fmt: skip
    result.assert_outcomes(failed=1)
    trial = real_site.case()["trials"][0]
    (verdict,) = (v for v in trial["verdicts"] if v["code"] == "OVERLOADED")
    assert verdict["severity"] == "invalid"
    assert "lower --kv-request-rate" in verdict["text"]
    assert "OVERLOADED" in trial["error"]
    requests = trial["requests"]
    assert requests["backlog"] + requests["storing"] > requests["offered"] / 20


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("store", "names"), [("file", "rank-*/??/*"), ("auto", "rank-*/kvcache-slab-0000")]
)
def test_data_is_kept_where_the_user_asks_for_it(real_site: Site, store: str, names: str) -> None:
    result = real_site.real(
        "--kv-backend=file", "--kv-keep", "--kv-io=buffered", "--kv-allow-invalid",
        "--kv-metrics=read.gib_per_s", f"--kv-store={store}",
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    (kept,) = real_site.cache_dir.iterdir()
    assert kept.name == f"kvcache-{real_site.run()['run_id']}"
    assert sorted(path.name for path in kept.iterdir()) == ["KVCACHE-RUN", "rank-0", "rank-1"]
    assert any(path.is_file() for path in kept.glob(names))
    assert f"data of the last trial (--kv-keep): {kept} on " in output(result)
    trial = real_site.case()["trials"][0]
    assert (trial["proof"]["io_mode"], real_site.case()["plan"]["sync"]) == ("buffered", "data")


@pytest.mark.thorough
@pytest.mark.parametrize(("phase", "store"), [("both", "file"), ("decode", "slab")])
def test_blocks_in_layers_are_stored_and_read_a_layer_each(
    real_site: Site, phase: str, store: str
) -> None:
    result = real_site.real(
        "--kv-layout=layer", f"--kv-phase={phase}", "--kv-backend=file", f"--kv-store={store}",
        "--kv-verify=full", "--kv-block-tokens=16", "--kv-num-users=10", "--kv-allow-invalid",
        "--kv-metrics=read.gib_per_s,load.p50_ms", "--kv-keep",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    case = real_site.case()
    (trial,) = case["trials"]
    layers, layer_bytes = 12, 16 * 2048  # tiny-1b: 2 KiB per token and layer
    assert case["plan"]["object_layout"] == "layer"
    assert f"= 384 KiB in {layers} objects of 32 KiB" in " ".join(output(result).split())
    read, integrity = trial["read"], trial["integrity"]
    assert read["bytes"] % layer_bytes == 0
    assert (integrity["failed"], trial["read"]["failed"]) == (0, 0)
    assert integrity["checked"] >= read["count"] > layers
    blocks = sum(rank["cached_blocks"] for rank in trial["ranks"])
    assert trial["cache"]["tiers"]["storage"]["bytes"] == blocks * layers * layer_bytes
    assert main(["verify", str(real_site.run_file())]) == 0
    (kept,) = real_site.cache_dir.iterdir()
    files = [path for path in kept.glob("rank-*/??/*") if path.is_file()]
    assert len(files) == (blocks * layers if store == "file" else 0)
    assert {path.stat().st_size for path in files} <= {layer_bytes}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("phase", "skipped"),
    [("prefill", ("load.p50_ms", "read.gib_per_s")), ("decode", ("write.gib_per_s",))],
)  # fmt: skip
def test_a_phase_skips_the_metrics_that_it_can_not_have(
    real_site: Site, phase: str, skipped: tuple[str, ...]
) -> None:
    kind = {"prefill": "read", "decode": "write"}[phase]
    metrics = [metric for metric in DEFAULT_METRICS if metric != "load.p95_ms"]  # few samples do
    result = real_site.real(
        f"--kv-phase={phase}", "--kv-backend=file", "--kv-trials=1", "--kv-num-users=40",
        f"--kv-metrics={','.join(metrics)}", "--kv-allow-invalid", "--kv-duration=3", "-rs",
    )  # fmt: skip
    result.assert_outcomes(passed=len(metrics) - len(skipped), skipped=len(skipped))
    for metric in skipped:
        result.stdout.fnmatch_lines([f"*{metric}: --kv-phase={phase} makes no {kind}s*"])
    (trial,) = real_site.case()["trials"]
    assert trial[kind]["count"] == trial[kind]["bytes"] == 0
    assert trial[{"read": "write", "write": "read"}[kind]]["count"] > 0
