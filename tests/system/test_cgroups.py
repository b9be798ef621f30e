"""Control groups of both versions, read from trees of files as the kernel shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.system.cgroups import (
    Groups,
    IoLimit,
    MemoryKills,
    MemoryLimit,
    Throttling,
    cpu_quota_cores,
    cpu_throttling,
    io_limits,
    memory_limit,
    memory_limit_hits,
    memory_pressure_s,
    parse_groups,
    pressure_s,
)

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712\n"


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v2_mount(root: Path, inside: str = "/") -> str:
    return f"30 23 0:26 {inside} {root} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def v1_mount(root: Path, controllers: str, inside: str = "/") -> str:
    return f"33 31 0:30 {inside} {root}/{controllers} rw - cgroup cgroup rw,{controllers}\n"


def v2_groups(root: Path, own: str = "/job/step") -> Groups:
    (root / own.strip("/")).mkdir(parents=True, exist_ok=True)
    return parse_groups(f"0::{own}\n", v2_mount(root))


def v1_groups(root: Path, controller: str, own: str = "/job/step") -> Groups:
    (root / controller / own.strip("/")).mkdir(parents=True, exist_ok=True)
    return parse_groups(f"4:{controller}:{own}\n", v1_mount(root, controller))


# --- where a process is ---------------------------------------------------------------------


def test_a_process_has_its_own_group_first_and_the_root_last(tmp_path: Path) -> None:
    groups = v2_groups(tmp_path)
    assert groups.v2 == (tmp_path / "job/step", tmp_path / "job", tmp_path)
    assert groups.v1 == {}


def test_hybrid_machines_have_both_versions(tmp_path: Path) -> None:
    tree(tmp_path, {"unified/job/x": "", "cpu,cpuacct/job/x": "", "memory/x": ""})
    groups = parse_groups(
        "4:memory:/\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n",
        v1_mount(tmp_path, "cpu,cpuacct") + v1_mount(tmp_path, "memory")
        + v2_mount(tmp_path / "unified"),
    )  # fmt: skip
    assert groups.v2 == (tmp_path / "unified/job", tmp_path / "unified")
    assert groups.v1["cpu"] == (tmp_path / "cpu,cpuacct/job", tmp_path / "cpu,cpuacct")
    assert groups.v1["memory"] == (tmp_path / "memory",)
    assert "name=systemd" not in groups.v1


@pytest.mark.parametrize("inside", ["/docker/4f", "/docker"])
def test_a_container_that_sees_its_own_part_only_is_at_its_root(
    tmp_path: Path, inside: str
) -> None:
    mounts = v2_mount(tmp_path, inside)
    (tmp_path / "4f").mkdir()
    groups = parse_groups("0::/docker/4f\n", mounts)
    below = (tmp_path / "4f",) if inside == "/docker" else ()
    assert groups.v2 == (*below, tmp_path)


@pytest.mark.parametrize("own", ["/../../elsewhere", "/not/mounted/here"])
def test_a_group_that_can_not_be_seen_is_its_visible_root(tmp_path: Path, own: str) -> None:
    assert parse_groups(f"0::{own}\n", v2_mount(tmp_path)).v2[-1:] == (tmp_path,)
    assert parse_groups("0::/a\n", v2_mount(tmp_path, "/b")).v2 == (tmp_path,)


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    groups = Groups.of_process(str(tmp_path / "absent"))
    assert groups == Groups(v1={}, v2=())
    assert cpu_quota_cores(groups) is None
    assert memory_limit(groups) is None
    assert memory_limit_hits(groups) is None
    assert memory_pressure_s(groups) is None
    assert cpu_throttling(groups) == ()
    assert io_limits(groups) == ()


def test_this_process_is_somewhere_or_the_kernel_has_no_groups() -> None:
    groups = Groups.of_process()
    for directory in (*groups.v2, *(path for paths in groups.v1.values() for path in paths)):
        assert directory.is_dir()


# --- cores ----------------------------------------------------------------------------------


def test_the_least_quota_along_the_path_counts(tmp_path: Path) -> None:
    tree(tmp_path, {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"})
    assert cpu_quota_cores(v2_groups(tmp_path)) == 1.5
    (tmp_path / "job/step/cpu.max").write_text("20000 100000\n")
    assert cpu_quota_cores(v2_groups(tmp_path)) == 0.2


def test_version_1_writes_a_quota_in_two_files(tmp_path: Path) -> None:
    groups = v1_groups(tmp_path, "cpu")
    quota = {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}
    tree(tmp_path, quota)
    assert cpu_quota_cores(groups) is None
    tree(tmp_path, {**quota, "cpu/job/cpu.cfs_quota_us": "50000\n"})
    assert cpu_quota_cores(groups) == 0.5


def test_throttling_is_reported_for_every_group_of_the_path(tmp_path: Path) -> None:
    stat = "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\n"
    tree(tmp_path, {"cpu.stat": "usage_usec 99\n", "job/cpu.stat": stat})
    assert cpu_throttling(v2_groups(tmp_path)) == (
        Throttling(periods=10, throttled_periods=4, throttled_s=0.25),
    )
    tree(tmp_path, {"cpu/job/cpu.stat": "nr_periods 8\nnr_throttled 8\nthrottled_time 7000000\n"})
    assert cpu_throttling(v1_groups(tmp_path, "cpu")) == (
        Throttling(periods=8, throttled_periods=8, throttled_s=0.007),
    )


# --- memory ---------------------------------------------------------------------------------

V2_STAT = f"anon 1\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\nslab_reclaimable {MIB}\n"


def test_what_a_limit_leaves_counts_page_cache_as_free(tmp_path: Path) -> None:
    tree(tmp_path, {
        "job/memory.max": f"{250 * MIB}\n", "job/memory.current": f"{100 * MIB}\n",
        "job/memory.stat": V2_STAT, "job/step/memory.max": "max\n",
    })  # fmt: skip
    assert memory_limit(v2_groups(tmp_path)) == MemoryLimit(
        limit_bytes=250 * MIB, free_bytes=201 * MIB
    )


def test_the_group_that_leaves_least_counts_not_the_lowest_limit(tmp_path: Path) -> None:
    tree(tmp_path, {
        "job/memory.max": f"{500 * MIB}\n", "job/memory.current": f"{490 * MIB}\n",
        "job/step/memory.max": f"{200 * MIB}\n", "job/step/memory.current": f"{20 * MIB}\n",
    })  # fmt: skip
    found = memory_limit(v2_groups(tmp_path))
    assert found == MemoryLimit(limit_bytes=500 * MIB, free_bytes=10 * MIB)


def test_version_1_has_names_of_its_own_and_a_number_for_no_limit(tmp_path: Path) -> None:
    groups = v1_groups(tmp_path, "memory")
    tree(tmp_path, {"memory/memory.limit_in_bytes": NO_LIMIT_V1})
    assert memory_limit(groups) is None
    stat = f"inactive_file 1\ntotal_inactive_file {5 * MIB}\ntotal_active_file {5 * MIB}\n"
    tree(tmp_path, {
        "memory/job/memory.limit_in_bytes": f"{250 * MIB}\n",
        "memory/job/memory.usage_in_bytes": f"{50 * MIB}\n", "memory/job/memory.stat": stat,
        "memory/job/memory.failcnt": "12\n",
    })  # fmt: skip
    assert memory_limit(groups) == MemoryLimit(limit_bytes=250 * MIB, free_bytes=210 * MIB)
    assert memory_limit_hits(groups) == 12


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    tree(tmp_path, {"job/memory.max": "100\n", "job/memory.current": "200\n"})
    assert memory_limit(v2_groups(tmp_path)) == MemoryLimit(limit_bytes=100, free_bytes=0)


def test_hits_are_those_of_the_path_s_own_limits(tmp_path: Path) -> None:
    events = "low 0\nhigh {high}\nmax {max}\noom 1\noom_kill 1\n"
    tree(tmp_path, {
        "job/memory.max": f"{MIB}\n",
        "job/memory.events.local": events.format(high=0, max=3),
        "job/memory.events": events.format(high=50, max=50),  # with those of other jobs' steps
        "job/step/memory.max": "max\n", "job/step/memory.high": f"{MIB}\n",
        "job/step/memory.events": events.format(high=4, max=0),  # an older kernel
    })  # fmt: skip
    assert memory_limit_hits(v2_groups(tmp_path)) == 7


def test_a_kill_is_named_with_the_limit_that_led_to_it(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 5\noom_kill 7\n")
    tree(tmp_path, {"job/step/memory.events": "oom_kill 1\n", "job/memory.max": f"{250 * MIB}\n"})
    groups = v2_groups(tmp_path)
    before = MemoryKills.now(groups, str(vmstat))
    assert before == MemoryKills(in_group=1, on_machine=7, limit_bytes=250 * MIB)
    assert before.since(before) is None
    tree(tmp_path, {"job/step/memory.events": "oom_kill 3\n"})
    reported = MemoryKills.now(groups, str(vmstat)).since(before)
    assert reported == "killed 2 processes for memory (its control group allows 250 MiB)"


def test_a_kill_elsewhere_on_the_machine_is_reported_without_a_limit(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_kill 7\n")
    groups = v1_groups(tmp_path, "memory")
    tree(tmp_path, {"memory/job/step/memory.oom_control": "under_oom 0\noom_kill 0\n"})
    before = MemoryKills.now(groups, str(vmstat))
    vmstat.write_text("oom_kill 8\n")
    reported = MemoryKills.now(groups, str(vmstat)).since(before)
    assert reported == "killed 1 process for memory"


def test_pressure_is_the_time_in_which_some_process_waited(tmp_path: Path) -> None:
    text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=9\n"
    tree(tmp_path, {"job/step/memory.pressure": text})
    assert memory_pressure_s(v2_groups(tmp_path)) == 1.5
    assert pressure_s(str(tmp_path / "absent")) is None


# --- I/O ------------------------------------------------------------------------------------


def test_the_least_limit_of_each_device_counts(tmp_path: Path) -> None:
    tree(tmp_path, {
        "job/io.max": "8:0 rbps=1000 wbps=max riops=50 wiops=max\n8:16 rbps=max wbps=7\n",
        "job/step/io.max": "8:0 rbps=2000 wbps=400 riops=max wiops=max\n",
    })  # fmt: skip
    assert io_limits(v2_groups(tmp_path)) == (
        IoLimit(device="8:0", read_bytes_per_s=1000, write_bytes_per_s=400, reads_per_s=50),
        IoLimit(device="8:16", write_bytes_per_s=7),
    )


def test_version_1_has_a_file_for_each_kind_of_limit(tmp_path: Path) -> None:
    groups = v1_groups(tmp_path, "blkio")
    tree(tmp_path, {
        "blkio/job/blkio.throttle.read_bps_device": "254:0 1048576\n",
        "blkio/job/blkio.throttle.write_iops_device": "254:0 100\n",
        "blkio/job/blkio.throttle.write_bps_device": "",
    })  # fmt: skip
    assert io_limits(groups) == (IoLimit(device="254:0", read_bytes_per_s=MIB, writes_per_s=100),)
