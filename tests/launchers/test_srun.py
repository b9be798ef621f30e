from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.launchers.protocol import LaunchJob
from pytest_kvcache.launchers.srun import SrunLauncher, expand_nodes, find_own_node, parse_mpi_types

ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-2]"}
MPICH = "MPICH Version:      5.0.2"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI, ident: 5.0.11"
OFFERED = frozenset({"none", "pmi2", "pmix", "pmix_v4", "cray_shasta"})


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("n1", 2), ("n2.site.org", 3)),
        "controller_host": "n0",
        "local_hosts": frozenset(),
        "program": ("/venv/bin/python", "x.py"),
        "env": {"LEVEL": "1", "ODD": "a,b c"},
        "params": ("--label",),
        "allow_run_as_root": True,
    }
    return LaunchJob(**{**values, **changes})


def single_host(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("127.0.0.1", 2),),
        "controller_host": "127.0.0.1",
        "local_hosts": frozenset({"127.0.0.1"}),
        "env": {},
        "params": (),
    }
    return job(**{**values, **changes})


def argv(changed: LaunchJob, *, library: str = MPICH, **changes: Any) -> list[str]:
    values: dict[str, Any] = {
        "path": "/usr/bin/srun",
        "library": library,
        "mpi_types": OFFERED,
        "own_node": "n0",
        "environ": ALLOCATION,
    }
    return SrunLauncher(**{**values, **changes}).argv(changed)


def test_srun_on_several_hosts_names_the_node_of_each_rank() -> None:
    assert argv(job()) == [
        "/usr/bin/srun",
        "-n",
        "6",
        "--distribution=arbitrary",
        "--nodelist=n0,n1,n1,n2,n2,n2",
        "--chdir",
        "/",
        "--mpi=pmi2",
        "--overlap",
        "--overcommit",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--export=ALL",
        "--label",
        "/usr/bin/env",
        "LEVEL=1",
        "ODD=a,b c",
        "/venv/bin/python",
        "x.py",
    ]


def test_srun_on_one_host_uses_its_name_in_slurm_not_the_users() -> None:
    assert argv(single_host(), library=OPEN_MPI) == [
        "/usr/bin/srun",
        "-n",
        "3",
        "--distribution=arbitrary",
        "--nodelist=n0,n0,n0",
        "--mpi=pmix",
        "--overlap",
        "--overcommit",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--export=ALL",
        "/venv/bin/python",
        "x.py",
    ]


@pytest.mark.parametrize(
    ("library", "mpi"),
    [
        (MPICH, "pmi2"),
        ("MVAPICH2 Version      : 2.3.7", "pmi2"),
        ("Intel(R) MPI Library 2021.18 for Linux* OS", "pmi2"),
        (OPEN_MPI, "pmix"),
        ("MPI VERSION    : CRAY MPICH version 8.1.28.2", "cray_shasta"),
    ],
)
def test_each_library_is_started_through_what_it_speaks(library: str, mpi: str) -> None:
    assert f"--mpi={mpi}" in argv(job(), library=library)


@pytest.mark.parametrize(
    ("params", "ours"),
    [
        ("--mpi=pmix", "--mpi=pmi2"),
        ("--mpi pmix_v4", "--mpi=pmi2"),
        ("--cpu-bind=cores", "--cpu-bind=none"),
        ("--kill-on-bad-exit=0", "--kill-on-bad-exit=1"),
        ("--export=NONE", "--export=ALL"),
        ("--export=ALL,LEVEL=9", "LEVEL=1"),
    ],
)
def test_user_parameter_beats_our_default(params: str, ours: str) -> None:
    assert ours in argv(job())
    assert ours not in argv(job(params=tuple(params.split())))


def test_the_sites_type_beats_ours_and_the_users_beats_the_sites() -> None:
    site = {**ALLOCATION, "SLURM_MPI_TYPE": "pmix_v4"}

    assert "--mpi=pmix_v4" in argv(job(), environ=site)
    assert "--mpi=pmix_v4" not in argv(job(params=("--mpi=pmi2",)), environ=site)


def test_a_type_that_this_slurm_lacks_is_refused_with_what_it_offers() -> None:
    with pytest.raises(
        OptionError, match=r"--mpi is pmix \(what 'Open MPI.* does not know; .* none, pmi2:"
    ):
        argv(job(), library=OPEN_MPI, mpi_types=frozenset({"none", "pmi2"}))


def test_a_type_is_believed_where_slurm_did_not_say_what_it_offers() -> None:
    assert "--mpi=pmix" in argv(job(), library=OPEN_MPI, mpi_types=frozenset())


@pytest.mark.parametrize(
    ("library", "mpi"), [(MPICH, "none"), (OPEN_MPI, "none"), (OPEN_MPI, "pmi2")]
)
def test_a_type_that_gives_each_rank_its_own_world_is_refused(library: str, mpi: str) -> None:
    with pytest.raises(OptionError, match=rf"--mpi is {mpi} \(--kv-mpi-params\).*its own"):
        argv(job(params=(f"--mpi={mpi}",)), library=library)


def test_a_type_of_the_site_that_can_not_work_is_refused_by_where_it_is_from() -> None:
    with pytest.raises(OptionError, match=r"--mpi is none \(SLURM_MPI_TYPE\)"):
        argv(job(), environ={**ALLOCATION, "SLURM_MPI_TYPE": "none"})


@pytest.mark.parametrize("name", ["n9", "10.0.0.1"])
def test_a_host_outside_the_allocation_is_refused_with_its_nodes(name: str) -> None:
    with pytest.raises(OptionError, match=rf"--kv-hosts has {name}, .*\(n0, n1, n2\)"):
        argv(job(hosts=((name, 1),)))


@pytest.mark.parametrize("params", ["-n 8", "-n8", "--ntasks=8", "-N2", "-w n1", "-m block"])
def test_parameter_that_moves_ranks_is_refused(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        argv(job(params=tuple(params.split())))


# --- where this host is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "hostname"),
    [({"SLURMD_NODENAME": "n1"}, "elsewhere"), ({}, "n1"), ({}, "n1.site.org")],
)
def test_this_hosts_name_in_slurm_is_found(environ: dict[str, str], hostname: str) -> None:
    assert find_own_node({**ALLOCATION, **environ}, hostname) == "n1"


def test_a_host_that_is_no_node_of_the_allocation_is_refused() -> None:
    allocation = {**ALLOCATION, "SLURM_JOB_NODELIST": "n[0-9]"}

    with pytest.raises(
        PreflightError, match=r"this host \(login1\) .* \(n0, n1, n2, n3, n4, …\).*srun --pty"
    ):
        find_own_node(allocation, "login1")


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n[08-10,12],gpu1", ("n08", "n09", "n10", "n12", "gpu1")),
        ("r[1-2]n[0-1]", ("r1n0", "r1n1", "r2n0", "r2n1")),
        ("a[1,3]-ib,b", ("a1-ib", "a3-ib", "b")),
    ],
)
def test_slurms_notation_of_nodes_is_expanded(nodes: str, names: tuple[str, ...]) -> None:
    assert expand_nodes(nodes) == names


@given(st.integers(0, 200), st.integers(0, 50), st.integers(1, 4))
def test_a_range_has_all_its_numbers_in_order_and_width(first: int, more: int, width: int) -> None:
    numbers = [f"{n:0{width}}" for n in range(first, first + more + 1)]

    assert expand_nodes(f"n[{numbers[0]}-{numbers[-1]}]") == tuple(f"n{n}" for n in numbers)


def test_types_are_read_from_older_slurms_too() -> None:
    assert parse_mpi_types("srun: MPI types are...\nsrun: pmi2\nsrun: none") == {"pmi2", "none"}
