from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.plan.forecast import Forecast
from pytest_kvcache.report.dryrun import DryRun, describe_dry_run, time_needed
from tests.factories import make_plan
from tests.site import output, refusal

if TYPE_CHECKING:
    from tests.site import Site

GIB = 1 << 30


def forecast_of(**changes: Any) -> Forecast:
    values: dict[str, Any] = {
        "exact": False, "population_bytes": 30 * GIB, "written_bytes": 10 * GIB, "read_bytes": None,
        "window_s": 60.0, "hit_ratio": 0.5, "why_no_hit_ratio": "", "best_hit_ratio": 0.5,
        "capacity_bytes": 50 * GIB, "room_bytes": 50 * GIB, "need_bytes": 40 * GIB,
        "ranks": 1, "rank_need_bytes": 40 * GIB,
    }  # fmt: skip
    return Forecast(**{**values, **changes})


def lines_of(site: Site, *args: str) -> list[str]:
    result = site.canned("--kv-dry-run", *args, without=("--kv-backend",))
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert site.launches() == []
    text = result.stdout.str().partition("mixed-tiny-1b-np2\n")[2]
    return text.splitlines()


def test_the_time_is_that_of_all_trials_with_what_surrounds_them() -> None:
    options = build_options({"trials": ("3", "ini")})
    reported = time_needed(make_plan(), forecast_of(), options)
    assert reported.startswith("about ")
    assert "3 trials of 1m" in reported
    assert "1m00s ramp and window" in reported
    assert "30 s to store 30 GiB at 1 GiB/s" in reported


def test_a_range_of_trials_is_a_range_of_times() -> None:
    options = build_options({"trials": ("3..20", "ini"), "target_ci": ("5%", "ini")})
    reported = time_needed(make_plan(), forecast_of(population_bytes=0), options)
    assert re.match(r"about \d+m\d\ds to \d+m\d\ds: 3 to 20 trials of 1m\d\ds", reported)
    assert "to store" not in reported


def test_what_is_written_before_the_cache_is_filled_takes_time() -> None:
    plan = make_plan(np=2, backend="file", precondition_bytes=300 * GIB)
    options = build_options({"trials": ("1", "ini")})
    reported = time_needed(plan, forecast_of(), options)
    assert reported.startswith("about 11m38s: 1 trial of 11m38s (")
    assert "30 s to store 30 GiB at 1 GiB/s, 10m00s to precondition by 600 GiB" in reported
    endless = time_needed(plan, forecast_of(window_s=None), options)
    assert "each with 10m38s before it" in endless


@pytest.mark.parametrize(
    ("phase", "depth"),
    [("both", "a bucket and 16 loads"), ("prefill", "a bucket"), ("decode", "16 loads")],
)
def test_the_depth_of_buckets_is_that_of_their_calls(phase: str, depth: str) -> None:
    plan = make_plan(
        engine="mooncake-bucket", io="buffered", queue_depth=1000, phase=phase,
        backend="file", cache_dir="/data", origins={"queue_depth": "mooncake-bucket"},
    )  # fmt: skip
    found = DryRun(
        plan=plan, options=build_options({}), forecast=forecast_of(), storage=(), argv=()
    )
    text = "\n".join(describe_dry_run(found, whole=True))
    assert re.search(rf"queue_depth +{depth} \(mooncake-bucket\)", text)
    assert re.search("request_depth +one after the other", text)


def test_where_the_storage_decides_no_time_is_claimed() -> None:
    reported = time_needed(make_plan(), forecast_of(window_s=None), build_options({}))
    assert reported.startswith("as long as the storage needs for it: 3 trials")


def test_it_says_how_long_what_is_written_what_hits_where_and_for_whom(site: Site) -> None:
    lines = lines_of(site, "--kv-num-users=4", "--kv-storage-capacity-gb=1")
    text = " ".join(" ".join(lines).split())
    assert re.search(
        r"takes about \d+ s: 1 trial of \d+ s \(.* ramp and window, 8 s start and end", text
    )
    assert re.search(r"writes .* in all to /var/tmp", text)
    assert re.search(r"hit ratio can't be told, .* would give 0\.\d+", text)
    assert re.search(r"storage /var/tmp is (on .*, not )?in memory", text)
    assert "users 4 per rank, 8 in total" in text


def test_memory_tiers_are_reported_with_what_they_take_of_a_host(site: Site) -> None:
    args = ("--kv-gpu-mem-gb=0.25", "--kv-gpu-backend=simulated", "--kv-cpu-mem-gb=512",
            "--kv-cpu-tier=index", "--kv-storage-capacity-gb=1")  # fmt: skip
    text = " ".join(" ".join(lines_of(site, *args)).split())
    tiers = "gpu 256 MiB (simulated in host memory), cpu 512 GiB (index only, which holds nothing)"
    assert f"; in front of it {tiers} per rank, write-through; depth" in text
    assert f"tiers {tiers} per rank, write-through on a host they take at most 512 MiB of" in text
    assert "gpu_backend simulated (command line) cpu_tier index (command line)" in text
    assert "tier_policy" not in text  # nobody chose it


def test_a_cache_directory_in_memory_is_reported(site: Site) -> None:
    args = ("--kv-cache-dir=/dev/shm", "--kv-num-users=1", "--kv-allow-invalid")
    text = " ".join(" ".join(lines_of(site, *args)).split())
    assert "storage /dev/shm is in memory (tmpfs): a trial there is invalid (TMPFS)" in text


def test_only_what_somebody_chose_is_listed_and_with_v_all_of_it(site: Site) -> None:
    few = "\n".join(lines_of(site, "--kv-seed=7"))
    assert re.search(r"^    seed +7 \(command line\)$", few, re.MULTILINE)
    assert "(default)" not in few
    every = "\n".join(lines_of(site, "--kv-seed=7", "-v"))
    assert re.search(r"^    queue_depth +16 \(default\)$", every, re.MULTILINE)
    values = re.findall(r"^    (\w+) +.*\((.*)\)$", every, re.MULTILINE)
    assert len(values) >= 20
    assert {origin for _name, origin in values} <= {"default", "command line", "derived", "ini"}


def test_values_bear_the_names_of_options_and_are_readable(site: Site) -> None:
    known = set(Options.__dataclass_fields__)
    every = lines_of(site, "-v", "--kv-layout=layer")
    names = {line.split()[0] for line in every if re.match(r"    \w+ .*\)$", line)}
    assert names <= known
    text = "\n".join(every)
    assert re.search(r"^    layout +layer \(command line\)$", text, re.MULTILINE)
    assert not re.search(r"\d\.\d{4,} s|[{}\[\]]|null|\btrue\b", text.partition("command")[0])


def test_a_capacity_of_0_is_nobodys_choice(site: Site) -> None:
    every = "\n".join(lines_of(site, "-v", "--kv-storage-capacity-gb=0", "--kv-num-users=1"))
    assert re.search(r"^    storage_capacity_gb .* blocks \(derived\)$", every, re.MULTILINE)


def test_a_trace_is_the_reason_for_its_scenario_and_has_its_own_users(site: Site) -> None:
    path = site.path / "t.jsonl"
    trace = {"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [7]}
    path.write_text(json.dumps(trace))
    args = (f"--kv-trace={path}", "--kv-backend=null", "--kv-np=1")
    result = site.canned("--kv-dry-run", "-v", *args, without=("--kv-ramp", "--kv-np"))
    text = output(result)
    assert re.search(r"^    scenario +trace \(command line\)$", text, re.MULTILINE), text
    assert "num_users" not in text.partition("\n  load")[2]
    assert not re.search(r"^  users ", text, re.MULTILINE)


def test_what_a_run_refuses_a_dry_run_refuses(site: Site) -> None:
    for args in (("--kv-mpi-bin=/no/mpirun",), ("--kv-cache-dir=/no/such/dir",), ("--kv-np=0",)):
        options = ("--kv-backend=file", "--kv-storage-capacity-gb=1", *args)
        assert refusal(site.canned("--kv-dry-run", *options)) == refusal(site.canned(*options))


def test_every_line_but_the_command_fits_the_terminal(site: Site) -> None:
    lines = lines_of(site, "-v", "--kv-trials=3..20", "--kv-target-ci=5%", "--kv-num-users=3")
    until = next(i for i, line in enumerate(lines) if line.startswith("  command"))
    assert max(map(len, lines[:until])) <= 80


def test_a_plan_without_a_directory_has_no_place() -> None:
    found = DryRun(
        plan=make_plan(backend="null"), options=build_options({}), forecast=forecast_of(),
        storage=["the backend null is no storage"], argv=("mpirun", "a b"),
    )  # fmt: skip
    text = "\n".join(describe_dry_run(found, whole=True))
    assert "cache_dir" not in text
    assert text.endswith("    mpirun 'a b'")


@pytest.mark.parametrize(
    ("args", "reported"),
    [
        (["--kv-data=normal"], "data normal, withstands deduplication by 4 KiB and compression"),
        (["--kv-data=strict"], "data strict, withstands deduplication by 512 bytes and more, and"),
    ],
)
def test_the_data_says_what_it_withstands(site: Site, args: list[str], reported: str) -> None:
    lines = lines_of(site, *args, "--kv-num-users=1", "--kv-storage-capacity-gb=1")
    assert reported in " ".join(" ".join(lines).split())


def test_where_nothing_is_stored_nothing_is_said_of_data(site: Site) -> None:
    lines = lines_of(site, "--kv-backend=null", "--kv-num-users=1")
    assert not any(line.startswith("  data ") for line in lines)
