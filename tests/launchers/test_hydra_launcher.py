from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers import HydraLauncher, LaunchJob


def job(**changes: Any) -> LaunchJob:
    values: dict[str, Any] = {
        "hosts": (("n1", 4), ("n2", 4)),
        "controller_host": "n0",
        "local_hosts": frozenset(),
        "program": ("/venv/bin/python", "-m", "mpi4py", "x.py"),
        "env": {"PYTHONPATH": "/a:/b c", "EMPTY": ""},
        "params": ("-l",),
        "allow_run_as_root": True,
        "remote_shell": ("/usr/bin/ssh",),
    }
    return LaunchJob(**{**values, **changes})


def argv(changed: LaunchJob) -> list[str]:
    return HydraLauncher(path="/opt/mpich/bin/mpiexec").argv(changed)


def test_hydra_on_several_hosts() -> None:
    assert argv(job()) == [
        "/opt/mpich/bin/mpiexec",
        "-hosts",
        "n0:1,n1:4,n2:4",
        "-launcher",
        "ssh",
        "-launcher-exec",
        "/usr/bin/ssh",
        "-genv",
        "PYTHONPATH",
        "/a:/b c",
        "-genv",
        "EMPTY",
        "",
        "-l",
        "-n",
        "9",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


def test_hydra_on_one_host() -> None:
    local = job(
        hosts=(("localhost", 2),),
        controller_host="localhost",
        local_hosts=frozenset({"localhost"}),
        env={},
        params=(),
        remote_shell=(),
    )

    assert argv(local) == [
        "/opt/mpich/bin/mpiexec",
        "-hosts",
        "localhost:3",
        "-n",
        "3",
        "/venv/bin/python",
        "-m",
        "mpi4py",
        "x.py",
    ]


@pytest.mark.parametrize("loopback", ["localhost", "127.0.0.1", "127.0.1.1"])
def test_loopback_name_beside_other_hosts_is_refused(loopback: str) -> None:
    with pytest.raises(ValueError, match=f"controller_host is {loopback}; .* own name"):
        argv(job(controller_host=loopback))


@pytest.mark.parametrize("params", ["-launcher rsh", "-launcher-exec /x", "-bootstrap rsh"])
def test_launcher_chosen_by_the_user_beats_ours(params: str) -> None:
    command = argv(job(params=tuple(params.split())))

    assert "/usr/bin/ssh" not in command
    assert " ".join(command).count("-launcher ") == params.count("-launcher ")


def test_users_variable_comes_last_which_is_the_one_that_counts() -> None:
    command = argv(job(params=("-genv", "EMPTY", "full")))

    assert command.index("full") > command.index("EMPTY")


def test_remote_shell_with_arguments_is_called_by_a_script() -> None:
    words = argv(job(remote_shell=("ssh", "-F", "x"), remote_shell_script="/run/remote-shell"))
    assert words[words.index("-launcher-exec") + 1] == "/run/remote-shell"


@pytest.mark.parametrize("params", ["-n 8", "-np 8", "-hosts n9", "-f h", "-ppn 2"])
def test_parameter_that_moves_ranks_is_refused(params: str) -> None:
    with pytest.raises(OptionError, match="come from --kv-hosts, --kv-np"):
        argv(job(params=tuple(params.split())))
