from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.buffers import buffer_bytes
from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan import planner
from pytest_kvcache.plan.building import default_deadline_s
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.plan.tiers import (
    MemoryTier,
    check_reaches_storage,
    choose_library,
    describe_tiers,
    tiers_of,
    wants_devices,
)
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.provenance import differences, provenance_of
from pytest_kvcache.workloads.protocol import Need
from tests.factories import host_facts, make_plan, make_trace_plan, options, survey_of
from tests.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.options.options import Options

MIB = 1 << 20
ABSENT = {"torch": "No module named 'torch'", "cupy": "No module named 'cupy'"}


def tier(name: Any = "cpu", size: int = MIB, kind: TierKind = "memory") -> MemoryTier:
    return MemoryTier(name=name, capacity_bytes=size, kind=kind)


GPU = tier("gpu", 2 * MIB, "torch")
CPU = tier("cpu", 4 * MIB)


def plan_of(asked: Options) -> Plan:
    registry = build_registry()
    (name,) = name_cases(asked, registry)
    return Planner(registry, "run").plan(asked, name).plan


def planned(**texts: str) -> Plan:
    return plan_of(options(backend="null", scenario="chat", storage_capacity_gb="1", **texts))


def from_an_ini(**others: Any) -> Plan:
    texts = {"backend": "null", "scenario": "chat", "tier_policy": "demote"}
    return plan_of(build_options({n: (text, "ini") for n, text in texts.items()} | others))


# -- what is asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "reported"),
    [
        ({"cpu_mem_gb": "4"}, "cpu 4 GiB (in memory) per rank, write-through"),
        (
            {"cpu_mem_gb": "512", "cpu_tier": "index", "tier_policy": "demote"},
            "cpu 512 GiB (index only, which holds nothing) per rank, demote",
        ),
        (
            {"gpu_mem_gb": "1", "gpu_backend": "simulated", "cpu_mem_gb": "0.5"},
            "gpu 1 GiB (simulated in host memory), cpu 512 MiB (in memory) per rank, write-through",
        ),
        ({}, ""),
    ],
)
def test_tiers_are_planned_as_they_were_asked_for(texts: dict[str, str], reported: str) -> None:
    plan = planned(**texts)
    assert describe_tiers(plan.tiers, plan.tier_policy) == reported
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({"tier_policy": "demote"}, "--kv-tier-policy is demote; it belongs to a memory tier, so"),
        ({"cpu_tier": "index"}, "--kv-cpu-tier is index; it belongs to the cpu tier, so add"),
        (
            {"gpu_backend": "torch", "cpu_mem_gb": "1"},
            "--kv-gpu-backend is torch; it belongs to the gpu tier, so add --kv-gpu-mem-gb, or",
        ),
        (
            {"cpu_tier": "index", "gpu_mem_gb": "1", "gpu_backend": "simulated"},
            "--kv-cpu-tier is index; it belongs to the cpu tier, so add --kv-cpu-mem-gb, or leave",
        ),
    ],
)
def test_what_says_something_of_a_tier_that_is_not_there_is_refused(
    texts: dict[str, str], sentence: str
) -> None:
    with pytest.raises(OptionError, match=f"^{sentence}"):
        options(**texts)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "disk"}, "a tier is called 'disk'; it must be gpu or cpu"),
        ({"kind": "torch"}, "the cpu tier is 'torch'; it must be one of memory, index"),
        ({"name": "gpu"}, "the gpu tier is 'memory'; it must be one of torch, cupy, simulated"),
        ({"capacity_bytes": 0}, "the cpu tier has 0 bytes; it must have some"),
    ],
)
def test_a_tier_that_can_not_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^{sentence}$"):
        MemoryTier.from_json(CPU.to_json() | changes)


@pytest.mark.parametrize(("name", "kind"), [("cpu", "memory"), ("cpu", "index"), ("gpu", "torch")])
def test_a_tier_that_holds_no_block_is_refused(name: str, kind: TierKind) -> None:
    block = make_plan().stored_bytes
    make_plan(tiers=(tier(name, block, kind),))
    with pytest.raises(OptionError, match=rf"^--kv-{name}-mem-gb is .* holds no block of 4 K"):
        make_plan(tiers=(tier(name, block - 1, kind),))


@pytest.mark.parametrize("tiers", [(CPU, GPU), (CPU, CPU)])
def test_tiers_are_each_there_once_and_the_fastest_first(tiers: tuple[MemoryTier, ...]) -> None:
    with pytest.raises(OptionError, match=r"^tiers are cpu, .pu; they must be gpu, cpu or"):
        make_plan(tiers=tiers)


# -- what it takes -------------------------------------------------------------------------


def test_only_a_tier_that_holds_bytes_takes_memory_of_the_host() -> None:
    bare = make_plan(need_blocks=1)
    buffers = buffer_bytes(1, bare.chunk_bytes)
    for each, more in (
        (tier(size=64 * MIB), 64 * MIB + buffers),
        (tier(size=64 * MIB, kind="index"), 0),
        (tier("gpu", 64 * MIB, "simulated"), 64 * MIB + buffers),
        (tier("gpu", 64 * MIB, "cupy"), 1024 * MIB + buffers),
    ):
        tiered = replace(bare, tiers=(each,))
        of_a_block = 640  # that is known in the tier as well
        assert tiered.memory_bytes == bare.memory_bytes + more + of_a_block


def test_an_index_of_many_blocks_takes_memory_all_the_same() -> None:
    bare = make_plan(need_blocks=10_000, capacity_blocks=10_000)
    indexed = replace(bare, tiers=(tier(size=1 << 40, kind="index"),))
    assert indexed.memory_bytes == bare.memory_bytes + 10_000 * 640


def test_memory_that_tiers_take_is_none_that_the_memory_backend_has() -> None:
    def capacity(**texts: str) -> int:
        asked = options(backend="memory", scenario="chat", num_users="100000", **texts)
        registry = build_registry()
        (name,) = name_cases(asked, registry)
        survey = survey_of({"127.0.0.1": host_facts("127.0.0.1", memory_bytes=64 << 30)})
        return Planner(registry, "run").plan(asked, name, survey).plan.capacity_bytes

    assert capacity() - capacity(cpu_mem_gb="4") == 4 << 30
    assert capacity() == capacity(cpu_mem_gb="4", cpu_tier="index")


def test_a_launch_has_time_to_touch_what_its_tiers_hold() -> None:
    bare, need = make_plan(), Need(working_set_blocks=1)
    held = replace(bare, tiers=(tier(size=20 * 10**9),))
    assert default_deadline_s(held, need) - default_deadline_s(bare, need) == pytest.approx(100.0)
    indexed = replace(bare, tiers=(tier(size=20 * 10**9, kind="index"),))
    assert default_deadline_s(indexed, need) == default_deadline_s(bare, need)


def test_the_policy_decides_how_much_all_tiers_hold_together() -> None:
    plan = make_plan(
        capacity_blocks=100, tiers=(tier("gpu", 5 * PAGE, "torch"), tier(size=7 * PAGE))
    )
    assert plan.tier_blocks == (5, 7)
    assert plan.room_blocks == 100
    assert replace(plan, tier_policy="demote").room_blocks == 112


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"phase": "decode"}, 7),  # of the largest tier, for the smaller one has nothing else
        ({"phase": "decode", "tier_policy": "demote"}, 12),
        ({"trace": make_trace_plan(), "tier_policy": "demote"}, 12),
    ],
)
def test_a_run_of_which_nothing_would_reach_the_storage_is_refused(
    changes: dict[str, Any], limit: int
) -> None:
    tiers = (tier("gpu", 5 * PAGE, "torch"), tier(size=7 * PAGE))
    plan = make_plan(tiers=tiers, **changes)
    check_reaches_storage(replace(plan, need_blocks=limit + 1))
    check_reaches_storage(replace(plan, need_blocks=limit, tiers=()))
    with pytest.raises(
        OptionError,
        match=rf"^with --kv-gpu-mem-gb and --kv-cpu-mem-gb .* hold all {4 * limit} KiB that",
    ):
        check_reaches_storage(replace(plan, need_blocks=limit))


@pytest.mark.parametrize(
    "changes", [{"trace": make_trace_plan()}, {"tier_policy": "demote"}, {"phase": "prefill"}]
)
def test_what_is_stored_in_the_end_may_fit_into_the_tiers_at_first(changes: dict[str, Any]) -> None:
    """Written through in any case; and users begin dialogues after those that are needed."""
    check_reaches_storage(make_plan(tiers=(CPU,), need_blocks=1, **changes))


# -- what may be compared ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"tiers": ()}, "tiers.cpu.capacity_bytes 4194304 -> (not there)"),
        ({"tiers": (tier(),)}, "tiers.cpu.capacity_bytes 4194304 -> 1048576"),
        ({"tiers": (tier(size=4 * MIB, kind="index"),)}, "tiers.cpu.kind memory -> index"),
        ({"tiers": (GPU, CPU)}, "tiers.gpu.kind (not there) -> torch"),
        ({"tier_policy": "demote"}, "tier_policy write-through -> demote"),
    ],
)
def test_other_tiers_are_another_benchmark(change: dict[str, Any], reported: str) -> None:
    before = make_plan(tiers=(CPU,))
    now = replace(before, **change)
    assert now.workload_digest != before.workload_digest
    sides = [provenance_of([], plan.workload, {}) for plan in (before, now)]
    assert reported in [str(difference) for difference in differences(*sides)]


def test_a_policy_of_an_ini_file_says_nothing_of_a_run_without_tiers() -> None:
    plan = from_an_ini()
    assert (plan.tier_policy, plan.origins["tier_policy"]) == ("write-through", "default")
    with_tiers = from_an_ini(cpu_mem_gb=("1", "command line"))
    assert (with_tiers.tier_policy, with_tiers.origins["tier_policy"]) == ("demote", "ini")


def test_tiers_come_from_where_their_sizes_do() -> None:
    assert planned().origins["tiers"] == "default"
    assert planned(cpu_mem_gb="1").origins["tiers"] == "command line"
    both = from_an_ini(
        cpu_mem_gb=("1", "ini"), gpu_mem_gb=("1", "call"), gpu_backend=("simulated", "call")
    )
    assert both.origins["tiers"] == "call and ini"


# -- devices -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "hosts", "kind"),
    [
        (None, [{"torch": 1, "cupy": 1}], "torch"),
        (None, [{"torch": 0, "cupy": 8}], "cupy"),
        (None, [{"torch": 2, "cupy": 2}, {"torch": "none", "cupy": 1}], "cupy"),
        ("cupy", [{"torch": 1, "cupy": 1}], "cupy"),
    ],
)
def test_the_first_library_is_taken_that_has_a_device_on_every_host(
    asked: str | None, hosts: list[dict[str, int | str]], kind: str
) -> None:
    texts = {"gpu_mem_gb": "1"} | ({} if asked is None else {"gpu_backend": asked})
    assert choose_library(options(**texts), dict(zip("ab", hosts, strict=False))) == kind


@pytest.mark.parametrize(
    ("asked", "found", "reported"),
    [
        (
            None,
            ABSENT,
            r"no torch \(No module named 'torch'\), no CuPy \(No module named 'cupy'\)",
        ),
        ("torch", {"torch": 0, "cupy": 4}, r"torch finds no device"),
    ],
)
def test_a_gpu_tier_without_a_gpu_is_refused_with_what_was_found(
    asked: str | None, found: dict[str, int | str], reported: str
) -> None:
    texts = {"gpu_mem_gb": "1"} | ({} if asked is None else {"gpu_backend": asked})
    by = "" if asked is None else f" by --kv-gpu-backend={asked}"
    with pytest.raises(
        OptionError,
        match=rf"^--kv-gpu-mem-gb asks for a gpu tier of 1 GiB per rank{by}, but on n1 {reported};"
        r" install .*, or take --kv-gpu-backend=simulated, which is memory of the host$",
    ):
        choose_library(options(**texts), {"n1": found})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Answer for the libraries of this machine; the list is of who was asked."""

    def answer(**found: int | str) -> list[str]:
        asked: list[str] = []

        def find_devices(python: str) -> dict[str, int | str]:
            asked.append(python)
            return found

        monkeypatch.setattr(planner, "find_devices", find_devices)
        return asked

    return answer


def test_this_machine_is_asked_once_and_only_for_a_real_gpu(
    machine: Callable[..., list[str]],
) -> None:
    asked = machine(torch=0, cupy=2)
    registry = build_registry()
    several = options(
        backend="null", scenario="chat,agent", gpu_mem_gb="1", storage_capacity_gb="1",
        python="/opt/python",
    )  # fmt: skip
    own = Planner(registry, "run")
    plans = [own.plan(several, name).plan for name in name_cases(several, registry)]
    assert [plan.tiers[0].kind for plan in plans] == ["cupy", "cupy"]
    assert asked == ["/opt/python"]
    assert planned(gpu_mem_gb="1", gpu_backend="simulated").tiers[0].kind == "simulated"
    assert planned(cpu_mem_gb="1").tiers[0].kind == "memory"
    assert len(asked) == 1


def test_a_machine_without_a_gpu_is_refused_before_anything_is_launched_and_sizing_does_not(
    machine: Callable[..., list[str]],
) -> None:
    asked = machine(**ABSENT)
    with pytest.raises(OptionError, match="on this machine no torch"):
        planned(gpu_mem_gb="1")
    sized = options(backend="null", scenario="chat", gpu_mem_gb="1")
    (name,) = name_cases(sized, build_registry())
    Planner(build_registry(), "datasize", launches=False).plan(sized, name)
    assert len(asked) == 1


def test_other_hosts_tell_of_their_gpus_themselves(machine: Callable[..., list[str]]) -> None:
    asked = machine(**ABSENT)
    sought = options(backend="null", scenario="chat", gpu_mem_gb="1", storage_capacity_gb="1")
    (name,) = name_cases(sought, build_registry())
    facts = {"n1": host_facts(gpus={"torch": 4, "cupy": 0}), "n2": host_facts(gpus=None)}
    plan = Planner(build_registry(), "run").plan(sought, name, survey_of(facts)).plan
    assert plan.tiers[0].kind == "torch"
    lacking = survey_of(facts | {"n2": host_facts("n2", gpus={"torch": 0, "cupy": 0})})
    with pytest.raises(OptionError, match="on n2 torch finds no device, CuPy finds no device"):
        Planner(build_registry(), "run").plan(sought, name, lacking)
    assert asked == []


def test_hosts_are_asked_for_gpus_only_where_one_is_wanted() -> None:
    assert wants_devices(options(gpu_mem_gb="1"))
    assert not wants_devices(options(gpu_mem_gb="1", gpu_backend="simulated"))
    assert not wants_devices(options())
    assert tiers_of(options(), "torch") == ()
