from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.hosts.localhost import available_disk_bytes
from pytest_kvcache.launch import preflight
from pytest_kvcache.launch.preflight import (
    LaunchSetup,
    check_plan,
    check_results_dir,
    check_shared_memory,
    find_setup,
    find_temporary_directory,
    host_problems,
    library_problems,
    memory_below,
)
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.launchers.family import LauncherFamily
from pytest_kvcache.launchers.libraries import MPICH
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.plan.building import FREE_SHARE
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.registry import build_registry
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.system.preloads import Preloads, Wrapper
from tests.factories import (
    FILESYSTEM,
    host_facts,
    layout_of,
    make_plan,
    on_backend,
    survey_of,
    traits_of,
)
from tests.site import runs_as_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.launchers.protocol import LaunchJob
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.tiers import TierName

ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


class FakeLauncher:
    def argv(self, job: LaunchJob) -> list[str]:
        return list(job.program)


def setup_of(family: str = "openmpi") -> LaunchSetup:
    return LaunchSetup(
        launcher=FakeLauncher(),
        family=FAMILIES[family],
        launcher_path="/bin/mpirun",
        launcher_version="5.0.11",
        mpi_library="Open MPI v5.0.11",
        python="/bin/python",
    )


def typed(**texts: Any) -> Options:
    return build_options(
        {name: (text, "command line") for name, text in {"oversubscribe": "true", **texts}.items()}
    )


def check(plan: Plan, family: str = "hydra", **texts: Any) -> None:
    check_plan(typed(**texts), plan, setup_of(family), {})


def ranks(count: int, name: str = "127.0.0.1") -> RankLayout:
    return RankLayout(hosts=(HostRanks(name=name, ranks=count),))


# --- what is found --------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, says: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
        path.chmod(0o755)
        return str(path)

    return write


def found(mpirun: str, python: str) -> LaunchSetup:
    options = typed(mpi_bin=mpirun, python=python)
    return find_setup(options, build_registry(), {"PATH": "/nowhere"})


def test_launcher_library_and_interpreter_are_found(program: Callable[[str, str], str]) -> None:
    mpirun = program("mpirun", "mpirun (Open MPI) 5.0.11")
    python = program("python", "mpi-library: Open MPI v5.0.11, package: x")
    setup = found(mpirun, python)
    assert setup.family is FAMILIES["openmpi"]
    assert setup.daemon == str(Path(mpirun).parent / "prted")
    assert (setup.launcher_path, setup.launcher_version) == (mpirun, "5.0.11")
    assert (setup.mpi_library, setup.python) == ("Open MPI v5.0.11, package: x", python)


def test_a_launcher_of_another_family_than_the_library_is_refused(
    program: Callable[[str, str], str],
) -> None:
    mpirun = program("mpirun", "HYDRA build details:\n    Version:   5.0.2")
    with pytest.raises(PreflightError, match=r"hydra 5\.0\.2.*both must be MPICH"):
        found(mpirun, program("python", "mpi-library: Open MPI v5.0.11"))


def test_a_launcher_of_a_plugin_is_not_looked_for_on_the_disk(
    program: Callable[[str, str], str],
) -> None:
    python = program("python", "mpi-library: Open MPI v5.0.11")
    family = LauncherFamily(title="t", make=lambda _found: FakeLauncher(), is_program=False)
    registry = replace(build_registry(), launchers={"flux": family})
    setup = find_setup(typed(mpi_bin="flux", python=python), registry, {"PATH": ""})
    assert (setup.family, setup.launcher_path, setup.shown_launcher) == (family, "flux", "flux")
    assert (setup.launcher_version, setup.daemon, setup.reach) == (None, None, None)
    picky = replace(registry, launchers={"flux": replace(family, libraries=(MPICH,))})
    with pytest.raises(PreflightError, match=r"flux is flux, but mpi4py loads .*must be MPICH"):
        find_setup(typed(mpi_bin="flux", python=python), picky, {"PATH": ""})


def test_a_program_of_a_plugins_family_has_its_version_and_its_daemon_looked_at(
    program: Callable[[str, str], str],
) -> None:
    family = LauncherFamily(
        title="t",
        make=lambda _found: FakeLauncher(),
        recognise=lambda output: ("flux", output.split()[1]) if "flux" in output else None,
        minimum=(2,),
        daemons={"flux": "flux-broker"},
    )
    registry = replace(build_registry(), launchers={"flux": family})
    python = program("python", "mpi-library: Open MPI v5.0.11")
    flux = program("flux", "flux 2.1")
    setup = find_setup(
        typed(mpi_bin="flux", python=python), registry, {"PATH": str(Path(flux).parent)}
    )
    assert (setup.launcher_path, setup.shown_launcher) == (flux, f"{flux} (2.1)")
    assert setup.daemon == f"{Path(flux).parent}/flux-broker"
    with pytest.raises(PreflightError, match=r"flux 1\.9; its version must be at least 2 "):
        find_setup(typed(mpi_bin=program("old", "flux 1.9"), python=python), registry, {"PATH": ""})


def test_an_interpreter_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-python is 'nope'; it must be an interpreter"):
        find_setup(typed(python="nope"), build_registry(), {"PATH": ""})


def test_the_interpreter_is_this_one_unless_told_otherwise(
    program: Callable[[str, str], str], mpirun: str
) -> None:
    del program
    setup = find_setup(typed(mpi_bin=mpirun), build_registry(), {"PATH": ""})
    assert setup.python == sys.executable


def test_a_relative_interpreter_becomes_an_absolute_path(
    program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mpirun = program("mpirun", "mpirun (Open MPI) 5.0.11")
    python = program("python", "mpi-library: Open MPI v5.0.11")
    monkeypatch.chdir(Path(python).parent)
    assert found(mpirun, "./python").python == python


# --- the results directory ------------------------------------------------------------------


def test_a_results_directory_may_be_made_later(tmp_path: Path) -> None:
    check_results_dir(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("below", ["", "/deeper", "/deeper/still"])
def test_a_results_directory_at_or_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"--kv-results-dir is .*file is no directory"):
        check_results_dir(f"{tmp_path}/file{below}")


def test_a_results_directory_may_be_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    check_results_dir(str(tmp_path / "link"))


def test_a_link_that_leads_nowhere_is_no_results_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OptionError, match="--kv-results-dir"):
        check_results_dir(str(tmp_path / "link"))


def test_a_relative_results_directory_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=f"{tmp_path}/results is no directory"):
        check_results_dir("results")


# --- the plan on this machine ---------------------------------------------------------------


def test_a_plan_that_this_machine_can_run_passes() -> None:
    check(make_plan(np=2))


def test_an_engine_that_this_machine_refuses_is_refused_before_the_launch() -> None:
    """More calls in flight than fs.aio-max-nr allows, as when others have all of them."""
    plan = make_plan(queue_depth=2**30)
    check(plan, io_engine="auto")
    with pytest.raises(OptionError, match="--kv-io-engine is libaio, which can't be had on this"):
        check(plan, io_engine="libaio")


def test_batches_that_this_machine_can_not_move_are_refused_before_the_launch() -> None:
    null = make_plan(engine="sglang-nixl", queue_depth=2**30)
    check(null)
    with pytest.raises(OptionError, match="--kv-engine is sglang-nixl, which moves files in batch"):
        check(replace(null, backend="file", traits=traits_of("file"), store="file"))


def test_root_needs_a_word_of_the_user_for_open_mpi() -> None:
    if not runs_as_root():
        pytest.skip("this is not root")
    with pytest.raises(PreflightError, match=r"this is root.*--kv-allow-run-as-root"):
        check(make_plan(), "openmpi")
    check(make_plan(), "openmpi", allow_run_as_root="true")
    check(make_plan(), "hydra")


def test_root_may_be_allowed_by_open_mpis_own_two_variables() -> None:
    if not runs_as_root():
        pytest.skip("this is not root")
    check_plan(typed(), make_plan(), setup_of(), ROOT_VARIABLES)
    for name in ROOT_VARIABLES:
        one = {name: "1"}
        with pytest.raises(PreflightError, match="this is root"):
            check_plan(typed(), make_plan(), setup_of(), one)


def test_ranks_are_counted_against_cores_without_the_coordinator() -> None:
    cores = len(os.sched_getaffinity(0))
    check(make_plan(layout=ranks(cores)), oversubscribe="false")
    with pytest.raises(PreflightError, match=f"{cores + 1} ranks.*--kv-oversubscribe"):
        check(make_plan(layout=ranks(cores + 1)), oversubscribe="false")
    check(make_plan(layout=ranks(cores + 1)))


def test_ranks_of_two_names_of_this_machine_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    names = ("127.0.0.1", "localhost")
    layout = RankLayout(hosts=tuple(HostRanks(name=name, ranks=cores) for name in names))
    with pytest.raises(PreflightError, match="--kv-oversubscribe"):
        check(make_plan(layout=layout), oversubscribe="false")


def test_the_cap_that_was_asked_for_must_be_free(tmp_path: Path) -> None:
    page = make_plan().stored_bytes
    blocks = int(0.9 * available_disk_bytes(str(tmp_path))) // page
    plan = make_plan(backend="file", cache_dir=str(tmp_path), need_blocks=10 * blocks)
    check(replace(plan, capacity_blocks=blocks // 2), storage_capacity_gb="1")
    too_much = replace(plan, capacity_blocks=2 * blocks)
    with pytest.raises(PreflightError, match=r"--kv-storage-capacity-gb lets 1 rank store"):
        check(too_much, storage_capacity_gb="1")
    check(replace(too_much, need_blocks=10), storage_capacity_gb="1")
    with pytest.raises(PreflightError, match=r"--kv-storage-capacity-gb lets 1 rank store"):
        check(replace(too_much, need_blocks=10, store="slab"), storage_capacity_gb="1")


def test_what_ranks_need_on_a_host_is_the_sum(tmp_path: Path) -> None:
    page = make_plan().stored_bytes
    blocks = int(0.9 * available_disk_bytes(str(tmp_path))) // page
    plan = make_plan(
        backend="file", cache_dir=str(tmp_path), need_blocks=blocks, layout=ranks(3),
        capacity_blocks=blocks // 2,
    )  # fmt: skip
    with pytest.raises(PreflightError, match="lets 3 ranks store"):
        check(plan, storage_capacity_gb="1")


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_what_is_not_on_disk_needs_no_disk(backend: str) -> None:
    check(make_plan(backend=backend, capacity_blocks=10), storage_capacity_gb="1")


def test_memory_of_a_memory_backend_counts() -> None:
    plan = make_plan(backend="memory", capacity_blocks=1 << 40)
    with pytest.raises(
        PreflightError, match=r"1 rank needs .* on one host, which has .* of memory free"
    ):
        check(plan)
    check(make_plan(backend="null", capacity_blocks=1 << 40))


@pytest.mark.parametrize(
    ("name", "kind", "reported"),
    [
        ("cpu", "memory", "lower --kv-cpu-mem-gb or --kv-np, or take --kv-cpu-tier=index, which"),
        ("gpu", "simulated", "lower --kv-gpu-mem-gb or --kv-np$"),
    ],
)
def test_tiers_that_exceed_a_hosts_memory_are_refused_with_what_helps(
    name: TierName, kind: TierKind, reported: str
) -> None:
    tier = MemoryTier(name=name, capacity_bytes=1 << 50, kind=kind)
    plan = make_plan(layout=ranks(2), tiers=(tier,))
    need = rf"2 PiB \(2 PiB for the {name} tier\)"
    with pytest.raises(PreflightError, match=f"^2 ranks need {need} on one host, .*; {reported}"):
        check(plan)
    there = replace(plan, layout=layout_of(n1=2))
    (problem,) = host_problems(typed(), there, survey_of({"n1": host_facts()}))["n1"]
    assert re.search(
        f"^has 64 GiB of memory free for 2 ranks that need {need}; {reported}", problem
    )


def test_an_index_of_any_size_needs_no_memory() -> None:
    tier = MemoryTier(name="cpu", capacity_bytes=1 << 50, kind="index")
    check(make_plan(tiers=(tier,)))


def test_the_names_of_this_machine_are_local() -> None:
    check(make_plan(layout=ranks(1, socket.gethostname())))


def test_a_directory_in_memory_is_refused_before_anything_is_launched() -> None:
    shared_memory = probe_filesystem("/dev/shm", "n1")
    if not shared_memory.is_tmpfs:
        pytest.skip("/dev/shm of this machine is no tmpfs")
    plan = make_plan(backend="file", cache_dir="/dev/shm")
    assert memory_below("/dev/shm") == "tmpfs"
    with pytest.raises(OptionError, match=r"--kv-cache-dir is /dev/shm, which is memory \(tmpfs\)"):
        check(plan)
    check(replace(plan, origins={"allow_invalid": "command line"}))
    check(on_backend(plan, "null"))


def test_a_directory_that_can_not_be_examined_is_refused_by_name(tmp_path: Path) -> None:
    plan = make_plan(backend="file", cache_dir=str(tmp_path / "gone"))
    with pytest.raises(PreflightError, match=r"gone: No such file.*; name another --kv-c"):
        check(plan)


def test_a_directory_of_other_hosts_is_their_containers_matter(tmp_path: Path) -> None:
    check(
        make_plan(backend="file", cache_dir=str(tmp_path / "gone")), exec_type="docker", image="i"
    )


# --- the plan on other hosts ----------------------------------------------------------------


def on_hosts(**changes: Any) -> Plan:
    """Two ranks on n1 and one on n2, which store at most 10 blocks each."""
    values = {"backend": "file", "layout": layout_of(n1=2, n2=1), "need_blocks": 10}
    return make_plan(**values | changes)


def problems(
    plan: Plan, n1: dict[str, Any] | None = None, *groups: list[str], **texts: Any
) -> dict[str, list[str]]:
    """What keeps hosts from it, of which n1 is as told."""
    facts = {"n1": host_facts("n1", **(n1 or {})), "n2": host_facts("n2")}
    return host_problems(typed(**texts), plan, survey_of(facts, *groups))


def with_free(**free: int | None) -> dict[str, Any]:
    plenty = {"available_bytes": 100 << 30, "available_inodes": 1 << 20}
    return {"filesystem": FILESYSTEM | plenty | free}


def test_hosts_that_can_run_their_part_have_no_problem() -> None:
    assert problems(on_hosts(), oversubscribe="false") == {}


def test_what_a_host_says_of_itself_is_reported_and_nothing_is_added_to_it() -> None:
    survey = survey_of(
        {"n1": host_facts("n1", cores=1)}, problems={"n2": ["is gone"], "n1": ["has no disk"]}
    )
    found = host_problems(typed(oversubscribe="false"), on_hosts(), survey)
    assert list(found.items()) == [("n1", ["has no disk"]), ("n2", ["is gone"])]


@pytest.mark.parametrize(("cores", "fits"), [(2, True), (1, False)])
def test_a_host_needs_a_core_for_each_of_its_ranks(cores: int, *, fits: bool) -> None:
    found = problems(on_hosts(), {"cores": cores}, oversubscribe="false")
    reported = ["has 1 core for 2 ranks; lower --kv-np, or add --kv-oversubscribe"]
    assert found == ({} if fits else {"n1": reported})
    assert problems(on_hosts(), {"cores": cores}) == {}


def test_a_limit_of_a_host_s_control_group_is_named() -> None:
    plan = on_hosts()
    limited = {"cores": 1, "cpu_quota_cores": 0.5, "memory_bytes": 1 << 20,
               "memory_limit_bytes": 250 << 20}  # fmt: skip
    cores, memory = problems(plan, limited, oversubscribe="false")["n1"]
    assert cores.startswith("has 1 core (its control group allows 0.5) for 2 ranks")
    assert memory.startswith("has 1 MiB of memory free (its control group allows 250 MiB) for 2")


def test_what_ranks_would_inherit_is_refused_before_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper = Wrapper(library="/opt/shim.so", functions=("fsync",))
    found = Preloads(preloaded=(), wrappers=(wrapper,))
    monkeypatch.setattr(preflight, "inherited_preloads", lambda: found)
    with pytest.raises(PreflightError, match=r"/opt/shim.so, which wraps fsync; .*--kv-allow-prel"):
        check(make_plan())
    check(make_plan(origins={"allow_preload": "ini"}))
    check(make_plan(origins={"allow_invalid": "command line"}))
    check(make_plan(), exec_type="docker", image="x")  # whose ranks inherit nothing


def test_a_host_whose_directory_is_memory_has_a_problem_however_deep_it_lies() -> None:
    zram = {"filesystem": {**with_free()["filesystem"], "memory_at_end": "ext4 on zram0"}}
    (reported,) = problems(on_hosts(), zram)["n1"]
    assert reported.startswith("has memory as /nowhere (ext4 on zram0); mount the storage there")
    allowed = on_hosts(origins={"allow_invalid": "command line"})
    assert problems(allowed, zram) == {}


def test_a_host_needs_memory_for_its_ranks() -> None:
    plan = on_hosts()
    enough = 2 * plan.memory_bytes
    assert problems(plan, {"memory_bytes": enough}) == {}
    assert problems(plan, {"memory_bytes": None}) == {}
    (reported,) = problems(plan, {"memory_bytes": enough - 1})["n1"]
    assert "of memory free for 2 ranks that need" in reported


def test_what_is_kept_in_memory_is_counted_with_it() -> None:
    plan = on_hosts(backend="memory", capacity_blocks=1 << 30)
    assert list(problems(plan)) == ["n1", "n2"]
    assert problems(on_backend(plan, "null")) == {}


@pytest.mark.parametrize(("files", "fits"), [(168, True), (167, False), (None, True)])
def test_a_host_must_allow_a_rank_its_files(files: int | None, *, fits: bool) -> None:
    found = problems(on_hosts(queue_depth=4), {"open_files": files})
    assert bool(found) != fits
    if not fits:
        assert found["n1"][0].startswith("allows 167 open files, a rank needs 168; raise 'ulimit")
    assert problems(on_hosts(queue_depth=4, backend="null"), {"open_files": files}) == {}


def test_what_an_engine_opens_it_closes_before_it_opens_another() -> None:
    plan = on_hosts(queue_depth=4, engine="vllm-fs")
    assert problems(plan, {"open_files": 164}) == {}
    assert list(problems(plan, {"open_files": 163})) == ["n1"]


def test_buckets_need_the_files_that_are_open_and_no_depth_is_to_be_lowered() -> None:
    plan = on_hosts(queue_depth=1000, engine="mooncake-bucket", io="buffered")
    assert problems(plan, {"open_files": 178}) == {}
    (reported,) = problems(plan, {"open_files": 177})["n1"]
    assert reported.endswith(
        "allows 177 open files, a rank needs 178; raise 'ulimit -n' for ssh logins there"
    )
    (reported,) = problems(plan, {"memory_bytes": 1})["n1"]
    assert reported.endswith("; lower --kv-np, --kv-block-tokens or the capacity")


def test_ranks_of_all_hosts_that_share_a_directory_need_its_space() -> None:
    plan = on_hosts()
    three = int(30 * plan.stored_bytes / FREE_SHARE) + 1
    small = with_free(available_bytes=three)
    assert problems(plan, small, ["n1", "n2"]) == {}
    (reported,) = problems(plan, with_free(available_bytes=three - 2), ["n1", "n2"])["n1"]
    assert "free in /nowhere for 3 ranks that store" in reported
    assert problems(plan, with_free(available_bytes=three - 2), ["n1"], ["n2"]) == {}


def test_no_more_space_is_asked_for_than_ranks_will_ever_use() -> None:
    none = with_free(available_bytes=0)
    assert problems(on_hosts(need_blocks=0), none) == {}
    ten = with_free(available_bytes=int(20 * on_hosts().stored_bytes / FREE_SHARE) + 1)
    assert problems(on_hosts(capacity_blocks=10, need_blocks=1000), ten) == {}
    assert problems(on_hosts(capacity_blocks=1000, need_blocks=10), ten) == {}
    assert list(problems(on_hosts(capacity_blocks=11, need_blocks=11), ten)) == ["n1"]
    assert list(problems(on_hosts(), none)) == ["n1"]


def test_slabs_take_their_whole_capacity_at_once() -> None:
    ten = with_free(available_bytes=int(20 * on_hosts().stored_bytes / FREE_SHARE) + 1)
    assert problems(on_hosts(store="slab", capacity_blocks=10), ten) == {}
    assert list(problems(on_hosts(store="slab", capacity_blocks=11), ten)) == ["n1"]


def test_slabs_need_no_inode_per_block_but_stay_open() -> None:
    plan = on_hosts(store="slab", queue_depth=4)
    assert problems(plan, with_free(available_inodes=1)) == {}
    assert problems(plan, {"open_files": 176}) == {}
    assert problems(plan, {"open_files": 175})["n1"][0].startswith("allows 175 open files")


@pytest.mark.parametrize(("inodes", "fits"), [(20, True), (19, False), (None, True)])
def test_every_block_needs_an_inode(inodes: int | None, *, fits: bool) -> None:
    found = problems(on_hosts(), with_free(available_inodes=inodes))
    assert bool(found) != fits
    if not fits:
        assert found["n1"][0].startswith("has 19 inodes free in /nowhere for 20 blocks of 2 ranks")
        assert "a file each; use --kv-store=slab, lower" in found["n1"][0]


def test_a_host_that_lacks_several_things_is_told_all() -> None:
    lacking = {"cores": 1, "memory_bytes": 0, "open_files": 1}
    found = problems(
        on_hosts(), lacking | with_free(available_bytes=0, available_inodes=0),
        oversubscribe="false",
    )  # fmt: skip
    assert [text.split()[0] for text in found["n1"]] == ["has", "has", "allows", "has", "has"]


def test_every_host_must_load_the_same_mpi() -> None:
    survey = survey_of(
        {
            "n1": host_facts("n1", mpi_library="Open MPI v5.0.11"),
            "n2": host_facts("n2", mpi_library="MPICH 5"),
            "n3": host_facts("n3", mpi_library=""),  # it has another problem already
        }
    )
    found = library_problems("Open MPI v5.0.11", survey)
    assert list(found) == ["n2"]
    assert found["n2"][0].startswith(
        "loads 'MPICH 5' through mpi4py, this machine 'Open MPI v5.0.11'; install the same MPI"
    )


# --- the launcher's temporary directory ------------------------------------------------------


def test_nothing_is_said_of_a_temporary_directory_that_can_be_written_to(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    assert find_temporary_directory(environ, "results", FAMILIES["openmpi"]) == (None, None)


@pytest.mark.parametrize("variable", ["PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base"])
def test_the_users_own_session_directory_is_left_to_him(tmp_path: Path, variable: str) -> None:
    environ = {"TMPDIR": str(tmp_path / "absent"), variable: "/mine"}
    assert find_temporary_directory(environ, "results", FAMILIES["openmpi"]) == (None, None)


def test_another_temporary_directory_is_reported_with_the_reason(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    found, said = find_temporary_directory({"TMPDIR": str(absent)}, "results", FAMILIES["openmpi"])
    assert said == (
        f"nothing can be written to {absent} (No such file or directory); the launcher's own"
        f" files go to {found}"
    )


def test_mpich_without_shared_memory_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(PreflightError, match=f"to {absent} .No such file or directory., without"):
        check_shared_memory(setup_of("hydra"), absent)
    check_shared_memory(setup_of("hydra"), tmp_path)
    check_shared_memory(setup_of("openmpi"), absent)
