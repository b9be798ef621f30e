"""Which cases a command line selects, in a checkout and from an installed package."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache
from pytest_kvcache.workloads.protocol import WorkloadContext
from pytest_kvcache.workloads.scenarios import PROFILES, SYNTHETIC, TABLE
from pytest_kvcache.workloads.synthetic import SyntheticWorkload
from tests.site import SUITE, output, refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from tests.site import Site

PACKAGE = Path(pytest_kvcache.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
CASE = "mixed-llama3.1-8b-np2-load.p95_ms"
SELECTING = [
    "--kv-np=2",
    "--kv-npernode=1",
    "--kv-hosts=127.0.0.1",
    "--kv-exec-type=mpi",
    "--kv-scenario=chat",
    "--kv-model=tiny-1b",
    "--kv-trace=t.jsonl",
]


@pytest.fixture
def checkout(site: Site) -> Site:
    """The checkout's own layout and configuration, with one test instead of all."""
    root = PACKAGE.parent
    if not (root / "conftest.py").is_file():
        pytest.skip("this is no checkout: there is no conftest.py beside the package")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(root / name, site.path)
    shutil.copytree(
        PACKAGE, site.path / "pytest_kvcache", ignore=shutil.ignore_patterns("__pycache__")
    )
    (site.path / "tests").mkdir()
    (site.path / "tests" / "test_unit.py").write_text("def test_unit(): pass\n")
    trace = {"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [7]}
    (site.path / "t.jsonl").write_text(json.dumps(trace))
    return site


def selected(site: Site, *args: str) -> list[str]:
    """The node ids that would run."""
    result = site.call("--collect-only", "-q", *args)
    assert result.ret == pytest.ExitCode.OK
    return [line for line in result.outlines if "::" in line]


@pytest.mark.parametrize("option", SELECTING)
def test_an_option_that_names_the_benchmark_selects_it_alone(checkout: Site, option: str) -> None:
    found = selected(checkout, option)
    assert len(found) == 5
    assert all("test_kvcache.py::test_kvcache[" in node for node in found)


def test_hosts_may_be_the_last_words(checkout: Site) -> None:
    found = selected(checkout, "--kv-np", "2", "--kv-hosts", "127.0.0.1", "n2")
    assert len(found) == 5


@pytest.mark.parametrize("option", ["--kv-duration=5", "--kv-keep", "--kv-trials=1"])
def test_another_option_selects_nothing(checkout: Site, option: str) -> None:
    assert "tests/test_unit.py::test_unit" in selected(checkout, option)


def test_an_ini_value_selects_nothing(checkout: Site) -> None:
    with (checkout.path / "pyproject.toml").open("a") as file:
        file.write('kv_np = "2"\n')
    assert "tests/test_unit.py::test_unit" in selected(checkout)


def test_plain_pytest_runs_the_tests_and_skips_the_benchmark_with_the_reason(
    checkout: Site,
) -> None:
    result = checkout.call()
    result.assert_outcomes(passed=1, skipped=5)
    result.stdout.fnmatch_lines("SKIPPED*a benchmark; select it with an option such as --kv-np 2")
    assert checkout.launches() == []


def test_a_path_is_respected_beside_an_option(checkout: Site) -> None:
    found = selected(checkout, "tests", "--kv-np=2")
    assert found == ["tests/test_unit.py::test_unit"]


def test_the_suite_named_by_its_path_is_not_skipped(checkout: Site) -> None:
    result = checkout.call(
        "pytest_kvcache/suite", *checkout.canned_args(), "--kv-metrics=read.p95_ms"
    )
    result.assert_outcomes(passed=1)


def test_one_item_stands_for_each_case_and_metric(site: Site) -> None:
    found = selected(
        site, *SUITE, "--kv-np=1,2", "--kv-scenario=chat,agent", "--kv-model=tiny-1b,qwen3-32b",
        "--kv-metrics=read.p95_ms,write.gib_per_s",
    )  # fmt: skip
    assert [node.partition("[")[2].rstrip("]") for node in found] == [
        f"{scenario}-{model}-np{ranks}-{metric}"
        for scenario in ("chat", "agent")
        for model in ("tiny-1b", "qwen3-32b")
        for ranks in (1, 2)
        for metric in ("read.p95_ms", "write.gib_per_s")
    ]


def test_the_package_runs_from_any_directory(site: Site) -> None:
    site.canned("--kv-metrics=read.p95_ms").assert_outcomes(passed=1)
    assert site.case()["name"] == "mixed-tiny-1b-np2"


def names(site: Site, *args: str) -> list[tuple[str, str]]:
    """What pytest-benchmark knows the entries by."""
    path = site.path / "benchmarks.json"
    site.call(*args, *site.canned_args(), f"--benchmark-json={path}").assert_outcomes(passed=5)
    entries = json.loads(path.read_text())["benchmarks"]
    return [(entry["name"], entry["fullname"]) for entry in entries]


def test_an_entry_has_the_same_name_in_a_checkout_and_from_the_package(checkout: Site) -> None:
    by_option = names(checkout)
    assert by_option == names(checkout, *SUITE) == names(checkout, "pytest_kvcache/suite")
    assert ("mixed-tiny-1b-np2-load.p95_ms",) * 2 in by_option


def test_the_checkout_refuses_misspelt_ini_names(checkout: Site) -> None:
    with (checkout.path / "pyproject.toml").open("a") as file:
        file.write('kv_num_user = "2"\n')
    assert "kv_num_user" in refusal(checkout.call("--kv-np=2"))


def test_the_checkout_keeps_the_working_set_below_two_gigabytes(checkout: Site) -> None:
    result = checkout.call("--kv-np=2", "--kv-dry-run", "-v", f"--kv-python={checkout.python}",
                           "--kv-plugin=kvcache_test_launcher", "--kv-mpi-bin=canned")  # fmt: skip
    (reported,) = re.findall(r"storage_capacity_gb +.* per rank, ([\d,]+) blocks", output(result))
    (tokens,) = re.findall(r"block_tokens +(\d+) tokens", output(result))
    assert (
        2 * int(reported.replace(",", "")) * 131_072 * int(tokens) < 2e9
    )  # what is needed, if there is room for it


def test_the_checkout_gives_load_p95_its_samples_on_a_slow_disk() -> None:
    config = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    ini = config["tool"]["pytest"]["ini_options"]
    spec = WorkloadContext(
        users=int(ini["kv_num_users"]), block_tokens=int(ini["kv_block_tokens"]),
        context_scale=float(ini["kv_context_scale"]), seed=1, trial=0, rank=0, trace=None,
        trace_speedup=0.0, trace_cycles=1, dialogues=TABLE.dialogues("mixed"),
    )  # fmt: skip
    workload = SyntheticWorkload(spec)
    turns = [workload.next_request(user) for _ in range(20) for user in range(workload.users)]
    blocks = [turn.prompt_blocks for turn in turns if turn is not None]
    mean_bytes = sum(blocks) / len(blocks) * spec.block_tokens * 131_072  # of llama3.1-8b
    per_s = 0.33 * (1 << 30) / mean_bytes
    assert per_s * float(ini["kv_duration"]) > 2 * 200
    idle_s = max(PROFILES[name].think_s.high for name in SYNTHETIC["mixed"])
    assert 2 * workload.users / idle_s * float(ini["kv_duration"]) > 2 * 200


@pytest.mark.parametrize("args", [(), ("--kv-np=2",), ("--kv-np=2", "tests")])
def test_the_help_of_the_checkout_works(checkout: Site, args: tuple[str, ...]) -> None:
    assert checkout.call("--help", *args).ret == pytest.ExitCode.OK
