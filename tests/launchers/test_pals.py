from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers.pals import PalsLauncher
from pytest_kvcache.launchers.protocol import LaunchJob


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("x2", 4), ("x3", 2)),
        "controller_host": "x1",
        "local_hosts": frozenset(),
        "program": ("/venv/bin/python", "x.py"),
        "env": {"PYTHONPATH": "/a:/b c", "EMPTY": ""},
        "params": ("--label",),
        "allow_run_as_root": True,
    }
    return LaunchJob(**{**values, **changes})


def argv(changed: LaunchJob) -> list[str]:
    return PalsLauncher(path="/opt/cray/pals/1.8/bin/mpiexec").argv(changed)


def test_pals_on_several_hosts_has_a_segment_for_each() -> None:
    assert argv(job()) == [
        "/opt/cray/pals/1.8/bin/mpiexec",
        "--cpu-bind",
        "none",
        "--env=PYTHONPATH=/a:/b c",
        "--env=EMPTY=",
        "--label",
        "--hosts",
        "x1",
        "-n",
        "1",
        "/venv/bin/python",
        "x.py",
        ":",
        "--hosts",
        "x2",
        "-n",
        "4",
        "/venv/bin/python",
        "x.py",
        ":",
        "--hosts",
        "x3",
        "-n",
        "2",
        "/venv/bin/python",
        "x.py",
    ]


def test_pals_with_ranks_on_the_controllers_host_counts_them_with_the_coordinator() -> None:
    command = argv(job(hosts=(("x1", 2), ("x2", 2)), local_hosts=frozenset({"x1"})))

    assert " ".join(command).count("--hosts x1 -n 3 ") == 1


def test_pals_on_one_host_is_told_its_own_name() -> None:
    command = argv(job(hosts=(("x1", 2),), local_hosts=frozenset({"x1"}), env={}, params=()))

    assert command[3:] == ["--hosts", "x1", "-n", "3", "/venv/bin/python", "x.py"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_pals_is_told_no_loopback_name(name: str) -> None:
    local = job(
        hosts=((name, 2),),
        controller_host=name,
        local_hosts=frozenset({name}),
        env={},
        params=(),
    )

    assert argv(local) == [
        "/opt/cray/pals/1.8/bin/mpiexec",
        "--cpu-bind",
        "none",
        "-n",
        "3",
        "--ppn",
        "3",
        "/venv/bin/python",
        "x.py",
    ]


@pytest.mark.parametrize(
    ("params", "ours"),
    [
        ("--cpu-bind depth", "--cpu-bind none"),
        ("--cpu-bind=list:0:1", "--cpu-bind none"),
        ("--env EMPTY=1", "--env=EMPTY="),
        ("--env=EMPTY=1", "--env=EMPTY="),
    ],
)
def test_user_parameter_beats_our_default(params: str, ours: str) -> None:
    command = argv(job(params=tuple(params.split())))

    assert ours in " ".join(argv(job()))
    assert ours not in " ".join(command).replace(params, "")


@pytest.mark.parametrize("params", ["-n 8", "--np 8", "--ppn 2", "--hosts x9", "--hostfile h"])
def test_parameter_that_moves_ranks_is_refused(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        argv(job(params=tuple(params.split())))
