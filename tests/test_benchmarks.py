from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import fio
from benchmarks.figures import Figure, ratios, table
from benchmarks.ratioplot import ratio_plot
from benchmarks.reference import lines
from benchmarks.storage import in_turn, trial_figures
from benchmarks.storagefigures import figures_of, row_name, size_of
from benchmarks.uniform import MODEL, UniformAppend, UniformFamily, UniformOverwrite, UniformRead
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from pytest_kvcache.workloads.protocol import WorkloadContext
from tests.factories import rank_result, sound_plan, sound_record

ROOT = Path(__file__).parents[1]
KIB, MIB = 1 << 10, 1 << 20

# What fio 3.33 writes, without the parts that nobody reads.
REPORT: dict[str, Any] = {
    "fio version": "fio-3.33",
    "jobs": [
        {
            "jobname": "beside",
            "error": 0,
            "job_runtime": 4000,
            "usr_cpu": 2.5,
            "sys_cpu": 10.0,
            "read": {
                "io_bytes": 1 << 30,
                "bw_bytes": 1 << 29,
                "iops": 512.0,
                "total_ios": 1024,
                "lat_ns": {
                    "percentile": {
                        "50.000000": 1_000_000,
                        "95.000000": 2_000_000,
                        "99.000000": 3_000_000,
                        "99.900000": 4_000_000,
                    }
                },
            },
            "write": {"io_bytes": 0},
        }
    ],
}


def figure(*values: float, target: float = 0.95, at_least: bool = True) -> Figure:
    return Figure(name="read", unit="× fio", target=target, at_least=at_least, values=values)


def side(speed: float, **more: Any) -> dict[str, Any]:
    ms = {"p50": 0.01, "p95": 0.02, "p99": 0.03, "p999": None}
    return {
        "gib_per_s": speed, "cpu_s_per_gib": 0.1, "ops_per_s": 1000 * speed, "ms": ms, **more,
    }  # fmt: skip


def raw_figures() -> dict[str, dict[str, list[Any]]]:
    """Two rounds of everything."""
    ours = side(0.9, peak_rss_bytes=200 * MIB)
    beside = {"ours": ours, "threads": side(0.6), "fio": side(1.0, cpu_s_per_gib=0.04)}
    both = [beside, beside]
    sizes = (16 * KIB, 64 * KIB, MIB, 32 * MIB)
    shapes = ((1, 16), (2, 8))
    return {
        "reads": {row_name("read", size, shape): both for shape in shapes for size in sizes},
        "unverified": {row_name("read", 64 * KIB, (1, 16)): both},
        "writes": {row_name("write", MIB, (2, 8)): both},
        "null": {"s": [{"ops_per_s": 500_000.0}]},
        "checked": {"s": [{"null_ops_per_s": 200_000.0}]},
        "start": {"s": [1.0, 1.2]},
        "gather": {"s": [0.4]},
    }  # fmt: skip


# --- fio ------------------------------------------------------------------------------------


def test_a_report_of_fio_gives_its_rates_its_percentiles_and_its_cpu_time() -> None:
    assert fio.figures(REPORT, "read") == {
        "gib_per_s": 0.5,
        "ops_per_s": 512.0,
        "ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0, "p999": 4.0},
        "cpu_s_per_gib": pytest.approx(0.5),
        "count": 1024,
    }


def test_a_report_of_fio_without_what_was_asked_for_is_no_figure() -> None:
    with pytest.raises(ValueError, match="fio made no write"):
        fio.figures(REPORT, "write")


def test_a_failed_job_of_fio_is_no_figure() -> None:
    report = copy.deepcopy(REPORT)
    report["jobs"][0]["error"] = 28
    with pytest.raises(ValueError, match="error 28"):
        fio.figures(report, "read")


def test_jobs_of_fio_that_were_not_summed_are_no_figure() -> None:
    with pytest.raises(ValueError, match="2 groups"):
        fio.figures({"jobs": REPORT["jobs"] * 2}, "read")


def job(**changes: Any) -> fio.FioJob:
    values: dict[str, Any] = {
        "kind": "read", "block_bytes": MIB, "jobs": 2, "depth": 8, "engine": "libaio",
        "size_bytes": 1 << 30, "seconds": 2.0,
    }  # fmt: skip
    return fio.FioJob(**{**values, **changes})


def test_the_pattern_is_the_command_of_fio() -> None:
    argv = job().argv(Path("/data"))
    wanted = "--rw=randread --bs=1048576 --numjobs=2 --iodepth=8 --direct=1 --time_based"
    assert {*wanted.split(), "--runtime=2000ms", "--directory=/data", "--unlink=1"} <= set(argv)


@pytest.mark.parametrize(
    ("meminfo", "memory"),
    [
        ("HugePages_Free:      64\nHugepagesize:       2048 kB\n", "mmaphuge"),
        ("HugePages_Free:      63\nHugepagesize:       2048 kB\n", "malloc"),
        ("HugePages_Free:       0\nHugepagesize:       2048 kB\n", "malloc"),
        ("MemTotal:       24567890 kB\n", "malloc"),
    ],
)
def test_fio_has_huge_pages_if_enough_are_in_reserve(meminfo: str, memory: str) -> None:
    assert fio.memory_for(128 * MIB, meminfo) == memory
    assert f"--iomem={memory}" in job(memory=memory).argv(Path("d"))


@pytest.mark.thorough
def test_without_fio_the_script_says_how_to_install_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.storage"],
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"{fio.MISSING}\n"
    assert "apt install fio" in done.stderr
    assert not list(tmp_path.iterdir())


# --- figures and targets --------------------------------------------------------------------


def test_the_median_decides_and_not_the_best_round() -> None:
    assert not figure(0.5, 0.9, 1.5).met
    assert figure(0.5, 0.95, 1.5).met
    assert figure(1.0, 2.0, 3.0, target=2.0, at_least=False).met
    assert not figure(1.0, 2.1, 3.0, target=2.0, at_least=False).met


def test_a_figure_without_a_round_is_refused() -> None:
    with pytest.raises(ValueError, match="read has no value"):
        figure()


def test_ratios_are_of_neighbours_and_not_of_medians() -> None:
    assert ratios([1.0, 4.0], [2.0, 4.0]) == (0.5, 1.0)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratios([1.0], [2.0, 4.0])


@given(st.lists(st.floats(0.001, 99_999), min_size=1, max_size=9), st.booleans())
def test_every_line_of_the_table_fits_80_columns(values: list[float], at_least: bool) -> None:  # noqa: FBT001
    one = Figure(
        name="CPU, read 64 KiB 1×16, unverified", unit="× fio", target=0.95, at_least=at_least,
        values=tuple(values),
    )  # fmt: skip
    assert max(map(len, table([one]).splitlines())) <= 80


def test_every_target_has_its_rows() -> None:
    found = figures_of(raw_figures())
    named = {f"{one.name}, {one.unit}": one for one in found}
    assert len(named) == len(found)
    assert [name for name in named if "1×16" in name and "read" in name] == [
        "bandwidth, read 16 KiB 1×16, × fio", "bandwidth, read 64 KiB 1×16, × fio",
        "bandwidth, read 1 MiB 1×16, × fio", "bandwidth, read 32 MiB 1×16, × fio",
        "CPU, read 64 KiB 1×16, × fio", "CPU, read 1 MiB 1×16, × fio",
        "CPU, read 64 KiB 1×16, unverified, × fio",
        "CPU, read 1 MiB 1×16, s/GiB", "CPU, read 32 MiB 1×16, s/GiB",
        "p99, read 16 KiB 1×16, × fio", "p50, read 64 KiB 1×16, × fio",
        "p99, read 64 KiB 1×16, × fio", "p50, read 1 MiB 1×16, × fio",
        "p99, read 1 MiB 1×16, × fio",
        "bandwidth, read 16 KiB 1×16, × thr.", "bandwidth, read 64 KiB 1×16, × thr.",
        "bandwidth, read 1 MiB 1×16, × thr.", "bandwidth, read 32 MiB 1×16, × thr.",
    ]  # fmt: skip
    assert [name for name in named if "read" not in name] == [
        "bandwidth, write 1 MiB 2×8, × fio",
        "memory of the largest rank, GiB", "one rank, null, no payload, k/s",
        "one rank, null, stamped and checked, k/s", "start to first operation, 2 ranks, s",
        "gather of 64 ranks, s",
    ]  # fmt: skip
    assert named["bandwidth, read 16 KiB 1×16, × fio"].met
    assert not named["bandwidth, read 64 KiB 1×16, × fio"].met
    assert named["CPU, read 1 MiB 1×16, × fio"].values == pytest.approx((2.5, 2.5))
    assert named["bandwidth, read 1 MiB 2×8, × thr."].values == pytest.approx((1.5, 1.5))
    assert not named["one rank, null, stamped and checked, k/s"].met


@given(st.sampled_from(["read", "write"]), st.integers(1, 1000), st.sampled_from([KIB, MIB]))
def test_the_name_of_a_row_tells_its_size(kind: str, count: int, unit: int) -> None:
    assert size_of(row_name(kind, count * unit, (2, 8))) == count * unit


def test_a_percentile_that_too_few_operations_carry_has_no_row() -> None:
    assert not [one.name for one in figures_of(raw_figures()) if one.name.startswith("p999")]


def test_the_figures_survive_json() -> None:
    for one in figures_of(raw_figures()):
        data = json.loads(json.dumps(one.to_json()))
        assert data["values"] == list(one.values)
        assert data["median"] == one.median


def test_the_picture_has_a_row_per_ratio_and_is_svg() -> None:
    figures = figures_of(raw_figures())
    drawn = ET.fromstring(ratio_plot(figures))
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == sum(one.unit == "× fio" for one in figures)


def test_the_order_within_a_round_turns_and_the_names_stay() -> None:
    seen: list[str] = []
    steps = {name: (lambda name=name: seen.append(name)) for name in ("ours", "fio")}
    assert list(in_turn(0, steps)) == list(in_turn(1, steps)) == ["ours", "fio"]
    assert seen == ["ours", "fio", "fio", "ours"]


def test_the_rows_find_their_figures_in_a_run_file() -> None:
    plan = sound_plan()
    measured, verdicts = evaluate_trial(sound_record(plan, [rank_result()]), plan)
    data = measured.to_json()
    trial = {**data, "verdicts": [asdict(verdict) for verdict in verdicts]}
    found = trial_figures({"cases": [{"trials": [trial]}]}, "read")
    assert found["gib_per_s"] == data["read"]["gib_per_s"]
    assert found["peak_rss_bytes"] == data["ranks"][0]["peak_rss_bytes"]


def test_beside_the_reference_ratios_are_of_neighbours_and_lines_fit() -> None:
    def side(gib_per_s: float) -> dict[str, float]:
        return {"gib_per_s": gib_per_s, "cpu_s_per_gib": 12.5, "peak_rss_bytes": 1.5 * (1 << 30)}

    rounds = [
        {"ours": side(ours), "theirs": side(theirs)}
        for ours, theirs in ((1.0, 0.5), (4.0, 1.0), (9.0, 3.0))
    ]
    found = lines({"write": rounds, "read": rounds})
    assert max(map(len, found)) <= 80
    assert found[1].split() == ["write:", "GiB/s", "4.00", "1.00", "3.00", "2.00", "…", "4.00"]
    assert "1.50" in found[3]
    assert len(found) == 1 + 2 * 3


# --- the workload ---------------------------------------------------------------------------


def context(**changes: Any) -> WorkloadContext:
    values: dict[str, Any] = {
        "users": 4, "block_tokens": 64, "context_scale": 0.01, "seed": 1, "trial": 0, "rank": 0,
        "trace": None, "trace_speedup": 0.0, "trace_cycles": 1,
    }  # fmt: skip
    return WorkloadContext(**{**values, **changes})


def test_the_plugin_registers_reads_and_writes_and_the_model() -> None:
    registry = build_registry(["benchmarks.uniform"])
    assert {"uniform-read", "uniform-append", "uniform-overwrite"} <= set(registry.workloads)
    assert registry.models["uniform-1k"].bytes_per_token == MODEL.bytes_per_token == KIB


@given(block_tokens=st.sampled_from([16, 64, 1024, 4096]), scale=st.floats(0.005, 0.05))
def test_the_data_set_is_what_it_needs_and_no_key_comes_twice(
    block_tokens: int, scale: float
) -> None:
    spec = context(block_tokens=block_tokens, context_scale=scale)
    requests = list(UniformRead(spec).population())
    keys = [key for request in requests for key in request.keys]
    assert len(set(keys)) == len(keys)
    need = UniformFamily(UniformRead).need(spec).working_set_blocks
    assert need - 16 < len(keys) <= need
    assert len(requests) > 0
    assert [request.user for request in requests] == list(range(len(requests)))


def test_only_what_is_wholly_stored_is_asked_for() -> None:
    workload = UniformRead(context())
    population = workload.population()
    next(population)
    assert workload.next_request(0) is None  # the first one may be under way still
    next(population)
    assert {workload.next_request(0).user for _ in range(20)} == {0}  # type: ignore[union-attr]


def test_every_write_is_of_something_new() -> None:
    workload = UniformAppend(context())
    assert list(workload.population()) == []
    keys = [key for user in range(50) for key in workload.next_request(user).keys]  # type: ignore[union-attr]
    assert len(set(keys)) == len(keys) == 50 * 16


def test_a_cache_to_be_overwritten_is_full_at_the_start() -> None:
    workload = UniformOverwrite(context())
    stored = [key for request in workload.population() for key in request.keys]
    need = UniformFamily(UniformOverwrite).need(context()).working_set_blocks
    assert need - 16 < len(stored) <= need
    request = workload.next_request(0)
    assert request is not None
    assert not {*stored} & {*request.keys}


def test_ranks_and_trials_have_keys_of_their_own() -> None:
    first = [UniformAppend(context(**change)).next_request(0)
             for change in ({}, {"rank": 1}, {"trial": 1}, {"seed": 2})]  # fmt: skip
    assert len({request.keys for request in first if request is not None}) == 4
