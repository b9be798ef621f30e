from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers.protocol import (
    LaunchJob,
    binds_ranks,
    option_names,
    refuse_params,
    remote_shell_script,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("n1", 2), ("n2", 3)),
        "controller_host": "n0",
        "local_hosts": frozenset(),
        "program": ("/venv/bin/python", "-m", "mpi4py"),
        "env": {},
        "params": (),
        "allow_run_as_root": False,
    }
    return LaunchJob(**{**values, **changes})


def test_coordinator_adds_one_to_the_world() -> None:
    assert job().world_size == 6


def test_coordinator_gets_the_first_slot_on_the_controllers_host() -> None:
    assert job().slots == (("n0", 1), ("n1", 2), ("n2", 3))


def test_local_ranks_share_the_coordinators_entry() -> None:
    merged = job(hosts=(("127.0.0.1", 4), ("n2", 3)), local_hosts=frozenset({"127.0.0.1"}))

    assert merged.slots == (("n0", 5), ("n2", 3))
    assert merged.host_list == "n0:5,n2:3"


def test_two_names_of_the_local_host_are_one_entry() -> None:
    merged = job(
        hosts=(("localhost", 1), ("n0", 2), ("n2", 3)),
        local_hosts=frozenset({"localhost", "n0"}),
    )

    assert merged.slots == (("n0", 4), ("n2", 3))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(0, 8))
def test_slots_hold_exactly_the_world(ranks: list[int], local: int) -> None:
    hosts = tuple((f"n{index}", count) for index, count in enumerate(ranks, start=1))
    names = frozenset(name for name, _ in hosts[:local])
    placed = job(hosts=hosts, local_hosts=names)

    assert sum(slots for _, slots in placed.slots) == placed.world_size
    assert len({name for name, _ in placed.slots}) == len(placed.slots)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hosts": ()}, "needs hosts"),
        ({"program": ()}, "needs hosts, a program"),
        ({"controller_host": ""}, "needs hosts"),
        ({"hosts": (("n1", 0),)}, "host n1 has 0 ranks; it must have at least 1"),
        ({"hosts": (("n1", 1), ("n1", 1))}, "must be listed once"),
        ({"hosts": (("fe80::1", 1),)}, "'fe80::1' can't stand in a list"),
        ({"hosts": (("n1,n2", 1),)}, "'n1,n2' can't stand in a list"),
        ({"local_hosts": frozenset({"n7"})}, r"\['n7'\], which hosts does not list"),
        ({"local_hosts": frozenset({"n2"})}, "must come first, because world rank 0"),
        ({"controller_host": "n1"}, "which hosts lists as another host"),
        ({"env": {"A=B": "1"}}, "can't name a variable"),
    ],
)
def test_job_that_nobody_could_place_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job(**changes)


@pytest.mark.parametrize("spelling", ["--map-by core", "-map-by core", "--map-by=core"])
def test_option_is_found_in_every_spelling(spelling: str) -> None:
    assert "map-by" in option_names(spelling.split())


@pytest.mark.parametrize(
    ("params", "bound"),
    [
        ("--bind-to core", True),
        ("--bind-to=none", True),
        ("--cpu-bind=cores", True),
        ("-genv I_MPI_PIN_DOMAIN core", True),
        ("-genv OMP_NUM_THREADS 2", False),
        ("", False),
    ],
)
def test_every_launchers_way_to_bind_is_known(params: str, *, bound: bool) -> None:
    assert binds_ranks(params.split()) is bound


def test_values_are_not_taken_for_options() -> None:
    assert option_names(["--mca", "n", "1"]) == {"mca"}


def test_parameter_that_contradicts_the_plan_names_the_options_to_use() -> None:
    with pytest.raises(
        OptionError, match=r"--kv-mpi-params has the launcher option 'np'; .*--kv-np"
    ):
        refuse_params(["-np", "8"], {"n", "np"})


def test_remote_shell_script_keeps_every_word_whole(
    tmp_path: Path, fake_program: Callable[..., str]
) -> None:
    shows_words = fake_program('for word in "$@"; do echo "[$word]"; done')
    script = tmp_path / "agent"
    script.write_text(remote_shell_script([shows_words, "-F", "a b", "-o", "Proxy=n0:22"]))
    script.chmod(0o755)

    output = subprocess.run([script, "n1", "cd /; x"], capture_output=True, text=True, check=True)

    assert output.stdout.splitlines() == [
        "[-F]",
        "[a b]",
        "[-o]",
        "[Proxy=n0:22]",
        "[n1]",
        "[cd /; x]",
    ]
