"""What a replay of an I/O trace takes from the trace, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.models import MODELS
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.plan.planner import Case, CaseName, Planner
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.headline import describe_users
from pytest_kvcache.traces.ioformat import COLUMNS
from tests.factories import options

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LINES = (
    f"1,0,population,write,a,{MIB},0,0,turn,-3,-2,-1",
    f"1,0,window,read,a,{MIB},1,0,user,1,1,1",
    f"1,0,window,write,b,{MIB},1,0,answer,2,2,2",
    f"1,0,window,write,c,{MIB},2,1,answer,3,3,3",
    f"1,1,window,write,a,{MIB},0,4,answer,4,4,4",
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return written(tmp_path / "io.csv", LINES)


def written(path: Path, lines: tuple[str, ...]) -> Path:
    head = ["# pytest-kvcache I/O trace 1: {}", ",".join(COLUMNS)]
    path.write_text("\n".join([*head, *lines, f"# end: {len(lines)} operations", ""]))
    return path


def planned(trace: Path, np: int = 2, **more: Any) -> Case:
    asked = options(trace=str(trace), **{"backend": "null", "trace_speedup": "0"} | more)
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=np),))
    name = CaseName(scenario="trace", model=MODELS["llama3.1-8b"], layout=layout)
    return Planner(build_registry(), "run").plan(asked, name)


def test_sizes_users_and_need_are_the_traces(trace: Path) -> None:
    plan = planned(trace).plan
    assert (plan.block_bytes, plan.own_block_bytes, plan.users) == (MIB, MIB, 2)
    assert (plan.need_blocks, plan.capacity_blocks) == (3, 3)
    assert plan.trace is not None
    assert (plan.trace.one_rank_hit_ratio, plan.trace.partitioned_hit_ratio) == (None, None)
    assert (plan.trace.overwrites, plan.trace.left_out) == (0, 0)
    alone = planned(trace, np=1).plan
    assert (alone.need_blocks, alone.users) == (4, 3)
    assert describe_users(plan) == "at most 2 users per rank"
    assert describe_users(alone) == "3 users per rank"
    assert type(plan).from_json(plan.to_json()) == plan


def test_more_ranks_than_recorded_are_refused(trace: Path) -> None:
    with pytest.raises(OptionError, match=r"io.csv make 2 parts.*; use --kv-np=2 at most$"):
        planned(trace, np=3)


def test_a_forecast_is_exact(trace: Path) -> None:
    case = planned(trace)
    found = forecast(case.plan, case.trace, build_registry().workload("trace"))
    assert found.exact
    assert (found.population_bytes, found.written_bytes, found.read_bytes) == (
        MIB, 3 * MIB, MIB,
    )  # fmt: skip
    assert found.hit_ratio == 1.0


def test_objects_of_different_sizes_are_files(tmp_path: Path) -> None:
    lines = (LINES[1].replace(str(MIB), "4096"), LINES[2].replace(str(MIB), "8192"))
    path = written(tmp_path / "io.csv", lines)
    asked: dict[str, Any] = {"backend": "file", "cache_dir": str(tmp_path)}
    assert planned(path, np=1, **asked).plan.store == "file"
    same = written(tmp_path / "same.csv", (LINES[1].replace(str(MIB), "4096"),))
    assert planned(same, np=1, **asked).plan.store == "slab"
    with pytest.raises(OptionError, match="have different sizes, so use file"):
        planned(path, np=1, store="slab", **asked)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("model", "tiny-1b", "--kv-model is tiny-1b; an I/O trace has sizes of its own"),
        ("block_tokens", "16", "--kv-block-tokens is 16; an I/O trace has sizes of its own"),
        ("tensor_parallel", "2", "an I/O trace has sizes of its own"),
        ("generation_mode", "fast", "an I/O trace has times of its own"),
        ("num_users", "7", "this I/O trace has its own users"),
        ("cpu_mem_gb", "1", "--kv-cpu-mem-gb is 1; an I/O trace is what reached the storage"),
        ("gpu_mem_gb", "1", "an I/O trace is what reached the storage behind such a tier"),
        ("phase", "prefill", "--kv-phase is prefill; an I/O trace is replayed once, as it was"),
        ("layout", "layer", "so use block"),
        ("trace_cycles", "2", "so use 1"),
        ("reread_factor", "1", "so use 0"),
    ],
)
def test_what_would_make_it_another_workload_is_refused(
    trace: Path, name: str, value: str, problem: str
) -> None:
    more: dict[str, Any] = {name: value}
    with pytest.raises(OptionError) as error:
        planned(trace, **more)
    assert problem in str(error.value)


def test_a_storage_that_would_have_to_evict_is_refused(trace: Path) -> None:
    with pytest.raises(OptionError, match=r"has up to 3 MiB per rank.*the capacity is 2 MiB"):
        planned(trace, storage_capacity_gb="2MiB")
    assert planned(trace, storage_capacity_gb="3MiB").plan.capacity_blocks == 3


def test_more_ranks_than_were_recorded_are_refused(trace: Path) -> None:
    with pytest.raises(OptionError, match="--kv-np is 3"):
        planned(trace, np=3)
