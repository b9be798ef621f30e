"""Closed rules: what ``--kv-closed`` selects, leaves and refuses."""

from __future__ import annotations

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.closed import CLOSED_SCENARIOS
from pytest_kvcache.options.options import OPTIONS, Origin, build_options, scenario_names

Given = dict[str, tuple[str | list[str], Origin]]

# Of each option that closed rules fix, a text that it takes by itself.
TEXTS = {
    "num_users": "10", "load_steps": "1,2", "duration": "10", "ramp": "1", "trials": "3",
    "context_scale": "0.5", "block_tokens": "16", "tensor_parallel": "2", "model": "tiny-1b",
    "generation_mode": "none", "performance_profile": "throughput", "phase": "both",
    "request_rate": "3", "gpu_mem_gb": "0", "cpu_mem_gb": "4", "storage_capacity_gb": "10",
    "backend": "file", "io": "direct", "sync": "none", "layout": "block", "store": "file",
    "queue_depth": "4", "io_engine": "auto", "transfer_size": "object", "verify": "off",
    "data": "normal", "seed": "42", "keep": "true", "metrics": "read.p95_ms", "deadline": "9",
    "wait": "3", "allow_invalid": "true", "allow_preload": "true",
}  # fmt: skip
LEFT = {
    "hosts": ["n1"], "np": "2", "npernode": "2", "mpi_bin": "mpiexec", "mpi_params": ["-x A"],
    "oversubscribe": "true", "allow_run_as_root": "true", "cache_dir": "/data",
    "results_dir": "/results", "ssh": "ssh -F x", "python": "/usr/bin/python3",
    "dry_run": "true",
}  # fmt: skip
CLOSED: Given = {"closed": ("true", "command line")}


@pytest.mark.parametrize("origin", ["command line", "ini", "call"])
@pytest.mark.parametrize(("name", "text"), TEXTS.items())
def test_what_the_rules_fix_is_refused_by_name_wherever_it_stands(
    name: str, text: str, origin: Origin
) -> None:
    given: Given = {name: (text, origin)}
    build_options(given)
    shown = f"kv_{name}" if origin == "ini" else "--kv-" + name.replace("_", "-")
    with pytest.raises(OptionError, match="together with --kv-closed") as refused:
        build_options({**CLOSED, **given})
    assert str(refused.value).startswith(f"{shown} is given together")
    assert (f"-o {shown}=" in str(refused.value)) == (origin == "ini")


def test_all_that_is_forbidden_is_named_at_once() -> None:
    with pytest.raises(OptionError) as refused:
        build_options({**CLOSED, "seed": ("1", "ini"), "verify": ("off", "command line")})
    assert str(refused.value).startswith("--kv-verify, kv_seed are given together with --kv-closed")


@pytest.mark.parametrize(("name", "text"), LEFT.items())
def test_where_ranks_run_and_files_lie_is_left_to_the_user(
    name: str, text: str | list[str]
) -> None:
    assert build_options({**CLOSED, name: (text, "command line")}).closed


def test_the_whole_table_is_either_left_or_refused() -> None:
    """An option that is new is refused until somebody says that the rules leave it."""
    known = {*TEXTS, *LEFT, "closed", "scenario", "datasize"}
    others = {spec.name for spec in OPTIONS if spec.later is None} - known
    from_closed = {spec.name for spec in OPTIONS if spec.distributed}
    assert not others & from_closed - {"exec_type"}


def test_closed_rules_select_the_three_scenarios_or_those_that_are_named() -> None:
    assert scenario_names(build_options(CLOSED)) == CLOSED_SCENARIOS
    named = build_options({**CLOSED, "scenario": ("mlperf-2", "command line")})
    assert scenario_names(named) == ("mlperf-2",)
    with pytest.raises(OptionError, match=r"--kv-scenario names mixed together with --kv-closed"):
        build_options({**CLOSED, "scenario": ("mlperf-1,mixed", "command line")})
