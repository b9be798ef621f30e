from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError, TraceError, UnknownNameError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.models import MODELS
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.plan.planner import Case, CaseName, Planner, layouts, name_cases
from pytest_kvcache.registry import Registry, build_registry
from pytest_kvcache.report.tables import describe_plan
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.reuse import infinite_hits
from pytest_kvcache.version import VERSION
from pytest_kvcache.workloads.protocol import Need
from tests.factories import (
    FILESYSTEM,
    Family,
    Script,
    host_facts,
    layout_of,
    options,
    registry_of,
    survey_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.options.options import Options


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry()


def plan_all(asked: Options, registry: Registry) -> list[Case]:
    planner = Planner(registry, "run-1")
    return [planner.plan(asked, name) for name in name_cases(asked, registry)]


def plan_one(asked: Options, registry: Registry) -> Case:
    (case,) = plan_all(asked, registry)
    return case


def mooncake(path: Path, prompts: list[list[int]], block_tokens: int = 512) -> str:
    """A trace file of these prompts, a second apart; returns its path."""
    lines = [
        {
            "timestamp": number * 1000,
            "input_length": len(ids) * block_tokens,
            "output_length": 10,
            "hash_ids": ids,
        }
        for number, ids in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Eight conversations of three turns each, all behind one shared block."""
    prompts = [
        [0, *(100 * user + block for block in range(1, 3 + 2 * turn))]
        for turn in range(3)
        for user in range(1, 9)
    ]
    return mooncake(tmp_path / "trace.jsonl", prompts)


# -- cases ---------------------------------------------------------------------------------


def test_there_is_a_case_per_scenario_model_and_count(registry: Registry) -> None:
    asked = options(scenario="chat,agent", model="tiny-1b,qwen3-32b", np="1,2")
    assert [str(name) for name in name_cases(asked, registry)] == [
        f"{scenario}-{model}-np{np}"
        for scenario in ("chat", "agent")
        for model in ("tiny-1b", "qwen3-32b")
        for np in (1, 2)
    ]


def test_a_case_is_named_like_its_plan(registry: Registry) -> None:
    asked = options(scenario="chat", np="2", backend="null")
    (name,) = name_cases(asked, registry)
    assert str(name) == plan_one(asked, registry).plan.case


def test_a_trace_alone_selects_the_replay(registry: Registry, trace: str) -> None:
    (name,) = name_cases(options(trace=trace), registry)
    assert name.scenario == "trace"


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (
            {"scenario": "chta"},
            UnknownNameError,
            "--kv-scenario is 'chta' .*'chat'.*; .*agent, chat",
        ),
        ({"model": "gpt-9"}, UnknownNameError, "--kv-model is 'gpt-9'; .*gpt-oss-20b"),
        ({"backend": "fiel"}, UnknownNameError, "--kv-backend is 'fiel' .*; .*file, memory, null"),
        ({"np": "1", "npernode": "2"}, OptionError, "--kv-np is 1"),
    ],
)
def test_what_does_not_exist_or_agree_is_refused_by_name(
    registry: Registry, texts: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        name_cases(options(**texts), registry)


def test_without_a_count_every_host_gets_a_rank() -> None:
    (layout,) = layouts(options(hosts=["127.0.0.1"]))
    assert layout == RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))


def test_this_machines_ranks_come_first() -> None:
    asked = options(hosts=["192.0.2.1:2", "127.0.0.1:2"], np="4")  # TEST-NET-1, RFC 5737
    (layout,) = layouts(asked)
    assert [host.name for host in layout.hosts] == ["127.0.0.1", "192.0.2.1"]


@pytest.mark.parametrize(
    ("hosts", "reported"),
    [
        (
            "127.0.0.1,localhost",
            "names 127.0.0.1 and localhost, .* once, with its ranks as 127.0.0.1:2",
        ),
        ("192.0.2.1,localhost,127.0.0.1", "names localhost and 127.0.0.1, .* as localhost:2"),
        ("127.0.0.1:3,127.0.0.2:4", "names 127.0.0.1 and 127.0.0.2, .* as 127.0.0.1:7"),
    ],
)
def test_two_names_of_this_machine_are_no_two_hosts(
    registry: Registry, hosts: str, reported: str
) -> None:
    with pytest.raises(OptionError, match=f"^--kv-hosts {reported}$"):
        name_cases(options(hosts=[hosts], np="3"), registry)


# -- plans ---------------------------------------------------------------------------------


def test_a_plan_carries_the_run_and_the_version(registry: Registry) -> None:
    plan = plan_one(options(scenario="chat", backend="null"), registry).plan
    assert (plan.run_id, plan.version, plan.trial) == ("run-1", VERSION, 0)


def test_the_need_is_the_workloads_own(registry: Registry) -> None:
    asked = options(scenario="mixed", backend="null", num_users="37", context_scale="0.3", seed="5")
    case = plan_one(asked, registry)
    need = registry.workload("mixed").need(case.plan.context(0, None))
    assert case.trace is None
    assert case.plan.need_blocks == case.plan.capacity_blocks == need.working_set_blocks


def test_null_is_not_checked_against_free_space(registry: Registry) -> None:
    asked = options(scenario="document", backend="null", num_users="100000")
    plan = plan_one(asked, registry).plan
    assert plan.capacity_blocks == plan.need_blocks
    assert plan.capacity_bytes > 100e12


class Endless(Family):
    """A load that no machine can hold."""

    def need(self, context: object) -> Need:
        del context
        return Need(working_set_blocks=1 << 60)


ENDLESS: dict[str, Any] = {"endless": Endless(Script([]))}


def test_ranks_of_one_machine_share_its_free_space(registry: Registry, tmp_path: Path) -> None:
    registry = registry_of(backends=registry.backends, workloads=ENDLESS)
    asked = options(scenario="endless", cache_dir=str(tmp_path), np="4")
    plan = plan_one(asked, registry).plan
    facts = os.statvfs(tmp_path)
    free = facts.f_bavail * facts.f_frsize
    assert plan.np == 4
    assert plan.capacity_bytes * 4 == pytest.approx(0.9 * free, rel=0.05)


def test_memory_is_shared_like_space(registry: Registry) -> None:
    registry = registry_of(backends=registry.backends, workloads=ENDLESS)
    one, four = plan_all(options(scenario="endless", backend="memory", np="1,4"), registry)
    assert one.plan.capacity_bytes == pytest.approx(4 * four.plan.capacity_bytes, rel=0.2)


def capacity(registry: Registry, survey: Survey, **texts: str) -> int:
    """What a rank of an endless load may store on these hosts."""
    registry = registry_of(backends=registry.backends, workloads=ENDLESS)
    name = CaseName(scenario="endless", model=MODELS["tiny-1b"], layout=layout_of(n1=3, n2=1))
    asked = options(scenario="endless", **texts)
    return Planner(registry, "run-1").plan(asked, name, survey).plan.capacity_bytes


def with_free(size_bytes: int) -> dict[str, Any]:
    return {**FILESYSTEM, "available_bytes": size_bytes, "available_inodes": None}


def test_ranks_of_several_hosts_may_store_what_the_tightest_has(registry: Registry) -> None:
    # No directory of this machine is looked at: the hosts have been.
    facts = {
        "n1": host_facts("n1", filesystem=with_free(300 << 30)),
        "n2": host_facts("n2", filesystem=with_free(60 << 30)),
    }
    own, shared = survey_of(facts), survey_of(facts, ["n1", "n2"])
    assert capacity(registry, own, cache_dir="/no") == pytest.approx(0.9 * (60 << 30), rel=0.01)
    assert capacity(registry, shared, cache_dir="/no") == pytest.approx(0.9 * (15 << 30), rel=0.01)


def test_the_host_with_least_memory_decides_for_all(registry: Registry) -> None:
    facts = {
        "n1": host_facts("n1", memory_bytes=64 << 30),
        "n2": host_facts("n2", memory_bytes=32 << 30),
        "n3": host_facts("n3", memory_bytes=None),
    }
    least = capacity(registry, survey_of(facts), backend="memory")
    facts["n2"] = host_facts("n2", memory_bytes=64 << 30)
    assert capacity(registry, survey_of(facts), backend="memory") == pytest.approx(
        2 * least, rel=0.01
    )


def test_without_a_directory_hosts_have_room_for_everything(registry: Registry) -> None:
    facts = {name: host_facts(name, filesystem=None) for name in ("n1", "n2")}
    assert capacity(registry, survey_of(facts), backend="null") > 1 << 60


@pytest.mark.parametrize("path", ["/usr/lib", "/nowhere/at/all"])
def test_a_cache_directory_that_must_not_be_used_is_refused(registry: Registry, path: str) -> None:
    with pytest.raises(OptionError, match=f"--kv-cache-dir is {path}"):
        plan_one(options(scenario="chat", cache_dir=path), registry)


# -- replays -------------------------------------------------------------------------------


def test_a_replay_is_planned_from_its_trace(registry: Registry, trace: str) -> None:
    asked = options(trace=trace, backend="null", np="1", trace_speedup="3", trace_cycles="2")
    case = plan_one(asked, registry)
    plan = case.plan
    assert case.trace is not None
    assert len(case.trace) == 24
    assert plan.trace is not None
    assert (plan.trace.name, plan.trace.format) == ("trace.jsonl", "mooncake")
    assert plan.trace.digest == case.trace.digest
    assert (plan.trace.requests, plan.trace.speedup, plan.trace.cycles) == (24, 3.0, 2)
    assert (plan.block_tokens, plan.duration_s, plan.ramp_s) == (512, None, 0.0)
    assert plan.need_blocks == len(set(case.trace.block_ids.tolist()))
    assert plan.deadline_s > 2 * 23 / 3


def test_the_hits_that_partitioning_costs_are_reported(registry: Registry, trace: str) -> None:
    one, four = plan_all(options(trace=trace, backend="null", np="1,4"), registry)
    assert one.trace is not None
    assert one.plan.trace is not None
    assert four.plan.trace is not None
    blocks = len(one.trace.block_ids)
    expected = infinite_hits(one.trace) / blocks
    assert one.plan.trace.one_rank_hit_ratio == one.plan.trace.partitioned_hit_ratio == expected
    assert four.plan.trace.one_rank_hit_ratio == expected
    partitioned = sum(infinite_hits(one.trace, part) for part in partition(one.trace, 4)) / blocks
    assert four.plan.trace.partitioned_hit_ratio == partitioned < expected


def test_every_block_of_a_later_cycle_hits(registry: Registry, trace: str) -> None:
    one, four = plan_all(options(trace=trace, backend="null", np="1,4", trace_cycles="3"), registry)
    assert one.trace is not None
    assert one.plan.trace is not None
    assert four.plan.trace is not None
    blocks = len(one.trace.block_ids)
    once = infinite_hits(one.trace)
    thrice = infinite_hits(one.trace.select([*range(24)] * 3))  # the literal replay
    assert thrice == once + 2 * blocks
    assert one.plan.trace.one_rank_hit_ratio == thrice / (3 * blocks)
    assert (
        one.plan.trace.partitioned_hit_ratio
        == four.plan.trace.one_rank_hit_ratio
        == thrice / (3 * blocks)
    )
    partitioned = sum(infinite_hits(one.trace, part) for part in partition(one.trace, 4))
    assert four.plan.trace.partitioned_hit_ratio == (partitioned + 2 * blocks) / (3 * blocks)


def test_a_dealt_replay_is_planned_for_the_rank_that_needs_most(
    registry: Registry, tmp_path: Path
) -> None:
    # The busiest rank asks for the same blocks again and again; the other one needs more.
    prompts = [[1, 2, 3, 4, 5]] * 10 + [list(range(100, 140))]
    trace = mooncake(tmp_path / "trace.jsonl", prompts)
    case = plan_one(options(trace=trace, backend="null", np="2", trace_cycles="2"), registry)
    assert case.trace is not None
    parts = [case.trace.select(part) for part in partition(case.trace, 2)]
    assert [len(set(part.block_ids.tolist())) for part in parts] == [5, 45]
    assert case.plan.need_blocks == case.plan.capacity_blocks == 45


# The trace of these tests lasts 23 s, with 23 s and a pause of 1 s per further cycle.
@pytest.mark.parametrize(
    ("texts", "reported"),
    [
        (
            {"trace_speedup": "1e-9"},
            "--kv-trace-speedup is 1e-09, so the 23 s of the trace take 2.3e+10 s; without",
        ),
        ({"trace_speedup": "0.0002"}, "without --kv-duration a replay must end within 86,400 s, "),
        ({"trace_speedup": "0.0002"}, "the 23 s of the trace take 115000 s"),
        ({"trace_cycles": "10000"}, "is 1, so the 239999 s of the trace take 239999 s"),
        ({"trace_cycles": "9" * 18}, "is 1, so the 2.4e+19 s of the trace take 2.4e+19 s"),
    ],
)
def test_a_replay_that_never_comes_to_its_end_is_refused(
    registry: Registry, trace: str, texts: dict[str, Any], reported: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(reported)):
        plan_one(options(trace=trace, backend="null", np="1", **texts), registry)


@pytest.mark.parametrize(
    "texts",
    [
        {"trace_speedup": "0.0003"},
        {"trace_speedup": "1e-9", "duration": "2"},
        {"trace_speedup": "1e-99", "duration": "2", "trace_cycles": "9" * 18},
        {"trace_speedup": "0", "trace_cycles": "9" * 18},  # as fast as it goes, until the deadline
    ],
)
def test_a_replay_that_comes_to_an_end_is_planned(
    registry: Registry, trace: str, texts: dict[str, Any]
) -> None:
    plan = plan_one(options(trace=trace, backend="null", np="1", **texts), registry).plan
    assert plan.deadline_s < threading.TIMEOUT_MAX
    assert json.loads(json.dumps(plan.to_json(), allow_nan=False))


def test_a_limit_is_part_of_the_plan_and_of_the_digest(registry: Registry, trace: str) -> None:
    whole = plan_one(options(trace=trace, backend="null"), registry)
    part = plan_one(options(trace=trace, backend="null", trace_limit="5"), registry)
    assert part.trace is not None
    assert part.plan.trace is not None
    assert whole.plan.trace is not None
    assert len(part.trace) == part.plan.trace.requests == part.plan.trace.limit == 5
    assert part.plan.trace.digest != whole.plan.trace.digest
    assert part.plan.workload_digest != whole.plan.workload_digest


def test_a_trace_is_read_once_for_all_cases(registry: Registry, trace: str) -> None:
    asked = options(trace=trace, backend="null", np="1,2", model="tiny-1b,qwen3-32b")
    cases = plan_all(asked, registry)
    assert len(cases) == 4
    assert len({id(case.trace) for case in cases}) == 1


def test_a_trace_for_fewer_ranks_is_refused(registry: Registry, trace: str) -> None:
    asked = options(trace=trace, backend="null", np="3", trace_limit="2")
    told = (
        f"--kv-np is 3, and 2 requests of --kv-trace={trace.rpartition('/')[2]} make 2 parts for"
        " ranks to replay (requests with a common prefix stay together); use --kv-np=2 at most or"
        " raise --kv-trace-limit"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(told)}$"):
        plan_one(asked, registry)


def test_a_limit_that_kept_nothing_out_is_not_to_be_raised(
    registry: Registry, tmp_path: Path
) -> None:
    one = recorded(tmp_path / "one", 1000, chat_id=1, parent_chat_id=-1)
    asked = options(trace=one, backend="null", np="2", trace_limit="100")
    with pytest.raises(OptionError, match=r"of --kv-trace=one make 1 part .*; use --kv-np=1$"):
        plan_one(asked, registry)


def test_a_block_size_that_does_not_fit_the_trace_is_refused(
    registry: Registry, trace: str
) -> None:
    with pytest.raises(TraceError, match="blocks of 100 tokens"):
        plan_one(options(trace=trace, backend="null", block_tokens="100"), registry)


def test_a_replay_without_a_trace_is_refused(registry: Registry) -> None:
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))
    (model,) = registry.models_of(["tiny-1b"])
    name = CaseName(scenario="trace", model=model, layout=layout)
    with pytest.raises(OptionError, match="name the file with --kv-trace=FILE"):
        Planner(registry, "run").plan(options(), name)


# -- sizes ---------------------------------------------------------------------------------


def test_all_ranks_need_as_much_as_one_each(registry: Registry) -> None:
    asked = options(scenario="mixed", backend="null", np="3")
    (name,) = name_cases(asked, registry)
    planner = Planner(registry, "run")
    largest, total = planner.size(asked, name)
    assert total == 3 * largest
    assert largest == planner.plan(asked, name).plan.need_blocks


def test_the_parts_of_a_trace_need_what_they_hold(registry: Registry, trace: str) -> None:
    asked = options(trace=trace, backend="null", np="4")
    (name,) = name_cases(asked, registry)
    planner = Planner(registry, "run")
    case = planner.plan(asked, name)
    assert case.trace is not None
    parts = [set(case.trace.select(p).block_ids.tolist()) for p in partition(case.trace, 4)]
    assert planner.size(asked, name) == (max(map(len, parts)), sum(map(len, parts)))


def test_an_ipv6_address_of_another_host_is_refused_before_a_launcher_sees_it(
    registry: Registry,
) -> None:
    with pytest.raises(OptionError, match=r"--kv-hosts has \[2001:db8::1\]; launchers take no"):
        name_cases(options(hosts=["[2001:db8::1]"], np="2"), registry)


def test_the_ipv6_loopback_is_this_machine_by_its_name(registry: Registry) -> None:
    (name,) = name_cases(options(hosts=["[::1]:2"], np="2"), registry)
    assert name.layout.hosts[0].name == "localhost"


# -- data that arrays can't reduce ---------------------------------------------------------


def on_filesystems(registry: Registry, *types: str, **texts: str) -> tuple[str, str]:
    """The kind of data, and why, where these hosts have caches on such filesystems."""
    names = [f"n{number}" for number, _ in enumerate(types)]
    facts = {
        name: host_facts(name, filesystem={**FILESYSTEM, "type": kind, "available_bytes": 1 << 40})
        for name, kind in zip(names, types, strict=True)
    }
    asked = options(scenario="chat", hosts=[",".join(names)], **texts)
    (name,) = name_cases(asked, registry)
    plan = Planner(registry, "run-1").plan(asked, name, survey_of(facts)).plan
    return plan.data, plan.origins["data"]


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "cifs", "ceph", "gpfs", "fuse.sshfs"])
def test_data_is_strict_where_the_cache_lies_on_a_network(registry: Registry, kind: str) -> None:
    assert on_filesystems(registry, kind) == ("strict", "network filesystem")


def test_one_host_with_a_cache_on_a_network_makes_all_data_strict(registry: Registry) -> None:
    assert on_filesystems(registry, "ext4", "lustre") == ("strict", "network filesystem")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_data_is_normal_on_a_disk_of_the_host(registry: Registry, kind: str) -> None:
    assert on_filesystems(registry, kind, "ext4") == ("normal", "default")


@pytest.mark.parametrize("data", ["normal", "strict"])
def test_the_users_kind_of_data_stands_on_every_filesystem(registry: Registry, data: str) -> None:
    for kind in ("nfs", "ext4"):
        assert on_filesystems(registry, kind, data=data) == (data, "command line")


def test_a_backend_without_files_is_not_asked_where_they_lie(registry: Registry) -> None:
    assert on_filesystems(registry, "nfs", backend="null") == ("normal", "default")


def test_this_machines_own_disk_is_no_network(registry: Registry, tmp_path: Path) -> None:
    plan = plan_one(options(scenario="chat", cache_dir=str(tmp_path)), registry).plan
    assert (plan.data, plan.origins["data"]) == ("normal", "default")


def test_other_data_is_another_workload(registry: Registry) -> None:
    normal, strict = (
        plan_one(options(scenario="chat", backend="memory", data=data), registry).plan
        for data in ("normal", "strict")
    )
    assert normal.workload_digest != strict.workload_digest
    assert "strict data" in describe_plan(strict)
    assert "strict data" not in describe_plan(normal)


# -- what a trace leaves open --------------------------------------------------------------


def recorded(path: Path, every: float, **fields: object) -> str:
    lines = [
        {"timestamp": number * every, "input_length": 655, "output_length": 1}
        | {"hash_ids": [3 * number, 3 * number + 1, 3 * number + 2], **fields}
        for number in range(9)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_a_replay_of_seconds_taken_for_milliseconds_is_refused(
    registry: Registry, tmp_path: Path
) -> None:
    trace = recorded(tmp_path / "t", 0.875)
    with pytest.raises(TraceError, match=r"which is 1,143 a second; say with --kv-trace-time-unit"):
        plan_one(options(trace=trace, backend="null"), registry)
    reported = plan_one(options(trace=trace, backend="null", trace_time_unit="s"), registry).plan
    assert reported.trace is not None
    assert (reported.trace.time_unit, reported.trace.span_s) == ("s", 7.0)
    assert "9 requests of t, recorded within 7 s (in s), at their recorded times" in (
        describe_plan(reported)
    )


def test_a_unit_that_nothing_shows_is_said_to_be_assumed(
    registry: Registry, tmp_path: Path
) -> None:
    trace = recorded(tmp_path / "t", 1000)
    plan = plan_one(options(trace=trace, backend="null"), registry).plan
    taken = "recorded within 8 s (taken for ms (--kv-trace-time-unit)), at their recorded"
    assert taken in describe_plan(plan)
    assert taken in describe_plan(Plan.from_json(plan.to_json()))
    given = plan_one(options(trace=trace, backend="null", trace_time_unit="ms"), registry).plan
    assert "recorded within 8 s (in ms), at their recorded" in describe_plan(given)
    chats = recorded(tmp_path / "c", 0.875, chat_id=1, parent_chat_id=-1)
    known = plan_one(options(trace=chats, backend="null"), registry).plan
    assert "recorded within 7 s (in s), at their recorded" in describe_plan(known)


def test_where_times_play_no_part_their_unit_may_be_doubtful(
    registry: Registry, tmp_path: Path
) -> None:
    trace = recorded(tmp_path / "t", 0.875)
    plan = plan_one(options(trace=trace, backend="null", trace_speedup="0"), registry).plan
    assert plan.trace is not None
    assert plan.trace.speedup == 0


def test_seconds_beside_chats_are_replayed_as_seconds(registry: Registry, tmp_path: Path) -> None:
    trace = recorded(tmp_path / "t", 0.875, chat_id=1, parent_chat_id=-1)
    plan = plan_one(options(trace=trace, backend="null"), registry).plan
    assert plan.trace is not None
    assert (plan.trace.time_unit, plan.trace.span_s) == ("s", 7.0)


def test_the_unit_of_time_and_the_meaning_of_ids_are_part_of_the_workload(
    registry: Registry, tmp_path: Path
) -> None:
    trace = recorded(tmp_path / "t", 100)

    def digest(**texts: str) -> str:
        return plan_one(
            options(trace=trace, backend="null", **texts), registry
        ).plan.workload_digest

    assert digest() == digest(trace_time_unit="ms", trace_ids="prefix")
    assert len({digest(), digest(trace_time_unit="s"), digest(trace_ids="content")}) == 3


def test_a_block_size_that_was_derived_is_said_to_be(registry: Registry, tmp_path: Path) -> None:
    trace = recorded(tmp_path / "t", 100)
    plan = plan_one(options(trace=trace, backend="null"), registry).plan
    assert plan.block_tokens == 256
    assert plan.origins["block_tokens"].startswith("derived from the trace's lengths, the only")
    assert "the only power of two that fits; see --kv-block-tokens" in describe_plan(plan)
    asked = plan_one(options(trace=trace, backend="null", block_tokens="300"), registry).plan
    assert asked.origins["block_tokens"] == "command line"
    assert "derived" not in describe_plan(asked)
